"""The encoder: embeddings and switchable blocks under their gates, and its eager way from tokens to hidden states."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bert_pld.config import ModelConfig
from bert_pld.kernels.layout import TokenLayout, padded_layout
from bert_pld.kernels.reference import layer_norm
from bert_pld.model.block import GatedBlock
from bert_pld.pld.gates import BlockGate, last_whole_block, runs_dropped_last


class FinalNorm(nn.LayerNorm):
    """The LayerNorm that follows the last pre-norm block."""

    def __init__(self, hidden_size: int, eps: float, bias: bool = True) -> None:
        super().__init__(hidden_size, eps, bias=bias)
        self.run: Callable[..., Tensor] = normalize_eager
        """Called with this module and the arguments of `forward`; a backend replaces it."""

    def forward(self, *inputs: Any) -> Tensor:
        """Apply LayerNorm: run `normalize_eager`, or the function that a backend put in its place."""
        return self.run(self, *inputs)


def normalize_eager(norm: FinalNorm, hidden_states: Tensor) -> Tensor:
    """Apply LayerNorm in eager torch: […, H] → […, H]."""
    return layer_norm(hidden_states, norm.weight, norm.bias, norm.eps)


def as_bool(attention_mask: Tensor | None) -> Tensor | None:
    """Return a mask of tokens as bool. Tokenizers give integers; attention would take int64 for document numbers."""
    if attention_mask is not None and attention_mask.is_floating_point():
        raise TypeError(f"attention_mask: {attention_mask.dtype}; must be bool or integers, 1 for a token")
    return None if attention_mask is None else attention_mask.bool()


class Encoder(nn.Module):
    """Embeddings and L switchable blocks, which run under their gates."""

    def __init__(
        self,
        config: ModelConfig,
        embeddings: nn.Module,
        blocks: Iterable[GatedBlock],
        final_norm: FinalNorm | None,
        run_blocks: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.config = config
        self.embeddings: Any = embeddings
        """Module with the word embeddings in `word`; the eager function calls it."""
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        eager = EagerEncoding(run_blocks)
        self.run: Callable[..., tuple[Tensor, TokenLayout]] = eager.encode
        """Called with this encoder and the arguments of `encode`; a backend replaces it."""
        self.run_chosen: Callable[..., Tensor] | None = eager.encode_chosen
        """Called with this encoder and the arguments of `encode_chosen`; None: all tokens are encoded, then chosen."""
        self.graphs: Any = None
        """The blocks' CUDA graphs (`graphs.BlockGraphs`), or None."""
        self.leaves_padding_out = False
        """Whether the blocks run on tokens only, without the padding; a backend sets it."""

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        """Encode [B, S] → [B, S, H], zeros at padding if the backend leaves it out. Arguments: see `encode`."""
        hidden_states, layout = self.encode(*inputs, **keywords)
        return layout.pad(hidden_states)

    def encode(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None = None,
        gates: Sequence[BlockGate] | None = None,
        sequence_lengths: NDArray[np.int64] | None = None,
        document_lengths: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, TokenLayout]:
        """Compute hidden states, without padding if the backend leaves it out.

        Args:
            input_ids: int64 [B, S].
            token_type_ids: int64 [B, S].
            attention_mask: [B, S], bool or integers: True or 1 for the tokens of a row, which come before its padding;
                None if no row has padding.
            gates: one gate per block; None runs all blocks unscaled.
            sequence_lengths: [B], number of tokens of each row, on the host. If a mask is given without it, a backend
                that leaves padding out waits for the device to compute it.
            document_lengths: [D], number of tokens of each document, row by row, on the host: the rows hold documents
                that do not attend to each other, and positions restart at each. None: a row is one sequence.

        Returns:
            Hidden states [T, H] and the layout of the tokens in them.
        """
        mask = as_bool(attention_mask)
        return self.run(self, input_ids, token_type_ids, mask, gates, sequence_lengths, document_lengths)

    def encode_chosen(
        self,
        positions: Tensor,
        with_first: bool,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None = None,
        *others: Any,
    ) -> Tensor:
        """Compute the hidden states of the tokens that a loss looks at.

        What only the other tokens' hidden states need is left out: in the last block everything after attention, and
        the final LayerNorm.

        Args:
            positions: int64 [M], indices into the flattened [B·S].
            with_first: whether to append the first token of each row.
            input_ids: as those of `encode`, and so are all that follow.
            token_type_ids: see there.
            attention_mask: see there.
            others: see there; a backend's function needs all of them.

        Returns:
            [M, H], or [M + B, H].
        """
        inputs = input_ids, token_type_ids, as_bool(attention_mask), *others
        if self.run_chosen is not None:
            return self.run_chosen(self, positions, with_first, *inputs)
        hidden_states, layout = self.encode(*inputs)
        return hidden_states.index_select(0, layout.chosen_rows(positions, with_first))

    def recomputed(self, block: nn.Module) -> Callable[..., Tensor]:
        """Return the block, or with activation checkpointing a function that recomputes it in backward."""
        if not (self.config.activation_checkpointing and self.training and torch.is_grad_enabled()):
            return block
        return functools.partial(checkpoint, block, use_reentrant=False)


@dataclasses.dataclass(frozen=True)
class EagerEncoding:
    """`Encoder.encode` and `Encoder.encode_chosen` in eager torch, padding included."""

    run_blocks: Callable[..., Tensor]
    """Embed the tokens and run the blocks and the final LayerNorm.

    Called with the encoder, rows int64 [R] of the last kept block's result or None, and the arguments of `encode`: it
    returns [B, S, H], or these rows [R, H].
    """

    def encode(self, encoder: Encoder, input_ids: Tensor, *inputs: Any) -> tuple[Tensor, TokenLayout]:
        """`Encoder.encode`: [B · S, H]."""
        return self.run_blocks(encoder, None, input_ids, *inputs).flatten(0, 1), padded_layout(input_ids)

    def encode_chosen(
        self,
        encoder: Encoder,
        positions: Tensor,
        with_first: bool,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None,
        gates: Sequence[BlockGate] | None,
        *lengths: NDArray[np.int64] | None,
    ) -> Tensor:
        """`Encoder.encode_chosen`."""
        rows = padded_layout(input_ids).chosen_rows(positions, with_first)
        inputs = input_ids, token_type_ids, attention_mask, gates, *lengths
        last = last_whole_block(gates, len(encoder.blocks))
        # A dropped block that runs for its zero gradients needs sequences, so none may come after the choice.
        if last is None or runs_dropped_last(gates):
            return self.run_blocks(encoder, None, *inputs).flatten(0, 1).index_select(0, rows)
        return self.run_blocks(encoder, rows, *inputs)


def calls_of_blocks(
    encoder: Encoder, gates: Sequence[BlockGate] | None, rows: Tensor | None
) -> Iterator[tuple[Callable[..., Tensor], BlockGate | None]]:
    """Yield for each block the function that runs it and its gate; the last block that is kept returns `rows` only."""
    last = None if rows is None else last_whole_block(gates, len(encoder.blocks))
    for index, block in enumerate(encoder.blocks):
        run = encoder.recomputed(block)
        if index == last:
            run = functools.partial(run, chosen=rows)
        yield run, None if gates is None else gates[index]
