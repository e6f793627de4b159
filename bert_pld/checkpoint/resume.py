"""What a run starts from: a checkpoint of its own to go on from, or another run's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from bert_pld.checkpoint import format as checkpoint_format
from bert_pld.cluster.run_lock import RunLock
from bert_pld.config import ConfigError, RunConfig, load_config
from bert_pld.data.shards import Manifest
from bert_pld.files import CHECKPOINTS, CONFIG
from bert_pld.model import BertForPreTraining

# What a resumed run may change: how it is computed, never what is computed.
_FREE_MODEL_KEYS = ("kernels", "activation_checkpointing", "preset")


def choose_checkpoint(output_dir: Path, resume: str, lock: RunLock) -> Path | None:
    """The checkpoint to go on from: rank 0 locks the folder, looks and verifies; all ranks get its answer or error."""
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        checkpoints = output_dir / CHECKPOINTS
        try:
            lock.acquire()
            checkpoint_format.remove_leftovers(checkpoints)
            if resume == "never":
                if checkpoint_format.list_checkpoints(checkpoints):
                    raise ConfigError(
                        f"--output_dir {output_dir}: holds another run's checkpoints;"
                        " use --resume auto, or another folder"
                    )
            elif resume == "auto":
                answer = [checkpoint_format.newest_valid(checkpoints)]
            else:
                answer = [checkpoint_format.resolve_checkpoint(Path(resume))]
        except (ValueError, OSError) as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def load_weights(model: BertForPreTraining, checkpoint: Path) -> None:
    """Give a model a checkpoint's weights.

    Raises:
        ConfigError: the checkpoint is of a model of another shape.
    """
    weights, own = checkpoint_format.load_weights(checkpoint), model.state_dict()
    for name in sorted({*weights, *own}):
        there, here = (tuple(s[name].shape) if name in s else "absent" for s in (weights, own))
        if there != here:
            raise ConfigError(f"checkpoint {checkpoint} is of another model: {name} is {there} there and {here} here")
    model.load_state_dict(weights)


def check_same_run(checkpoint: Path, config: RunConfig, data: Manifest) -> None:
    """Refuse to go on from another run's checkpoint.

    Raises:
        ConfigError: it is of another model, PLD block, batch, optimizer, seed or data.
    """
    saved = load_config(checkpoint / CONFIG).as_json()  # keys newer than the checkpoint have their defaults
    present = config.as_json()
    for name in _what_defines(present):
        there, here = (_lookup(source, name) for source in (saved, present))
        if there != here:
            raise ConfigError(
                f"checkpoint {checkpoint} is of another run: {name} is {there!r} there and {here!r} here;"
                " use another --output_dir, or the same configuration"
            )
    if checkpoint_format.load_state(checkpoint)["data_fingerprint"] != data.fingerprint():
        raise ConfigError(f"checkpoint {checkpoint} was trained on other data than --data_dir holds (shards differ)")


def _what_defines(config: dict[str, Any]) -> list[str]:
    """The keys of a configuration that a resumed run may not change."""
    model = [f"model.{key}" for key in config["model"] if key not in _FREE_MODEL_KEYS]
    drop = [f"progressive_layer_drop.{key}" for key in config["progressive_layer_drop"]]
    data = ["seq_length", "shuffle"]
    if config["data"]["shuffle"] == "blocks":
        data += ["shuffle_block_rows", "shuffle_window_blocks"]
    rest = ("training.seed", "optimizer.type", "train_batch_size")
    return [*model, *drop, *(f"data.{key}" for key in data), *rest]


def _lookup(config: dict[str, Any], name: str) -> Any:
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
