"""The format of checkpoints on disk: how they are named, found, verified and read.

    checkpoints/
      latest                    name of the newest checkpoint; written last
      step_00001000/
        model.safetensors       fp32 weights in one layout, the same for every backend, precision and ZeRO stage
        optimizer_….safetensors one state of the optimizer (Adam: exp_avg, exp_avg_sq) in the same layout
        config.json             resolved configuration of the run
        state.json              step, counters of the metrics, fingerprint of the data, scheduler, loss scale, whether
                                the step's evaluation is still to be made
        tokenizer.json …        and the tokenizer's other files (`bert_pld.files.TOKENIZER_FILES`)
        checksums.json          size and SHA-256 of each file above
      .step_00002000.partial    incomplete: being written, or left by a killed run and removed by the next one

A checkpoint holds only tensors and JSON, so that reading one cannot run code. No file depends on the number of ranks or
on the ZeRO stage. Saving and restoring, which need the ranks and the engine, are in `bert_pld.checkpoint.writer`.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bert_pld.config import RunConfig, load_config
from bert_pld.data.fast_tokenizer import FastTokenizer
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import vocabulary_hash
from bert_pld.data.tokenizer import read_entries
from bert_pld.files import (
    CHECKPOINTS,
    CHECKSUMS,
    CONFIG,
    PARTIAL,
    STATE,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    file_sha256,
    require_utf8,
    write_atomically,
)
from bert_pld.model import BertForPreTraining, make_model

REQUIRED_FILES = (WEIGHTS, CONFIG, STATE, TOKENIZER)
WEIGHTS_KIND = "weights"
"""The kind of tensors that are not a state of the optimizer."""
PRUNED = ".pruned"
"""Suffix of a checkpoint that is being removed."""
_STATE_TYPES = {
    **dict.fromkeys(("data_source", "data_fingerprint", "initialized_from"), str),
    **dict.fromkeys(("step", "tokens"), int),
    **dict.fromkeys(("seconds", "processor_seconds"), float),
    **{"tensors": list, "engine": dict, "origin": dict, "since_record": dict, "evaluation_owed": bool},
}
"""Key of `state.json` → its type, where it is present."""
_LARGEST_NUMBER = 2**62
_NAME = re.compile(r"step_(\d+)")


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after optimizer step `step`."""
    return f"step_{step:08d}"


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Return the complete checkpoints, newest first; incomplete ones have other names."""
    if not checkpoints_dir.is_dir():
        return []
    found = [path for path in checkpoints_dir.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("_")[1]), reverse=True)


def tensor_file(kind: str) -> str:
    """Return the name of the file for one kind of tensors: the weights, or a state of the optimizer."""
    return WEIGHTS if kind == WEIGHTS_KIND else f"optimizer_{kind}.safetensors"


def remove_leftovers(checkpoints_dir: Path) -> None:
    """Remove checkpoints that killed runs left half-written or half-removed; only for the run that holds the lock."""
    if checkpoints_dir.is_dir():
        for path in checkpoints_dir.iterdir():
            if path.name.startswith(".") and path.name.endswith((PARTIAL, PRUNED)):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_checksums(checkpoint: Path, sums: dict[str, dict[str, Any]] | None = None) -> None:
    """Write `checksums.json`, the last file before a checkpoint gets its name.

    `sums` maps a file's name to `{"bytes": …, "sha256": …}`; by default they are computed from the files.
    """
    if sums is None:
        paths = [path for path in sorted(checkpoint.iterdir()) if path.is_file()]
        sums = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}
    write_atomically(checkpoint / CHECKSUMS, _canonical(sums))


def _canonical(sums: Any) -> str:
    return json.dumps(sums, indent=1, sort_keys=True) + "\n"


def fault(checkpoint: Path, required: Collection[str] = REQUIRED_FILES) -> str | None:
    """Verify a checkpoint's files; return a description of the first fault, or None if there is none.

    `required` are the files that it must have at least.
    """
    try:
        text = (checkpoint / CHECKSUMS).read_text()
        sums = json.loads(text)
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in sums.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} is missing or damaged ({type(error).__name__}: {error})"
    # The checksums have no checksum: any other text than the one that would be written for them is a fault.
    if text != _canonical(sums) or not set(required) <= set(listed):
        return f"{CHECKSUMS} was changed after it was written"
    for name, (size, sha256) in listed.items():
        path = checkpoint / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
        if file_sha256(path) != sha256:
            return f"{name} was changed after it was written (SHA-256 differs)"
    return None


def newest_valid(checkpoints_dir: Path) -> Path | None:
    """Return the newest checkpoint without a fault, or None if there are no checkpoints.

    A warning names each damaged one that is skipped. If all are damaged, a ValueError is raised.
    """
    found = list_checkpoints(checkpoints_dir)
    for checkpoint in found:
        problem = fault(checkpoint)
        if problem is None:
            return checkpoint
        warnings.warn(f"checkpoint {checkpoint} is damaged and skipped: {problem}")
    if found:
        raise ValueError(f"{checkpoints_dir}: all {len(found)} checkpoints are damaged")
    return None


def resolve_checkpoint(path: Path) -> Path:
    """Return the verified checkpoint at a path: a checkpoint itself, or the newest of a run or `checkpoints` folder.

    If there is none, or the given one is damaged, a ValueError is raised.
    """
    path = require_utf8("checkpoint", Path(path))
    if (path / CHECKSUMS).is_file() or _NAME.fullmatch(path.name):
        problem = fault(path)
        if problem:
            raise ValueError(f"checkpoint {path}: {problem}")
        return path
    for folder in (path / CHECKPOINTS, path):
        checkpoint = newest_valid(folder)
        if checkpoint is not None:
            return checkpoint
    raise ValueError(
        f"{path}: no checkpoint found; must be a run's folder, its {CHECKPOINTS} folder, or one step_N folder"
    )


def check_same_vocabulary(checkpoint: Path, rows: ShardedRows) -> None:
    """Raise a ValueError if the data was not tokenized with the checkpoint's tokenizer."""
    if (checkpoint / VOCABULARY).is_file():
        entries, flag = tuple(read_entries(checkpoint / VOCABULARY)), f"--vocab {checkpoint}/{VOCABULARY}"
        own_hash = ""
    else:
        tokenizer = FastTokenizer.load(checkpoint)
        entries, own_hash, flag = tokenizer.entries, tokenizer.tokenizer_hash, f"--tokenizer {checkpoint}"
    same_entries = vocabulary_hash(list(entries)) == rows.attributes.vocabulary_hash
    hashes = {own_hash, rows.attributes.tokenizer_hash} - {""}  # BERT's tokenizer has none
    if not same_entries or len(hashes) > 1:
        raise ValueError(
            f"data directory {rows.data_dir}: its vocabulary ({rows.attributes.vocabulary_size} entries) differs from"
            f" that of checkpoint {checkpoint} ({len(entries)} entries); build the data with {flag}"
        )


