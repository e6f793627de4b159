"""A run is extended with the same configuration: settings are compared as far as they have an effect."""

from __future__ import annotations

import json

import pytest
from runs import small_config, write_corpus

from bert_pld.checkpoint.resume import check_same_run
from bert_pld.config import ConfigError, load_config
from bert_pld.data.shards import Manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return Manifest.read(write_corpus(tmp_path_factory.mktemp("corpus")))


def resume(folder, manifest, saved, now):
    """Compare a run with a checkpoint of another configuration."""
    (folder / "config.json").write_text(json.dumps(load_config(saved).as_json()))
    (folder / "state.json").write_text(json.dumps({"data_fingerprint": manifest.fingerprint()}))
    check_same_run(folder, load_config(now), manifest)


def without_dropping(**blocks):
    config = small_config(**blocks)
    del config["progressive_layer_drop"]
    return config


OFF = {"enabled": False}


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (without_dropping(training={"max_steps": 3}), without_dropping(training={"max_steps": 12})),
        (without_dropping(), small_config(progressive_layer_drop=OFF)),
        (
            small_config(progressive_layer_drop={**OFF, "theta": 0.3, "gamma": "auto", "seed": 4}),
            small_config(progressive_layer_drop={**OFF, "granularity": "token", "dense_warmup": 0.1}),
        ),
        (small_config(training={"max_steps": 3}), small_config(training={"max_steps": 12})),
        (small_config(optimizer={"type": "adamw"}), small_config(optimizer={"type": "AdamW"})),
        (small_config(optimizer=None), small_config(optimizer={"type": "AdamW"})),
        (small_config(data={"shuffle_block_rows": 8}), small_config(data={"shuffle_block_rows": 16})),
        (small_config(model={"initializer_range": 0.1}), small_config(model={"initializer_range": 0.2})),
        (small_config(amp=OFF, scheduler=None), small_config()),
    ],
)
def test_setting_without_effect_does_not_make_another_run(saved, now, manifest, tmp_path):
    resume(tmp_path, manifest, saved, now)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (without_dropping(), "progressive_layer_drop.enabled is True in the checkpoint, False in this run"),
        (small_config(progressive_layer_drop={"theta": 0.6}), "progressive_layer_drop.theta is 0.5 in the checkpoint"),
        (small_config(optimizer={"type": "SGD", "params": {}}), "optimizer.type is 'adamw' in the checkpoint, 'sgd'"),
        (small_config(model={"hidden_dropout": 0.2}), "model.hidden_dropout is 0.1 in the checkpoint, 0.2"),
        (
            small_config(optimizer={"type": "AdamW", "params": {"amsgrad": True}}),
            "optimizer.params.amsgrad is False in the checkpoint, True in this run",
        ),
    ],
)
def test_setting_with_an_effect_makes_another_run(now, difference, manifest, tmp_path):
    with pytest.raises(ConfigError, match=difference):
        resume(tmp_path, manifest, small_config(), now)


def test_automatic_gamma_makes_a_longer_run_another_one(manifest, tmp_path):
    block = {"temporal": "exponential", "gamma": "auto"}
    short, long = (small_config(progressive_layer_drop=block, training={"max_steps": n}) for n in (10, 20))
    with pytest.raises(ConfigError, match=r"gamma is 10\.0 in the checkpoint, 5\.0 in this run"):
        resume(tmp_path, manifest, short, long)


def test_checkpoint_of_an_older_release_is_read_by_the_rules_of_its_time(manifest, tmp_path):
    """What is refused today trained then; the checkpoint stays usable."""
    old = {**load_config(small_config()).as_json(), "gradient_clipping": -1, "fp16": None, "bf16": {"enabled": "auto"}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "state.json").write_text(json.dumps({"data_fingerprint": manifest.fingerprint()}))
    check_same_run(tmp_path, load_config(small_config()), manifest)
    assert load_config(tmp_path / "config.json", use="checkpoint").precision == "fp32"
