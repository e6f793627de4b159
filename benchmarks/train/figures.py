"""From measured steps to the figures of `bench train`: rates, MFU on executed FLOPs, ratios, step-time spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.batches import Batch, targets_of
from benchmarks.train.contenders import HUGGING_FACE, PLD, Contender
from bert_pld.config import ModelConfig
from bert_pld.cost.flops import ModelFlops
from bert_pld.pld.gates import Gates
from bert_pld.pld.schedule import Schedule

_TIME_AIM = 1.05
_SPREAD_AIM = 1.05


class RoundFlops:
    """Matrix-product FLOPs of one round's training steps, by `ModelFlops` of each row's own length.

    They are those of the useful function: tokens, not padding, and the MLM head on masked positions, whoever computes
    more than that.
    """

    def __init__(self, config: ModelConfig, batches: Sequence[Batch]) -> None:
        """`batches`: of the round's steps."""
        self.config = config
        self._model = ModelFlops(config, max(int(batch.sequence_lengths.max()) for batch in batches))
        self._lengths = [batch.sequence_lengths for batch in batches]
        self.heads = sum(
            ModelFlops(config, n, targets_of(n) / n).heads_per_sequence
            for lengths in self._lengths
            for n in lengths.tolist()
        )

    def at_depth(self, depth: float) -> float:
        """`depth` blocks on all rows, and the heads."""
        return depth * self._model.block(np.concatenate(self._lengths)) + self.heads

    def under(self, gates: Sequence[Gates]) -> float:
        """What runs under the gates of the round's steps."""
        total = self.heads
        for lengths, drawn in zip(self._lengths, gates, strict=True):
            for gate in drawn:
                if gate.keep:
                    rows = gate.rows_on_host
                    total += self._model.block(lengths if rows is None else lengths[rows])
        return total


def figures_of(
    one: Contender,
    contenders: Sequence[Contender],
    batches: Sequence[Batch],
    gates: Sequence[Gates] | None,
    theta: float,
    flops: RoundFlops,
    matmul_gflops: float,
) -> dict[str, Any]:
    """One contender's figures.

    Args:
        one: the contender.
        contenders: all that ran.
        batches: of a round's steps.
        gates: of a round's steps, for a PLD contender.
        theta: θ of the PLD contenders.
        flops: of a round.
        matmul_gflops: the ceiling that MFU is measured against.
    """
    full = flops.at_depth(flops.config.num_layers)
    executed = full if gates is None else flops.under(gates)
    tokens = sum(batch.tokens for batch in batches)
    rates = [tokens / seconds for seconds in one.round_seconds]
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
        "executed_flops_per_step": executed / len(batches),
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
    }
    if gates is not None:
        blocks = flops.config.num_layers
        expected = Schedule(blocks, theta_limit=theta, temporal="constant").expected_depth(0)
        full_depth = next((c for c in contenders if (c.name, c.dtype) == (one.backend, one.dtype)), None)
        measured = None if full_depth is None else _time_ratio(one, full_depth)
        figures |= {
            "full_depth": one.backend,
            "time_over_full_depth": measured,
            "predicted_of_gates_drawn": executed / full,
            "predicted_of_expectation": flops.at_depth(expected) / full,
            "measured_over_predicted": None if measured is None else measured * full / executed,
            "depth_drawn": statistics.fmean(drawn.kept_blocks for drawn in gates),
            "depth_expected": expected,
        }
    return figures


def _time_ratio(one: Contender, other: Contender) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(one.round_seconds, other.round_seconds, strict=True))


def _speed_over(one: Contender, contenders: Sequence[Contender]) -> dict[str, dict[str, float]]:
    """By dtype and name: how many times the other's tokens per second this one does."""
    over: dict[str, dict[str, float]] = {}
    for other in contenders:
        over.setdefault(other.dtype, {})[other.name] = 1.0 / _time_ratio(one, other)
    return over


def report(result: dict[str, Any]) -> str:
    """The figures as tables."""
    contenders, skipped = result["contenders"], result["skipped"]
    lines = [*_heading(result), "", *_speed_table(contenders, skipped)]
    dropping = [one for one in contenders if one["name"] in PLD]
    if dropping:
        lines += ["", *_pld_table(dropping, result["theta"], result["model"]["num_layers"])]
    return "\n".join(lines)


