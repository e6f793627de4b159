"""benchmarks quality on tiny sizes: equal training for all, time of own steps only, consistent figures."""

import json
import os
import signal

import pytest
import torch
from benchmark_command import measure
from benchmark_command import run_benchmark as run
from runs import small_config, write_corpus

from benchmarks.hugging_face import as_hugging_face
from benchmarks.quality.command import against_target
from benchmarks.quality.contenders import HuggingFaceModel, QualityContender
from bert_pld.config import ModelConfig
from bert_pld.cost.flops import ModelFlops, parameter_count
from bert_pld.cost.work import BlockWork
from bert_pld.model import BertForPreTraining

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed runs on the GPU here")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    config = small_config(
        training={"max_steps": 12, "log_interval": 4, "eval_interval": 4, "eval_rows": 32, "seed": 3},
        progressive_layer_drop={"enabled": True, "theta": 0.5, "gamma": 1.0},
    )
    config["model"] |= {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    (folder / "ds.json").write_text(json.dumps(config))
    return [f"--deepspeed_config={folder / 'ds.json'}", f"--data_dir={write_corpus(folder / 'corpus')}"]


def test_wrapped_hugging_face_class_gives_our_losses():
    config = ModelConfig(
        preset=None, hidden_size=32, num_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64,
        max_position_embeddings=16, normalization="post", next_sentence_prediction=True,
        hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    ours = BertForPreTraining(config).eval()
    theirs = HuggingFaceModel(as_hugging_face(ours)).eval()
    batch = {
        "input_ids": torch.randint(1, 64, (4, 16)),
        "token_type_ids": torch.zeros(4, 16, dtype=torch.long),
        "attention_mask": torch.arange(16) < torch.tensor([[16], [9], [12], [16]]),
        "masked_positions": torch.tensor([1, 5, 18, 40, 50]),
        "masked_labels": torch.tensor([3, 8, 9, 60, 7]),
        "next_sentence_labels": torch.tensor([0, 1, 1, 0]),
    }
    with torch.no_grad():
        mine, other = ours(**batch, mlm_denominator=1.0), theirs(**batch, mlm_denominator=1.0)
        for key in other:
            assert float(mine[key]) == pytest.approx(float(other[key]), rel=1e-5), key
        mine, other = ours.train()(**batch), theirs.train()(**batch)
    assert set(other) == {"loss"}
    assert mine["loss"].item() == pytest.approx(other["loss"].item(), rel=1e-5)
    # A compiled class always gets a mask; a mask of ones changes nothing.
    batch["attention_mask"], seen = None, []
    masked = HuggingFaceModel(theirs.wrapped, always_masked=True).train()
    masked.wrapped.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["attention_mask"]), with_kwargs=True
    )
    assert masked(**batch)["loss"].item() == pytest.approx(ours(**batch)["loss"].item(), rel=1e-5)
    assert seen[0].tolist() == [[1] * 16] * 4


@on_cpu
def test_contenders_train_alike_and_are_compared_with_the_first(inputs, tmp_path, capsys):
    every = "--contenders=hf_bert,hf_megatron,post,pre,pld_batch,pld_sample,pld_token"
    result = measure(tmp_path, "quality", *inputs, "--steps_per_turn=2", every)
    printed = capsys.readouterr().out
    by_name = {one["name"]: one for one in result["contenders"]}
    assert list(by_name) == ["hf_bert", "hf_megatron", "post", "pre", "pld_batch", "pld_sample", "pld_token"]
    assert {tuple(one["samples"]) for one in by_name.values()} == {(32, 64, 96)}
    # The same weights, rows, masks and optimizer: without dropout the two implementations learn the same.
    assert by_name["post"]["loss"] == pytest.approx(by_name["hf_bert"]["loss"], rel=1e-4)
    assert by_name["pre"]["loss"] == pytest.approx(by_name["hf_megatron"]["loss"], rel=1e-4)
    assert abs(by_name["pld_batch"]["loss"][-1] - by_name["pre"]["loss"][-1]) > 1e-5
    assert 0 <= result["target_loss"] - by_name["hf_bert"]["loss"][-1] < 1.51e-3
    first = by_name["hf_bert"]
    assert first["speedup"] == 1.0
    assert first["samples_to_target"] == pytest.approx(96, abs=1)
    # It may be one of 32 samples short, and the machine may have stalled at these.
    assert first["seconds_to_target"] == pytest.approx(first["seconds"][-1], rel=0.05)
    assert by_name["post"]["samples_to_target"] == pytest.approx(96, abs=1)
    # FLOPs of both implementations are counted alike, and dropped blocks are not counted.
    flops = {name: one["executed_flops_per_step"] for name, one in by_name.items()}
    # What the last block leaves out is counted in all of them, because the function is the same.
    model = ModelFlops(ModelConfig(**result["model"]), result["seq_length"])
    two, three = (model.per_sequence(BlockWork(blocks, blocks, last_whole=0.0)) for blocks in (2.0, 3.0))
    assert 0.8 < flops["pre"] / (8 * three) < 1.0  # some rows have padding
    assert flops["hf_bert"] == flops["hf_megatron"] == flops["post"] == flops["pre"]
    assert flops["pld_sample"] / flops["pre"] == pytest.approx(two / three, rel=0.02)  # θ = 0.5: 2 blocks of 3
    # The same share, less what attention among fewer tokens saves.
    assert 0.9 * two / three < flops["pld_token"] / flops["pre"] < two / three
    assert flops["pld_batch"] < flops["pre"]
    for one in by_name.values():
        rate = one["executed_flops_per_step"] * 12 / one["seconds"][-1]
        assert one["mfu"] == pytest.approx(rate / result["matmul_gflops"] / 1e9, rel=1e-2)
        assert one["peak_memory_bytes"] is None  # on a CPU it is measured with --host_memory only
    assert "hf_megatron" in printed
    assert "s to target" in printed


