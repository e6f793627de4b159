"""Writing checkpoints from all ranks at once, and resuming from them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file
from torch import nn

from bert_pld.config import ConfigError, RunConfig, load_config
from bert_pld.data.shards import Manifest, write_atomically
from bert_pld.train import checkpoint as files

# Bytes a parameter at most: fp32 weights (4), DeepSpeed's module (4) and its optimizer's master and moments (12).
_BYTES_PER_PARAMETER = 20

# What a resumed run may change: how it is computed, never what is computed.
_FREE_MODEL_KEYS = ("kernels", "activation_checkpointing", "preset")


class CheckpointWriter:
    """Saves, prunes and restores the checkpoints of one run; every method is called by all ranks together."""

    def __init__(self, run_dir: Path, engine: Any, config: RunConfig, data: Manifest, tokenizer_dir: Path) -> None:
        self.directory = run_dir / files.CHECKPOINTS
        self.engine, self.config = engine, config
        self.data_facts = {"data_source": data.attributes.source, "data_fingerprint": data.fingerprint()}
        self.tokenizer_dir = tokenizer_dir
        self.is_writer = dist.get_rank() == 0

    def save(self, step: int, counters: dict[str, Any]) -> None:
        """Write the checkpoint after optimizer step `step`, move `latest`, prune to the newest N.

        Raises:
            OSError: no room, or the write failed; what was written of it is removed, earlier ones are untouched.
        """
        name = files.checkpoint_name(step)
        final, aside = self.directory / name, self.directory / f".{name}.partial"
        self._check_room()
        if self.is_writer:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier()
        problem = None
        try:
            self.engine.save_checkpoint(str(aside), tag=files.DEEPSPEED, save_latest=False)
            weights = full_weights(self.engine.module)
            if self.is_writer:
                self._write_ours(aside, weights, step, counters)
        except (OSError, RuntimeError) as error:
            problem = str(error)
        problem = _first_problem(problem)
        if problem is not None:
            if self.is_writer:
                shutil.rmtree(aside, ignore_errors=True)
            raise OSError(f"checkpoint {final} could not be written ({problem}); {self._what_stays()}")
        if self.is_writer:
            if final.exists():  # a broken one that was skipped when the run resumed
                shutil.rmtree(final)
            os.replace(aside, final)
            _sync_directory(self.directory)
            write_atomically(self.directory / files.LATEST, name + "\n")
            for old in files.list_checkpoints(self.directory)[self.config.training.keep_checkpoints :]:
                doomed = old.with_name(f".{old.name}.pruned")
                os.replace(old, doomed)
                shutil.rmtree(doomed)
        dist.barrier()

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Load weights, optimizer, scheduler, loss scale and counters; return `state.json`.

        Raises:
            ConfigError: the checkpoint is of another model, PLD block, batch, seed or data.
            ValueError: DeepSpeed cannot load it here (another number of ranks or ZeRO stage).
        """
        self._check_same_run(checkpoint)
        try:
            self.engine.load_checkpoint(str(checkpoint), tag=files.DEEPSPEED)
        except Exception as error:  # DeepSpeed raises what it likes; the reason is passed on
            raise ValueError(
                f"checkpoint {checkpoint}: DeepSpeed cannot load it with {dist.get_world_size()} rank(s) at ZeRO stage"
                f" {self.config.zero_stage} ({error})"
            ) from error
        return files.load_state(checkpoint)

    def _check_same_run(self, checkpoint: Path) -> None:
        saved = load_config(checkpoint / files.CONFIG).as_json()  # keys newer than the checkpoint have their defaults
        present = self.config.as_json()
        for name in _what_defines(present):
            there, here = (_lookup(source, name) for source in (saved, present))
            if there != here:
                raise ConfigError(
                    f"checkpoint {checkpoint} is of another run: {name} is {there!r} there and {here!r} here;"
                    " use another --output_dir, or the same configuration"
                )
        if files.load_state(checkpoint)["data_fingerprint"] != self.data_facts["data_fingerprint"]:
            raise ConfigError(
                f"checkpoint {checkpoint} was trained on other data than --data_dir holds (shards differ)"
            )

    def _write_ours(self, aside: Path, weights: dict[str, torch.Tensor], step: int, counters: dict[str, Any]) -> None:
        save_file(weights, aside / files.WEIGHTS)
        (aside / files.CONFIG).write_text(json.dumps(self.config.as_json(), indent=2) + "\n")
        state = {"step": step, **self.data_facts, **counters}
        (aside / files.STATE).write_text(json.dumps(state, indent=2) + "\n")
        for name in files.TOKENIZER_FILES:
            shutil.copyfile(self.tokenizer_dir / name, aside / name)
        (aside / files.DEEPSPEED / "zero_to_fp32.py").unlink(missing_ok=True)
        (aside / "zero_to_fp32.py").unlink(missing_ok=True)
        files.write_checksums(aside)
        for path in aside.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())

    def _check_room(self) -> None:
        """Refuse before anything is written, on all ranks together, where the file system lacks the room."""
        problem = None
        if self.is_writer:
            self.directory.mkdir(parents=True, exist_ok=True)
            count = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.module.parameters())
            needed, free = count * _BYTES_PER_PARAMETER + (1 << 20), shutil.disk_usage(self.directory).free
            if free < needed:
                problem = f"no space left in {self.directory}: {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed"
        problem = _first_problem(problem)
        if problem is not None:
            raise OSError(f"{problem}; {self._what_stays()}")

    def _what_stays(self) -> str:
        kept = files.list_checkpoints(self.directory)
        return f"the previous checkpoint {kept[0].name} stays" if kept else "there is no earlier checkpoint"


def _what_defines(config: dict[str, Any]) -> list[str]:
    """The keys of a configuration that a resumed run may not change."""
    model = [f"model.{key}" for key in config["model"] if key not in _FREE_MODEL_KEYS]
    drop = [f"progressive_layer_drop.{key}" for key in config["progressive_layer_drop"]]
    data = ["seq_length", "shuffle"]
    if config["data"]["shuffle"] == "blocks":
        data += ["shuffle_block_rows", "shuffle_window_blocks"]
    return [*model, *drop, "training.seed", *(f"data.{key}" for key in data), "train_batch_size"]


def _lookup(config: dict[str, Any], name: str) -> Any:
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def full_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """fp32 weights on the CPU in the plain layout, gathered from whatever ZeRO made of them (a collective call)."""
    weights = {}
    for name, parameter in module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        full = parameter.detach() if full is None else full
        if dist.get_rank() == 0:
            weights[name] = full.detach().float().cpu().contiguous().clone()
    return weights


def _first_problem(problem: str | None) -> str | None:
    """Let all ranks know the first rank's problem, so that none waits for one that gave up."""
    if dist.get_world_size() == 1:
        return problem
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((f"rank {rank}: {text}" for rank, text in enumerate(problems) if text is not None), None)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
