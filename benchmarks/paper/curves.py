"""A run's held-out loss over samples and over time, and what is read off it: alone, and beside another run's."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from benchmarks.loss_curve import loss_after, time_to
from bert_pld.files import DIVERGED
from bert_pld.plot import read_run

_ROUNDED = ("loss", "accuracy", "theta", "depth")
CLOCKS = {"cpu": "processor_seconds", "gpu": "seconds"}
"""What time is, by device. On a CPU runs share a machine, whose wall clock would count the others' work."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Evaluations of one run, in order, and its totals."""

    samples: list[int]
    seconds: list[float]
    """Of the clock chosen; training alone, without evaluations and checkpoints."""
    loss: list[float]
    """Held-out MLM loss, nats a masked token, all blocks on."""
    accuracy: list[float]
    tokens: int
    flops: float
    """Executed in training, of matrix products (`ModelFlops`)."""
    kept_blocks: float
    """Mean over training."""
    diverged: bool
    logged_samples: list[int] = dataclasses.field(default_factory=list)
    """Where `theta` and `depth` were logged."""
    theta: list[float] = dataclasses.field(default_factory=list)
    depth: list[float] = dataclasses.field(default_factory=list)
    """Executed blocks, the mean since the value before."""

    def loss_at(self, seconds: float) -> float | None:
        """The loss after so much time, linear between evaluations; None outside of them."""
        return loss_after(seconds, self.seconds, self.loss)

    def seconds_to(self, loss: float) -> float | None:
        """The time after which the loss is this or lower, linear between evaluations; None if never."""
        return time_to(loss, self.seconds, self.loss)

    def as_json(self) -> dict[str, Any]:
        """All of it, rounded to what is measured."""
        values = dataclasses.asdict(self)
        rounded = {"seconds": [round(t, 2) for t in self.seconds], "kept_blocks": round(self.kept_blocks, 4)}
        return {**values, **rounded, **{key: [round(v, 5) for v in values[key]] for key in _ROUNDED}}


def read_curve(run_dir: Path, clock: str) -> Curve:
    """A run's curve; of one that diverged nothing but that.

    Args:
        run_dir: holds `metrics.jsonl`.
        clock: a value of `CLOCKS`.

    Raises:
        ValueError: no metrics, or without an evaluation.
    """
    if (run_dir / DIVERGED).exists():
        return Curve([], [], [], [], tokens=0, flops=0.0, kept_blocks=0.0, diverged=True)
    run = read_run(run_dir)
    if not run.evaluations or not run.training:
        raise ValueError(f"{run_dir}: has no evaluation yet")
    flops = before = 0.0
    for line in run.training:
        flops += line["tflops"] * 1e12 * (line["seconds"] - before)
        before = line["seconds"]
    steps = [line["step"] for line in run.training]
    kept = sum(line["kept_blocks"] * n for line, n in zip(run.training, _differences(steps), strict=True))
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
    """Share of the other's time a sample that a run saves, over the whole schedule."""
    return 1.0 - (run.seconds[-1] / run.samples[-1]) / (other.seconds[-1] / other.samples[-1])


def speed_to_loss(run: Curve, other: Curve) -> float | None:
    """The other's time over the time until its last loss is reached; None where it never is."""
    reached = run.seconds_to(other.loss[-1])
    return None if reached is None else other.seconds[-1] / reached


def loss_difference(run: Curve, other: Curve) -> float:
    """Of the last held-out losses, in nats a masked token."""
    return run.loss[-1] - other.loss[-1]


def loss_difference_at_equal_time(run: Curve, other: Curve) -> float | None:
    """Of the held-out losses where the quicker of both has ended; None where one has no evaluation until then."""
    end = min(run.seconds[-1], other.seconds[-1])
    mine, theirs = run.loss_at(end), other.loss_at(end)
    return None if mine is None or theirs is None else mine - theirs


def _differences(steps: list[int]) -> list[int]:
    return [after - before for before, after in itertools.pairwise([0, *steps])]
