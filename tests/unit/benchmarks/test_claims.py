"""The paper's claims, tested on curves with known answers."""

import json

import pytest
from benchmark_command import curve

from benchmarks.intervals import mean_interval
from benchmarks.paper.claims import CLAIMS, check_claims, claims_table
from benchmarks.paper.variants import KNOWN, VARIANTS


def by_text(curves):
    return {one["claim"]: one for one in check_claims(curves)}


def test_claims_are_about_known_variants():
    claimed = {name for claim in CLAIMS for name in (claim.variant, claim.other)}
    assert {variant.name for variant in VARIANTS} < claimed < {variant.name for variant in KNOWN}


def test_mean_interval_is_students_t_interval():
    # The mean 2, the deviation 1, t(2 degrees of freedom) 4.302653: 2 ± 4.302653 / √3.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert mean_interval([1.0, 2.0])[1] == pytest.approx(1.5 + 12.706205 * 0.5**0.5 / 2**0.5)
    assert mean_interval([1.0]) is None
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)


def test_claims_compare_runs_of_one_seed():
    post = {1: curve([6.0, 5.0], [50, 100]), 2: curve([6.1, 5.2], [50, 100]), 3: curve([6.0, 4.9], [50, 100])}
    pld = {1: curve([5.0, 4.0], [35, 70]), 2: curve([5.2, 4.21], [36, 72])}
    pld[3] = curve([6.0, 5.9], [35, 71], diverged=True)
    found = by_text({"post_ln": post, "pld_batch": pld})
    assert found["PLD by batch: 24 % less time a sample than Post-LN"]["values"] == [0.3, 0.28, None]
    # Post-LN's last loss is that of PLD's first evaluation: 100 s over 35 s, and over 36 s.
    sooner = found["PLD by batch: 2.5 × sooner at Post-LN's last loss"]["values"]
    assert sooner == [round(100 / 35, 5), round(100 / 36, 5), None]
    below = found["PLD by batch: below Post-LN after as many samples"]
    assert below["values"] == [-1.0, -0.99, None]
    # At 70 s Post-LN of seed 1 is two fifths of the way from 6.0 to 5.0.
    assert found["PLD by batch: below Post-LN after as much time"]["values"][0] == pytest.approx(4.0 - 5.6)


@pytest.mark.parametrize("lost", ["pre_ln_high_lr", "pre_ln"])
def test_claim_of_which_a_run_diverged_does_not_hold(lost):
    runs = {"pre_ln_high_lr": 3.0, "pre_ln": 4.0}
    curves = {
        name: {s: curve([loss], [1], diverged=name == lost and s > 2) for s in range(4)} for name, loss in runs.items()
    }
    one = by_text(curves)["Pre-LN: lower at the high rate"]
    assert (one["values"], one["mean"], one["low"]) == ([-1.0, -1.0, -1.0, None], -1.0, None)
    assert one["verdict"] == "1 of 4 diverged"


def test_conclusions_follow_the_interval():
    below, above, both = [3.0, 3.1, 2.9], [5.0, 5.1, 4.9], [3.0, 5.1, 3.9]
    conclusions = {"holds": below, "does not hold": above, "undecided": both, "one seed": [3.0]}
    for conclusion, losses in conclusions.items():
        runs = {"pre_ln_high_lr": losses, "pre_ln": [4.0] * len(losses)}
        curves = {name: {seed: curve([loss], [1]) for seed, loss in enumerate(of)} for name, of in runs.items()}
        assert by_text(curves)["Pre-LN: lower at the high rate"]["verdict"] == conclusion


def test_recipe_may_end_a_hundredth_of_a_nat_above_dense():
    dense = {seed: curve([4.0], [100]) for seed in range(3)}
    for losses, conclusion in (([4.005, 4.006, 4.004], "holds"), ([4.015, 4.016, 4.014], "does not hold")):
        tokens = {seed: curve([loss], [70]) for seed, loss in enumerate(losses)}
        found = by_text({"tokens": tokens, "dense": dense, "dense_equal_compute": dense})
        assert found["by token: at most 0.01 above dense, as many steps"]["verdict"] == conclusion
        assert found["by token: below dense, equal compute"]["verdict"] == "does not hold"
        assert found["by token: 25 % less time than dense, as many steps"]["verdict"] == "holds"


def test_loss_that_is_never_reached_has_no_interval():
    post = {seed: curve([6.0, 5.0], [50, 100]) for seed in (1, 2)}
    pld = {1: curve([6.0, 5.5], [40, 80]), 2: curve([5.0, 4.9], [40, 80])}
    found = check_claims({"post_ln": post, "pld_sample": pld})
    sooner = next(one for one in found if "2.5 ×" in one["claim"])
    assert sooner["values"] == [None, 2.5]
    assert (sooner["mean"], sooner["low"], sooner["verdict"]) == (2.5, None, "reached by 1 of 2")
    lines = claims_table(found).splitlines()
    assert "| PLD by sample: 2.5 × sooner at Post-LN's last loss | 2.50 × | – | 2 | reached by 1 of 2 |" in lines
    assert "| PLD by sample: 24 % less time a sample than Post-LN | 20.0 % | 20.0 … 20.0 | 2 | less |" in lines


def test_pair_without_an_evaluation_in_time_is_counted_but_not_in_the_mean():
    # At 70 s, where PLD ends, Post-LN of seed 2 has not been evaluated yet, and that of seed 1 is at 5.6.
    post = {1: curve([6.0, 5.0], [50, 100]), 2: curve([5.0], [100])}
    found = by_text({"post_ln": post, "pld_batch": {seed: curve([5.0, 4.0], [35, 70]) for seed in (1, 2)}})
    one = found["PLD by batch: below Post-LN after as much time"]
    assert one["values"] == [pytest.approx(4.0 - 5.6), None]
    assert (one["mean"], one["verdict"]) == (pytest.approx(4.0 - 5.6), "reached by 1 of 2")
    line = f"| {one['claim']} | -1.600 | – | 2 | reached by 1 of 2 |"
    assert line in claims_table(list(found.values())).splitlines()


def test_claim_without_any_value_is_valid_json():
    found = by_text({"post_ln": {1: curve([5.0], [100])}, "pld_batch": {1: curve([5.0], [80])}})
    one = found["PLD by batch: below Post-LN after as much time"]
    assert (one["values"], one["mean"], one["low"], one["high"]) == ([None], None, None, None)
    assert json.dumps(found, allow_nan=False)
