"""The encoder: embeddings, switchable Transformer blocks under their gates, and the pretraining model around them.

`pre` normalization is the paper's switchable block (identity mapping: the residual stream is never normalised, one
LayerNorm follows the last block; Hugging Face calls it MegatronBert). `post` is the original BERT. Parameters have one
plain layout whatever the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bert_pld.config import ModelConfig
from bert_pld.kernels import reference as ops
from bert_pld.kernels import select_backend
from bert_pld.kernels.dropout import dropout as drop_out
from bert_pld.kernels.linear import linear
from bert_pld.model.heads import MaskedLanguageModelHead, NextSentenceHead
from bert_pld.pld.gates import BlockGate, run_gated


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings; LayerNorm only in post-normalization."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.normalization == "post" else None
        self.dropout = config.hidden_dropout

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """[B, S] ids and segments → [B, S, H]."""
        hidden_states = self.word(input_ids) + self.position.weight[: input_ids.shape[1]]
        hidden_states = hidden_states + self.token_type(token_type_ids)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return drop_out(hidden_states, self.dropout if self.training else 0.0)


def sinusoids(positions: int, width: int) -> Tensor:
    """[positions, width] sines and cosines of geometric wavelengths (Vaswani et al., arXiv:1706.03762, section 3.5)."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class SwitchableBlock(nn.Module):
    """One Transformer block that a gate can drop or scale (arXiv:2010.13369, section 3).

    pre:   x' = x + s · Attention(LN(x));   x'' = x' + s · FFN(LN(x'))
    post:  x' = LN(x + s · Attention(x));   x'' = LN(x' + s · FFN(x'))

    with s = 1 / p_l in training and 1 in evaluation.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.config = config
        # Parameters are the block's own, not those of sub-modules: a block is one unit to gather, to compile, to fuse.
        self.attention_norm_weight = nn.Parameter(torch.empty(hidden))
        self.attention_norm_bias = nn.Parameter(torch.empty(hidden))
        self.qkv_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.qkv_bias = nn.Parameter(torch.empty(3 * hidden))
        self.attention_output_weight = nn.Parameter(torch.empty(hidden, hidden))
        self.attention_output_bias = nn.Parameter(torch.empty(hidden))
        self.ffn_norm_weight = nn.Parameter(torch.empty(hidden))
        self.ffn_norm_bias = nn.Parameter(torch.empty(hidden))
        self.ffn_up_weight = nn.Parameter(torch.empty(intermediate, hidden))
        self.ffn_up_bias = nn.Parameter(torch.empty(intermediate))
        self.ffn_down_weight = nn.Parameter(torch.empty(hidden, intermediate))
        self.ffn_down_bias = nn.Parameter(torch.empty(hidden))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, scale: float | Tensor) -> Tensor:
        """[B, S, H] hidden states and bool [B, S] mask (or None) → [B, S, H]."""
        if self.config.normalization == "pre":
            hidden_states = self._attend(self._attention_norm(hidden_states), hidden_states, attention_mask, scale)
            return self._feed_forward(self._ffn_norm(hidden_states), hidden_states, scale)
        hidden_states = self._attention_norm(self._attend(hidden_states, hidden_states, attention_mask, scale))
        return self._ffn_norm(self._feed_forward(hidden_states, hidden_states, scale))

    def _attend(self, normed: Tensor, residual: Tensor, attention_mask: Tensor | None, scale: float | Tensor) -> Tensor:
        qkv = linear(normed, self.qkv_weight, self.qkv_bias)
        dropout = self.config.attention_dropout if self.training else 0.0
        context = ops.self_attention(qkv, self.config.num_attention_heads, attention_mask, dropout)
        return ops.linear_dropout_scale_residual(
            context, self.attention_output_weight, self.attention_output_bias, residual, self._dropout, scale
        )

    def _feed_forward(self, normed: Tensor, residual: Tensor, scale: float | Tensor) -> Tensor:
        inner = ops.linear_gelu(normed, self.ffn_up_weight, self.ffn_up_bias, self.config.hidden_act)
        return ops.linear_dropout_scale_residual(
            inner, self.ffn_down_weight, self.ffn_down_bias, residual, self._dropout, scale
        )

    def _attention_norm(self, hidden_states: Tensor) -> Tensor:
        eps = self.config.layer_norm_eps
        return ops.layer_norm(hidden_states, self.attention_norm_weight, self.attention_norm_bias, eps)

    def _ffn_norm(self, hidden_states: Tensor) -> Tensor:
        return ops.layer_norm(hidden_states, self.ffn_norm_weight, self.ffn_norm_bias, self.config.layer_norm_eps)

    @property
    def _dropout(self) -> float:
        return self.config.hidden_dropout if self.training else 0.0


class Encoder(nn.Module):
    """Embeddings and L switchable blocks, run under their gates."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, vocab_size)
        self.blocks = nn.ModuleList(SwitchableBlock(config) for _ in range(config.num_layers))
        pre = config.normalization == "pre"
        self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if pre else None

    def use_backend(self, name: str, device_type: str) -> None:
        """Run the blocks with a kernel backend: see `bert_pld.kernels.select_backend`."""
        if select_backend(name, device_type) == "compiled":
            for block in self.blocks:
                block.compile(dynamic=True)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None = None,
        gates: Sequence[BlockGate] | None = None,
    ) -> Tensor:
        """[B, S] → [B, S, H]; `gates` None runs all blocks unscaled."""
        hidden_states = self.embeddings(input_ids, token_type_ids)
        for index, block in enumerate(self.blocks):
            gate = None if gates is None else gates[index]
            hidden_states = run_gated(self._checkpointed(block), hidden_states, gate, attention_mask)
        return hidden_states if self.final_norm is None else self.final_norm(hidden_states)

    def _checkpointed(self, block: nn.Module) -> Callable[..., Tensor]:
        """The block itself, or the block recomputed in backward, under the very same gate."""
        if not (self.config.activation_checkpointing and self.training and torch.is_grad_enabled()):
            return block

        def recomputed(hidden_states: Tensor, attention_mask: Tensor | None, scale: float) -> Tensor:
            return checkpoint(block, hidden_states, attention_mask, scale, use_reentrant=False)

        return recomputed


