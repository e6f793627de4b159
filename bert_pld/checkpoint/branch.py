"""What a run goes on from: a checkpoint of its own, or one of another run, from which it branches off.

A branch is a new run with the weights, the optimizer's state, the step and the samples of the checkpoint. The model and
the kind of optimizer stay. The learning rates, the steps, the data and their sequence length, the batch size, masks and
dropping may change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_pld.checkpoint import format as checkpoint_format
from bert_pld.checkpoint.resume import (
    MODEL_KEYS_WITHOUT_EFFECT,
    STATE_OPTIONS,
    check_same_run,
    has_state,
    optimizer_type,
    resolve_for_all,
)
from bert_pld.config import ConfigError, RunConfig, load_config
from bert_pld.data.order import Origin
from bert_pld.data.rows import ShardedRows
from bert_pld.files import CONFIG

_FREE_MODEL_KEYS = (*MODEL_KEYS_WITHOUT_EFFECT, "global_rope_theta", "local_rope_theta")
"""Keys of the model that a branch may change: no parameter has another shape or another meaning."""
_ORDER_KEYS = ("seq_length", "shuffle", "shuffle_block_rows", "shuffle_window_blocks")


@dataclasses.dataclass(frozen=True)
class Start:
    """The checkpoint that a run goes on from."""

    checkpoint: Path
    origin: Origin
    is_branch: bool
    begins_folder: bool
    """Whether the checkpoint lies in another folder, so that nothing in the run's own folder is of this run."""
    line: str
    """What to tell the user."""


def find_start(
    config: RunConfig, rows: ShardedRows, output_dir: Path, checkpoint: Path | None, branch_from: Path | None
) -> Start | None:
    """Return what a run in `output_dir` goes on from: its own `checkpoint`, else the one at `branch_from`, else None.

    All ranks call it together. A ValueError is raised if the checkpoint does not fit the run.
    """
    if checkpoint is not None:
        check_same_run(checkpoint, config, rows.manifest)
        state = checkpoint_format.load_state(checkpoint)
        if state["step"] > config.training.max_steps:
            raise ConfigError(
                f"checkpoint {checkpoint}: training.max_steps: {config.training.max_steps}; must be at least"
                f" {state['step']}, the step of the checkpoint"
            )
        origin = Origin.from_json(state.get("origin", {}), str(checkpoint))
        line = f"resuming after step {state['step']} from checkpoint {checkpoint}"
        begins_folder = not checkpoint.resolve().is_relative_to(output_dir.resolve())
        return Start(checkpoint, origin, is_branch=False, begins_folder=begins_folder, line=line)
    if branch_from is None:
        return None
    checkpoint = resolve_for_all(branch_from)
    changes = check_branch(checkpoint, config, rows)
    origin = origin_of_branch(checkpoint, config, rows)
    data = f"its data from sample {origin.position:,} on" if origin.position else "its data from the beginning"
    line = f"branching off after step {origin.step} from checkpoint {checkpoint}, with {data}; "
    line += "changed: " + "; ".join(changes or ["nothing"])
    return Start(checkpoint, origin, is_branch=True, begins_folder=True, line=line)


def check_branch(checkpoint: Path, config: RunConfig, rows: ShardedRows) -> list[str]:
    """Return what a branch changes, as 'key old → new', after checking that it can go on from a checkpoint.

    A ConfigError names a key of the model, the optimizer's type or the seed if they differ, or too few steps. Other
    vocabularies are a ValueError.
    """
    checkpoint_format.check_same_vocabulary(checkpoint, rows)
    before, now = load_config(checkpoint / CONFIG, use="checkpoint").as_json(), config.as_json()
    free: tuple[str, ...] = _FREE_MODEL_KEYS
    if config.model.architecture == "modernbert":  # Rotary positions have no parameters.
        free = (*free, "max_position_embeddings")
    compared = {
        f"model.{key}": (before["model"].get(key), now["model"][key]) for key in now["model"] if key not in free
    }
    compared["optimizer.type"] = (optimizer_type(before), optimizer_type(now))
    compared |= {f"optimizer.params.{key}": (has_state(before, key), has_state(now, key)) for key in STATE_OPTIONS}
    compared["training.seed"] = (before["training"]["seed"], now["training"]["seed"])
    for name, (old, new) in compared.items():
        if old != new:
            raise ConfigError(
                f"--branch_from {checkpoint}: {name} is {old!r} in the checkpoint, {new!r} in this run; a branch keeps"
                " model, optimizer and seed; for a new optimizer use --initialize_from"
            )
    step, last = checkpoint_format.load_state(checkpoint)["step"], config.training.max_steps
    if last <= step:
        raise ConfigError(
            f"--branch_from {checkpoint}: training.max_steps: {last}; counts from the beginning of the first run, so it"
            f" must be more than the checkpoint's {step} steps"
        )
    return list(_changes(before, now))


def origin_of_branch(checkpoint: Path, config: RunConfig, rows: ShardedRows) -> Origin:
    """Return the origin of a branch: it goes on with the next sample of the same data, or with the first of others."""
    state, before = checkpoint_format.load_state(checkpoint), load_config(checkpoint / CONFIG, use="checkpoint")
    step, batch_size = state["step"], before.deepspeed["train_batch_size"]
    earlier = Origin.from_json(state.get("origin", {}), str(checkpoint))
    same_data = state.get("data_fingerprint") == rows.manifest.fingerprint()
    same_order = all(getattr(before.data, key) == getattr(config.data, key) for key in _ORDER_KEYS)
    return Origin(
        step=step,
        samples=earlier.samples_before(step, batch_size),
        position=earlier.position_of(step, batch_size) if same_data and same_order else 0,
    )


def _changes(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from _changes(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield f"{path} {_shown(before)} → {_shown(now)}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
