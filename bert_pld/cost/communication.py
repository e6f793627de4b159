"""Communication of data-parallel ranks in a training step: collectives and bytes by ZeRO stage, precision and gates.

The rules are those of DeepSpeed's source (0.19.8); `python -m benchmarks communication` counts the actual collectives.
With DeepSpeed's defaults the bytes are exact, apart from a few scalars per step:

- **Stage 0** all-reduces every gradient once per step, and sends zeros for parameters without a gradient.
- **Stages 1 and 2** all-reduce gradients too, stage 1 once per step and stage 2 after every micro-batch. Each rank
  keeps its partition. (Without `use_multi_rank_bucket_allreduce` gradients are reduced to one owner after the other.)
  Parameters without a gradient send nothing. At stage 1 these are the blocks that every micro-batch of the step drops,
  at stage 2 those that this micro-batch drops. Exception: stage 1 with `overlap_comm` and accumulation sends zeros
  (`bert_pld.pld.engine`). After the step the optimizer's two parameter groups are all-gathered, each padded to a
  multiple of 2 · ranks.
- **Stage 3** all-gathers parameters in each micro-batch and reduce-scatters all gradients after it, each tensor padded
  to a multiple of the ranks. Dropped blocks take part in both (`bert_pld.pld.gates.run_gated`). Parameters of up to
  `stage3_param_persistence_threshold` elements stay whole and are all-gathered one by one after the step. A gathered
  parameter is kept from forward to backward if both together use fewer than `stage3_max_reuse_distance` elements (10⁹,
  true for every BERT); otherwise it is gathered twice.

Not modelled: ZeRO++ and MiCS, offloading, gradient accumulation in another dtype, expert parallelism.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from bert_pld.config import RunConfig
from bert_pld.cost.flops import ParameterTensor, parameter_tensors

Kind = Literal["all_reduce", "reduce", "reduce_scatter", "all_gather"]
Content = Literal["gradients", "parameters"]

BUCKET_ELEMENTS = 500_000_000
_PERSISTENT_ELEMENTS = 100_000
_PREFETCH_ELEMENTS = 50_000_000
_REUSE_ELEMENTS = 1_000_000_000
_ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "bfp16": 2, "fp16": 2}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All calls of one kind and content in a step."""

    kind: Kind
    content: Content
    payload_bytes: float
    """Size of the whole tensors over all calls, before (all-reduce, reduce-scatter) or after (all-gather) the call."""
    calls: int
    """Number of calls, with DeepSpeed's default bucket and prefetch sizes; approximate beyond one bucket."""


def step_collectives(
    run: RunConfig, world_size: int, kept: Sequence[Sequence[float]] | None = None
) -> list[Collective]:
    """Return the collectives of one optimizer step, without a few scalars (loss counts, norms, overflow flags).

    `kept` has for each micro-batch and block 1 if the block has a gradient, otherwise 0; or its probability, for the
    expected bytes. Micro-batches are independent. None: every block, in one micro-batch. The model's `vocab_size` and
    `next_sentence_prediction` must be resolved.
    """
    if world_size == 1:
        return []
    if kept is None:
        kept = [[1.0] * run.model.num_layers]
    tensors, zero = parameter_tensors(run.model), run.deepspeed.get("zero_optimization", {})
    element = _ELEMENT_BYTES[run.precision]
    # DeepSpeed reads the name in any case.
    gradient_element = _ELEMENT_BYTES[(run.deepspeed.get("communication_data_type") or run.precision).lower()]
    in_step = [1.0 - math.prod(1.0 - micro_batch[block] for micro_batch in kept) for block in range(len(kept[0]))]
    bucket = int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
    stage = run.zero_stage
    if stage == 0:
        count = sum(tensor.elements for tensor in tensors)
        return [Collective("all_reduce", "gradients", count * gradient_element, math.ceil(count / BUCKET_ELEMENTS))]
    if stage == 3:
        return _partitioned(tensors, zero, world_size, len(kept), element, gradient_element, bucket)
    if stage == 1 and len(kept) > 1 and zero.get("overlap_comm"):  # dropped blocks get zero gradients
        in_step = [1.0] * run.model.num_layers
    sent = [
        sum(tensor.elements * (1.0 if tensor.block is None else probabilities[tensor.block]) for tensor in tensors)
        for probabilities in ([in_step] if stage == 1 else kept)
    ]
    together = zero.get("use_multi_rank_bucket_allreduce", True)
    calls = sum(math.ceil(count / bucket) for count in sent) * (1 if together else world_size)
    kind: Kind = "all_reduce" if together else "reduce"
    groups = [[tensor.elements for tensor in tensors if tensor.is_matrix is matrices] for matrices in (True, False)]
    gathered = sum(_padded(sum(group), 2 * world_size) for group in groups)
    return [
        Collective(kind, "gradients", sum(sent) * gradient_element, calls),
        Collective("all_gather", "parameters", gathered * element, len(groups)),
    ]


