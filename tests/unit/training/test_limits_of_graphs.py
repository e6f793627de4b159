"""A run with CUDA graphs says which of its micro-batches they do not serve."""

from __future__ import annotations

import dataclasses

from runs import write_corpus

from bert_pld.data.shards import Manifest
from bert_pld.training.prepare import limits_of_graphs


def test_run_says_how_much_padding_or_that_rows_hold_documents(tmp_path):
    full, padded = (Manifest.read(write_corpus(tmp_path / str(padding), padding=padding)) for padding in (0, 8))
    assert limits_of_graphs(full) == []
    (line,) = limits_of_graphs(padded)
    share = 1 - padded.tokens("train") / (96 * padded.attributes.seq_length)
    assert (
        line
        == f"model.cuda_graphs: no effect on micro-batches with padding; {share:.1%} of the shards' tokens are padding"
    )
    of_documents = dataclasses.replace(full, attended_tokens=12.0)
    assert limits_of_graphs(of_documents) == ["model.cuda_graphs: no effect, because rows hold several documents"]
