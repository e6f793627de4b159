"""Training throughput: Hugging Face's classes, DeepSpeed's layer, our backends, and ours with PLD at its limit.

All contenders run under one DeepSpeed configuration, see the same random tokens and drop out alike; those of one
normalization start from the same weights. They take turns, A B C A B C …, so that whatever else the machine does falls
on all of them; a ratio is the median over rounds of the ratio within a round. The PLD contenders run θ constant, on the
same gate draws every round, drawn beforehand.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from typing import Any

import torch

from benchmarks.batches import Batch, random_batch
from benchmarks.deepspeed_engine import DTYPES, conditions, deepspeed_json, single_rank
from benchmarks.host_memory import HostMemory, in_own_process
from benchmarks.options import chosen
from benchmarks.timing import matmul_gflops, take_workspaces
from benchmarks.train.contenders import (
    CONTENDERS,
    HUGGING_FACE,
    PLD,
    Contender,
    Setup,
    import_hugging_face,
    loss_difference,
    one_line,
    prepare_contender,
    recompiling,
)
from benchmarks.train.figures import RoundFlops, figures_of, report
from bert_pld.config import ModelConfig, load_config
from bert_pld.kernels import BACKENDS
from bert_pld.pld.gates import Gates, draw_gates
from bert_pld.pld.schedule import Schedule

__all__ = ["EXAMPLE", "add_arguments", "measure", "report"]
EXAMPLE = "python -m benchmarks train --model_preset small --dtypes fp32 --json train.json"
_ALIAS = "hugging_face"
"""The class of theirs with our normalization."""
_DEFAULT_ON_CPU = ("hf_bert", "hf_megatron", "reference", "pld_batch", "pld_sample")
_BATCHES = 4
_SLOW_MATMUL = 0.1
"""Where a dtype's matrix products run at less than this share of fp32's, Hugging Face's classes, which do not widen
them, are left out unless forced: a step takes minutes."""


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
    parser.add_argument("--padding", type=float, default=0.0, help="share of padding, below 0.5 (default 0)")
    parser.add_argument(
        "--dtypes", help=f"of {', '.join(DTYPES)} (the whole model); default bf16 on a GPU, fp32,bf16 on a CPU"
    )
    parser.add_argument(
        "--contenders",
        help=f"of {', '.join(CONTENDERS)}; or {_ALIAS}: their class with our normalization"
        f" (default: all on a GPU; on a CPU {','.join(_DEFAULT_ON_CPU)})",
    )
    parser.add_argument("--zero_stage", type=int, choices=(0, 1, 2), default=1, help="of all contenders (default 1)")
    parser.add_argument(
        "--pld_kernels", choices=(*BACKENDS, "auto"), default="auto", help="backend of the PLD contenders"
    )
    parser.add_argument("--theta", type=float, default=0.5, help="θ of the PLD contenders (default 0.5)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--steps_per_round", type=int, default=6, help="steps, and gate draws, a turn (default 6)")
    parser.add_argument(
        "--warmup_steps", type=int, default=2, help="steps of each contender before; a whole turn where it compiles"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--host_memory", action="store_true", help="on a CPU: memory too, of each contender in a process of its own"
    )
    parser.add_argument("--force", action="store_true", help="measure Hugging Face even where products crawl")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders in all dtypes.

    Returns:
        JSON-ready: the set-up, the DeepSpeed configuration and `matmul_gflops` a dtype, one entry of `contenders` for
        each that ran and one of `skipped`, with the reason, for each that did not; `failed` names those of them where
        it is a fault, not a limit.

    Raises:
        ValueError: an unknown dtype or contender, sizes that do not fit, or nothing that can run here.
    """
    on_gpu = options.device == "cuda"
    dtypes = chosen("--dtypes", options.dtypes or ("bf16" if on_gpu else "fp32,bf16"), tuple(DTYPES))
    names = chosen(
        "--contenders",
        options.contenders or ",".join(CONTENDERS if on_gpu else _DEFAULT_ON_CPU),
        (_ALIAS, *CONTENDERS),
    )
    for key in ("rounds", "steps_per_round", "micro_batch_size"):
        if getattr(options, key) < 1:
            raise ValueError(f"--{key} {getattr(options, key)}: must be at least 1")
    if not 0 <= options.padding < 0.5:
        raise ValueError(f"--padding {options.padding:g}: must be from 0 to below 0.5")
    if on_gpu and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU")
    if "fp16" in dtypes and not on_gpu:
        raise ValueError("--dtypes fp16: a CPU cannot train in fp16; use fp32 or bf16, or a GPU")
    config = _model_config(options)
    matching = next(name for name, normalization in HUGGING_FACE.items() if normalization == config.normalization)
    names = list(dict.fromkeys(matching if name == _ALIAS else name for name in names))
    with single_rank(options.device) as device, recompiling():
        return _measure(options, config, names, dtypes, device)


