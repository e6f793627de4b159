"""The embeddings through fused kernels: ids and segments [B, S] with padding → [T, H] without.

The functions read the parameters of several modules, which are not called. ZeRO-3 finds that in the first forward: it
gathers such a parameter where it is read, and from then on with the embeddings' own call.
"""

from __future__ import annotations

from torch import Tensor

from bert_pld.kernels.dropout import NO_DROPOUT, CounterDropout
from bert_pld.kernels.embedding import embed, embeds
from bert_pld.kernels.embedding_forward import tokens_of
from bert_pld.kernels.layout import TokenLayout
from bert_pld.kernels.reference import EmbeddingTables
from bert_pld.model.bert import Embeddings, embed_eager
from bert_pld.model.block_calls import draw_seed
from bert_pld.model.encoder import Encoder
from bert_pld.model.modern import ModernEmbeddings


def embed_fused(
    embeddings: Embeddings, input_ids: Tensor, token_type_ids: Tensor, layout: TokenLayout, dropout: CounterDropout
) -> Tensor:
    """Embed the tokens of BERT; eagerly if there are more segments or columns than the kernels support."""
    tables = tables_of(embeddings)
    if not embeds(tables):
        return embed_eager(embeddings, layout.pack(input_ids), layout.pack(token_type_ids), layout.token_positions)
    hidden_states = embed(tables, tokens_of(layout, input_ids, token_type_ids), dropout)
    return hidden_states if embeddings.projection is None else embeddings.projection(hidden_states)


def tables_of(embeddings: Embeddings) -> EmbeddingTables:
    """Return the parameters of BERT's embeddings but for the projection."""
    norm, token_type = embeddings.norm, embeddings.token_type
    return EmbeddingTables(
        embeddings.word.weight,
        embeddings.position.weight,
        None if token_type is None else token_type.weight,
        None if norm is None else norm.weight,
        None if norm is None else norm.bias,
        0.0 if norm is None else norm.eps,
        embeddings.position_offset,
    )


def embed_words_fused(
    embeddings: ModernEmbeddings, input_ids: Tensor, layout: TokenLayout, dropout: CounterDropout
) -> Tensor:
    """Embed the tokens of ModernBERT."""
    norm = embeddings.norm
    tables = EmbeddingTables(embeddings.word.weight, norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps)
    return embed(tables, tokens_of(layout, input_ids, None), dropout)


def embedding_dropout(encoder: Encoder) -> CounterDropout:
    """Return the dropout of the embeddings in one forward, with a seed of its own."""
    probability = encoder.config.hidden_dropout if encoder.training else 0.0
    return CounterDropout(probability, draw_seed()) if probability else NO_DROPOUT
