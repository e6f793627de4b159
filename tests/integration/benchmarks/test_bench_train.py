"""benchmarks train on tiny sizes: figures exist and are consistent; their size is not tested."""

import math
import os
import signal
import statistics

import pytest
import torch
from benchmark_command import check_error, measure
from benchmark_command import run_benchmark as run
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import batches
from benchmarks.host_memory import in_own_process
from benchmarks.hugging_face import HUGGING_FACE, make_hugging_face
from benchmarks.train import command as train
from benchmarks.train import contenders, deepspeed_layer, figures
from bert_pld.cost.flops import ModelFlops
from bert_pld.cost.work import BlockWork
from bert_pld.model import BertForPreTraining
from bert_pld.pld.gates import draw_gates
from bert_pld.pld.schedule import Schedule

TINY = [
    "--num_layers=4", "--hidden_size=32", "--num_attention_heads=2", "--vocab_size=64", "--micro_batch_size=4",
    "--seq_length=16", "--rounds=2", "--steps_per_round=3",
]  # fmt: skip
CPU = torch.device("cpu")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed runs on the GPU here")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread, which is faster at these sizes."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


def config_of(*arguments):
    return train.model_config(bench.build_parser("train").parse_args([*TINY, *arguments]))


@on_cpu
def test_train_measures_every_contender_under_one_deepspeed_configuration(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    names = ["hf_bert", "hf_megatron", "reference", "pld_batch", "pld_sample", "pld_token", "pld_token_same"]
    contenders = ",".join([*names, "deepspeed_transformer", "triton"])
    result = measure(tmp_path, "train", *TINY, "--dtypes=fp32", f"--contenders={contenders}")
    printed = capsys.readouterr().out
    assert not torch.distributed.is_initialized()
    assert [one["name"] for one in result["contenders"]] == names
    assert [one["backend"] for one in result["contenders"]] == ["eager"] * 2 + ["reference"] * 5
    assert {one["name"]: one["reason"] for one in result["skipped"]} == {
        "deepspeed_transformer": "requires an NVIDIA GPU, and the device is cpu",
        "triton": "model.kernels: 'triton' requires an NVIDIA GPU, and the device is cpu; use 'auto' or 'reference'",
    }
    assert not any(one["failed"] for one in result["skipped"])
    assert "deepspeed_transformer  skipped: requires an NVIDIA GPU" in printed
    assert result["deepspeed"]["fp32"]["zero_optimization"] == {"stage": 1}
    assert result["loss_difference"] < 1e-5
    by_name = {one["name"]: one for one in result["contenders"]}
    check_figures(result)
    assert by_name["hf_bert"]["attention"] == "sdpa"
    assert all(one["peak_memory_bytes"] is None for one in result["contenders"])
    for name, depth in (
        ("pld_batch", 2.75),
        ("pld_sample", 2.75),
        ("pld_token", 3.0),
        ("pld_token_same", 3.0),
    ):  # θ = 0.5
        one = by_name[name]
        assert one["full_depth"] == "reference"
        assert one["depth_expected"] == pytest.approx(depth)
        assert one["predicted_of_expectation"] < 1
        assert one["time_over_full_depth"] * one["speed_over"]["fp32"]["reference"] == pytest.approx(1)
        expected = one["time_over_full_depth"] / one["predicted_of_gates_drawn"]
        assert one["measured_over_predicted"] == pytest.approx(expected)
    # Counts are exact: 2.75 of 4 blocks on average, off by less than a row in each micro-batch.
    assert by_name["pld_sample"]["depth_drawn"] == pytest.approx(2.75, abs=1 / 4)
    assert by_name["pld_token"]["depth_drawn"] == pytest.approx(3.0, abs=0.1)


def check_figures(result):
    tokens = (1 - result["padding"]) * result["steps_per_round"] * result["micro_batch_size"] * result["seq_length"]
    contenders = {(one["dtype"], one["name"]): one for one in result["contenders"]}
    for one in result["contenders"]:
        rounds = [sum(steps) for steps in one["step_seconds"]]
        assert [len(steps) for steps in one["step_seconds"]] == [result["steps_per_round"]] * result["rounds"]
        low, high = one["tokens_per_s_range"]
        assert 0 < low <= one["tokens_per_s"] <= high
        assert low == pytest.approx(tokens / max(rounds))
        assert one["step_ms_p50"] <= one["step_ms_p95"]
        assert one["step_p95_over_p50"] == pytest.approx(one["step_ms_p95"] / one["step_ms_p50"])
        assert all(math.isfinite(one[key]) and one[key] > 0 for key in ("mfu", "step_ms_p50", "warmup_seconds"))
        # Random weights guess one token of 64 and one of two labels.
        assert one["first_loss"] == pytest.approx(math.log(64) + math.log(2), abs=0.5)
        assert one["skipped_steps"] == 0
        for dtype, over in one["speed_over"].items():
            for name, ratio in over.items():
                theirs = [sum(steps) for steps in contenders[dtype, name]["step_seconds"]]
                ratios = [mine / other for mine, other in zip(rounds, theirs, strict=True)]
                assert ratio == pytest.approx(1 / statistics.median(ratios))


@on_cpu
def test_peer_that_is_very_slow_in_a_dtype_is_skipped_and_failures_are_reported(tmp_path, monkeypatch, capsys):
    def fail(model, *_):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(train, "matmul_gflops", lambda dtype, device, now: 100.0 if dtype == torch.float32 else 1.5)
    monkeypatch.setattr(contenders, "use_deepspeed_blocks", fail)
    arguments = ("--dtypes=fp32,bf16", "--contenders=hugging_face,reference,deepspeed_transformer", "--padding=0.25")
    result, printed = measure(tmp_path, "train", *TINY, *arguments, code=1), capsys.readouterr().out
    ran = [(one["dtype"], one["name"]) for one in result["contenders"]]
    assert ran == [("fp32", "hf_megatron"), ("fp32", "reference"), ("bf16", "reference")]
    check_figures(result)
    assert result["padding"] == pytest.approx(0.25, abs=0.06)
    assert result["loss_difference"] < 1e-5
    assert (
        "bf16  hf_megatron            skipped: matrix products at 1.5 GFLOP/s against fp32's 100; --force measures it"
    ) in printed
    assert "bf16  deepspeed_transformer  failed: RuntimeError: no such kernel" in printed
    assert result["failed"] == [
        f"deepspeed_transformer in {dtype}: RuntimeError: no such kernel" for dtype in ("fp32", "bf16")
    ]


@on_cpu
def test_contender_that_fails_in_its_turn_does_not_affect_the_others(tmp_path, monkeypatch):
    measure_round = contenders.ThroughputContender.measure_round

    def break_off(contender, *arguments):
        if contender.name == "reference" and contender.step_seconds:
            raise RuntimeError("out of memory")
        measure_round(contender, *arguments)

    monkeypatch.setattr(contenders.ThroughputContender, "measure_round", break_off)
    arguments = ("--dtypes=fp32", "--contenders=hugging_face,reference,pld_batch", "--processor_time")
    result = measure(tmp_path, "train", *TINY, *arguments, code=1)
    assert result["clock"] == "processor"
    assert [one["name"] for one in result["contenders"]] == ["hf_megatron", "pld_batch"]
    assert result["failed"] == ["reference in fp32: RuntimeError: out of memory"]


@on_cpu
def test_killed_run_keeps_the_figures_of_its_finished_rounds(tmp_path, monkeypatch):
    measure_round = contenders.ThroughputContender.measure_round

    def interrupt(contender, *arguments):
        if contender.name == "reference" and len(contender.step_seconds) == 1:
            raise KeyboardInterrupt
        measure_round(contender, *arguments)

    monkeypatch.setattr(contenders.ThroughputContender, "measure_round", interrupt)
    arguments = ("--dtypes=fp32", "--contenders=hugging_face,reference", "--rounds=3")
    result = measure(tmp_path, "train", *TINY, *arguments, code=130)
    assert result["rounds"] == 1
    assert [one["name"] for one in result["contenders"]] == ["hf_megatron", "reference"]
    check_figures(result)


def test_json_in_a_missing_folder_is_rejected_before_measuring(tmp_path, capsys):
    assert run("train", *TINY, f"--json={tmp_path / 'missing' / 'train.json'}") == 1
    assert "its folder does not exist; nothing was measured" in capsys.readouterr().err


def _killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_measuring_process_is_an_error_not_a_hang():
    with pytest.raises(RuntimeError, match=r"_killed.*: its process was killed; out of memory\?"):
        in_own_process(_killed, 1)


@pytest.mark.gpu
def test_train_measures_memory_and_kernels_on_a_gpu(tmp_path):
    sizes = ("--hidden_size=128", "--seq_length=64", "--padding=0.1")
    contenders = "--contenders=hf_bert,hf_megatron,reference,triton,pld_batch,pld_sample"
    result = measure(tmp_path, "train", *TINY, *sizes, contenders, "--dtypes=bf16,fp16")
    assert result["skipped"] == []
    assert len(result["contenders"]) == 12
    check_figures(result)
    for one in result["contenders"]:
        assert 0 < one["resident_memory_bytes"] < one["peak_memory_bytes"]
        assert one["mfu"] < 1


@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_hugging_face_classes_have_our_sizes_and_losses(normalization):
    config = config_of(f"--normalization={normalization}")
    for name, theirs in HUGGING_FACE.items():
        model = make_hugging_face(name, config, 0, CPU)
        assert model.config.model_type == {"post": "bert", "pre": "megatron-bert"}[theirs]
        assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 4)
        assert model.config._attn_implementation == ("sdpa" if type(model)._supports_sdpa else "eager")
    difference = contenders.loss_difference(config, batches.random_batch(config, 4, 16, CPU, 0, 0.3), CPU)
    assert difference < 1e-5


