"""Figures and tables of the comparison, on curves with known answers."""

import dataclasses

import pytest
from benchmark_command import curve

from benchmarks.loss_curve import loss_after, time_to
from benchmarks.paper.comparison import compare, spread
from benchmarks.paper.tables import choices_table, figure, found_in, put_into, recipe_table, short_table, table


def test_loss_is_interpolated_between_evaluations():
    times, losses = [10, 20, 30], [6.0, 5.0, 4.5]
    assert [loss_after(at, times, losses) for at in (5, 15, 30, 31)] == [None, 5.5, 4.5, None]
    assert [loss_after(at, times, [5.0, 4.0, 4.5]) for at in (5, 15, 25, 31)] == [None, 4.5, 4.25, None]


def test_time_to_a_loss_is_the_first_crossing():
    times, losses = [10, 20, 30, 40], [6.0, 5.0, 5.2, 4.0]
    assert [time_to(loss, times, losses) for loss in (5.5, 4.6, 6.5, 3.9)] == [15, pytest.approx(35), 10, None]
    assert [time_to(loss, [10, 20, 30], [5.0, 4.0, 4.5]) for loss in (6.0, 4.5, 3.9)] == [10, 15, None]


def test_spread_has_the_sample_standard_deviation():
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "deviation": 1.0, "n": 3}
    assert spread([2.0]) == {"mean": 2.0, "deviation": 0.0, "n": 1}
    assert spread([]) is None


@pytest.fixture
def compared():
    return compare(
        {
            "post_ln": {1: curve([6.0, 5.0], [50, 100]), 2: curve([6.0, 5.2], [50, 100])},
            "pld_batch": {1: curve([5.1, 4.0], [40, 80], flops=75.0), 2: curve([5.3, 4.4], [40, 80], flops=75.0)},
            "pre_ln_high_lr": {1: curve([], [], diverged=True)},
        }
    )


def test_figures_of_the_table(compared):
    rows = {row["variant"]: row for row in compared["rows"]}
    assert compared["equal_samples"] == 200
    assert compared["equal_seconds"] == 80
    assert compared["baseline_loss"] == pytest.approx(5.1)
    pld = rows["pld_batch"]
    assert pld["loss_at_equal_samples"] == spread([4.0, 4.4])
    assert rows["post_ln"]["loss_at_equal_time"] == spread([5.4, 5.52])
    assert pld["time_a_sample"]["mean"] == pytest.approx(0.8)
    assert pld["flops_a_sample"]["mean"] == pytest.approx(0.75)
    # Seed 1 reaches its 5.0 at 40 + 40 × 0.1 / 1.1 s, seed 2 its 5.2 at 40 + 40 × 0.1 / 0.9.
    times = 40 + 4 / 1.1, 40 + 4 / 0.9
    assert pld["speedup_to_baseline_loss"]["mean"] == pytest.approx((100 / times[0] + 100 / times[1]) / 2, rel=1e-4)
    assert pld["reached_baseline_loss"] == 2
    assert pld["loss_over_baseline"] == spread([-1.0, -0.8])
    assert rows["pre_ln_high_lr"]["diverged"] == 1
    assert rows["pre_ln_high_lr"]["loss_at_equal_samples"] is None


def test_missing_baseline_is_an_error():
    with pytest.raises(ValueError, match="post_ln: has no finished run"):
        compare({"pre_ln": {1: curve([6.0], [10])}})


def test_another_variant_can_be_the_baseline():
    runs = {"pre_ln": {1: curve([6.0, 5.0], [50, 100])}, "pld_batch": {1: curve([5.5, 4.5], [40, 80])}}
    comparison = compare(runs, "pre_ln")
    pld = comparison["rows"][1]
    assert pld["time_a_sample"]["mean"] == pytest.approx(0.8)
    assert pld["speedup_to_baseline_loss"]["mean"] == pytest.approx(100 / 60, rel=1e-4)
    header, _, first, _ = table(comparison).splitlines()
    assert "to Pre-LN's loss" in header
    assert "| 1 × | 1 |" in first


