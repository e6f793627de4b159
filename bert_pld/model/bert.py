"""The model for pretraining: embeddings, switchable Transformer blocks under their gates, and the heads on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bert_pld.config import ModelConfig
from bert_pld.kernels.documents import place_documents
from bert_pld.kernels.dropout import dropout as drop_out
from bert_pld.kernels.reference import Linear
from bert_pld.model.block import SwitchableBlock
from bert_pld.model.encoder import Encoder, FinalNorm, calls_of_blocks
from bert_pld.model.heads import MaskedLanguageModelHead, NextSentenceHead
from bert_pld.pld.gates import BlockGate, merge_same_tokens, run_gated


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings, with LayerNorm only in `post` normalization."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        width, types = config.embedding_size or config.hidden_size, config.type_vocab_size
        self.word = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(config.position_offset + config.max_position_embeddings, width)
        self.token_type = nn.Embedding(types, width) if types else None
        self.norm = nn.LayerNorm(width, config.layer_norm_eps) if config.normalization == "post" else None
        self.projection = Linear(width, config.hidden_size) if config.embedding_size else None
        self.dropout = config.hidden_dropout
        self.position_offset = config.position_offset
        self.run: Callable[..., Tensor] = embed_eager
        """Called with this module and the arguments of `forward`; a backend replaces it."""

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        """Embed ids: run `embed_eager`, or the function that a backend put in its place."""
        # Always through the module, padded or not: under ZeRO-3 every rank must gather the same modules in the same
        # order, and whether a micro-batch has padding differs from rank to rank.
        return self.run(self, *inputs, **keywords)


def embed_eager(
    embeddings: Embeddings, input_ids: Tensor, token_type_ids: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Embed ids and segments [B, S] → [B, S, H]; or [T] → [T, H].

    `positions` [B, S] or [T] are the tokens' positions in their sequences; None counts along each row.
    """
    if positions is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    if embeddings.position_offset:
        positions = positions + embeddings.position_offset
    hidden_states = embeddings.word(input_ids) + embeddings.position(positions)
    if embeddings.token_type is not None:
        one_segment = embeddings.token_type.num_embeddings == 1
        hidden_states = hidden_states + embeddings.token_type(
            token_type_ids.new_zeros(()) if one_segment else token_type_ids
        )
    if embeddings.norm is not None:
        hidden_states = embeddings.norm(hidden_states)
    hidden_states = drop_out(hidden_states, embeddings.dropout if embeddings.training else 0.0)
    return hidden_states if embeddings.projection is None else embeddings.projection(hidden_states)


def sinusoids(positions: int, width: int) -> Tensor:
    """Return sinusoidal position encodings [positions, width] (Vaswani et al., arXiv:1706.03762, section 3.5)."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


def bert_encoder(config: ModelConfig, vocab_size: int) -> Encoder:
    """Make BERT's encoder, pre- or post-norm."""
    embeddings = Embeddings(config, vocab_size)
    blocks = [SwitchableBlock(config) for _ in range(config.num_layers)]
    final_norm = FinalNorm(config.hidden_size, config.layer_norm_eps) if config.normalization == "pre" else None
    return Encoder(config, embeddings, blocks, final_norm, run_blocks_eager)


def run_blocks_eager(
    encoder: Encoder,
    rows: Tensor | None,
    input_ids: Tensor,
    token_type_ids: Tensor,
    attention_mask: Tensor | None,
    gates: Sequence[BlockGate] | None,
    sequence_lengths: NDArray[np.int64] | None,
    document_lengths: NDArray[np.int64] | None,
) -> Tensor:
    """Run BERT's encoder for `EagerEncoding`."""
    positions = None
    if document_lengths is not None:
        # In place of the mask: `self_attention` takes either.
        attention_mask, positions = place_documents(input_ids, attention_mask, sequence_lengths, document_lengths)
    hidden_states = encoder.embeddings(input_ids, token_type_ids, positions)
    for run, gate in merge_same_tokens(calls_of_blocks(encoder, gates, rows)):
        hidden_states = run_gated(run, hidden_states, gate, attention_mask, accepts_no_rows=True)
    return hidden_states if encoder.final_norm is None else encoder.final_norm(hidden_states)


