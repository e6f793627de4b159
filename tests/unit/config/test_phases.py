"""The phases of a JSON are merged in their order, and a mistake in them is one line."""

import json

import pytest

from bert_pld.config import ConfigError, load_config

RUN = {
    "train_batch_size": 64,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupStableDecayLR", "params": {"warmup_num_steps": 10, "decay_num_steps": 0}},
    "data": {"mask_probability": 0.3, "eval_mask_probability": 0.15},
    "phases": {
        "stable": {"training": {"max_steps": 100}},
        "longer": {"data": {"seq_length": 512}, "train_batch_size": 16, "training": {"max_steps": 120}},
        "decay": {
            "data": {"mask_probability": 0.15},
            "scheduler": {"params": {"decay_num_steps": 30}},
            "training": {"max_steps": 150},
        },
        "polish": {"scheduler": {"type": "ConstantLR", "params": {"factor": 1.0}}, "training": {"max_steps": 160}},
    },
}


def test_phase_has_the_changes_of_those_before_it():
    stable, longer, decay, polish = (load_config(RUN, phase=name) for name in RUN["phases"])
    assert [one.training.max_steps for one in (stable, longer, decay)] == [100, 120, 150]
    assert [one.data.seq_length for one in (stable, longer, decay)] == [128, 512, 512]
    assert [one.data.mask_probability for one in (stable, longer, decay)] == [0.3, 0.3, 0.15]
    assert [one.deepspeed["train_batch_size"] for one in (stable, longer, decay)] == [64, 16, 16]
    assert decay.deepspeed["scheduler"]["params"] == {"warmup_num_steps": 10, "decay_num_steps": 30}
    assert polish.deepspeed["scheduler"] == {"type": "ConstantLR", "params": {"factor": 1.0}}
    assert "phases" not in decay.as_json()
    assert load_config(decay.as_json()) == decay


def test_override_comes_after_the_phase():
    assert load_config(RUN, ["data.seq_length=256"], phase="longer").data.seq_length == 256


def test_phases_of_a_file_are_those_of_the_mapping(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    assert load_config(tmp_path / "run.json", phase="decay") == load_config(RUN, phase="decay")


@pytest.mark.parametrize(
    ("changes", "phase", "message"),
    [
        ({}, None, "phases: stable, longer, decay, polish; choose one with --phase"),
        ({}, "decayed", "--phase decayed: unknown, did you mean 'decay'"),
        ({"phases": None}, "decay", "phases: missing; --phase decay needs them"),
        ({"phases": ["stable"]}, "stable", "phases: must be an object with an object of changed keys for each name"),
        ({"phases": {"a": {}}}, "a", r"phases\.a\.training\.max_steps: missing; must be given, and greater than 0"),
        (
            {"phases": {"a": {"training": {"max_steps": 9}}, "b": {"data": {"seq_length": 64}}}},
            "b",
            r"phases\.b\.training\.max_steps: 9; must be given, and greater than 9",
        ),
        ({"phases": {"a": {"phases": {}, "training": {"max_steps": 9}}}}, "a", "a phase must not have phases"),
        ({"phases": {"a": {"training": {"max_step": 9}}}}, "a", "max_steps: missing"),
        ({"phase": {}}, "stable", "phase: unknown block, did you mean 'phases'"),
    ],
)
def test_mistake_in_the_phases_is_one_line(changes, phase, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config({**RUN, **changes}, phase=phase)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["phases.decay.training.max_steps=5", "phases=null"])
def test_phases_cannot_be_set_after_one_is_chosen(override):
    with pytest.raises(ConfigError, match=r"^--set phases.*: phases cannot be set; set a key of the chosen phase"):
        load_config(RUN, [override], phase="decay")
