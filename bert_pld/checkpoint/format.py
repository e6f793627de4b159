"""Checkpoints on disk: appear only complete, are verified before use, and the newest N stay.

    checkpoints/
      latest                    the newest one's name; moves last
      step_00001000/
        model.safetensors       fp32 weights in the plain layout, whatever backend, precision and ZeRO stage made them
        optimizer_….safetensors each of the optimizer's states (Adam: exp_avg, exp_avg_sq), in the same layout
        config.json             the run's resolved configuration
        state.json              step, metrics' counters, fingerprint of the data, scheduler, loss scale
        tokenizer.json vocab.txt
        checksums.json          SHA-256 of each file above
      .step_00002000.partial    being written, or left by a run that was killed; removed by the next one

Tensors and JSON only: nothing in a checkpoint is run when it is read. No file depends on the number of ranks or on the
ZeRO stage. Writing and resuming, which need the ranks and the engine, are in `bert_pld.checkpoint.writer`.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bert_pld.config import RunConfig, load_config
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import vocabulary_hash
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
    write_atomically,
)
from bert_pld.model import BertForPreTraining

TOKENIZER_FILES = (TOKENIZER, VOCABULARY)
PRUNED = ".pruned"
_NAME = re.compile(r"step_(\d+)")


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after optimizer step `step`."""
    return f"step_{step:08d}"


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Complete checkpoints, newest first (partial ones have other names)."""
    if not checkpoints_dir.is_dir():
        return []
    found = [path for path in checkpoints_dir.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("_")[1]), reverse=True)


def tensor_file(kind: str) -> str:
    """The file that holds one kind of tensor: `weights`, or a state of the optimizer."""
    return WEIGHTS if kind == "weights" else f"optimizer_{kind}.safetensors"


def remove_leftovers(checkpoints_dir: Path) -> None:
    """Remove what killed runs left half-written or half-removed. Only for the one run that has the folder."""
    if checkpoints_dir.is_dir():
        for path in checkpoints_dir.iterdir():
            if path.name.startswith(".") and path.name.endswith((PARTIAL, PRUNED)):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_checksums(checkpoint: Path, sums: dict[str, dict[str, Any]] | None = None) -> None:
    """Record every file's size and SHA-256: the last file written before a checkpoint gets its name.

    Args:
        checkpoint: the folder.
        sums: name to `{"bytes": …, "sha256": …}`; by default measured.
    """
    if sums is None:
        paths = [path for path in sorted(checkpoint.iterdir()) if path.is_file()]
        sums = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths}
    write_atomically(checkpoint / CHECKSUMS, _canonical(sums))


def _canonical(sums: Any) -> str:
    return json.dumps(sums, indent=1, sort_keys=True) + "\n"


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None if each is as it was written."""
    try:
        text = (checkpoint / CHECKSUMS).read_text()
        sums = json.loads(text)
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in sums.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} is missing or damaged ({type(error).__name__}: {error})"
    if text != _canonical(sums) or not {WEIGHTS, CONFIG, STATE, *TOKENIZER_FILES} <= set(listed):
        return f"{CHECKSUMS} is not what was written"
    for name, (size, sha256) in listed.items():
        path = checkpoint / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if file_sha256(path) != sha256:
            return f"{name} is not what was written (SHA-256 differs)"
    return None


def newest_valid(checkpoints_dir: Path) -> Path | None:
    """The newest checkpoint that verifies; broken ones are skipped with a warning. None if there are none.

    Raises:
        ValueError: there are checkpoints and every one is broken.
    """
    found = list_checkpoints(checkpoints_dir)
    for checkpoint in found:
        problem = fault(checkpoint)
        if problem is None:
            return checkpoint
        warnings.warn(f"checkpoint {checkpoint} is broken and skipped: {problem}")
    if found:
        raise ValueError(f"{checkpoints_dir}: all {len(found)} checkpoints are broken")
    return None


def resolve_checkpoint(path: Path) -> Path:
    """The verified checkpoint that a path means: a checkpoint itself, or the newest of a run or `checkpoints` folder.

    Raises:
        ValueError: no checkpoint there, or the one named is broken.
    """
    path = Path(path)
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
        f"{path}: holds no checkpoint; give a run's folder, its {CHECKPOINTS} folder, or one step_N folder"
    )


def check_same_vocabulary(checkpoint: Path, rows: ShardedRows) -> None:
    """Refuse data whose ids mean other tokens than those the checkpoint was trained on.

    Raises:
        ValueError: the two vocabularies differ.
    """
    entries = (checkpoint / VOCABULARY).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if vocabulary_hash(entries) != rows.attributes.vocabulary_hash:
        raise ValueError(
            f"data directory {rows.data_dir}: made with another vocabulary ({rows.attributes.vocabulary_size} entries)"
            f" than checkpoint {checkpoint} ({len(entries)} entries); use data made with --vocab {checkpoint}/vocab.txt"
        )


def load_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's `state.json`."""
    return json.loads((checkpoint / STATE).read_text())


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's fp32 weights in the plain layout, on the CPU.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return load_file(checkpoint / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{checkpoint / WEIGHTS}: cannot be read ({error})") from error


def load_model(checkpoint: Path) -> tuple[BertForPreTraining, RunConfig]:
    """The model of a checkpoint, fp32, in evaluation mode, with the configuration it was trained under."""
    config = load_config(checkpoint / CONFIG)
    model = BertForPreTraining(config.model)
    try:
        model.load_state_dict(load_weights(checkpoint))
    except RuntimeError as error:  # torch's words for names or shapes that do not fit
        raise ValueError(f"checkpoint {checkpoint}: {WEIGHTS} does not fit {CONFIG} ({error})") from error
    return model.eval(), config
