"""The tables that `benchmarks train` prints."""

from __future__ import annotations

from typing import Any

from benchmarks.hugging_face import HUGGING_FACE, MODERNBERT
from benchmarks.train.contenders import PLD
from benchmarks.train.profile import profile_lines

_TIME_TARGET = 1.05
_SPREAD_TARGET = 1.05


def report(result: dict[str, Any]) -> str:
    """Format the figures as tables."""
    contenders, skipped = result["contenders"], result["skipped"]
    lines = [*_heading(result), "", *_speed_table(contenders, skipped)]
    dropping = [one for one in contenders if one["name"] in PLD]
    if dropping:
        lines += ["", *_pld_table(dropping, result["theta"], result["model"]["num_layers"])]
    if profiles := profile_lines(contenders):
        lines += ["", *profiles]
    return "\n".join(lines)


def _heading(result: dict[str, Any]) -> list[str]:
    model = result["model"]
    attention = {one["name"]: one["attention"] for one in result["contenders"] if one["name"].startswith("hf_")}
    kinds = ", attention " + ", ".join(f"{name} {kind}" for name, kind in attention.items()) if attention else ""
    return [
        f"training step of {model['num_layers']} blocks × {model['hidden_size']}, {model['normalization']}-norm,"
        f" vocabulary {model['vocab_size']:,}, micro-batch {result['micro_batch_size']} × {result['seq_length']},"
        f" {result['padding']:.0%} padding",
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}, DeepSpeed"
        f" {result['deepspeed_version']} at ZeRO-{result['zero_stage']} for all",
        f"transformers {result['transformers']}{kinds}",
        f"{result['rounds']} rounds of {result['steps_per_round']} steps in turns"
        f"{', in processor seconds' if result.get('clock') == 'processor' else ''}; matrix products: "
        + ", ".join(f"{dtype} {rate:,.0f} GFLOP/s" for dtype, rate in result["matmul_gflops"].items()),
        f"the same function: fp32 losses differ by {result['loss_difference']:.1e}",
        "MFU: executed FLOPs over the matrix product's rate; for all contenders the MLM head counts at masked",
        "positions only and padding does not count, also where a class computes more",
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
    return [
        *lines,
        "step ms: median; × HF, × HFc: tokens/s over the faster of Hugging Face's classes, eager and compiled;",
        "× ours c: over `compiled`",
        *(f"the faster in {dtype}: {', '.join(filter(None, names))}" for dtype, names in best.items() if any(names)),
    ]


def _pld_table(dropping: list[dict[str, Any]], theta: float, blocks: int) -> list[str]:
    lines = [
        f"time a sample at θ = {theta:g} over full depth with the same kernels, and as the gates' FLOPs predict it;",
        f"targets: measured at most {_TIME_TARGET:g} × predicted, and p95/p50 of `pld_sample` below {_SPREAD_TARGET:g}",
        f"{'dtype':6}{'contender':17}{'kernels':14}{'measured':>9}{'predicted':>11}{'meas./pred.':>13}"
        f"{'p95/p50':>9}{'of expectation':>16}    blocks drawn, expected",
    ]
    for one in dropping:
        lines.append(
            f"{one['dtype']:6}{one['name']:17}{one['full_depth']:14}{_ratio(one['time_over_full_depth'], 3):>9}"
            f"{one['predicted_of_gates_drawn']:>11.3f}{_ratio(one['measured_over_predicted'], 3):>13}"
            f"{one['step_p95_over_p50']:>9.3f}{one['predicted_of_expectation']:>16.3f}"
            f"    {one['depth_drawn']:.2f}, {one['depth_expected']:.2f} of {blocks}"
        )
    return lines


def _fastest_peers(contenders: list[dict[str, Any]], dtype: str) -> tuple[str | None, str | None]:
    """Names of the faster of Hugging Face's classes that ran in a dtype: (eager, compiled)."""
    rates = {one["name"]: one["tokens_per_s"] for one in contenders if one["dtype"] == dtype}

    def fastest(names: list[str]) -> str | None:
        return max((name for name in names if name in rates), key=rates.__getitem__, default=None)

    names = (*HUGGING_FACE, MODERNBERT)
    return fastest(list(names)), fastest([f"{name}_compiled" for name in names])


def _ratio(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
