"""scripts/measure/compare_continued_pretraining.py: the Trainer's losses are ours, step by step."""

import json

from hugging_face_models import save_stock


def test_losses_of_every_step_equal_those_of_the_trainer(run_script, corpus, tmp_path):
    save_stock(tmp_path / "bert", "bert", "ForPreTraining")
    arguments = ("--data_dir", corpus, "--model", tmp_path / "bert", "--seq_length", 32, "--batch_size", 8)
    report = tmp_path / "report.json"
    code, printed, errors = run_script(
        "compare_continued_pretraining", *arguments, "--steps", 16, "--learning_rate", 1e-3, "--json", report
    )
    assert code == 0, errors
    result = json.loads(report.read_text())
    assert len(result["losses"]["trainer"]) == 16
    assert result["losses"]["trainer"][0] - result["losses"]["trainer"][-1] > 0.1
    assert result["largest_difference"] < 1e-4
    assert "bert_pld over Trainer" in printed
