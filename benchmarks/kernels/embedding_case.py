"""The embeddings as `benchmarks kernels` measures them: BERT's, of whole rows, with dropout, with or without LayerNorm.

Ids are drawn so that a few are frequent, as words are: the sum over the rows of one id is what backward must balance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.operation import Formula, InputSet, Operation, Size
from bert_pld.kernels import reference
from bert_pld.kernels.dropout import CounterDropout
from bert_pld.kernels.layout import TokenLayout, padded_layout
from bert_pld.kernels.reference import EmbeddingTables

if TYPE_CHECKING:
    from bert_pld.kernels.embedding_forward import Tokens
    from bert_pld.kernels.tiles import Tile

_EPS, _TYPES = 1e-12, 2
_FP32, _INT32, _INT64 = 4, 4, 8


class Embeddings(Operation):
    """Rows of word, position and token-type tables, added, dropped out and, with `norm`, normalised before."""

    swept = False  # A sort and four kernels backward: the tile of one of them says little.

    def __init__(self, name: str, size: Size, device: torch.device, norm: bool, dropout: float) -> None:
        super().__init__(size, device)
        self.name, self.norm = name, norm
        generator, shape = self.generator(0), (size.tokens // size.seq_length, size.seq_length)
        # Zipf's law: the density of ranks is proportional to 1 / rank.
        ranks = (size.vocabulary + 1) ** torch.rand(shape, generator=generator, device=device)
        self.ids = (ranks.long() - 1).clamp_(0, size.vocabulary - 1)
        self.types = torch.randint(0, _TYPES, shape, generator=generator, device=device)
        self.layout: TokenLayout = padded_layout(self.ids)
        self.dropout = CounterDropout(dropout, seed=1 << 40, site=3)

    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes: used rows of the tables once; backward writes the gradient of the whole word table."""
        rows, row_bytes = self.size.tokens, self.size.hidden * self.size.item_bytes
        used = int(self.ids.unique().numel())
        statistics = 2 * _FP32 * rows if self.norm else 0
        small = (self.size.seq_length + _TYPES + (2 if self.norm else 0)) * row_bytes
        if direction == "forward":
            return (used + rows) * row_bytes + small + (2 * _INT64 + _INT32) * rows + statistics
        read = rows + (used if self.norm else 0)
        return (read + self.size.vocabulary) * row_bytes + small + (_INT64 + _INT32) * rows + statistics

    def random_inputs(self, seed: int) -> InputSet:
        """Draw the word, position and token-type tables and, with `norm`, weight and bias."""
        generator, width = self.generator(seed), self.size.hidden
        tables = [self.normal(generator, rows, width) for rows in (self.size.vocabulary, self.size.seq_length, _TYPES)]
        norm = [self.normal(generator, width) for _ in range(2 if self.norm else 0)]
        return InputSet((*tables, *norm), (self.normal(generator, self.size.tokens, width).detach(),))

    def formula(self) -> Formula:
        """Returns [T, H]."""
        width, ids, types, dropout = self.size.hidden, self.ids, self.types, self.dropout.probability

        def embed(word: Tensor, position: Tensor, token_type: Tensor, *norm: Tensor) -> tuple[Tensor, ...]:
            sums = F.embedding(ids, word) + position + F.embedding(types, token_type)
            sums = F.layer_norm(sums, (width,), *norm, _EPS) if norm else sums
            return (F.dropout(sums.flatten(0, 1), dropout),)

        return embed

    def specification(self) -> Formula:
        """The same with the counter's dropout mask."""
        places = self.ids.flatten(), self.layout.token_positions, self.types.flatten()
        return lambda *parameters: (reference.embed(_tables(parameters), *places, self.dropout),)

    def forward(self, inputs: InputSet, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`embedding_forward`."""
        from bert_pld.kernels.embedding_forward import embedding_forward

        return embedding_forward(_tables(inputs.arguments), self._tokens(), self.dropout, tile)

    def backward(self, inputs: InputSet, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`embedding_backward`, then the sort and the sum of the rows of each id."""
        from bert_pld.kernels.embedding_backward import embedding_backward
        from bert_pld.kernels.sorted_sum import sum_rows_by_id

        _, ids, mean, rstd = saved
        (grad_out,) = inputs.upstream
        assert grad_out is not None
        tables = _tables(inputs.arguments)
        grad_sum, grads = embedding_backward(grad_out, tables, self._tokens(), (ids, mean, rstd), self.dropout, tile)
        word = sum_rows_by_id(grad_sum, ids, self.size.vocabulary)
        return word, *(grad for grad in grads if grad is not None)

    def default_tile(self, direction: str) -> Tile:
        """Whole rows, in pieces."""
        from bert_pld.kernels.tiles import reducing_row_tile

        return reducing_row_tile(self.size.hidden)

    def _tokens(self) -> Tokens:
        from bert_pld.kernels.embedding_forward import tokens_of

        return tokens_of(self.layout, self.ids, self.types)


def _tables(parameters: tuple[Tensor, ...]) -> EmbeddingTables:
    names = "word", "position", "token_type", "norm_weight", "norm_bias"
    return EmbeddingTables(**dict(zip(names, parameters, strict=False)), eps=_EPS)
