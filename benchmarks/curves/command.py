"""Loss curves of two kernel backends from the same seeds: that the faster one trains as well, within the seeds' spread.

Each backend, precision and seed trains a model of its own on the same learnable batches under the same gates, through
DeepSpeed; dropout is on, so the backends' masks differ as those of two runs do. What is compared is the mean loss over
the last quarter of the steps: the difference between backends, seed by seed, against the spread between seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from typing import Any

import torch

from benchmarks.batches import pattern_batch
from benchmarks.deepspeed_engine import DTYPES, deepspeed_json, make_engine, single_rank
from benchmarks.options import chosen
from bert_pld.config import load_config
from bert_pld.kernels import BACKENDS, select_backend
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.pld.gates import draw_gates
from bert_pld.pld.schedule import Schedule

EXAMPLE = "python -m benchmarks curves --dtypes bf16,fp16 --json curves.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's own options."""
    parser.add_argument("--model_preset", default="small", help="tiny, mini, small, … (default small)")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument(
        "--backends", default="reference,triton", help="two; the first is what the other is held against"
    )
    parser.add_argument("--dtypes", default="bf16", help=f"of {', '.join(DTYPES)} (default bf16)")
    parser.add_argument("--granularity", choices=("batch", "sample"), default="batch")
    parser.add_argument("--theta", type=float, default=0.5, help="θ, constant (default 0.5)")
    parser.add_argument("--steps", type=int, default=200, help="of each run (default 200)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each backend and precision, at least 2 (default 3)"
    )
    parser.add_argument("--micro_batch_size", type=int, default=64, help="sequences (default 64)")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens a sequence (default 128)")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train every run.

    Returns:
        JSON-ready: the set-up, and for each precision the curves, final losses, differences and spread; `failed` if
        any difference of means is beyond the spread.

    Raises:
        ValueError: options that do not fit, or a backend that cannot run here.
    """
    backends = chosen("--backends", options.backends, BACKENDS)
    dtypes = chosen("--dtypes", options.dtypes, tuple(DTYPES))
    if len(backends) != 2:
        raise ValueError(f"--backends {options.backends}: must be two")
    if options.seeds < 2 or options.steps < 4:
        raise ValueError(f"--seeds {options.seeds}, --steps {options.steps}: must be at least 2 and 4")
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
            figures.append({"dtype": dtype, **_compare(curves, backends)})
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "model": dataclasses.asdict(config),
        **{key: getattr(options, key) for key in ("granularity", "theta", "steps", "seeds", "learning_rate")},
        "micro_batch_size": options.micro_batch_size,
        "seq_length": options.seq_length,
        "backends": backends,
        "figures": figures,
        "failed": not all(one["within_spread"] for one in figures),
    }


def _train(
    backend: str, dtype: str, seed: int, config: Any, options: argparse.Namespace, device: torch.device
) -> list[float]:
    """Losses of one run, in nats."""
    torch.manual_seed(seed)
    model = BertForPreTraining(config)
    use_backend(model, backend, device.type)
    settings = deepspeed_json(dtype, zero_stage=1, micro_batch_size=options.micro_batch_size)
    settings["optimizer"]["params"]["lr"] = options.learning_rate
    engine = make_engine(model.to(device).train(), settings)
    schedule = Schedule(config.num_layers, options.theta, temporal="constant")
    losses = []
    for step in range(options.steps):
        batch = pattern_batch(config, options.micro_batch_size, options.seq_length, seed=1000 * seed + step)
        gates = draw_gates(
            schedule,
            granularity=options.granularity,
            seed=seed,
            step=step,
            rows=options.micro_batch_size,
            device=device,
        )
        moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        loss = engine(**moved, gates=gates)["loss"]
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def _compare(curves: dict[str, list[list[float]]], backends: list[str]) -> dict[str, Any]:
    tail = {
        backend: [statistics.fmean(losses[-(len(losses) // 4) :]) for losses in runs]
        for backend, runs in curves.items()
    }
    differences = [ours - theirs for theirs, ours in zip(*(tail[backend] for backend in backends), strict=True)]
    spread = max(statistics.stdev(tail[backend]) for backend in backends)
    return {
        "final_losses": tail,
        "differences": differences,
        "mean_difference": statistics.fmean(differences),
        "spread_between_seeds": spread,
        "within_spread": abs(statistics.fmean(differences)) <= spread,
        "curves": {backend: [[round(loss, 4) for loss in run] for run in runs] for backend, runs in curves.items()},
    }


def report(result: dict[str, Any]) -> str:
    """Final losses by seed."""
    model, (first, second) = result["model"], result["backends"]
    lines = [
        f"{model['num_layers']} blocks × {model['hidden_size']}, {result['steps']} steps of"
        f" {result['micro_batch_size']} × {result['seq_length']}, θ = {result['theta']:g} by {result['granularity']},"
        f" {result['device']}, torch {result['torch']}",
        "mean loss of the last quarter of the steps, in nats, by seed",
    ]
    for one in result["figures"]:
        for backend in (first, second):
            lines.append(
                f"{one['dtype']:6}{backend:12}" + "".join(f"{loss:9.4f}" for loss in one["final_losses"][backend])
            )
        verdict = "within" if one["within_spread"] else "BEYOND"
        lines.append(
            f"{one['dtype']:6}{second} − {first}: {one['mean_difference']:+.4f} on average,"
            f" {verdict} the {one['spread_between_seeds']:.4f} between seeds"
        )
    return "\n".join(lines)
