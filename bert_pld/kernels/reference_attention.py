"""Attention in eager torch: the specification of the backends' attention, and what a CPU runs.

`split_qkv` and `rotary_heads` specify the fused kernels of these names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_pld.kernels.documents import WithinDocuments
from bert_pld.kernels.dropout import draws_integers
from bert_pld.kernels.dropout import dropout as drop_out
from bert_pld.kernels.reference import cpu_multiplies_bf16

_LONGEST_MASKED_ROW = 160
"""Most tokens of a row for which attention within documents uses a mask on a CPU."""
_LONGEST_IN_BF16 = 256
"""Most tokens of a sequence whose attention is computed in bf16 on a CPU."""
_VECTOR_BYTES = 64
"""Bytes of the longest vectors of a CPU."""


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
    if in_bf16 or _are_short_rows(key.transpose(-1, -2)) or (dropout and draws_integers(query)):
        # torch's fused attention has no dropout on a CPU: these are the steps that torch would run, with a faster one.
        scores = (query @ key.transpose(-1, -2)).mul_(query.shape[-1] ** -0.5)
        if mask is not None:
            # For finite scores the sum has the same bits as `masked_fill`. It is faster, forward and backward.
            scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        return drop_out(_softmax(scores), dropout) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension."""
    if _are_short_rows(scores):  # Side by side, so that vectors reach across the rows.
        return scores.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1)
    return scores.softmax(-1)


def _are_short_rows(values: Tensor) -> bool:
    """Whether rows along the last dimension are shorter than a vector of a CPU.

    There torch's softmax takes ten times longer for each element. Blocks that run on some tokens have such rows.
    """
    return values.device.type == "cpu" and values.shape[-1] * values.element_size() < _VECTOR_BYTES


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
