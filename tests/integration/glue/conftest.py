"""A synthetic GLUE task that a tiny encoder can learn, and encoders for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetune_runs import write_tokenizer
from runs import VOCABULARY, run_pretrain, small_config, write_corpus


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory):
    """A task in SST-2's layout: a sentence is positive if it has the word w7."""
    folder, rng = tmp_path_factory.mktemp("glue") / "SST-2", np.random.default_rng(0)
    folder.mkdir()
    words = np.array([f"w{i}" for i in range(51) if i != 7])

    def rows(count):
        for _ in range(count):
            sentence, positive = rng.choice(words, rng.integers(4, 12)), rng.integers(2)
            if positive:
                sentence[rng.integers(len(sentence))] = "w7"
            yield " ".join(sentence), positive

    for name, count in (("train", 400), ("dev", 101)):
        lines = "".join(f"{sentence}\t{label}\n" for sentence, label in rows(count))
        (folder / f"{name}.tsv").write_text(f"sentence\tlabel\n{lines}")
    lines = "".join(f"{i}\t{sentence}\n" for i, (sentence, _) in enumerate(rows(7)))
    (folder / "test.tsv").write_text(f"index\tsentence\n{lines}")
    return folder.parent


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A pretraining run of a few steps, without dropout, so that ranks can be compared."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = small_config(model={"hidden_dropout": 0.0, "attention_dropout": 0.0}, training={"max_steps": 4})
    run_pretrain(config, write_corpus(folder / "corpus"), folder / "run")
    return folder / "run"


@pytest.fixture
def exported(tmp_path):
    """A folder with a transformers model and its tokenizer, and the model."""
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.intermediate_size, config.max_position_embeddings = 64, 64
    torch.manual_seed(0)
    model = BertForPreTraining(config)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    return tmp_path, model
