"""Random numbers that are a pure function of their counter: Philox-4x32-10, vectorised over NumPy arrays.

Whatever must not depend on who computes it, or when (gates, data order, masks, dropout seeds), draws from here: the
same (seed, stream, counter) gives the same bits on every rank, in every worker and after a resume, and no global
generator is read or advanced. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import enum
import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt32Array = NDArray[np.uint32]

# 0-d arrays: NumPy takes them with less overhead than its scalars, which is what small batches pay for.
_MULTIPLIER_0 = np.array(0xD2511F53, np.uint64)
_MULTIPLIER_1 = np.array(0xCD9E8D57, np.uint64)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW_32 = np.array(0xFFFFFFFF, np.uint64)
_SHIFT_32 = np.array(32, np.uint64)
_ROUNDS = 10

MAX_SEED = 2**32 - 1


class Stream(enum.IntEnum):
    """What a draw is for. Two purposes with one seed stay independent because the stream is half of the key."""

    ORDER = 1
    MASKING = 2
    GATES = 3
    GATE_ROWS = 4
    DROPOUT = 5
    INSTANCES = 6
    SPLIT = 7
    MINHASH = 8


def philox_4x32(
    c0: ArrayLike, c1: ArrayLike, c2: ArrayLike, c3: ArrayLike, key: tuple[int, int]
) -> tuple[UInt32Array, UInt32Array, UInt32Array, UInt32Array]:
    """Encrypt a 4 × 32-bit counter under a 2 × 32-bit key.

    Args:
        c0, c1, c2, c3: the counter's words, integers in [0, 2^32), broadcast against each other.
        key: two integers in [0, 2^32).

    Returns:
        Four uint32 arrays of the broadcast shape, uniform over [0, 2^32) and mutually independent.
    """
    words = [np.asarray(word) for word in (c0, c1, c2, c3)]
    # Each word travels in a uint64 whose upper half stays zero, so that products need no widening; all in place.
    memory = np.empty((6, *np.broadcast_shapes(*(word.shape for word in words))), np.uint64)
    x0, x1, x2, x3, product_0, product_1 = (memory[index, ...] for index in range(6))
    x0[...], x1[...], x2[...], x3[...] = words
    for key_0, key_1 in _round_keys(*key):
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
def _round_keys(k0: int, k1: int) -> list[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Each round's two keys, as arrays without axes."""
    weyl = [((k0 + r * _WEYL_0) & 0xFFFFFFFF, (k1 + r * _WEYL_1) & 0xFFFFFFFF) for r in range(_ROUNDS)]
    return [(np.array(key_0, np.uint64), np.array(key_1, np.uint64)) for key_0, key_1 in weyl]


def random_words(
    seed: int, stream: Stream, c0: ArrayLike = 0, c1: ArrayLike = 0, c2: ArrayLike = 0, c3: ArrayLike = 0
) -> tuple[UInt32Array, UInt32Array, UInt32Array, UInt32Array]:
    """Four independent uint32 arrays for this counter of this stream; `seed` in [0, 2^32)."""
    assert 0 <= seed <= MAX_SEED, f"seed {seed} is outside [0, 2^32)"
    return philox_4x32(c0, c1, c2, c3, key=(seed, int(stream)))


def to_unit_interval(words: UInt32Array) -> NDArray[np.float64]:
    """Map uint32 words to float64 in [0, 1), exactly (multiples of 2^-32)."""
    return np.multiply(words, 2.0**-32, dtype=np.float64)
