"""`pretrain --initialize_from` a saved Hugging Face model: training, resuming, a second phase, export."""

import json

import pytest
from hugging_face_models import save_stock
from runs import error_of, read_metrics, run_pretrain, small_config

from bert_pld import export


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "roberta"
    save_stock(folder, "roberta")
    return folder


def config(**training):
    values = small_config(training={"eval_interval": 4, "checkpoint_interval": 2, **training})
    del values["model"]
    return values


def test_run_resumes_bitwise_and_its_second_phase_and_export_need_no_model_block(roberta, corpus, tmp_path):
    start = "--initialize_from", str(roberta)
    run_pretrain(config(max_steps=4), corpus, tmp_path / "whole", *start)
    first = run_pretrain(config(max_steps=2), corpus, tmp_path / "parts", *start)
    assert f"initialized from {roberta} (roberta)" in first.stdout + first.stderr
    run_pretrain(config(max_steps=4), corpus, tmp_path / "parts", *start)
    losses = read_metrics(tmp_path / "whole")
    assert read_metrics(tmp_path / "parts") == losses
    assert len(losses) == 4

    second = "--initialize_from", str(tmp_path / "whole")
    run_pretrain(config(max_steps=1), corpus, tmp_path / "second", *second, "--set", "optimizer.params.lr=0")
    held_out = [read_metrics(tmp_path / name, "eval_mlm_loss")[-1] for name in ("whole", "second")]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-6)
    export.export_checkpoint(tmp_path / "second", tmp_path / "exported")
    exported = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (
        f"| Started from | the weights of {tmp_path / 'whole'} |" in (tmp_path / "exported" / "README.md").read_text()
    )
    assert (exported["architectures"], exported["max_position_embeddings"]) == (["RobertaForMaskedLM"], 42)


def test_mistakes_are_one_line_and_exit_code_1(roberta, corpus, tmp_path):
    run = tmp_path / "run"
    wrong = config(max_steps=1) | {"model": {"num_layers": 4}}
    done = run_pretrain(wrong, corpus, run, "--initialize_from", str(roberta), expect=1)
    assert f"model.num_layers: 4; {roberta}, whose weights the run starts from, has 2" in error_of(done)
    pickled = tmp_path / "pickled"
    save_stock(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    done = run_pretrain(config(max_steps=1), corpus, run, "--initialize_from", str(pickled), expect=1)
    assert "only in pytorch_model.bin, a pickle, which can run code" in error_of(done)
    assert not run.exists()
