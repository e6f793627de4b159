"""Training throughput: Hugging Face's classes, DeepSpeed's layer, our backends, and ours with PLD at its limit.

All contenders use one DeepSpeed configuration, the same random tokens and the same dropout rates; those of one
normalization start from the same weights. They take turns, A B C A B C …, so that other work on the machine affects all
of them; a ratio is the median over rounds of the ratio within a round. The PLD contenders keep θ constant and see the
same gates in every round, drawn before the measurement. `--json` is rewritten after each round.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from typing import Any

import torch

from benchmarks.batches import Batch, random_batch
from benchmarks.engines import deepspeed_json, model_section, recompiling, single_rank
from benchmarks.host_memory import HostMemory, in_own_process
from benchmarks.hugging_face import HUGGING_FACE, MODERNBERT, import_hugging_face
from benchmarks.machine import describe_libraries
from benchmarks.options import DTYPES, check_fraction, chosen
from benchmarks.results import one_line, save
from benchmarks.timing import allocate_workspaces, matmul_gflops
from benchmarks.train.contenders import (
    CONTENDERS,
    PEERS,
    PLD,
    Setup,
    ThroughputContender,
    loss_difference,
    prepare_contender,
    schedule_of,
)
from benchmarks.train.figures import Round, figures_of
from benchmarks.train.profile import profile_step
from benchmarks.train.report import report
from bert_pld.cli import require_positive
from bert_pld.config import ModelConfig, load_config
from bert_pld.kernels import BACKENDS
from bert_pld.pld.gates import Gates, draw_gates

__all__ = ["EXAMPLE", "add_arguments", "measure", "report"]
EXAMPLE = "python -m benchmarks train --model_preset small --dtypes fp32 --json train.json"
_ALIAS = "hugging_face"
"""Stands for Hugging Face's class with our architecture and normalization."""
_DROPPING_ON_CPU = tuple(name for name in PLD if not name.endswith(("_graphs", "_same")))
_DEFAULT_ON_CPU = {
    "bert": ("hf_bert", "hf_megatron", "reference", *_DROPPING_ON_CPU),
    "modernbert": (MODERNBERT, "reference", *_DROPPING_ON_CPU),
}
_MOST_BATCHES = 4
_SLOW_MATMUL = 0.1
"""Hugging Face's classes are skipped, unless forced, in a dtype whose matrix products run at less than this share of
fp32's rate: unlike ours they do not compute in fp32 then, and a step takes minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--model_preset", help="tiny, mini, small, medium, base, large (default: 8 blocks × 256)")
    add("--num_layers", type=int, help="number of blocks")
    add("--hidden_size", type=int, help="width")
    add("--num_attention_heads", type=int, help="number of heads (default: width / 64)")
    add("--intermediate_size", type=int, help="width of the feed-forward layer (default: 4 × width, or 1.5 ×)")
    add("--architecture", choices=tuple(_DEFAULT_ON_CPU), default="bert")
    add("--normalization", choices=("pre", "post"), default="pre")
    add("--vocab_size", type=int, default=8192)
    add("--micro_batch_size", type=int, default=16, help="sequences (default 16)")
    add("--seq_length", type=int, default=128, help="tokens a sequence (default 128)")
    add("--padding", type=float, default=0.0, help="share of padding, below 0.5 (default 0)")
    add("--dtypes", help=f"list of {', '.join(DTYPES)} (the whole model); default bf16 on a GPU, fp32,bf16 on a CPU")
    alias = f"{_ALIAS}: Hugging Face's class with our architecture and normalization"
    default = f"all on a GPU; on a CPU {' or '.join(map(','.join, _DEFAULT_ON_CPU.values()))}"
    add("--contenders", help=f"list of {', '.join(CONTENDERS)}; or {alias} (default: {default})")
    add("--zero_stage", type=int, choices=(0, 1, 2), default=1, help="ZeRO stage (default 1)")
    add("--optimizer", choices=("AdamW", "Muon"), default="AdamW", help="of our contenders (default AdamW for all)")
    add("--pld_kernels", choices=(*BACKENDS, "auto"), default="auto", help="backend of the PLD contenders")
    add("--theta", type=float, default=0.5, help="θ of the PLD contenders (default 0.5)")
    add("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    add("--steps_per_round", type=int, default=6, help="steps a turn, each with its own gates (default 6)")
    add("--warmup_steps", type=int, default=2, help="steps before the first turn; at least one turn's if it compiles")
    add("--profile", action="store_true", help="after the rounds: where the device's time of a step goes")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--host_memory", action="store_true", help="on a CPU: also measure memory, each contender in its own process")
    add("--processor_time", action="store_true", help="on a CPU: count processor seconds, where other work runs too")
    add("--force", action="store_true", help="measure Hugging Face even where a dtype is very slow")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders in all dtypes; `failed` names those of the `skipped` that met an error, not a limit."""
    on_gpu = options.device == "cuda"
    dtypes = chosen("--dtypes", options.dtypes or ("bf16" if on_gpu else "fp32,bf16"), tuple(DTYPES))
    default = ",".join(CONTENDERS if on_gpu else _DEFAULT_ON_CPU[options.architecture])
    names = chosen("--contenders", options.contenders or default, (_ALIAS, *CONTENDERS))
    require_positive(options, "rounds", "steps_per_round", "micro_batch_size")
    check_fraction("--theta", options.theta)
    if not 0 <= options.padding < 0.5:
        raise ValueError(f"--padding {options.padding:g}: must be from 0 to below 0.5")
    if on_gpu and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU")
    if options.processor_time and on_gpu:
        raise ValueError("--processor_time: counts a CPU's work; leave it out, or add --device cpu")
    if "fp16" in dtypes and not on_gpu:
        raise ValueError("--dtypes fp16: a CPU cannot train in fp16; use fp32 or bf16, or a GPU")
    config = model_config(options)
    of_bert = next(name for name, normalization in HUGGING_FACE.items() if normalization == config.normalization)
    matching = of_bert if config.architecture == "bert" else MODERNBERT
    names = list(dict.fromkeys(matching if name == _ALIAS else name for name in names))
    with single_rank(options.device) as device, recompiling():
        allocate_workspaces(device)
        measurement = _Measurement(options, make_setup(options, config, dtypes, device))
        measurement.prepare(names, dtypes)
        for _ in range(options.rounds):
            measurement.measure_round()
            save(measurement.result(), options.json)
        if options.profile:
            measurement.profile()
        if options.host_memory and device.type == "cpu":
            measurement.measure_host_memory()
        return measurement.result()