def test_modernbert_is_compared_with_the_class_of_its_blocks():
    config = config_of("--architecture=modernbert")
    model = make_hugging_face("hf_modernbert", config, 0, CPU)
    assert (model.config.model_type, model.config.num_hidden_layers) == ("modernbert", 4)
    assert contenders.loss_difference(config, batches.random_batch(config, 4, 16, CPU, 0, 0.3), CPU) < 1e-5
    with pytest.raises(ValueError, match="hf_bert: its blocks are those of --architecture bert, not modernbert"):
        make_hugging_face("hf_bert", config, 0, CPU)


def test_contenders_get_the_same_targets():
    config = config_of()
    batch, again = (batches.random_batch(config, 4, 16, CPU, seed=1) for _ in range(2))
    assert torch.equal(batch.input_ids, again.input_ids)
    assert torch.equal(batch.labels.flatten()[batch.masked_positions], batch.masked_labels)
    assert (batch.labels != -100).sum(1).tolist() == [2, 2, 2, 2]
    assert batch.masked_positions.numel() == 8
    assert batch.attention_mask is None
    assert batch.tokens == 64


def test_padding_is_on_the_right_with_the_requested_share():
    config = config_of()
    batch = batches.random_batch(config, 64, 40, CPU, seed=2, padding=0.2)
    lengths = torch.from_numpy(batch.sequence_lengths)
    assert lengths.min() >= 24
    assert lengths.max() == 40
    assert 1 - batch.tokens / (64 * 40) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(batch.attention_mask, torch.arange(40) < lengths[:, None])
    assert torch.equal(batch.input_ids != 0, batch.attention_mask)
    assert bool(batch.attention_mask.flatten()[batch.masked_positions].all())
    assert torch.equal(batch.labels.flatten()[batch.masked_positions], batch.masked_labels)
    masked = [batches.targets_of(int(length)) for length in lengths]
    assert (batch.labels != -100).sum(1).tolist() == masked


