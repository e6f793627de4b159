"""`bert_pld.initialize`: DeepSpeed's signature and results, gates for any model that takes them."""

from __future__ import annotations

import argparse
import json

import deepspeed
import pytest
import torch
from torch import nn

import bert_pld
from bert_pld.cluster.process_group import join_process_group
from bert_pld.config import ConfigError

CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "torch_adam": True}},
    "progressive_layer_drop": {"enabled": True, "theta": 0.5, "gamma": 0.1},
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x, scale):
        return x + scale * torch.tanh(self.inner(x))


class Tower(nn.Module):
    """A user's own model, without any part of our BERT."""

    num_gated_blocks = 3

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.seen = []

    def forward(self, x, gates=None):
        self.seen.append(gates)
        for index, block in enumerate(self.blocks):
            x = bert_pld.run_gated(block, x, None if gates is None else gates[index])
        return x.square().mean()


class WithoutGates(Tower):
    def forward(self, x):
        return super().forward(x)


@pytest.fixture(scope="module", autouse=True)
def process_group():
    join_process_group()
    yield
    deepspeed.comm.destroy_process_group()


def start(model=None, config=CONFIG, **keywords):
    model = model or Tower()
    return bert_pld.initialize(model=model, model_parameters=model.parameters(), config=config, **keywords)


def test_largest_micro_batch_of_our_block_becomes_deepspeed_s():
    sizes = {"train_batch_size": 12, "train_micro_batch_size_per_gpu": None, "training": {"max_micro_batch_size": 5}}
    engine = start(config={**CONFIG, **sizes})[0]
    assert (engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()) == (4, 3)


