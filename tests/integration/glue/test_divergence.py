"""A fine-tuning that diverges is a result without a score; the sweep continues, and a rerun skips it."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from finetune_runs import finetune, result_of, write_tokenizer
from runs import VOCABULARY, clean_environment, run_captured

from bert_pld.finetuning.batches import training_order

RATES = ["--epochs", "1", "--learning_rates", "0.9", "1e-3"]
IN_FP16 = """
import sys
from bert_pld.glue.data import read_task
from bert_pld.finetuning.encoder import load_encoder
from bert_pld.finetuning.loop import finetune
from bert_pld.finetuning.settings import Settings
from bert_pld.glue.tasks import TASKS
from bert_pld.cluster.process_group import join_process_group

device, task = join_process_group(), TASKS["SST-2"]
settings = Settings(epochs=1, batch_size=8, max_seq_length=32, precision="fp16")
encoder = load_encoder(sys.argv[1], 32)
data = read_task(task, sys.argv[2], encoder.tokenizer, 32)
outcome = finetune(encoder, data, settings, learning_rate=0.9, seed=1, device=device)
print(f"diverged at step {outcome.diverged_at_step} of {outcome.steps}")
"""


@pytest.fixture
def unnormalized(tmp_path):
    """An encoder without layer normalization (MobileBERT), which diverges within a few steps at high rates."""
    from transformers import MobileBertConfig, MobileBertModel

    torch.manual_seed(0)
    config = MobileBertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        embedding_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        intra_bottleneck_size=32,
        max_position_embeddings=64,
        num_feedforward_networks=2,
        use_bottleneck=False,
        trigram_input=False,
        classifier_activation=False,
    )
    MobileBertModel(config).save_pretrained(tmp_path / "encoder")
    write_tokenizer(tmp_path / "encoder")
    return tmp_path / "encoder"


def lines(text, beginning):
    return [line for line in text.splitlines() if line.startswith(beginning)]


def test_diverged_rate_does_not_stop_the_sweep_or_win_and_is_not_repeated(glue_dir, unnormalized, tmp_path):
    output_dir = tmp_path / "out"
    done = finetune(glue_dir, unnormalized, output_dir, *RATES, "--seeds", "1", "2")
    diverged, finite = ([result_of(output_dir, seed, rate) for seed in (1, 2)] for rate in ("0.9", "0.001"))
    for seed, result in zip((1, 2), diverged, strict=True):
        assert result["dev"] == {}
        assert (result["best_epoch"], result["epochs"], result["steps"]) == (None, [], 25)
        assert 3 < result["diverged_at_step"] < 25
        warning = f"seed {seed}: diverged; loss or weights are not finite at step {result['diverged_at_step']} of 25"
        assert f"warning: SST-2, lr 0.9, {warning}, so it has no score" in done.stderr.splitlines()
    assert len(lines(done.stderr, "warning: ")) == 2
    assert "Traceback" not in done.stderr
    assert all(result["dev"]["dev"]["accuracy"] >= 40 for result in finite)
    assert {result["diverged_at_step"] for result in finite} == {None}
    summary = json.loads((output_dir / "summary.json").read_text())["tasks"]["SST-2"]
    assert (summary["learning_rate"], summary["seeds"]) == (0.001, [1, 2])
    assert (summary["diverged"], summary["fine_tunings"]) == ({"0.9": [1, 2]}, 4)
    assert "(2 of 4 diverged)" in done.stdout.splitlines()[-1]

    written = {path: path.stat().st_mtime_ns for path in output_dir.glob("SST-2/*/result.json")}
    again = finetune(glue_dir, unnormalized, output_dir, *RATES, "--seeds", "1", "2")
    assert "SST-2: 4 fine-tunings, 4 of them done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert lines(again.stderr, "warning: ") == lines(done.stderr, "warning: ")

    failed = finetune(glue_dir, unnormalized, output_dir, *RATES[:4], "--seeds", "1", expect=1)
    [error] = lines(failed.stderr, "error: ")
    assert error.startswith("error: SST-2: a fine-tuning diverged at every learning rate")
    assert error.endswith("give lower --learning_rates")
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_non_finite_weights_are_a_divergence_even_if_all_losses_are_finite(glue_dir, exported, tmp_path):
    """No loss follows the last step. Here the non-finite weights are the embedding of a word that does not occur."""
    folder, model = exported
    model.bert.embeddings.word_embeddings.weight.data[VOCABULARY.index("##p7")] = torch.inf
    model.save_pretrained(folder)
    done = finetune(glue_dir, folder, tmp_path / "out", "--seeds", "1", expect=1)
    result = result_of(tmp_path / "out")
    assert (result["diverged_at_step"], result["steps"], result["dev"]) == (25, 75, {})
    assert done.stdout.splitlines()[-1] == "| out | – (1 of 1 diverged) | – |"


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="this CPU cannot compute in fp16")
def test_fp16_overflow_at_the_lowest_loss_scale_is_a_divergence(glue_dir, unnormalized):
    """The command allows fp16 on GPUs only, but DeepSpeed's loss scaler is the same on a CPU."""
    command = [sys.executable, "-c", IN_FP16, unnormalized, glue_dir]
    done = run_captured(command, env={**clean_environment(), "DS_ACCELERATOR": "cpu"})
    step, steps = map(int, done.stdout.splitlines()[-1].removeprefix("diverged at step ").split(" of "))
    assert (step < 20, steps) == (True, 50)


@pytest.mark.thorough
@pytest.mark.launcher
def test_two_ranks_agree_if_the_loss_of_one_is_not_finite(glue_dir, exported, tmp_path):
    """The embedding of [UNK] is infinite; it occurs in one row only, which the second rank has in the tenth batch."""
    folder, model = exported
    model.bert.embeddings.word_embeddings.weight.data[VOCABULARY.index("[UNK]")] = torch.inf
    model.save_pretrained(folder)
    header, *rows = (glue_dir / "SST-2" / "train.tsv").read_text().splitlines()
    lengths = np.array([len(row.split("\t")[0].split()) for row in rows])
    row = training_order(lengths, 16, seed=1, epoch=0)[9][1]
    rows[row] = "unknown " + rows[row].partition(" ")[2]
    shutil.copytree(glue_dir, tmp_path / "glue")
    (tmp_path / "glue" / "SST-2" / "train.tsv").write_text("\n".join([header, *rows]) + "\n")
    done = finetune(tmp_path / "glue", folder, tmp_path / "out", "--seeds", "1", "2", ranks=2, expect=1)
    assert result_of(tmp_path / "out", seed=1)["diverged_at_step"] == 10
    assert result_of(tmp_path / "out", seed=2)["diverged_at_step"] is not None
    assert done.stderr.count("warning: SST-2, lr 0.003, seed 1: diverged") == 1
    assert done.stderr.count("error: SST-2: a fine-tuning diverged at every learning rate") == 1
