"""The state that is saved from one engine and restored into another: exact for every stage and precision."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from engine_states import restore, six_batches, snapshot, start, train
from safetensors.torch import load_file

from bert_pld.checkpoint.gather import StateGatherer
from bert_pld.checkpoint.safetensors_file import FileChecksum, NonFiniteTensorError, write_tensors
from bert_pld.checkpoint.zero_state import read_scalars, restore_scalars

BF16 = {"bf16": {"enabled": True}}

MUON = {"type": "Muon", "params": {"lr": 3e-3, "weight_decay": 0.01}}
OTHERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adagrad": {"lr": 1e-2},
    "NAdam": {"lr": 3e-3},
    "RMSprop": {"lr": 1e-3, "centered": True},
    "Rprop": {"lr": 1e-3},
    "Adamax": {"lr": 3e-3},
    "RAdam": {"lr": 3e-3},
    "ASGD": {"lr": 0.1},
    "Adadelta": {"lr": 1.0},
    "AdamW": {"lr": 3e-3, "amsgrad": True},
}


CPU = {"device": "cpu"}


def stage(number, **blocks):
    """A ZeRO stage with blocks of its own (offload_…) and other blocks."""
    offload = {key: blocks.pop(key) for key in list(blocks) if key.startswith("offload")}
    # With its default size, a bucket of every engine would stay reserved, and a later test could not fork.
    return {"zero_optimization": {"stage": number, "reduce_bucket_size": 1_000_000, **offload}, **blocks}


SETTINGS = {
    "fp32": stage(0),
    "stage_1": stage(1),
    "stage_2": stage(2),
    "stage_3": stage(3),
    "bf16": stage(0, **BF16),
    "bf16_stage_1": stage(1, **BF16),
    "bf16_stage_3": stage(3, **BF16),
    "bf16_fp32_gradients": stage(1, **BF16, data_types={"grad_accum_dtype": "fp32"}),
    "no_bias_correction": stage(1, optimizer={"type": "Adam", "params": {"lr": 3e-3, "bias_correction": False}}),
    "schedule": stage(1, scheduler={"type": "WarmupExpDecayLR", "params": {"warmup_num_steps": 6, "decay_rate": 0.5}}),
    **{f"offload_stage_{number}": stage(number, offload_optimizer=CPU) for number in (1, 2, 3)},
    "offload_bf16": stage(2, offload_optimizer=CPU, **BF16),
    "offload_old_name": {"zero_optimization": {"stage": 2, "cpu_offload": True}},
    "offload_muon": stage(1, offload_optimizer=CPU, optimizer=MUON),
    "offload_muon_stage_3": stage(3, offload_optimizer=CPU, optimizer=MUON),
    "offload_sgd": stage(1, offload_optimizer=CPU, optimizer={"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}),
    "offload_parameters": stage(3, offload_optimizer=CPU, offload_param=CPU),
    "offload_parameters_alone": stage(3, offload_param=CPU),
    "torch_schedule": stage(1, scheduler={"type": "OneCycleLR", "params": {"max_lr": 1e-2, "total_steps": 12}}),
    **{f"muon_stage_{number}": stage(number, optimizer=MUON) for number in range(4)},
    "muon_bf16": stage(1, **BF16, optimizer=MUON),
    **{
        f"{kind}_stage_{number}": stage(number, optimizer={"type": kind, "params": params})
        for kind, params in OTHERS.items()
        for number in ((0,) if kind == "Adagrad" else (0, 1))
    },
    "deepspeed_schedule": {
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_num_steps": 3, "total_num_steps": "auto", "warmup_max_lr": "auto"},
        }
    },
}


pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def batches(corpus):
    return six_batches(corpus)


@pytest.mark.parametrize("setting", SETTINGS)
def test_engine_continues_bitwise_from_a_restored_state(setting, batches, tmp_path):
    engine = start(SETTINGS[setting])
    train(engine, batches, 0, 3)
    tensors, scalars = snapshot(engine)
    whole = train(engine, batches, 3, 6)
    assert {name for arrays in list(tensors.values())[1:] for name in arrays} == set(tensors["weights"])
    if "exp_avg" in tensors:
        changed = [np.abs(array).max() > 0 for array in tensors["exp_avg"].values()]
        assert sum(changed) > len(changed) / 2  # Blocks that were dropped have no gradient.
    resumed = restore(SETTINGS[setting], tensors, scalars, tmp_path, 3)
    assert train(resumed, batches, 3, 6) == whole
    assert resumed.global_steps == 6
    assert resumed.get_lr() == engine.get_lr()


def test_automatic_schedule_reaches_the_optimizer_s_rate_and_ends_at_zero(batches):
    engine = start(SETTINGS["deepspeed_schedule"])
    train(engine, batches, 0, 4)
    assert engine.get_lr() == pytest.approx([3e-3] * 2)  # The last step of the warm-up.
    assert engine.lr_scheduler.total_num_steps == 12


@pytest.mark.parametrize("optimizer", [MUON, {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}])
@pytest.mark.parametrize("number", [1, 2])
def test_offloaded_optimizer_leaves_dropped_blocks_where_they_are(number, optimizer, batches):
    """DeepSpeed's buffer of gradients on the host keeps what no backward overwrites."""
    dropping = {"theta": 0.3, "depth": "uniform", "seed": 5}
    blocks = {"progressive_layer_drop": dropping, "optimizer": optimizer, "model": {"hidden_dropout": 0.0}}
    plain = train(start({**SETTINGS[f"stage_{number}"], **blocks}), batches, 0, 6)
    offloaded = train(start({**stage(number, offload_optimizer=CPU), **blocks}), batches, 0, 6)
    assert offloaded == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(("before", "after"), [("stage_1", "stage_3"), ("stage_3", "fp32"), ("fp32", "stage_2")])
