"""Loss curves of two kernel backends from the same seeds: does the faster one train as well?

Each backend, precision and seed trains its own model on the same learnable batches under the same gates, through
DeepSpeed. Dropout is on, so the backends' masks differ as those of two runs do. A paired t test compares the mean
losses over the last quarter of the steps; runs of the same seed form a pair.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.batches import pattern_batch
from benchmarks.engines import deepspeed_json, single_rank, wrap_in_engine
from benchmarks.intervals import mean_interval
from benchmarks.machine import describe_device
from benchmarks.options import DTYPES, check_fraction, chosen, present_device
from bert_pld.cli import require_positive
from bert_pld.config import ModelConfig, load_config
from bert_pld.kernels import BACKENDS, select_backend
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.pld.gates import draw_gates
from bert_pld.pld.schedule import Schedule

EXAMPLE = "python -m benchmarks curves --dtypes bf16,fp16 --json curves.json"
_RECORDED_OPTIONS = ("granularity", "theta", "steps", "seeds", "learning_rate", "micro_batch_size", "seq_length")
FALSE_ALARMS = 0.02
"""Probability that two equal backends are reported as different in any of the precisions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--model_preset", default="small", help="tiny, mini, small, … (default small)")
    add("--vocab_size", type=int, default=8192)
    add("--backends", default="reference,triton", help="two; the second is compared with the first")
    add("--dtypes", default="bf16", help=f"list of {', '.join(DTYPES)} (default bf16)")
    add("--granularity", choices=("batch", "sample", "token"), default="batch")
    add("--theta", type=float, default=0.5, help="constant θ (default 0.5)")
    add("--steps", type=int, default=200, help="steps a run (default 200)")
    seeds_help = "runs of each backend and precision, at least 2 (default 6; fewer miss larger differences)"
    add("--seeds", type=int, default=6, help=seeds_help)
    add("--micro_batch_size", type=int, default=64, help="sequences (default 64)")
    add("--seq_length", type=int, default=128, help="tokens a sequence (default 128)")
    add("--learning_rate", type=float, default=1e-3)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train every run; for each precision, return the curves, final losses, differences and their interval.

    `failed` is set if the backends differ in any precision.
    """
    backends = chosen("--backends", options.backends, BACKENDS)
    dtypes = chosen("--dtypes", options.dtypes, tuple(DTYPES))
    if len(backends) != 2:
        raise ValueError(f"--backends {options.backends}: must be two")
    if options.seeds < 2 or options.steps < 4:
        raise ValueError(f"--seeds {options.seeds}, --steps {options.steps}: must be at least 2 and 4")
    check_fraction("--theta", options.theta)
    require_positive(options, "micro_batch_size")
    present_device(options.device)
    if "fp16" in dtypes and options.device == "cpu":
        raise ValueError("--dtypes fp16: needs a GPU; use fp32 or bf16")
    model = {"preset": options.model_preset, "vocab_size": options.vocab_size}
    config = load_config({"model": model, "data": {"seq_length": options.seq_length}}).model
    config = dataclasses.replace(config, next_sentence_prediction=False)
    for backend in backends:
        select_backend(backend, options.device, config.hidden_size)
    figures = []
    with single_rank(options.device) as device:
        for dtype in dtypes:
            curves = {
                backend: [_train(backend, dtype, seed, config, options, device) for seed in range(options.seeds)]
                for backend in backends
            }
            rounded = {backend: [[round(loss, 4) for loss in run] for run in runs] for backend, runs in curves.items()}
            figures.append({"dtype": dtype, **compare(curves, backends, len(dtypes)), "curves": rounded})
    return {
        **describe_device(device),
        "model": dataclasses.asdict(config),
        **{key: getattr(options, key) for key in _RECORDED_OPTIONS},
        "backends": backends,
        "figures": figures,
        "failed": any(one["differs"] for one in figures),
    }


def _train(
    backend: str, dtype: str, seed: int, config: ModelConfig, options: argparse.Namespace, device: torch.device
) -> list[float]:
    """The losses of one run, in nats."""
    torch.manual_seed(seed)
    model = BertForPreTraining(config)
    use_backend(model, backend, device.type)
    settings = deepspeed_json(dtype, zero_stage=1, micro_batch_size=options.micro_batch_size)
    settings["optimizer"]["params"]["lr"] = options.learning_rate
    engine = wrap_in_engine(model.to(device).train(), settings)
    schedule = Schedule(config.num_layers, options.theta, temporal="constant")
    rows, losses = options.micro_batch_size, []
    for step in range(options.steps):
        batch = pattern_batch(config, rows, options.seq_length, 1000 * seed + step, device)
        gates = draw_gates(
            schedule,
            granularity=options.granularity,
            seed=seed,
            step=step,
            rows=rows,
            lengths=np.full(rows, options.seq_length),
            padded_length=options.seq_length,
            device=device,
        )
        loss = engine(**batch, gates=gates)["loss"]
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def compare(
    curves: Mapping[str, Sequence[Sequence[float]]], backends: Sequence[str], comparisons: int = 1
) -> dict[str, Any]:
    """Compare the final losses of two backends, seed by seed: the second's minus the first's.

    `comparisons` share `FALSE_ALARMS` (Bonferroni). The backends differ if the interval of the mean difference excludes
    0, or a loss is not finite.
    """
    final = {
        backend: [statistics.fmean(losses[-(len(losses) // 4) :]) for losses in runs]
        for backend, runs in curves.items()
    }
    differences = [b - a for a, b in zip(*(final[backend] for backend in backends), strict=True)]
    interval = mean_interval(differences, 1 - FALSE_ALARMS / comparisons)
    assert interval is not None, "two seeds at least"
    return {
        "final_losses": final,
        "differences": differences,
        "mean_difference": statistics.fmean(differences),
        "interval": interval,
        "differs": not interval[0] <= 0.0 <= interval[1],
    }


def report(result: dict[str, Any]) -> str:
    """Format final losses by seed, and the comparison."""
    model, (first, second) = result["model"], result["backends"]
    lines = [
        f"{model['num_layers']} blocks × {model['hidden_size']}, {result['steps']} steps of"
        f" {result['micro_batch_size']} × {result['seq_length']}, θ = {result['theta']:g} by {result['granularity']},"
        f" {result['device']}, torch {result['torch']}",
        "mean loss of the last quarter of the steps, in nats, by seed",
    ]
    for one in result["figures"]:
        for backend in (first, second):
            losses = "".join(f"{loss:9.4f}" for loss in one["final_losses"][backend])
            lines.append(f"{one['dtype']:6}{backend:12}{losses}")
        low, high = one["interval"]
        lines.append(
            f"{one['dtype']:6}{second} − {first}: {one['mean_difference']:+.4f} on average, interval"
            f" {low:+.4f} … {high:+.4f}: {'DIFFERENT' if one['differs'] else 'no difference found'}"
        )
    lines.append(f"equal backends are called DIFFERENT in {FALSE_ALARMS:.0%} of such runs")
    return "\n".join(lines)
