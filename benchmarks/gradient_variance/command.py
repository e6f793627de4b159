"""Variance of the gradient under gate draws: the granularities at the same expected compute.

The batch is fixed, θ is constant and dropout is 0, so only the gates differ between draws. Gradients are clipped as in
training, because a few draws would otherwise dominate. Tokens are random and learnable: each sequence has one of 16
topics; a topic is a sixteenth of the vocabulary under a Zipf distribution; 15 % of the tokens are masked. Gradients are
taken at the initial weights and after some AdamW steps under layer dropping, with batch and sample granularity in turn;
the embeddings' gradient includes that of the tied output matrix. The variance between batches without gates is given
for scale.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.batches import pattern_batch
from benchmarks.engines import model_section
from benchmarks.machine import describe_device
from benchmarks.markdown import table_lines
from benchmarks.options import check_fraction, fractions, positive_integers, present_device
from bert_pld.config import ModelConfig, load_config
from bert_pld.model import BertForPreTraining
from bert_pld.pld.gates import Gates, draw_gates
from bert_pld.pld.schedule import Schedule

EXAMPLE = "python -m benchmarks gradient_variance --json gradient_variance.json"
PARTS = ("first third", "middle third", "last third", "embeddings", "head")
"""Thirds of the blocks in depth order, and the rest of the model; the head includes the last LayerNorm."""
GRANULARITIES: tuple[Literal["batch", "sample", "token"], ...] = ("batch", "sample", "token")
_TRAINING = ("trained_steps", "trained_theta", "learning_rate")
_RECORDED_OPTIONS = ("seq_length", "draws", "clip", "keep_first_block", *_TRAINING)
_CHUNKS = 8
_TRAINING_ROWS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--num_layers", type=int, default=8, help="blocks (default 8)")
    add("--hidden_size", type=int, default=128, help="width (default 128)")
    add("--num_attention_heads", type=int, help="heads (default: width / 64)")
    add("--vocab_size", type=int, default=2048)
    add("--seq_length", type=int, default=64, help="tokens a sequence (default 64)")
    add("--micro_batch_sizes", default="4,16,64", help="sequences, joined by commas (default 4,16,64)")
    add("--thetas", default="0.5", help="θ, joined by commas (default 0.5)")
    add("--draws", type=int, default=64, help=f"gate draws a figure, a multiple of {_CHUNKS} (default 64)")
    add("--trained_steps", type=int, default=300, help="AdamW steps of 16 sequences (default 300)")
    add("--trained_theta", type=float, default=0.5, help="θ of those steps (default 0.5)")
    add("--clip", type=float, default=1.0, help="norm that gradients are clipped to; 0: no clipping (default 1)")
    add("--learning_rate", type=float, default=1e-3, help="learning rate of those steps (default 1e-3)")
    add("--keep_first_block", action="store_true", help="never drop block 1 (default: p_l = 1 − l/L·(1 − θ))")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


class StreamingMoments:
    """Mean and total variance of a stream of vectors; stores one vector (Welford, Technometrics 4(3), 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self._squared_deviations = 0.0

    def add(self, vector: Tensor) -> None:
        """Add one [N] vector."""
        self.count += 1
        before = vector - self.mean
        self.mean = self.mean + before / self.count
        self._squared_deviations += torch.dot(before, vector - self.mean).item()

    @property
    def variance(self) -> float:
        """E‖g − E g‖², unbiased; requires two vectors."""
        return self._squared_deviations / (self.count - 1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure at the initial and at the trained weights, for every θ and micro-batch size.

    `losses` are those of a fixed batch of 16 before and after training, in nats; `figures` has an entry for each
    combination of weights, micro-batch size and θ.
    """
    sizes = positive_integers("--micro_batch_sizes", options.micro_batch_sizes)
    thetas = fractions("--thetas", options.thetas)
    if options.draws < 2 * _CHUNKS or options.draws % _CHUNKS:
        raise ValueError(f"--draws {options.draws}: must be a multiple of {_CHUNKS}, at least {2 * _CHUNKS}")
    check_fraction("--trained_theta", options.trained_theta)
    if options.trained_steps < 0:
        raise ValueError(f"--trained_steps {options.trained_steps}: must be at least 0")
    device = present_device(options.device)
    torch.manual_seed(0)
    model = BertForPreTraining(_model_config(options)).to(device)
    losses: dict[str, float] = {}
    between: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for weights in ("initial", "trained"):
        if weights == "trained":
            _train(model, options)
        with torch.no_grad():
            losses[weights] = _loss(model, _batch(model, _TRAINING_ROWS, options, 0)).item()
        for rows in sizes:
            key = {"weights": weights, "micro_batch_size": rows}
            between.append({**key, **_between_batches(model, rows, options)})
            figures += [{**key, "theta": theta, **_under_gates(model, rows, theta, options)} for theta in thetas]
    return {
        **describe_device(device),
        "model": dataclasses.asdict(model.config),
        **{key: getattr(options, key) for key in _RECORDED_OPTIONS},
        "losses": losses,
        "between_batches": between,
        "figures": figures,
    }


def _batch(model: BertForPreTraining, rows: int, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    return pattern_batch(model.config, rows, options.seq_length, seed, options.device)


def _loss(model: BertForPreTraining, batch: dict[str, Any], gates: Gates | None = None) -> Tensor:
    return model(**batch, gates=gates)["loss"]


def _schedule(model: BertForPreTraining, theta: float, options: argparse.Namespace) -> Schedule:
    return Schedule(model.num_gated_blocks, theta, temporal="constant", keep_first_block=options.keep_first_block)


def _train(model: BertForPreTraining, options: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, fused=True)
    schedule = _schedule(model, options.trained_theta, options)
    for step in range(options.trained_steps):
        kind = GRANULARITIES[step % 2]
        # Seed 1: training must not use the gates that are measured.
        gates = draw_gates(schedule, granularity=kind, seed=1, step=step, rows=_TRAINING_ROWS, device=options.device)
        _loss(model, _batch(model, _TRAINING_ROWS, options, 1 + step), gates).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _gradient(model: BertForPreTraining, batch: dict[str, Any], gates: Gates | None, clip: float) -> dict[str, Tensor]:
    """The gradient of each part, [N], clipped as in training; that of a dropped block is zero."""
    model.zero_grad(set_to_none=True)
    _loss(model, batch, gates).backward()
    gathered: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gathered[_part_of(name, model.num_gated_blocks)].append(gradient.flatten())
    parts = {part: torch.cat(gradients) for part, gradients in gathered.items() if gradients}
    norm = torch.stack([part.norm() for part in parts.values()]).norm().item()
    factor = clip / norm if clip and norm > clip else 1.0
    return {part: gradient * factor for part, gradient in parts.items()}


def _part_of(name: str, blocks: int) -> str:
    """The part that a parameter belongs to, by its name."""
    if name.startswith("encoder.blocks."):
        return PARTS[int(name.split(".")[2]) * 3 // blocks]
    return "embeddings" if name.startswith("encoder.embeddings.") else "head"


def moments_of(gradients: Iterable[dict[str, Tensor]], draws: int) -> dict[str, Any]:
    """Variance and squared norm of the mean of a stream of `draws` gradients, for all parameters and for each part."""
    variances: dict[str, list[float]] = {}
    means: dict[str, Tensor] = {}
    chunk: dict[str, StreamingMoments] = {}
    for index, parts in enumerate(gradients):
        if index % (draws // _CHUNKS) == 0:
            chunk = {part: StreamingMoments() for part in parts}
        for part, vector in parts.items():
            chunk[part].add(vector)
            means[part] = means.get(part, 0.0) + vector / draws
        if (index + 1) % (draws // _CHUNKS) == 0:
            for part, moments in chunk.items():
                variances.setdefault(part, []).append(moments.variance)
    total = [sum(chunk_variances) for chunk_variances in zip(*variances.values(), strict=True)]
    variance = {part: statistics.fmean(chunks) for part, chunks in variances.items()}
    # ‖mean‖² exceeds ‖E g‖² by the variance of the mean.
    squared_norm = {part: means[part].square().sum().item() - variance[part] / draws for part in variance}
    for part, square in squared_norm.items():
        if square <= 0:
            raise ValueError(
                f"--draws {draws}: {part} got no gradient, or one that its variance hides; give more draws, or a larger"
                " --thetas"
            )
    whole = statistics.fmean(total)
    return {
        "variance": whole,
        "mean_squared": sum(squared_norm.values()),
        "relative_variance": whole / sum(squared_norm.values()),
        "relative_standard_error": statistics.stdev(total) / len(total) ** 0.5 / whole,
        "by_part": {part: variance[part] / squared_norm[part] for part in variance},
    }


def _between_batches(model: BertForPreTraining, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """The variance between batches without gates, over the mean squared norm of one batch's gradient."""
    seeds = range(10_000, 10_000 + options.draws)
    batches = (_batch(model, rows, options, seed) for seed in seeds)
    moments = moments_of((_gradient(model, batch, None, options.clip) for batch in batches), options.draws)
    return {"relative_variance": moments["variance"] / (moments["variance"] + moments["mean_squared"])}


def _under_gates(model: BertForPreTraining, rows: int, theta: float, options: argparse.Namespace) -> dict[str, Any]:
    schedule = _schedule(model, theta, options)
    batch = _batch(model, rows, options, 0)
    figures: dict[str, Any] = {"blocks_expected": schedule.expected_depth(0)}
    for granularity in GRANULARITIES:
        drawn = [
            draw_gates(
                schedule,
                granularity=granularity,
                seed=0,
                step=step,
                rows=rows,
                lengths=np.full(rows, options.seq_length),
                padded_length=options.seq_length,
                device=options.device,
            )
            for step in range(options.draws)
        ]
        figures[granularity] = {
            **moments_of((_gradient(model, batch, gates, options.clip) for gates in drawn), options.draws),
            "blocks_mean": statistics.fmean(gates.kept_blocks for gates in drawn),
            "blocks_standard_deviation": statistics.stdev(gates.kept_blocks for gates in drawn),
        }
    by_sample, by_batch = figures["sample"], figures["batch"]
    sample_parts, batch_parts = by_sample["by_part"], by_batch["by_part"]
    error = (by_sample["relative_standard_error"] ** 2 + by_batch["relative_standard_error"] ** 2) ** 0.5
    return {
        **figures,
        "ratio": by_batch["relative_variance"] / by_sample["relative_variance"],
        "ratio_relative_standard_error": error,
        "ratio_by_part": {part: batch_parts[part] / sample_parts[part] for part in sample_parts},
    }


def _model_config(options: argparse.Namespace) -> ModelConfig:
    heads = {"num_attention_heads": options.num_attention_heads} if options.num_attention_heads else {}
    sizes = {**heads, "num_layers": options.num_layers, "vocab_size": options.vocab_size}
    fixed = {"next_sentence_prediction": False, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    model = model_section(options.hidden_size, **sizes, **fixed)
    return load_config({"model": model, "data": {"seq_length": options.seq_length}}).model


def report(result: dict[str, Any]) -> str:
    """Format the figures as two Markdown tables: all parameters, then by part."""
    model = result["model"]
    between = {(one["weights"], one["micro_batch_size"]): one["relative_variance"] for one in result["between_batches"]}
    lines = [
        f"{model['num_layers']} blocks × {model['hidden_size']}, vocabulary {model['vocab_size']:,}, sequences of"
        f" {result['seq_length']}, {result['draws']} draws a figure, {result['device']}, torch {result['torch']}; loss"
        f" {result['losses']['initial']:.2f} nats initially, {result['losses']['trained']:.2f} after"
        f" {result['trained_steps']} steps",
        "",
    ]
    whole, by_part = [], []
    # Results that were made before token granularity have no figures of it.
    names = [name for name in GRANULARITIES if all(name in one for one in result["figures"])]
    for one in result["figures"]:
        setting = (one["weights"], f"{one['micro_batch_size']}", f"{one['theta']:g}")
        measured = [one[name] for name in names]
        whole.append(
            [
                *setting,
                *(f"{of['relative_variance']:.3f}" for of in measured),
                f"{one['ratio']:.2f} ± {one['ratio'] * one['ratio_relative_standard_error']:.2f}",
                f"{between[one['weights'], one['micro_batch_size']]:.2f}",
                *(f"{of['blocks_mean']:.2f} ± {of['blocks_standard_deviation']:.2f}" for of in measured),
            ]
        )
        ratios = one["ratio_by_part"]
        by_part.append([*setting, *(f"{ratios[part]:.2f}" if part in ratios else "–" for part in PARTS)])
    columns = (*names, "batch / sample", "between batches", *(f"blocks, {name}" for name in names))
    lines += table_lines(("weights", "sequences", "θ", *columns), whole)
    lines += ["", "batch / sample by part:", ""]
    return "\n".join(lines + table_lines(("weights", "sequences", "θ", *PARTS), by_part))
