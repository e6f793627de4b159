"""Training throughput: Hugging Face's class, ours, and ours with PLD at its limit.

All contenders start from the same weights, see the same random tokens, drop out alike and step the same fused AdamW.
They take turns, A B C A B C …, so that whatever else the machine does falls on all of them; a ratio is the median over
rounds of the ratio within a round. The PLD contenders run θ constant, on the same gate draws every round.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from typing import Any

import torch

from bert_pld.bench._contenders import (
    CONTENDERS,
    DTYPES,
    MASK_PROBABILITY,
    Contender,
    loss_difference,
    make_contender,
    now,
    random_batch,
    time_round,
    train_step,
)
from bert_pld.bench._options import chosen
from bert_pld.config import ModelConfig, load_config
from bert_pld.model.flops import ModelFlops
from bert_pld.pld.gates import Gates, draw_gates
from bert_pld.pld.schedule import Schedule

EXAMPLE = "python -m bert_pld.bench train --model_preset small --dtypes fp32 --json train.json"
_BATCHES = 4
_SLOW_MATMUL = 0.1
"""Where a dtype's matrix products run at less than this share of fp32's, Hugging Face's class, which does not widen
them, is left out unless forced: a step takes minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's own options."""
    parser.add_argument("--model_preset", help="tiny, mini, small, medium, base, large (default: 8 blocks × 256)")
    for key, what in (
        ("num_layers", "blocks"),
        ("hidden_size", "width"),
        ("num_attention_heads", "heads (default: width / 64)"),
        ("intermediate_size", "width of the feed-forward (default: 4 × width)"),
    ):
        parser.add_argument(f"--{key}", type=int, help=what)
    parser.add_argument("--normalization", choices=("pre", "post"), default="pre")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--micro_batch_size", type=int, default=16, help="sequences (default 16)")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens a sequence (default 128)")
    parser.add_argument("--dtypes", default="fp32,bf16", help="of fp32, bf16 (the whole model); default both")
    default = [name for name in CONTENDERS if name != "compiled"]
    parser.add_argument(
        "--contenders", default=",".join(default), help=f"of {', '.join(CONTENDERS)} (default: all but compiled)"
    )
    parser.add_argument("--theta", type=float, default=0.5, help="θ of the PLD contenders (default 0.5)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--steps_per_round", type=int, default=6, help="steps, and gate draws, a turn (default 6)")
    parser.add_argument("--warmup_steps", type=int, default=2, help="steps of each contender before (default 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--force", action="store_true", help="measure Hugging Face even where products crawl")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders in all dtypes.

    Returns:
        JSON-ready: the set-up, `matmul_gflops` a dtype, `skipped`, `gates` and one entry of `contenders` for each.

    Raises:
        ValueError: an unknown dtype or contender, or sizes that do not fit.
    """
    dtypes = chosen("--dtypes", options.dtypes, tuple(DTYPES))
    names = chosen("--contenders", options.contenders, CONTENDERS)
    for key in ("rounds", "steps_per_round", "micro_batch_size"):
        if getattr(options, key) < 1:
            raise ValueError(f"--{key} {getattr(options, key)}: must be at least 1")
    device = torch.device(options.device)
    config = _model_config(options)
    flops = ModelFlops(config, options.seq_length, MASK_PROBABILITY)
    gates = _draw_all_gates(options, config.num_layers, device)
    batches = [
        random_batch(config, options.micro_batch_size, options.seq_length, device, seed) for seed in range(_BATCHES)
    ]

    rates = {dtype: matmul_gflops(DTYPES[dtype], device) for dtype in dict.fromkeys(("fp32", *dtypes))}
    skipped = [d for d in dtypes if rates[d] < _SLOW_MATMUL * rates["fp32"] and not options.force]
    contenders = [
        make_contender(name, dtype, config, gates, device)
        for dtype in dtypes
        for name in names
        if not (name == "hugging_face" and dtype in skipped)
    ]
    for contender in contenders:
        for step in range(options.warmup_steps):
            train_step(contender, batches[step % _BATCHES], step % options.steps_per_round, device)
    for _ in range(options.rounds):
        for contender in contenders:
            contender.round_seconds.append(time_round(contender, batches, options.steps_per_round, device))

    tokens_a_round = options.steps_per_round * options.micro_batch_size * options.seq_length
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": dataclasses.asdict(config),
        "micro_batch_size": options.micro_batch_size,
        "seq_length": options.seq_length,
        "rounds": options.rounds,
        "steps_per_round": options.steps_per_round,
        "theta": options.theta,
        "matmul_gflops": rates,
        "skipped": skipped,
        "loss_difference": loss_difference(config, batches[0], device),
        "contenders": [_figures(one, contenders, gates, flops, tokens_a_round, options.theta) for one in contenders],
    }


def matmul_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of a square matrix product, the best of five."""
    size = 4096 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = now(device)
        torch.mm(left, right)
        best = min(best, now(device) - started)
    return 2.0 * size**3 / best / 1e9