def test_table_is_written_into_a_page_and_read_again(compared, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Results\n<!-- table of x: begin -->\nold\n<!-- table of x: end -->\nafter\n")
    text = table(compared)
    put_into(page, "x", text)
    assert found_in(page, "x") == text
    assert page.read_text().endswith("\nafter\n")
    assert "old" not in page.read_text()
    assert "| PLD, by batch | 4.200 ± 0.283 | 4.200 ± 0.283 |" in text
    assert "1 diverged" in text
    with pytest.raises(ValueError, match="lacks the lines"):
        put_into(page, "y", text)


def test_short_tables_have_finished_variants_only(compared):
    short, choices = short_table(compared), choices_table(compared)
    assert [line.split(" | ")[0] for line in short.splitlines()[2:]] == ["| Post-LN", "| PLD, by batch"]
    assert short.splitlines()[2].endswith("| 1 | 1 × |")
    assert choices.splitlines()[2:] == [
        "| PLD, by batch | 4.200 ± 0.283 | 4.00 ± 0.00 | 0.75 ± 0.00 | 0.80 ± 0.00 | 2.27 ± 0.03 × | 2 |"
    ]


def test_recipe_s_table_compares_whole_runs():
    """A run of equal compute has fewer samples, so its time and FLOPs are those of the run."""
    short = dataclasses.replace(curve([6.0], [50]), samples=[100], flops=50.0)
    runs = {"dense_muon": {1: curve([6.0, 5.0], [50, 100])}, "dense_muon_equal_compute": {1: short}}
    lines = recipe_table(compare(runs, "dense_muon")).splitlines()
    assert lines[2] == "| dense, Muon | 200 | 5.000 | 4.00 | 1 | 1 | 1 × | 1 |"
    assert lines[3] == "| dense, Muon, equal compute | 100 | 6.000 | 4.00 | 0.500 | 0.500 | – | 1 |"


def test_a_run_of_fewer_samples_has_no_loss_at_equal_samples():
    short = dataclasses.replace(curve([6.0], [120]), samples=[100])
    runs = {"post_ln": {1: curve([6.0, 5.0], [50, 100])}, "pld_batch": {1: short}}
    compared = compare(runs)
    for text in (table(compared), short_table(compared)):
        assert cells(text, "Post-LN")[1:3] == ["5.000", "5.000"]
        assert cells(text, "PLD, by batch")[1:3] == ["–", "–"]
    # The second seed's run is shorter: their mean is not one at equal samples.
    runs["post_ln"][2], runs["pld_batch"] = runs["post_ln"][1], {1: curve([6.0, 4.0], [50, 100]), 2: short}
    assert cells(table(compare(runs)), "PLD, by batch")[1] == "–"


def test_only_the_papers_variants_set_the_equal_time():
    runs = {"post_ln": {1: curve([6.0, 5.0], [50, 100])}, "theta_0_7": {1: curve([6.0, 5.5], [30, 60])}}
    compared = compare(runs)
    assert compared["equal_seconds"] == 100
    assert "θ = 0.7" not in table(compared)
    assert "| PLD, by batch, θ = 0.7 | 5.500 |" in choices_table(compared)


def cells(text, label):
    return next(line.split(" | ") for line in text.splitlines() if line.startswith(f"| {label} |"))


def test_figure_from_fewer_runs_than_its_row_states_their_number():
    pld = {1: curve([5.1, 4.0], [40, 80]), 2: curve([5.5, 5.3], [40, 80]), 3: curve([5.0, 3.9], [40, 80])}
    post = {1: curve([6.0, 5.0], [50, 100]), 2: curve([6.0, 5.2], [50, 100])}
    compared = compare({"post_ln": post, "pld_batch": pld})
    # Seed 3 has no baseline; of the two that have, seed 1 alone reaches its loss, after 40 + 40 × 0.1 / 1.1 s.
    speed = f"{100 / (40 + 4 / 1.1):.2f} × (1 of 2)"
    row = cells(table(compared), "PLD, by batch")
    assert row[4:] == ["0.800 ± 0.000 (2 of 3)", "1.000 ± 0.000 (2 of 3)", speed, "3 |"]
    assert cells(short_table(compared), "PLD, by batch")[3:] == ["0.80 ± 0.00 (2 of 3)", f"{speed} |"]
    ratios = ["1.00 ± 0.00 (2 of 3)", "0.80 ± 0.00 (2 of 3)"]
    assert cells(choices_table(compared), "PLD, by batch")[3:] == [*ratios, speed, "3 |"]
    # With the one seed that reaches it, two runs were not compared.
    compared = compare({"post_ln": {1: post[1]}, "pld_batch": pld})
    assert cells(table(compared), "PLD, by batch")[6] == speed.replace("1 of 2", "1 of 1")


def test_loss_at_equal_time_counts_only_runs_that_lasted_until_then():
    runs = {
        "post_ln": {seed: curve([6.0, 5.0], [50, 100]) for seed in (1, 2, 3)},
        "theta_0_7": {1: curve([6.0, 5.5], [45, 90]), 2: curve([6.0, 5.4], [45, 90]), 3: curve([6.0, 5.3], [52, 104])},
        "keep_first_block": {seed: curve([6.0, 5.5], [30, 60]) for seed in (1, 2, 3)},
    }
    text = table(compare(runs), "paper", "choices")
    at_100 = 6.0 - 0.7 * 48 / 52
    assert cells(text, "PLD, by batch, θ = 0.7")[1:3] == ["5.400 ± 0.100", f"{at_100:.3f} (1 of 3)"]
    assert cells(text, "PLD, by batch, first block kept")[1:3] == ["5.500 ± 0.000", "–"]


def test_single_run_has_no_deviation():
    assert figure({"mean": 1.25, "deviation": 0.0, "n": 1}, 2) == "1.25"
    assert figure(None, 2) == "–"
