"""Configurations in configs/ load, are accepted by DeepSpeed, and run a step at full size on meta tensors."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from repository import REPOSITORY

from bert_pld.config import BATCH_KEYS, load_config, read_json
from bert_pld.cost.flops import parameter_count
from bert_pld.model import make_model
from bert_pld.pld import draw_gates
from bert_pld.pld.engine import make_schedule
from bert_pld.training import optimizer as optimizers
from bert_pld.training import schedulers

FOLDER = REPOSITORY / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.json") if path.parent.name != "scales")


def test_documented_configurations_exist():
    names = "bert_tiny_pld bert_base_pld_128 bert_base_pld_512 bert_large_pld_128 bert_large_pld_512"
    names += " bert_base_pre_ln_128 bert_base_post_ln_128 bing_bert_4k_pld_128 modernbert_base_pld_128"
    assert set(names.split()) <= {path.stem for path in CONFIGS}


def test_micro_batches_of_base_and_large_fill_a_gpu_and_divide_the_documented_jobs():
    tokens = {"base": 512 * 128, "large": 256 * 128}
    paths = [path for path in FOLDER.glob("bert_*.json") if path.stem.split("_")[1] in tokens]
    assert len(paths) == 8
    for path in paths:
        config = load_config(path)
        for ranks in (1, 8, 32, 64):
            total, micro, _ = config.batch_sizes(ranks)
            largest = tokens[config.model.preset] // config.data.seq_length
            assert micro == min(largest, total // ranks), (path.stem, ranks)


@functools.cache
def loaded(path):
    """The configuration of a file, and its model on the meta device."""
    config = load_config(path).with_model(vocab_size=30528)
    if config.model.next_sentence_prediction == "auto":
        config = config.with_model(next_sentence_prediction=True)
    return config, model_on_meta(config.model)


@functools.cache
def model_on_meta(config):
    with torch.device("meta"):
        return make_model(config)


def gates_at_the_lowest_share(config, num_blocks):
    """Gates of 16 full rows when the keep probabilities have fallen; None without layer dropping."""
    pld, seq = config.progressive_layer_drop, config.data.seq_length
    if not pld.enabled:
        return None
    schedule = make_schedule(config, num_blocks)
    step = (schedule.finish_step or 10**6) - 1
    assert schedule.theta(step) == pytest.approx(pld.theta, rel=0.01)
    sizes = {"rows": 16, "lengths": np.full(16, seq), "padded_length": seq}
    return draw_gates(schedule, granularity=pld.granularity, seed=0, step=step, device="meta", **sizes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_is_accepted_with_its_gates_optimizer_and_scheduler(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    config, model = loaded(path)
    total, micro, accumulation = sizes = config.batch_sizes(1)
    settings = {**config.deepspeed, **dict(zip(BATCH_KEYS, sizes, strict=True))}
    assert DeepSpeedConfig(settings).train_micro_batch_size_per_gpu == micro
    assert total == micro * accumulation
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config.model)
    gates_at_the_lowest_share(config, model.num_gated_blocks)

    block = config.deepspeed["optimizer"]
    assert block["type"] in optimizers.OUR_OPTIMIZERS
    groups = optimizers.parameter_groups(model, block["params"]["weight_decay"], muon=block["type"] == "Muon")
    optimizer = optimizers.build_optimizer(block, groups)
    scheduler = config.deepspeed["scheduler"]
    if scheduler["type"] in schedulers.OUR_SCHEDULERS:
        schedulers.scheduler_builder(scheduler, config.training.max_steps)(optimizer)


def computation(path):
    """What the computation of a step depends on: the blocks of the model, the granularity, the sequence length."""
    content = read_json(path)
    pld = content.get("progressive_layer_drop", {})
    dropping = pld.get("granularity", "batch") if pld.get("enabled") else None
    return json.dumps(content["model"], sort_keys=True), dropping, content["data"]["seq_length"]


DISTINCT = {computation(path): path for path in reversed(CONFIGS)}


@pytest.mark.parametrize("path", DISTINCT.values(), ids=lambda path: path.stem)
def test_shipped_configuration_runs_a_step_on_meta_tensors(path):
    """One configuration for each computation; the others differ in schedules and learning rates."""
    config, model = loaded(path)
    model.zero_grad(set_to_none=True)
    seq, masked = config.data.seq_length, 19 * 16
    ids = torch.zeros(16, seq, dtype=torch.int64, device="meta")
    labels = torch.zeros(masked, dtype=torch.int64, device="meta")
    gates = gates_at_the_lowest_share(config, model.num_gated_blocks)
    outputs = model(ids, ids, None, labels, labels, ids[:, 0], gates=gates)
    outputs["loss"].backward()
    gradients = sum(p.grad is not None for p in model.encoder.blocks.parameters())
    kept = [block for index, block in enumerate(model.encoder.blocks) if not gates or gates[index].keep]
    assert gradients == sum(len(list(block.parameters())) for block in kept)
