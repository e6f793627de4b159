"""Predicted time of a training step on many ranks: compute, exposed communication, update. Not a measurement.

    step = max(FLOPs / achieved FLOP/s, launches) · micro-batches + exposed communication + copies + update + fixed

Communication is that of `bert_pld.cost.communication`, over two levels of links: within nodes and between nodes.
Without `overlap_comm` DeepSpeed's stages 0 to 2 communicate after backward, so all communication is exposed. With it,
all buckets except the last one can overlap with the backward that fills them. Stage 3 can overlap its gathers, except
the first one, with forward, and its reductions with backward. `python -m benchmarks communication` compares this model
with measurements on two ranks; docs/scaling.md has the ratios and the predictions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bert_pld.config import RunConfig
from bert_pld.cost.communication import BUCKET_ELEMENTS, Collective, payload_bytes, step_collectives
from bert_pld.cost.flops import ModelFlops, parameter_count
from bert_pld.cost.memory import MemoryEstimate
from bert_pld.cost.work import BlockWork

# Bytes that the update reads and writes for each parameter of a rank's partition: AdamW reads weight, two moments and
# gradient in fp32 and writes three of them; then a cast in each direction, and one pass each for norm and clipping.
UPDATE_BYTES = 44.0
# Number of times DeepSpeed (0.19.8) reads or writes the gradients around a reduction: into the bucket or flat tensor,
# scaling, and out of it; at stage 3 also the assembly of the gathered parameters.
_COPY_PASSES = {0: 6, 1: 6, 2: 6, 3: 8}
_BACKWARD_SHARE = 2.0 / 3.0


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Speeds of the cluster. The defaults are assumptions for H100-class nodes, not measurements."""

    flops_per_s: float = 0.55 * 990e12
    """Achieved speed of the model's matrix products: 55 % of the bf16 peak in NVIDIA's data sheet."""
    activation_bytes_per_s: float = math.inf
    """Speed of element-wise work, per byte that forward keeps for backward; infinite if `flops_per_s` includes it."""
    ranks_per_node: int = 8
    intra_bytes_per_s: float = 450e9
    """Bandwidth within a node per rank and direction: NVLink 4."""
    inter_bytes_per_s: float = 0.8 * 50e9
    """Bandwidth between nodes per rank and direction: 80 % of one 400 Gbit/s adapter per GPU."""
    intra_latency_s: float = 2e-6
    """Latency of one hop within a node."""
    inter_latency_s: float = 15e-6
    """Latency of one hop between nodes."""
    update_bytes_per_s: float = 0.8 * 3.35e12
    """Memory bandwidth of the optimizer's update: 80 % of HBM3."""
    copy_bytes_per_s: float = 0.8 * 3.35e12
    """Memory bandwidth of copies to new tensors."""
    all_gather_slowness: float = 1.0
    """Time of an all-gather relative to an all-reduce that sends the same number of bytes."""
    reduce_scatter_slowness: float = 1.0
    """The same for a reduce-scatter."""
    launch_s_per_block: float = 150e-6
    """Minimum time of a block, forward and backward: about 30 kernel launches of 5 µs."""
    fixed_step_s: float = 1e-3
    """Fixed time of a step: the training loop, DeepSpeed's bookkeeping, waiting for norms and flags."""
    overlap: float = 0.8
    """Share of backward (stage 3's gathers: of forward) that communication can overlap where DeepSpeed allows it."""
    reduce_scatter_as_all_reduce: bool = False
    """Whether a reduce-scatter runs as an all-reduce, as in torch's gloo backend."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Times of one optimizer step, in seconds, and the resulting speed."""

    compute: float
    """Forward and backward of all micro-batches."""
    ideal: float
    """The part of `compute` that the FLOPs alone would need."""
    communication: float
    """Sum of the times of all collectives."""
    exposed: float
    """The part of `communication` that does not overlap with compute."""
    copies: float
    """Copies of gradients to and from the reduced buffers."""
    update: float
    fixed: float
    tokens: float
    """Tokens of all ranks, padding included."""

    @property
    def total(self) -> float:
        """Time of the step."""
        return self.compute + self.exposed + self.copies + self.update + self.fixed

    @property
    def efficiency(self) -> float:
        """`ideal` divided by `total`; 1 is perfect scaling."""
        return self.ideal / self.total

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over all ranks."""
        return self.tokens / self.total

    def as_json(self) -> dict[str, float]:
        """Return all fields and derived values, in JSON's types."""
        derived = ("total", "efficiency", "tokens_per_s")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}