def _model_config(options: argparse.Namespace) -> ModelConfig:
    given = {
        key: getattr(options, key)
        for key in ("num_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        if getattr(options, key) is not None
    }
    if options.model_preset is None:
        given = {"preset": None, "num_layers": 8, "hidden_size": 256, **given}
        width = given["hidden_size"]
        given = {"num_attention_heads": max(width // 64, 1), "intermediate_size": 4 * width, **given}
    else:
        given["preset"] = options.model_preset
    model = {**given, "normalization": options.normalization, "vocab_size": options.vocab_size}
    run = load_config({"model": model, "data": {"seq_length": options.seq_length}})
    return dataclasses.replace(run.model, next_sentence_prediction=True)


def _draw_all_gates(options: argparse.Namespace, blocks: int, device: torch.device) -> dict[str, list[Gates]]:
    """For each PLD contender, the gates of a round's steps."""
    schedule = Schedule(blocks, theta_limit=options.theta, temporal="constant")
    return {
        f"pld_{granularity}": [
            draw_gates(
                schedule,
                granularity=granularity,
                seed=0,
                step=step,
                micro_step=0,
                rows=options.micro_batch_size,
                device=device,
            )
            for step in range(options.steps_per_round)
        ]
        for granularity in ("batch", "sample")
    }


def _figures(
    one: Contender,
    contenders: list[Contender],
    gates: dict[str, list[Gates]],
    flops: ModelFlops,
    tokens_a_round: int,
    theta: float,
) -> dict[str, Any]:
    """A contender's rates, and its ratios to those it is compared with where they ran."""

    def time_over(name: str, dtype: str) -> float | None:
        other = next((c for c in contenders if (c.name, c.dtype) == (name, dtype)), None)
        if other is None:
            return None
        return statistics.median(a / b for a, b in zip(one.round_seconds, other.round_seconds, strict=True))

    def speed_over(name: str, dtype: str) -> float | None:
        ratio = time_over(name, dtype)
        return None if ratio is None else 1.0 / ratio

    rates = [tokens_a_round / seconds for seconds in one.round_seconds]
    figures = {
        "name": one.name,
        "dtype": one.dtype,
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_range": [min(rates), max(rates)],
        "speed_over_hugging_face_fp32": speed_over("hugging_face", "fp32"),
        "speed_over_hugging_face_same_dtype": speed_over("hugging_face", one.dtype),
    }
    if one.name in gates:
        depth = statistics.fmean(drawn.kept_blocks for drawn in gates[one.name])
        expected = Schedule(flops.config.num_layers, theta_limit=theta, temporal="constant").expected_depth(0)
        figures |= {
            "time_over_reference": time_over("reference", one.dtype),
            "predicted_of_gates_drawn": flops.ratio(depth),
            "predicted_of_expectation": flops.ratio(expected),
            "depth_drawn": depth,
            "depth_expected": expected,
        }
    return figures


def report(result: dict[str, Any]) -> str:
    """The figures as a table."""
    model, rates = result["model"], result["matmul_gflops"]
    lines = [
        f"training step of {model['num_layers']} blocks × {model['hidden_size']}, {model['normalization']}-norm,"
        f" vocabulary {model['vocab_size']:,}, micro-batch {result['micro_batch_size']} × {result['seq_length']},"
        f" {result['device']}, {result['threads']} threads, torch {result['torch']}",
        f"{result['rounds']} rounds of {result['steps_per_round']} steps in turns; matrix products: "
        + ", ".join(f"{dtype} {rate:,.0f} GFLOP/s" for dtype, rate in rates.items()),
        f"the same function: fp32 losses differ by {result['loss_difference']:.1e}",
        "",
        f"{'dtype':6}{'contender':14}{'tokens/s':>10}  {'(lowest–highest)':20}{'× HF fp32':>10}{'× HF same':>11}",
    ]
    for one in result["contenders"]:
        low, high = one["tokens_per_s_range"]
        lines.append(
            f"{one['dtype']:6}{one['name']:14}{one['tokens_per_s']:>10,.0f}  {f'({low:,.0f}–{high:,.0f})':20}"
            f"{_ratio(one['speed_over_hugging_face_fp32']):>10}{_ratio(one['speed_over_hugging_face_same_dtype']):>11}"
        )
    for dtype in result["skipped"]:
        lines.append(
            f"{dtype:6}hugging_face left out: matrix products at {rates[dtype]:,.1f} GFLOP/s"
            f" against fp32's {rates['fp32']:,.0f}; --force measures it"
        )
    dropping = [one for one in result["contenders"] if "depth_drawn" in one]
    if dropping:
        lines += [
            "",
            f"time a sample at θ = {result['theta']:g} over the reference's          predicted from FLOPs",
            f"{'dtype':6}{'contender':14}{'measured':>10}"
            f"{'gates drawn':>16}{'expectation':>14}    blocks drawn, expected",
        ]
    for one in dropping:
        lines.append(
            f"{one['dtype']:6}{one['name']:14}{_ratio(one['time_over_reference']):>10}"
            f"{one['predicted_of_gates_drawn']:>16.3f}{one['predicted_of_expectation']:>14.3f}"
            f"    {one['depth_drawn']:.2f}, {one['depth_expected']:.2f} of {model['num_layers']}"
        )
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
