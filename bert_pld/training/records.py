"""Where a run's figures are recorded: `metrics.jsonl`, and DeepSpeed's TensorBoard, W&B, CSV and Comet monitors.

`metrics.jsonl` has one JSON object a line, for each logging step and for each evaluation. DeepSpeed's monitors only
append. A run that resumes from an earlier step would record the later steps twice, and write a second header into each
CSV file. So the later steps are removed first, and W&B is told that it is the same run.

Only the monitors import other packages, so `python -m bert_pld.status` starts at once.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pld.files import finite, write_atomically

if TYPE_CHECKING:
    from bert_pld.config import RunConfig

Record = dict[str, Any]
_EVALUATION_KEY = "eval_mlm_loss"
WANDB_RUN_ID = "wandb_run_id"


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line. NaN and infinity, which JSON lacks, become null."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(finite(record)) + "\n")


def read_metrics(path: Path, newest: int | None = None) -> tuple[list[Record], list[Record]]:
    """Read the records of logging steps and those of evaluations, both in the order of their steps.

    At most `newest` records of each kind are read, from the end of the file; by default all. If a step was trained
    again after a restart, its newest record is returned. A last line without its newline is left out: it is still being
    written, or was cut off by a kill. Any other damaged line raises a ValueError that names file and line.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    training: dict[int, Record] = {}
    evaluations: dict[int, Record] = {}
    for number in range(len(lines), 0, -1):
        line = lines[number - 1]
        kind = evaluations if f'"{_EVALUATION_KEY}"'.encode() in line else training
        if newest is not None and len(kind) == newest:
            if len(training) == len(evaluations):
                break
            continue
        record = _parse(line)
        if record is None:
            text = line[:60].decode(errors="replace")
            raise ValueError(f"{path}, line {number}: not a line of metrics ({text!r})")
        kind.setdefault(record["step"], record)
    return [training[step] for step in sorted(training)], [evaluations[step] for step in sorted(evaluations)]


def drop_records_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, and damaged lines, from a file that may be missing."""
    if not path.exists():
        return
    records = ((line, _parse(line)) for line in path.read_bytes().split(b"\n"))
    kept = [line.decode("utf-8") for line, record in records if record is not None and record["step"] <= step]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def has_evaluation(path: Path, step: int) -> bool:
    """Return whether a file, which may be missing, has the evaluation after a step."""
    return path.exists() and any(record["step"] == step for record in read_metrics(path)[1])


def _parse(line: bytes) -> Record | None:
    """Return a line's record, or None for a damaged line; values but that of `phase` are numbers or None."""
    try:
        record = json.loads(line)
        record["step"] = int(record["step"])
        for key, value in record.items():
            if key != "phase" and value is not None and not math.isfinite(value):
                record[key] = None  # as `append_record` writes it
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return record


class Monitors:
    """The enabled monitors, on rank 0; by default, TensorBoard and CSV write to the run's folder."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        from bert_pld.config import MONITOR_BLOCKS

        blocks = {key: dict(config.deepspeed[key]) for key in MONITOR_BLOCKS if key in config.deepspeed}
        self._master: Any = None
        if not any(block.get("enabled") for block in blocks.values()):
            return
        for key in {"tensorboard", "csv_monitor"} & set(blocks):
            if not blocks[key].get("output_path"):
                blocks[key]["output_path"] = str(run_dir / key)
            blocks[key].setdefault("job_name", run_dir.resolve().name)
        if blocks.get("wandb", {}).get("enabled"):
            _keep_wandb_run(run_dir)
        from deepspeed.monitor.config import get_monitor_config
        from deepspeed.monitor.monitor import MonitorMaster

        self._master = MonitorMaster(get_monitor_config(blocks))

    def write(self, events: list[tuple[str, float, int]]) -> None:
        """Write (name, value, samples so far) triples to all monitors."""
        if self._master is not None:
            self._master.write_events(events)

    def drop_after(self, samples: int) -> None:
        """Remove the events after this number of samples, which are about to be trained on again."""
        if self._master is None:
            return
        if self._master.csv_monitor is not None:
            _cut_csv_files(self._master.csv_monitor, samples)
        if self._master.tb_monitor is not None:
            _hide_in_tensorboard(self._master.tb_monitor.summary_writer, samples + 1)


def _cut_csv_files(monitor: Any, samples: int) -> None:
    for path in Path(monitor.log_dir).glob("*.csv"):
        header, *rows = path.read_text().splitlines() or [""]
        kept = [row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= samples]
        write_atomically(path, "".join(f"{line}\n" for line in (header, *kept)))
        monitor.filenames.append(path.stem)  # DeepSpeed writes a header into files that are not in this list


def _hide_in_tensorboard(writer: Any, first_hidden: int) -> None:
    """Write the events of `SummaryWriter(purge_step=…)`, for which DeepSpeed has no setting."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer.file_writer.add_event(Event(step=first_hidden, file_version="brain.Event:2"))
    writer.file_writer.add_event(Event(step=first_hidden, session_log=SessionLog(status=SessionLog.START)))
    writer.flush()


def _keep_wandb_run(run_dir: Path) -> None:
    """Use one W&B run for this folder, however often it is resumed, unless the environment names another."""
    path = run_dir / WANDB_RUN_ID
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8) + "\n")
    os.environ.setdefault("WANDB_RUN_ID", path.read_text().strip())
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_DIR", str(run_dir))
