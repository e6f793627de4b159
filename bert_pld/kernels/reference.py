"""The blocks' operations in eager torch: the specification against which every backend is tested.

Shapes: B sequences, S positions, H hidden, I intermediate, N attention heads, M masked positions, V vocabulary.
`add_norm`, `bias_gelu`, `geglu`, `rotary_heads` and `linear_cross_entropy_sum` specify the fused kernels, operation by
operation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pld.kernels.documents import WithinDocuments
from bert_pld.kernels.dropout import (
    NO_DROPOUT,
    CounterDropout,
    counter_keep_mask,
    draws_integers,
    dropped_levels,
    kept_scale,
)
from bert_pld.kernels.dropout import dropout as drop_out

_LONGEST_MASKED_ROW = 160
"""Most tokens of a row for which attention within documents uses a mask on a CPU."""
_LONGEST_IN_BF16 = 256
"""Most tokens of a sequence whose attention is computed in bf16 on a CPU."""


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · Wᵀ + b in the inputs' dtype: [..., I], [O, I], [O] → [..., O]. All backends use it.

    A CPU without bf16 instructions multiplies bf16 matrices a hundred times slower than fp32 matrices. There the
    operands are converted to fp32, and the product is rounded once, as in bf16 hardware with fp32 accumulation.
    """
    if not needs_widening(inputs):
        return F.linear(inputs, weight, bias)
    product = F.linear(inputs.float(), weight.float(), None if bias is None else bias.float())
    return product.to(inputs.dtype)


def needs_widening(values: Tensor) -> bool:
    """Whether this device multiplies values of this dtype far more slowly than fp32 values."""
    return values.dtype is torch.bfloat16 and values.device.type == "cpu" and not cpu_multiplies_bf16()


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Return whether this processor has bf16 instructions."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Linear(nn.Linear):
    """`nn.Linear` that calls `linear`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer: [..., I] → [..., O]."""
        return linear(inputs, self.weight, self.bias)


