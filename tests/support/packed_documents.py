"""A batch of rows that hold several documents, and the same documents one by one, for the tests of the models."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from modern_model import make_modern
from tiny_model import make_model

from bert_pld.model import use_backend
from bert_pld.pld import BlockGate, Schedule, draw_gates
from bert_pld.pld.subsets import TokenSubset

ROWS = {
    "short": (24, ([9, 15], [5, 8, 4])),
    "short, full": (24, ([9, 15], [3, 21])),
    "long": (176, ([60, 116], [40, 3, 100])),  # attention runs document by document on a CPU
}
VOCABULARY = 64


def make_packed_model(architecture, backend="reference", device="cpu", **options):
    model = make_modern(**options) if architecture == "modernbert" else make_model(num_layers=5, **options)
    use_backend(model, backend, device)
    return model.to(device)


def packed_batch(rows, seed=0):
    """Rows with a masked token at every fifth place; the arguments of the model's forward."""
    seq_length, documents = ROWS[rows]
    generator = torch.Generator().manual_seed(seed)
    lengths = np.array([sum(row) for row in documents])
    mask = torch.arange(seq_length) < torch.from_numpy(lengths)[:, None]
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator) * mask
    positions = torch.nonzero(mask.flatten()).squeeze(1)[::5]
    return {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "attention_mask": None if mask.all() else mask,
        "masked_positions": positions,
        "masked_labels": torch.randint(5, VOCABULARY, positions.shape, generator=generator),
        "mlm_denominator": 1.0,
        "sequence_lengths": lengths,
        "document_lengths": np.array(list(itertools.chain.from_iterable(documents))),
    }


def places(rows):
    """Yield (row, first position, end) of each document."""
    for row, lengths in enumerate(ROWS[rows][1]):
        yield from ((row, *edges) for edges in itertools.pairwise([0, *np.cumsum(lengths).tolist()]))


def document_batch(batch, row, begin, end):
    """The arguments of the model's forward for one document alone."""
    first = row * batch["input_ids"].shape[1] + begin
    positions = batch["masked_positions"] - first
    inside = (positions >= 0) & (positions < end - begin)
    tensors = {name: batch[name][row : row + 1, begin:end] for name in ("input_ids", "token_type_ids")}
    targets = {"masked_positions": positions[inside], "masked_labels": batch["masked_labels"][inside]}
    return {**tensors, **targets, "attention_mask": None, "mlm_denominator": 1.0}


def packed_gates(granularity, rows, num_layers=5, step=0, **options):
    """Gates of a batch from `packed_batch` at θ = 0.5; None for no granularity."""
    if granularity is None:
        return None
    seq_length, documents = ROWS[rows]
    lengths = np.array([sum(row) for row in documents])
    sizes = {"rows": len(lengths), "lengths": lengths, "padded_length": seq_length}
    schedule = Schedule(num_layers, 0.5, temporal="constant")
    return draw_gates(schedule, granularity=granularity, seed=1, step=step, **sizes, **options)


def document_gate(gate, row, begin, end):
    """What a micro-batch's gate is for one of its documents."""
    keep, tokens = gate.keep, None
    if gate.rows is not None:
        keep = row in gate.rows.tolist()
    if gate.tokens is not None:
        kept = gate.tokens.kept[row : row + 1, begin:end]
        count = int(kept.sum())
        keep = count > 0
        tokens = TokenSubset(kept, np.array([count]), np.array([end - begin]))
    return BlockGate(keep=keep, scale=gate.scale, keep_probability=gate.keep_probability, tokens=tokens)


def loss_and_gradients(model, batches, gates):
    """The summed loss of some batches with their gates, and the gradients; zero where a parameter has none."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for batch, own in zip(batches, gates, strict=True):
        outputs = model(**batch, gates=own)
        outputs["loss"].backward()
        total += outputs["loss"].item()
    parameters = dict(model.named_parameters())
    return total, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in parameters.items()}
