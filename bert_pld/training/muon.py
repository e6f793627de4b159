"""Muon for the blocks' matrices and AdamW for everything else, at every ZeRO stage.

Muon (Jordan et al., https://kellerjordan.github.io/posts/muon/) moves a matrix by its orthogonalised momentum:

    B ← β·B + (1 − β)·G,   U = (1 − β)·G + β·B (Nesterov),   W ← W − η·λ·W − η·0.2·√max(m, n)·NewtonSchulz(U)

The factor 0.2·√max(m, n) gives the update of an [m, n] matrix the size of AdamW's, so that both can share one learning
rate (Liu et al., arXiv:2502.16982, section 2.2). Queries, keys and values are three matrices, though they are one
parameter.

Under ZeRO 1 to 3 a rank holds only pieces of the matrices; `MatrixExchange` brings them together. Clipping acts on the
gradients, before this. DeepSpeed's own Muon is not used: it would treat the q, k, v weight as one matrix, and it clips
the orthogonalised update.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bert_pld.checkpoint.zero_state import Piece, find_pieces, full_shapes, is_partitioned, owners_in_order
from bert_pld.kernels.reference import cpu_multiplies_bf16

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton–Schulz iteration, as published with Muon."""
_EPSILON = 1e-7

Slice = tuple[str, int, int]
"""Name of a matrix, first value in the flattened matrix, and number of values."""


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U·Vᵀ of each matrix's singular value decomposition by Newton–Schulz iterations.

    Args:
        matrices: [N, m, n]; the result has the same shape and type.
        steps: number of iterations; after five, singular values are about 0.7 to 1.2, unless they were tiny before.
    """
    a, b, c = _COEFFICIENTS
    x = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = x / x.flatten(1).norm(dim=1).clamp_(min=_EPSILON)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


class OrthogonalMomentum(torch.optim.AdamW):
    """Muon on the parameter groups with `muon: True`, AdamW on the others.

    The name avoids "Muon", by which some releases of DeepSpeed recognise their own optimizer and change its gradients.

    Args:
        groups: parameter groups; `muon` tells which of the two updates a group gets.
        lr: learning rate η of all groups; schedulers change it.
        muon_ratio: Muon's learning rate as a multiple of η.
        momentum: β.
        nesterov: whether U is as above; otherwise U = B.
        ns_steps: Newton–Schulz iterations.
        dtype: type of the iterations; by default bf16 in runs of 16 bits, unless the CPU has no bf16 instructions, and
            fp32 in other runs.
        adam: AdamW's other arguments.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        muon_ratio: float = 1.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        dtype: torch.dtype | None = None,
        **adam: Any,
    ) -> None:
        self.param_groups: list[dict[str, Any]]
        super().__init__(groups, lr=lr, fused=True, **adam)
        self.muon_ratio, self.momentum, self.nesterov, self.ns_steps = muon_ratio, momentum, nesterov, ns_steps
        self.dtype = dtype
        self._pieces: dict[int, list[Piece]] = collections.defaultdict(list)
        self._exchanges: dict[int, MatrixExchange] = {}
        self._shapes: dict[str, tuple[int, int, int]] = {}

    def attach(self, engine: Any, matrices: Mapping[str, int]) -> None:
        """Find the matrices in the tensors that DeepSpeed made of them; all ranks call it together.

        Args:
            engine: the engine that was made with this optimizer.
            matrices: parameter name to the number of equal matrices that are stacked in its rows.
        """
        fast_in_bf16 = engine.device.type != "cpu" or cpu_multiplies_bf16()
        in_16_bits = any(parameter.element_size() == 2 for parameter in engine.module.parameters())
        self.dtype = dtype = self.dtype or (torch.bfloat16 if in_16_bits and fast_in_bf16 else torch.float32)
        whole = {name: shape for name, shape in full_shapes(engine).items() if name in matrices}
        self._shapes = {name: (matrices[name], rows // matrices[name], width) for name, (rows, width) in whole.items()}
        owners = {id(owner): index for index, owner in enumerate(owners_in_order(engine))}
        pieces = [piece for piece in find_pieces(engine) if piece.name in matrices]
        for piece in pieces:
            self._pieces[id(piece.owner)].append(piece)
        if not is_partitioned(engine) or dist.get_world_size() == 1:
            return
        layouts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(layouts, [(owners[id(p.owner)], p.name, p.start, p.numel) for p in pieces])
        for owner, index in owners.items():
            in_owner = [[part for number, *part in layout if number == index] for layout in layouts]
            if any(in_owner):
                self._exchanges[owner] = MatrixExchange(self._pieces[owner], in_owner, whole, engine.device, dtype)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the parameters of `param_groups` that have a gradient; DeepSpeed may call this for each group."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._muon_step(group)

    def _muon_step(self, group: Mapping[str, Any]) -> None:
        owners = [owner for owner in group["params"] if owner.grad is not None]
        if not self._exchanges:
            pieces = [piece for owner in owners for piece in self._pieces[id(owner)]]
            active = {piece.name: _gradient(piece).any() for piece in pieces}
            updates = self._orthogonalized({piece.name: self._advance(piece, active) for piece in pieces})
            self._move(pieces, [updates[piece.name] for piece in pieces], active, group)
            return
        for owner in owners:
            exchange = self._exchanges[id(owner)]
            active = exchange.any_rank(_any_nonzero(exchange.own))
            momenta = exchange.gather([self._advance(piece, active) for piece in exchange.own])
            self._move(exchange.own, exchange.scatter(self._orthogonalized(momenta)), active, group)

    def _advance(self, piece: Piece, active: Mapping[str, Tensor]) -> Tensor:
        """Update the momentum of a piece and return its U, [numel].

        A block that was dropped in the whole step has no gradient. Its momentum waits, and it does not move: after
        orthogonalisation, an old momentum would be as large as any.
        """
        state = self.state[piece.owner]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(piece.owner, requires_grad=False)
        gradient, momentum = _gradient(piece), piece.view_of(state["momentum_buffer"])
        momentum.lerp_(gradient, (1.0 - self.momentum) * active[piece.name].to(momentum))
        return gradient.lerp(momentum, self.momentum) if self.nesterov else momentum

    def _orthogonalized(self, momenta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scaled updates of whole parameters, flat as they came; matrices of one shape go in one batch."""
        batches: dict[tuple[int, int, int], list[str]] = collections.defaultdict(list)
        for name in momenta:
            batches[self._shapes[name]].append(name)
        updates: dict[str, Tensor] = {}
        for (count, rows, width), names in batches.items():
            stacked = torch.stack([momenta[name].to(self.dtype) for name in names]).view(-1, rows, width)
            scaled = orthogonalize(stacked, self.ns_steps) * (0.2 * math.sqrt(max(rows, width)))
            updates.update(zip(names, scaled.reshape(len(names), count * rows * width), strict=True))
        return updates

    def _move(
        self,
        pieces: Sequence[Piece],
        updates: Sequence[Tensor],
        active: Mapping[str, Tensor],
        group: Mapping[str, Any],
    ) -> None:
        rate = group["lr"] * self.muon_ratio
        for piece, update in zip(pieces, updates, strict=True):
            weights = piece.view_of(piece.owner)
            moving = active[piece.name].to(weights)
            weights.mul_(1.0 - rate * group["weight_decay"] * moving)
            weights.sub_(update.to(weights) * (rate * moving))


def _gradient(piece: Piece) -> Tensor:
    assert piece.owner.grad is not None
    return piece.view_of(piece.owner.grad)


def _any_nonzero(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """Return for each matrix whether any of the pieces of its gradient has a value other than zero."""
    flags: dict[str, Tensor] = {}
    for piece in pieces:
        found = _gradient(piece).any()
        flags[piece.name] = found | flags[piece.name] if piece.name in flags else found
    return flags


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
