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
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bert_pld.checkpoint.zero_state import Piece, find_pieces, full_shapes, is_partitioned, owners_in_order
from bert_pld.kernels.reference import cpu_multiplies_bf16
from bert_pld.training.matrix_exchange import MatrixExchange

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton–Schulz iteration, as published with Muon."""
_EPSILON = 1e-7


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U·Vᵀ of each matrix's singular value decomposition by Newton–Schulz iterations.

    Args:
        matrices: [N, m, n]; the result has the same shape and type.
        steps: number of iterations; after five, singular values are about 0.7 to 1.2, unless they were tiny before.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices / matrices.flatten(1).norm(dim=1).clamp_(min=_EPSILON)[:, None, None]
    for _ in range(steps):
        gram = x.mT @ x if is_tall else x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, *((x, polynomial) if is_tall else (polynomial, x)), beta=a)
    return x


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
        self._device = torch.device("cpu")
        self._pieces: dict[int, list[Piece]] = collections.defaultdict(list)
        self._exchanges: dict[int, MatrixExchange] = {}
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._uploaded: dict[tuple[int, ...], Tensor] = {}

    def attach(self, engine: Any, matrices: Mapping[str, int]) -> None:
        """Find the matrices in the tensors that DeepSpeed made of them; all ranks call it together.

        Args:
            engine: the engine that was made with this optimizer.
            matrices: parameter name to the number of equal matrices that are stacked in its rows.
        """
        self._device = engine.device
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
    def step(self, closure: Any = None) -> Any:
        """Update the parameters of `param_groups` that have a gradient; DeepSpeed may call this for each group.

        Returns:
            The loss of `closure`, which computes the gradients anew; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._muon_step(group)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a loaded state. AdamW's own method looks for its step counter in every state."""
        torch.optim.Optimizer.__setstate__(self, state)

    def _muon_step(self, group: Mapping[str, Any]) -> None:
        owners = [owner for owner in group["params"] if owner.grad is not None]
        if not self._exchanges:
            self._update([piece for owner in owners for piece in self._pieces[id(owner)]], None, group)
            return
        for owner in owners:
            self._update(self._pieces[id(owner)], self._exchanges[id(owner)], group)

    def _update(self, pieces: Sequence[Piece], exchange: MatrixExchange | None, group: Mapping[str, Any]) -> None:
        """Move the matrices of these pieces; without an exchange they are whole.

        All pieces are one tensor [units, unit] in each operator, because an operator for each piece would be a kernel
        launch for each. The unit is the largest that divides every piece.

        A block that was dropped in the whole step has no gradient. Its momentum waits, and it does not move: after
        orthogonalisation, an old momentum would be as large as any.
        """
        if not pieces:
            if exchange is not None:
                exchange.any_rank(exchange.nothing)
                exchange.scatter(self._orthogonalized(exchange.gather(exchange.nothing)))
            return
        names, sizes = [piece.name for piece in pieces], [piece.numel for piece in pieces]
        unit = math.gcd(*sizes)
        gradient = _flat(pieces, _gradient).view(-1, unit)
        momentum = _flat(pieces, self._momentum).view(-1, unit)
        weights = _flat(pieces, lambda piece: piece.owner).view(-1, unit)
        piece_of_unit = self._piece_of_unit(pieces, unit)
        moves = _have_values(gradient, piece_of_unit, len(pieces))
        if exchange is not None:
            moves = exchange.any_rank(moves).to(gradient)
        moves = moves[piece_of_unit][:, None]
        momentum.lerp_(gradient, moves * (1.0 - self.momentum))
        aim = (gradient.lerp(momentum, self.momentum) if self.nesterov else momentum).to(self.dtype).flatten()
        if exchange is None:
            # With `offload_optimizer` the momentum is on the host, where the iterations would take far longer.
            updates = self._orthogonalized(dict(zip(names, aim.to(self._device).split(sizes), strict=True)))
            update = torch.cat([updates[name] for name in names])
        else:
            update = exchange.scatter(self._orthogonalized(exchange.gather(aim)))
        rate = group["lr"] * self.muon_ratio
        weights.mul_(1.0 - moves * (rate * group["weight_decay"]))
        weights.addcmul_(update.to(weights).view(-1, unit), moves, value=-rate)
        _put_back(pieces, momentum, self._momentum)
        _put_back(pieces, weights, lambda piece: piece.owner)

    def _momentum(self, piece: Piece) -> Tensor:
        state = self.state[piece.owner]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(piece.owner, requires_grad=False)
        return state["momentum_buffer"]

    def _piece_of_unit(self, pieces: Sequence[Piece], unit: int) -> Tensor:
        """Return the index of each unit's piece, int64 [units]; uploaded once."""
        key = tuple(piece.numel // unit for piece in pieces)
        if key not in self._uploaded:
            index = torch.arange(len(key)).repeat_interleave(torch.tensor(key))
            self._uploaded[key] = index.to(pieces[0].owner.device)
        return self._uploaded[key]

    def _orthogonalized(self, aims: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scaled updates of whole parameters, flat as they came.

        All matrices of one shape are one batch: three batches for a BERT encoder.
        """
        batches: dict[tuple[int, int], list[str]] = collections.defaultdict(list)
        for name in aims:
            _, rows, width = self._shapes[name]
            batches[rows, width].append(name)
        updates: dict[str, Tensor] = {}
        for shape, names in batches.items():
            together = torch.cat([aims[name].view(self._shapes[name]) for name in names])
            moved = orthogonalize(together, self.ns_steps).mul_(0.2 * math.sqrt(max(shape)))
            parts = moved.split([self._shapes[name][0] for name in names])
            updates.update(zip(names, (part.flatten() for part in parts), strict=True))
        return updates


def _gradient(piece: Piece) -> Tensor:
    assert piece.owner.grad is not None
    return piece.owner.grad


def _flat(pieces: Sequence[Piece], tensor_of: Callable[[Piece], Tensor]) -> Tensor:
    """Return the pieces' values of one kind as [numel]: a view if they are neighbours in one tensor, else a copy."""
    if _are_neighbours(pieces):
        first, last = pieces[0], pieces[-1]
        return tensor_of(first).detach().view(-1)[first.offset : last.offset + last.numel]
    return torch.cat([piece.view_of(tensor_of(piece)) for piece in pieces])


def _put_back(pieces: Sequence[Piece], flat: Tensor, tensor_of: Callable[[Piece], Tensor]) -> None:
    """Write values that `_flat` copied and that have changed back into their tensors."""
    if not _are_neighbours(pieces):
        places = [piece.view_of(tensor_of(piece)) for piece in pieces]
        torch._foreach_copy_(places, list(flat.flatten().split([piece.numel for piece in pieces])))


def _are_neighbours(pieces: Sequence[Piece]) -> bool:
    pairs = itertools.pairwise(pieces)
    return all(a.owner is b.owner and a.offset + a.numel == b.offset for a, b in pairs)


def _have_values(units: Tensor, piece_of_unit: Tensor, pieces: int) -> Tensor:
    """Return fp32 [pieces]: 1 for a piece whose units [units, unit] have a value other than zero, else 0.

    The highest and the lowest value tell it. The norm for a maximum of magnitudes takes 60 times longer on a CPU.
    """
    flags = units.amax(1).logical_or_(units.amin(1))  # 1.0 where one of the two is not zero
    return flags.new_zeros(pieces).scatter_reduce_(0, piece_of_unit, flags, "amax")
