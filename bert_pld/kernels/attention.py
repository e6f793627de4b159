"""Multi-head softmax attention over flattened tokens: each sequence attends to itself, and padding costs nothing.

Sequences of equal length use torch's scaled_dot_product_attention. Packed sequences of different lengths use torch's
variable-length FlashAttention kernel. Its public function (`torch.nn.attention.varlen`) has no dropout, so the operator
below it is called, which has dropout and a derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bert_pld.kernels import reference_attention
from bert_pld.kernels.layout import TokenLayout
from bert_pld.kernels.split_qkv import split_qkv

_MAX_HEAD_WIDTH = 256


def self_attention(
    qkv: Tensor, num_heads: int, layout: TokenLayout, dropout: float, bias: Tensor | None = None
) -> Tensor:
    """Attend within each sequence, or within each document if sequences hold several.

    Args:
        qkv: [T, 3·H], queries, keys and values concatenated.
        num_heads: N.
        layout: position of the sequences in the T rows.
        dropout: dropout probability of the attention weights, drawn from torch's generator of the device; 0 outside
            training.
        bias: [3·H], if `qkv` is a product plus `bias.detach()`: its gradient is summed where that of `qkv` is written.

    Returns:
        [T, H].
    """
    total, width = qkv.shape
    query, key, value = qkv.chunk(3, dim=-1) if bias is None else split_qkv(qkv, bias)
    if not total:
        return query
    head_width = width // (3 * num_heads)
    query, key, value = (part.unflatten(-1, (num_heads, head_width)) for part in (query, key, value))
    full, documents = layout.cumulative_lengths is None, layout.documents
    if not (full and documents is None) and runs_packed(qkv.device, qkv.dtype, head_width):
        return packed_attention(query, key, value, layout, dropout)
    document = None if documents is None else documents.of_tokens(total)
    if not full:
        return _padded_attention((query, key, value), layout, dropout, document)
    shape = -1, layout.padded_length
    document = None if document is None else document.view(shape)
    query, key, value = (part.unflatten(0, shape) for part in (query, key, value))
    return reference_attention.multi_head_attention(query, key, value, document, dropout).flatten(0, 1)


def runs_packed(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether the variable-length kernel supports these; if not, packed sequences are padded for attention only."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return head_width % 8 == 0 and head_width <= _MAX_HEAD_WIDTH


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, dropout: float) -> Tensor:
    """Run torch's variable-length FlashAttention kernel: three times [T, N, D] → [T, N · D]."""
    edges, longest = layout.cumulative_lengths, layout.longest
    if layout.documents is not None:
        edges, longest = layout.documents.edges, layout.documents.longest
    context = torch.ops.aten._flash_attention_forward(
        query, key, value, edges, edges, longest, longest, dropout, False, False
    )[0]
    return context.flatten(1)


def _padded_attention(
    parts: tuple[Tensor, Tensor, Tensor], layout: TokenLayout, dropout: float, document: Tensor | None
) -> Tensor:
    """Attend with padding between the sequences; `document` int64 [T] is each token's document, or None."""
    assert layout.cumulative_lengths is not None
    total, device = parts[0].shape[0], parts[0].device
    mask = torch.arange(layout.longest, device=device) < layout.cumulative_lengths.diff()[:, None]
    index = torch.nonzero_static(mask.flatten(), size=total).squeeze(1)
    attended = mask
    if document is not None:
        attended = document.new_full((mask.numel(),), -1).index_copy(0, index, document).view(mask.shape)
    query, key, value = (
        part.new_zeros(mask.numel(), *part.shape[1:]).index_copy(0, index, part).unflatten(0, mask.shape)
        for part in parts
    )
    context = reference_attention.multi_head_attention(query, key, value, attended, dropout)
    return context.flatten(0, 1).index_select(0, index)
