"""Random damage to checkpoints: every changed byte is found, and damage with fitting checksums is at most one line."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from damage import damage_bytes, damage_json
from isolated_cases import outcomes
from runs import small_config, write_corpus

from bert_pld.checkpoint.format import (
    check_same_vocabulary,
    fault,
    list_checkpoints,
    load_model,
    load_state,
    resolve_checkpoint,
    write_checksums,
)
from bert_pld.checkpoint.resume import check_same_run, load_weights
from bert_pld.checkpoint.writer import CheckpointWriter
from bert_pld.cluster.process_group import join_process_group
from bert_pld.config import DataConfig, load_config
from bert_pld.data.loader import training_batches
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.order import BatchShare
from bert_pld.model import BertForPreTraining
from bert_pld.training.engine import make_engine
from bert_pld.training.prepare import resolve_config

BAD = ("raised ", "ended by ")
JSON_FILES = ("state.json", "config.json")


class Saved:
    """A checkpoint of a run's first step, and everything that resuming needs."""

    def __init__(self, folder):
        device = join_process_group()
        self.rows = open_rows(write_corpus(folder / "corpus"), "train")
        config = small_config(scheduler={"type": "WarmupLR", "params": {"warmup_num_steps": 4}})
        self.config = resolve_config(load_config(config), self.rows, 1, device)
        torch.manual_seed(0)
        self.model = BertForPreTraining(self.config.model)
        engine = make_engine(self.config, self.model)
        (steps,) = training_batches(self.rows, DataConfig(workers=0), BatchShare(4, 2), seed=0, num_steps=1)
        for batch in steps:
            engine.backward(engine(**batch.to(device).model_inputs())["loss"])
            engine.step()
        self.rows.save_tokenizer(folder)
        facts = {"data_source": "x", "data_fingerprint": self.rows.manifest.fingerprint()}
        self.writer = CheckpointWriter(folder, engine, self.config, facts, None)
        self.writer.begin(1, {"tokens": 256, "seconds": 1.0, "processor_seconds": 1.0})
        self.writer.complete()
        (self.path,) = list_checkpoints(folder / "checkpoints")

    def read(self, path):
        """Do with a checkpoint what `evaluate`, `export` and a resumed run do."""
        checkpoint = resolve_checkpoint(path)
        check_same_vocabulary(checkpoint, self.rows)
        load_model(checkpoint)
        load_state(checkpoint)
        check_same_run(checkpoint, self.config, self.rows.manifest)
        load_weights(self.model, checkpoint)
        self.writer.restore(checkpoint)
        return "read"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("run"))


def assert_no_crash(found):
    bad = [(case, outcome) for case, outcome in enumerate(found) if str(outcome).startswith(BAD)]
    assert not bad, bad


def test_checkpoint_without_damage_is_read(saved):
    assert fault(saved.path) is None
    assert saved.read(saved.path) == "read"


def test_damaged_checkpoint_of_a_later_step_goes_when_the_resumed_run_saves(saved, tmp_path):
    kept = dataclasses.replace(saved.config.training, keep_checkpoints=1)
    config = dataclasses.replace(saved.config, training=kept)
    shutil.copytree(saved.path, tmp_path / "checkpoints" / "step_00000001")
    shutil.copytree(saved.path, tmp_path / "checkpoints" / "step_00000003")
    (tmp_path / "checkpoints" / "step_00000003" / "model.safetensors").write_bytes(b"")
    writer = CheckpointWriter(tmp_path, saved.writer.engine, config, saved.writer.data_facts, None)
    writer.begin(2, {"tokens": 512, "seconds": 2.0, "processor_seconds": 2.0})
    writer.complete()
    writer.close()
    [left] = list_checkpoints(tmp_path / "checkpoints")
    assert (left.name, fault(left, required=())) == ("step_00000002", None)


def test_every_changed_byte_is_found(saved, tmp_path):
    def check(case):
        draw, folder = np.random.default_rng(case), tmp_path / f"step_{case}"
        shutil.copytree(saved.path, folder)
        name = str(draw.choice(sorted(path.name for path in folder.iterdir())))
        what, content = damage_bytes((folder / name).read_bytes(), draw)
        (folder / name).write_bytes(content)
        problem = fault(folder)
        with pytest.raises(ValueError):
            saved.read(folder)
        shutil.rmtree(folder)
        return [f"{name}: {what}", problem]

    found = outcomes(check)
    assert_no_crash(found)
    assert [what for what, problem in found if not problem] == []


def test_damage_with_fitting_checksums_is_one_line_or_harmless(saved, tmp_path):
    def check(case):
        draw, folder = np.random.default_rng(case), tmp_path / f"step_{case}"
        shutil.copytree(saved.path, folder)
        names = sorted({path.name for path in folder.iterdir()} - {"checksums.json"})
        name = str(draw.choice(JSON_FILES if draw.random() < 0.7 else names))
        if name in JSON_FILES and draw.random() < 0.8:
            content = damage_json(json.loads((folder / name).read_text()), draw)
            (folder / name).write_text(json.dumps(content))
        else:
            (folder / name).write_bytes(damage_bytes((folder / name).read_bytes(), draw)[1])
        (folder / "checksums.json").unlink()
        write_checksums(folder)
        try:
            return saved.read(folder)
        finally:
            shutil.rmtree(folder)

    found = outcomes(check)
    assert_no_crash(found)
    assert {outcome.split()[0] for outcome in found} == {"read", "refused:"}
