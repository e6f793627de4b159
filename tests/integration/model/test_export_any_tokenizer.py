"""Runs with a tokenizer that is not BERT's: shards, training, checkpoint and export keep it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from made_up_tokenizers import KINDS, save
from safetensors.torch import save_file
from ten_languages import SENTENCES, made_documents
from transformers import AutoTokenizer, pipeline

from bert_pld import export
from bert_pld.checkpoint import format as checkpoints
from bert_pld.config import DataConfig, load_config
from bert_pld.data.loader import evaluation_batches
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows
from bert_pld.model.bert import BertForPreTraining
from data_prep.__main__ import main

SIZES = {"preset": None, "hidden_size": 24, "num_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
SIZES |= {"max_position_embeddings": 64, "initializer_range": 0.3, "next_sentence_prediction": True}


def build(tmp_path, kind):
    """Shards of pairs, made with a tokenizer of this kind."""
    make, tokens = KINDS[kind]
    folder = save(make(), tmp_path / f"{kind}_tokenizer", tokens)
    texts = [text for language in ("de", "ja", "hi") for text in made_documents(language, 6)]
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    data = tmp_path / f"{kind}_data"
    flags = ["--seq_length", "64", "--workers", "1", "--validation_fraction", "0.3", "--deduplicate", "none"]
    source = f"jsonl={tmp_path}/rows.jsonl"
    assert main(["build", "--source", source, "--tokenizer", str(folder), "--output_dir", str(data), *flags]) == 0
    return data


def write_checkpoint(tmp_path, rows):
    """A checkpoint of a small model with random weights, as a run on these rows writes it."""
    model = {**SIZES, "vocab_size": -(-rows.attributes.vocabulary_size // 8) * 8}
    run = load_config({"train_batch_size": 8, "data": {"seq_length": 64}, "model": model})
    torch.manual_seed(7)
    folder = tmp_path / "checkpoints" / "step_00000010"
    folder.mkdir(parents=True)
    save_file(BertForPreTraining(run.model).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(run.as_json()))
    (folder / "state.json").write_text(json.dumps({"step": 10}))
    rows.save_tokenizer(folder)
    checkpoints.write_checksums(folder)
    return folder


def test_export_has_the_tokenizer_of_the_shards_and_fills_its_mask(tmp_path):
    rows = ShardedRows(build(tmp_path, "roberta"), "train")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "vocab.txt").write_text("of an earlier export")
    export.export_checkpoint(write_checkpoint(tmp_path, rows), tmp_path / "exported")
    files = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {
        *files,
        "README.md",
        "config.json",
        "model.safetensors",
    }
    given, exported = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("roberta_tokenizer", "exported"))
    for sentences in SENTENCES.values():
        assert exported(sentences)["input_ids"] == given(sentences)["input_ids"]
    assert exported("a", "b")["input_ids"] == given("a", "b")["input_ids"]
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["pad_token_id"] == 1
    assert exported.pad_token_id == 1
    masked = [f"{sentences[0][:6]} <mask> {sentences[0][6:]}" for sentences in SENTENCES.values()]
    filled = pipeline("fill-mask", str(tmp_path / "exported"))(masked, top_k=3)
    assert [len(guesses) for guesses in filled] == [3] * 10
    assert 'fill-mask", folder)("The answer is <mask>.")' in (tmp_path / "exported" / "README.md").read_text()


def test_batches_have_the_tokenizers_padding_masks_and_token_types(tmp_path):
    for kind, pad, mask, types in (("roberta", 1, 700, [0]), ("modernbert", 606, 607, [0, 1])):
        rows = ShardedRows(build(tmp_path, kind), "train")
        (batch, *_) = evaluation_batches(rows, DataConfig(seq_length=64, workers=0), BatchShare(16), seed=1)
        ids, lengths = batch.input_ids.numpy(), batch.lengths
        assert np.array_equal(ids == pad, np.arange(64) >= lengths[:, None])
        chosen = ids.reshape(-1)[batch.masked_positions.numpy()]
        assert 0.6 < (chosen == mask).mean() < 0.95
        assert batch.token_type_ids.unique().tolist() == types


def test_shards_of_another_tokenizer_are_refused_with_the_command_to_build_them(tmp_path):
    roberta = ShardedRows(build(tmp_path, "roberta"), "train")
    checkpoint = write_checkpoint(tmp_path, roberta)
    checkpoints.check_same_vocabulary(checkpoint, roberta)
    other = ShardedRows(build(tmp_path, "xlm_roberta"), "train")
    with pytest.raises(ValueError, match=r"its vocabulary \(713 entries\) differs from that of checkpoint") as caught:
        checkpoints.check_same_vocabulary(checkpoint, other)
    assert str(caught.value).endswith(f"build the data with --tokenizer {checkpoint}")
