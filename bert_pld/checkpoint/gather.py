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
from bert_pld.checkpoint.swapped import in_host_memory
from bert_pld.checkpoint.zero_state import (
    Piece,
    base_optimizer,
    by_owner,
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
        pieces = [piece for piece in self.pieces if piece.name in starts]
        if self.partitioned:
            whole = self._gather_pieces(kind, pieces, to_rank, starts, total)
        elif dist.get_rank() == to_rank:
            whole = self._buffer(kind, total)
            self._copy(kind, pieces, whole, [starts[piece.name] + piece.start for piece in pieces])
        else:
            whole = None
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

    def _copy(self, kind: str, pieces: Sequence[Piece], target: torch.Tensor, places: Sequence[int]) -> None:
        """Copy one kind of tensor of these pieces into a flat tensor, each piece to its place."""
        place_of = {(piece.name, piece.start): place for piece, place in zip(pieces, places, strict=True)}
        for owner, its_pieces in by_owner(pieces):
            with in_host_memory(self.engine, owner):
                values = self._tensor(owner, kind)
                for piece in its_pieces:
                    place = place_of[piece.name, piece.start]
                    # Buffers on the host may hold other values soon.
                    target[place : place + piece.numel].copy_(piece.view_of(values), non_blocking=values.is_cuda)

    def _gather_pieces(
        self, kind: str, pieces: Sequence[Piece], to_rank: int, starts: Mapping[str, int], total: int
    ) -> torch.Tensor | None:
        layouts = [[part for part in layout if part[0] in starts] for layout in self._layouts]
        device = self.engine.device  # The pieces are on the host if the optimizer is offloaded.
        *places, size = itertools.accumulate((piece.numel for piece in pieces), initial=0)
        local = torch.empty(size, device=device)
        self._copy(kind, pieces, local, places)
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
        with contextlib.ExitStack() as stack:
            opened = {kind: _Tensors(path, stack) for kind, path in files.items()}
            for kind, tensors in opened.items():
                own = self.shapes.items()
                needed = {name: shape for name, shape in own if kind == WEIGHTS_KIND or name in tensors.shapes}
                if tensors.shapes != needed:
                    name, shape = sorted(set(tensors.shapes.items()) ^ set(needed.items()))[0]
                    raise ValueError(f"{tensors.path}: does not fit the model: {name} {list(shape)}")
            for owner, pieces in by_owner(self.pieces):
                with in_host_memory(self.engine, owner, changed=True):
                    for kind, tensors in opened.items():
                        self._load_kind(kind, tensors, [piece for piece in pieces if piece.name in tensors.shapes])

    def _load_kind(self, kind: str, tensors: _Tensors, pieces: Sequence[Piece]) -> None:
        """Load one kind of tensor of pieces that have one owner."""
        if kind != WEIGHTS_KIND:
            reset_states(self.engine, pieces, kind)
        for piece in pieces:
            values = tensors.read(piece.name).view(-1)[piece.start : piece.start + piece.numel]
            piece.view_of(self._tensor(piece.owner, kind)).copy_(values)


class _Tensors:
    """A safetensors file, open until the stack is closed; a damaged one is a ValueError."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self.path = path
        with self._naming_the_file():
            self._file: Any = stack.enter_context(safe_open(path, framework="pt"))
            self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor of the file."""
        with self._naming_the_file():
            return self._file.get_tensor(name)

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.path}: cannot be read ({error})") from error


def _place(whole: torch.Tensor, values: torch.Tensor, layout: Any, begin: int, starts: Mapping[str, int]) -> None:
    """Copy values [begin, begin + len(values)) of a rank's concatenated pieces into the whole tensors."""
    position, end = 0, begin + values.numel()
    for name, start, numel in layout:
        first, last = max(position, begin), min(position + numel, end)
        if first < last:
            target = starts[name] + start + first - position
            whole[target : target + last - first].copy_(values[first - begin : last - begin], non_blocking=True)
        position += numel
