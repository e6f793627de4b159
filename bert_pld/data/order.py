"""The order of training samples, a function of (seed, epoch) alone, and how ranks share it.

Training reads one endless stream of positions 0, 1, 2, …; position p is the (p % N)-th sample of epoch p // N. Each
epoch has its own permutation of the N rows, computed by a keyed bijection on [0, N). So no permutation is stored, and
resuming at any position costs nothing.

The bijection is a generalised Feistel network on Z_a × Z_a with a = ⌈√N⌉. A value outside [0, N) is encrypted again
until it is inside ("cycle walking"); at most about two values in √N need that.
Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pld.rng import Stream, random_words

Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]

_ROUNDS = 6
MAX_ROWS = 2**48
"""With this many rows, each half of the Feistel network has 24 bits, far fewer than the 32 that a round draws."""

# Multipliers of SplitMix64's finaliser (Steele et al., OOPSLA 2014). They are arrays without axes because NumPy
# combines these with small arrays twice as fast as its scalars.
_MULTIPLIER_0 = np.array(0xBF58476D1CE4E5B9, np.uint64)
_MULTIPLIER_1 = np.array(0x94D049BB133111EB, np.uint64)
_SHIFT_32 = np.array(32, np.uint64)


@dataclasses.dataclass(frozen=True)
class BatchShare:
    """One rank's share of every global batch, the samples of an optimizer step over all ranks.

    A value out of range raises a ValueError.
    """

    micro_batch_size: int
    """Rows of a micro-batch on one rank."""
    accumulation_steps: int = 1
    """Micro-batches of a step on one rank."""
    rank: int = 0
    """This rank, in [0, world_size)."""
    world_size: int = 1
    """Data-parallel ranks."""

    def __post_init__(self) -> None:
        if self.micro_batch_size < 1:
            raise ValueError(f"micro-batch size {self.micro_batch_size}: must be at least 1")
        if self.accumulation_steps < 1:
            raise ValueError(f"accumulation_steps {self.accumulation_steps}: must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank}: must be in [0, {self.world_size}), the world size")

    @property
    def global_batch_size(self) -> int:
        """Samples of a step over all ranks."""
        return self.micro_batch_size * self.accumulation_steps * self.world_size

    def positions(self, step: int, micro_step: int) -> Int64Array:
        """Return the stream positions of this rank's micro-batch, int64 `[micro_batch_size]`.

        A step uses the next `global_batch_size` positions. So its samples are the same set however that number is
        divided into ranks and micro-batches. Global batches cross the ends of epochs; none is smaller.
        """
        first = step * self.global_batch_size + micro_step * self.world_size * self.micro_batch_size
        first += self.rank * self.micro_batch_size
        return np.arange(first, first + self.micro_batch_size, dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a run's samples begin: all zero, or for a branch the place at which it left another run."""

    step: int = 0
    """Optimizer steps before the run's first."""
    samples: int = 0
    """Samples of these steps."""
    position: int = 0
    """Position of the run's first sample in the stream of its data."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Origin:
        """Read what `dataclasses.asdict` wrote; raise a ValueError that names `where` if it is damaged."""
        known = {field.name for field in dataclasses.fields(cls)}
        numbers = [value for value in values.values() if isinstance(value, int) and 0 <= value < MAX_ROWS**2]
        if not known >= values.keys() or len(numbers) < len(values):
            raise ValueError(f"{where}: origin: {dict(values)!r}; must have {', '.join(sorted(known))}, all at least 0")
        return cls(**values)

    def samples_before(self, step: int, batch_size: int) -> int:
        """Return the samples of all steps before `step`, counted from 0, with `batch_size` samples in each own step."""
        return self.samples + (step - self.step) * batch_size

    def position_of(self, step: int, batch_size: int) -> int:
        """Return the position of the first sample of a step in the stream."""
        return self.position + (step - self.step) * batch_size


@dataclasses.dataclass(frozen=True)
class GlobalOrder:
    """The order in which any row may be anywhere in its epoch."""

    num_rows: int
    """N, the number of rows of the split, in [1, 2^48]."""
    seed: int
    """Seed of the order, in [0, 2^32)."""

    def rows_at(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the rows at these positions of the training stream, int64 `[P]` in [0, N), and their epochs `[P]`.

        The positions may lie in different epochs. A ValueError is raised if one is out of range.
        """
        check_positions(positions, self.num_rows)
        if not len(positions):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        epochs = positions // self.num_rows
        first_epoch = int(epochs[0])
        if epochs[-1] == first_epoch and (epochs == first_epoch).all():
            keys = round_keys(self.seed, first_epoch)
        else:
            distinct, inverse = np.unique(epochs, return_inverse=True)
            keys = _round_keys_of(self.seed, distinct)[:, inverse]
        values = (positions - epochs * self.num_rows).astype(np.uint64)
        return permute(values, keys, self.num_rows).astype(np.int64), epochs


def check_positions(positions: Int64Array, num_rows: int) -> None:
    """Raise a ValueError if the number of rows or a position is out of range."""
    if not 1 <= num_rows <= MAX_ROWS:
        raise ValueError(f"number of rows {num_rows}: must be in [1, 2^48]")
    if len(positions) and positions.min() < 0:
        raise ValueError(f"stream position {positions.min()}: must not be negative")


@functools.lru_cache(maxsize=32)
def round_keys(seed: int, epoch: int, purpose: int = 0, window: int = 0) -> UInt64Array:
    """Return the keys `[rounds]` of one permutation of an epoch.

    `purpose` is 0 for all rows of the epoch; block_order.py has others. `window` is the number of the window whose rows
    are permuted, if any.
    """
    return _round_keys_of(seed, np.array([epoch], np.int64), purpose, window)[:, 0]


def _round_keys_of(seed: int, epochs: Int64Array, purpose: int = 0, window: int = 0) -> UInt64Array:
    """Return the Feistel keys of several epochs, `[rounds, len(epochs)]` with 64 random bits each."""
    rounds = np.arange(_ROUNDS)[:, None] + 16 * purpose
    high, low, _, _ = random_words(seed, Stream.ORDER, rounds, epochs & 0xFFFFFFFF, epochs >> 32, window)
    return (high.astype(np.uint64) << _SHIFT_32) | low


def permute(values: UInt64Array, keys: UInt64Array, num_rows: int) -> UInt64Array:
    """Permute [0, N): return the images of `[P]` values under keys `[rounds]`, or `[rounds, P]` for each its own."""
    width = math.isqrt(num_rows - 1) + 1  # the smallest a with a² >= N
    result = _feistel(values, keys, width)
    outside = np.flatnonzero(result >= num_rows)
    while len(outside):
        again = _feistel(result[outside], keys if keys.ndim == 1 else keys[:, outside], width)
        result[outside] = again
        outside = outside[again >= num_rows]
    return result


def _feistel(values: UInt64Array, keys: UInt64Array, width: int) -> UInt64Array:
    """Permute [0, width²): each round adds a keyed hash of one half to the other."""
    modulus = np.array(width, np.uint64)
    right, left = np.divmod(values, modulus)
    for index in range(_ROUNDS):
        mixed = right + keys[index, ...]
        mixed *= _MULTIPLIER_0
        mixed ^= mixed >> _SHIFT_32
        mixed *= _MULTIPLIER_1
        mixed >>= _SHIFT_32
        mixed += left
        mixed %= modulus
        left, right = right, mixed
    right *= modulus
    right += left
    return right