def test_executed_flops_follow_gates_and_lengths():
    config = config_of()
    whole = batches.random_batch(config, 4, 16, CPU, seed=0)
    model = ModelFlops(config, 16, 2 / 16)
    flops = figures.Round(config, [whole, whole], {}, 0.5)
    assert flops.flops_at_depth(4) - flops.left_out(None) == pytest.approx(2 * 4 * model.per_sequence())
    schedule = Schedule(4, theta_limit=0.5, temporal="constant")
    for granularity in ("batch", "sample"):
        gates = [draw_gates(schedule, granularity=granularity, seed=0, step=step, rows=4) for step in (3, 4)]
        expected = sum(4 * model.per_sequence(BlockWork(*[drawn.kept_blocks] * 2, 0.0)) for drawn in gates)
        assert flops.flops_under(gates) == pytest.approx(expected)
        assert flops.flops_under(gates) < flops.flops_at_depth(4)
    # Two masked tokens and [CLS] of each row of 16; a matrix of 12·H² in the last block, less q, k and v.
    assert flops.left_out(None) == 2 * 6 * (12 - 3) * 32**2 * 4 * (16 - 3)
    padded = batches.random_batch(config, 4, 16, CPU, seed=0, padding=0.3)
    each = (ModelFlops(config, n, batches.targets_of(n) / n) for n in padded.sequence_lengths)
    expected = sum(one.per_sequence(BlockWork(4.0, 4.0, last_whole=0.0)) for one in each)
    assert figures.Round(config, [padded], {}, 0.5).flops_at_depth(4) == pytest.approx(expected)


