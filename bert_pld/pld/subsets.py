"""Subsets of a micro-batch: which tokens a block runs on, and running a block on some rows.

At token granularity each block runs on k of the n tokens of a sequence, k = max(1, round(p_l · n)), chosen uniformly
without replacement, independently of other sequences and, without `same_tokens`, of other blocks. Random layerwise
token dropping (Yao et al., arXiv:2211.11586) is the nearest published method. The subset is a pure function of (seed,
step, micro-step, block, global row): each token gets a random priority from a counter, and the k tokens of lowest
priority are kept. Masked tokens and those near them can come before all others. Everything that determines shapes is
computed on the host, everything else on the device, so nothing waits for the device.

A block's rows are taken out of the hidden states and put back with one copy, one gather and one scatter. Plain autograd
would build the gradient from three tensors of full size: zeros to which the gathered rows' gradient is added, the other
rows' gradient, and their sum. Here the gathered rows' gradient overwrites its place instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.rng import Stream, philox_round_keys

MAX_SEQUENCE_LENGTH = 2**16
_POSITION_BITS = 16
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_LOW_32 = 0xFFFFFFFF


def upload(values: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """Copy a host array to a device; from pinned memory, so that the host does not wait for the device."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclasses.dataclass(frozen=True)
class TokenSubset:
    """The tokens of a padded micro-batch [B, S] that one block runs on."""

    kept: Tensor
    """bool [B, S]: whether the block runs on the token; False at padding."""
    counts: NDArray[np.int64]
    """[B], on the host: number of kept tokens of each sequence."""
    lengths: NDArray[np.int64]
    """[B], on the host: number of tokens of each sequence."""

    @property
    def width(self) -> int:
        """K, the largest number of kept tokens of a sequence."""
        return int(self.counts.max(initial=0))

    def executed(self, without_padding: bool) -> NDArray[np.int64]:
        """Return how many tokens of each sequence the block runs on, [B]: `counts` without padding, else K for each."""
        return self.counts if without_padding else np.full_like(self.counts, self.width)

    @property
    def index(self) -> Tensor:
        """int64 [B · K]: indices into the flattened [B · S], ascending, K of each sequence.

        Where a sequence keeps fewer than K tokens, positions of its padding fill up the K. There are enough of them,
        because a shorter sequence drops no more tokens than a longer one.
        """
        rows, padded_length = self.kept.shape
        chosen = self.kept
        if (self.counts != self.width).any():
            edges = np.stack([self.lengths, self.lengths + self.width - self.counts])[:, :, None]
            first, last = upload(edges, self.kept.device)
            position = torch.arange(padded_length, device=self.kept.device)
            chosen = chosen | ((position >= first) & (position < last))
        return torch.nonzero_static(chosen.flatten(), size=rows * self.width).squeeze(1)


