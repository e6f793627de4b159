"""Writing checkpoints beside training, and resuming from them with any number of ranks and any ZeRO stage.

A checkpoint stops training only while weights and optimizer state are gathered to the host. Up to three ranks then
write them, each a file, in a thread; when all have written, rank 0 gives the checkpoint its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from bert_pld.checkpoint import format as checkpoint_format
from bert_pld.checkpoint.gather import StateGatherer
from bert_pld.checkpoint.tensor_file import FileSum, NotFiniteError, write_tensors
from bert_pld.checkpoint.zero_state import restore_scalars, scalars_of
from bert_pld.config import ConfigError, RunConfig
from bert_pld.files import CHECKPOINTS, CONFIG, LATEST, PARTIAL, STATE, sync_directory, write_atomically, written_aside

# Bytes a parameter: fp32 weights and Adam's two moments.
_BYTES_PER_PARAMETER = 12


@dataclasses.dataclass
class _Pending:
    """A checkpoint that is being written."""

    step: int
    started: float
    stopped_s: float = 0.0
    """How long training waited for it to be gathered."""
    sums: dict[str, FileSum] = dataclasses.field(default_factory=dict)
    problem: str | None = None
    thread: threading.Thread | None = None


class CheckpointWriter:
    """Saves, prunes and restores the checkpoints of one run; every method is called by all ranks together.

    Args:
        run_dir: the run's folder, on a file system that all ranks share.
        engine: DeepSpeed's.
        config: as it is saved with each checkpoint.
        data_facts: what `state.json` says of the data.
        tokenizer_dir: where the tokenizer's files are copied from.
        group: of all ranks, on the host (gloo); None for a single rank.
    """

    def __init__(
        self,
        run_dir: Path,
        engine: Any,
        config: RunConfig,
        data_facts: dict[str, str],
        tokenizer_dir: Path,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.directory = run_dir / CHECKPOINTS
        self.engine, self.config, self.group = engine, config, group
        self.data_facts = data_facts
        self.tokenizer_dir = tokenizer_dir
        self.is_first = dist.get_rank() == 0
        self.gatherer = StateGatherer(engine, group)
        self._pending: _Pending | None = None
        self._pruning: threading.Thread | None = None

    def begin(self, step: int, counters: dict[str, Any]) -> None:
        """Gather the checkpoint after optimizer step `step` and start writing it; `complete` ends it.

        Raises:
            OSError: there is no room for it, or the one before could not be written.
        """
        self.complete()
        self._check_room()
        self._pending = pending = _Pending(step, started=time.perf_counter())
        mine: dict[str, dict[str, np.ndarray]] = {}
        for number, kind in enumerate(self.gatherer.kinds()):
            gathered = self.gatherer.gather(kind, to=number % dist.get_world_size())
            if gathered is not None:
                mine[checkpoint_format.tensor_file(kind)] = gathered
        ours = self._own_files(step, counters) if self.is_first else {}
        pending.stopped_s = time.perf_counter() - pending.started
        pending.thread = threading.Thread(target=self._write, args=(pending, mine, ours), daemon=True)
        pending.thread.start()

    @property
    def written(self) -> bool:
        """Whether a checkpoint is under way and this rank's share of it is on the disk."""
        return self._pending is not None and self._pending.thread is not None and not self._pending.thread.is_alive()

    def complete(self) -> str | None:
        """Wait until all ranks have written, give the checkpoint its name, move `latest`, prune to the newest N.

        Returns:
            What was written, for the log; None where nothing was under way.

        Raises:
            OSError: a write failed; what was written of it is removed, earlier checkpoints are untouched.
            ValueError: the weights are not finite.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        assert pending.thread is not None
        pending.thread.join()
        name = checkpoint_format.checkpoint_name(pending.step)
        final, aside = self.directory / name, self._aside(pending.step)
        problem, sums = self._all_outcomes(pending)
        if problem is None:
            problem = self._first_problem(self._publish(aside, final, sums) if self.is_first else None)
        if problem is not None:
            if self.is_first:
                shutil.rmtree(aside, ignore_errors=True)
            if "not finite" in problem:
                raise ValueError(f"checkpoint {final} was not kept: {problem}; {self._what_stays()}")
            raise OSError(f"checkpoint {final} could not be written ({problem}); {self._what_stays()}")
        size = sum(entry.bytes for entry in sums.values())
        seconds = time.perf_counter() - pending.started
        return (
            f"step {pending.step}  checkpoint {name} written: {size / 1e6:,.1f} MB, whole after {seconds:.2f} s,"
            f" of which training stopped for {pending.stopped_s:.2f} s"
        )

    def restore(self, checkpoint: Path) -> dict[str, Any]:
        """Load weights, optimizer, scheduler, loss scale and counters; return `state.json`.

        The model must have been given the checkpoint's weights before the engine was made of it.

        Raises:
            ConfigError: it does not hold what resuming needs.
            ValueError: its tensors do not fit the model.
        """
        state = checkpoint_format.load_state(checkpoint)
        if "engine" not in state:
            raise ConfigError(
                f"checkpoint {checkpoint}: {STATE} has no 'engine'; its weights can be evaluated, exported and"
                " started from (--initialize_from), but a run cannot go on from it"
            )
        self.gatherer.scatter({kind: checkpoint / checkpoint_format.tensor_file(kind) for kind in state["tensors"]})
        restore_scalars(self.engine, self.gatherer.pieces, state["engine"], state["step"])
        return state

    def close(self) -> None:
        """Wait for the removal of old checkpoints."""
        if self._pruning is not None:
            self._pruning.join()

    def _aside(self, step: int) -> Path:
        return self.directory / f".{checkpoint_format.checkpoint_name(step)}{PARTIAL}"

    def _own_files(self, step: int, counters: dict[str, Any]) -> dict[str, bytes]:
        """The small files, all but the checksums."""
        state = {
            "step": step,
            **self.data_facts,
            **counters,
            "tensors": self.gatherer.kinds(),
            "engine": scalars_of(self.engine, self.gatherer.pieces),
        }
        contents = {CONFIG: self.config.as_json(), STATE: state}
        made = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in contents.items()}
        return made | {name: (self.tokenizer_dir / name).read_bytes() for name in checkpoint_format.TOKENIZER_FILES}

    def _write(self, pending: _Pending, tensors: dict[str, dict[str, np.ndarray]], small: dict[str, bytes]) -> None:
        """In a thread: this rank's files, flushed to the disk."""
        aside = self._aside(pending.step)
        try:
            if tensors or small:
                aside.mkdir(parents=True, exist_ok=True)
            for name, arrays in tensors.items():
                pending.sums[name] = write_tensors(aside / name, arrays)
            for name, content in small.items():
                with written_aside(aside / name) as file:
                    file.write(content)
                pending.sums[name] = FileSum(len(content), hashlib.sha256(content).hexdigest())
        except (OSError, NotFiniteError) as error:
            pending.problem = str(error)
        except BaseException as error:  # a thread's exception would be lost, and the checkpoint taken for whole
            pending.problem = f"{type(error).__name__}: {error}"

    def _all_outcomes(self, pending: _Pending) -> tuple[str | None, dict[str, FileSum]]:
        """The first rank's problem, and every file that any rank has written."""
        outcomes: list[Any] = [(pending.problem, pending.sums)]
        if self.group is not None:
            outcomes = [None] * dist.get_world_size()
            dist.all_gather_object(outcomes, (pending.problem, pending.sums), group=self.group)
        problems = (f"rank {rank}: {text}" for rank, (text, _) in enumerate(outcomes) if text is not None)
        return next(problems, None), {name: entry for _, sums in outcomes for name, entry in sums.items()}

    def _publish(self, aside: Path, final: Path, sums: dict[str, FileSum]) -> str | None:
        """Rank 0: from written files to a checkpoint; returns what went wrong."""
        try:
            for name, entry in sums.items():
                seen = (aside / name).stat().st_size if (aside / name).exists() else -1
                if seen != entry.bytes:
                    return f"{name} is not there as written; all nodes must share the file system of --output_dir"
            checkpoint_format.write_checksums(aside, {name: dataclasses.asdict(entry) for name, entry in sums.items()})
            sync_directory(aside)
            if final.exists():  # a broken one that was skipped when the run resumed
                shutil.rmtree(final)
            os.replace(aside, final)
            sync_directory(self.directory)
            write_atomically(self.directory / LATEST, final.name + "\n")
            self._prune()
        except OSError as error:
            return str(error)
        return None

    def _prune(self) -> None:
        """Hide what is too old at once, remove it beside training."""
        self.close()
        doomed = []
        for old in checkpoint_format.list_checkpoints(self.directory)[self.config.training.keep_checkpoints :]:
            doomed.append(old.with_name(f".{old.name}{checkpoint_format.PRUNED}"))
            os.replace(old, doomed[-1])
        self._pruning = threading.Thread(target=_remove, args=(doomed,))
        self._pruning.start()

    def _check_room(self) -> None:
        """Refuse before anything is written, on all ranks together, where the file system lacks the room."""
        problem = None
        if self.is_first:
            self.directory.mkdir(parents=True, exist_ok=True)
            small = sum((self.tokenizer_dir / name).stat().st_size for name in checkpoint_format.TOKENIZER_FILES)
            needed = self.gatherer.total * _BYTES_PER_PARAMETER + small + (1 << 20)
            free = shutil.disk_usage(self.directory).free
            if free < needed:
                problem = f"no space left in {self.directory}: {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed"
        problem = self._first_problem(problem)
        if problem is not None:
            raise OSError(f"{problem}; {self._what_stays()}")

    def _first_problem(self, problem: str | None) -> str | None:
        """Let all ranks know rank 0's problem, so that none waits for one that gave up."""
        told = [problem]
        if self.group is not None:
            dist.broadcast_object_list(told, src=0, group=self.group)
        return told[0]

    def _what_stays(self) -> str:
        kept = checkpoint_format.list_checkpoints(self.directory)
        return f"the previous checkpoint {kept[0].name} stays" if kept else "there is no earlier checkpoint"


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
