"""Bringing matrices together whose pieces are on several ranks, one rank for each, and sending the results back.

Under ZeRO 1 to 3 a rank's partition holds pieces of matrices, and Newton–Schulz iterations need whole ones.
"""

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
        order = sorted(range(len(pieces)), key=lambda index: assigned[pieces[index].name])
        self._numels = [piece.numel for piece in pieces]
        places = [self.names.index(piece.name) for piece in pieces]
        self._places = torch.tensor(places, dtype=torch.int64, device=device)
        self.nothing = torch.empty(0, dtype=dtype, device=device)
        """What a rank without pieces sends."""
        self._order = order
        """Indices of this rank's pieces, ordered by the rank that their matrix is assigned to."""
        self._sizes = [sum(p.numel for p in pieces if assigned[p.name] == other) for other in range(ranks)]
        from_each = [[piece for piece in layout if assigned[piece[0]] == rank] for layout in layouts]
        self._received_sizes = [sum(numel for *_, numel in slices) for slices in from_each]
        self._received = [piece for slices in from_each for piece in slices]

    def any_rank(self, flags: Tensor) -> Tensor:
        """Return for each of this rank's pieces whether any rank's flag of the same matrix is set.

        Args:
            flags: [pieces], 1 or 0. The result has the same shape, in fp32.
        """
        together = torch.zeros(len(self.names), device=self.device)
        together.scatter_reduce_(0, self._places, flags.to(together), "amax")
        dist.all_reduce(together, op=dist.ReduceOp.MAX)
        return together[self._places]

    def gather(self, values: Tensor) -> dict[str, Tensor]:
        """Send this rank's flat pieces [numel]; return the whole flat matrices assigned to this rank."""
        pieces = values.to(self.device).split(self._numels)  # an offloaded optimizer's are on the host
        received = self._all_to_all([pieces[index] for index in self._order], self._sizes, self._received_sizes)
        sizes = {name: self.numel[name] for name, *_ in self._received}
        wholes = dict(zip(sizes, received.new_empty(sum(sizes.values())).split(list(sizes.values())), strict=True))
        places = [wholes[name][start : start + numel] for name, start, numel in self._received]
        if places:
            torch._foreach_copy_(places, list(received.split([numel for *_, numel in self._received])))
        return wholes

    def scatter(self, wholes: Mapping[str, Tensor]) -> Tensor:
        """Send the pieces of this rank's matrices back; return this rank's flat pieces [numel]."""
        parts = [wholes[name][start : start + numel] for name, start, numel in self._received]
        received = self._all_to_all(parts, self._received_sizes, self._sizes)
        ordered = received.split([self._numels[index] for index in self._order])
        pieces = dict(zip(self._order, ordered, strict=True))
        return torch.cat([pieces[index] for index in range(len(pieces))]) if pieces else received

    def _all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int], received_sizes: Sequence[int]) -> Tensor:
        """Send `sizes[r]` of the concatenated values to rank r; return what this rank received."""
        sent = torch.cat(parts) if parts else self.nothing
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
