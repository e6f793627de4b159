"""Random numbers as a pure function of a counter: Philox-4x32-10, vectorised over NumPy arrays.

Everything that must be the same on all ranks, in all workers and after a resume (gates, data order, masks, dropout
seeds) uses these numbers: the same (seed, stream, counter) always gives the same bits, and no global generator is read
or advanced. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import enum
import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt32Array = NDArray[np.uint32]

# 0-d arrays have less overhead in NumPy than its scalars, which matters for small batches.
_MULTIPLIER_0 = np.array(0xD2511F53, np.uint64)
_MULTIPLIER_1 = np.array(0xCD9E8D57, np.uint64)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW_32 = np.array(0xFFFFFFFF, np.uint64)
_SHIFT_32 = np.array(32, np.uint64)
_ROUNDS = 10

MAX_SEED = 2**32 - 1


class Stream(enum.IntEnum):
    """The purpose of a draw. It is half of the key, so draws for two purposes with one seed are independent."""

    ORDER = 1
    MASKING = 2
    GATES = 3
    GATE_ROWS = 4
    DROPOUT = 5
    INSTANCES = 6
    SPLIT = 7
    MINHASH = 8
    GATE_TOKENS = 9


def philox_4x32(
    c0: ArrayLike, c1: ArrayLike, c2: ArrayLike, c3: ArrayLike, key: tuple[int, int]
) -> tuple[UInt32Array, UInt32Array, UInt32Array, UInt32Array]:
    """Encrypt a 4 × 32-bit counter under a 2 × 32-bit key.

    Args:
        c0, c1, c2, c3: the counter's words, integers in [0, 2^32), broadcast to one shape.
        key: two integers in [0, 2^32).

    Returns:
        Four uint32 arrays of the broadcast shape, uniform over [0, 2^32) and mutually independent.
    """
    words = [np.asarray(word) for word in (c0, c1, c2, c3)]
    # Each word is held in a uint64 whose upper half is zero, so that products need no widening. All steps are in place.
    memory = np.empty((6, *np.broadcast_shapes(*(word.shape for word in words))), np.uint64)
    x0, x1, x2, x3, product_0, product_1 = (memory[index, ...] for index in range(6))
    x0[...], x1[...], x2[...], x3[...] = words
    for key_0, key_1 in philox_round_keys(*key):
        np.multiply(x0, _MULTIPLIER_0, out=product_0)
        np.multiply(x2, _MULTIPLIER_1, out=product_1)
        np.right_shift(product_1, _SHIFT_32, out=x0)
        x0 ^= x1
        x0 ^= key_0
        np.right_shift(product_0, _SHIFT_32, out=x2)
        x2 ^= x3
        x2 ^= key_1
        np.bitwise_and(product_1, _LOW_32, out=x1)
        np.bitwise_and(product_0, _LOW_32, out=x3)
    return tuple(x.astype(np.uint32) for x in (x0, x1, x2, x3))  # type: ignore[return-value]


@functools.lru_cache(maxsize=64)
def philox_round_keys(k0: int, k1: int) -> list[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Return the two keys of each round, as 0-d arrays."""
    weyl = [((k0 + r * _WEYL_0) & 0xFFFFFFFF, (k1 + r * _WEYL_1) & 0xFFFFFFFF) for r in range(_ROUNDS)]
    return [(np.array(key_0, np.uint64), np.array(key_1, np.uint64)) for key_0, key_1 in weyl]


def random_words(
    seed: int, stream: Stream, c0: ArrayLike = 0, c1: ArrayLike = 0, c2: ArrayLike = 0, c3: ArrayLike = 0
) -> tuple[UInt32Array, UInt32Array, UInt32Array, UInt32Array]:
    """Return four independent uint32 arrays for a counter of a stream; `seed` is in [0, 2^32)."""
    assert 0 <= seed <= MAX_SEED, f"seed {seed} is outside [0, 2^32)"
    return philox_4x32(c0, c1, c2, c3, key=(seed, int(stream)))


def to_unit_interval(words: UInt32Array) -> NDArray[np.float64]:
    """Map uint32 words to float64 in [0, 1), exactly (multiples of 2^-32)."""
    return np.multiply(words, 2.0**-32, dtype=np.float64)