def _measure(
    options: argparse.Namespace, config: ModelConfig, names: list[str], dtypes: list[str], device: torch.device
) -> dict[str, Any]:
    steps = options.steps_per_round
    take_workspaces(device)
    rates = {dtype: matmul_gflops(DTYPES[dtype], device) for dtype in dict.fromkeys(("fp32", *dtypes))}
    setup, batches = _set_up(options, config, dtypes, device)
    rows, seq, gates, deepspeed_configs = setup.rows, setup.seq, setup.gates, setup.deepspeed
    difference = loss_difference(config, batches[0], device)

    contenders, skipped = _prepare(names, dtypes, setup, batches, rates, options)
    for _ in range(options.rounds):
        for contender in list(contenders):
            try:
                contender.measure_round(batches, steps)
            except Exception as error:
                skipped.append(_fault(contender.name, contender.dtype, error))
                contenders.remove(contender)
    if not contenders:
        raise ValueError(f"--contenders: all failed; {skipped[-1]['name']}: {skipped[-1]['reason']}")
    if options.host_memory and device.type == "cpu":
        for contender in contenders:
            figures = in_own_process(_memory_of, contender.name, contender.dtype, config, options)
            contender.resident_bytes, contender.rise_bytes = figures["resident"], [figures["rise"]]

    of_steps = [batches[step % len(batches)] for step in range(steps)]
    flops = RoundFlops(config, of_steps)
    return {
        **conditions(device),
        "model": dataclasses.asdict(config),
        "micro_batch_size": rows,
        "seq_length": seq,
        "padding": 1 - sum(batch.tokens for batch in of_steps) / (steps * rows * seq),
        "rounds": options.rounds,
        "steps_per_round": steps,
        "theta": options.theta,
        "zero_stage": options.zero_stage,
        "deepspeed": deepspeed_configs,
        "matmul_gflops": rates,
        "loss_difference": difference,
        "contenders": [
            figures_of(
                one,
                contenders,
                of_steps,
                gates.get(one.name),
                options.theta,
                flops,
                max(rates[one.dtype], rates["fp32"]),
            )
            for one in contenders
        ],
        "skipped": skipped,
        "failed": [f"{one['name']} in {one['dtype']}: {one['reason']}" for one in skipped if one["failed"]],
    }


def _set_up(
    options: argparse.Namespace, config: ModelConfig, dtypes: list[str], device: torch.device
) -> tuple[Setup, list[Batch]]:
    """What all contenders have in common, and the batches of a round."""
    rows, seq, steps = options.micro_batch_size, options.seq_length, options.steps_per_round
    batches = [random_batch(config, rows, seq, device, seed, options.padding) for seed in range(min(_BATCHES, steps))]
    gates = _draw_all_gates(options, config.num_layers, device)
    deepspeed_configs = {dtype: deepspeed_json(dtype, options.zero_stage, rows) for dtype in dtypes}
    return Setup(config, rows, seq, device, deepspeed_configs, gates, options.pld_kernels), batches


def _memory_of(name: str, dtype: str, config: ModelConfig, options: argparse.Namespace) -> dict[str, int]:
    """Bytes that a contender holds after a round, and how far it rose over that; to be called in a fresh process."""
    with single_rank("cpu") as device, recompiling():
        setup, batches = _set_up(options, config, [dtype], device)
        import_hugging_face()
        memory = HostMemory()
        contender = prepare_contender(name, dtype, setup, batches, options.warmup_steps, options.steps_per_round)
        contender.measure_round(batches, options.steps_per_round)
        return memory.figures()


def _prepare(
    names: list[str],
    dtypes: list[str],
    setup: Setup,
    batches: list[Batch],
    rates: dict[str, float],
    options: argparse.Namespace,
) -> tuple[list[Contender], list[dict[str, Any]]]:
    """All contenders that run here, and of the others why not; `failed` where it is a fault, not a limit."""
    contenders, skipped = [], []
    for dtype in dtypes:
        for name in names:
            entry = {"name": name, "dtype": dtype, "failed": False}
            if name.startswith("hf_") and rates[dtype] < _SLOW_MATMUL * rates["fp32"] and not options.force:
                reason = (
                    f"matrix products at {rates[dtype]:,.1f} GFLOP/s against fp32's {rates['fp32']:,.0f};"
                    " --force measures it"
                )
                skipped.append({**entry, "reason": reason})
                continue
            try:
                contenders.append(
                    prepare_contender(name, dtype, setup, batches, options.warmup_steps, options.steps_per_round)
                )
            except ValueError as error:
                skipped.append({**entry, "reason": one_line(error)})
            except Exception as error:
                skipped.append(_fault(name, dtype, error))
    if not contenders:
        raise ValueError(f"--contenders: none can run here; {skipped[0]['name']}: {skipped[0]['reason']}")
    return contenders, skipped


def _fault(name: str, dtype: str, error: Exception) -> dict[str, Any]:
    logging.getLogger(__name__).exception("%s in %s", name, dtype)
    return {"name": name, "dtype": dtype, "failed": True, "reason": one_line(error)}


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
        name: [
            draw_gates(
                schedule,
                granularity="batch" if name == "pld_batch" else "sample",
                seed=0,
                step=step,
                rows=options.micro_batch_size,
                device=device,
            )
            for step in range(options.steps_per_round)
        ]
        for name in PLD
    }