def with_assumptions(cluster: Cluster, assumptions: Mapping[str, Any]) -> Cluster:
    """Return a cluster with some fields replaced; a ValueError names an unknown field or an impossible value."""
    fields = {field.name: field for field in dataclasses.fields(Cluster)}
    for name, value in assumptions.items():
        if name not in fields:
            raise ValueError(f"--assume {name}: unknown; must be one of {', '.join(fields)}")
        least = 0.0 if name in ("overlap", "launch_s_per_block", "fixed_step_s") else math.ulp(0.0)
        number = isinstance(value, (int, float)) and (name == "reduce_scatter_as_all_reduce") is isinstance(value, bool)
        if not number or not least <= value <= (1.0 if name == "overlap" else math.inf):
            raise ValueError(f"--assume {name}={value!r}: must be a number above 0 (overlap: from 0 to 1)")
        if name == "ranks_per_node" and not (math.isfinite(value) and value == int(value)):
            raise ValueError(f"--assume {name}={value!r}: must be a whole number")
    return dataclasses.replace(cluster, **assumptions)


def collective_seconds(cluster: Cluster, collective: Collective, world_size: int) -> float:
    """Return the time of the collectives of one kind in a step, hierarchical over nodes of g ranks.

    Bandwidth: within a node each rank sends (g − 1)/g of the payload B; between nodes the same with each rank's 1/g of
    it. An all-reduce doubles both. The two phases are added, although NCCL pipelines them; this is at most a factor 2.

    Latency per call: g − 1 hops within a node. Between M nodes reduce-scatter and all-gather use a ring of M − 1 hops,
    because NCCL has no tree for them between multi-GPU nodes. An all-reduce takes twice min(M − 1, log2 M) hops, with
    double binary trees (NVIDIA, "Massively scale deep learning training with NCCL 2.4"). Calls of `reduce`, one per
    owner, count as a reduce-scatter.
    """
    ranks = min(cluster.ranks_per_node, world_size)
    nodes = math.ceil(world_size / ranks)
    is_doubled_scatter = cluster.reduce_scatter_as_all_reduce and collective.kind == "reduce_scatter"
    doubled = collective.kind == "all_reduce" or is_doubled_scatter
    within = (ranks - 1) / ranks / cluster.intra_bytes_per_s
    between = (nodes - 1) / nodes / ranks / cluster.inter_bytes_per_s
    hops = min(nodes - 1, math.ceil(math.log2(nodes))) if doubled else nodes - 1
    latency = (ranks - 1) * cluster.intra_latency_s + hops * cluster.inter_latency_s
    slowness = {"all_gather": cluster.all_gather_slowness, "reduce_scatter": cluster.reduce_scatter_slowness}
    factor = (2.0 if doubled else 1.0) * slowness.get(collective.kind, 1.0)
    return factor * (collective.payload_bytes * (within + between) + collective.calls * latency)