class LayerOfTheirs(nn.Module):
    """The function of `DeepSpeedTransformerLayer`, with its parameter names."""

    def __init__(self, config):
        super().__init__()
        self.config, hidden, inner = config, config.hidden_size, config.intermediate_size
        shapes = {
            "attn_qkvw": (3 * hidden, hidden), "attn_qkvb": (3 * hidden,), "attn_ow": (hidden, hidden),
            "attn_ob": (hidden,), "attn_nw": (hidden,), "attn_nb": (hidden,), "inter_w": (inner, hidden),
            "inter_b": (inner,), "output_w": (hidden, inner), "output_b": (hidden,), "norm_w": (hidden,),
            "norm_b": (hidden,),
        }  # fmt: skip
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))

    def forward(self, hidden, mask):
        def norm(values, name):
            weight, bias = getattr(self, f"{name}w"), getattr(self, f"{name}b")
            return nn.functional.layer_norm(values, weight.shape, weight, bias, self.config.layer_norm_eps)

        def attend(values):
            rows, length, width = values.shape
            parts = nn.functional.linear(values, self.attn_qkvw, self.attn_qkvb).split(width, dim=-1)
            q, k, v = (part.view(rows, length, self.config.heads, -1).transpose(1, 2) for part in parts)
            weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + mask).softmax(-1)
            context = (weights @ v).transpose(1, 2).flatten(2)
            return nn.functional.linear(context, self.attn_ow, self.attn_ob)

        def feed_forward(values):
            inner = nn.functional.gelu(nn.functional.linear(values, self.inter_w, self.inter_b), approximate="tanh")
            return nn.functional.linear(inner, self.output_w, self.output_b)

        if self.config.pre_layer_norm:
            hidden = hidden + attend(norm(hidden, "norm_"))
            return hidden + feed_forward(norm(hidden, "attn_n"))
        hidden = norm(hidden + attend(hidden), "attn_n")
        return norm(hidden + feed_forward(hidden), "norm_")


@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_deepspeed_layers_use_our_weights_and_mask(normalization, monkeypatch):
    import deepspeed.ops.transformer as theirs

    monkeypatch.setattr(theirs, "DeepSpeedTransformerLayer", LayerOfTheirs)
    monkeypatch.setattr(deepspeed_layer, "check_can_run", lambda *_: None)
    config = config_of(f"--normalization={normalization}")
    torch.manual_seed(0)
    model = BertForPreTraining(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    batch = batches.random_batch(config, 4, 16, CPU, seed=0, padding=0.25)
    expected = contenders.forward_ours(model, batch)
    deepspeed_layer.use_deepspeed_blocks(model, 4, 16, "fp32", CPU)
    assert all(isinstance(block, deepspeed_layer.DeepSpeedBlock) for block in model.encoder.blocks)
    assert contenders.forward_ours(model, batch).item() == pytest.approx(expected.item(), abs=2e-3)


def test_reason_of_a_failed_build_is_the_first_compiler_error():
    lines = [
        "[1/9] nvcc -c softmax.cu",
        "softmax.cu(12): error: identifier is undefined",
        "ninja: build stopped: subcommand failed.",
        "RuntimeError: Error building extension 'transformer'",
    ]
    assert deepspeed_layer.reason_in(lines, 1) == "softmax.cu(12): error: identifier is undefined (exit code 1)"
    del lines[1]
    assert deepspeed_layer.reason_in(lines, 1) == "RuntimeError: Error building extension 'transformer' (exit code 1)"
    assert deepspeed_layer.reason_in([], -6) == "no output (exit code -6)"


def test_preset_sets_sizes_and_options_override_them():
    options = bench.build_parser("train").parse_args(["--model_preset=small", "--num_layers=2"])
    config = train.model_config(options)
    assert (config.hidden_size, config.num_layers, config.num_attention_heads, config.vocab_size) == (512, 2, 8, 8192)


def test_user_errors_are_one_line(capsys):
    for arguments, message in (
        (("--dtypes=fp8",), "--dtypes fp8: must be a list of fp32, bf16, fp16"),
        (("--contenders=apex",), "--contenders apex: must be a list of hugging_face, hf_bert"),
        (("--hidden_size=30", "--num_attention_heads=4"), "hidden_size: 30; must be a multiple of"),
        (("--rounds=0",), "--rounds 0: must be at least 1"),
        (("--padding=0.5",), "--padding 0.5: must be from 0 to below 0.5"),
        (("--dtypes=fp16", "--device=cpu"), "--dtypes fp16: a CPU cannot train in fp16"),
    ):
        check_error(capsys, message, "train", *arguments)


@on_cpu
def test_no_contender_that_can_run_is_an_error(capsys):
    assert run("train", *TINY, "--dtypes=fp32", "--contenders=deepspeed_transformer") == 1
    error = capsys.readouterr().err
    assert "error: --contenders: none can run here; deepspeed_transformer: requires an NVIDIA GPU" in error


@pytest.mark.thorough
@on_cpu
def test_host_memory_is_that_of_one_contender(tmp_path):
    # 2 M parameters: weights, gradients and two moments in fp32 are 16 bytes each.
    wide = ["--num_layers=2", "--hidden_size=256", "--vocab_size=2048", "--micro_batch_size=2", "--seq_length=16"]
    quick = ["--rounds=1", "--steps_per_round=2", "--dtypes=fp32", "--contenders=reference", "--zero_stage=0"]
    (one,) = measure(tmp_path, "train", *wide, *quick, "--host_memory")["contenders"]
    parameters = sum(p.numel() for p in BertForPreTraining(config_of(*wide)).parameters())
    assert 16 * parameters <= one["peak_memory_bytes"] < 16 * parameters + 150e6
