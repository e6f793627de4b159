"""The predictions of `plan` against the paper's figures and against the memory that a block uses."""

import json

import pytest
import torch
from published_config import PUBLISHED_CONFIG

from bert_pld.config import load_config
from bert_pld.model import make_model
from bert_pld.plan import format_plan, make_plan


def plan_of(changes=None, **arguments):
    return make_plan(load_config({**json.loads(PUBLISHED_CONFIG), **(changes or {})}), **arguments)


def test_published_configuration_gives_the_paper_s_figures():
    plan = plan_of(world_size=64)
    assert (plan.train_batch_size, plan.micro_batch_size, plan.accumulation_steps) == (4096, 16, 4)
    assert plan.depth_at_limit == pytest.approx(8.75)
    assert plan.block_saving_at_limit == pytest.approx(0.2708, abs=1e-4)
    assert plan.keep_probabilities_at_limit == pytest.approx([1 - i / 24 for i in range(1, 13)])
    assert plan.run.model.vocab_size == 30_528  # 30,522 rounded up to a multiple of 8
    assert plan.run.model.next_sentence_prediction is True
    # 6·128·(12·768² + 2·128·768) per block; the head on 15 % of 128 positions; the pooler. What follows attention in
    # the last block that runs (nearly every micro-batch has one) is computed at these positions and at [CLS] only.
    block = 6 * 128 * (12 * 768**2 + 2 * 128 * 768)
    heads = 6 * (0.15 * 128 * (768**2 + 768 * 30_528) + 768**2) - 6 * (128 - 0.15 * 128 - 1) * 9 * 768**2
    assert plan.flops_full == pytest.approx(12 * block + heads)
    assert plan.flops_at_limit == pytest.approx(8.75 * block + heads)
    assert plan.ratio_at_limit == pytest.approx((8.75 * block + heads) / (12 * block + heads))
    assert plan.ratio_at_limit == pytest.approx(0.726, abs=5e-4)
    assert plan.total_flops == pytest.approx(plan.flops_mean * 4096 * 200_000)


def test_mean_depth_of_the_run_is_the_mean_over_its_steps():
    plan = plan_of({"training": {"max_steps": 550}, "progressive_layer_drop": {"theta": 0.3, "gamma": 0.01}})
    thetas = [0.7 * 2.718281828459045 ** (-0.01 * step) + 0.3 for step in range(600)]
    depths = [sum(1 - block / 12 * (1 - theta) for block in range(1, 13)) for theta in thetas]
    assert plan.mean_depth == pytest.approx(sum(depths[:550]) / 550)
    assert plan.flops_at_limit < plan.flops_mean < plan.flops_full
    steps = plan.steps_until_limit
    assert thetas[steps] <= 0.303 < thetas[steps - 1]
    for step, theta, depth in plan.theta_by_step:
        assert (theta, depth) == pytest.approx((thetas[step], depths[step]))
    assert [plan.theta_by_step[0][0], plan.theta_by_step[-1][0]] == [0, 549]


def test_token_granularity_counts_attention_with_the_square_of_the_share():
    dropping = {"theta": 0.4, "temporal": "constant", "granularity": "token", "depth": "uniform", "dense_warmup": 0.1}
    ends = {"keep_first_block": True, "keep_last_block": True, "dense_finish": 0.2}
    plan = plan_of({"training": {"max_steps": 500}, "progressive_layer_drop": {**dropping, **ends}})
    projections, attention, heads = 6 * 128 * 12 * 768**2, 6 * 128 * 2 * 128 * 768, plan.flops_full
    heads -= 12 * (projections + attention)
    share = 51 / 128  # a block runs on a whole number of tokens
    at_limit = (2 + 10 * share) * projections + (2 + 10 * share**2) * attention
    assert plan.flops_at_limit == pytest.approx(at_limit + heads)
    assert plan.flops_mean == pytest.approx(0.7 * at_limit + 0.3 * 12 * (projections + attention) + heads)
    assert plan.mean_depth == pytest.approx(0.7 * (2 + 10 * share) + 0.3 * 12)
    assert [step for step, *_ in plan.theta_by_step] == [0, 50, 250, 400, 499]
    dropping = pytest.approx(2 + 10 * share)
    assert [depth for *_, depth in plan.theta_by_step] == [12, dropping, dropping, 12, 12]
    assert plan.memory.activation_bytes_at_depth(6) < plan.memory.activation_bytes
    text = format_plan(plan)
    assert "θ → 0.4, constant over steps, uniform over depth, first and last block kept, nothing dropped in the" in text
    assert "in the first 50 and last 100 steps, granularity token\n" in text