def load_state(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.json`; raise a ValueError if it is damaged.

    Checksums detect damage, but whoever makes a checkpoint can give them to any content.
    """
    path = checkpoint / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: must be a JSON object, is a {type(state).__name__}")
    for key, kind in _STATE_TYPES.items():
        value: Any = state.get(key, kind())
        fits = isinstance(value, (kind, int) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not fits:
            raise ValueError(f"{path}: {key}: {value!r}; must be {kind.__name__}")
        number: Any = value
        if kind in (int, float) and not 0 <= number < _LARGEST_NUMBER:
            raise ValueError(f"{path}: {key}: {number}; must be at least 0")
    for key, number in state.get("since_record", {}).items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"{path}: since_record: {key}: {number!r}; must be a number")
    for tensors in state.get("tensors", []):
        if not isinstance(tensors, str) or not re.fullmatch(r"\w+", tensors):
            raise ValueError(f"{path}: tensors: {tensors!r}; must be the name of a kind of tensors")
    return state


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint's fp32 weights to the CPU; raise a ValueError if the file is missing or damaged."""
    try:
        return load_file(checkpoint / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{checkpoint / WEIGHTS}: cannot be read ({error})") from error


def load_model(checkpoint: Path) -> tuple[BertForPreTraining, RunConfig]:
    """Return a checkpoint's fp32 model, in evaluation mode, and its configuration; a ValueError if they do not fit."""
    config = load_config(checkpoint / CONFIG, use="checkpoint")
    model = make_model(config.model)
    try:
        model.load_state_dict(load_weights(checkpoint))
    except RuntimeError as error:  # raised by torch for unexpected names or shapes
        raise ValueError(f"checkpoint {checkpoint}: {WEIGHTS} does not fit {CONFIG} ({error})") from error
    return model.eval(), config
