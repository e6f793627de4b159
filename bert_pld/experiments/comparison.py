"""From curves to the table: loss at equal samples and at equal time, time a sample, time to the baseline's end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bert_pld.experiments.curves import Curve
from bert_pld.experiments.variants import BASELINE, KNOWN, VARIANTS


def spread(values: Sequence[float]) -> dict[str, float | int] | None:
    """Mean, sample standard deviation (0 for one value) and count; None for no values."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 5), "deviation": round(deviation, 5), "n": len(values)}


def compare(curves: Mapping[str, Mapping[int, Curve]], baseline_name: str = BASELINE) -> dict[str, Any]:
    """The table's figures.

    Equal samples: the end of every run. Equal time: the time that the quickest run of the paper's variants took for all
    its samples, with each run's loss read off its curve there. Time a sample and FLOPs: over the whole schedule, as a
    ratio to the baseline of the same seed. Time to the baseline's loss: until the mean loss at the baseline's end is
    reached, as the baseline's mean time over it. `loss_over_baseline`: the difference to the baseline of the same seed.
    `seed_1`: that run alone, for what has no other.

    Args:
        curves: variant → seed → its finished run.
        baseline_name: the variant that the others are compared with.

    Raises:
        ValueError: the baseline is missing.
    """
    whole = {
        name: {seed: curve for seed, curve in seeds.items() if not curve.diverged} for name, seeds in curves.items()
    }
    baseline = whole.get(baseline_name, {})
    if not baseline:
        raise ValueError(f"{baseline_name}: has no finished run, and everything is compared with it (--baseline)")
    of_the_paper = [curve for variant in VARIANTS for curve in whole.get(variant.name, {}).values()]
    equal_seconds = min(curve.seconds[-1] for curve in of_the_paper)
    target = statistics.fmean(curve.loss[-1] for curve in baseline.values())
    target_seconds = statistics.fmean(curve.seconds[-1] for curve in baseline.values())
    rows = []
    for variant in KNOWN:
        if variant.name not in curves:
            continue
        seeds = whole[variant.name]
        reached = [time for curve in seeds.values() if (time := curve.seconds_to(target)) is not None]
        beside = [(curve, baseline[seed]) for seed, curve in seeds.items() if seed in baseline]
        rows.append(
            {
                "variant": variant.name,
                "label": variant.label,
                "group": variant.group,
                "diverged": len(curves[variant.name]) - len(seeds),
                "loss_at_equal_samples": spread([curve.loss[-1] for curve in seeds.values()]),
                "loss_at_equal_time": spread(
                    [loss for curve in seeds.values() if (loss := curve.loss_at(equal_seconds)) is not None]
                ),
                "kept_blocks": spread([curve.kept_blocks for curve in seeds.values()]),
                "seconds": spread([curve.seconds[-1] for curve in seeds.values()]),
                "time_a_sample": spread(
                    [(a.seconds[-1] / a.samples[-1]) / (b.seconds[-1] / b.samples[-1]) for a, b in beside]
                ),
                "flops_a_sample": spread([(a.flops / a.samples[-1]) / (b.flops / b.samples[-1]) for a, b in beside]),
                "speedup_to_baseline_loss": spread([target_seconds / time for time in reached]),
                "reached_baseline_loss": len(reached),
                "loss_over_baseline": spread([a.loss[-1] - b.loss[-1] for a, b in beside]),
                "seed_1": _one(seeds[1], baseline[1], target, target_seconds) if 1 in seeds and 1 in baseline else None,
            }
        )
    return {
        "baseline": baseline_name,
        "equal_samples": baseline[min(baseline)].samples[-1],
        "tokens": baseline[min(baseline)].tokens,
        "equal_seconds": round(equal_seconds, 1),
        "baseline_loss": round(target, 5),
        "rows": rows,
    }


def _one(run: Curve, baseline: Curve, target: float, target_seconds: float) -> dict[str, Any]:
    """The figures of one run beside the baseline of its seed."""
    reached = run.seconds_to(target)
    return {
        "loss": round(run.loss[-1], 5),
        "kept_blocks": round(run.kept_blocks, 4),
        "time_a_sample": round((run.seconds[-1] / run.samples[-1]) / (baseline.seconds[-1] / baseline.samples[-1]), 4),
        "speedup_to_baseline_loss": None if reached is None else round(target_seconds / reached, 4),
    }
