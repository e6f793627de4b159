"""Print the progress of runs, read from their folders: one line for each run.

python -m bert_pld.status runs/*

Reading does not disturb a run: nothing is written, and the lock on `run.lock` is queried, never acquired. Times are
the modification times of files, so a run on any machine that shares the folder can be watched. Only ages are computed
with this machine's clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import re
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from bert_pld.cli import EXIT_ERROR, make_parser, run
from bert_pld.files import CHECKPOINTS, CONFIG, DIVERGED, METRICS, RUN_LOCK, STATE, boot_id
from bert_pld.training.records import Record, read_metrics

_CHECKPOINT_NAME = re.compile(r"step_(\d+)")
_RECENT_RECORDS = 20
"""Number of logging steps over which the speed is measured."""
_LOCK_TIMEOUT_S = 90.0
"""The holder of `run.lock` writes to it every 5 s, but a network file system may show content that is a minute old."""
_FLOCK = "hhqqi0q"
"""`struct flock` of 64-bit Linux: type, whence, start, length, process."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        "bert_pld.status",
        "Print one line a run: its state, step, losses, speed, time left and last checkpoint.",
        "python -m bert_pld.status runs/base runs/baseline",
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run (its --output_dir)")
    parser.add_argument("--json", action="store_true", help="print a JSON list with one object a run")
    return parser


