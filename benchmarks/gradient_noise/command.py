"""Gradient noise scale of checkpoints, in sequences, beside the batch that the run had.

The noise scale is tr Σ / ‖G‖²: the variance of one sequence's gradient over the squared norm of the mean gradient
(McCandlish et al., arXiv:1812.06162, equation 2.9). In theory, the progress of a step grows with its batch where the
batch is far below the noise scale, so a step on fewer tokens is worth less there. Far above it, fewer tokens would make
a step as good.

All gradients are those of the model with all blocks and without dropout, on rows that are masked as in training. The
noise scale is computed from the squared norms of the gradients of K micro-batches of B sequences, and of their mean,
both without bias. The figure of each half of the micro-batches shows how far chance matters.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_device
from benchmarks.markdown import table_lines
from benchmarks.options import present_device
from bert_pld.checkpoint.format import load_model, load_state, resolve_checkpoint
from bert_pld.data.loader import evaluation_batches
from bert_pld.data.order import BatchShare
from bert_pld.evaluate import open_for_checkpoint

EXAMPLE = "python -m benchmarks gradient_noise --checkpoints runs/base --data_dir shards/ --json gradient_noise.json"
PARTS = ("blocks", "rest")
"""The matrices of the blocks; and the embeddings, the heads and all vectors."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--checkpoints", required=True, nargs="+", type=Path, metavar="DIR", help="run folders, or step_N folders")
    add("--data_dir", required=True, type=Path, help="the run's shards; held-out rows are used")
    add("--micro_batch_size", type=int, default=16, help="sequences of one gradient (default 16)")
    add("--micro_batches", type=int, default=128, help="gradients, at least 4 (default 128)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


@dataclasses.dataclass
class GradientSums:
    """The sum of some gradients and of their squared norms, for one part of the model."""

    count: int = 0
    gradient: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(()))
    """[N]; a single zero before the first."""
    squared_norms: float = 0.0

    def add(self, gradient: Tensor) -> None:
        """Add one gradient [N]."""
        self.count += 1
        self.gradient = self.gradient + gradient
        self.squared_norms += gradient.square().sum().item()

    def __add__(self, other: GradientSums) -> GradientSums:
        return GradientSums(
            self.count + other.count, self.gradient + other.gradient, self.squared_norms + other.squared_norms
        )

    def noise_scale(self, micro_batch_size: int) -> float | None:
        """Return tr Σ / ‖G‖² in sequences; None where chance hides G.

        With K gradients g_k of B sequences, E‖g‖² = ‖G‖² + tr Σ / B and E‖mean g‖² = ‖G‖² + tr Σ / (B·K).
        """
        squared, of_mean = self.squared_norms / self.count, (self.gradient / self.count).square().sum().item()
        variance = (squared - of_mean) * self.count / (self.count - 1)
        signal = of_mean - variance / self.count
        return micro_batch_size * variance / signal if signal > 0.0 else None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure each checkpoint: `figures` has its step, the run's batch and the noise scale, of all and of each part."""
    if options.micro_batches < 4:
        raise ValueError(f"--micro_batches {options.micro_batches}: must be at least 4")
    if options.micro_batch_size < 1:
        raise ValueError(f"--micro_batch_size {options.micro_batch_size}: must be at least 1")
    device = present_device(options.device)
    return {
        **describe_device(device),
        "micro_batch_size": options.micro_batch_size,
        "micro_batches": options.micro_batches,
        "figures": [_of_checkpoint(folder, options, device) for folder in options.checkpoints],
    }


def _of_checkpoint(folder: Path, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    checkpoint = resolve_checkpoint(folder)
    model, config = load_model(checkpoint)
    rows = open_for_checkpoint(checkpoint, config, options.data_dir, "validation")
    needed = options.micro_batch_size * options.micro_batches
    if len(rows) < needed:
        raise ValueError(
            f"--micro_batches {options.micro_batches} × --micro_batch_size {options.micro_batch_size}: must be at most"
            f" {len(rows):,}, the held-out rows in {options.data_dir}"
        )
    model.to(device).eval()
    share = BatchShare(micro_batch_size=options.micro_batch_size)
    batches = evaluation_batches(rows, config.data, share, seed=config.training.seed, max_rows=needed)
    halves: list[dict[str, GradientSums]] = [{part: GradientSums() for part in PARTS} for _ in range(2)]
    # As in a training step, one denominator for all micro-batches.
    masked = config.data.evaluated_mask_probability * options.micro_batch_size * config.data.seq_length
    for index, batch in enumerate(batches):
        model.zero_grad(set_to_none=True)
        model(**batch.to(device).model_inputs(), mlm_denominator=masked)["loss"].backward()
        for part, gradient in _gradients(model).items():
            halves[index % 2][part].add(gradient)
    whole = {part: halves[0][part] + halves[1][part] for part in PARTS}
    return {
        "checkpoint": str(folder),
        "step": load_state(checkpoint)["step"],
        "train_batch_size": config.deepspeed.get("train_batch_size"),
        **_scales(whole, options),
        "halves": [_scales(half, options) for half in halves],
    }


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = PARTS[0] if ".blocks." in name and parameter.dim() >= 2 else PARTS[1]
            parts[part].append(parameter.grad.float().flatten())
    return {part: torch.cat(gradients) for part, gradients in parts.items()}


def _scales(sums: Mapping[str, GradientSums], options: argparse.Namespace) -> dict[str, float | None]:
    whole = GradientSums(
        sums[PARTS[0]].count,
        torch.cat([sums[part].gradient for part in PARTS]),
        sum(sums[part].squared_norms for part in PARTS),
    )
    return {name: one.noise_scale(options.micro_batch_size) for name, one in {"all": whole, **sums}.items()}


def report(result: dict[str, Any]) -> str:
    """Format the figures as a Markdown table."""
    columns = ("checkpoint", "step", "batch", "noise scale", "of the halves", "of the blocks' matrices", "of the rest")
    table = [
        [
            one["checkpoint"],
            f"{one['step']:,}",
            "–" if one["train_batch_size"] is None else f"{one['train_batch_size']:,}",
            _sequences(one["all"]),
            ", ".join(_sequences(half["all"]) for half in one["halves"]),
            *(_sequences(one[part]) for part in PARTS),
        ]
        for one in result["figures"]
    ]
    size = result["micro_batch_size"]
    head = f"{result['micro_batches']} gradients of {size} sequences, {result['device']}; in sequences"
    return "\n".join([head, "", *table_lines(columns, table)])


def _sequences(scale: float | None) -> str:
    return "not found" if scale is None else f"{scale:,.0f}"
