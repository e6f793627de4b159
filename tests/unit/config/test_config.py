"""One JSON for a run: our blocks, the keys passed to DeepSpeed, and the message of each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published_config import PUBLISHED_CONFIG

from bert_pld.config import ConfigError, find_config, load_config, read_json, resolve_batch_sizes
from bert_pld.pld.engine import make_schedule

PUBLISHED = json.loads(PUBLISHED_CONFIG)


def test_published_deepspeed_json_loads_unchanged():
    config = load_config(PUBLISHED)
    assert config.progressive_layer_drop.enabled
    assert (config.progressive_layer_drop.theta, config.progressive_layer_drop.gamma) == (0.5, 0.001)
    assert config.deepspeed == {k: v for k, v in PUBLISHED.items() if k != "progressive_layer_drop"}
    assert (config.model.hidden_size, config.model.num_layers, config.precision) == (768, 12, "fp16")


def test_presets_have_the_published_sizes_and_single_keys_override_them():
    expected = {"tiny": (128, 2, 2, 512), "mini": (256, 4, 4, 1024), "small": (512, 4, 8, 2048)}
    expected |= {"medium": (512, 8, 8, 2048), "base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
    for preset, sizes in expected.items():
        model = load_config({"model": {"preset": preset}}).model
        found = (model.hidden_size, model.num_layers, model.num_attention_heads, model.intermediate_size)
        assert found == sizes, preset
    assert load_config({"model": {"preset": "mini", "num_layers": 8}}).model.num_layers == 8


def test_set_overrides_our_blocks_and_deepspeed_s_keys():
    overrides = "progressive_layer_drop.theta=0.7 fp16.enabled=false optimizer.params.lr=2e-4 model.kernels=reference"
    config = load_config(PUBLISHED, overrides.split())
    assert config.progressive_layer_drop.theta == 0.7
    assert config.precision == "fp32"
    assert config.deepspeed["optimizer"]["params"]["lr"] == 2e-4
    assert config.model.kernels == "reference"


@pytest.mark.parametrize("block", [{}, {"progressive_layer_drop": None}])
def test_seed_of_a_job_array_does_not_turn_dropping_on(block):
    seed = "progressive_layer_drop.seed=3"
    config = load_config(block, ["training.seed=3", seed])
    assert not config.progressive_layer_drop.enabled
    assert make_schedule(config, num_blocks=12).expected_depth(10**6) == 12
    assert config == load_config(block, ["training.seed=3"])
    for more in ({"progressive_layer_drop": {}}, {"progressive_layer_drop": {"seed": 1}}):
        assert load_config(more, [seed]).progressive_layer_drop.enabled
    assert load_config(block, [seed, "progressive_layer_drop.theta=0.7"]).progressive_layer_drop.theta == 0.7
    with pytest.raises(ConfigError, match="seed: -1"):
        load_config(block, ["progressive_layer_drop.seed=-1"])


def test_auto_gamma_is_100_over_max_steps():
    config = load_config({"progressive_layer_drop": {}, "training": {"max_steps": 50_000}})
    assert config.progressive_layer_drop.gamma == pytest.approx(0.002)


def test_saved_configuration_loads_to_the_same_configuration():
    config = load_config(PUBLISHED, ["model.preset=mini", "training.max_steps=7"])
    assert load_config(json.loads(json.dumps(config.as_json()))) == config


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"progressive_layer_drop": {"tetha": 0.5}}, "progressive_layer_drop.tetha: unknown key, did you mean 'theta'"),
        ({"progressive_layer_drop": {"theta": 0}}, r"theta: 0\.0; must be in \(0, 1\]"),
        ({"progressive_layer_drop": {"theta": 1.5}}, r"theta: 1\.5; must be in \(0, 1\]"),
        ({"progressive_layer_drop": {"gamma": -1}}, r"gamma: -1\.0; must be >= 0"),
        ({"progressive_layer_drop": {"gamma": "fast"}}, "gamma: 'fast'; must be a number or one of 'auto'"),
        (
            {"progressive_layer_drop": {"granularity": "word"}},
            "granularity: 'word'; must be one of 'batch', 'sample', 'token'",
        ),
        ({"progressive_layer_drop": {"dense_finish": -0.1}}, r"dense_finish: -0\.1; must be a share of the run in"),
        ({"progressive_layer_drop": {"keep_near_masked": -1}}, r"keep_near_masked: -1; must be >= 0"),
        ({"progressive_layer_drop": {"keep_near_masked": 1}}, r"keep_near_masked: 1; needs keep_masked_tokens: true"),
        ({"progressive_layer_drop": {"same_tokens": "all"}}, "same_tokens: 'all'; must be true or false"),
        ({"progressive_layer_drop": {"ramp": 1.5}}, r"ramp: 1\.5; must be a share .* or a whole number of steps"),
        (
            {"progressive_layer_drop": {"dense_warmup": 0.5, "dense_finish": 0.6}, "training": {"max_steps": 100}},
            r"dense_warmup \+ dense_finish: 110 steps; must be at most training.max_steps \(100\)",
        ),
        (
            {"data_efficiency": {"enabled": True, "data_routing": {"random_ltd": {"enabled": True}}}},
            "data_routing.random_ltd: enabled beside progressive_layer_drop; enable one of the two",
        ),
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning: DeepSpeed has removed it; train short"),
        ({"progresive_layer_drop": {}}, "progresive_layer_drop: unknown block, did you mean 'progressive_layer_drop'"),
        ({"modle": {}}, "modle: unknown block, did you mean 'model'"),
        ({"model": {"preset": "huge"}}, "model.preset: 'huge'; must be one of tiny"),
        ({"model": {"hidden_size": 100, "num_attention_heads": 3}}, "must be a multiple of num_attention_heads"),
        (
            {"model": {"cuda_graphs": True, "activation_checkpointing": True}},
            "model.cuda_graphs: true; must be false with activation_checkpointing",
        ),
        (
            {"model": {"cuda_graphs": True}, "zero_optimization": {"stage": 3}},
            "model.cuda_graphs: true at zero_optimization.stage 3; use stage 0, 1 or 2, or false",
        ),
        ({"model": {"hidden_dropout": 1.0}}, r"hidden_dropout: 1\.0; must be in \[0, 1\)"),
        ({"model": {"num_layers": True}}, "num_layers: True; must be an integer"),
        ({"model": {"kernels": "tritn"}}, "kernels: 'tritn'; must be one of"),
        ({"data": {"seq_length": 1024}}, "data.seq_length: 1024; must be at most model.max_position_embeddings"),
        ({"data": []}, "data: must be an object"),
        ({"data": {"masking": "both"}}, "masking: 'both'; must be one of 'dynamic', 'static'"),
        ({"data": {"mask_probability": 1.0}}, r"mask_probability: 1\.0; must be in \(0, 1\)"),
        ({"data": {"shuffle": "local"}}, "shuffle: 'local'; must be one of 'global', 'blocks'"),
        ({"data": {"shuffle_block_rows": 0}}, "shuffle_block_rows: 0; must be >= 1"),
        ({"data": {"workers": -1}}, "workers: -1; must be >= 0"),
        ({"training": {"max_steps": 0}}, "max_steps: 0; must be >= 1"),
        ({"training": {"seed": -1}}, "seed: -1; must be in"),
    ],
)
def test_mistake_in_our_blocks_is_one_line_with_the_allowed_values(blocks, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config({**PUBLISHED, **blocks})
    assert "\n" not in str(error.value)


def test_shares_of_the_run_become_steps_which_are_read_back_unchanged():
    dropping = {"dense_warmup": 0.1, "dense_finish": 50, "ramp": 0.25, "gamma": "auto"}
    config = load_config({"progressive_layer_drop": dropping, "training": {"max_steps": 400}})
    pld = config.progressive_layer_drop
    assert (pld.dense_warmup, pld.dense_finish, pld.ramp, pld.gamma) == (40, 50, 0, 0.25)
    assert load_config(config.as_json()).progressive_layer_drop == pld
    linear = {"progressive_layer_drop": {**dropping, "temporal": "linear"}, "training": {"max_steps": 400}}
    schedule = make_schedule(load_config(linear))
    assert (schedule.warmup_steps, schedule.finish_step, schedule.ramp_steps) == (40, 350, 100)


def test_constant_dropping_does_not_depend_on_the_number_of_steps():
    constant = {"progressive_layer_drop": {"temporal": "constant"}}
    short, long = (load_config({**constant, "training": {"max_steps": steps}}) for steps in (10, 1000))
    assert short.progressive_layer_drop == long.progressive_layer_drop


def test_unreadable_or_invalid_file_is_reported_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "absent.json")
    path = tmp_path / "c.json"
    faults = {"{": "not valid JSON", "[]": "must be a JSON object", '{"a": 1, "a": 2}': "duplicate key 'a'"}
    for text, message in faults.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"must be section\.key=value"):
        load_config(path, ["theta"])


@pytest.mark.parametrize(
    ("given", "world", "expected"),
    [
        ((4096, 16, None), 64, (4096, 16, 4)),
        ((32, None, None), 2, (32, 16, 1)),
        ((None, 4, None), 2, (8, 4, 1)),
        ((None, 4, 3), 2, (24, 4, 3)),
        ((24, None, 3), 2, (24, 4, 3)),
        ((24, 4, 3), 2, (24, 4, 3)),
        ((16, "auto", "auto"), 1, (16, 16, 1)),
    ],
)
def test_missing_batch_sizes_are_computed_for_the_number_of_ranks(given, world, expected):
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert resolve_batch_sizes(dict(zip(keys, given, strict=True)), world) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "missing; give at least one"),
        ({"train_batch_size": 10, "train_micro_batch_size_per_gpu": 4}, "train_batch_size: 10; must be"),
        ({"train_batch_size": 3}, r"× 2 rank\(s\)"),
        ({"train_batch_size": 2.5}, "must be an integer >= 1"),
        ({"train_batch_size": 0, "train_micro_batch_size_per_gpu": 4}, "must be an integer >= 1"),
    ],
)
def test_inconsistent_batch_sizes_are_rejected(sizes, message):
    with pytest.raises(ConfigError, match=message):
        resolve_batch_sizes(sizes, 2)


@pytest.mark.parametrize(
    ("given", "world", "expected"),
    [
        ({"train_batch_size": 4096}, 8, (4096, 256, 2)),
        ({"train_batch_size": 4096}, 32, (4096, 128, 1)),
        ({"train_batch_size": 4096, "train_micro_batch_size_per_gpu": "auto"}, 64, (4096, 64, 1)),
        ({"train_batch_size": 3000}, 2, (3000, 250, 6)),
        ({"train_batch_size": 7}, 1, (7, 7, 1)),
        ({"train_batch_size": 4096, "train_micro_batch_size_per_gpu": 512}, 1, (4096, 512, 8)),
        ({"train_batch_size": 4096, "gradient_accumulation_steps": 2}, 1, (4096, 2048, 2)),
        ({"train_micro_batch_size_per_gpu": 512}, 2, (1024, 512, 1)),
    ],
)
def test_largest_micro_batch_divides_the_batch_unless_deepspeed_s_keys_decide(given, world, expected):
    assert resolve_batch_sizes(given, world, max_micro_batch_size=256) == expected


def test_batch_without_a_divisor_near_the_largest_micro_batch_is_an_error():
    with pytest.raises(ConfigError, match=r"4098; on 2 rank.*\(256\) that divides it is 3; use a multiple of 512"):
        resolve_batch_sizes({"train_batch_size": 4098}, 2, max_micro_batch_size=256)
    with pytest.raises(ConfigError, match=r"train_batch_size: 4097; must be .* 2 rank"):
        resolve_batch_sizes({"train_batch_size": 4097}, 2, max_micro_batch_size=256)


@pytest.mark.parametrize("name", ["bert_base_pld_128.json", "configs/bert_base_pld_128.json", "paper/pre_ln.json"])
def test_configuration_of_the_checkout_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name).model.num_layers == 12
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text('{"model": {"num_layers": 3}}')
    assert load_config(name).model.num_layers == 3


@pytest.mark.parametrize("granularity", ["batch", "sample"])
def test_shipped_recipe_loads_with_another_granularity(granularity):
    values = read_json(find_config("bert_base_pld_128.json"))
    values["progressive_layer_drop"].update(granularity=granularity, keep_near_masked=1, same_tokens=True)
    resolved = load_config(values).progressive_layer_drop.resolved(100)
    assert not resolved.keep_masked_tokens
    assert not resolved.keep_near_masked
    assert not resolved.same_tokens


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 399, 2000])
@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5, 0.9])
def test_shares_that_make_the_whole_run_dense_have_exactly_its_steps(warmup, steps):
    drop = {"gamma": 0.1, "dense_warmup": warmup, "dense_finish": 1 - warmup}
    config = load_config({"progressive_layer_drop": drop, "training": {"max_steps": steps}})
    assert config.progressive_layer_drop.dense_warmup + config.progressive_layer_drop.dense_finish == steps


@pytest.mark.parametrize("off", [False, "false", 0])
def test_removed_feature_that_is_off_is_accepted_however_it_is_written(off):
    assert "sparse_gradients" not in load_config({"sparse_gradients": off}).deepspeed


@pytest.mark.parametrize(("block", "example"), [("optimizer", "AdamW"), ("scheduler", "WarmupLR")])
def test_missing_type_is_explained_by_an_example_of_its_own_kind(tmp_path, block, example):
    path = tmp_path / "options.json"
    path.write_text(json.dumps({block: {"params": {"lr": 0.1}}}))
    with pytest.raises(ConfigError, match=f"{block}.type: missing; give its name, such as {example}"):
        load_config(path)
