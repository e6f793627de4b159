"""A run with CUDA graphs says which of its micro-batches they do not serve."""

from __future__ import annotations

import dataclasses

import pytest
from runs import write_corpus

from bert_pld.config import load_config
from bert_pld.data.shards import Manifest
from bert_pld.training.prepare import limits_of_graphs

BERT = load_config({"model": {"preset": "tiny"}})
MODERN = load_config({"model": {"architecture": "modernbert", "preset": "tiny"}})


@pytest.fixture
def manifests(tmp_path):
    return [Manifest.read(write_corpus(tmp_path / str(padding), padding=padding)) for padding in (0, 8)]


def test_micro_batches_of_bert_are_captured_with_and_without_padding(manifests):
    assert [limits_of_graphs(BERT, one) for one in manifests] == [[], []]


def test_run_of_modernbert_says_how_much_padding_there_is(manifests):
    full, padded = manifests
    assert limits_of_graphs(MODERN, full) == []
    share = 1 - padded.tokens("train") / (96 * padded.attributes.seq_length)
    assert limits_of_graphs(MODERN, padded) == [
        f"model.cuda_graphs: no effect on micro-batches with padding; {share:.1%} of the shards' tokens are padding"
    ]


def test_run_says_that_rows_hold_documents_or_that_blocks_run_on_some_sequences(manifests):
    of_documents = dataclasses.replace(manifests[0], attended_tokens=12.0)
    assert limits_of_graphs(BERT, of_documents) == ["model.cuda_graphs: no effect, because rows hold several documents"]
    by_sample = load_config({"progressive_layer_drop": {"enabled": True, "granularity": "sample"}})
    (line,) = limits_of_graphs(by_sample, manifests[0])
    assert line == "model.cuda_graphs: no effect while blocks run on some sequences (granularity 'sample')"