class _Measurement:
    """The contenders that run, and those that were skipped."""

    def __init__(self, options: argparse.Namespace, setup: Setup) -> None:
        self.options, self.setup = options, setup
        self.now = time.process_time if options.processor_time else time.perf_counter
        self.contenders: list[ThroughputContender] = []
        self.skipped: list[dict[str, Any]] = []
        self.round = Round(setup.config, setup.batches, setup.gates, options.theta)
        dtypes = dict.fromkeys(("fp32", *setup.deepspeed))
        self.gflops = {dtype: matmul_gflops(DTYPES[dtype], setup.device, self.now) for dtype in dtypes}
        self.difference = loss_difference(setup.config, setup.batches[0], setup.device)

    def prepare(self, names: list[str], dtypes: list[str]) -> None:
        """Make and warm up all contenders that can run here; raise ValueError if none can."""
        for dtype in dtypes:
            for name in names:
                rate, fp32_rate = self.gflops[dtype], self.gflops["fp32"]
                if name in PEERS and rate < _SLOW_MATMUL * fp32_rate and not self.options.force:
                    rates = f"matrix products at {rate:,.1f} GFLOP/s against fp32's {fp32_rate:,.0f}"
                    self._skip(name, dtype, f"{rates}; --force measures it")
                    continue
                try:
                    self.contenders.append(prepare_contender(name, dtype, self.setup))
                except ValueError as error:
                    self._skip(name, dtype, one_line(error))
                except Exception as error:  # The others are still measured, and the command exits with 1.
                    self._fail(name, dtype, error)
        if not self.contenders:
            first = self.skipped[0]
            raise ValueError(f"--contenders: none can run here; {first['name']}: {first['reason']}")

    def measure_round(self) -> None:
        """Give each contender a turn; raise ValueError if all have failed."""
        for contender in list(self.contenders):
            try:
                contender.measure_round(self.setup.batches, self.now)
            except Exception as error:  # The others keep their figures, and the command exits with 1.
                self._fail(contender.name, contender.dtype, error)
                self.contenders.remove(contender)
        if not self.contenders:
            last = self.skipped[-1]
            raise ValueError(f"--contenders: all failed; {last['name']}: {last['reason']}")

    def profile(self) -> None:
        """Find where the time of a step goes; a contender that cannot be profiled keeps its figures."""
        for contender in self.contenders:
            try:
                contender.profile = profile_step(contender, self.setup.batches)
            except Exception:
                logging.getLogger(__name__).exception("%s in %s: profile", contender.name, contender.dtype)

    def measure_host_memory(self) -> None:
        """Measure the memory of each contender in a process of its own."""
        for contender in self.contenders:
            figures = in_own_process(_memory_of, contender.name, contender.dtype, self.setup.config, self.options)
            contender.resident_bytes, contender.rise_bytes = figures["resident"], [figures["rise"]]

    def result(self) -> dict[str, Any]:
        """The figures of the rounds so far."""
        setup, options = self.setup, self.options
        positions = len(setup.batches) * setup.micro_batch_size * setup.seq_length
        return {
            **describe_libraries(setup.device),
            "model": dataclasses.asdict(setup.config),
            "micro_batch_size": setup.micro_batch_size,
            "seq_length": setup.seq_length,
            "padding": 1 - self.round.tokens / positions,
            "clock": "processor" if options.processor_time else "wall",
            "rounds": len(self.contenders[0].step_seconds),
            "steps_per_round": len(setup.batches),
            "theta": options.theta,
            "zero_stage": options.zero_stage,
            "optimizer": options.optimizer,
            "deepspeed": setup.deepspeed,
            "matmul_gflops": self.gflops,
            "loss_difference": self.difference,
            "contenders": [
                figures_of(one, self.contenders, self.round, max(self.gflops[one.dtype], self.gflops["fp32"]))
                for one in self.contenders
            ],
            "skipped": self.skipped,
            "failed": [f"{one['name']} in {one['dtype']}: {one['reason']}" for one in self.skipped if one["failed"]],
        }

    def _skip(self, name: str, dtype: str, reason: str, failed: bool = False) -> None:
        self.skipped.append({"name": name, "dtype": dtype, "failed": failed, "reason": reason})

    def _fail(self, name: str, dtype: str, error: Exception) -> None:
        logging.getLogger(__name__).exception("%s in %s", name, dtype)
        self._skip(name, dtype, one_line(error), failed=True)