def _heading(result: dict[str, Any]) -> list[str]:
    model = result["model"]
    attention = {one["name"]: one["attention"] for one in result["contenders"] if one["name"].startswith("hf_")}
    theirs = ", attention " + ", ".join(f"{name} {kind}" for name, kind in attention.items()) if attention else ""
    return [
        f"training step of {model['num_layers']} blocks × {model['hidden_size']}, {model['normalization']}-norm,"
        f" vocabulary {model['vocab_size']:,}, micro-batch {result['micro_batch_size']} × {result['seq_length']},"
        f" {result['padding']:.0%} padding",
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}, DeepSpeed"
        f" {result['deepspeed_version']} at ZeRO-{result['zero_stage']} for all",
        f"transformers {result['transformers']}{theirs}",
        f"{result['rounds']} rounds of {result['steps_per_round']} steps in turns; matrix products: "
        + ", ".join(f"{dtype} {rate:,.0f} GFLOP/s" for dtype, rate in result["matmul_gflops"].items()),
        f"the same function: fp32 losses differ by {result['loss_difference']:.1e}",
        "MFU: executed FLOPs over the matrix product's rate; for everybody the MLM head counts at masked positions",
        "only, and padding not at all, whoever computes more",
    ]


def _speed_table(contenders: list[dict[str, Any]], skipped: list[dict[str, Any]]) -> list[str]:
    dtypes = list(dict.fromkeys(one["dtype"] for one in contenders))
    best = {dtype: _fastest_peers(contenders, dtype) for dtype in dtypes}
    fp32 = best.get("fp32", (None, None))[0] if len(dtypes) > 1 else None
    lines = [
        f"{'dtype':6}{'contender':23}{'tokens/s':>10}  {'(lowest–highest)':19}{'MFU':>6}{'GiB':>7}"
        f"{'step ms':>9}{'p95/p50':>8}{'× HF':>7}{'× HFc':>7}{'× ours c':>9}" + (f"{'× HF fp32':>10}" if fp32 else "")
    ]
    for one in contenders:
        low, high = one["tokens_per_s_range"]
        eager, compiled = best[one["dtype"]]
        same, peak = one["speed_over"][one["dtype"]], one["peak_memory_bytes"]
        lines.append(
            f"{one['dtype']:6}{one['name']:23}{one['tokens_per_s']:>10,.0f}  {f'({low:,.0f}–{high:,.0f})':19}"
            f"{one['mfu']:>6.1%}{'–' if peak is None else f'{peak / 2**30:.2f}':>7}"
            f"{one['step_ms_p50']:>9.2f}{one['step_p95_over_p50']:>8.3f}"
            f"{_ratio(same.get(eager)):>7}{_ratio(same.get(compiled)):>7}{_ratio(same.get('compiled')):>9}"
            + (f"{_ratio(one['speed_over']['fp32'][fp32]):>10}" if fp32 else "")
        )
    for one in skipped:
        lines.append(f"{one['dtype']:6}{one['name']:23}{'failed' if one['failed'] else 'skipped'}: {one['reason']}")
    lines.append(
        "step ms: median; × HF, × HFc: tokens/s over the faster of Hugging Face's classes, eager and compiled;"
    )
    lines.append("× ours c: over `compiled`")
    return lines + [
        f"the faster in {dtype}: {', '.join(filter(None, names))}" for dtype, names in best.items() if any(names)
    ]


def _pld_table(dropping: list[dict[str, Any]], theta: float, blocks: int) -> list[str]:
    lines = [
        f"time a sample at θ = {theta:g} over full depth on the same kernels, and as the gates' FLOPs predict it;",
        f"aims: measured at most {_TIME_AIM:g} × predicted, and p95/p50 of `pld_sample` below {_SPREAD_AIM:g}",
        f"{'dtype':6}{'contender':13}{'kernels':11}{'measured':>9}{'predicted':>11}{'meas./pred.':>13}"
        f"{'p95/p50':>9}{'of expectation':>16}    blocks drawn, expected",
    ]
    for one in dropping:
        lines.append(
            f"{one['dtype']:6}{one['name']:13}{one['full_depth']:11}{_ratio(one['time_over_full_depth'], 3):>9}"
            f"{one['predicted_of_gates_drawn']:>11.3f}{_ratio(one['measured_over_predicted'], 3):>13}"
            f"{one['step_p95_over_p50']:>9.3f}{one['predicted_of_expectation']:>16.3f}"
            f"    {one['depth_drawn']:.2f}, {one['depth_expected']:.2f} of {blocks}"
        )
    return lines


def _fastest_peers(contenders: list[dict[str, Any]], dtype: str) -> tuple[str | None, str | None]:
    """The faster of Hugging Face's classes that ran in a dtype, eager and compiled."""
    rates = {one["name"]: one["tokens_per_s"] for one in contenders if one["dtype"] == dtype}

    def fastest(names: list[str]) -> str | None:
        return max((name for name in names if name in rates), key=rates.__getitem__, default=None)

    return fastest(list(HUGGING_FACE)), fastest([f"{name}_compiled" for name in HUGGING_FACE])


def _ratio(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
