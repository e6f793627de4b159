"""Synthetic micro-batches: random tokens, as our model and Hugging Face's take them, and a learnable pattern."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_pld.config import ModelConfig

MASK_PROBABILITY = 0.15
_MASK_ID = 0
_TOPICS = 16


@dataclasses.dataclass(frozen=True)
class Batch:
    """B rows of up to S random tokens, padded on the right."""

    input_ids: Tensor
    """int64 [B, S], 0 at padding."""
    token_type_ids: Tensor
    """int64 [B, S]."""
    attention_mask: Tensor | None
    """bool [B, S], True for tokens; None without padding."""
    sequence_lengths: NDArray[np.int64]
    """Tokens in each row, [B], on the host."""
    masked_positions: Tensor
    """int64 [M], ascending indices into the flattened [B · S]."""
    masked_labels: Tensor
    """int64 [M], the tokens at these positions."""
    labels: Tensor
    """int64 [B, S], the same labels for Hugging Face; -100 elsewhere."""
    next_sentence_labels: Tensor
    """int64 [B]."""

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return int(self.sequence_lengths.sum())

    def model_inputs(self) -> dict[str, Tensor | None]:
        """Our model's arguments, without `sequence_lengths`."""
        ours = ("input_ids", "token_type_ids", "attention_mask", "masked_positions", "masked_labels")
        return {name: getattr(self, name) for name in (*ours, "next_sentence_labels")}


def targets_of(length: int) -> int:
    """Number of masked positions in a row of `length` tokens."""
    return max(round(MASK_PROBABILITY * length), 1)


def random_lengths(rows: int, seq: int, padding: float, generator: torch.Generator) -> NDArray[np.int64]:
    """Draw [B] lengths, uniform on [S·(1 − 2·padding), S]; their expected share of padding is `padding`.

    One length is drawn from each of `rows` equal strata, so that every batch is close to that share.
    """
    shortest = max(seq - round(2 * padding * seq), 1)
    strata = (torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator)) / rows
    drawn = (shortest + strata.double() * (seq - shortest + 1)).long().clamp(max=seq)
    return drawn.numpy()


def random_batch(
    config: ModelConfig, rows: int, seq: int, device: torch.device, seed: int, padding: float = 0.0
) -> Batch:
    """B = `rows` sequences of at most S = `seq` random tokens; a share `MASK_PROBABILITY` of each row is masked."""
    generator = torch.Generator().manual_seed(seed)
    assert config.vocab_size is not None
    input_ids = torch.randint(1, config.vocab_size, (rows, seq), generator=generator)
    order = torch.rand(rows, seq, generator=generator)
    next_sentence_labels = torch.randint(0, 2, (rows,), generator=generator)
    lengths = random_lengths(rows, seq, padding, generator)

    columns = torch.arange(seq)
    real = columns < torch.from_numpy(lengths)[:, None]
    input_ids = input_ids.where(real, 0)
    # Mask the first tokens of each row in a random order; padding comes last in it.
    rank = order.where(real, 2.0).argsort(dim=1).argsort(dim=1)
    masked = rank < torch.tensor([targets_of(int(length)) for length in lengths])[:, None]
    positions = masked.flatten().nonzero().squeeze(1)
    half = torch.from_numpy(lengths)[:, None] // 2

    return Batch(
        input_ids=input_ids.to(device),
        token_type_ids=((columns >= half) & real).long().to(device),
        attention_mask=real.to(device) if padding else None,
        sequence_lengths=lengths,
        masked_positions=positions.to(device),
        masked_labels=input_ids.flatten()[positions].to(device),
        labels=input_ids.where(masked, -100).to(device),
        next_sentence_labels=next_sentence_labels.to(device),
    )


def pattern_batch(
    config: ModelConfig, rows: int, seq: int, seed: int, device: torch.device | str
) -> dict[str, Tensor | None]:
    """The model's arguments for B = `rows` learnable sequences of S = `seq` tokens, with equally many masked in each.

    Each sequence has one of 16 topics; a topic is a sixteenth of the vocabulary under a Zipf distribution. Raises
    ValueError for a vocabulary with fewer than two entries for each topic.
    """
    generator = torch.Generator().manual_seed(seed)
    assert config.vocab_size is not None
    if config.vocab_size < 2 * _TOPICS:
        raise ValueError(f"--vocab_size {config.vocab_size}: must be at least {2 * _TOPICS}")
    words = config.vocab_size // _TOPICS
    topics = torch.randint(_TOPICS, (rows, 1), generator=generator)
    zipf = 1.0 / torch.arange(1, words)
    drawn = torch.multinomial(zipf, rows * seq, replacement=True, generator=generator).view(rows, seq)
    tokens = topics * words + 1 + drawn
    columns = torch.rand(rows, seq, generator=generator).argsort(dim=1)[:, : targets_of(seq)]
    positions = (columns + torch.arange(rows)[:, None] * seq).flatten()
    return {
        "input_ids": tokens.scatter(1, columns, _MASK_ID).to(device),
        "token_type_ids": torch.zeros_like(tokens, device=device),
        "attention_mask": None,
        "masked_positions": positions.to(device),
        "masked_labels": tokens.flatten()[positions].to(device),
    }
