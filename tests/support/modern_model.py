"""A tiny ModernBERT, and the stock class with the same weights, for the tests of the architecture."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from bert_pld.config import load_config
from bert_pld.model import make_model

ROWS, SEQ, VOCABULARY, WINDOW = 3, 64, 64, 8
LENGTHS = np.array([64, 40, 23])
SIZES = {"hidden_size": 32, "num_layers": 5, "num_attention_heads": 4, "intermediate_size": 48}
_NAMES = {
    "encoder.embeddings.word.weight": "model.embeddings.tok_embeddings.weight",
    "encoder.embeddings.norm.weight": "model.embeddings.norm.weight",
    "encoder.final_norm.weight": "model.final_norm.weight",
    "mlm_head.transform.weight": "head.dense.weight",
    "mlm_head.norm.weight": "head.norm.weight",
    "mlm_head.bias": "decoder.bias",
}
_OF_BLOCK = {
    "attention_norm_weight": "attn_norm.weight",
    "qkv_weight": "attn.Wqkv.weight",
    "attention_output_weight": "attn.Wo.weight",
    "ffn_norm_weight": "mlp_norm.weight",
    "ffn_up_weight": "mlp.Wi.weight",
    "ffn_down_weight": "mlp.Wo.weight",
}


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


def stock_name(name):
    """The stock class's name of one of our parameters."""
    if name not in _NAMES:
        _, _, index, rest = name.split(".")
        return f"model.layers.{index}.{_OF_BLOCK[rest]}"
    return _NAMES[name]


def stock_model(model, attention="eager", **changes):
    """`ModernBertForMaskedLM` with the weights of our model."""
    ours = model.config
    config = transformers.ModernBertConfig(
        vocab_size=ours.vocab_size, hidden_size=ours.hidden_size, num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_attention_heads, intermediate_size=ours.intermediate_size,
        local_attention=ours.local_attention, attention_dropout=ours.attention_dropout, pad_token_id=0,
        mlp_dropout=ours.hidden_dropout, embedding_dropout=ours.hidden_dropout,
        cls_token_id=1, bos_token_id=1, sep_token_id=2, eos_token_id=2, **changes,
    )  # fmt: skip
    theirs = transformers.ModernBertForMaskedLM._from_config(config, attn_implementation=attention)
    report = theirs.load_state_dict({stock_name(n): t for n, t in model.state_dict().items()}, strict=False)
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
