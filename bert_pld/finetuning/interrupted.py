"""A fine-tuning that a signal stopped: saved beside its result, and continued by the same command.

lr_3e-05_seed_1/interrupted/
  model.safetensors          fp32 weights in the layout of checkpoints (`bert_pld.checkpoint.format`)
  optimizer_….safetensors    one state of the optimizer in the same layout
  state.json                 conditions, progress, scheduler, loss scale
  checksums.json             size and SHA-256 of each file above
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from bert_pld.checkpoint.format import fault, tensor_file, write_checksums
from bert_pld.checkpoint.gather import StateGatherer
from bert_pld.checkpoint.safetensors_file import NonFiniteTensorError, write_tensors
from bert_pld.checkpoint.zero_state import read_scalars, restore_scalars
from bert_pld.files import PARTIAL, STATE, WEIGHTS, write_atomically

FOLDER = "interrupted"


@dataclasses.dataclass
class Progress:
    """What a fine-tuning has done, without weights and optimizer."""

    steps: int = 0
    """Number of optimizer steps in all epochs."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """Loss of each step of the epoch under way, the mean over ranks."""
    seconds: float = 0.0
    """Duration of that epoch so far."""
    epochs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Figures of the finished epochs."""
    best_score: float = -math.inf
    best_epoch: int = 0
    predictions: dict[str, NDArray[np.float64]] = dataclasses.field(default_factory=dict)
    """The leaderboard's file → predictions in the best epoch."""

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads."""
        predictions = {name: values.tolist() for name, values in self.predictions.items()}
        best_score = self.best_score if math.isfinite(self.best_score) else None
        return {**dataclasses.asdict(self), "predictions": predictions, "best_score": best_score}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Progress:
        """Return the progress that `as_json` described."""
        predictions = {name: np.array(values, np.float64) for name, values in content["predictions"].items()}
        best_score = -math.inf if content["best_score"] is None else content["best_score"]
        return cls(**{**content, "predictions": predictions, "best_score": best_score})


class Interrupted:
    """The folder of a fine-tuning that was stopped. All ranks call its methods together, except for `remove`."""

    def __init__(self, result_folder: Path, conditions: Mapping[str, Any]) -> None:
        """`conditions` are those of the result: work of other conditions is not continued."""
        self.path, self.conditions = result_folder / FOLDER, json.loads(json.dumps(conditions))
        self._state: dict[str, Any] = {}

    def find(self) -> Progress | None:
        """Return the progress of an earlier call; None if there is none, or one that is damaged or does not fit."""
        found: list[Any] = [self._read() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, src=0)
        if found[0] is None:
            return None
        self._state = found[0]
        return Progress.from_json(self._state["progress"])

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_dir() or fault(self.path, {WEIGHTS, STATE}) is not None:
            return None
        state: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        return state if state["conditions"] == self.conditions else None

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights into a model, before an engine is made from it."""
        weights = load_file(self.path / WEIGHTS)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])

    def load_optimizer(self, engine: Any) -> None:
        """Load the optimizer's weights and states, the scheduler and the loss scale."""
        gatherer = StateGatherer(engine, None)
        gatherer.load({kind: self.path / tensor_file(kind) for kind in self._state["tensors"]})
        restore_scalars(engine, gatherer.pieces, self._state["engine"], self._state["progress"]["steps"])

    def save(self, engine: Any, progress: Progress) -> None:
        """Save a fine-tuning; do nothing before its first step, or if its weights are not finite."""
        if not progress.steps:
            return
        gatherer = StateGatherer(engine, None)
        kinds, scalars = gatherer.states()
        aside = self.path.with_name(f".{FOLDER}{PARTIAL}")
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        is_finite = True
        for kind, names in kinds.items():
            tensors = gatherer.gather(kind, names, to_rank=0)
            if tensors is not None and is_finite:
                try:
                    write_tensors(aside / tensor_file(kind), tensors)
                except NonFiniteTensorError:  # It has diverged; the next call finds that out again.
                    is_finite = False
        if dist.get_rank() == 0 and is_finite:
            state = {"tensors": list(kinds), "engine": read_scalars(engine, scalars), "progress": progress.as_json()}
            write_atomically(aside / STATE, json.dumps({**state, "conditions": self.conditions}, indent=1) + "\n")
            write_checksums(aside)
            shutil.rmtree(self.path, ignore_errors=True)
            aside.rename(self.path)
        elif dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        dist.barrier()

    def remove(self) -> None:
        """Remove the folder, because the result exists; for rank 0 alone."""
        shutil.rmtree(self.path, ignore_errors=True)
