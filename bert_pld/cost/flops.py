"""Number of parameters and floating-point operations of the model, for `plan` and for the metric `tflops`."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from bert_pld.config import ModelConfig
from bert_pld.pld.gates import Gates


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """Matrix-product FLOPs of forward and backward, together three times the forward; a multiply-add counts as two.

    Element-wise operations and the recomputation of activation checkpointing are not counted.
    """

    config: ModelConfig
    seq_length: int
    mask_probability: float = 0.15

    @property
    def block_per_sequence(self) -> float:
        """FLOPs of one block on one sequence of S tokens."""
        return self.block(np.array([self.seq_length]))

    def block(self, lengths: NDArray[np.int64]) -> float:
        """Return the FLOPs of one block on sequences of these lengths.

        Multiply-adds per token: 4H² + 2HI in the projections, 2·length·H in attention.
        """
        hidden, inner, tokens = self.config.hidden_size, self.config.intermediate_size, lengths.astype(np.float64)
        return float((6.0 * tokens * (4 * hidden * hidden + 2 * hidden * inner + 2 * tokens * hidden)).sum())

    def gated_blocks(self, lengths: NDArray[np.int64], gates: Gates | None, without_padding: bool = True) -> float:
        """Return the FLOPs of all blocks under the gates of a micro-batch.

        Args:
            lengths: [B], tokens of each sequence that a block without a gate runs on.
            gates: the micro-batch's gates; None: all blocks run.
            without_padding: at token granularity, whether the blocks run on the kept tokens alone.
        """
        whole = self.block(lengths)
        if gates is None or all(gate.tokens is None for gate in gates):
            return whole * (self.config.num_layers if gates is None else gates.kept_blocks)
        subsets = (gate.tokens for gate in gates)
        return sum(whole if one is None else self.block(one.executed(without_padding)) for one in subsets)

    @property
    def heads_per_sequence(self) -> float:
        """FLOPs of the MLM head on the masked positions of one sequence, of the pooler, and of narrow embeddings."""
        hidden, vocabulary = self.config.hidden_size, self.config.vocab_size or 0
        masked = self.mask_probability * self.seq_length
        width = self.config.embedding_size or hidden
        projection = self.seq_length * hidden * width if self.config.embedding_size else 0
        pooler = hidden * hidden if self.config.next_sentence_prediction else 0
        return 6.0 * (masked * (hidden * width + width * vocabulary) + projection + pooler)

    def per_sequence(self, depth: float | None = None, square: float | None = None) -> float:
        """Return the FLOPs of one sequence through the blocks and the heads.

        Args:
            depth: Σ p_l over the blocks, the expected number that run; by default all.
            square: Σ p_l² at token granularity, where a block on the share p of the tokens costs p² of attention's
                FLOPs; by default `depth`, because a block that runs costs all of them.
        """
        depth = self.config.num_layers if depth is None else depth
        square = depth if square is None else square
        attention = 12.0 * self.seq_length**2 * self.config.hidden_size
        blocks = depth * (self.block_per_sequence - attention) + square * attention
        return blocks + self.heads_per_sequence

    def ratio(self, depth: float, square: float | None = None) -> float:
        """Return the FLOPs of a sequence at `depth` blocks divided by those at full depth; `square` as above."""
        return self.per_sequence(depth, square) / self.per_sequence()


@dataclasses.dataclass(frozen=True)
class ParameterTensor:
    """One trainable tensor of the model."""

    elements: int
    is_matrix: bool
    """Whether it has two dimensions and so is in the optimizer's group with weight decay."""
    block: int | None
    """Index of its switchable block; None outside the blocks."""


def parameter_tensors(config: ModelConfig) -> list[ParameterTensor]:
    """Return the tensors of `BertForPreTraining`, tied ones once.

    The configuration's `vocab_size` and `next_sentence_prediction` must be resolved.
    """
    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size or 0
    width = config.embedding_size or hidden
    tables = (vocabulary, config.position_offset + config.max_position_embeddings, config.type_vocab_size)
    matrices = [*(rows * width for rows in tables if rows), hidden * width]
    # The norm after the embeddings or the last block, the transform's bias, the norm of the head.
    vectors = [width if config.normalization == "post" else hidden] * 2 + [width] * 3 + [vocabulary]
    if config.embedding_size:
        matrices.append(hidden * width)
        vectors.append(hidden)
    if config.next_sentence_prediction:
        matrices += [hidden * hidden, 2 * hidden]
        vectors += [hidden, 2]
    around = [ParameterTensor(size, True, None) for size in matrices]
    around += [ParameterTensor(size, False, None) for size in vectors]
    of_block = [(3 * hidden * hidden, True), (hidden * hidden, True), (hidden * inner, True), (inner * hidden, True)]
    of_block += [(size, False) for size in (*[hidden] * 6, 3 * hidden, inner)]
    blocks = [ParameterTensor(size, wide, index) for index in range(config.num_layers) for size, wide in of_block]
    return around + blocks


def parameter_count(config: ModelConfig) -> int:
    """Return the number of trainable parameters, tied ones counted once."""
    return sum(tensor.elements for tensor in parameter_tensors(config))