class BertForPreTraining(nn.Module):
    """Encoder with the masked-LM head, and with the next-sentence head if the data has sentence pairs.

    `bert_pld.model.make_model` makes the model of any architecture.
    """

    architecture: ClassVar[str] = "bert"
    """The `model.architecture` that a class is for."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.architecture == self.architecture, "bert_pld.model.make_model chooses the class"
        assert config.vocab_size is not None, "vocab_size must be resolved from the data before the model is made"
        assert config.next_sentence_prediction != "auto", "'auto' must be resolved from the data as well"
        self.config = config
        self.encoder, self.mlm_head = self.make_parts(config, config.vocab_size)
        self.nsp_head = NextSentenceHead(config) if config.next_sentence_prediction else None
        self.initialize_parameters()

    @staticmethod
    def make_parts(config: ModelConfig, vocab_size: int) -> tuple[Encoder, MaskedLanguageModelHead]:
        """Make the encoder and the masked-LM head; `initialize_parameters` sets their values."""
        return bert_encoder(config, vocab_size), MaskedLanguageModelHead(config, vocab_size)

    @property
    def num_gated_blocks(self) -> int:
        """Number of gates of a forward, which `bert_pld.initialize` reads."""
        return self.config.num_layers

    @torch.no_grad()
    def initialize_parameters(self) -> None:
        """Set matrices to normal values (`initializer_range`), LayerNorm weights to 1 and biases to 0.

        The values come from torch's global generator.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=self.config.initializer_range)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        if self.config.position_initialization == "sinusoidal":
            positions = self.encoder.embeddings.position.weight[self.config.position_offset :]
            positions.copy_(sinusoids(*positions.shape) * (2.0**0.5 * self.config.initializer_range))

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None,
        masked_positions: Tensor,
        masked_labels: Tensor,
        next_sentence_labels: Tensor | None = None,
        mlm_denominator: Tensor | float | None = None,
        gates: Sequence[BlockGate] | None = None,
        sequence_lengths: NDArray[np.int64] | None = None,
        document_lengths: NDArray[np.int64] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of one micro-batch, in nats.

        Args:
            input_ids: int64 [B, S], masked.
            token_type_ids: int64 [B, S], 0 or 1.
            attention_mask: [B, S], bool or integers, see `Encoder.encode`; None if no row has padding.
            masked_positions: int64 [M], indices into the flattened [B·S].
            masked_labels: int64 [M], the original ids.
            next_sentence_labels: int64 [B]: 0 next, 1 random, -100 ignored; None without an NSP head.
            mlm_denominator: divisor of the summed MLM loss; by default M. A training step passes the mean number of
                masked tokens per micro-batch and rank, so that the mean over micro-batches is the mean over tokens.
            gates: one gate per block, or None.
            sequence_lengths: [B], number of tokens of each row, on the host: see `Encoder.encode`.
            document_lengths: [D], number of tokens of each document, on the host: see `Encoder.encode`.

        Returns:
            `loss` (with gradient) and, detached, `mlm_loss`, `nsp_loss` (0 without the head), `mlm_correct` and
            `nsp_correct` (counts).
        """
        predicts_next = self.nsp_head is not None and next_sentence_labels is not None
        inputs = input_ids, token_type_ids, attention_mask, gates, sequence_lengths, document_lengths
        chosen = self.encoder.encode_chosen(masked_positions, predicts_next, *inputs)
        masked, first_tokens = chosen.tensor_split([masked_positions.numel()])
        mlm_loss, mlm_correct = self.mlm_head(masked, self.encoder.embeddings.word.weight, masked_labels)
        denominator = max(masked_labels.numel(), 1) if mlm_denominator is None else mlm_denominator
        mlm_loss = mlm_loss / denominator
        loss, nsp_loss = mlm_loss, torch.zeros_like(mlm_loss)
        nsp_correct = torch.zeros_like(mlm_loss)
        if self.nsp_head is not None and next_sentence_labels is not None:
            nsp_logits = self.nsp_head(first_tokens)
            nsp_loss = self.nsp_head.loss(nsp_logits, next_sentence_labels)
            nsp_correct = (nsp_logits.argmax(-1) == next_sentence_labels).sum()
            loss = mlm_loss + nsp_loss
        return {
            "loss": loss,
            "mlm_loss": mlm_loss.detach(),
            "nsp_loss": nsp_loss.detach(),
            "mlm_correct": mlm_correct,
            "nsp_correct": nsp_correct,
        }
