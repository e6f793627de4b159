"""Saving checkpoints while training continues, and restoring them with any number of ranks and any ZeRO stage.

Training pauses only while weights and optimizer states are gathered to the host. Threads on up to three ranks then
write them, one file each. When all files are on the disk, rank 0 renames the folder to its final name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from bert_pld.checkpoint import format as checkpoint_format
from bert_pld.checkpoint.gather import StateGatherer
from bert_pld.checkpoint.safetensors_file import FileChecksum, NonFiniteTensorError, write_tensors
from bert_pld.checkpoint.zero_state import read_scalars, restore_scalars
from bert_pld.config import ConfigError, RunConfig, load_config
from bert_pld.files import (
    CHECKPOINTS,
    CONFIG,
    LATEST,
    PARTIAL,
    STATE,
    sync_directory,
    tokenizer_files,
    write_atomically,
    written_aside,
)

_BYTES_PER_VALUE = 4
"""Weights and states are saved in fp32."""


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Why a checkpoint was not saved, in a form that ranks can send to each other."""

    text: str
    is_non_finite: bool = False


@dataclasses.dataclass
class _Pending:
    """A checkpoint that is being written."""

    step: int
    started: float
    paused_s: float = 0.0
    """How long training waited for the gathering."""
    checksums: dict[str, FileChecksum] = dataclasses.field(default_factory=dict)
    """The files that this rank has written."""
    failure: _Failure | None = None
    thread: threading.Thread | None = None