def predict_step(
    run: RunConfig,
    cluster: Cluster,
    *,
    world_size: int,
    micro_batch_size: int,
    kept: Sequence[Sequence[float]],
    memory: MemoryEstimate | None = None,
    attended_tokens: float | None = None,
) -> StepTime:
    """Predict one optimizer step.

    `kept` has for each micro-batch and block the share that runs: 1 or 0 for drawn gates, the keep probability for an
    expectation; at sample and token granularity the share of the rows or tokens. `memory` is that of the run at this
    micro-batch size, used with a finite `activation_bytes_per_s`. `attended_tokens` is that of `ModelFlops`. The
    model's `vocab_size` and `next_sentence_prediction` must be resolved.
    """
    has_gradient = gradient_probabilities(run, kept)
    collectives = step_collectives(run, world_size, has_gradient)
    mask_probability = run.data.mean_mask_probability(run.training.max_steps)
    flops = ModelFlops(run.model, run.data.seq_length, mask_probability, attended_tokens)
    recomputed = 4.0 / 3.0 if run.model.activation_checkpointing else 1.0
    ideal = compute = 0.0
    for shares, gradients in zip(kept, has_gradient, strict=True):
        work = BlockWork.of(shares, run.progressive_layer_drop.granularity, run.data.seq_length)
        blocks = (flops.per_sequence(work) - flops.heads_per_sequence) * recomputed
        seconds = micro_batch_size * (blocks + flops.heads_per_sequence) / cluster.flops_per_s
        ideal += seconds
        if memory is not None:
            seconds += memory.activation_bytes_at_depth(work.depth) / cluster.activation_bytes_per_s
        compute += max(seconds, sum(gradients) * cluster.launch_s_per_block)
    times = [(collective, collective_seconds(cluster, collective, world_size)) for collective in collectives]
    owned = parameter_count(run.model) / (world_size if run.zero_stage >= 1 else 1)
    copied_bytes = _COPY_PASSES[run.zero_stage] * payload_bytes(collectives, content="gradients")
    return StepTime(
        compute=compute,
        ideal=ideal,
        communication=sum(seconds for _, seconds in times),
        exposed=_exposed(run, cluster, times, compute, len(kept)),
        copies=copied_bytes / cluster.copy_bytes_per_s,
        update=owned * UPDATE_BYTES / cluster.update_bytes_per_s,
        fixed=cluster.fixed_step_s,
        tokens=float(world_size * micro_batch_size * len(kept) * run.data.seq_length),
    )


def gradient_probabilities(run: RunConfig, kept: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the probability that a block has a gradient; any share of the rows or of their tokens gives one."""
    by_share = run.progressive_layer_drop.enabled and run.progressive_layer_drop.granularity != "batch"
    return [[float(share > 0.0) if by_share else share for share in one] for one in kept]


def _exposed(
    run: RunConfig, cluster: Cluster, times: Sequence[tuple[Collective, float]], compute: float, micro_steps: int
) -> float:
    """Return the communication time that does not overlap with compute."""
    zero = run.deepspeed.get("zero_optimization", {})
    stage = run.zero_stage
    overlaps = stage >= 1 and zero.get("overlap_comm", stage == 3)
    everything = sum(seconds for _, seconds in times)
    if not overlaps:
        return everything
    bucket = int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
    hidden = 0.0
    # Stage 1 reduces once per step, in the backward of the last micro-batch.
    backward = compute * _BACKWARD_SHARE * (1.0 / micro_steps if stage == 1 else 1.0)
    for collective, seconds in times:
        if collective.content == "gradients":
            # The last bucket is full only after backward.
            last = min(1.0, bucket / parameter_count(run.model))
            hidden += min(seconds * (1.0 - last), backward * cluster.overlap)
        elif stage == 3 and collective.calls > micro_steps and collective.payload_bytes == _largest_gather(times):
            # The first gather of each micro-batch has nothing to overlap with.
            first = micro_steps / collective.calls
            hidden += min(seconds * (1.0 - first), compute * (1.0 - _BACKWARD_SHARE) * cluster.overlap)
    return everything - hidden


def _largest_gather(times: Sequence[tuple[Collective, float]]) -> float:
    """Return the payload of the gathers in forward; those of whole parameters after the step are smaller."""
    return max(collective.payload_bytes for collective, _ in times if collective.content == "parameters")


def slowest_of_independent(probabilities: Sequence[float], micro_steps: int, ranks: int) -> float:
    """Return the expected maximum over ranks of the blocks run in a step, if each rank drew its own gates.

    The number of blocks of one rank is a sum of independent Bernoulli variables with the distribution function F,
    computed exactly by convolution. The maximum of N independent ones has the mean Σ_k (1 − F(k)^N) over k ≥ 0. This is
    for comparison only: here all ranks draw the same gates.
    """
    distribution = [1.0]
    for keep in list(probabilities) * micro_steps:
        without, with_it = [p * (1.0 - keep) for p in distribution], [p * keep for p in distribution]
        distribution = [a + b for a, b in zip([*without, 0.0], [0.0, *with_it], strict=True)]
    total = cumulative = 0.0
    for probability in distribution[:-1]:
        cumulative += probability
        total += 1.0 - min(cumulative, 1.0) ** ranks
    return total