def test_state_is_restored_bitwise_at_another_stage(before, after, batches, tmp_path):
    engine = start(SETTINGS[before])
    train(engine, batches, 0, 3)
    tensors, scalars = snapshot(engine)
    again, same_scalars = snapshot(restore(SETTINGS[after], tensors, scalars, tmp_path, 3))
    assert {kind: list(arrays) for kind, arrays in again.items()} == {k: list(a) for k, a in tensors.items()}
    for kind, arrays in tensors.items():
        for name, array in arrays.items():
            assert np.array_equal(array, again[kind][name]), (kind, name)
    assert same_scalars["state"] == scalars["state"]


def test_offloaded_adam_goes_on_from_the_other_adam_s_step_counter(batches, tmp_path):
    """Adam on the host is DeepSpeed's, which counts its steps in an integer, or torch's, which does in a tensor."""
    engine = start(SETTINGS["offload_stage_2"])
    train(engine, batches, 0, 3)
    tensors, scalars = snapshot(engine)
    whole = train(engine, batches, 3, 6)
    assert scalars["state"]["step"] == {"value": 3.0, "tensor": True}
    scalars["state"]["step"] = {"value": 3, "tensor": False}
    assert train(restore(SETTINGS["offload_stage_2"], tensors, scalars, tmp_path, 3), batches, 3, 6) == whole


def test_bf16_weights_are_saved_in_fp32(batches):
    engine = start(SETTINGS["bf16_stage_1"])
    train(engine, batches, 0, 2)
    name, parameter = next(iter(engine.module.named_parameters()))
    weights = snapshot(engine)[0]["weights"][name]
    assert parameter.dtype == torch.bfloat16
    assert (weights != parameter.detach().float().numpy()).any()
    assert np.array_equal(torch.tensor(weights).bfloat16().float().numpy(), parameter.detach().float().numpy())


def test_loss_scale_is_saved_and_restored(batches):
    engine = start(SETTINGS["stage_1"])
    gatherer = StateGatherer(engine, None)
    scaler = DynamicLossScaler(2.0**16, 2.0, 1000, 1.0, 2, False)
    scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis = 512.0, 40, 33, 1
    engine.optimizer.loss_scaler = scaler
    saved = json.loads(json.dumps(read_scalars(engine, gatherer.states()[1])))
    engine.optimizer.loss_scaler = fresh = DynamicLossScaler(2.0**16, 2.0, 1000, 1.0, 2, False)
    restore_scalars(engine, gatherer.pieces, saved, 40)
    assert (fresh.cur_scale, fresh.cur_iter, fresh.last_overflow_iter, fresh.cur_hysteresis) == (512.0, 40, 33, 1)


def test_loss_scale_does_not_go_to_another_precision(batches):
    engine = start(SETTINGS["stage_1"])
    gatherer = StateGatherer(engine, None)
    constant = engine.optimizer.loss_scaler
    in_fp32 = json.loads(json.dumps(read_scalars(engine, gatherer.states()[1])))
    engine.optimizer.loss_scaler = dynamic = DynamicLossScaler(2.0**16, 2.0, 1000, 1.0, 2, False)
    in_fp16 = json.loads(json.dumps(read_scalars(engine, gatherer.states()[1])))
    restore_scalars(engine, gatherer.pieces, in_fp32, 3)
    restore_scalars(engine, gatherer.pieces, {**in_fp32, "loss_scale": {"cur_scale": 1.0}}, 3)  # of an older release
    assert dynamic.cur_scale == 2.0**16
    engine.optimizer.loss_scaler = constant
    restore_scalars(engine, gatherer.pieces, in_fp16, 3)
    assert constant.cur_scale == 1.0


def test_tensor_file_is_safetensors_with_the_returned_checksum(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(3, 5)).astype(np.float32), "b.c": rng.normal(size=4_500_000).astype(np.float32)}
    written = write_tensors(tmp_path / "t", tensors)
    read = load_file(tmp_path / "t")
    assert all(np.array_equal(read[name].numpy(), array) for name, array in tensors.items())
    content = (tmp_path / "t").read_bytes()
    assert written == FileChecksum(len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_written(value, tmp_path):
    tensors = {"good": np.ones(3, np.float32), "bad": np.array([1.0, value], np.float32)}
    with pytest.raises(NonFiniteTensorError, match="bad has values that are not finite"):
        write_tensors(tmp_path / "t", tensors)
