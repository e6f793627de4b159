"""The paper's claims, tested in a comparison: values within seeds, their 95 % interval, and a conclusion."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.intervals import mean_interval
from benchmarks.markdown import markdown_table
from benchmarks.paper.curves import Curve, loss_difference, loss_difference_at_equal_time, speed_to_loss, time_saved
from benchmarks.paper.variants import RECIPE


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of arXiv:2010.13369 about two variants, in terms of held-out loss where the paper speaks of accuracy."""

    text: str
    variant: str
    other: str
    measure: Callable[[Curve, Curve], float | None] = loss_difference
    unit: str = "nats"
    at_least: float | None = None
    """The published value; None if the claim is that the variant's loss is lower."""
    margin: float = 0.0
    """By how much the variant's loss may be higher."""

    def conclusion(self, low: float, high: float) -> str:
        """Whether the claim holds for all values of an interval; `undecided` where it holds for some of them."""
        if self.at_least is not None:
            return "holds" if low >= self.at_least else "less" if high < self.at_least else "undecided"
        return "holds" if high < self.margin else "does not hold" if low > self.margin else "undecided"


def _of_dropping(name: str, label: str) -> tuple[Claim, ...]:
    same_rate = "Pre-LN at the same high rate"
    return (
        Claim(f"{label}: 24 % less time a sample than Post-LN", name, "post_ln", time_saved, "%", 0.24),
        Claim(f"{label}: 2.5 × sooner at Post-LN's last loss", name, "post_ln", speed_to_loss, "×", 2.5),
        Claim(f"{label}: below Post-LN after as many samples", name, "post_ln"),
        Claim(f"{label}: below Post-LN after as much time", name, "post_ln", loss_difference_at_equal_time),
        Claim(f"{label}: below {same_rate}, as many samples", name, "pre_ln_high_lr"),
        Claim(f"{label}: below {same_rate}, as much time", name, "pre_ln_high_lr", loss_difference_at_equal_time),
    )


_LABELS = {variant.name: variant.label for variant in RECIPE}


def _of_recipe(name: str, dense: str, partner: str = "equal_compute") -> tuple[Claim, ...]:
    label = _LABELS[name]
    return (
        Claim(f"{label}: 25 % less time than dense, as many steps", name, dense, time_saved, "%", 0.25),
        Claim(f"{label}: at most 0.01 above dense, as many steps", name, dense, margin=0.01),
        Claim(f"{label}: below dense, equal compute", name, f"{dense}_{partner}"),
        *([Claim(f"{label}: below dense, equal time", name, f"{dense}_equal_time")] if dense == "dense_muon" else []),
    )


CLAIMS = (
    Claim("Pre-LN: lower at the high rate", "pre_ln_high_lr", "pre_ln"),
    Claim("Post-LN: worse at the high rate", "post_ln", "post_ln_high_lr"),
    *_of_dropping("pld_batch", "PLD by batch"),
    *_of_dropping("pld_sample", "PLD by sample"),
    *_of_dropping("keep_first_block", "PLD by batch, first block kept"),
    *_of_dropping("keep_first_block_sample", "PLD by sample, first block kept"),
    Claim("PLD by batch: below fixed, uniform dropping", "pld_batch", "uniform_dropping"),
    Claim("PLD by batch: below dropping over time only", "pld_batch", "time_only"),
    Claim("PLD by batch: below dropping over depth only", "pld_batch", "depth_only"),
    *_of_recipe("tokens", "dense"),
    *_of_recipe("tokens_muon", "dense_muon"),
    *_of_recipe("tokens_near_muon", "dense_muon"),
    *_of_recipe("tokens_near_40_muon", "dense_muon"),
    *_of_recipe("tokens_same_40_muon", "dense_muon"),
    *_of_recipe("tokens_first_muon", "dense_muon", "equal_compute_first"),
    *_of_recipe("tokens_every_4_muon", "dense_muon"),
    Claim("Muon: below AdamW, dense", "dense_muon", "dense"),
    *(
        Claim(f"{_LABELS[name]}: 3 × sooner at Post-LN's last loss", name, "recipe_post_ln", speed_to_loss, "×", 3.0)
        for name in (
            "tokens_muon",
            "tokens_near_muon",
            "tokens_near_40_muon",
            "tokens_same_40_muon",
            "tokens_first_muon",
        )
    ),
)


def check_claims(curves: Mapping[str, Mapping[int, Curve]]) -> list[dict[str, Any]]:
    """Test the claims about variants that have runs; `curves` has variant → seed → its run.

    A value compares two runs of one seed, which saw the same samples with the same masks; it is None where one of them
    diverged, or does not reach the loss or time in question. `mean` is the mean of the other values; `low` and `high`
    are its 95 % interval, where no value is None. The intervals are not corrected for the number of claims.
    """
    found = []
    for claim in CLAIMS:
        run, other = (curves.get(name, {}) for name in (claim.variant, claim.other))
        seeds = sorted(run.keys() & other.keys())
        if not seeds:
            continue
        diverged = {seed for seed in seeds if run[seed].diverged or other[seed].diverged}
        pairs = [None if seed in diverged else claim.measure(run[seed], other[seed]) for seed in seeds]
        values = [value for value in pairs if value is not None]
        low, high = (mean_interval(values) if len(values) == len(pairs) else None) or (None, None)
        if diverged:
            conclusion = f"{len(diverged)} of {len(pairs)} diverged"
        elif len(values) < len(pairs):
            conclusion = f"reached by {len(values)} of {len(pairs)}"
        else:
            conclusion = "one seed" if low is None or high is None else claim.conclusion(low, high)
        found.append(
            {
                "claim": claim.text,
                "unit": claim.unit,
                "values": [None if value is None else round(value, 5) for value in pairs],
                "mean": round(statistics.fmean(values), 5) if values else None,
                "low": None if low is None else round(low, 5),
                "high": None if high is None else round(high, 5),
                "verdict": conclusion,  # the key of the committed results
            }
        )
    return found


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """Format a Markdown table, a row for each claim."""
    rows = []
    for one in claims:
        mean, low, high = (_figure(one[key], one["unit"]) for key in ("mean", "low", "high"))
        spread = "–" if one["low"] is None else f"{low} … {high}"
        unit = "" if one["unit"] == "nats" or one["mean"] is None else f" {one['unit']}"
        rows.append((one["claim"], f"{mean}{unit}", spread, f"{len(one['values'])}", one["verdict"]))
    return markdown_table(("", "mean", "95 % interval", "seeds", ""), rows)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.2f}" if unit == "×" else f"{value:+.3f}"
