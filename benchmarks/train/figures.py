"""From measured steps to figures: rates, MFU on executed FLOPs, ratios between contenders, spread of step times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.batches import Batch, targets_of
from benchmarks.train.contenders import PLD, ThroughputContender, schedule_of
from bert_pld.config import ModelConfig
from bert_pld.cost.flops import ModelFlops
from bert_pld.cost.work import mean_work
from bert_pld.pld.gates import Gates


class Round:
    """Tokens and matrix-product FLOPs of one round's training steps.

    FLOPs are those of the useful function, by `ModelFlops` of each row's own length: tokens, not padding, and the MLM
    head on masked positions only, for contenders that compute more than that too.
    """

    def __init__(
        self, config: ModelConfig, batches: Sequence[Batch], gates: Mapping[str, Sequence[Gates]], theta: float
    ) -> None:
        """Count a round of one batch a step; `theta` is the constant θ of the PLD contenders' gates."""
        self.config, self.gates, self.theta = config, gates, theta
        self.steps = len(batches)
        self.tokens = sum(batch.tokens for batch in batches)
        self.longest = max(int(batch.sequence_lengths.max()) for batch in batches)
        self._model = ModelFlops(config, self.longest)
        self._lengths = [batch.sequence_lengths for batch in batches]
        # Tokens that a loss looks at: the masked ones and [CLS].
        self._chosen = [batch.masked_positions.numel() + len(batch.sequence_lengths) for batch in batches]
        lengths = np.concatenate(self._lengths).tolist()
        self.heads_flops = sum(ModelFlops(config, n, targets_of(n) / n).heads_per_sequence for n in lengths)

    def flops_at_depth(self, depth: float, square: float | None = None) -> float:
        """FLOPs of `depth` blocks on all rows, and of the heads; `square` as in `BlockWork`."""
        lengths = np.concatenate(self._lengths)
        saved = 0.0 if square is None else (depth - square) * self._model.attention(lengths)
        return depth * self._model.block(lengths) - saved + self.heads_flops

    def flops_under(self, gates: Sequence[Gates]) -> float:
        """FLOPs that are executed under each step's gates."""
        steps = zip(self._lengths, gates, strict=True)
        return self.heads_flops + sum(self._model.gated_blocks(lengths, drawn) for lengths, drawn in steps)

    def left_out(self, gates: Sequence[Gates] | None) -> float:
        """FLOPs that kernels leave out which compute the last block on the tokens that a loss looks at."""
        drawn_gates: Sequence[Gates | None] = gates or [None] * self.steps
        steps = zip(self._lengths, drawn_gates, self._chosen, strict=True)
        return sum(self._model.left_out(lengths, drawn, chosen) for lengths, drawn, chosen in steps)


def figures_of(
    one: ThroughputContender, contenders: Sequence[ThroughputContender], one_round: Round, matmul_gflops: float
) -> dict[str, Any]:
    """One contender's figures, with ratios to all that ran; MFU refers to `matmul_gflops`."""
    full = one_round.flops_at_depth(one_round.config.num_layers)
    gates = one_round.gates.get(one.name)
    executed = full if gates is None else one_round.flops_under(gates)
    executed -= one_round.left_out(gates) if one.chooses_rows else 0.0
    rates = [one_round.tokens / seconds for seconds in one.round_seconds]
    steps_ms = 1e3 * np.array(one.step_seconds).flatten()
    p50, p95 = (float(value) for value in np.percentile(steps_ms, (50, 95)))
    figures = {
        "name": one.name,
        "dtype": one.dtype,
        "backend": one.backend,
        "attention": one.attention,
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_range": [min(rates), max(rates)],
        "mfu": executed / statistics.median(one.round_seconds) / (matmul_gflops * 1e9),
        "executed_flops_per_step": executed / one_round.steps,
        "step_ms_p50": p50,
        "step_ms_p95": p95,
        "step_p95_over_p50": p95 / p50,
        "peak_memory_bytes": one.peak_bytes,
        "resident_memory_bytes": one.resident_bytes,
        "warmup_seconds": one.warmup_seconds,
        "first_loss": one.first_loss,
        "skipped_steps": one.skipped_steps,
        "speed_over": _speed_over(one, contenders),
        "step_seconds": one.step_seconds,
        "profile": one.profile,
    }
    if gates is not None:
        figures |= _figures_of_dropping(one, contenders, one_round, gates)
    return figures


def _figures_of_dropping(
    one: ThroughputContender, contenders: Sequence[ThroughputContender], one_round: Round, gates: Sequence[Gates]
) -> dict[str, Any]:
    """A PLD contender's time over that of the same kernels at full depth, and what FLOPs predict."""
    blocks = one_round.config.num_layers
    work = mean_work(schedule_of(one.name, blocks, one_round.theta), 1, PLD[one.name], one_round.longest)
    full, executed = one_round.flops_at_depth(blocks), one_round.flops_under(gates)
    expected = one_round.flops_at_depth(work.depth, work.square)
    if one.chooses_rows:
        left_out = one_round.left_out(None)
        full, executed, expected = (
            full - left_out,
            executed - one_round.left_out(gates),
            expected - work.last_whole * left_out,
        )
    full_depth = next((c for c in contenders if (c.name, c.dtype) == (one.backend, one.dtype)), None)
    measured = None if full_depth is None else _time_ratio(one, full_depth)
    return {
        "full_depth": one.backend,
        "time_over_full_depth": measured,
        "predicted_of_gates_drawn": executed / full,
        "predicted_of_expectation": expected / full,
        "measured_over_predicted": None if measured is None else measured * full / executed,
        "depth_drawn": statistics.fmean(drawn.kept_blocks for drawn in gates),
        "depth_expected": work.depth,
    }


def _time_ratio(one: ThroughputContender, other: ThroughputContender) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(one.round_seconds, other.round_seconds, strict=True))


def _speed_over(one: ThroughputContender, contenders: Sequence[ThroughputContender]) -> dict[str, dict[str, float]]:
    """By dtype and name of each other contender: this one's tokens per second over the other's."""
    over: dict[str, dict[str, float]] = {}
    for other in contenders:
        over.setdefault(other.dtype, {})[other.name] = 1.0 / _time_ratio(one, other)
    return over