def make_setup(options: argparse.Namespace, config: ModelConfig, dtypes: list[str], device: torch.device) -> Setup:
    """Make the settings that all contenders share; a few batches repeat over the steps of a round."""
    rows, seq, steps = options.micro_batch_size, options.seq_length, options.steps_per_round
    made = [random_batch(config, rows, seq, device, seed, options.padding) for seed in range(min(_MOST_BATCHES, steps))]
    batches = [made[step % len(made)] for step in range(steps)]
    return Setup(
        config=config,
        micro_batch_size=rows,
        seq_length=seq,
        device=device,
        batches=batches,
        gates=_draw_all_gates(options, config.num_layers, batches, device),
        deepspeed={dtype: deepspeed_json(dtype, options.zero_stage, rows) for dtype in dtypes},
        pld_kernels=options.pld_kernels,
        warmup_steps=options.warmup_steps,
        optimizer=options.optimizer,
    )


def _memory_of(name: str, dtype: str, config: ModelConfig, options: argparse.Namespace) -> dict[str, int]:
    """Bytes that a contender holds after a round, and the rise above that; to be called in a fresh process."""
    with single_rank("cpu") as device, recompiling():
        setup = make_setup(options, config, [dtype], device)
        import_hugging_face()
        memory = HostMemory()
        prepare_contender(name, dtype, setup).measure_round(setup.batches)
        return memory.figures()


def model_config(options: argparse.Namespace) -> ModelConfig:
    """The model that the options describe."""
    sizes = ("num_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    given = {key: getattr(options, key) for key in sizes if getattr(options, key) is not None}
    is_bert = options.architecture == "bert"
    if options.model_preset is None:
        width = given.pop("hidden_size", 256)
        inner = 4 * width if is_bert else 3 * width // 2
        given = model_section(width, **{"num_layers": 8, "intermediate_size": inner, **given})
    else:
        given["preset"] = options.model_preset
    model = {**given, "normalization": options.normalization, "vocab_size": options.vocab_size}
    model["architecture"] = options.architecture
    run = load_config({"model": model, "data": {"seq_length": options.seq_length}})
    return dataclasses.replace(run.model, next_sentence_prediction=is_bert)


def _draw_all_gates(
    options: argparse.Namespace, blocks: int, batches: list[Batch], device: torch.device
) -> dict[str, list[Gates]]:
    """Gates of each step of a round, for each PLD contender."""
    return {
        name: [
            draw_gates(
                schedule_of(name, blocks, options.theta),
                granularity=granularity,
                seed=0,
                step=step,
                rows=options.micro_batch_size,
                lengths=batch.sequence_lengths,
                padded_length=options.seq_length,
                same_tokens=name == "pld_token_same",
                device=device,
            )
            for step, batch in enumerate(batches)
        ]
        for name, granularity in PLD.items()
    }