class BertForPreTraining(nn.Module):
    """Encoder with the masked-LM head, and the next-sentence head where the data has pairs.

    `num_gated_blocks` tells `bert_pld.initialize` how many gates a forward needs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None, "the vocabulary's size comes from the data or the configuration"
        assert config.next_sentence_prediction != "auto", "'auto' is resolved from the data before the model is made"
        self.config = config
        self.encoder = Encoder(config, config.vocab_size)
        self.mlm_head = MaskedLanguageModelHead(config, config.vocab_size)
        self.nsp_head = NextSentenceHead(config) if config.next_sentence_prediction else None
        self.initialize_parameters()

    @property
    def num_gated_blocks(self) -> int:
        """Gates a forward needs."""
        return self.config.num_layers

    @torch.no_grad()
    def initialize_parameters(self) -> None:
        """Matrices normal with `initializer_range`, LayerNorm weights 1, biases 0, from torch's global generator."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=self.config.initializer_range)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        if self.config.position_initialization == "sinusoidal":
            positions = self.encoder.embeddings.position.weight
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
    ) -> dict[str, Tensor]:
        """Losses of one micro-batch, in nats.

        Args:
            input_ids: int64 [B, S], masks applied.
            token_type_ids: int64 [B, S], 0 or 1.
            attention_mask: bool [B, S], True where there is a token; None where no row has padding.
            masked_positions: int64 [M], indices into the flattened [B·S].
            masked_labels: int64 [M], the original ids.
            next_sentence_labels: int64 [B]: 0 next, 1 random, -100 ignored; None without an NSP head.
            mlm_denominator: what the summed MLM loss is divided by; by default M. A training step passes its masked
                tokens per micro-batch over all ranks, so that the mean over micro-batches is the mean over tokens.
            gates: one a block, or None.

        Returns:
            `loss` (with gradient) and, detached, `mlm_loss`, `nsp_loss` (0 without the head), `mlm_correct` and
            `nsp_correct` (counts).
        """
        hidden_states = self.encoder(input_ids, token_type_ids, attention_mask, gates)
        logits = self.masked_lm_logits(hidden_states, masked_positions)
        denominator = max(masked_labels.numel(), 1) if mlm_denominator is None else mlm_denominator
        mlm_loss = ops.masked_lm_loss_sum(logits, masked_labels) / denominator
        loss, nsp_loss = mlm_loss, torch.zeros_like(mlm_loss)
        nsp_correct = torch.zeros_like(mlm_loss)
        if self.nsp_head is not None and next_sentence_labels is not None:
            nsp_logits = self.nsp_head(hidden_states)
            nsp_loss = self.nsp_head.loss(nsp_logits, next_sentence_labels)
            nsp_correct = (nsp_logits.argmax(-1) == next_sentence_labels).sum()
            loss = mlm_loss + nsp_loss
        return {
            "loss": loss,
            "mlm_loss": mlm_loss.detach(),
            "nsp_loss": nsp_loss.detach(),
            "mlm_correct": (logits.detach().argmax(-1) == masked_labels).sum(),
            "nsp_correct": nsp_correct,
        }

    def masked_lm_logits(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        """[B, S, H] and flat positions [M] → logits [M, V]; no other position reaches the vocabulary."""
        selected = hidden_states.flatten(0, 1).index_select(0, positions)
        return self.mlm_head(selected, self.encoder.embeddings.word.weight)
