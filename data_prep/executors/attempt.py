"""One attempt to run tasks on other machines: the datatrove step that runs them, and the files that report on them.

    .build/logs/run_reading_task_000/
        notes/00003         written by rank 3: lines `begin 17`, `done 17`
        errors/00017.json   the exception of task 17
        stop                written by the driver: ranks begin no further task
        closed              written by the driver: all jobs of the attempt have ended
        slurm/              output of the Slurm jobs
        completions/ logs/ stats/ executor.json …   datatrove's own files

The driver is the process of `python -m data_prep build`. Rank r of W runs every W-th open task, so that many small
tasks need few jobs. Driver and ranks share only a file system. The notes tell the driver which tasks a rank has done
and, when a job is lost, which task it was running.
"""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from bert_pld.files import write_atomically
from data_prep.executors import Task

LOGS_FOLDER = "logs"
_NOTES, _ERRORS, _STOP, _CLOSED = "notes", "errors", "stop", "closed"


class Attempt:
    """The folder of an attempt, as the driver and the ranks use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, build_dir: Path, stage: str) -> Attempt:
        """Make the folder of a new attempt at a stage."""
        logs = build_dir / LOGS_FOLDER
        logs.mkdir(exist_ok=True)
        folder = logs / f"{stage}_{sum(1 for _ in logs.glob(f'{stage}_*')):03d}"
        for part in (folder, folder / _NOTES, folder / _ERRORS):
            part.mkdir()
        return cls(folder)

    def note(self, rank: int, event: str, task: int) -> None:
        """Append a line to a rank's notes."""
        with open(self.folder / _NOTES / f"{rank:05d}", "a", encoding="ascii") as file:
            file.write(f"{event} {task}\n")

    def done_by(self, rank: int) -> set[int]:
        """Return the tasks that a rank has done; a requeued job uses it to skip them."""
        with suppress(FileNotFoundError):
            lines = (self.folder / _NOTES / f"{rank:05d}").read_text(encoding="ascii").splitlines()
            return {int(line.split()[1]) for line in lines if line.startswith("done ")}
        return set()

    def stop(self) -> None:
        """Tell all ranks to begin no further task."""
        (self.folder / _STOP).touch()

    def close(self) -> None:
        """Record that all jobs of the attempt have ended."""
        (self.folder / _CLOSED).touch()

    @property
    def stopped(self) -> bool:
        """Whether the driver has stopped the attempt; its folder may have been removed since."""
        return (self.folder / _STOP).exists() or not self.folder.is_dir()

    def write_error(self, task: int, error: Exception) -> None:
        """Write the exception of a task for the driver."""
        kind = "ValueError" if isinstance(error, ValueError) else type(error).__name__
        content: dict[str, Any] = {"type": kind, "message": str(error), "traceback": traceback.format_exc()}
        if kind != "ValueError" and isinstance(error, OSError):
            content |= {"type": "OSError", "errno": error.errno, "strerror": error.strerror, "file": error.filename}
        write_atomically(self.folder / _ERRORS / f"{task:05d}.json", json.dumps(content, default=str) + "\n")

    def raise_error(self) -> None:
        """Raise the ValueError or OSError of a task again; raise RuntimeError with the file for any other exception."""
        paths = sorted((self.folder / _ERRORS).glob("*.json"))
        if not paths:
            return
        content = json.loads(paths[0].read_text(encoding="utf-8"))
        if content["type"] == "ValueError":
            raise ValueError(content["message"])
        if content["type"] == "OSError" and content["errno"] is not None and content["strerror"] is not None:
            raise OSError(content["errno"], content["strerror"], content["file"])
        if content["type"] == "OSError":
            raise OSError(content["message"])
        raise RuntimeError(f"task {int(paths[0].stem)}: {content['type']}: {content['message']} (see {paths[0]})")


def open_attempts(build_dir: Path) -> list[Attempt]:
    """Return the attempts that no driver has closed."""
    folders = sorted((build_dir / LOGS_FOLDER).glob("*"))
    return [Attempt(folder) for folder in folders if not (folder / _CLOSED).exists()]


class NotesReader:
    """Reads the notes of all ranks for the driver, each line once."""

    def __init__(self, attempt: Attempt, ranks: int) -> None:
        self._folder = attempt.folder / _NOTES
        self._offsets = dict.fromkeys(range(ranks), 0)
        self._current: dict[int, int] = {}

    def newly_done(self) -> list[int]:
        """Return the tasks done since the last call; a task of a requeued job may come twice."""
        refresh_folder(self._folder)
        done = []
        for rank, start in self._offsets.items():
            try:
                with open(self._folder / f"{rank:05d}", "rb") as file:
                    file.seek(start)
                    data = file.read()
            except FileNotFoundError:
                continue
            data = data[: data.rfind(b"\n") + 1]  # the last line may be incomplete
            self._offsets[rank] = start + len(data)
            for line in data.decode("ascii").splitlines():
                event, task = line.split()
                if event == "begin":
                    self._current[rank] = int(task)
                else:
                    self._current.pop(rank, None)
                    done.append(int(task))
        return done

    @property
    def in_progress(self) -> list[int]:
        """Tasks that have begun and are not done. Once all jobs have ended, these are the tasks of lost jobs."""
        return sorted(self._current.values())


def refresh_folder(folder: Path) -> None:
    """Change a folder, so that a network file system fetches the changes of other machines from its server."""
    with tempfile.NamedTemporaryFile(prefix=".", dir=folder):
        pass


class RunTasks(PipelineStep):
    """A datatrove pipeline of one step, which runs `function(build_dir, task)` for a rank's share of the open tasks."""

    type = "TASKS"
    name = "data_prep"

    def __init__(self, function: Task, build_dir: Path, open_tasks: Sequence[int], attempt_dir: Path) -> None:
        super().__init__()
        self.function, self.build_dir, self.open_tasks = function, build_dir, list(open_tasks)
        self.attempt_dir = attempt_dir

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Run the tasks of a rank one after another, and note each; an exception is also written for the driver."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        attempt = Attempt(self.attempt_dir)
        done = attempt.done_by(rank)
        for task in self.open_tasks[rank::world_size]:
            if attempt.stopped:
                break
            if task in done:
                continue
            attempt.note(rank, "begin", task)
            try:
                self.function(self.build_dir, task)
            except Exception as error:
                attempt.write_error(task, error)
                raise
            attempt.note(rank, "done", task)
            self.stat_update("tasks")
        yield from ()