def test_batch_sizes_that_are_auto_are_computed_from_the_others():
    for total, micro, accumulation in ((8, 4, "auto"), (8, "auto", 2), ("auto", 4, 2)):
        sizes = {"train_batch_size": total, "train_micro_batch_size_per_gpu": micro}
        engine = start(config={**CONFIG, **sizes, "gradient_accumulation_steps": accumulation})[0]
        found = engine.train_batch_size(), engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
        assert found == (8, 4, 2)
    with pytest.raises(ConfigError, match="train_batch_size or train_micro_batch_size_per_gpu: auto; give at least"):
        start(config={**CONFIG, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"})


def test_initialize_returns_deepspeed_s_tuple_and_theta_follows_global_steps():
    engine, optimizer, loader, scheduler = start()
    assert optimizer is not None
    assert (loader, scheduler) == (None, None)
    thetas, gates = [], []
    for _ in range(4):  # two micro-batches a step
        loss = engine(torch.ones(4, 5))
        engine.backward(loss)
        engine.step()
        gates.append(engine.module.seen[-1])
        thetas.append(gates[-1].theta)
    schedule = engine.layer_dropper.schedule
    assert thetas == [schedule.theta(0), schedule.theta(0), schedule.theta(1), schedule.theta(1)]
    expected = bert_pld.draw_gates(schedule, granularity="batch", seed=0, step=1, micro_step=1, rows=4)
    assert [g.keep for g in gates[-1]] == [g.keep for g in expected]
    assert engine.layer_dropper.theta == schedule.theta(2)


def test_evaluation_forward_receives_no_gates():
    engine, *_ = start()
    engine.eval()
    engine(torch.ones(4, 5))
    assert engine.module.seen == [None]


def test_sample_granularity_passes_row_indices():
    engine, *_ = start(
        config={**CONFIG, "progressive_layer_drop": {"theta": 0.5, "temporal": "constant", "granularity": "sample"}}
    )
    engine(torch.ones(4, 5))
    assert [4 if g.rows is None else len(g.rows) for g in engine.module.seen[-1]] == pytest.approx(
        [10 / 3, 8 / 3, 2], abs=1
    )


class TokenTower(Tower):
    """A user's model on [rows, tokens, 5], whose blocks take no padding mask."""

    def forward(self, x, attention_mask=None, masked_positions=None, gates=None):
        return super().forward(x, gates)


@pytest.mark.parametrize("masked", [True, False])
def test_token_granularity_passes_subsets_of_the_tokens(masked):
    by_token = {"theta": 0.5, "temporal": "constant", "granularity": "token", "depth": "uniform"}
    engine, *_ = start(TokenTower(), {**CONFIG, "progressive_layer_drop": by_token})
    lengths = [8, 6, 4, 1] if masked else [8] * 4
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    engine(torch.ones(4, 8, 5), **({"attention_mask": mask} if masked else {}))
    for gate in engine.module.seen[-1]:
        assert gate.tokens.counts.tolist() == [max(length // 2, 1) for length in lengths]
        assert gate.tokens.kept.sum(1).tolist() == gate.tokens.counts.tolist()
        assert not (gate.tokens.kept & ~mask).any()
    if masked:  # by position, as `engine(*batch)` does
        engine(torch.ones(4, 8, 5), mask)
        assert all(gate.tokens.lengths.tolist() == lengths for gate in engine.module.seen[-1])
    with pytest.raises(ValueError, match=r"granularity 'token': the model's first tensor must be \[rows, tokens, …\]"):
        engine(torch.ones(4))


def test_masked_tokens_are_kept_in_every_block():
    by_token = {"theta": 0.5, "temporal": "constant", "granularity": "token", "keep_masked_tokens": True}
    engine, *_ = start(TokenTower(), {**CONFIG, "progressive_layer_drop": {**by_token, "depth": "uniform"}})
    masked = torch.tensor([1, 6, 8, 15, 16, 31])
    engine(torch.ones(4, 8, 5), masked_positions=masked)
    for gate in engine.module.seen[-1]:
        assert gate.tokens.counts.tolist() == [4] * 4
        assert gate.tokens.kept.flatten()[masked].all()
    with pytest.raises(ValueError, match="keep_masked_tokens: the engine got no argument masked_positions"):
        engine(torch.ones(4, 8, 5))


def test_tokens_near_masked_ones_are_kept_next_in_every_block():
    by_token = {"theta": 0.5, "temporal": "constant", "granularity": "token", "keep_masked_tokens": True}
    drop = {**by_token, "depth": "uniform", "keep_near_masked": 1}
    engine, *_ = start(TokenTower(), {**CONFIG, "progressive_layer_drop": drop})
    engine(torch.ones(4, 8, 5), masked_positions=torch.tensor([1, 8, 9, 21, 22, 31]))
    for gate in engine.module.seen[-1]:
        kept = gate.tokens.kept
        assert kept.sum(1).tolist() == [4] * 4
        assert kept[0, [0, 1, 2]].all()
        assert kept[1, [0, 1, 2]].all()
        assert kept[2, 4:].all()
        assert kept[3, [6, 7]].all()


def test_same_tokens_gives_all_blocks_of_equal_share_one_subset():
    by_token = {"theta": 0.5, "temporal": "constant", "depth": "uniform", "granularity": "token"}
    for same_tokens in (True, False):
        drop = {**by_token, "same_tokens": same_tokens}
        engine, *_ = start(TokenTower(), {**CONFIG, "progressive_layer_drop": drop})
        engine(torch.ones(4, 8, 5))
        subsets = [gate.tokens for gate in engine.module.seen[-1]]
        assert all(one is subsets[0] for one in subsets) is same_tokens


def test_configuration_is_read_from_args_or_from_a_file(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(CONFIG))
    args = argparse.Namespace(deepspeed_config=str(path), local_rank=0)
    model = Tower()
    engine, *_ = bert_pld.initialize(args, model, None, model.parameters())
    assert engine.layer_dropper.schedule.gamma == 0.1
    engine, *_ = start(config=str(path))
    assert engine.layer_dropper.schedule.gamma == 0.1


def test_without_the_pld_block_initialize_is_plain_deepspeed():
    engine, *_ = start(model=WithoutGates(), config={k: v for k, v in CONFIG.items() if k != "progressive_layer_drop"})
    assert engine.layer_dropper is None
    assert torch.isfinite(engine(torch.ones(4, 5)))


def test_model_that_cannot_receive_gates_is_rejected():
    with pytest.raises(ValueError, match="does not accept 'gates'"):
        start(model=WithoutGates())
    unknown_depth = Tower()
    unknown_depth.num_gated_blocks = None
    with pytest.raises(ValueError, match="unknown number of gated blocks"):
        start(model=unknown_depth)


def test_missing_configuration_is_reported_in_one_line():
    with pytest.raises(ConfigError, match="config: missing"):
        bert_pld.initialize(model=Tower())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": "auto"}, "gamma: 'auto' is 100 / training.max_steps, which is not given; give it, or a number"),
        ({"temporal": "linear"}, "ramp: 0.1 is a share of training.max_steps"),
        ({"dense_warmup": 0.1}, "dense_warmup: 0.1 is a share of training.max_steps"),
        ({"dense_finish": 100}, "dense_finish: 100 counts from the end of training.max_steps"),
    ],
)
def test_schedule_that_depends_on_the_number_of_steps_is_refused_without_it(changes, message):
    config = {**CONFIG, "progressive_layer_drop": {**CONFIG["progressive_layer_drop"], **changes}}
    with pytest.raises(ConfigError, match=message):
        start(config=config)
    schedule = start(config={**config, "training": {"max_steps": 1000}})[0].layer_dropper.schedule
    assert schedule.theta(500) < 1.0


def test_dense_warmup_in_steps_needs_no_number_of_steps():
    blocks = {"progressive_layer_drop": {"theta": 0.5, "gamma": 0.1, "dense_warmup": 300_000}}
    schedule = start(config={**CONFIG, **blocks})[0].layer_dropper.schedule
    assert [schedule.theta(step) for step in (200_001, 300_000)] == [1.0, 1.0]
    assert schedule.theta(300_100) < 0.51
    message = r"dense_warmup \+ dense_finish: 300000 steps; must be at most training.max_steps \(1000\)"
    with pytest.raises(ConfigError, match=message):
        start(config={**CONFIG, **blocks, "training": {"max_steps": 1000}})


class PassesOn(Tower):
    """A wrapper that hands its keywords on."""

    def forward(self, x, **keywords):
        return super().forward(x, **keywords)


def test_forward_with_any_keywords_must_say_that_it_passes_gates_on():
    model = PassesOn()
    model.num_gated_blocks, model.config = None, argparse.Namespace(num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"PassesOn.forward has \*\*kwargs but no 'gates', and may ignore them"):
        start(model=model)
    engine = start(model=model, num_blocks=3)[0]
    engine(torch.ones(4, 5))
    assert len(model.seen[-1]) == 3


def test_second_engine_on_a_model_replaces_the_gates_of_the_first():
    model = Tower()
    first = start(model=model)[0]
    first.global_steps = 1000
    second = start(model=model)[0]
    second(torch.ones(4, 5))
    assert model.seen[-1] is second.layer_dropper.last_gates
    assert model.seen[-1].theta == 1.0
    start(model=model, config={**CONFIG, "progressive_layer_drop": {"enabled": False}})[0](torch.ones(4, 5))
    assert model.seen[-1] is None


TOKEN_CONFIG = {
    **CONFIG,
    "progressive_layer_drop": {"theta": 0.5, "temporal": "constant", "depth": "uniform", "granularity": "token"},
}


class Padded(Tower):
    def forward(self, x, attention_mask=None, sequence_lengths=None, gates=None):
        return super().forward(x, gates)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"attention_mask": torch.ones(2, 1, 1, 8)}, r"attention_mask has the shape \(2, 1, 1, 8\); must be \(2, 8\)"),
        ({"attention_mask": torch.zeros(2, 8)}, "row 0 must have 1 for its tokens, then 0 for padding at the end"),
        ({"attention_mask": torch.tensor([[1] * 8, [0] * 3 + [1] * 5])}, "row 1 must have 1 for its tokens"),
        ({"sequence_lengths": [8]}, "must be 2 numbers of tokens, each in 1 … 8"),
        ({"sequence_lengths": [0, 9]}, "must be 2 numbers of tokens, each in 1 … 8"),
    ],
)
def test_padding_that_would_be_misread_is_an_error(keywords, message):
    engine = start(model=Padded(), config=TOKEN_CONFIG)[0]
    with pytest.raises(ValueError, match=message):
        engine(torch.ones(2, 8, 5), **keywords)


def test_sequence_lengths_without_a_mask_keep_padding_out():
    engine = start(model=Padded(), config=TOKEN_CONFIG)[0]
    engine(torch.ones(2, 8, 5), sequence_lengths=[3, 8])
    for gate in engine.layer_dropper.last_gates:
        assert gate.tokens.counts.tolist() == [2, 4]
        assert not gate.tokens.kept[0, 3:].any()


def test_any_object_with_a_configuration_serves_as_args(tmp_path):
    class Arguments:
        def __init__(self, path):
            self.deepspeed_config = path

    path = tmp_path / "ds.json"
    path.write_text(json.dumps(CONFIG))
    arguments, model = Arguments(str(path)), Tower()
    engine, *_ = bert_pld.initialize(arguments, model, None, model.parameters())
    assert engine.layer_dropper is not None
    assert arguments.deepspeed_config == str(path)