def kept_counts(share: float | NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many tokens of sequences of these lengths a block keeps: the nearest integer, but at least one."""
    return np.minimum(np.maximum(np.floor(share * lengths + 0.5).astype(np.int64), 1), lengths)


def draw_token_subsets(
    shares: Sequence[float],
    *,
    seed: int,
    step: int,
    micro_step: int,
    first_row: int,
    lengths: NDArray[np.int64],
    padded_length: int,
    device: torch.device | str,
    preferred: Tensor | None = None,
    near: int = 0,
    same: bool = False,
) -> list[TokenSubset | None]:
    """Draw the subsets of one micro-batch.

    Args:
        shares: for each block the share of the tokens that it runs on; 1 keeps all tokens.
        seed: seed of the gates, in [0, 2^32).
        step: optimizer step, from 0.
        micro_step: micro-batch within the step, from 0.
        first_row: index of the first sequence within the micro-batch over all ranks.
        lengths: [B], number of tokens of each sequence, on the host.
        padded_length: S.
        device: device of the subsets.
        preferred: int64 [M], indices into the flattened [B · S]: tokens that are chosen before all others. If a
            sequence has more of them than a block keeps, they are chosen among uniformly.
        near: after them, tokens at most this far from one of them are chosen before the rest; 0: no preference.
        same: all blocks have the priorities that block 0 would have, so that a smaller subset is part of a larger one.

    Returns:
        One subset for each block; None for a block that keeps all tokens. With `same`, blocks of equal share have one
        object in common.
    """
    if padded_length > MAX_SEQUENCE_LENGTH:
        raise ValueError(f"granularity 'token': {padded_length} tokens; must be at most {MAX_SEQUENCE_LENGTH}")
    counts = [kept_counts(share, lengths) for share in shares]
    some = [block for block, count in enumerate(counts) if (count < lengths).any()]
    if not some:
        return [None] * len(shares)
    rows = len(lengths)
    # The first block of each share stands for the others of that share.
    drawn = [block for block in some if not same or shares.index(shares[block]) == block]
    ordered_by = [0] if same else drawn
    per_block = np.concatenate([*(counts[block] for block in drawn), lengths, ordered_by]).astype(np.int64)
    count, length, blocks = upload(per_block, device).split([len(drawn) * rows, rows, len(ordered_by)])
    count = count.view(len(drawn), rows)
    keys = _priorities(blocks, seed, step, micro_step, first_row, rows, padded_length)
    position = torch.arange(padded_length, device=device)
    # The position in the lowest bits makes all keys of a sequence different. Padding comes last.
    keys = keys.bitwise_left_shift_(_POSITION_BITS).add_(position)
    if preferred is not None:
        keys += _preference(preferred, near, rows, padded_length) << (32 + _POSITION_BITS)
    if (lengths < padded_length).any():
        keys += (position >= length[:, None]).long() << (34 + _POSITION_BITS)
    in_order = keys.sort(dim=-1).values.expand(len(drawn), rows, padded_length)
    last_kept = in_order.gather(2, (count - 1).clamp_(min=0)[:, :, None])
    kept = (keys <= last_kept) & (position < length[:, None])
    subsets = {block: TokenSubset(one, counts[block], lengths) for block, one in zip(drawn, kept.unbind(), strict=True)}
    return [subsets.get(shares.index(share) if same else block) for block, share in enumerate(shares)]


def _preference(preferred: Tensor, near: int, rows: int, length: int) -> Tensor:
    """Return which tokens come first, int64 [rows, length]: 0 those of `preferred`, 1 those near one, 2 the others."""
    others = torch.ones(rows * length, dtype=torch.int64, device=preferred.device).index_fill_(0, preferred, 0)
    others = others.view(rows, length)
    if not near:
        return others
    reach = min(near, length - 1)
    within = torch.nn.functional.max_pool1d(1.0 - others, 2 * reach + 1, stride=1, padding=reach)
    return others * (2 - within.long())


def _priorities(
    blocks: Tensor, seed: int, step: int, micro_step: int, first_row: int, rows: int, length: int
) -> Tensor:
    """Return uniform 32-bit numbers, int64 [blocks, rows, length], from Philox-4x32-10 counters.

    Positions 4·g … 4·g + 3 are the four words of the counter (g, global row, step, 2^16 · micro-step + block).
    """
    groups, device = -(-length // 4), blocks.device
    shape = len(blocks), rows, groups
    x0 = torch.arange(groups, device=device).expand(shape)
    x1 = torch.arange(first_row, first_row + rows, device=device)[:, None].expand(shape)
    x2 = torch.full((), step, dtype=torch.int64, device=device)
    x3 = (blocks[:, None, None] + (micro_step << 16)).expand(shape)
    for key_0, key_1 in philox_round_keys(seed, int(Stream.GATE_TOKENS)):
        # The product of two 32-bit numbers wraps around in int64, but all its 64 bits are right.
        product_0, product_1 = x0 * _MULTIPLIER_0, x2 * _MULTIPLIER_1
        x0 = ((product_1 >> 32) & _LOW_32) ^ x1 ^ int(key_0)
        x2 = ((product_0 >> 32) & _LOW_32) ^ x3 ^ int(key_1)
        x1, x3 = product_1 & _LOW_32, product_0 & _LOW_32
    words = torch.stack(torch.broadcast_tensors(x0, x1, x2, x3), dim=-1)
    return words.view(len(blocks), rows, 4 * groups)[..., :length]


def run_on_rows(function: Callable[[Tensor], Tensor], hidden_states: Tensor, index: Tensor) -> Tensor:
    """Return a copy of `hidden_states` in which the rows of `index` are `function(hidden_states[index])`.

    Args:
        function: called with [K, …]; returns the same shape.
        hidden_states: [N, …]; differentiable once.
        index: int64 [K], different indices into dimension 0.
    """
    chosen, rest = _Take.apply(hidden_states, index)
    return _Put.apply(rest, index, function(chosen))


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, index):
        ctx.save_for_backward(index)
        return hidden_states.index_select(0, index), hidden_states.view_as(hidden_states)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_chosen, grad_rest):
        # In place: `_Put` alone reads `rest`, and its backward made this tensor.
        return grad_rest.index_copy_(0, ctx.saved_tensors[0], grad_chosen), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rest, index, updated):
        ctx.save_for_backward(index)
        return rest.index_copy(0, index, updated)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad.clone(), None, grad.index_select(0, ctx.saved_tensors[0])