def _partitioned(
    tensors: Sequence[ParameterTensor],
    zero: dict[str, int],
    world_size: int,
    micro_steps: int,
    element: int,
    gradient_element: int,
    bucket: int,
) -> list[Collective]:
    """Return the collectives of ZeRO stage 3."""
    threshold = int(zero.get("stage3_param_persistence_threshold", _PERSISTENT_ELEMENTS))
    prefetch = max(int(zero.get("stage3_prefetch_bucket_size", _PREFETCH_ELEMENTS)), 1)
    padded = [_padded(tensor.elements, world_size) for tensor in tensors]
    whole = [size for size, tensor in zip(padded, tensors, strict=True) if tensor.elements <= threshold]
    fetched = sum(padded) - sum(whole)
    reuse = int(zero.get("stage3_max_reuse_distance", _REUSE_ELEMENTS))
    passes = micro_steps * (1 if 2 * sum(padded) <= reuse else 2)
    parameters = [Collective("all_gather", "parameters", sum(whole) * element, len(whole))] if whole else []
    if fetched:
        calls = passes * (1 + math.ceil(fetched / prefetch))
        parameters.append(Collective("all_gather", "parameters", fetched * element * passes, calls))
    calls = micro_steps * math.ceil(sum(padded) / bucket)
    reduced = Collective("reduce_scatter", "gradients", sum(padded) * gradient_element * micro_steps, calls)
    return [reduced, *parameters]


def bytes_sent(collectives: Iterable[Collective], world_size: int, reduce_scatter_as_all_reduce: bool = False) -> float:
    """Return the bytes that each rank sends in a step with ring collectives, which are bandwidth-optimal.

    In a ring reduce-scatter or all-gather of B bytes each rank sends N − 1 chunks of B/N. An all-reduce is one followed
    by the other: 2·(N − 1)/N·B (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69(2), 2009). A reduction to one rank
    counts as a reduce-scatter: every rank except the last of the chain sends B, and the owners alternate. With
    `reduce_scatter_as_all_reduce` a reduce-scatter runs as an all-reduce, as in torch's gloo backend.
    """
    share = (world_size - 1) / world_size
    return sum(c.payload_bytes * share * _ring_passes(c.kind, reduce_scatter_as_all_reduce) for c in collectives)


def payload_bytes(collectives: Iterable[Collective], kind: Kind | None = None, content: Content | None = None) -> float:
    """Return the total payload of the collectives of a kind and content; None: of any."""
    chosen = (c for c in collectives if kind in (None, c.kind) and content in (None, c.content))
    return sum(c.payload_bytes for c in chosen)


def _ring_passes(kind: Kind, reduce_scatter_as_all_reduce: bool) -> int:
    return 2 if kind == "all_reduce" or (kind == "reduce_scatter" and reduce_scatter_as_all_reduce) else 1


def _padded(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple
