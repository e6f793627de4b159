"""A fine-tuning that is stopped anywhere and continued has the outcome of an undisturbed one, bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bert_pld.cluster.process_group import join_process_group
from bert_pld.finetuning.encoder import load_encoder
from bert_pld.finetuning.interrupted import FOLDER, Interrupted
from bert_pld.finetuning.loop import StoppedError, finetune
from bert_pld.finetuning.settings import Settings
from bert_pld.glue.data import read_task
from bert_pld.glue.tasks import TASKS

CHECKS_OF_AN_EPOCH = 10 + 4 + 1
"""160 rows in steps of 16, 101 rows in batches of 32, then the test rows if the epoch is the best so far."""


class Job:
    """Fine-tunings of one encoder on one task."""

    def __init__(self, folder, glue_dir, **settings):
        self.device = join_process_group()
        self.settings = Settings(epochs=3, batch_size=16, max_seq_length=32, max_train_rows=160, **settings)
        self.encoder = load_encoder(str(folder), 32, dropout=0.1)
        self.data = read_task(TASKS["SST-2"], str(glue_dir), self.encoder.tokenizer, 32, max_train_rows=160)

    def run(self, result_folder, stop_at=None, conditions=("a",)):
        """Fine-tune; `check` asks to stop at its n-th call."""
        calls = 0

        def check():
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise StoppedError

        interrupted = Interrupted(result_folder, {"conditions": conditions})
        options = {"device": self.device, "check": check, "interrupted": interrupted}
        outcome = finetune(self.encoder, self.data, self.settings, learning_rate=3e-3, seed=1, **options)
        return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in outcome.epochs], outcome


@pytest.fixture(params=["fp32", "bf16"])
def job(request, exported, glue_dir):
    return Job(exported[0], glue_dir, precision=request.param)


def test_stopped_anywhere_it_continues_bit_for_bit(job, tmp_path):
    epochs, outcome = job.run(tmp_path / "undisturbed")
    within_first, within_second, in_evaluation = 5, CHECKS_OF_AN_EPOCH - 4 + 4, 10 - 3 + 2
    for stop_at in (within_first, within_second, in_evaluation):
        with pytest.raises(StoppedError):
            job.run(tmp_path / "stopped", stop_at)
        assert (tmp_path / "stopped" / FOLDER / "checksums.json").is_file()
    continued, of_continued = job.run(tmp_path / "stopped")
    assert continued == epochs
    assert (of_continued.best_epoch, of_continued.scores) == (outcome.best_epoch, outcome.scores)
    for name, values in outcome.predictions.items():
        np.testing.assert_array_equal(of_continued.predictions[name], values)


def test_work_that_is_damaged_or_of_other_conditions_is_not_continued(exported, glue_dir, tmp_path):
    job = Job(exported[0], glue_dir)
    with pytest.raises(StoppedError):
        job.run(tmp_path, 1)
    assert not list(tmp_path.glob(f"{FOLDER}*")), "nothing was done yet"
    with pytest.raises(StoppedError):
        job.run(tmp_path, 9)
    state = tmp_path / FOLDER / "state.json"
    assert json.loads(state.read_text())["progress"]["steps"] == 8
    assert Interrupted(tmp_path, {"conditions": ["b"]}).find() is None
    assert Interrupted(tmp_path, {"conditions": ["a"]}).find().steps == 8
    state.write_text(state.read_text().replace('"steps": 8', '"steps": 9'))
    assert Interrupted(tmp_path, {"conditions": ["a"]}).find() is None
