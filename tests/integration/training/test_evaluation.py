"""Evaluation uses the whole network: all blocks, no scale, no dropout, the same masks each time."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from runs import read_metrics, run_evaluate, run_pretrain, small_config, write_corpus
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from token_logits import token_logits

from bert_pld.checkpoint.format import load_model, resolve_checkpoint
from bert_pld.config import DataConfig
from bert_pld.data.loader import evaluation_batches
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows
from bert_pld.training.loop import evaluate


@pytest.fixture(scope="module")
def run_dir(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated") / "run"
    enabled = {"enabled": True, "job_name": "x"}
    monitors = {name: {**enabled, "output_path": str(path / name)} for name in ("csv_monitor", "tensorboard")}
    run_pretrain(small_config(**monitors), corpus, path)
    return path


def held_out(corpus, batch_size):
    return evaluation_batches(ShardedRows(corpus, "validation"), DataConfig(), BatchShare(batch_size), seed=1)


def test_evaluation_command_repeats_the_metrics_of_training(corpus, run_dir, tmp_path):
    run_evaluate(run_dir, corpus, "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    for key in ("eval_mlm_loss", "eval_mlm_accuracy", "eval_nsp_accuracy"):
        assert figures[key] == pytest.approx(read_metrics(run_dir, key)[-1], rel=1e-5)


def test_figure_that_the_data_lacks_is_null(tmp_path):
    corpus = write_corpus(tmp_path / "packed", documents=True)
    run_pretrain(small_config(training={"max_steps": 1}), corpus, tmp_path / "run")
    run_evaluate(tmp_path / "run", corpus, "--json", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    assert figures["eval_nsp_accuracy"] is None
    assert figures["eval_mlm_loss"] > 0


def test_evaluation_command_masks_at_a_given_share(corpus, run_dir, tmp_path):
    model, _ = load_model(resolve_checkpoint(run_dir))
    run_evaluate(run_dir, corpus, "--mask_probability", "0.4", "--json", str(tmp_path / "figures.json"))
    rows, data = ShardedRows(corpus, "validation"), DataConfig(mask_probability=0.4)
    expected = evaluate(model, evaluation_batches(rows, data, BatchShare(12), seed=1), torch.device("cpu"))
    found = json.loads((tmp_path / "figures.json").read_text())["eval_mlm_loss"]
    assert found == pytest.approx(expected["eval_mlm_loss"], rel=1e-5)
    assert abs(found - read_metrics(run_dir, "eval_mlm_loss")[-1]) > 1e-3
    done = run_evaluate(run_dir, corpus, "--mask_probability", "1.5", expect=1)
    assert "error: --mask_probability 1.5: must be in (0, 1)" in done.stderr


def test_data_with_another_vocabulary_is_refused(corpus, run_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpus, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["attributes"]["vocabulary_hash"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    done = run_evaluate(run_dir, other, expect=1)
    assert "its vocabulary (64 entries) differs" in done.stderr
    assert "Traceback" not in done.stderr


def test_loss_is_per_masked_token_whatever_the_batch_size(corpus, run_dir):
    model, _ = load_model(resolve_checkpoint(run_dir))
    losses = [evaluate(model, held_out(corpus, size), torch.device("cpu"))["eval_mlm_loss"] for size in (1, 5, 12)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_evaluation_runs_all_blocks_unscaled_and_restores_training_mode(corpus, run_dir):
    model, _ = load_model(resolve_checkpoint(run_dir))
    scales = []
    for block in model.encoder.blocks:
        block.register_forward_pre_hook(lambda _, args, kwargs: scales.append(kwargs["scale"]), with_kwargs=True)
    model.train()
    evaluate(model, held_out(corpus, 6), torch.device("cpu"))
    assert scales == [1.0] * 3 * 2
    assert model.training


def test_accuracy_counts_the_masked_tokens_that_are_right(corpus, run_dir):
    model, _ = load_model(resolve_checkpoint(run_dir))
    figures = evaluate(model, held_out(corpus, 4), torch.device("cpu"))
    right = total = pairs = 0
    with torch.no_grad():
        for batch in held_out(corpus, 1):
            inputs = batch.model_inputs()
            hidden = model.encoder(inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"])
            guesses = token_logits(model, hidden.flatten(0, 1)[batch.masked_positions]).argmax(-1)
            right += (guesses == batch.masked_labels).sum().item()
            total += batch.masked_tokens
            pairs += (model.nsp_head(hidden[:, 0]).argmax(-1) == batch.next_sentence_labels).sum().item()
    assert figures["eval_mlm_accuracy"] == pytest.approx(right / total)
    assert figures["eval_nsp_accuracy"] == pytest.approx(pairs / 12)


def test_logging_steps_have_the_documented_keys_and_are_written_to_the_monitors(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    documented = "step samples tokens loss mlm_loss nsp_loss lr theta kept_blocks grad_norm"
    documented += " tokens_per_s tflops mfu memory_bytes"
    assert set(documented.split()) <= set(records[0])
    assert records[0]["grad_norm"] > 0
    assert records[0]["loss"] == pytest.approx(records[0]["mlm_loss"] + records[0]["nsp_loss"], rel=1e-5)
    written = {path.name for path in (run_dir / "csv_monitor" / "x").iterdir()}
    assert {"train_loss.csv", "train_theta.csv", "eval_mlm_loss.csv"} <= written
    events = EventAccumulator(str(run_dir / "tensorboard" / "x")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(read_metrics(run_dir))
    assert [event.step for event in events.Scalars("eval/mlm_loss")] == [48, 96]
