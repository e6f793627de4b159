"""The blocks' operations in eager torch: the specification against which every backend is tested.

Shapes: B sequences, S positions, H hidden, I intermediate, N attention heads, M masked positions, V vocabulary.
`embed`, `add_norm`, `bias_gelu`, `geglu` and `linear_cross_entropy_sum` specify the fused kernels, operation by
operation. Attention is in `reference_attention.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_pld.kernels.dropout import (
    NO_DROPOUT,
    CounterDropout,
    counter_keep_mask,
    dropped_levels,
    kept_scale,
)
from bert_pld.kernels.dropout import dropout as drop_out

_NO_LABEL = -(2**31)
"""In place of torch's -100, a label that cross-entropy would silently ignore: here every label counts."""


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


@dataclasses.dataclass(frozen=True)
class EmbeddingTables:
    """The parameters of embeddings of width W."""

    word: Tensor
    """[V, W]."""
    position: Tensor | None = None
    """[P, W]; None: the blocks know the positions."""
    token_type: Tensor | None = None
    """[1 or 2, W]; with one row all tokens have it."""
    norm_weight: Tensor | None = None
    """[W], weight of the LayerNorm; None: there is none."""
    norm_bias: Tensor | None = None
    """[W], or None."""
    eps: float = 0.0
    """Epsilon of the LayerNorm."""
    position_offset: int = 0
    """Row of the first position."""


def embed(
    tables: EmbeddingTables, ids: Tensor, positions: Tensor, token_types: Tensor, dropout: CounterDropout = NO_DROPOUT
) -> Tensor:
    """Return the tables' rows of each token, added, normalised and dropped out: three times int64 [T] → [T, W]."""
    sums = F.embedding(ids, tables.word)
    if tables.position is not None:
        sums = sums + F.embedding(positions + tables.position_offset, tables.position)
    if tables.token_type is not None:
        sums = sums + F.embedding(token_types if len(tables.token_type) > 1 else 0 * token_types, tables.token_type)
    if tables.norm_weight is not None:
        sums = layer_norm(sums, tables.norm_weight, tables.norm_bias, tables.eps)
    keep = counter_keep_mask(dropout, *sums.shape).to(sums.device)
    return sums * keep * kept_scale(dropped_levels(dropout.probability))


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
        labels: int64 [M], in [0, V); torch raises an error for any other.

    Returns:
        The sum (fp32; 0 for M = 0) and the number of labels that have the highest logit (int64, no gradient).
    """
    logits = linear(hidden_states, weight, bias)
    logits = logits.float()  # On a CPU argmax, too, is four times faster in fp32.
    loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=_NO_LABEL)
    return loss, (logits.detach().argmax(-1) == labels).sum()