@on_cpu
@pytest.mark.thorough  # test_bench_train measures it in the same way
def test_host_memory_is_measured_in_a_separate_process(inputs, tmp_path):
    options = ("--steps_per_turn=2", "--contenders=hf_bert,post", "--host_memory", "--set=model.hidden_size=256")
    result = measure(tmp_path, "quality", *inputs, *options)
    held = 4 * 4 * parameter_count(ModelConfig(**result["model"]))  # weights, gradients and AdamW's two moments in fp32
    for one in result["contenders"]:
        assert held < one["peak_memory_bytes"] < 8 * held, one["name"]


@on_cpu
def test_failed_contender_is_reported_and_the_others_continue(inputs, tmp_path, monkeypatch, capsys):
    train_turn = QualityContender.train_turn

    def break_off(contender, batches):
        if contender.name == "post" and contender.steps:
            raise RuntimeError("out of\nmemory")
        train_turn(contender, batches)

    monkeypatch.setattr(QualityContender, "train_turn", break_off)
    result = measure(tmp_path, "quality", *inputs, "--steps_per_turn=4", "--contenders=post,pre", code=1)
    assert [one["name"] for one in result["contenders"]] == ["pre"]
    assert result["failed"] == ["post: RuntimeError: out of memory"]
    assert "failed: post: RuntimeError: out of memory" in capsys.readouterr().out