class CheckpointWriter:
    """Saves, prunes and restores the checkpoints of one run; all ranks call each method together.

    All ranks share the file system of `run_dir`, which holds the tokenizer's files. `data_facts` are the entries of
    `state.json` that identify the data. `group` is a gloo group of all ranks for small objects, None for a single rank.
    """

    def __init__(
        self, run_dir: Path, engine: Any, config: RunConfig, data_facts: dict[str, Any], group: dist.ProcessGroup | None
    ) -> None:
        self.run_dir, self.directory = run_dir, run_dir / CHECKPOINTS
        self.engine, self.config, self.data_facts, self.group = engine, config, data_facts, group
        self.is_rank_0 = dist.get_rank() == 0
        self.gatherer = StateGatherer(engine, group)
        self._pending: _Pending | None = None
        self._pruning: threading.Thread | None = None

    def begin(self, step: int, counters: dict[str, Any]) -> None:
        """Gather the checkpoint after optimizer step `step` and start writing it; `complete` finishes it.

        An OSError is raised if the disk has no room for it, or if the previous checkpoint could not be written.
        """
        self.complete()
        kinds, scalars = self.gatherer.states()
        self._check_room(kinds)
        self._pending = pending = _Pending(step, started=time.perf_counter())
        tensors: dict[str, dict[str, np.ndarray]] = {}
        for number, (kind, names) in enumerate(kinds.items()):
            gathered = self.gatherer.gather(kind, names, to_rank=number % dist.get_world_size())
            if gathered is not None:
                tensors[checkpoint_format.tensor_file(kind)] = gathered
        state = {"tensors": list(kinds), "engine": read_scalars(self.engine, scalars)}
        small_files = self._small_files({"step": step, **self.data_facts, **counters, **state})
        pending.paused_s = time.perf_counter() - pending.started
        pending.thread = threading.Thread(target=self._write, args=(pending, tensors, small_files), daemon=True)
        pending.thread.start()

    @property
    def pending_step(self) -> int | None:
        """The step of the pending checkpoint, if any."""
        return None if self._pending is None else self._pending.step

    @property
    def written(self) -> bool:
        """Whether a checkpoint is pending and this rank's files of it are on the disk."""
        return self._pending is not None and self._pending.thread is not None and not self._pending.thread.is_alive()

    def complete(self) -> str | None:
        """Wait until all ranks have written the pending checkpoint, publish it, and prune to the newest N.

        Returns a line for the log, or None if no checkpoint was pending. An OSError or a NonFiniteTensorError is raised
        if it could not be written; its files are removed, and earlier checkpoints are unchanged.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        assert pending.thread is not None
        pending.thread.join()
        name = checkpoint_format.checkpoint_name(pending.step)
        final, partial = self.directory / name, self._partial(pending.step)
        failure, checksums = self._gather_outcomes(pending)
        if failure is None:
            failure = self._broadcast(self._publish(partial, final, checksums) if self.is_rank_0 else None)
        if failure is not None:
            if self.is_rank_0:
                shutil.rmtree(partial, ignore_errors=True)
            error = NonFiniteTensorError if failure.is_non_finite else OSError
            raise error(f"checkpoint {final} could not be written ({failure.text}); {self._what_remains()}")
        megabytes = sum(entry.bytes for entry in checksums.values()) / 1e6
        seconds = time.perf_counter() - pending.started
        return (
            f"step {pending.step}  checkpoint {name} written: {megabytes:,.1f} MB, complete after {seconds:.2f} s,"
            f" training paused for {pending.paused_s:.2f} s"
        )

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Restore the optimizer's weights and states, scheduler, loss scale and counters; return `state.json`.

        The model must have had the checkpoint's weights before the engine was made from it. A ValueError is raised if
        the checkpoint holds no state of an engine, or if its tensors do not fit the model.
        """
        state = checkpoint_format.load_state(checkpoint)
        if "engine" not in state:
            raise ConfigError(
                f"checkpoint {checkpoint}: {STATE} has no 'engine', so a run cannot resume from it; its weights can"
                " be evaluated, exported, or used with --initialize_from"
            )
        try:
            self.gatherer.load({kind: checkpoint / checkpoint_format.tensor_file(kind) for kind in state["tensors"]})
            restore_scalars(
                self.engine, self.gatherer.pieces, state["engine"], state["step"], self._has_rates_of(checkpoint)
            )
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            raise ConfigError(
                f"checkpoint {checkpoint}: {STATE} does not describe this optimizer ({error!r})"
            ) from error
        return state

    def _has_rates_of(self, checkpoint: Path) -> bool:
        """Whether this run has the learning-rate schedule of the checkpoint's run."""
        before = load_config(checkpoint / CONFIG, use="checkpoint")
        keys = ("scheduler", "optimizer")
        same = [before.deepspeed.get(key) == self.config.deepspeed.get(key) for key in keys]
        return all(same) and before.training.max_steps == self.config.training.max_steps

    def close(self) -> None:
        """Wait until old checkpoints are removed."""
        if self._pruning is not None:
            self._pruning.join()

    def _partial(self, step: int) -> Path:
        return self.directory / f".{checkpoint_format.checkpoint_name(step)}{PARTIAL}"

    def _small_files(self, state: dict[str, Any]) -> dict[str, bytes]:
        """Return on rank 0 the contents of the JSON and tokenizer files, without the checksums."""
        if not self.is_rank_0:
            return {}
        objects = {CONFIG: self.config.as_json(), STATE: state}
        files = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in objects.items()}
        return files | {path.name: path.read_bytes() for path in tokenizer_files(self.run_dir)}

    def _write(self, pending: _Pending, tensors: dict[str, dict[str, np.ndarray]], small: dict[str, bytes]) -> None:
        """Write this rank's files and flush them to the disk; runs in a thread."""
        partial = self._partial(pending.step)
        try:
            if tensors or small:
                partial.mkdir(parents=True, exist_ok=True)
            for name, arrays in tensors.items():
                pending.checksums[name] = write_tensors(partial / name, arrays)
            for name, content in small.items():
                with written_aside(partial / name) as file:
                    file.write(content)
                pending.checksums[name] = FileChecksum(len(content), hashlib.sha256(content).hexdigest())
        except (OSError, NonFiniteTensorError) as error:
            pending.failure = _Failure(str(error), isinstance(error, NonFiniteTensorError))
        except BaseException as error:  # A thread's exception is lost, and the checkpoint would count as complete.
            pending.failure = _Failure(f"{type(error).__name__}: {error}")

    def _gather_outcomes(self, pending: _Pending) -> tuple[_Failure | None, dict[str, FileChecksum]]:
        """Return the failure of the lowest rank that has one, and all files that any rank has written."""
        outcomes: list[Any] = [(pending.failure, pending.checksums)]
        if self.group is not None:
            outcomes = [None] * dist.get_world_size()
            dist.all_gather_object(outcomes, (pending.failure, pending.checksums), group=self.group)
        failures = (
            dataclasses.replace(failure, text=f"rank {rank}: {failure.text}")
            for rank, (failure, _) in enumerate(outcomes)
            if failure is not None
        )
        return next(failures, None), {name: entry for _, checksums in outcomes for name, entry in checksums.items()}

    def _publish(self, partial: Path, final: Path, checksums: dict[str, FileChecksum]) -> _Failure | None:
        """On rank 0: rename the complete folder to its final name, update `latest`, and prune."""
        try:
            for name, entry in checksums.items():
                path = partial / name
                if not path.exists() or path.stat().st_size != entry.bytes:
                    return _Failure(f"{name} not found or changed; --output_dir must be on a shared file system")
            contents = {name: dataclasses.asdict(entry) for name, entry in checksums.items()}
            checkpoint_format.write_checksums(partial, contents)
            sync_directory(partial)
            if final.exists():  # A damaged checkpoint that was skipped when the run resumed.
                shutil.rmtree(final)
            os.replace(partial, final)
            sync_directory(self.directory)
            write_atomically(self.directory / LATEST, final.name + "\n")
            self._prune(final)
        except OSError as error:
            return _Failure(str(error))
        return None

    def _prune(self, newest: Path) -> None:
        """Rename the oldest checkpoints at once, and remove them in a thread while training continues.

        Those of steps after the newest one's go, too: the run would have resumed from them if they were not damaged.
        """
        self.close()
        to_delete = []
        found = checkpoint_format.list_checkpoints(self.directory)
        damaged, kept = found[: found.index(newest)], found[found.index(newest) :]
        for old in [*damaged, *kept[self.config.training.keep_checkpoints :]]:
            to_delete.append(old.with_name(f".{old.name}{checkpoint_format.PRUNED}"))
            os.replace(old, to_delete[-1])
        self._pruning = threading.Thread(target=_remove_folders, args=(to_delete,))
        self._pruning.start()

    def _check_room(self, kinds: Mapping[str, list[str]]) -> None:
        """Raise an error on all ranks, before anything is written, if the disk is too full for a checkpoint."""
        failure = None
        if self.is_rank_0:
            self.directory.mkdir(parents=True, exist_ok=True)
            small = sum(path.stat().st_size for path in tokenizer_files(self.run_dir))
            values = sum(math.prod(self.gatherer.shapes[name]) for names in kinds.values() for name in names)
            needed = values * _BYTES_PER_VALUE + small + (1 << 20)
            free = shutil.disk_usage(self.directory).free
            if free < needed:
                text = f"no space left in {self.directory}: {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed"
                failure = _Failure(text)
        failure = self._broadcast(failure)
        if failure is not None:
            raise OSError(f"{failure.text}; {self._what_remains()}")

    def _broadcast(self, failure: _Failure | None) -> _Failure | None:
        """Return rank 0's failure on all ranks, so that none waits for a rank that has given up."""
        objects = [failure]
        if self.group is not None:
            dist.broadcast_object_list(objects, src=0, group=self.group)
        return objects[0]

    def _what_remains(self) -> str:
        kept = checkpoint_format.list_checkpoints(self.directory)
        return f"the previous checkpoint {kept[0].name} is unchanged" if kept else "there is no earlier checkpoint"


def _remove_folders(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
