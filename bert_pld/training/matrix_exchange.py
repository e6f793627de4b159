"""Whole matrices from the pieces that ZeRO leaves on each rank: every matrix goes to one rank and comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from bert_pld.checkpoint.zero_state import Piece

Slice = tuple[str, int, int]
"""Name of a matrix, first value in the flattened matrix, and number of values."""


class MatrixExchange:
    """The matrices in one flat partition; all ranks call each method together.

    Args:
        pieces: this rank's pieces.
        layouts: for each rank the slices of its pieces.
        shapes: shape of each whole matrix.
        device: device of the collectives.
        dtype: type in which values are sent.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        layouts: Sequence[Sequence[Slice]],
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self.names = list(dict.fromkeys(name for layout in layouts for name, *_ in layout))
        self.numel = {name: math.prod(shapes[name]) for name in self.names}
        self.device, self.dtype = device, dtype
        assigned = _assign(self.numel, ranks)
        self.own = sorted(pieces, key=lambda piece: assigned[piece.name])
        """This rank's pieces, ordered by the rank that their matrix is assigned to."""
        self._sizes = [sum(p.numel for p in pieces if assigned[p.name] == other) for other in range(ranks)]
        from_each = [[piece for piece in layout if assigned[piece[0]] == rank] for layout in layouts]
        self._received_sizes = [sum(numel for *_, numel in slices) for slices in from_each]
        self._received = [piece for slices in from_each for piece in slices]

    def any_rank(self, flags: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return for each matrix, in fp32, whether any rank's flag of it is set; a rank may lack a matrix."""
        absent = torch.zeros((), device=self.device)
        together = torch.stack([flags.get(name, absent).float().to(self.device) for name in self.names])
        dist.all_reduce(together, op=dist.ReduceOp.MAX)
        return dict(zip(self.names, together, strict=True))

    def gather(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Send this rank's pieces, in the order of `own`; return the whole flat matrices assigned to this rank."""
        values = self._all_to_all(parts, self._sizes, self._received_sizes)
        wholes: dict[str, Tensor] = {}
        for (name, start, numel), part in zip(self._received, _split(values, self._received), strict=True):
            whole = wholes.setdefault(name, values.new_empty(self.numel[name]))
            whole[start : start + numel] = part
        return wholes

    def scatter(self, wholes: Mapping[str, Tensor]) -> list[Tensor]:
        """Send the pieces of this rank's matrices back; return those of `own`."""
        parts = [wholes[name].reshape(-1)[start : start + numel] for name, start, numel in self._received]
        values = self._all_to_all(parts, self._received_sizes, self._sizes)
        return _split(values, [(piece.name, piece.start, piece.numel) for piece in self.own])

    def _all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int], received_sizes: Sequence[int]) -> Tensor:
        """Send `sizes[r]` of the concatenated values to rank r; return what this rank received."""
        sent = torch.empty(sum(sizes), dtype=self.dtype, device=self.device)
        for place, part in zip(sent.split([part.numel() for part in parts]), parts, strict=True):
            place.copy_(part)
        received = torch.empty(sum(received_sizes), dtype=self.dtype, device=self.device)
        # As bytes, because gloo does not send bf16.
        width = self.dtype.itemsize
        dist.all_to_all_single(
            received.view(torch.uint8),
            sent.view(torch.uint8),
            [size * width for size in received_sizes],
            [size * width for size in sizes],
        )
        return received


def _assign(numel: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Assign each matrix to a rank, the largest first, always to the rank with the least work."""
    work, assigned = [0] * ranks, {}
    for name in sorted(numel, key=lambda name: -numel[name]):
        assigned[name] = work.index(min(work))
        work[assigned[name]] += numel[name]
    return assigned


def _split(values: Tensor, slices: Sequence[Slice]) -> list[Tensor]:
    return list(values.split([numel for *_, numel in slices]))
