"""Tasks for executors, in a module that processes on any node can import."""

import os
import signal
import time
from pathlib import Path


def square(build_dir: Path, task: int) -> None:
    """Write the square of the task number, after a short pause."""
    time.sleep(0.2)
    # `results` may read it at any time, and the process may be killed at any time.
    aside = build_dir / f"{task}.partial"
    aside.write_text(str(task * task))
    aside.rename(build_dir / "out" / f"{task}.txt")


def square_once_released(build_dir: Path, task: int) -> None:
    """The first two tasks do not wait; the others wait for the file `released`."""
    while task > 1 and not (build_dir / "released").exists():
        time.sleep(0.02)
    square(build_dir, task)


def die_at_two(build_dir: Path, task: int) -> None:
    """Task 2 always kills its process."""
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    square(build_dir, task)


def die_once_at_two(build_dir: Path, task: int) -> None:
    """Task 2 kills its process the first time."""
    if task == 2 and not (build_dir / "died").exists():
        (build_dir / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    square(build_dir, task)


def bad_line_at_one(build_dir: Path, task: int) -> None:
    """Task 1 raises ValueError, as for a mistake of the user."""
    _fail_at_one(build_dir, task, ValueError("books/x.txt: line 3:\nnot UTF-8"))


def no_room_at_one(build_dir: Path, task: int) -> None:
    """Task 1 raises OSError, as on a full disk."""
    _fail_at_one(build_dir, task, OSError(28, "No space left on device", "spool/1.txt"))


def bug_at_one(build_dir: Path, task: int) -> None:
    """Task 1 raises an unexpected exception."""
    _fail_at_one(build_dir, task, KeyError("nonesuch"))


def _fail_at_one(build_dir: Path, task: int, error: Exception) -> None:
    """Raise in task 1; those after it wait until then, so that the job of task 1 may start late."""
    if task == 1:
        (build_dir / "failed").touch()
        raise error
    while task > 1 and not (build_dir / "failed").exists():
        time.sleep(0.02)
    square(build_dir, task)


def new_build_dir(folder: Path) -> Path:
    for name in ("out", "done"):
        (folder / name).mkdir(parents=True)
    return folder


def results(build_dir: Path) -> dict[int, int]:
    return {int(path.stem): int(path.read_text()) for path in (build_dir / "out").iterdir()}
