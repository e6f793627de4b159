"""The figures of the table: loss at equal samples and at equal time, time a sample, time to the baseline's loss."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.loss_curve import loss_after
from benchmarks.paper.curves import Curve, loss_difference, speed_to_loss, time_saved
from benchmarks.paper.variants import BASELINE, KNOWN, VARIANTS


def spread(values: Sequence[float]) -> dict[str, float | int] | None:
    """Mean, sample standard deviation (0 for one value) and count of values; None without values."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 5), "deviation": round(deviation, 5), "n": len(values)}


def compare(curves: Mapping[str, Mapping[int, Curve]], baseline_name: str = BASELINE) -> dict[str, Any]:
    """Compute the table's figures.

    - Equal samples: the end of every run.
    - Equal time: the total time of the fastest run of the paper's variants; each run's loss is interpolated there.
    - Time and FLOPs, of a sample and of the run: over the whole schedule, as a ratio to the baseline's of that seed.
    - `speedup_to_baseline_loss`: the baseline's total time over the time until its last loss is reached, same seed.
    - `loss_over_baseline`: the difference of the last losses, same seed.

    The `n` of a figure is its number of runs: at equal time those that lasted until then, and for ratios those whose
    seed has a run of the baseline. `curves` has variant → seed → its finished run.
    """
    completed = {
        name: {seed: curve for seed, curve in seeds.items() if not curve.diverged} for name, seeds in curves.items()
    }
    baseline = completed.get(baseline_name, {})
    if not baseline:
        raise ValueError(f"{baseline_name}: has no finished run to compare with (--baseline)")
    of_the_paper = [curve for variant in VARIANTS for curve in completed.get(variant.name, {}).values()]
    of_the_paper += baseline.values()
    equal_seconds = min(curve.seconds[-1] for curve in of_the_paper)
    rows = []
    for variant in KNOWN:
        if variant.name not in curves:
            continue
        seeds = completed[variant.name]
        paired = [(curve, baseline[seed]) for seed, curve in seeds.items() if seed in baseline]
        at_equal_time = (loss_after(equal_seconds, curve.seconds, curve.loss) for curve in seeds.values())
        reached = [speed for a, b in paired if (speed := speed_to_loss(a, b)) is not None]
        rows.append(
            {
                "variant": variant.name,
                "label": variant.label,
                "group": variant.group,
                "diverged": len(curves[variant.name]) - len(seeds),
                "loss_at_equal_samples": spread([curve.loss[-1] for curve in seeds.values()]),
                "loss_at_equal_time": spread([loss for loss in at_equal_time if loss is not None]),
                "kept_blocks": spread([curve.kept_blocks for curve in seeds.values()]),
                "seconds": spread([curve.seconds[-1] for curve in seeds.values()]),
                "time_a_sample": spread([1 - time_saved(a, b) for a, b in paired]),
                "flops_a_sample": spread([(a.flops / a.samples[-1]) / (b.flops / b.samples[-1]) for a, b in paired]),
                "samples": spread([curve.samples[-1] for curve in seeds.values()]),
                "time_of_run": spread([a.seconds[-1] / b.seconds[-1] for a, b in paired]),
                "flops_of_run": spread([a.flops / b.flops for a, b in paired]),
                "speedup_to_baseline_loss": spread(reached),
                "reached_baseline_loss": len(reached),
                "loss_over_baseline": spread([loss_difference(a, b) for a, b in paired]),
            }
        )
    return {
        "baseline": baseline_name,
        "equal_samples": baseline[min(baseline)].samples[-1],
        "tokens": baseline[min(baseline)].tokens,
        "equal_seconds": round(equal_seconds, 1),
        "baseline_loss": round(statistics.fmean(curve.loss[-1] for curve in baseline.values()), 5),
        "rows": rows,
    }
