"""A tiny ModernBERT, and the stock class with the same weights, for the tests of the architecture."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from bert_pld.config import load_config
from bert_pld.model import make_model
from bert_pld.model.hugging_face import to_hugging_face

ROWS, SEQ, VOCABULARY, WINDOW = 3, 64, 64, 8
LENGTHS = np.array([64, 40, 23])
SIZES = {"hidden_size": 32, "num_layers": 5, "num_attention_heads": 4, "intermediate_size": 48}


def modern_config(seq_length=SEQ, **options):
    """A `model` block's configuration; blocks 1, 2 and 4 of five attend within a window of 8."""
    model = {"architecture": "modernbert", "preset": None, "vocab_size": VOCABULARY, "local_attention": WINDOW, **SIZES}
    return load_config({"model": {**model, "initializer_range": 0.2, **options}, "data": {"seq_length": seq_length}})


def make_modern(seed=0, **options):
    """All parameters are random, LayerNorm weights and biases too, so that a swapped or missing one is detected."""
    torch.manual_seed(seed)
    model = make_model(modern_config(**options).model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def stock_model(model, attention="eager"):
    """`ModernBertForMaskedLM` with the weights of our model."""
    config, state = to_hugging_face(model.state_dict(), model.config)
    theirs = transformers.ModernBertForMaskedLM._from_config(config, attn_implementation=attention)
    report = theirs.load_state_dict(state, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["decoder.weight"], [])
    return theirs


def modern_batch(seed=0, padded=True):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(SEQ) < torch.from_numpy(LENGTHS)[:, None]
    ids = torch.randint(5, VOCABULARY, (ROWS, SEQ), generator=generator)
    positions = torch.tensor([1, 7, 33, 63, 70, 90, 99, 130, 145])
    return {
        "input_ids": ids * mask if padded else ids,
        "token_type_ids": torch.zeros(ROWS, SEQ, dtype=torch.int64),
        "attention_mask": mask if padded else None,
        "masked_positions": positions,
        "masked_labels": torch.randint(5, VOCABULARY, positions.shape, generator=generator),
    }


def stock_inputs(batch):
    """The same batch for the stock class."""
    labels = torch.full((ROWS * SEQ,), -100)
    labels[batch["masked_positions"]] = batch["masked_labels"]
    mask = batch["attention_mask"]
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": None if mask is None else mask.long(),
        "labels": labels.view(ROWS, SEQ),
    }
