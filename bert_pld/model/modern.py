"""ModernBERT (Warner et al., arXiv:2412.13663) with switchable blocks; Hugging Face: `ModernBertForMaskedLM`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bert_pld.config import ModelConfig
from bert_pld.kernels.documents import WithinDocuments, place_documents
from bert_pld.kernels.dropout import dropout as drop_out
from bert_pld.kernels.reference_attention import rotary_angles
from bert_pld.model.bert import BertForPreTraining
from bert_pld.model.encoder import Encoder, FinalNorm, calls_of_blocks
from bert_pld.model.heads import MaskedLanguageModelHead
from bert_pld.model.modern_block import ModernBlock
from bert_pld.pld.gates import BlockGate, merge_same_tokens, run_gated

Placed = tuple[Tensor, Tensor, Tensor | WithinDocuments | None]
"""Cosines and sines of the tokens' rotary angles, and the mask of who attends to whom: what a block's attention needs
to know about positions (see `bert_pld.kernels.reference_attention.self_attention`)."""


class ModernEmbeddings(nn.Module):
    """Word embeddings with a LayerNorm without bias; positions are in the blocks."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, bias=False)
        self.dropout = config.hidden_dropout
        self.run: Callable[..., Tensor] = embed_eager
        """Called with this module and the arguments of `forward`; a backend replaces it."""

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        """Embed ids: run `embed_eager`, or the function that a backend put in its place."""
        return self.run(self, *inputs, **keywords)


def embed_eager(embeddings: ModernEmbeddings, input_ids: Tensor) -> Tensor:
    """Embed ids: [...] → [..., H]."""
    # Through the modules, because ZeRO-3 gathers their parameters in hooks of these calls.
    hidden_states = embeddings.norm(embeddings.word(input_ids))
    return drop_out(hidden_states, embeddings.dropout if embeddings.training else 0.0)


@dataclasses.dataclass(frozen=True)
class Placement:
    """The tokens' positions in one forward of padded sequences [B, S]."""

    config: ModelConfig
    attention_mask: Tensor | None
    """bool [B, S], True for tokens; or int64 [B, S], the tokens' documents; None if no row has padding."""
    positions: Tensor
    """int64 [1, S], or [B, S] with documents: each token's position in its sequence or document."""
    longest: int
    """Tokens of the longest sequence or document."""

    def placed(self, is_local: bool, attention_mask: Tensor | None, positions: Tensor | None) -> Placed:
        """Return what a global or a local block needs that runs on these tokens.

        Args:
            is_local: whether the block attends locally.
            attention_mask: that of these tokens, [b, K]; None if there is no padding.
            positions: int64 [b, K], positions of these tokens; None if the block runs on whole sequences.
        """
        if positions is not None and positions is not self.positions:
            return self._compute(is_local, attention_mask, positions)
        if attention_mask is self.attention_mask:
            return self._local if is_local else self._global
        return self._compute(is_local, attention_mask, self.positions)

    @functools.cached_property
    def _global(self) -> Placed:
        return self._compute(False, self.attention_mask, self.positions)

    @functools.cached_property
    def _local(self) -> Placed:
        return self._compute(True, self.attention_mask, self.positions)

    def _compute(self, is_local: bool, attention_mask: Tensor | None, positions: Tensor) -> Placed:
        config = self.config
        theta, reach = (config.local_rope_theta, config.attention_reach) if is_local else (config.global_rope_theta, 0)
        assert theta is not None
        assert reach is not None
        angles = rotary_angles(positions, config.hidden_size // config.num_attention_heads, theta)
        by_document = attention_mask is not None and attention_mask.dtype is torch.int64
        if not is_local or reach >= self.longest - 1:
            return *angles, attention_mask if attention_mask is None or by_document else attention_mask[:, None, :]
        if attention_mask is not None and by_document:
            return *angles, WithinDocuments(attention_mask, positions, reach)
        distances = (positions[:, :, None] - positions[:, None, :]).abs()
        mask = distances <= reach
        if attention_mask is not None:
            # Padding attends to itself, because the softmax of a row without any token is not a number.
            mask = mask & (attention_mask[:, None, :] | (distances == 0))
        return *angles, mask


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
    """Run ModernBERT's encoder for `EagerEncoding`. There are no segments."""
    batch, length = input_ids.shape
    if document_lengths is None:
        positions = torch.arange(length, device=input_ids.device).expand(batch, length)
        placement = Placement(encoder.config, attention_mask, positions[:1], length)
    else:
        attention_mask, positions = place_documents(input_ids, attention_mask, sequence_lengths, document_lengths)
        placement = Placement(encoder.config, attention_mask, positions, int(document_lengths.max()))
    hidden_states = encoder.embeddings(input_ids)
    placed = (
        (functools.partial(_run_placed, run, placement, block.is_local), gate)
        for block, (run, gate) in zip(encoder.blocks, calls_of_blocks(encoder, gates, rows), strict=True)
    )
    for run, gate in merge_same_tokens(placed):
        differ = document_lengths is not None or (gate is not None and gate.tokens is not None)
        own_positions = positions if differ else None
        hidden_states = run_gated(run, hidden_states, gate, attention_mask, own_positions, accepts_no_rows=True)
    assert encoder.final_norm is not None
    return encoder.final_norm(hidden_states)


def _run_placed(
    block: Callable[..., Tensor],
    placement: Placement,
    is_local: bool,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    positions: Tensor | None,
    scale: float,
) -> Tensor:
    """Run a block on the tokens that its gate chose, at their positions in the whole sequence."""
    return block(hidden_states, *placement.placed(is_local, attention_mask, positions), scale=scale)


class ModernBertForPreTraining(BertForPreTraining):
    """ModernBERT with the masked-LM head, whose transform and LayerNorm have no bias; there is no other head."""

    architecture: ClassVar[str] = "modernbert"

    @staticmethod
    def make_parts(config: ModelConfig, vocab_size: int) -> tuple[Encoder, MaskedLanguageModelHead]:
        """Make the encoder and the masked-LM head; `initialize_parameters` sets their values."""
        embeddings = ModernEmbeddings(config, vocab_size)
        blocks = [ModernBlock(config, index) for index in range(config.num_layers)]
        final_norm = FinalNorm(config.hidden_size, config.layer_norm_eps, bias=False)
        encoder = Encoder(config, embeddings, blocks, final_norm, run_blocks_eager)
        return encoder, MaskedLanguageModelHead(config, vocab_size, bias=False)

    @torch.no_grad()
    def initialize_parameters(self) -> None:
        """Set LayerNorm weights to 1, biases to 0, and matrices to normal values that are cut off at two deviations.

        The deviation is `initializer_range`. It is smaller by √(2·L) for the matrices that write into the residual
        stream, and for the head's transform. The values come from torch's global generator.
        """
        outputs = "attention_output_weight", "ffn_down_weight", "transform.weight"
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name else 0.0)
                continue
            deviation = self.config.initializer_range
            if name.endswith(outputs):
                deviation /= (2.0 * self.config.num_layers) ** 0.5
            nn.init.trunc_normal_(parameter, std=deviation, a=-2.0 * deviation, b=2.0 * deviation)
