"""Print the progress of runs, read from their folders: one line for each run.

python -m bert_pld.status runs/*
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from bert_pld.cli import EXIT_ERROR, make_parser, run
from bert_pld.training.progress import Progress, read_progress


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


if __name__ == "__main__":
    run(main, build_parser())
