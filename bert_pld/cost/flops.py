"""Number of parameters and floating-point operations of the model, for `plan` and for the metric `tflops`."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.config import ModelConfig
from bert_pld.cost.work import BlockWork
from bert_pld.kernels.documents import rows_of_documents
from bert_pld.model import make_model
from bert_pld.pld.gates import Gates, last_whole_block


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """Matrix-product FLOPs of forward and backward, together three times the forward; a multiply-add counts as two.

    Element-wise operations and the recomputation of activation checkpointing are not counted. Local attention counts
    the pairs of tokens within the window, though a kernel with a mask computes all.
    """

    config: ModelConfig
    seq_length: int
    mask_probability: float = 0.15
    attended_tokens: float | None = None
    """Mean tokens of the document that a token is in, where rows hold several documents; None: S."""

    @property
    def block_per_sequence(self) -> float:
        """FLOPs of one block on one sequence of S tokens, mean over the model's blocks."""
        return self.block(np.array([self.seq_length]), documents=self._documents)

    @property
    def _documents(self) -> NDArray[np.float64] | None:
        """Documents of equal length, of which one sequence has S over that length, whose attention has S · a pairs.

        The last one stands for the fraction: its length squared is its share of the pairs.
        """
        if self.attended_tokens is None:
            return None
        whole, rest = divmod(self.seq_length, self.attended_tokens)
        return np.array([self.attended_tokens] * int(whole) + [math.sqrt(rest * self.attended_tokens)])

    def block(
        self,
        lengths: NDArray[np.int64],
        index: int | None = None,
        chosen_from: NDArray[np.int64] | None = None,
        documents: NDArray[Any] | None = None,
    ) -> float:
        """Return the FLOPs of one block on sequences of these lengths.

        Multiply-adds per token: 4H² and two or three times HI in the projections, 2·H for each token attended to.

        Args:
            lengths: [B], tokens of each sequence that the block runs on.
            index: the block, from 0; None: the mean over the model's blocks.
            chosen_from: [B], tokens of each sequence, of which those of `lengths` are a random subset; None: all.
            documents: [D], tokens of each document in the sequences that the block runs on, expected over the subsets;
                then `chosen_from` has D numbers too. None: a token attends to its whole sequence.
        """
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        weights = 4 * hidden * hidden + self.config.feed_forward_matrices * hidden * inner
        return 6.0 * weights * float(lengths.sum()) + self.attention(
            lengths if documents is None else documents, index, chosen_from
        )

    def attention(
        self, lengths: NDArray[Any], index: int | None = None, chosen_from: NDArray[np.int64] | None = None
    ) -> float:
        """Return the FLOPs of a block's softmax(QKᵀ)V; arguments as in `block`."""
        tokens = lengths.astype(np.float64)
        everywhere = float((tokens * tokens).sum())
        layers = range(self.config.num_layers) if index is None else (index,)
        local = sum(map(self.config.is_local, layers)) / len(layers)
        pairs = (1.0 - local) * everywhere
        if local:
            pairs += local * float(self._pairs_within_window(tokens, chosen_from).sum())
        return 12.0 * self.config.hidden_size * pairs

    def _pairs_within_window(
        self, tokens: NDArray[np.float64], chosen_from: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        """Return [B]: the number of pairs (i, j) in local attention, expected over the subsets."""
        whole = tokens if chosen_from is None else chosen_from.astype(np.float64)
        assert self.config.attention_reach is not None
        reach = np.minimum(self.config.attention_reach, np.maximum(whole - 1.0, 0.0))
        of_others = whole * 2.0 * reach - reach * (reach + 1.0)
        both_chosen = tokens * np.maximum(tokens - 1.0, 0.0) / np.maximum(whole * (whole - 1.0), 1.0)
        return tokens + of_others * both_chosen

    def gated_blocks(
        self,
        lengths: NDArray[np.int64],
        gates: Gates | None,
        without_padding: bool = True,
        documents: NDArray[np.int64] | None = None,
    ) -> float:
        """Return the FLOPs of all blocks under the gates of a micro-batch.

        Args:
            lengths: [B], tokens of each sequence that a block without a gate runs on.
            gates: the micro-batch's gates; None: all blocks run.
            without_padding: at token granularity, whether the blocks run on the kept tokens alone.
            documents: [D], tokens of each document in the sequences, sequence by sequence; None as in `block`.
        """
        if gates is None:
            return self.config.num_layers * self.block(lengths, documents=documents)
        total = 0.0
        for index, gate in enumerate(gates):
            if gate.tokens is not None:
                executed = gate.tokens.executed(without_padding)
                chosen = None
                if documents is not None:
                    kept = gate.tokens.counts / gate.tokens.lengths
                    chosen = documents * kept[rows_of_documents(documents, gate.tokens.lengths)]
                total += self.block(executed, index, lengths if documents is None else documents, chosen)
            elif gate.keep:
                share = 1.0 if gate.rows is None else len(gate.rows) / len(lengths)
                total += share * self.block(lengths, index, documents=documents)
        return total

    def left_out(self, lengths: NDArray[np.int64], gates: Gates | None, chosen: float) -> float:
        """Return the FLOPs that are left out of the last block that runs, if it runs on all tokens.

        Its attention output and its feed-forward run only on the `chosen` tokens that a loss looks at.
        """
        if last_whole_block(gates, self.config.num_layers) is None:
            return 0.0
        return self._without_loss(float(lengths.sum()) - chosen)

    def _without_loss(self, tokens: float) -> float:
        """FLOPs that the last block spares on this many tokens that no loss looks at."""
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        return 6.0 * (hidden * hidden + self.config.feed_forward_matrices * hidden * inner) * tokens

    @property
    def heads_per_sequence(self) -> float:
        """FLOPs of the MLM head on the masked positions of one sequence, of the pooler, and of narrow embeddings."""
        hidden, vocabulary = self.config.hidden_size, self.config.vocab_size or 0
        masked = self.mask_probability * self.seq_length
        width = self.config.embedding_size or hidden
        projection = self.seq_length * hidden * width if self.config.embedding_size else 0
        pooler = hidden * hidden if self.config.next_sentence_prediction else 0
        return 6.0 * (masked * (hidden * width + width * vocabulary) + projection + pooler)

    def per_sequence(self, work: BlockWork | None = None) -> float:
        """Return the FLOPs of one sequence through the blocks and the heads; by default all blocks run."""
        blocks = self.config.num_layers
        work = BlockWork(blocks, blocks, last_whole=1.0) if work is None else work
        sequence = np.array([self.seq_length])
        attention = self.attention(sequence if self._documents is None else self._documents)
        executed = work.depth * (self.block_per_sequence - attention) + work.square * attention
        chosen = self.mask_probability * self.seq_length + bool(self.config.next_sentence_prediction)
        return executed - work.last_whole * self._without_loss(self.seq_length - chosen) + self.heads_per_sequence

    def ratio(self, work: BlockWork) -> float:
        """Return the FLOPs of a sequence with this work divided by those at full depth."""
        return self.per_sequence(work) / self.per_sequence()


@dataclasses.dataclass(frozen=True)
class ParameterTensor:
    """One trainable tensor of the model."""

    elements: int
    is_matrix: bool
    """Whether it has two dimensions and so is in the optimizer's group with weight decay."""
    block: int | None
    """Index of its switchable block; None outside the blocks."""


@functools.cache
def parameter_tensors(config: ModelConfig) -> tuple[ParameterTensor, ...]:
    """Return the tensors of the model, tied ones once.

    The configuration's `vocab_size` and `next_sentence_prediction` must be resolved.
    """
    # All blocks but the first are alike.
    with torch.device("meta"):
        small = make_model(dataclasses.replace(config, num_layers=min(2, config.num_layers)))
    of_block: dict[int | None, list[ParameterTensor]] = collections.defaultdict(list)
    for name, parameter in small.named_parameters():
        block = int(name.split(".")[2]) if ".blocks." in name else None
        of_block[block].append(ParameterTensor(parameter.numel(), parameter.dim() >= 2, block))
    blocks = [dataclasses.replace(t, block=index) for index in range(1, config.num_layers) for t in of_block[1]]
    return (*of_block[None], *of_block[0], *blocks)


def parameter_count(config: ModelConfig) -> int:
    """Return the number of trainable parameters, tied ones counted once."""
    return sum(tensor.elements for tensor in parameter_tensors(config))