def test_without_dropping_nothing_is_saved():
    for changes in ({"progressive_layer_drop": {"enabled": False}}, {"progressive_layer_drop": {"theta": 1.0}}):
        plan = plan_of(changes)
        assert (plan.mean_depth, plan.ratio_over_run, plan.ratio_at_limit, plan.steps_until_limit) == (12, 1, 1, 0)
    plan = plan_of({"progressive_layer_drop": {"theta": 0.5, "gamma": 0}})
    assert (plan.mean_depth, plan.steps_until_limit) == (12, None)
    short = plan_of({"progressive_layer_drop": {"theta": 0.5, "gamma": 0.001}, "training": {"max_steps": 100}})
    assert short.steps_until_limit is None
    assert "within 1 % of the limit: never" in format_plan(plan)


def test_theta_that_grows_has_no_constant_part():
    plan = plan_of({"progressive_layer_drop": {"theta": 0.5, "temporal": "growing", "ramp": 1000}})
    assert plan.steps_until_limit is None
    text = format_plan(plan)
    assert "θ from 0.5 to 1, growing over 1,000 steps" in text
    assert "within 1 % of the limit: only where it starts\n" in text
    assert "constant part" not in text


def test_zero_stages_partition_memory_over_ranks():
    count = plan_of().parameters
    bf16 = {"bf16": {"enabled": True}, "fp16": {"enabled": False}}
    expected = {0: (2, 2, 12), 1: (2, 2, 12 / 8), 2: (2, 2 / 8, 12 / 8), 3: (2 / 8, 2 / 8, 12 / 8)}
    for stage, per_parameter in expected.items():
        memory = plan_of({**bf16, "zero_optimization": {"stage": stage}}, world_size=8).memory
        found = (memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes)
        assert found == pytest.approx([count * size for size in per_parameter])
    fp32 = plan_of({"fp16": {"enabled": False}}).memory
    assert (fp32.parameters_bytes, fp32.gradients_bytes, fp32.optimizer_bytes) == (4 * count, 4 * count, 8 * count)
    offloaded = plan_of({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}).memory
    assert (offloaded.optimizer_bytes, offloaded.optimizer_offloaded) == (0, True)
    muon = plan_of({"optimizer": {"type": "Muon", "params": {"lr": 1e-3}}, "fp16": {"enabled": False}}).memory
    assert muon.optimizer_bytes == 8 * count - 4 * 12 * 12 * 768**2  # one value for each weight of the blocks' matrices


@pytest.mark.parametrize(
    ("optimizer", "values"),
    [
        ({"type": "SGD"}, 0),
        ({"type": "SGD", "params": {"momentum": 0.9}}, 1),
        ({"type": "RMSprop"}, 1),
        ({"type": "RMSprop", "params": {"momentum": 0.9, "centered": True}}, 3),
        ({"type": "AdamW", "params": {"amsgrad": True}}, 3),
    ],
)
def test_memory_counts_the_values_that_an_optimizer_keeps_for_each_weight(optimizer, values):
    plan = plan_of({"optimizer": optimizer, "fp16": {"enabled": False}})
    assert plan.memory.optimizer_bytes == 4 * values * plan.parameters


@pytest.mark.parametrize("kind", [{"normalization": "pre"}, {"normalization": "post"}, {"architecture": "modernbert"}])
def test_predicted_activations_equal_the_tensors_that_a_block_saves(kind):
    model = {"preset": "mini", "hidden_dropout": 0.0, "attention_dropout": 0.0, **kind}
    run = load_config({"train_micro_batch_size_per_gpu": 4, "model": model})
    plan = make_plan(run, vocabulary_size=100)
    block = make_model(plan.run.model).encoder.blocks[1].train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        angles = torch.rand(2, 1, 128, 32).unbind() if "architecture" in kind else ()
        block(torch.randn(4, 128, 256, requires_grad=True), *angles, None, 1.0)
    assert plan.memory.block_activation_bytes == pytest.approx(sum(kept.values()), rel=0.01)
    assert plan.memory.activation_bytes_checkpointed < plan.memory.activation_bytes


