"""The embeddings of tokens in one pass: rows of word, position and token-type tables, LayerNorm, dropout.

    y[t] = dropout(LN(word[id(t)] + position[p(t)] + type[k(t)]))

Position and type are left out where a model has none, and so is the LayerNorm. Rows are those of tokens without
padding; p(t) counts along each sequence or document, so the kernels compute it. The specification is
`bert_pld.kernels.reference.embed`.

Bytes moved: forward reads a row of the word table and writes a row, for each token. Backward reads the upstream
gradient, and with a LayerNorm the word table's rows again; it writes the gradient of the sum, reads it once more in the
order of the ids, and writes the rows of the word table's gradient that are not zero. One sort of the ids orders
everything (`sorted_sum.py`): atomic additions would need a gradient of the table in fp32, which is set to zero, added
to, read and rounded, and would not give the same bits twice. Gradients of positions and types need no sort.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.kernels import TRITON_MAX_WIDTH
from bert_pld.kernels.dropout import CounterDropout
from bert_pld.kernels.embedding_backward import embedding_backward
from bert_pld.kernels.embedding_forward import MOST_TYPES, Tokens, embedding_forward
from bert_pld.kernels.reference import EmbeddingTables
from bert_pld.kernels.sorted_sum import sum_rows_by_id


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, word, position, token_type, norm_weight, norm_bias, sizes, tokens, dropout):
        tables = dataclasses.replace(
            sizes, word=word, position=position, token_type=token_type, norm_weight=norm_weight, norm_bias=norm_bias
        )
        out, *saved = embedding_forward(tables, tokens, dropout)
        ctx.save_for_backward(word, position, token_type, norm_weight, norm_bias, *saved)
        ctx.sizes, ctx.tokens, ctx.dropout = sizes, tokens, dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        *parameters, row_ids, mean, rstd = ctx.saved_tensors
        word, position, token_type, norm_weight, norm_bias = parameters
        tables = dataclasses.replace(
            ctx.sizes, word=word, position=position, token_type=token_type, norm_weight=norm_weight, norm_bias=norm_bias
        )
        saved = row_ids, mean, rstd
        grad_sum, grads = embedding_backward(grad_out.contiguous(), tables, ctx.tokens, saved, ctx.dropout)
        grad_word = sum_rows_by_id(grad_sum, row_ids, len(word)) if ctx.needs_input_grad[0] else None
        return grad_word, *grads, None, None, None


def embed(tables: EmbeddingTables, tokens: Tokens, dropout: CounterDropout) -> Tensor:
    """Run `bert_pld.kernels.reference.embed` as fused kernels: [T, W]; differentiable once.

    A position without a row is an IndexError. An id or a type without one is an IndexError on a CPU, and on a GPU an
    assertion of the device.
    """
    assert embeds(tables)
    if tables.position is not None and tokens.longest + tables.position_offset > len(tables.position):
        raise IndexError(
            f"a sequence has {tokens.longest} tokens, and the embedding rows for"
            f" {len(tables.position) - tables.position_offset} positions"
        )
    if tables.word.device.type == "cpu":
        _check(tokens.input_ids, len(tables.word))
        if tables.token_type is not None and len(tables.token_type) > 1:
            _check(tokens.token_types, len(tables.token_type))
    parameters = tables.word, tables.position, tables.token_type, tables.norm_weight, tables.norm_bias
    return _Embed.apply(*parameters, tables, tokens, dropout)


def embeds(tables: EmbeddingTables) -> bool:
    """Whether the kernels support these tables: at most two token types, and at most `TRITON_MAX_WIDTH` columns."""
    types = 0 if tables.token_type is None else len(tables.token_type)
    return types <= MOST_TYPES and tables.word.shape[1] <= TRITON_MAX_WIDTH


def _check(indices: Tensor, rows: int) -> None:
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < rows:
        raise IndexError(f"an id is outside the embedding's {rows} rows")
