"""A share of masked tokens that changes over the run: its values, its defaults, its errors."""

import pytest

from bert_pld.config import ConfigError, load_config


def data(share, max_steps=1000, **more):
    return load_config({"data": {"mask_probability": share, **more}, "training": {"max_steps": max_steps}}).data


def test_share_moves_in_a_line_over_the_whole_run_by_default():
    config = data({"start": 0.3, "end": 0.15})
    assert [config.mask_probability_at(step) for step in (0, 500, 1000, 2000)] == pytest.approx(
        [0.3, 0.225, 0.15, 0.15]
    )
    assert config.mean_mask_probability(1000) == pytest.approx(0.225)
    assert (config.greatest_mask_probability, config.evaluated_mask_probability) == (0.3, 0.15)


@pytest.mark.parametrize(("after", "over"), [(0.5, 0.25), (500, 250)])
def test_durations_are_shares_of_the_run_or_steps(after, over):
    config = data({"start": 0.1, "end": 0.3, "after": after, "over": over})
    assert [config.mask_probability_at(step) for step in (499, 500, 625, 750, 999)] == pytest.approx(
        [0.1, 0.1, 0.2, 0.3, 0.3]
    )
    assert config.mean_mask_probability(1000) == pytest.approx(0.5 * 0.1 + 0.25 * 0.2 + 0.25 * 0.3)
    assert config.mean_mask_probability(625) == pytest.approx((500 * 0.1 + 125 * 0.15) / 625)


def test_share_without_a_duration_changes_at_once():
    config = data({"start": 0.3, "end": 0.15, "after": 900, "over": 0})
    assert [config.mask_probability_at(step) for step in (899, 900)] == [0.3, 0.15]
    assert config.mean_mask_probability(1000) == pytest.approx(0.285)


def test_share_of_evaluations_is_that_of_the_end_unless_it_is_given():
    assert data(0.3).evaluated_mask_probability == 0.3
    assert data(0.3, eval_mask_probability=0.15).evaluated_mask_probability == 0.15
    assert data({"start": 0.3, "end": 0.1}, eval_mask_probability=0.2).evaluated_mask_probability == 0.2


def test_resolved_schedule_is_read_back_as_it_was():
    config = load_config({"data": {"mask_probability": {"after": 0.5, "over": 0.001}}, "training": {"max_steps": 40}})
    assert load_config(config.as_json()).data == config.data
    assert config.data.mask_probability.after == 20


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"mask_probability": {"start": 1.5}}, r"data\.mask_probability\.start: 1\.5; must be in \(0, 1\)"),
        ({"mask_probability": {"begin": 0.3}}, r"mask_probability\.begin: unknown key.*valid: start, end, after, over"),
        ({"mask_probability": {"over": 2.5}}, r"mask_probability\.over: 2\.5; must be a share of the run"),
        ({"mask_probability": [0.3, 0.15]}, "must be a number or an object with start, end, after, over"),
        ({"mask_probability": {}, "masking": "static"}, "mask_probability: an object; must not be given with masking"),
        ({"eval_mask_probability": 0.3, "masking": "static"}, "eval_mask_probability: 0.3; must not be given with"),
        ({"eval_mask_probability": 1}, r"eval_mask_probability: 1\.0; must be in \(0, 1\)"),
    ],
)
def test_wrong_schedule_is_one_line(block, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config({"data": block})
    assert "\n" not in str(error.value)
