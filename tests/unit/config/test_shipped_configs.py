"""Every configuration in configs/ loads, is accepted by DeepSpeed, and runs a step at full size on meta tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from repository import REPOSITORY

from bert_pld.config import BATCH_KEYS, load_config
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
    tokens = {"base": 256 * 128, "large": 128 * 128}
    paths = [path for path in FOLDER.glob("bert_*.json") if path.stem.split("_")[1] in tokens]
    assert len(paths) == 8
    for path in paths:
        config = load_config(path)
        for ranks in (1, 8, 32, 64):
            total, micro, _ = config.batch_sizes(ranks)
            largest = tokens[config.model.preset] // config.data.seq_length
            assert micro == min(largest, total // ranks), (path.stem, ranks)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_loads_and_runs_a_step_on_meta_tensors(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    config = load_config(path).with_model(vocab_size=30528)
    if config.model.next_sentence_prediction == "auto":
        config = config.with_model(next_sentence_prediction=True)
    total, micro, accumulation = sizes = config.batch_sizes(1)
    settings = {**config.deepspeed, **dict(zip(BATCH_KEYS, sizes, strict=True))}
    assert DeepSpeedConfig(settings).train_micro_batch_size_per_gpu == micro
    assert total == micro * accumulation

    with torch.device("meta"):
        model = make_model(config.model)
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config.model)
    seq, masked = config.data.seq_length, 19 * 16
    ids = torch.zeros(16, seq, dtype=torch.int64, device="meta")
    labels = torch.zeros(masked, dtype=torch.int64, device="meta")
    gates = None
    if config.progressive_layer_drop.enabled:
        schedule = make_schedule(config, model.num_gated_blocks)
        granularity = config.progressive_layer_drop.granularity
        step = (schedule.finish_step or 10**6) - 1
        lengths = np.full(16, seq)
        gates = draw_gates(
            schedule, granularity=granularity, seed=0, step=step, rows=16,
            lengths=lengths, padded_length=seq, device="meta",
        )  # fmt: skip
        assert schedule.theta(step) == pytest.approx(config.progressive_layer_drop.theta, rel=0.01)
    outputs = model(ids, ids, None, labels, labels, ids[:, 0], gates=gates)
    outputs["loss"].backward()
    gradients = sum(p.grad is not None for p in model.encoder.blocks.parameters())
    kept = [block for index, block in enumerate(model.encoder.blocks) if not gates or gates[index].keep]
    assert gradients == sum(len(list(block.parameters())) for block in kept)

    block = config.deepspeed["optimizer"]
    assert block["type"] in optimizers.OUR_OPTIMIZERS
    groups = optimizers.parameter_groups(model, block["params"]["weight_decay"], muon=block["type"] == "Muon")
    optimizer = optimizers.build_optimizer(block, groups)
    scheduler = config.deepspeed["scheduler"]
    if scheduler["type"] in schedulers.OUR_SCHEDULERS:
        schedulers.scheduler_builder(scheduler, config.training.max_steps)(optimizer)