@pytest.fixture
def with_keyboard_interrupt():
    """A shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@on_cpu
@pytest.mark.usefixtures("with_keyboard_interrupt")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_benchmark_reports_the_figures_until_the_last_evaluation(
    number, inputs, tmp_path, monkeypatch, capsys
):
    train_turn, handler = QualityContender.train_turn, signal.getsignal(signal.SIGTERM)

    def interrupt(contender, batches):
        if contender.steps == 8:
            os.kill(os.getpid(), number)
        train_turn(contender, batches)

    monkeypatch.setattr(QualityContender, "train_turn", interrupt)
    result = measure(tmp_path, "quality", *inputs, "--steps_per_turn=2", "--contenders=post", code=1)
    (one,) = result["contenders"]
    assert (result["stopped_after_step"], one["samples"]) == (8, [32, 64])
    assert one["final_loss"] == one["loss"][-1]
    assert "stopped by a signal: figures of the first 8 steps" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == handler


@on_cpu
def test_benchmark_interrupted_before_its_first_evaluation_says_so(inputs, monkeypatch, capsys):
    def interrupt(contender, batches):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(QualityContender, "train_turn", interrupt)
    assert run("quality", *inputs, "--steps_per_turn=2", "--contenders=post") == 1
    assert "stopped by a signal before the first evaluation, at step 4: nothing was measured" in capsys.readouterr().err


@on_cpu
def test_non_finite_loss_never_reaches_the_target_and_is_null_in_json(inputs, tmp_path):
    wild = ("--set=optimizer.params.lr=1e15", "--set=gradient_clipping=0.0")
    result = measure(tmp_path, "quality", *inputs, "--steps_per_turn=4", "--contenders=post,pre", *wild)
    json.dumps(result, allow_nan=False)
    assert result["target_loss"] is None
    assert [one["final_loss"] for one in result["contenders"]] == [None, None]
    assert [one["seconds_to_target"] for one in result["contenders"]] == [None, None]


@pytest.mark.gpu
def test_memory_of_each_contender_is_measured_on_a_gpu(inputs, tmp_path):
    wide = ("--set=model.hidden_size=512", "--set=model.num_attention_heads=8")
    names = "--contenders=hf_bert,hf_bert_compiled,post,pld_batch"
    result = measure(tmp_path, "quality", *inputs, "--steps_per_turn=2", names, *wide)
    held = 4 * 4 * parameter_count(ModelConfig(**result["model"]))
    for one in result["contenders"]:
        assert held < one["peak_memory_bytes"] < 4 * held, one["name"]
        assert one["mfu"] > 0


@on_cpu
def test_target_that_is_never_reached_is_reported(inputs, capsys):
    assert run("quality", *inputs, "--steps_per_turn=4", "--contenders=post", "--target_loss=0.1") == 0
    assert "never" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--steps_per_turn=3", "must divide training.eval_interval, which is 4"),
        ("--target_loss=nan", "--target_loss nan: must be a number of nats above 0"),
        ("--contenders=post,bart", "--contenders post,bart: must be a list of hf_bert"),
        ("--set=training.max_steps=6", "training.max_steps 6: must be at least two evaluations, every 4 steps"),
        ("--set=model.architecture=modernbert", "model.architecture: 'modernbert'; must be 'bert'"),
        ("--set=optimizer.type=muon", "optimizer.type Muon: would train hf_bert with AdamW"),
    ],
)
def test_user_errors_are_one_line(inputs, option, said, capsys):
    assert run("quality", *inputs, "--steps_per_turn=2", option) == 1
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in printed if "error" in line] == printed[-1:]
    assert said in printed[-1]


@on_cpu
def test_our_own_contenders_train_with_muon(inputs, tmp_path):
    muon = ("--set=optimizer.type=Muon", "--contenders=pre,pld_batch")
    adam, with_muon = (
        measure(tmp_path, "quality", *inputs, "--steps_per_turn=4", *options) for options in (muon[1:], muon)
    )
    assert with_muon["deepspeed"]["optimizer"]["type"] == "Muon"
    losses = [[one["final_loss"] for one in result["contenders"]] for result in (adam, with_muon)]
    assert min(abs(a - b) for a, b in zip(*losses, strict=True)) > 1e-3


def test_steps_of_the_first_turn_count_as_their_median():
    one = QualityContender("x", "sdpa", None, None, None)
    one.turns, one.evaluated_at = [[9.0, 2.0, 2.0], [1.0, 2.0, 1.0], [3.0, 2.0, 1.0]], [3, 6, 9]
    assert one.seconds() == [6.0, 10.0, 16.0]


def test_default_target_is_the_first_contenders_last_loss():
    curve = {"samples": [100, 200], "seconds": [10.0, 20.0]}
    for last in (4.00021, 4.00099, 4.0):
        losses = {"peer": [5.0, last], "same model": [5.0, last + 1e-4], "faster": [4.5, 3.5], "worse": [5.0, 4.5]}
        result = against_target([{"name": name, "loss": loss, **curve} for name, loss in losses.items()])
        assert 5e-4 <= result["target_loss"] - last < 1.5e-3
        peer, same, faster, worse = result["contenders"]
        assert peer["speedup"] == 1.0
        assert same["speedup"] == pytest.approx(1.0, abs=1e-3)
        assert faster["seconds_to_target"] == pytest.approx(15.0, abs=0.02)
        assert faster["samples_to_target"] == pytest.approx(150, abs=0.2)
        assert faster["speedup"] == pytest.approx(1.333, abs=1e-2)
        assert (worse["seconds_to_target"], worse["speedup"]) == (None, None)
    assert against_target([{"loss": [5.0, 4.0], **curve}], target=4.5)["contenders"][0]["seconds_to_target"] == 15.0
    failed = against_target([{"name": "pre", "loss": [5.0, 4.0], **curve}], first_name="hf_bert")
    assert (failed["target_loss"], failed["contenders"][0]["speedup"]) == (None, None)
    diverged = against_target([{"loss": [5.0, None], **curve}])
    assert (diverged["target_loss"], diverged["contenders"][0]["seconds_to_target"]) == (None, None)
