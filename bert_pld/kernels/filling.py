"""Fillers: rows that belong to no token, so that micro-batches with padding have the same number of rows.

A CUDA graph repeats its launches on the same shapes, but the number of tokens changes from one micro-batch to the next.
Fillers follow the tokens and bring them to a fixed number of rows. They form sequences of their own, so no token
attends to them. Nothing reads their hidden states, so their gradients are zeros.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

_DEVIATIONS = 3
_DEVIATION_OF_A_SEQUENCE = 0.2


@dataclasses.dataclass(frozen=True)
class Filling:
    """The fixed number of rows of micro-batches of B sequences of at most S tokens."""

    fewest_tokens: int
    """Fewest tokens of a micro-batch that is filled."""
    most_tokens: int
    """Most tokens of a micro-batch that is filled."""
    batch: int
    """B."""
    padded_length: int
    """S."""

    @classmethod
    def for_tokens(cls, tokens: float, batch: int, padded_length: int) -> Filling:
        """Return the filling for micro-batches of about this many tokens.

        They are taken to differ by at most three standard deviations, with one of S / 5 for a sequence.
        """
        margin = math.ceil(_DEVIATIONS * _DEVIATION_OF_A_SEQUENCE * padded_length * math.sqrt(batch))
        mean = round(tokens)
        return cls(max(mean - margin, 0), min(mean + margin, batch * padded_length), batch, padded_length)

    @property
    def sequences(self) -> int:
        """F, the number of sequences that fillers make up, some of which may be empty."""
        return math.ceil((self.rows() - self.fewest_tokens) / self.padded_length)

    def fits(self, tokens: int) -> bool:
        """Return whether a micro-batch of so many tokens can be filled."""
        return self.fewest_tokens <= tokens <= self.most_tokens

    def rows(self, share: float = 1.0) -> int:
        """Return the number of rows of a block that runs on this share of each sequence's tokens; 1: of the stream.

        Rounding adds less than one token to a sequence and takes at most half of one (`kept_counts`). So share · most
        + B rows hold all tokens that a block keeps, and it has no more fillers than the stream.
        """
        if share == 1:
            return self.most_tokens + 2 * self.batch + 1
        return math.ceil(share * self.most_tokens) + self.batch

    def lengths(self, fillers: int) -> NDArray[np.int64]:
        """Return the lengths of the F sequences that this many fillers make up, [F]."""
        return np.clip(fillers - self.padded_length * np.arange(self.sequences), 0, self.padded_length)