def main(options: argparse.Namespace) -> int:
    """Print one line a run; a folder that cannot be read gives a line on stderr and exit code 1."""
    runs, code = [], 0
    for run_dir in options.run_dirs:
        try:
            runs.append(read_progress(run_dir))
        except (ValueError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            code = EXIT_ERROR
    if options.json:
        print(json.dumps([dataclasses.asdict(progress) for progress in runs], indent=2))
    else:
        for progress in runs:
            print(progress_line(progress))
    return code


def progress_line(progress: Progress) -> str:
    """Return a run's progress as one line."""
    parts = [f"{progress.run_dir}: {_state_text(progress)}", f"step {progress.step:,}"]
    if progress.max_steps is not None:
        parts[-1] += f"/{progress.max_steps:,}"
    if progress.phase is not None:
        parts[-1] += f" ({progress.phase})"
    if progress.theta is None:
        parts.append("no metrics yet")
    else:
        parts.append("loss not finite" if progress.loss is None else f"loss {progress.loss:.4f}")
    if progress.eval_mlm_loss is not None:
        parts.append(f"held-out {progress.eval_mlm_loss:.4f} (step {progress.eval_step:,})")
    if progress.theta is not None:
        parts.append(f"θ {progress.theta:.3f}")
    if progress.kept_blocks is not None:
        of_all = "" if progress.num_layers is None else f"/{progress.num_layers}"
        parts.append(f"kept {progress.kept_blocks:.2f}{of_all}")
    if progress.mask_probability_changes and progress.mask_probability is not None:
        parts.append(f"masked {progress.mask_probability:.1%}")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.seconds_left and progress.state != "finished":
        without_pauses = "" if progress.seconds_per_step_includes_pauses else " without pauses"
        parts.append(f"{duration(progress.seconds_left)} left{without_pauses}")
    if progress.checkpoint_step is None:
        parts.append("no checkpoint")
    else:
        assert progress.checkpoint_age_s is not None
        parts.append(f"checkpoint {progress.checkpoint_step:,} ({duration(progress.checkpoint_age_s)} old)")
    return "  ".join(parts)


def _state_text(progress: Progress) -> str:
    since = "" if progress.since_s is None else f" {duration(progress.since_s)} ago"
    host = f" on {progress.host}" if progress.host else ""
    if progress.state == "running":
        return f"running{host}" + (f", last write{since}" if since else "")
    return progress.state + (host if progress.state == "killed" else "") + since


def duration(seconds: float) -> str:
    """Return a duration as text: `42 s`, `7 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@dataclasses.dataclass(frozen=True)
class Progress:
    """A run's progress; None for what its folder does not show."""

    run_dir: str
    state: str
    """`running`, `finished` (the last step has its checkpoint), `diverged` (the loss was not finite), `stopped` (the
    lock was released or never acquired), or `killed` (it was not released)."""
    since_s: float | None
    """Seconds since metrics or a checkpoint were last written."""
    host: str | None
    """Host of a run that is running or was killed."""
    step: int
    """The last one that was logged or saved; a run that a signal stops saves its last step without logging it."""
    max_steps: int | None
    loss: float | None
    eval_mlm_loss: float | None
    eval_step: int | None
    theta: float | None
    kept_blocks: float | None
    num_layers: int | None
    phase: str | None
    """Phase of the learning rate, if it has phases."""
    mask_probability: float | None
    """Share of masked tokens in the last logged step."""
    mask_probability_changes: bool
    tokens_per_s: float | None
    seconds_per_step: float | None
    seconds_per_step_includes_pauses: bool
    """Whether evaluations and checkpoints are included; they are if the time of a checkpoint is known."""
    seconds_left: float | None
    """Remaining steps at that speed, also for a run that is not running."""
    checkpoint_step: int | None
    checkpoint_age_s: float | None


def read_progress(run_dir: Path, now: float | None = None) -> Progress:
    """Read a run's progress from its folder; raise a ValueError if it is no run's folder, or if a file is damaged.

    `now` is in seconds since the epoch, by default from this machine's clock.
    """
    now = time.time() if now is None else now
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such folder; give a run's --output_dir")
    if not any((run_dir / name).exists() for name in (METRICS, CONFIG, RUN_LOCK)):
        raise ValueError(f"{run_dir}: not a run's folder (it has no {METRICS}, {CONFIG} or {RUN_LOCK})")
    config, started = _read_config(run_dir / CONFIG)
    training, evaluation, written = _read_recent_metrics(run_dir / METRICS)
    checkpoints = _read_checkpoints(run_dir / CHECKPOINTS)
    last = training[-1] if training else {}
    step = max(int(last.get("step", 0)), *checkpoints, 0)
    max_steps = _integer(config, "training", "max_steps", run_dir)
    state, host = _state(run_dir / RUN_LOCK, now)
    newest = max(checkpoints, default=None)
    if state != "running" and max_steps is not None and newest is not None and newest >= max_steps:
        state = "finished"
    elif state == "stopped" and (run_dir / DIVERGED).exists():
        state = "diverged"
    last_writes = [moment for moment in (written, *checkpoints.values()) if moment is not None]
    per_step, with_pauses = _seconds_per_step(training, written, checkpoints, started)
    return Progress(
        run_dir=str(run_dir),
        state=state,
        since_s=max(0.0, now - max(last_writes)) if last_writes else None,
        host=host,
        step=step,
        max_steps=max_steps,
        loss=last.get("loss"),
        eval_mlm_loss=evaluation.get("eval_mlm_loss"),
        eval_step=evaluation.get("step"),
        theta=last.get("theta"),
        kept_blocks=last.get("kept_blocks"),
        num_layers=_integer(config, "model", "num_layers", run_dir),
        phase=last.get("phase"),
        mask_probability=last.get("mask_probability"),
        mask_probability_changes=_mask_probability_changes(config),
        tokens_per_s=last.get("tokens_per_s"),
        seconds_per_step=per_step,
        seconds_per_step_includes_pauses=with_pauses,
        seconds_left=None if per_step is None or max_steps is None else max(0, max_steps - step) * per_step,
        checkpoint_step=newest,
        checkpoint_age_s=None if newest is None else max(0.0, now - checkpoints[newest]),
    )


def _read_config(path: Path) -> tuple[dict[str, Any], float | None]:
    """Return the run's configuration and the time of the run's last start, which writes the file anew."""
    try:
        config, started = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: must be a JSON object, is a {type(config).__name__}")
    return config, started


def _integer(config: dict[str, Any], block: str, key: str, run_dir: Path) -> int | None:
    if not config:
        return None
    value = config[block].get(key) if isinstance(config.get(block), dict) else None
    if not isinstance(value, int):
        raise ValueError(f"{run_dir / CONFIG}: {block}.{key}: {value!r}; must be an integer")
    return value


def _mask_probability_changes(config: dict[str, Any]) -> bool:
    data = config.get("data")
    return isinstance(data, dict) and isinstance(data.get("mask_probability"), dict)


def _read_recent_metrics(path: Path) -> tuple[list[Record], Record, float | None]:
    """Return the last logging steps, oldest first, the last evaluation, and the time of the last write."""
    try:
        training, evaluations = read_metrics(path, newest=_RECENT_RECORDS)
        written = path.stat().st_mtime
    except FileNotFoundError:
        return [], {}, None
    return training, evaluations[-1] if evaluations else {}, written if training or evaluations else None


def _read_checkpoints(directory: Path) -> dict[int, float]:
    """Return the step of each complete checkpoint with the time at which it was gathered."""
    found = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _CHECKPOINT_NAME.fullmatch(path.name)
        try:
            if match:
                found[int(match[1])] = (path / STATE).stat().st_mtime
        except OSError:  # pruned meanwhile, or damaged, which the run itself reports
            continue
    return found


def _seconds_per_step(
    training: list[Record], written: float | None, checkpoints: dict[int, float], started: float | None
) -> tuple[float | None, bool]:
    """Return recent wall-clock seconds a step, and whether evaluations and checkpoints count."""
    # Checkpoints from before the last start do not count: the time between includes the run's absence.
    recent = sorted(step for step, moment in checkpoints.items() if started is None or moment > started)
    if len(recent) > 1:
        return (checkpoints[recent[-1]] - checkpoints[recent[0]]) / (recent[-1] - recent[0]), True
    if recent and training and written is not None and training[-1]["step"] > recent[0]:
        return (written - checkpoints[recent[0]]) / (training[-1]["step"] - recent[0]), True
    # The `seconds` of metrics are seconds of training alone, and a resumed run continues their sum.
    training = [record for record in training if record.get("seconds") is not None]
    if not training:
        return None, False
    first, last = (training[0], training[-1]) if len(training) > 1 else ({"step": 0, "seconds": 0.0}, training[0])
    steps = last["step"] - first["step"]
    return ((last["seconds"] - first["seconds"]) / steps if steps > 0 else None), False


def _state(lock: Path, now: float) -> tuple[str, str | None]:
    """Return `running`, `killed` or `stopped`, and the host of the first two."""
    try:
        with open(lock, "rb") as file:
            content, written = file.read(4096), os.fstat(file.fileno()).st_mtime
            held = _is_locked(file.fileno())
    except FileNotFoundError:
        return "stopped", None
    try:
        holder = json.loads(content or b"{}")
    except ValueError:
        holder = {}
    holder = holder if isinstance(holder, dict) else {}
    host = holder.get("host")
    if held:
        return "running", host
    if not content.strip(b"\0 \n"):
        return "stopped", None
    if holder.get("machine") == (boot_id() or socket.gethostname()):
        return "killed", host
    return ("running" if now - written < _LOCK_TIMEOUT_S else "killed"), host


def _is_locked(file: int) -> bool:
    """Return whether the kernel's lock is held, without trying to acquire it."""
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except OSError:  # a file system without locks: the age of the file's content decides
        return False
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK


if __name__ == "__main__":
    run(main, build_parser())
