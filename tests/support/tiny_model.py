"""A tiny model, a batch for it, and gates, for the tests of the model."""

from __future__ import annotations

import numpy as np
import torch

from bert_pld.config import load_config
from bert_pld.model import BertForPreTraining
from bert_pld.pld import BlockGate, Schedule, draw_gates

ROWS, SEQ = 4, 16
LENGTHS = np.array([16, 12, 9, 16])
SIZES = {"preset": None, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 64}


def make_model(seed=0, **options):
    settings = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.2, "num_layers": 4, **options}
    model = {**SIZES, "next_sentence_prediction": True, **settings}
    config = load_config({"model": model, "data": {"seq_length": SEQ}})
    torch.manual_seed(seed)
    return BertForPreTraining(config.model)


def make_batch(seed=0, padded=True):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 64, (ROWS, SEQ), generator=generator)
    mask = torch.arange(SEQ) < torch.from_numpy(LENGTHS)[:, None] if padded else None
    positions = torch.tensor([1, 3, 18, 34, 50, 60])
    return {
        "input_ids": ids,
        "token_type_ids": (torch.arange(SEQ) > 7).long().expand(ROWS, SEQ).contiguous(),
        "attention_mask": mask,
        "masked_positions": positions,
        "masked_labels": torch.randint(5, 64, (6,), generator=generator),
        "next_sentence_labels": torch.tensor([0, 1, 1, 0]),
    }


def fixed_gates(pattern, scale=1.0, **options):
    return [BlockGate(keep=bool(keep), scale=scale, keep_probability=1 / scale, **options) for keep in pattern]


def drawn_gates(granularity, step=0, num_layers=4, padded=True, **options):
    """Gates of a batch from `make_batch` at θ = 0.5."""
    lengths = LENGTHS if padded else np.full(ROWS, SEQ)
    schedule = Schedule(num_layers, 0.5, temporal="constant")
    return draw_gates(
        schedule, granularity=granularity, seed=1, step=step, rows=ROWS, lengths=lengths, padded_length=SEQ, **options
    )


def gradients(model, gates, **batch):
    model.zero_grad(set_to_none=True)
    outputs = model(**{**make_batch(), **batch}, gates=gates)
    outputs["loss"].backward()
    return outputs["loss"].item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def step_of_sgd(model):
    """Take a step along the gradients that there are, and return copies of these."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad.clone() for parameter in trained]
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.sub_(0.01 * gradient)
    return gradients
