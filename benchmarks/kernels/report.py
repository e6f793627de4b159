"""The table that `benchmarks kernels` prints."""

from __future__ import annotations

from typing import Any

_DASH = "–"


def report(result: dict[str, Any]) -> str:
    """A line for each row, then the columns' meaning, absent implementations, sweeps and failures."""
    target = f"{result['target_share']:.0%}"
    lines = [
        f"{result['device']}, torch {result['torch']}, triton {result['triton'] or 'not installed'},"
        f" {'CUDA graphs' if result['graphs'] else 'no CUDA graphs'}, median of {result['rounds']} rounds in turns",
        "large copy: " + ", ".join(f"{rate:,.0f}" for rate in result["copy_gb_s"]) + " GB/s read and written,"
        " before and after; % is the kernel's share of the higher",
        "",
        f"{'operation':24}{'direction':10}{'tokens':>7}{'H':>6} {'dtype':6}{'MB':>8}"
        f"{'triton µs':>11}{'GB/s':>7}{'%':>5}  "
        + "".join(f"{peer + ' µs':>18}" for peer in result["peers"])
        + f"{'copy µs':>10}{'host µs':>9}{'error':>9}",
    ]
    lines += [_line(row, result["peers"]) for row in result["rows"]]
    lines += [
        "",
        f"< below {target} of the large copy; (×) a peer's time over the kernel's; copy: of as many bytes; host: the"
        " kernel's launcher without a graph; error: ‖out − ref‖ / ‖ref‖ against fp64",
    ]
    below = sum(bool(row["below_target"]) for row in result["rows"])
    compared = sum(row["below_target"] is not None for row in result["rows"])
    if compared:
        lines.append(f"{below} of {compared} rows below {target}")
    lines += _absences(result["rows"])
    lines += [line for row in result["rows"] for line in _swept(row)]
    lines += [f"FAILED {text}" for text in result["failed"]]
    return "\n".join(lines)


def _line(row: dict[str, Any], peers: list[str]) -> str:
    times = row["times"]
    ours = times.get("triton")
    moved = _DASH if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
    share = f"{ours['share_of_copy'] * 100:.0f}{'<' if row['below_target'] else ' '}" if ours else f"{_DASH} "
    return (
        f"{row['operation']:24}{row['direction']:10}{row['tokens']:>7}{row['hidden']:>6} {row['dtype']:6}{moved:>8}"
        f"{_number(ours, 'median_us', 1):>11}{_number(ours, 'gb_s', 0):>7}{share:>6} "
        + "".join(f"{_peer(times.get(peer), ours):>18}" for peer in peers)
        + f"{_number(times.get('copy'), 'median_us', 1):>10}{_number(ours, 'host_us', 1):>9}"
        + (f"{_DASH:>9}" if row["error"] is None else f"{row['error']:>9.1e}")
        + ("  FAILED" if row["failed"] else "")
    )


def _number(times: dict[str, Any] | None, key: str, digits: int) -> str:
    return _DASH if times is None or key not in times else f"{times[key]:,.{digits}f}"


def _peer(times: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    if times is None:
        return _DASH
    over = "" if ours is None else f" ({times['median_us'] / ours['median_us']:.2f}×)"
    return f"{times['median_us']:,.1f}{over}"


def _absences(rows: list[dict[str, Any]]) -> list[str]:
    """Implementations that were not timed, and those without a CUDA graph, with the reasons."""
    absent: dict[str, int] = {}
    for row in rows:
        for name, reason in row["absent"].items():
            line = f"{name} left out: {reason}"
            absent[line] = absent.get(line, 0) + 1
        for name, times in row["times"].items():
            if times["graph_obstacle"] not in (None, "not asked for"):
                line = f"{name} of {row['operation']} {row['direction']} without a graph: {times['graph_obstacle']}"
                absent[line] = absent.get(line, 0) + 1
    return [f"{line} ({count} {'row' if count == 1 else 'rows'})" for line, count in absent.items()]


def _swept(row: dict[str, Any]) -> list[str]:
    if row["sweep"] is None:
        return []
    default, best, tried = (row["sweep"][key] for key in ("default", "best", "tried"))
    broken = sum("error" in one for one in tried)
    return [
        f"sweep {row['operation']} {row['direction']} {row['tokens']} × {row['hidden']} {row['dtype']}:"
        f" default {_tile(default)} {default['us']:.1f} µs, best {_tile(best)} {best['us']:.1f} µs"
        f" ({default['us'] / best['us']:.2f}×) of {len(tried)}" + (f", {broken} did not run" if broken else "")
    ]


def _tile(one: dict[str, Any]) -> str:
    tile = one["tile"]
    text = "{rows}×{width}, {num_warps} warps, {programs_per_multiprocessor} a multiprocessor".format(**tile)
    if tile.get("pieces", 1) > 1:
        text += ", {pieces} pieces, {num_stages} stages, registers: {max_registers}".format(**tile)
    return text