def layer_norm(hidden_states: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Apply LayerNorm over the last dimension: [..., H] → [..., H]."""
    return F.layer_norm(hidden_states, weight.shape, weight, bias, eps)


def gelu(values: Tensor, activation: Literal["gelu", "gelu_tanh"]) -> Tensor:
    """Apply GELU, with the error function or its tanh approximation."""
    return F.gelu(values, approximate="tanh" if activation == "gelu_tanh" else "none")


def geglu(values: Tensor, activation: Literal["gelu", "gelu_tanh"]) -> Tensor:
    """Return gelu(a) · b of packed projections [a, b]: [..., 2·I] → [..., I] (Shazeer, arXiv:2002.05202)."""
    inner, gate = values.chunk(2, dim=-1)
    return gelu(inner, activation) * gate


def linear_dropout_scale_residual(
    inner: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    dropout: float,
    scale: float | Tensor,
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor] = linear,
) -> Tensor:
    """Return residual + scale · dropout(x · Wᵀ + b): [..., I] and [..., H] → [..., H].

    `scale` is the gate's 1 / p_l (arXiv:2010.13369, section 3); `dropout` is 0 outside training; `multiply` computes
    x · Wᵀ + b.
    """
    branch = drop_out(multiply(inner, weight, bias), dropout)
    if isinstance(scale, Tensor):
        return residual + branch * scale
    return torch.add(residual, branch, alpha=scale)


def self_attention(
    qkv: Tensor,
    num_heads: int,
    attention_mask: Tensor | WithinDocuments | None,
    dropout: float,
    rotation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Apply multi-head softmax attention to packed projections.

    Args:
        qkv: [B, S, 3·H], queries, keys and values concatenated.
        num_heads: N.
        attention_mask: bool [B, S], True for tokens; or bool [B or 1, S or 1, S], True where a token attends to
            another; or int64 [B, S], the documents of `WithinDocuments`, or all of it; None if every token attends to
            all.
        dropout: dropout probability of the attention weights; 0 outside training.
        rotation: cosines and sines of the tokens' rotary angles, which `rotate` applies to queries and keys, or None.

    Returns:
        [B, S, H].
    """
    if not qkv.shape[0]:  # Under ZeRO 3 a dropped block runs on no rows; not every attention kernel does.
        return qkv[..., : qkv.shape[-1] // 3]
    if _attends_in_fp32(qkv):
        return self_attention(qkv.float(), num_heads, attention_mask, dropout, rotation).to(qkv.dtype)
    batch, seq, width = qkv.shape
    heads = qkv.view(batch, seq, 3, num_heads, width // (3 * num_heads))
    query, key, value = heads.unbind(2)  # each [B, S, N, H / N]
    if rotation is not None:
        query, key = rotate(heads[:, :, :2], *rotation).unbind(2)
    return multi_head_attention(query, key, value, attention_mask, dropout)


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | WithinDocuments | None, dropout: float
) -> Tensor:
    """Apply `self_attention` to queries, keys and values that are apart: three times [B, S, N, D] → [B, S, N · D]."""
    if _attends_in_fp32(query):
        wide = query.float(), key.float(), value.float()
        return multi_head_attention(*wide, attention_mask, dropout).to(query.dtype)
    batch, seq = query.shape[:2]
    mask = attention_mask
    if isinstance(mask, Tensor) and mask.dtype is torch.int64:
        mask = WithinDocuments(mask)
    if isinstance(mask, WithinDocuments):
        if splits_documents(query):
            return _attend_document_by_document(query, key, value, mask, dropout).view(batch, seq, -1)
        mask = mask.mask()
    return attend(query, key, value, mask, dropout)


def _attends_in_fp32(values: Tensor) -> bool:
    """Whether attention of these sequences [B, S, …] is computed in fp32 although they are in bf16.

    On a CPU torch's fused attention is three to five times slower in bf16 than in fp32, even with bf16 units. With them
    the steps one by one are faster than both, but their scores take memory that grows with S².
    """
    on_cpu_in_bf16 = values.dtype is torch.bfloat16 and values.device.type == "cpu"
    return on_cpu_in_bf16 and not (cpu_multiplies_bf16() and values.shape[1] <= _LONGEST_IN_BF16)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Apply softmax attention to heads: three times [B, S, N, D] → [B, S, N · D].

    `mask` is bool, [B, S] for tokens or [B or 1, S or 1, S] for pairs, or None.
    """
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if mask is not None:
        mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return _attend(query, key, value, mask, dropout).transpose(1, 2).flatten(2)


def split_qkv(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split projections, and pass their gradient on to the bias that they contain.

    Args:
        qkv: [T, 3·H], queries, keys and values concatenated: a product plus `bias.detach()`.
        bias: [3·H].

    Returns:
        Queries, keys and values, each [T, H].
    """
    query, key, value = (qkv + (bias - bias.detach())).chunk(3, dim=-1)
    return query, key, value


def splits_documents(qkv: Tensor) -> bool:
    """Whether attention runs document by document, rather than on whole rows with a mask.

    On a CPU this is cheaper for long rows, at 512 tokens two to four times, and there the lengths can be read without
    waiting. Below about 160 tokens the calls cost more than the mask.
    """
    return qkv.device.type == "cpu" and qkv.shape[1] > _LONGEST_MASKED_ROW and not torch.compiler.is_compiling()


def _attend_document_by_document(
    query: Tensor, key: Tensor, value: Tensor, within: WithinDocuments, dropout: float
) -> Tensor:
    """Attend within each document: three times [B, S, N, D] → [B · S, N · D]."""
    lengths, masks = within.runs()
    parts = zip(*(values.flatten(0, 1)[None].split(lengths, dim=1) for values in (query, key, value)), strict=True)
    contexts = [attend(q, k, v, mask, dropout) for (q, k, v), mask in zip(parts, masks, strict=True)]
    return torch.cat(contexts, dim=1)[0]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Return softmax(QKᵀ / √D)·V: three times [B, N, S, D] → [B, N, S, D]; `mask` is bool, [B or 1, 1, S or 1, S]."""
    in_bf16 = query.dtype is torch.bfloat16 and query.device.type == "cpu"
    if in_bf16 or (dropout and draws_integers(query)):
        # torch's fused attention has no dropout on a CPU: these are the steps that torch would run, with a faster one.
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        return drop_out(scores.softmax(-1), dropout) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def rotary_angles(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of rotary positions (Su et al., arXiv:2104.09864), in fp32.

    Args:
        positions: int64 [..., S], of each token in its sequence.
        head_width: D, even.
        theta: base of the wavelengths: pair d turns by position · theta^(−2d / D).

    Returns:
        Two tensors [..., S, D / 2].
    """
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width
    angles = positions[..., None].float() * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(values: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate the pairs (d, d + D / 2) of each head by its token's angles, at least in fp32.

    Args:
        values: [B, S, 2, N, D], queries and keys.
        cosines: fp32 [B or 1, S, D / 2].
        sines: of the same shape.

    Returns:
        The shape and type of `values`.
    """
    first, second = values.to(torch.promote_types(values.dtype, torch.float32)).chunk(2, dim=-1)
    cosines, sines = cosines[:, :, None, None], sines[:, :, None, None]
    rotated = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    return rotated.to(values.dtype)


def rotary_heads(
    qkv: Tensor, num_heads: int, positions: Tensor, cosines: Tensor, sines: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Separate packed projections, and rotate queries and keys.

    Args:
        qkv: [T, 3·H].
        num_heads: N.
        positions: int32 [T], of each token in its sequence.
        cosines: fp32 [S, D / 2], of every position's angles.
        sines: of the same shape.

    Returns:
        Queries, keys and values, each [T, N, D].
    """
    heads = qkv.view(1, len(qkv), 3, num_heads, 2 * cosines.shape[1])
    rotated = rotate(heads[:, :, :2], cosines[positions][None], sines[positions][None])
    return *rotated[0].unbind(1), heads[0, :, 2]


@dataclasses.dataclass(frozen=True)
class RowMap:
    """The rows of a stream [T, H] that a compact tensor [K, H] holds, in the same order."""

    compact_row: Tensor
    """int32 [T]: for each row of the stream the row of the compact tensor, or -1."""
    count: int
    """K, on the host."""

    @property
    def stream_rows(self) -> Tensor:
        """int64 [K]: the stream's row of each row of the compact tensor."""
        # The number of rows is known on the host: torch.nonzero would wait for the device.
        return torch.nonzero_static(self.compact_row >= 0, size=self.count).squeeze(1)


@dataclasses.dataclass(frozen=True)
class Join:
    """Scale, dropout and rows with which a sub-layer's output is added to the residual stream."""

    scale: float = 1.0
    """The gate's scale."""
    dropout: CounterDropout = NO_DROPOUT
    rows: RowMap | None = None
    """The rows that the sub-layer ran on; None: all rows."""
    words: Tensor | None = None
    """int32 [4] on the device: seed, site and scale as kernels read them (`joins.py`); None: a launch uploads them."""


def add_norm(
    stream: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    join: Join | None = None,
    rows: RowMap | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a sub-layer's output to the stream, then apply LayerNorm.

    Args:
        stream: [T, H].
        weight: [H], weight of the LayerNorm.
        norm_bias: [H], bias of the LayerNorm.
        eps: epsilon of the LayerNorm.
        values: [K, H] to be added to the stream, or None.
        bias: [H] to be added to `values` first; required with `values`.
        join: to which rows and how `values` are added; required with `values`.
        rows: the N rows to normalise; None: all T rows.

    Returns:
        normed [N, H] and the new stream [T, H].
    """
    if join is not None:
        assert values is not None
        assert bias is not None
        dropped = dropped_levels(join.dropout.probability)
        keep = counter_keep_mask(join.dropout, *values.shape).to(values.device)
        branch = (values + bias) * keep * (join.scale * kept_scale(dropped))
        if join.rows is None:
            stream = stream + branch
        else:
            stream = stream.index_add(0, join.rows.stream_rows, branch)
    chosen = stream if rows is None else stream.index_select(0, rows.stream_rows)
    return layer_norm(chosen, weight, norm_bias, eps), stream


def bias_gelu(values: Tensor, bias: Tensor, activation: Literal["gelu", "gelu_tanh"]) -> Tensor:
    """Return gelu(x + b): [T, I] and [I] → [T, I]."""
    return gelu(values + bias, activation)


def linear_cross_entropy_sum(
    hidden_states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of x · Wᵀ + b against labels, in nats.

    Args:
        hidden_states: [M, H].
        weight: [V, H].
        bias: [V].
        labels: int64 [M].

    Returns:
        The sum (fp32; 0 for M = 0) and the number of labels that have the highest logit (int64, no gradient).
    """
    logits = linear(hidden_states, weight, bias)
    logits = logits.float()  # On a CPU argmax, too, is four times faster in fp32.
    return F.cross_entropy(logits, labels, reduction="sum"), (logits.detach().argmax(-1) == labels).sum()
