"""Gathering whole tensors from the pieces of all ranks, and loading this rank's pieces from whole tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open

from bert_pld.checkpoint.format import WEIGHTS_KIND
from bert_pld.checkpoint.zero_state import (
    Piece,
    base_optimizer,
    find_pieces,
    full_shapes,
    is_partitioned,
    reset_states,
    state_kinds,
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
        self._layouts: list[Any] = [own]
        if self.partitioned:
            self._layouts = [None] * dist.get_world_size()
            dist.all_gather_object(self._layouts, own, group=group)
        self._starts, total = {}, 0
        for name, shape in self.shapes.items():
            self._starts[name] = total
            total += math.prod(shape)
        self.total = total
        self._buffers: dict[str, torch.Tensor] = {}

    def kinds(self) -> list[str]:
        """Return `weights` and the names of the optimizer's states, which do not exist before its first step."""
        return [WEIGHTS_KIND, *state_kinds(self.engine, self.pieces)]

    def gather(self, kind: str, to_rank: int) -> dict[str, np.ndarray] | None:
        """Return one kind of tensor of every parameter, fp32 on the host, on rank `to_rank`; None on other ranks.

        The next call for the same kind overwrites the arrays.
        """
        parts = [(piece, piece.view_of(self._tensor(piece.owner, kind))) for piece in self.pieces]
        if self.partitioned:
            whole = self._gather_pieces(kind, [values for _, values in parts], to_rank)
        else:
            whole = self._copy_pieces(kind, parts) if dist.get_rank() == to_rank else None
        if whole is None:
            return None
        if whole.is_pinned():
            torch.cuda.synchronize(self.engine.device)
        flat = whole.numpy()
        return {
            name: flat[start : start + math.prod(self.shapes[name])].reshape(self.shapes[name])
            for name, start in self._starts.items()
        }

    def _copy_pieces(self, kind: str, parts: list[tuple[Piece, torch.Tensor]]) -> torch.Tensor:
        whole = self._buffer(kind)
        for piece, values in parts:
            start = self._starts[piece.name] + piece.start
            whole[start : start + piece.numel].copy_(values, non_blocking=True)
        return whole

    def _gather_pieces(self, kind: str, parts: list[torch.Tensor], to_rank: int) -> torch.Tensor | None:
        device = self.engine.device  # The parts are on the host if the optimizer is offloaded.
        local = torch.cat(parts).float().to(device) if parts else torch.zeros(0, device=device)
        ranks, receives = dist.get_world_size(), dist.get_rank() == to_rank
        sizes = [sum(numel for _, _, numel in layout) for layout in self._layouts]
        at_once = max(1, _VALUES_AT_ONCE // ranks)
        whole = self._buffer(kind) if receives else None
        for begin in range(0, max(sizes), at_once):
            length = min(at_once, max(sizes) - begin)
            # A collective needs the same length on every rank, so shorter ones are padded.
            sent = torch.zeros(length, device=device)
            own_values = local[begin : begin + length]
            sent[: own_values.numel()] = own_values
            received = [torch.empty_like(sent) for _ in range(ranks)] if receives else None
            dist.gather(sent, received, dst=to_rank)
            if whole is not None and received is not None:
                for layout, values in zip(self._layouts, received, strict=True):
                    self._place(whole, values, layout, begin)
        return whole

    def _place(self, whole: torch.Tensor, values: torch.Tensor, layout: Any, begin: int) -> None:
        """Copy values [begin, begin + len(values)) of a rank's concatenated pieces into the whole tensors."""
        position, end = 0, begin + values.numel()
        for name, start, numel in layout:
            first, last = max(position, begin), min(position + numel, end)
            if first < last:
                target = self._starts[name] + start + first - position
                whole[target : target + last - first].copy_(values[first - begin : last - begin], non_blocking=True)
            position += numel

    def _buffer(self, kind: str) -> torch.Tensor:
        if kind not in self._buffers:
            self._buffers[kind] = torch.empty(self.total, pin_memory=self.engine.device.type == "cuda")
        return self._buffers[kind]

    def _tensor(self, owner: torch.Tensor, kind: str) -> torch.Tensor:
        return owner if kind == WEIGHTS_KIND else base_optimizer(self.engine).state[owner][kind]

    def load(self, files: Mapping[str, Path]) -> None:
        """Load this rank's pieces from one safetensors file a kind, with a whole tensor for each parameter.

        A ValueError is raised if the parameters in a file, or their shapes, differ from the model's.
        """
        reset_states(self.engine, self.pieces, [kind for kind in files if kind != WEIGHTS_KIND])
        for kind, path in files.items():
            with safe_open(path, framework="pt") as tensors:
                shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
                if shapes != self.shapes:
                    name, shape = sorted(set(shapes.items()) ^ set(self.shapes.items()))[0]
                    raise ValueError(f"{path}: does not fit the model: {name} {list(shape)}")
                for piece in self.pieces:
                    values = tensors.get_tensor(piece.name).view(-1)[piece.start : piece.start + piece.numel]
                    piece.view_of(self._tensor(piece.owner, kind)).copy_(values)
