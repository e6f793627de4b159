"""Whole tensors out of all ranks' pieces, each kind on one rank that writes it; and pieces out of whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open

from bert_pld.checkpoint.zero_state import (
    Piece,
    base_optimizer,
    full_shapes,
    is_partitioned,
    make_states,
    pieces_of,
    state_kinds,
)

WEIGHTS_KIND = "weights"

# Values that one message from all ranks together brings at most: 256 MB on the rank that writes.
_VALUES_AT_ONCE = 64 << 20


class StateGatherer:
    """Collects the engine's fp32 weights and optimizer states; its methods are called by all ranks together."""

    def __init__(self, engine: Any, group: dist.ProcessGroup | None) -> None:
        """`group` is one of the host's (gloo), for small objects."""
        self.engine, self.pieces, self.shapes = engine, pieces_of(engine), full_shapes(engine)
        self.partitioned = is_partitioned(engine) and dist.get_world_size() > 1
        own = [(piece.name, piece.start, piece.numel) for piece in self.pieces]
        self._layouts: list[Any] = [own]
        if self.partitioned:
            self._layouts = [None] * dist.get_world_size()
            dist.all_gather_object(self._layouts, own, group=group)
        self._starts, total = {}, 0
        for name, shape in self.shapes.items():
            self._starts[name] = total
            total += int(np.prod(shape, dtype=np.int64))
        self.total = total
        self._buffers: dict[str, torch.Tensor] = {}

    def kinds(self) -> list[str]:
        """`weights`, then the optimizer's states, of which there are none before its first step."""
        return [WEIGHTS_KIND, *state_kinds(self.engine, self.pieces)]

    def gather(self, kind: str, to: int) -> dict[str, np.ndarray] | None:
        """One kind of every parameter, fp32 on the host of rank `to`; None on the others.

        The arrays are the gatherer's own and are overwritten by the next call for the same kind.
        """
        stretches = [(piece, piece.of(self._tensor(piece.owner, kind))) for piece in self.pieces]
        if self.partitioned:
            whole = self._gather_pieces(kind, [values for _, values in stretches], to)
        else:
            whole = self._copy_pieces(kind, stretches) if dist.get_rank() == to else None
        if whole is None:
            return None
        if whole.is_pinned():
            torch.cuda.synchronize(self.engine.device)
        flat = whole.numpy()
        ends = {name: start + int(np.prod(self.shapes[name], dtype=np.int64)) for name, start in self._starts.items()}
        return {name: flat[self._starts[name] : ends[name]].reshape(self.shapes[name]) for name in self.shapes}

    def _copy_pieces(self, kind: str, stretches: list[tuple[Piece, torch.Tensor]]) -> torch.Tensor:
        whole = self._buffer(kind)
        for piece, values in stretches:
            goes = self._starts[piece.name] + piece.start
            whole[goes : goes + piece.numel].copy_(values, non_blocking=True)
        return whole

    def _gather_pieces(self, kind: str, stretches: list[torch.Tensor], to: int) -> torch.Tensor | None:
        device = self.engine.device  # stretches may be on the host, where the optimizer is offloaded
        local = torch.cat(stretches).float().to(device) if stretches else torch.zeros(0, device=device)
        ranks, own = dist.get_world_size(), dist.get_rank() == to
        sizes = [sum(numel for _, _, numel in layout) for layout in self._layouts]
        at_once = max(1, _VALUES_AT_ONCE // ranks)
        whole = self._buffer(kind) if own else None
        for begin in range(0, max(sizes), at_once):
            length = min(at_once, max(sizes) - begin)
            part = torch.zeros(length, device=device)
            mine = local[begin : begin + length]
            part[: mine.numel()] = mine
            parts = [torch.empty_like(part) for _ in range(ranks)] if own else None
            dist.gather(part, parts, dst=to)
            if whole is not None and parts is not None:
                for layout, received in zip(self._layouts, parts, strict=True):
                    self._place(whole, received, layout, begin)
        return whole

    def _place(self, whole: torch.Tensor, received: torch.Tensor, layout: Any, begin: int) -> None:
        """Copy what lies in [begin, begin + len(received)) of a rank's concatenated pieces to where it belongs."""
        at, end = 0, begin + received.numel()
        for name, start, numel in layout:
            first, last = max(at, begin), min(at + numel, end)
            if first < last:
                goes = self._starts[name] + start + first - at
                whole[goes : goes + last - first].copy_(received[first - begin : last - begin], non_blocking=True)
            at += numel

    def _buffer(self, kind: str) -> torch.Tensor:
        if kind not in self._buffers:
            self._buffers[kind] = torch.empty(self.total, pin_memory=self.engine.device.type == "cuda")
        return self._buffers[kind]

    def _tensor(self, owner: torch.Tensor, kind: str) -> torch.Tensor:
        return owner if kind == WEIGHTS_KIND else base_optimizer(self.engine).state[owner][kind]

    def scatter(self, files: Mapping[str, Path]) -> None:
        """Set this rank's pieces from whole tensors.

        Args:
            files: kind to a safetensors file of all parameters.

        Raises:
            ValueError: a file holds other parameters, or other shapes, than the model.
        """
        make_states(self.engine, self.pieces, [kind for kind in files if kind != WEIGHTS_KIND])
        for kind, path in files.items():
            with safe_open(path, framework="pt") as tensors:
                there = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
                if there != self.shapes:
                    other = sorted(set(there.items()) ^ set(self.shapes.items()))[0]
                    raise ValueError(f"{path}: does not fit the model: {other[0]} {list(other[1])}")
                for piece in self.pieces:
                    values = tensors.get_tensor(piece.name).view(-1)[piece.start : piece.start + piece.numel]
                    piece.of(self._tensor(piece.owner, kind)).copy_(values)
