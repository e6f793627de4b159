"""Gathering whole tensors from the pieces of all ranks, and loading this rank's pieces from whole tensors."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from bert_pld.checkpoint.format import WEIGHTS_KIND
from bert_pld.checkpoint.zero_state import (
    Piece,
    base_optimizer,
    find_pieces,
    full_shapes,
    is_partitioned,
    reset_states,
    scalar_states,
    tensor_states,
)

_VALUES_AT_ONCE = 64 << 20
"""fp32 values that one collective gathers at most: 256 MB on the receiving rank."""


class StateGatherer:
    """Gathers and loads the engine's fp32 weights and optimizer states; all ranks call each method together."""

    def __init__(self, engine: Any, group: dist.ProcessGroup | None) -> None:
        """`group` is a gloo group of all ranks, for small objects; None for a single rank."""
        self.engine, self.pieces, self.shapes = engine, find_pieces(engine), full_shapes(engine)
        self.partitioned = is_partitioned(engine) and dist.get_world_size() > 1
        own = [(piece.name, piece.start, piece.numel) for piece in self.pieces]
        self.group = group
        self._layouts = self._from_all_ranks(own)
        self._buffers: dict[str, torch.Tensor] = {}

    def states(self) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
        """Return the optimizer's states over all ranks, which do not exist before its first step.

        Returns:
            For `weights` and each kind of tensor the parameters that have it, in the model's order; and for each
            parameter its states that are one number.
        """
        kinds: dict[str, set[str]] = {}
        scalars: dict[str, dict[str, Any]] = {}
        own = tensor_states(self.engine, self.pieces), scalar_states(self.engine, self.pieces)
        for tensors_of_rank, scalars_of_rank in self._from_all_ranks(own):
            for kind, names in tensors_of_rank.items():
                kinds.setdefault(kind, set()).update(names)
            scalars |= scalars_of_rank
        ordered = {kind: [name for name in self.shapes if name in kinds[kind]] for kind in sorted(kinds)}
        return {WEIGHTS_KIND: list(self.shapes), **ordered}, scalars

    def gather(self, kind: str, names: Sequence[str], to_rank: int) -> dict[str, np.ndarray] | None:
        """Return one kind of tensor of the named parameters, fp32 on the host, on rank `to_rank`; None on other ranks.

        The next call for the same kind overwrites the arrays.
        """
        sizes = [math.prod(self.shapes[name]) for name in names]
        starts = dict(zip(names, itertools.accumulate(sizes, initial=0), strict=False))
        total = sum(sizes)
        parts = [(p, p.view_of(self._tensor(p.owner, kind))) for p in self.pieces if p.name in starts]
        if self.partitioned:
            whole = self._gather_pieces(kind, [values for _, values in parts], to_rank, starts, total)
        else:
            whole = self._copy_pieces(kind, parts, starts, total) if dist.get_rank() == to_rank else None
        if whole is None:
            return None
        if whole.is_pinned():
            torch.cuda.synchronize(self.engine.device)
        flat = whole.numpy()
        return {
            name: flat[starts[name] : starts[name] + size].reshape(self.shapes[name])
            for name, size in zip(names, sizes, strict=True)
        }

    def _from_all_ranks(self, own: Any) -> list[Any]:
        """Return every rank's object if ranks hold different pieces, else only this rank's."""
        if not self.partitioned:
            return [own]
        objects: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(objects, own, group=self.group)
        return objects

    def _copy_pieces(
        self, kind: str, parts: list[tuple[Piece, torch.Tensor]], starts: Mapping[str, int], total: int
    ) -> torch.Tensor:
        whole = self._buffer(kind, total)
        for piece, values in parts:
            start = starts[piece.name] + piece.start
            whole[start : start + piece.numel].copy_(values, non_blocking=True)
        return whole

    def _gather_pieces(
        self, kind: str, parts: list[torch.Tensor], to_rank: int, starts: Mapping[str, int], total: int
    ) -> torch.Tensor | None:
        layouts = [[part for part in layout if part[0] in starts] for layout in self._layouts]
        device = self.engine.device  # The parts are on the host if the optimizer is offloaded.
        local = torch.cat(parts).float().to(device) if parts else torch.zeros(0, device=device)
        ranks, receives = dist.get_world_size(), dist.get_rank() == to_rank
        sizes = [sum(numel for _, _, numel in layout) for layout in layouts]
        at_once = max(1, _VALUES_AT_ONCE // ranks)
        whole = self._buffer(kind, total) if receives else None
        for begin in range(0, max(sizes), at_once):
            length = min(at_once, max(sizes) - begin)
            # A collective needs the same length on every rank, so shorter ones are padded.
            sent = torch.zeros(length, device=device)
            own_values = local[begin : begin + length]
            sent[: own_values.numel()] = own_values
            received = [torch.empty_like(sent) for _ in range(ranks)] if receives else None
            dist.gather(sent, received, dst=to_rank)
            if whole is not None and received is not None:
                for layout, values in zip(layouts, received, strict=True):
                    _place(whole, values, layout, begin, starts)
        return whole

    def _buffer(self, kind: str, total: int) -> torch.Tensor:
        if kind not in self._buffers or self._buffers[kind].numel() != total:
            self._buffers[kind] = torch.empty(total, pin_memory=self.engine.device.type == "cuda")
        return self._buffers[kind]

    def _tensor(self, owner: torch.Tensor, kind: str) -> torch.Tensor:
        return owner if kind == WEIGHTS_KIND else base_optimizer(self.engine).state[owner][kind]

    def load(self, files: Mapping[str, Path]) -> None:
        """Load this rank's pieces from safetensors files of whole tensors, one file for each kind.

        A ValueError names a parameter that is not the model's, or has another shape, or whose weights are missing.
        """
        for kind, path in files.items():
            with _opened(path) as tensors:
                shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
                needed = self.shapes if kind == WEIGHTS_KIND else {n: s for n, s in self.shapes.items() if n in shapes}
                if shapes != needed:
                    name, shape = sorted(set(shapes.items()) ^ set(needed.items()))[0]
                    raise ValueError(f"{path}: does not fit the model: {name} {list(shape)}")
                if kind != WEIGHTS_KIND:
                    reset_states(self.engine, self.pieces, {kind: set(shapes)})
                for piece in self.pieces:
                    if piece.name in shapes:
                        values = tensors.get_tensor(piece.name).view(-1)[piece.start : piece.start + piece.numel]
                        piece.view_of(self._tensor(piece.owner, kind)).copy_(values)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file for a block; a damaged one is a ValueError."""
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error


def _place(whole: torch.Tensor, values: torch.Tensor, layout: Any, begin: int, starts: Mapping[str, int]) -> None:
    """Copy values [begin, begin + len(values)) of a rank's concatenated pieces into the whole tensors."""
    position, end = 0, begin + values.numel()
    for name, start, numel in layout:
        first, last = max(position, begin), min(position + numel, end)
        if first < last:
            target = starts[name] + start + first - position
            whole[target : target + last - first].copy_(values[first - begin : last - begin], non_blocking=True)
        position += numel