def test_fp8_halves_what_only_products_keep():
    bf16 = {"bf16": {"enabled": True}, "fp16": {"enabled": False}}
    plain, narrow = (plan_of({**bf16, "model": {"fp8": fp8}}) for fp8 in (False, True))
    tokens = plain.micro_batch_size * 128
    # Outputs of both LayerNorms and of GELU take one byte instead of two; attention's output takes one more.
    saved = plain.memory.block_activation_bytes - narrow.memory.block_activation_bytes
    assert saved == tokens * (2 * 768 + 3072 - 768)
    assert " M parameters, matrix products of the blocks in FP8\n" in format_plan(narrow)


def test_cuda_graphs_need_the_gradients_of_all_blocks_but_the_last_once_more():
    bf16 = {"bf16": {"enabled": True}, "fp16": {"enabled": False}}
    plain, graphs = (plan_of({**bf16, "model": {"cuda_graphs": on}}).memory for on in (False, True))
    of_a_block = 12 * 768**2 + 13 * 768
    assert graphs.gradients_bytes - plain.gradients_bytes == 2 * 11 * of_a_block
    assert graphs.total_bytes - plain.total_bytes == 2 * 11 * of_a_block


def test_scaling_is_predicted_at_this_batch_size():
    assert plan_of().scaling == []
    plan = plan_of({"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}}, world_size=1024)
    sizes = [(row.world_size, row.accumulation_steps, row.micro_batch_size) for row in plan.scaling]
    assert sizes == [(16, 4, 64), (64, 1, 64), (256, 1, 16), (1024, 1, 4)]
    times = [row.step.total for row in plan.scaling]
    assert times[0] > times[1] > times[2] < times[3]  # with 4 sequences per rank, more ranks make the step slower
    for row in plan.scaling:
        assert plan.ratio_at_limit < row.step.total / row.without_dropping.total < 1.0
    assert plan.as_json()["scaling"][-1]["step"]["efficiency"] == pytest.approx(plan.scaling[-1].step.efficiency)
    assert "1,024    1 × 4 " in format_plan(plan)


def test_phases_of_the_learning_rate_and_of_the_masks_are_listed_at_their_corners():
    blocks = {
        "train_batch_size": 8,
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-3}},
        "scheduler": {"type": "WarmupStableDecayLR", "params": {"decay_type": "linear", "decay_num_steps": 200}},
        "data": {"mask_probability": {"start": 0.3, "end": 0.1, "after": 0.8}},
        "training": {"max_steps": 1000},
    }
    plan = make_plan(load_config(blocks))
    assert [(one.step, one.phase, one.lr, one.mask_probability) for one in plan.rates_by_step] == [
        (0, "warmup", 0.0, 0.3),
        (20, "stable", 2e-3, 0.3),
        (500, "stable", 2e-3, 0.3),
        (800, "decay", 2e-3, 0.3),
        (900, "decay", pytest.approx(1e-3), pytest.approx(0.2)),
        (999, "decay", pytest.approx(1e-5), pytest.approx(0.101)),
    ]
    assert "      900   decay            0.001   20.0%" in format_plan(plan)
    constant = make_plan(load_config({**blocks, "data": {"mask_probability": 0.3 * 0.8 + 0.2 * 0.2}}))
    assert plan.total_flops == pytest.approx(constant.total_flops)


def test_modernbert_s_plan_counts_its_own_blocks_and_names_the_window():
    base = load_config("modernbert_base_pld_128.json")
    plan = make_plan(base, vocabulary_size=50_368)
    assert plan.parameters == 149_655_232  # those of the stock class with its default sizes
    printed = format_plan(plan)
    assert "22 blocks × 768, 12 heads, FFN 1152" in printed
    assert "rotary positions; 14 of 22 blocks attend to tokens at most 64 away" in printed
    narrow = make_plan(load_config("bert_tiny_pld.json", ["model.architecture=modernbert"]), vocabulary_size=100)
    assert "at most 64 away, which is all of 32 tokens" in format_plan(narrow)
    assert plan.memory.activation_bytes_checkpointed < plan.memory.activation_bytes
