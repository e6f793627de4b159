"""An attempt at running tasks on other machines: the datatrove step that runs them, and the notes its driver follows.

    .build/logs/run_reading_task_000/
        notes/00003         of rank 3: lines `begin 17`, `done 17`
        errors/00017.json   what task 17 raised
        stop                made by the driver: no further task is begun
        closed              made by the driver: its jobs have ended
        slurm/              what the jobs printed
        completions/ logs/ stats/ executor.json …   datatrove's own

Rank r of W runs every W-th open task, so that many small tasks need few jobs. Only the file system is shared: appended
notes tell the driver how far a rank is, and, when its job is lost, which task it was in.
"""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from bert_pld.files import write_atomically

Task = Callable[[Path, int], None]

LOGS_FOLDER = "logs"
_NOTES, _ERRORS, _STOP, _CLOSED = "notes", "errors", "stop", "closed"


class Attempt:
    """The folder of an attempt; the same on the driver and on the nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begun(cls, build_dir: Path, stage: str) -> Attempt:
        """A new attempt at a stage."""
        logs = build_dir / LOGS_FOLDER
        logs.mkdir(exist_ok=True)
        folder = logs / f"{stage}_{sum(1 for _ in logs.glob(f'{stage}_*')):03d}"
        for part in (folder, folder / _NOTES, folder / _ERRORS):
            part.mkdir()
        return cls(folder)

    def note(self, rank: int, word: str, task: int) -> None:
        """Append to a rank's notes."""
        with open(self.folder / _NOTES / f"{rank:05d}", "a", encoding="ascii") as file:
            file.write(f"{word} {task}\n")

    def done_by(self, rank: int) -> set[int]:
        """The tasks that a rank has done, when its job begins again."""
        with suppress(FileNotFoundError):
            lines = (self.folder / _NOTES / f"{rank:05d}").read_text(encoding="ascii").splitlines()
            return {int(line.split()[1]) for line in lines if line.startswith("done ")}
        return set()

    def stop(self) -> None:
        """Let no further task be begun."""
        (self.folder / _STOP).touch()

    def close(self) -> None:
        """Say that its jobs have ended."""
        (self.folder / _CLOSED).touch()

    @property
    def stopped(self) -> bool:
        """Whether the driver has given the attempt up; its folder may be gone then."""
        return (self.folder / _STOP).exists() or not self.folder.is_dir()

    def write_error(self, task: int, error: Exception) -> None:
        """Keep what a task raised, for the driver."""
        content: dict[str, Any] = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        if isinstance(error, ValueError):
            content["type"] = "ValueError"
        elif isinstance(error, OSError):
            content |= {"type": "OSError", "errno": error.errno, "strerror": error.strerror, "file": error.filename}
        write_atomically(self.folder / _ERRORS / f"{task:05d}.json", json.dumps(content, default=str) + "\n")

    def raise_error(self) -> None:
        """Raise what a task raised, if one did.

        Raises:
            ValueError, OSError: as the task raised it.
            RuntimeError: anything else, with the place of its traceback.
        """
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
    """Those whose driver did not see them end."""
    folders = sorted((build_dir / LOGS_FOLDER).glob("*"))
    return [Attempt(folder) for folder in folders if not (folder / _CLOSED).exists()]


class Notes:
    """The driver's reading of all ranks' notes."""

    def __init__(self, attempt: Attempt, ranks: int) -> None:
        self._folder = attempt.folder / _NOTES
        self._read = dict.fromkeys(range(ranks), 0)
        self._current: dict[int, int] = {}

    def newly_done(self) -> list[int]:
        """The tasks done since the last call; one may come twice if its job began again."""
        look_again(self._folder)
        done = []
        for rank, start in self._read.items():
            try:
                with open(self._folder / f"{rank:05d}", "rb") as file:
                    file.seek(start)
                    data = file.read()
            except FileNotFoundError:
                continue
            data = data[: data.rfind(b"\n") + 1]
            self._read[rank] = start + len(data)
            for line in data.decode("ascii").splitlines():
                word, task = line.split()
                if word == "begin":
                    self._current[rank] = int(task)
                else:
                    self._current.pop(rank, None)
                    done.append(int(task))
        return done

    @property
    def in_progress(self) -> list[int]:
        """Tasks that are begun and not done; of jobs that ended, those they were lost in."""
        return sorted(self._current.values())


def look_again(folder: Path) -> None:
    """Change a folder, so that a network file system asks its server what others changed in it."""
    with tempfile.NamedTemporaryFile(prefix=".", dir=folder):
        pass


class RunTasks(PipelineStep):
    """A whole datatrove pipeline: `function(build_dir, task)` for a rank's share of the open tasks."""

    type = "TASKS"
    name = "data_prep"

    def __init__(self, function: Task, build_dir: Path, open_tasks: Sequence[int], attempt_dir: Path) -> None:
        super().__init__()
        self.function, self.build_dir, self.open_tasks = function, build_dir, list(open_tasks)
        self.attempt_dir = attempt_dir

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Run the tasks of a rank one after another, noting each.

        Raises:
            Exception: what a task raised; it is kept for the driver.
        """
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
