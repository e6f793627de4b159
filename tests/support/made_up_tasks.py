"""Tasks for executors to run, importable by a process on any node."""

import os
import signal
import time
from pathlib import Path


def square(build_dir: Path, task: int) -> None:
    """Leave the task's square, a little slowly."""
    time.sleep(0.2)
    (build_dir / "out" / f"{task}.txt").write_text(str(task * task))


def die_at_two(build_dir: Path, task: int) -> None:
    """Task 2 takes its process with it, always."""
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    square(build_dir, task)


def die_once_at_two(build_dir: Path, task: int) -> None:
    """Task 2 takes its process with it, the first time."""
    if task == 2 and not (build_dir / "died").exists():
        (build_dir / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    square(build_dir, task)


def bad_line_at_one(build_dir: Path, task: int) -> None:
    """Task 1 finds a user's mistake."""
    if task == 1:
        raise ValueError("books/x.txt: line 3:\nnot UTF-8")
    square(build_dir, task)


def no_room_at_one(build_dir: Path, task: int) -> None:
    """Task 1 finds the disk full."""
    if task == 1:
        raise OSError(28, "No space left on device", "spool/1.txt")
    square(build_dir, task)


def bug_at_one(build_dir: Path, task: int) -> None:
    """Task 1 fails as it should not."""
    if task == 1:
        raise KeyError("nonesuch")
    square(build_dir, task)


def new_build_dir(folder: Path) -> Path:
    for name in ("out", "done"):
        (folder / name).mkdir(parents=True)
    return folder


def results(build_dir: Path) -> dict[int, int]:
    return {int(path.stem): int(path.read_text()) for path in (build_dir / "out").iterdir()}
