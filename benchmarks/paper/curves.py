"""A run's held-out loss over samples and over time, and comparisons of two runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.loss_curve import loss_after, time_to
from bert_pld.files import DIVERGED
from bert_pld.plot import read_run

_ROUNDED = ("loss", "accuracy", "theta", "depth")
CLOCKS = {"cpu": "processor_seconds", "gpu": "seconds"}
"""The clock for each device. Runs on a CPU share the machine, so wall-clock time would count the others' work."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of one run, in order, and its totals."""

    samples: list[int]
    seconds: list[float]
    """Training time by the chosen clock, without evaluations and checkpoints."""
    loss: list[float]
    """Held-out MLM loss, nats a masked token, all blocks on."""
    accuracy: list[float]
    tokens: int
    flops: float
    """Executed matrix-product FLOPs in training, by `ModelFlops`."""
    kept_blocks: float
    """Mean number of executed blocks over training."""
    diverged: bool
    logged_samples: list[int] = dataclasses.field(default_factory=list)
    """Samples at which `theta` and `depth` were logged."""
    theta: list[float] = dataclasses.field(default_factory=list)
    depth: list[float] = dataclasses.field(default_factory=list)
    """Mean number of executed blocks since the previous value."""

    def as_json(self) -> dict[str, Any]:
        """All values, rounded to the precision of the measurement."""
        values = dataclasses.asdict(self)
        rounded = {"seconds": [round(t, 2) for t in self.seconds], "kept_blocks": round(self.kept_blocks, 4)}
        return {**values, **rounded, **{key: [round(v, 5) for v in values[key]] for key in _ROUNDED}}


def read_curve(run_dir: Path, clock: str) -> Curve:
    """Read a run's curve by a clock of `CLOCKS`; that of a diverged run is empty.

    Raise ValueError if the run has no metrics or no evaluation.
    """
    if (run_dir / DIVERGED).exists():
        return Curve([], [], [], [], tokens=0, flops=0.0, kept_blocks=0.0, diverged=True)
    run = read_run(run_dir)
    if not run.evaluations or not run.training:
        raise ValueError(f"{run_dir}: has no evaluation yet")
    if lost := [line["step"] for line in run.evaluations if line["eval_mlm_loss"] is None]:
        raise ValueError(f"{run_dir}: the held-out loss after step {lost[0]} is not finite; remove the run")
    flops = before = 0.0
    for line in run.training:
        flops += line["tflops"] * 1e12 * (line["seconds"] - before)
        before = line["seconds"]
    steps = [line["step"] for line in run.training]
    kept = sum(line["kept_blocks"] * (n - m) for line, m, n in zip(run.training, [0, *steps], steps, strict=False))
    return Curve(
        samples=[line["samples"] for line in run.evaluations],
        seconds=[float(line[clock]) for line in run.evaluations],
        loss=[float(line["eval_mlm_loss"]) for line in run.evaluations],
        accuracy=[float(line["eval_mlm_accuracy"]) for line in run.evaluations],
        tokens=run.training[-1]["tokens"],
        flops=flops,
        kept_blocks=kept / steps[-1],
        diverged=False,
        logged_samples=[line["samples"] for line in run.training],
        theta=[line["theta"] for line in run.training],
        depth=[line["kept_blocks"] for line in run.training],
    )


def time_saved(run: Curve, other: Curve) -> float:
    """The share of the other run's time a sample that a run saves, over the whole schedule."""
    return 1.0 - (run.seconds[-1] / run.samples[-1]) / (other.seconds[-1] / other.samples[-1])


def speed_to_loss(run: Curve, other: Curve) -> float | None:
    """The other run's total time over the time until its last loss is reached; None if it is never reached."""
    reached = time_to(other.loss[-1], run.seconds, run.loss)
    return None if reached is None else other.seconds[-1] / reached


def loss_difference(run: Curve, other: Curve) -> float:
    """The difference of the last held-out losses, in nats a masked token."""
    return run.loss[-1] - other.loss[-1]


def loss_difference_at_equal_time(run: Curve, other: Curve) -> float | None:
    """The difference of held-out losses at the end of the faster run; None where a run has no evaluation until then."""
    end = min(run.seconds[-1], other.seconds[-1])
    mine, theirs = (loss_after(end, one.seconds, one.loss) for one in (run, other))
    return None if mine is None or theirs is None else mine - theirs
