"""The cost of a run, predicted before it starts: batch sizes, PLD schedule, FLOPs, saving, memory, scaling.

    python -m bert_pld.plan --deepspeed_config configs/bert_base_pld_128.json --world_size 64

Requires no data and no GPU. FLOPs are those of matrix products (`bert_pld.cost.flops`). The predicted time ratio is
the FLOP ratio, so it is valid where time is proportional to FLOPs. Step times on several ranks are those of
`bert_pld.cost.scaling`, with assumptions about the cluster that `--assume` changes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from bert_pld.cli import add_initial_weights, check_output_file, make_parser, print_once, read_initial_weights
from bert_pld.cli import run as run_command
from bert_pld.config import RunConfig, apply_override, load_config, rounded_vocabulary
from bert_pld.config.errors import explaining
from bert_pld.cost.flops import ModelFlops, parameter_count
from bert_pld.cost.memory import MemoryEstimate, estimate_memory
from bert_pld.cost.scaling import Cluster, with_assumptions
from bert_pld.cost.scaling_table import ScalingRow, scaling_lines, scaling_rows
from bert_pld.cost.work import BlockWork, Granularity, mean_work
from bert_pld.data.rows import resolve_data_dir
from bert_pld.data.shards import Manifest
from bert_pld.files import write_json
from bert_pld.pld.engine import make_schedule
from bert_pld.pld.schedule import Schedule
from bert_pld.training.engine import checked_optimizer, refuse_unsupported
from bert_pld.training.schedulers import Rates, rates_by_step

DEFAULT_VOCABULARY = 30_522
"""Entries of BERT's uncased English vocabulary."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The result of `make_plan`.

    FLOPs are those of forward and backward. A ratio is compute with PLD divided by compute with all blocks.
    """

    run: RunConfig
    """The configuration with `vocab_size` and `next_sentence_prediction` resolved."""
    world_size: int
    train_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    parameters: int
    attended_tokens: float | None
    """Mean length of the document that a token is in, if rows hold several that do not attend to each other."""
    theta_by_step: list[tuple[int, float, float]]
    """Tuples (step, θ, expected depth)."""
    rates_by_step: list[Rates]
    """Learning rate and share of masked tokens; empty unless their phases change."""
    steps_until_limit: int | None
    """First step from which θ is within 1 % of its limit; None if there is none, or θ leaves the limit."""
    keep_probabilities_at_limit: tuple[float, ...]
    depth_at_limit: float
    mean_depth: float
    flops_full: float
    """FLOPs of one sequence through all blocks."""
    flops_at_limit: float
    """FLOPs of one sequence at the expected depth of θ's limit."""
    flops_mean: float
    """FLOPs of one sequence, mean over the run."""
    ratio_at_limit: float
    """Predicted time ratio of a step at which θ is at its limit, as in the constant part of the run if it has one."""
    ratio_over_run: float
    """Predicted time ratio over the whole run."""
    total_flops: float
    block_saving_at_limit: float
    """Share of the blocks' compute that PLD saves at the limit: 1 − depth / L."""
    block_saving_over_run: float
    memory: MemoryEstimate
    """Memory of one rank at full depth."""
    cluster: Cluster
    """The assumptions of `scaling`."""
    scaling: list[ScalingRow]
    """Predicted steps at this batch size for several numbers of ranks up to `world_size`; empty for one rank."""

    def as_json(self) -> dict[str, Any]:
        """Return the plan in JSON's types, without the configuration's DeepSpeed keys."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "run"}
        names = ("step", "theta", "expected_depth")
        values["theta_by_step"] = [dict(zip(names, each, strict=True)) for each in self.theta_by_step]
        values["rates_by_step"] = [dataclasses.asdict(each) for each in self.rates_by_step]
        values["keep_probabilities_at_limit"] = list(self.keep_probabilities_at_limit)
        values["memory"] = self.memory.as_json()
        values["cluster"] = dataclasses.asdict(self.cluster)
        values["scaling"] = [row.as_json() for row in self.scaling]
        values["model"] = dataclasses.asdict(self.run.model)
        values["progressive_layer_drop"] = dataclasses.asdict(self.run.progressive_layer_drop)
        return values


def make_plan(
    run: RunConfig,
    *,
    world_size: int = 1,
    vocabulary_size: int = DEFAULT_VOCABULARY,
    cluster: Cluster | None = None,
    data: Manifest | None = None,
) -> Plan:
    """Compute a run's plan on `world_size` data-parallel ranks.

    `vocabulary_size` counts if `model.vocab_size` is not given, and `cluster` is that of the predicted step times. The
    shards of `data` give the vocabulary, the objective and the documents in their rows instead. A ValueError names
    inconsistent batch sizes, or an argument that is too small.
    """
    if world_size < 1:
        raise ValueError(f"--world_size {world_size}: must be at least 1")
    if vocabulary_size < 6:
        raise ValueError(f"--vocab_size {vocabulary_size}: must be at least 6")
    run = _resolve_model(run, data.attributes.vocabulary_size if data else vocabulary_size, data)
    train_batch, micro_batch, accumulation = run.batch_sizes(world_size)
    schedule = make_schedule(run)
    limit = schedule.limit
    steps, until = run.training.max_steps, schedule.steps_until_theta_within(0.01)
    granularity, length = run.progressive_layer_drop.granularity, run.data.seq_length
    at_limit, over_run = (mean_work(*each, granularity, length) for each in ((limit, 1), (schedule, steps)))
    cluster = cluster or Cluster()
    kept = limit.keep_probabilities(0)
    attended_tokens = None if data is None else data.attended_tokens
    flops = ModelFlops(run.model, length, run.data.mean_mask_probability(steps), attended_tokens)
    return Plan(
        run=run,
        world_size=world_size,
        train_batch_size=train_batch,
        micro_batch_size=micro_batch,
        accumulation_steps=accumulation,
        parameters=parameter_count(run.model),
        attended_tokens=attended_tokens,
        theta_by_step=_theta_by_step(schedule, steps, granularity, length),
        rates_by_step=rates_by_step(run),
        steps_until_limit=None if until is None or until >= steps else until,
        keep_probabilities_at_limit=kept,
        depth_at_limit=at_limit.depth,
        mean_depth=over_run.depth,
        flops_full=flops.per_sequence(),
        flops_at_limit=flops.per_sequence(at_limit),
        flops_mean=flops.per_sequence(over_run),
        ratio_at_limit=flops.ratio(at_limit),
        ratio_over_run=flops.ratio(over_run),
        total_flops=flops.per_sequence(over_run) * train_batch * steps,
        block_saving_at_limit=1.0 - at_limit.depth / run.model.num_layers,
        block_saving_over_run=1.0 - over_run.depth / run.model.num_layers,
        memory=estimate_memory(run, micro_batch, world_size),
        cluster=cluster,
        scaling=scaling_rows(run, cluster, world_size, train_batch, micro_batch, kept, attended_tokens),
    )


def _resolve_model(run: RunConfig, vocabulary_size: int, data: Manifest | None) -> RunConfig:
    changes: dict[str, Any] = {}
    if run.model.vocab_size is None:
        changes["vocab_size"] = rounded_vocabulary(vocabulary_size)
    if run.model.next_sentence_prediction == "auto":
        changes["next_sentence_prediction"] = data is None or data.attributes.objective == "mlm+nsp"
    return run.with_model(**changes)


def _theta_by_step(
    schedule: Schedule, num_steps: int, granularity: Granularity, seq_length: int
) -> list[tuple[int, float, float]]:
    """Return (step, θ, expected depth) at the start, the middle and the end of the run and of each phase, and where an
    exponential θ has covered 1/4, 1/2, 3/4, 9/10 and 99/100 of the distance to its limit.
    """
    first = schedule.warmup_steps
    steps = {0, num_steps // 2, num_steps - 1, first}
    if schedule.temporal == "exponential" and schedule.gamma > 0.0:
        steps |= {first + math.ceil(-math.log(share) / schedule.gamma) for share in (0.75, 0.5, 0.25, 0.1, 0.01)}
    if schedule.temporal in ("linear", "growing"):
        steps |= {first + schedule.ramp_steps // 2, first + schedule.ramp_steps}
    if schedule.finish_step is not None:
        steps.add(schedule.finish_step)
    depths = {step: BlockWork.of(schedule.keep_probabilities(step), granularity, seq_length).depth for step in steps}
    return [(step, schedule.theta(step), depths[step]) for step in sorted(steps) if step < num_steps]


def format_plan(plan: Plan) -> str:
    """Return the plan as text."""
    run, model, pld = plan.run, plan.run.model, plan.run.progressive_layer_drop
    at_limit = "at the limit" if plan.steps_until_limit is None else "over the constant part"
    head = "pooler and NSP head" if model.next_sentence_prediction else "no NSP head"
    lines = [
        "batch",
        f"  {plan.train_batch_size:,} sequences = {plan.micro_batch_size} micro-batch × {plan.accumulation_steps}"
        f" accumulation × {plan.world_size} rank(s); {plan.train_batch_size * run.data.seq_length:,} tokens per step",
        f"  {run.training.max_steps:,} steps = {plan.train_batch_size * run.training.max_steps:,} sequences of"
        f" {run.data.seq_length} tokens",
        *_document_lines(plan),
        "model",
        f"  {model.num_layers} blocks × {model.hidden_size}, {model.num_attention_heads} heads, FFN"
        f" {model.intermediate_size}, {model.normalization}-normalization, vocabulary {model.vocab_size:,}, {head}",
        *_attention_lines(plan),
        f"  {plan.parameters / 1e6:.2f} M parameters" + (", matrix products of the blocks in FP8" if model.fp8 else ""),
        "progressive layer dropping",
        *(_dropping_lines(plan) if pld.enabled else ["  disabled: every block runs"]),
        *_rate_lines(plan),
        "compute (matrix products, forward and backward)",
        f"  per sequence, all blocks    {_flops(plan.flops_full)}",
        f"  per sequence, at the limit  {_flops(plan.flops_at_limit)}   predicted time ratio"
        f" {plan.ratio_at_limit:.3f} {at_limit}",
        f"  per sequence, mean of run   {_flops(plan.flops_mean)}   predicted time ratio"
        f" {plan.ratio_over_run:.3f} over the whole run",
        f"  whole run                   {_flops(plan.total_flops)}",
        *_memory_lines(plan),
        *scaling_lines(plan.run, plan.scaling),
    ]
    return "\n".join(lines)


def _attention_lines(plan: Plan) -> list[str]:
    """Return a line on local attention, if the model has it."""
    model, length = plan.run.model, plan.run.data.seq_length
    if model.attention_reach is None:
        return []
    local, reach = sum(map(model.is_local, range(model.num_layers))), model.attention_reach
    covers = f", which is all of {length} tokens" if reach >= length - 1 else ""
    return [f"  rotary positions; {local} of {model.num_layers} blocks attend to tokens at most {reach} away{covers}"]


def _document_lines(plan: Plan) -> list[str]:
    if plan.attended_tokens is None:
        return []
    return [f"  attention within documents; the document of a token has {plan.attended_tokens:,.0f} tokens on average"]


def _dropping_lines(plan: Plan) -> list[str]:
    pld, blocks = plan.run.progressive_layer_drop, plan.run.model.num_layers
    without = "only where it starts" if pld.temporal == "growing" else "never"
    within = without if plan.steps_until_limit is None else f"from step {plan.steps_until_limit:,}"
    kept = plan.keep_probabilities_at_limit
    keeps = [" ".join(f"{p:.3f}" for p in kept[start : start + 12]) for start in range(0, blocks, 12)]
    shares = "shares of the tokens" if pld.granularity == "token" else "keep probabilities"
    return [
        f"  {pld.describe()}",
        f"  within 1 % of the limit: {within}",
        f"  {'step':>9}   {'θ':>6}   expected depth of {blocks}",
        *(f"  {step:>9,}   {theta:6.4f}   {depth:6.2f}" for step, theta, depth in plan.theta_by_step),
        f"  {shares} at the limit, block 1 first:",
        *(f"    {line}" for line in keeps),
        f"  expected depth {plan.depth_at_limit:.2f} at the limit ({plan.block_saving_at_limit:.1%} of the blocks'"
        f" compute saved), {plan.mean_depth:.2f} over the run ({plan.block_saving_over_run:.1%})",
    ]


def _rate_lines(plan: Plan) -> list[str]:
    if not plan.rates_by_step:
        return []
    rows = [
        f"  {one.step:>9,}   {one.phase or '':<6}   {'' if one.lr is None else format(one.lr, '.3g'):>13}   "
        f"{one.mask_probability:.1%}"
        for one in plan.rates_by_step
    ]
    head = f"  {'step':>9}   {'phase':<6}   {'learning rate':>13}   masked"
    return ["learning rate and masks", head, *rows]


def _memory_lines(plan: Plan) -> list[str]:
    run, memory = plan.run, plan.memory
    plain, recomputed = ("", " (in use)") if run.model.activation_checkpointing else (" (in use)", "")
    depth = plan.depth_at_limit
    at_limit = _gib(memory.activation_bytes_at_depth(depth))
    shallow = f"  activations at the limit, {depth:.2f} blocks executed: {at_limit}; dense steps execute all blocks"
    return [
        f"memory per rank, estimated: ZeRO-{run.zero_stage}, {run.precision}, {plan.world_size} rank(s), micro-batch"
        f" {plan.micro_batch_size} × {run.data.seq_length} tokens",
        f"  parameters {_gib(memory.parameters_bytes)}, gradients {_gib(memory.gradients_bytes)},"
        f" optimizer {_gib(memory.optimizer_bytes)}" + (" (off the device)" if memory.optimizer_offloaded else ""),
        f"  activations of all {run.model.num_layers} blocks {_gib(memory.activation_bytes)}{plain};"
        f" with activation checkpointing {_gib(memory.activation_bytes_checkpointed)}{recomputed}",
        *([shallow] if depth < run.model.num_layers else []),
        f"  total {_gib(memory.total_bytes)}, without the allocator's reserve and communication buffers",
    ]


def _flops(count: float) -> str:
    prefix = min(max(int(math.log10(count)) // 3, 3), 6)
    return f"{count / 1000**prefix:10.2f} {'GTPE'[prefix - 3]}FLOP"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"


def main(options: argparse.Namespace) -> None:
    """Print the plan, and write it to `--json`."""
    check_output_file("--json", options.json, "nothing was planned")
    initial = read_initial_weights(options)
    follows = initial.follows if initial else None
    run = load_config(options.deepspeed_config, options.set, follows=follows, phase=options.phase)
    print_once("warning", run.warnings)
    print_once("note", run.notices)
    # What pretraining on GPUs would refuse is refused here, where it costs nothing yet.
    with explaining(run.source):
        refuse_unsupported(run)
        checked_optimizer(run, "cuda")
    assumptions: dict[str, Any] = {}
    for assumption in options.assume:
        apply_override(assumptions, assumption, "--assume")
    cluster = with_assumptions(Cluster(), assumptions)
    data = None
    if options.data_dir is not None:
        data = Manifest.read(resolve_data_dir(options.data_dir, run.data.seq_length))
    sizes = {"world_size": options.world_size, "vocabulary_size": options.vocab_size}
    plan = make_plan(run, **sizes, cluster=cluster, data=data)
    print(format_plan(plan))
    if options.json is not None:
        write_json(options.json, plan.as_json())


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser of `python -m bert_pld.plan`."""
    parser = make_parser(
        "bert_pld.plan",
        "Predict a run's batch sizes, θ and depth, FLOPs, saving, memory and scaling. Requires no data and no GPU.",
        "python -m bert_pld.plan --deepspeed_config configs/bert_base_pld_128.json --world_size 64",
    )
    parser.add_argument("--deepspeed_config", type=Path, required=True, help="the run's JSON")
    parser.add_argument("--phase", metavar="NAME", help="a name in the JSON's `phases`")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override any key")
    add_initial_weights(parser)
    parser.add_argument("--world_size", type=int, default=1, help="number of data-parallel ranks (default 1)")
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=DEFAULT_VOCABULARY,
        help=f"entries of the data's vocabulary, rounded up to a multiple of 8 (default {DEFAULT_VOCABULARY})",
    )
    shards = "shards with a manifest: their vocabulary, objective and documents count (default: none are needed)"
    parser.add_argument("--data_dir", type=Path, help=shards)
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change an assumption about the cluster, such as ranks_per_node=4 (see docs/scaling.md)",
    )
    parser.add_argument("--json", type=Path, help="also write the plan to this file")
    return parser


if __name__ == "__main__":
    run_command(main, build_parser())
