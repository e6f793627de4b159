"""Choosing the checkpoint that a run resumes from, and checking that it fits the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor, nn

from bert_pld.checkpoint import format as checkpoint_format
from bert_pld.cluster.run_lock import RunLock
from bert_pld.config import ConfigError, RunConfig, load_config
from bert_pld.config.auto import DEFAULT_OPTIMIZER
from bert_pld.config.model import KEYS_OF_NO_WEIGHT
from bert_pld.data.shards import Manifest
from bert_pld.files import CHECKPOINTS, CONFIG
from bert_pld.model import BertForPreTraining

_Answer = TypeVar("_Answer")

MODEL_KEYS_WITHOUT_EFFECT = (*KEYS_OF_NO_WEIGHT, "preset")
"""Keys that a resumed run may change: they do not change the model that is trained, or only before its first step."""
STATE_OPTIONS = ("amsgrad", "centered", "momentum")
"""Options of an optimizer that give it one more state, which the checkpoint of a run without them does not have."""


def choose_checkpoint(output_dir: Path, resume: str, lock: RunLock) -> Path | None:
    """Lock the run's folder and return the checkpoint to resume from, or None for a new run.

    If `resume` is a path outside of the folder, a new run begins with the checkpoint at that path. As soon as the
    folder has checkpoints of its own, the newest of them is returned instead.

    Rank 0 locks and verifies; all ranks return its answer or raise its error.

    Raises:
        ValueError: another run uses the folder; no checkpoint is valid; `resume` is `never` but the folder has
            checkpoints; or `resume` is a path within the folder, which has later checkpoints.
        OSError: the folder cannot be written to.
    """

    def choose() -> Path | None:
        checkpoints = output_dir / CHECKPOINTS
        lock.acquire()
        checkpoint_format.remove_leftovers(checkpoints)
        if resume == "auto":
            return checkpoint_format.newest_valid(checkpoints)
        if resume != "never":
            return _checkpoint_at(Path(resume), output_dir)
        if checkpoint_format.list_checkpoints(checkpoints):
            raise ConfigError(
                f"--output_dir {output_dir}: contains checkpoints of an earlier run;"
                " use --resume auto, or another folder"
            )
        return None

    return _answer_of_rank_0(choose)


def resolve_for_all(path: Path) -> Path:
    """Return the verified checkpoint at a path, as `resolve_checkpoint` does; all ranks call it together.

    Rank 0 chooses for all, because a run that is still training may write another checkpoint meanwhile.
    """
    return _answer_of_rank_0(lambda: checkpoint_format.resolve_checkpoint(path))


def _answer_of_rank_0(find: Callable[[], _Answer]) -> _Answer:
    """Call a function on rank 0; return its answer on all ranks, or raise its ValueError or OSError there."""
    if not dist.is_initialized():
        return find()
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [find()]
        except (ValueError, OSError) as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return cast("_Answer", answer[0])


def _checkpoint_at(path: Path, output_dir: Path) -> Path:
    """Return the checkpoint of `--resume PATH`, or the newest of `output_dir` if the path is outside of it."""
    checkpoints = output_dir / CHECKPOINTS
    if not path.resolve().is_relative_to(output_dir.resolve()):
        return checkpoint_format.newest_valid(checkpoints) or checkpoint_format.resolve_checkpoint(path)
    chosen = checkpoint_format.resolve_checkpoint(path)
    step = checkpoint_format.load_state(chosen).get("step", 0)
    found = checkpoint_format.list_checkpoints(checkpoints)
    later = [one for one in found if int(one.name.removeprefix("step_")) > step]
    # The run would keep them as its newest ones instead of its own, and resume from them after an interruption.
    if any(checkpoint_format.fault(one) is None for one in later):
        raise ConfigError(
            f"--resume {path}: {output_dir} has later checkpoints {', '.join(one.name for one in reversed(later))};"
            " move them away and use --resume auto, which continues from the newest"
        )
    return chosen


def load_weights(model: BertForPreTraining, checkpoint: Path) -> None:
    """Load a checkpoint's weights into a model; raise a ConfigError if the names or shapes of parameters differ."""
    fit_weights(model, checkpoint_format.load_weights(checkpoint), f"checkpoint {checkpoint}")


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a model; raise a ConfigError if the names or shapes of parameters differ."""
    own = model.state_dict()
    for name in sorted({*weights, *own}):
        saved, needed = (tuple(tensors[name].shape) if name in tensors else "missing" for tensors in (weights, own))
        if saved != needed:
            raise ConfigError(f"{where} does not fit the model: {name} has shape {saved} in it, {needed} in the model")
    model.load_state_dict(weights)


def check_same_run(checkpoint: Path, config: RunConfig, data: Manifest) -> None:
    """Raise a ConfigError if a checkpoint's model, PLD block, batch size, optimizer, seed or data differ."""
    # Loading fills in the defaults of keys that did not exist when the checkpoint was saved.
    saved, current = load_config(checkpoint / CONFIG, use="checkpoint").as_json(), config.as_json()
    for name in _fixed_keys(current):
        saved_value, value = _lookup(saved, name), _lookup(current, name)
        if name == "optimizer.type":
            saved_value, value = optimizer_type(saved), optimizer_type(current)
        elif name.startswith("optimizer.params."):
            saved_value, value = (has_state(one, name.rpartition(".")[2]) for one in (saved, current))
        if saved_value != value:
            raise ConfigError(
                f"checkpoint {checkpoint} belongs to a different run: {name} is {saved_value!r} in the checkpoint,"
                f" {value!r} in this run; use the same configuration, or another --output_dir"
            )
    if checkpoint_format.load_state(checkpoint).get("data_fingerprint") != data.fingerprint():
        raise ConfigError(f"checkpoint {checkpoint} was trained on other shards than those of --data_dir")


def _fixed_keys(config: dict[str, Any]) -> list[str]:
    """Return the keys of a configuration that a resumed run may not change."""
    model = [f"model.{key}" for key in config["model"] if key not in MODEL_KEYS_WITHOUT_EFFECT]
    drop = [f"progressive_layer_drop.{key}" for key in config["progressive_layer_drop"]]
    data = ["seq_length", "shuffle"]
    if config["data"]["shuffle"] == "blocks":
        data += ["shuffle_block_rows", "shuffle_window_blocks"]
    rest = ("training.seed", "optimizer.type", "train_batch_size")
    states = (f"optimizer.params.{key}" for key in STATE_OPTIONS)
    return [*model, *drop, *(f"data.{key}" for key in data), *rest, *states]


def has_state(config: dict[str, Any], option: str) -> bool:
    """Whether an option of `STATE_OPTIONS` gives the optimizer a state in this configuration."""
    if option == "momentum" and optimizer_type(config) != "rmsprop":  # others begin without one
        return False
    return bool(_lookup(config, f"optimizer.params.{option}"))


def optimizer_type(config: dict[str, Any]) -> str:
    """Return the optimizer's name in a configuration, in lower case."""
    return str(_lookup(config, "optimizer.type") or DEFAULT_OPTIMIZER["type"]).lower()


def _lookup(config: dict[str, Any], name: str) -> Any:
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
