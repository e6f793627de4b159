"""The numbers with which outputs join the stream, on the device: the dropout's seed and site, and the gate's scale.

They change from one micro-batch to the next. A kernel that reads them from the device does the same launch for every
micro-batch, so that a CUDA graph can repeat it. One copy uploads those of a whole forward, and nothing waits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from bert_pld.kernels.dropout import dropped_levels, kept_scale
from bert_pld.kernels.reference import Join
from bert_pld.pld.subsets import upload


def join_words(joins: Sequence[Join]) -> NDArray[np.int32]:
    """Return int32 [joins, 4]: the seed's low and high word, the site, and the bits of the fp32 scale.

    The scale includes the inverse of the share that dropout keeps.
    """
    words = np.empty((len(joins), 4), np.int32)
    words[:, :3] = [(*join.dropout.key_words, join.dropout.site) for join in joins]
    scales = [join.scale * kept_scale(dropped_levels(join.dropout.probability)) for join in joins]
    words[:, 3] = np.array(scales, np.float32).view(np.int32)
    return words


def on_device(joins: Sequence[Join], device: torch.device, memory: Tensor | None = None) -> list[Join]:
    """Return the joins with their `words` on a device, uploaded in one copy; `memory` is int32 [joins, 4] for them."""
    words = upload(join_words(joins), device)
    rows = (words if memory is None else memory.copy_(words)).unbind()
    return [dataclasses.replace(join, words=own) for join, own in zip(joins, rows, strict=True)]


def words_of(join: Join | None, unread: Tensor) -> Tensor:
    """Return a join's words on a tensor's device, or for no join that tensor, which the kernel does not read."""
    if join is None:
        return unread
    return upload(join_words([join]), unread.device)[0] if join.words is None else join.words


@triton.jit
def read_words(words_ptr):
    """Return a join's seed (low and high word), site and scale."""
    # Unsigned, so that the compiler knows the upper half of Philox's 64-bit key: zeros.
    seed = tl.load(words_ptr).to(tl.uint32, bitcast=True)
    seed_high = tl.load(words_ptr + 1)
    site = tl.load(words_ptr + 2)
    return seed, seed_high, site, tl.load(words_ptr + 3).to(tl.float32, bitcast=True)
