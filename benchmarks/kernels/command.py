"""Fused kernels: bandwidth of each, forward and backward, against a copy and other implementations.

All implementations take turns in one run on the same random inputs; there are many sets of inputs, so that none is in
the cache. Bytes are the fewest that the operation must move. Rows below the target share of a large copy's bandwidth
are marked. Each kernel is first checked against its specification in fp64. On a CPU, where kernels are only
interpreted, only peers are timed. `--json` is rewritten after each operation.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from typing import Any

import torch

from benchmarks.kernels.cases import DROPOUT, OPERATIONS
from benchmarks.kernels.device_timing import TimingOptions, copy_bandwidth, own_stream
from benchmarks.kernels.implementations import PEERS
from benchmarks.kernels.operation import Size
from benchmarks.kernels.report import report
from benchmarks.kernels.rows import failed_row, measure_rows
from benchmarks.machine import describe_device
from benchmarks.options import DTYPES, chosen, positive_integers, present_device
from benchmarks.results import save
from bert_pld.cli import require_positive

__all__ = ["EXAMPLE", "add_arguments", "measure", "report"]
EXAMPLE = "python -m benchmarks kernels --tokens 8192,32768 --json kernels.json"
TARGET_SHARE = 0.85
_DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {"tokens": "8192,32768", "hidden": "768,1024", "dtypes": "bf16", "peers": ",".join(PEERS), "rounds": 20},
    "cpu": {"tokens": "512", "hidden": "768", "dtypes": "fp32", "peers": "eager", "rounds": 5},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    gpu, cpu = _DEFAULTS["cuda"], _DEFAULTS["cpu"]

    def add(option: str, what: str) -> None:
        parser.add_argument(f"--{option}", help=f"{what} (default {gpu[option]}; on a CPU {cpu[option]})")

    add("tokens", "numbers of tokens, multiples of --seq_length")
    add("hidden", "hidden sizes")
    add("dtypes", f"list of {', '.join(DTYPES)}")
    add("peers", f"list of {', '.join(PEERS)}, or none")
    parser.add_argument("--rounds", type=int, help=f"turns (default {gpu['rounds']}; on a CPU {cpu['rounds']})")
    operations = f"list of {', '.join(OPERATIONS)} (default all)"
    parser.add_argument("--operations", default=",".join(OPERATIONS), help=operations)
    parser.add_argument("--seq_length", type=int, default=128, help="tokens a sequence (default 128)")
    parser.add_argument("--vocab_size", type=int, default=30528, help="vocabulary of cross entropy (default 30528)")
    parser.add_argument("--no_graphs", action="store_true", help="launch each call instead of replaying a CUDA graph")
    parser.add_argument("--sweep", action="store_true", help="time each kernel with other tiles too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all operations at all sizes; return a row for each operation, direction and size.

    `copy_gb_s` was measured before and after all rows; `failed` names the rows whose kernel is wrong or did not run.
    """
    device = present_device(options.device)
    for key, value in _DEFAULTS[device.type].items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    require_positive(options, "rounds", "seq_length", "vocab_size")
    sizes = _sizes(options)
    names = chosen("--operations", options.operations, tuple(OPERATIONS))
    peers = [] if options.peers == "none" else chosen("--peers", options.peers, PEERS)
    timing = TimingOptions(options.rounds, graphs=not options.no_graphs)

    rows: list[dict[str, Any]] = []
    with own_stream(device):
        copies = [copy_bandwidth(device, timing.rounds)]

        def result() -> dict[str, Any]:
            compare_with_copy(rows, max(copies))
            failed = [f"{row['operation']} {row['direction']}: {row['failed']}" for row in rows if row["failed"]]
            conditions = _conditions(device, timing)
            return {**conditions, "copy_gb_s": copies, "peers": peers, "rows": rows, "failed": failed}

        for size in sizes:
            for name in names:
                print(f"{name}, {size.tokens} × {size.hidden}, {size.dtype} …", file=sys.stderr, flush=True)
                try:
                    rows += measure_rows(OPERATIONS[name](size, device), peers, timing, options.sweep)
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                except Exception as error:  # The others are still printed, and the command exits with 1.
                    rows.append(failed_row(name, size, error))
                save(result(), options.json)
        with contextlib.suppress(RuntimeError):  # A kernel that failed may have broken the CUDA context.
            copies.append(copy_bandwidth(device, timing.rounds))
        return result()


def _conditions(device: torch.device, timing: TimingOptions) -> dict[str, Any]:
    return {
        **describe_device(device),
        "l2_bytes": torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else None,
        "triton": _triton_version(),
        "target_share": TARGET_SHARE,
        "dropout": DROPOUT,
        "rounds": timing.rounds,
        "graphs": timing.graphs and device.type == "cuda",
    }


def _sizes(options: argparse.Namespace) -> list[Size]:
    tokens = positive_integers("--tokens", options.tokens)
    if uneven := [count for count in tokens if count % options.seq_length]:
        raise ValueError(f"--tokens {uneven[0]}: must be a multiple of --seq_length {options.seq_length}")
    return [
        Size(count, hidden, dtype, options.seq_length, options.vocab_size)
        for dtype in chosen("--dtypes", options.dtypes, tuple(DTYPES))
        for hidden in positive_integers("--hidden", options.hidden)
        for count in tokens
    ]


def compare_with_copy(rows: list[dict[str, Any]], copy_gb_s: float) -> None:
    """Add each time's share of the copy's bandwidth, and whether the kernel is below the target."""
    for row in rows:
        for times in row["times"].values():
            times["share_of_copy"] = times["gb_s"] / copy_gb_s
        ours = row["times"].get("triton")
        row["below_target"] = None if ours is None else ours["share_of_copy"] < TARGET_SHARE


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return str(triton.__version__)
