"""What data-parallel ranks exchange in a training step: collectives and bytes, by ZeRO stage, precision and gates.

The rules are DeepSpeed's, read in its source (0.19.8) and counted in `python -m benchmarks communication`; with
DeepSpeed's defaults bytes are exact, for what a step exchanges apart from a few scalars:

- **Stage 0** all-reduces every gradient once a step; for a parameter without one it sends zeros.
- **Stages 1 and 2** all-reduce the gradients too (`use_multi_rank_bucket_allreduce`; each rank keeps its part; off,
  they are reduced to their owners one owner after the other), stage 1 once a step, stage 2 after every micro-batch, and
  only those of parameters that have one: a block dropped by every micro-batch of a step (stage 2: by this micro-batch)
  sends nothing (but zeros at stage 1 with `overlap_comm` and accumulation, see `bert_pld.pld.engine`). Then each of the
  optimizer's two groups of parameters is all-gathered, padded to a multiple of 2 · ranks.
- **Stage 3** all-gathers the parameters in each micro-batch and reduce-scatters all gradients after it, each tensor
  padded to a multiple of the ranks. A dropped block takes part in both (see `bert_pld.pld.gates.run_gated`). Parameters
  of up to `stage3_param_persistence_threshold` elements stay whole and are all-gathered one by one after the step.
  Those that are gathered stay until backward while forward and backward together touch fewer than
  `stage3_max_reuse_distance` elements (10⁹, so for every BERT); beyond it they are gathered twice.

Not modelled: ZeRO++ and MiCS, offloading, gradient accumulation in another dtype, expert parallelism.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

from bert_pld.config import ModelConfig, RunConfig

Kind = Literal["all_reduce", "reduce", "reduce_scatter", "all_gather"]
Content = Literal["gradients", "parameters"]

_BUCKET_ELEMENTS = 500_000_000
_PERSISTENT_ELEMENTS = 100_000
_PREFETCH_ELEMENTS = 50_000_000
_REUSE_ELEMENTS = 1_000_000_000
_ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "bfp16": 2, "fp16": 2}


@dataclasses.dataclass(frozen=True)
class ParameterTensor:
    """One trainable tensor of the model."""

    elements: int
    is_matrix: bool
    """Two dimensions: in the optimizer's group with weight decay."""
    block: int | None
    """Index of the switchable block it is of."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """The calls of one kind and content in a step."""

    kind: Kind
    content: Content
    payload_bytes: float
    """Of all calls of a step: the whole tensor, before (all-reduce, reduce-scatter) or after (all-gather)."""
    calls: int
    """In a step; buckets and prefetches as DeepSpeed's defaults make them, approximate beyond one bucket."""


def parameter_tensors(config: ModelConfig) -> list[ParameterTensor]:
    """The tensors of `BertForPreTraining`, tied ones once. `vocab_size` and `next_sentence_prediction` are resolved."""
    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size or 0
    embeddings = [vocabulary * hidden, config.max_position_embeddings * hidden, config.type_vocab_size * hidden]
    matrices, vectors = [*embeddings, hidden * hidden], [hidden, hidden, hidden, hidden, hidden, vocabulary]
    if config.next_sentence_prediction:
        matrices += [hidden * hidden, 2 * hidden]
        vectors += [hidden, 2]
    around = [ParameterTensor(size, True, None) for size in matrices]
    around += [ParameterTensor(size, False, None) for size in vectors]
    of_block = [(3 * hidden * hidden, True), (hidden * hidden, True), (hidden * inner, True), (inner * hidden, True)]
    of_block += [(size, False) for size in (*[hidden] * 6, 3 * hidden, inner)]
    blocks = [ParameterTensor(size, wide, index) for index in range(config.num_layers) for size, wide in of_block]
    return around + blocks


def step_collectives(
    run: RunConfig, world_size: int, kept: Sequence[Sequence[float]] | None = None, micro_steps: int = 1
) -> list[Collective]:
    """What one optimizer step exchanges, the handful of scalars (loss counts, norms, overflow flags) apart.

    Args:
        run: with the model's `vocab_size` and `next_sentence_prediction` resolved.
        world_size: data-parallel ranks.
        kept: for each micro-batch and block whether it has a gradient, 1 or 0; or the probability of it, for an
            expectation. Blocks of different micro-batches are independent. None: every block, in `micro_steps`.
        micro_steps: micro-batches a step where `kept` is None.
    """
    if world_size == 1:
        return []
    if kept is None:
        kept = [[1.0] * run.model.num_layers] * micro_steps
    tensors, zero = parameter_tensors(run.model), run.deepspeed.get("zero_optimization", {})
    element = _ELEMENT_BYTES[run.precision]
    gradient_element = _ELEMENT_BYTES[run.deepspeed.get("communication_data_type") or run.precision]
    in_step = [1.0 - math.prod(1.0 - micro_batch[block] for micro_batch in kept) for block in range(len(kept[0]))]
    bucket = int(zero.get("reduce_bucket_size", _BUCKET_ELEMENTS))
    stage = run.zero_stage
    if stage == 0:
        count = sum(tensor.elements for tensor in tensors)
        return [Collective("all_reduce", "gradients", count * gradient_element, math.ceil(count / _BUCKET_ELEMENTS))]
    if stage == 3:
        return _partitioned(tensors, zero, world_size, len(kept), element, gradient_element, bucket)
    if stage == 1 and len(kept) > 1 and zero.get("overlap_comm"):  # dropped blocks are touched: `LayerDropper`
        in_step = [1.0] * run.model.num_layers
    sent = [_elements_with_gradient(tensors, probabilities) for probabilities in ([in_step] if stage == 1 else kept)]
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
    """Stage 3."""
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
    """Bytes each rank sends in a step if every collective is a ring, which is bandwidth-optimal.

    A ring reduce-scatter or all-gather of B bytes passes N − 1 chunks of B/N on from each rank; an all-reduce is one
    followed by the other, 2·(N − 1)/N·B (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69(2), 2009). A reduction to
    one rank is counted as a reduce-scatter: every rank but the last of its chain passes B on, and the owners alternate.

    Args:
        collectives: of a step.
        world_size: N.
        reduce_scatter_as_all_reduce: as torch's gloo backend does it.
    """
    share = (world_size - 1) / world_size
    return sum(c.payload_bytes * share * _ring_passes(c.kind, reduce_scatter_as_all_reduce) for c in collectives)


def payload_bytes(collectives: Iterable[Collective], kind: Kind | None = None, content: Content | None = None) -> float:
    """The payload of the collectives of a kind and content (None: of any)."""
    chosen = (c for c in collectives if kind in (None, c.kind) and content in (None, c.content))
    return sum(c.payload_bytes for c in chosen)


def _ring_passes(kind: Kind, reduce_scatter_as_all_reduce: bool) -> int:
    return 2 if kind == "all_reduce" or (kind == "reduce_scatter" and reduce_scatter_as_all_reduce) else 1


def _elements_with_gradient(tensors: Iterable[ParameterTensor], kept: Sequence[float]) -> float:
    return sum(tensor.elements * (1.0 if tensor.block is None else kept[tensor.block]) for tensor in tensors)


def _padded(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple
