"""Predicted steps of a configuration on several numbers of ranks at a fixed batch size, as rows and as text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from bert_pld.config import RunConfig
from bert_pld.cost.communication import Collective, bytes_sent, step_collectives
from bert_pld.cost.memory import estimate_memory
from bert_pld.cost.scaling import Cluster, StepTime, gradient_probabilities, predict_step

_ROWS = 4
_MICRO_BATCH = 64


@dataclasses.dataclass(frozen=True)
class ScalingRow:
    """Prediction for one number of ranks, with gates at the schedule's limit."""

    world_size: int
    micro_batch_size: int
    accumulation_steps: int
    collectives: list[Collective]
    """The collectives of a step."""
    sent_bytes: float
    """Bytes that a rank sends in a step with ring collectives."""
    step: StepTime
    without_dropping: StepTime
    """The step without layer dropping."""

    def as_json(self) -> dict[str, Any]:
        """Return the row in JSON's types."""
        values = dataclasses.asdict(self)
        return {**values, "step": self.step.as_json(), "without_dropping": self.without_dropping.as_json()}


def scaling_rows(
    run: RunConfig,
    cluster: Cluster,
    world_size: int,
    train_batch_size: int,
    micro_batch_size: int,
    keep_probabilities: Sequence[float],
    attended_tokens: float | None = None,
) -> list[ScalingRow]:
    """Predict the step at `world_size` ranks and at 1/4, 1/16, … of them, down to one node; no rows for one rank.

    The batch size is the same in all rows, and `micro_batch_size` is that at `world_size`. With fewer ranks the
    micro-batch is larger: the largest divisor of a rank's share that is at most 64 sequences, or at most
    `micro_batch_size` if that is larger. `attended_tokens` is that of `ModelFlops`. The model's `vocab_size` and
    `next_sentence_prediction` must be resolved.
    """
    sizes = [world_size]
    while len(sizes) < _ROWS and sizes[-1] % 4 == 0 and sizes[-1] // 4 >= cluster.ranks_per_node:
        sizes.append(sizes[-1] // 4)
    rows = []
    for ranks in sorted(sizes):
        if ranks == 1:
            continue
        micro_batch, accumulation = micro_batch_size, train_batch_size // (micro_batch_size * ranks)
        if ranks < world_size:
            share = train_batch_size // ranks
            most = min(max(micro_batch_size, _MICRO_BATCH), share)
            micro_batch = next(size for size in range(most, 0, -1) if share % size == 0)
            accumulation = share // micro_batch
        kept = [list(keep_probabilities)] * accumulation
        collectives = step_collectives(run, ranks, gradient_probabilities(run, kept))
        full = [[1.0] * len(keep_probabilities)] * accumulation
        predict = functools.partial(
            predict_step,
            run,
            cluster,
            world_size=ranks,
            micro_batch_size=micro_batch,
            memory=estimate_memory(run, micro_batch, ranks),
            attended_tokens=attended_tokens,
        )
        step, whole = predict(kept=kept), predict(kept=full)
        sent = bytes_sent(collectives, ranks)
        rows.append(ScalingRow(ranks, micro_batch, accumulation, collectives, sent, step, whole))
    return rows


def scaling_lines(run: RunConfig, rows: Sequence[ScalingRow]) -> list[str]:
    """Return the rows as lines of text; no lines if there are no rows."""
    if not rows:
        return []
    last = rows[-1]
    traffic = ", ".join(
        f"{one.kind} {one.payload_bytes / 1e6:,.0f} MB of {one.content} in {one.calls:,} call(s)"
        for one in last.collectives
    )
    lines = [
        f"communication per step and rank, at the limit: ZeRO-{run.zero_stage}, {run.precision},"
        f" {last.world_size:,} ranks",
        f"  {traffic}; {last.sent_bytes / 1e6:,.0f} MB sent",
        "step time at this batch size, at the limit; predicted, not measured (assumptions: docs/scaling.md, --assume)",
        "  ranks  micro-batch   step, ms: compute + communication + rest       tokens/s  efficiency  PLD / without",
    ]
    for row in rows:
        step = row.step
        rest = step.copies + step.update + step.fixed
        lines.append(
            f"  {row.world_size:>5,}  {row.accumulation_steps:>3} × {row.micro_batch_size:<5}"
            f"   {step.total * 1e3:8.2f}: {step.compute * 1e3:7.2f} + {step.exposed * 1e3:7.2f} + {rest * 1e3:5.2f}"
            f"   {step.tokens_per_s:14,.0f}  {step.efficiency:10.0%}  {step.total / row.without_dropping.total:13.2f}"
        )
    return lines
