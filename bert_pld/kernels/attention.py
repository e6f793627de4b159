"""Multi-head softmax attention over flattened tokens: each sequence attends to itself, and padding costs nothing.

Sequences of equal length use torch's scaled_dot_product_attention. Packed sequences of different lengths use torch's
variable-length FlashAttention kernel. Its public function (`torch.nn.attention.varlen`) has no dropout, so the operator
below it is called, which has dropout and a derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bert_pld.kernels import reference
from bert_pld.kernels.layout import TokenLayout

_MAX_HEAD_WIDTH = 256


def self_attention(qkv: Tensor, num_heads: int, layout: TokenLayout, dropout: float) -> Tensor:
    """Attend within each sequence, or within each document if sequences hold several.

    Args:
        qkv: [T, 3·H], queries, keys and values concatenated.
        num_heads: N.
        layout: position of the sequences in the T rows.
        dropout: dropout probability of the attention weights, drawn from torch's generator of the device; 0 outside
            training.

    Returns:
        [T, H].
    """
    total, width = qkv.shape
    if not total:
        return qkv[:, : width // 3]
    full, documents = layout.cumulative_lengths is None, layout.documents
    if not (full and documents is None) and runs_packed(qkv.device, qkv.dtype, width // (3 * num_heads)):
        return packed_attention(qkv, num_heads, layout, dropout)
    document = None if documents is None else documents.of_tokens(total)
    if not full:
        return _padded_attention(qkv, num_heads, layout, dropout, document)
    shape = -1, layout.padded_length
    document = None if document is None else document.view(shape)
    context = reference.self_attention(qkv.view(*shape, width), num_heads, document, dropout)
    return context.view(total, width // 3)


def runs_packed(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether the variable-length kernel supports these; if not, packed sequences are padded for attention only."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return head_width % 8 == 0 and head_width <= _MAX_HEAD_WIDTH


def packed_attention(qkv: Tensor, num_heads: int, layout: TokenLayout, dropout: float) -> Tensor:
    """Run torch's variable-length FlashAttention kernel: [T, 3·H] → [T, H]."""
    total, width = qkv.shape
    query, key, value = qkv.view(total, 3, num_heads, width // (3 * num_heads)).unbind(1)
    edges, longest = layout.cumulative_lengths, layout.longest
    if layout.documents is not None:
        edges, longest = layout.documents.edges, layout.documents.longest
    context = torch.ops.aten._flash_attention_forward(
        query, key, value, edges, edges, longest, longest, dropout, False, False
    )[0]
    return context.reshape(total, width // 3)


def _padded_attention(
    qkv: Tensor, num_heads: int, layout: TokenLayout, dropout: float, document: Tensor | None
) -> Tensor:
    """Attend with padding between the sequences; `document` int64 [T] is each token's document, or None."""
    assert layout.cumulative_lengths is not None
    columns = torch.arange(layout.longest, device=qkv.device)
    mask = columns < layout.cumulative_lengths.diff()[:, None]
    index = torch.nonzero_static(mask.flatten(), size=qkv.shape[0]).squeeze(1)
    attended = mask
    if document is not None:
        attended = document.new_full((mask.numel(),), -1).index_copy(0, index, document).view(mask.shape)
    padded = qkv.new_zeros(mask.numel(), qkv.shape[1]).index_copy(0, index, qkv)
    context = reference.self_attention(padded.view(*mask.shape, -1), num_heads, attended, dropout)
    return context.flatten(0, 1).index_select(0, index)
