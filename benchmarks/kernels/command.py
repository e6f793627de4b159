"""Fused kernels: bandwidth of each, forward and backward, beside a copy's and beside peers.

All figures are of one run and all contenders take turns on the same random inputs, many sets of them so that none is
found in the cache. Bytes are the fewest the operation must move; a row below the target share of what a large copy on
the device reaches is marked. Each kernel is first compared with its specification in fp64. On a CPU, where kernels are
only interpreted, peers alone are timed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from typing import Any

import torch

from benchmarks.kernels.cases import DROPOUT, OPERATIONS
from benchmarks.kernels.contenders import PEERS
from benchmarks.kernels.device_timing import copy_bandwidth, own_stream
from benchmarks.kernels.operation import DTYPES, Size
from benchmarks.kernels.report import table
from benchmarks.kernels.rows import Conditions, failed_row, measure_rows
from benchmarks.options import chosen, positive_integers

EXAMPLE = "python -m benchmarks kernels --tokens 8192,32768 --json kernels.json"
TARGET_SHARE = 0.85
_DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {"tokens": "8192,32768", "hidden": "768,1024", "dtypes": "bf16", "peers": ",".join(PEERS), "rounds": 20},
    "cpu": {"tokens": "512", "hidden": "768", "dtypes": "fp32", "peers": "eager", "rounds": 5},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's own options."""
    gpu, cpu = _DEFAULTS["cuda"], _DEFAULTS["cpu"]

    def add(option: str, what: str) -> None:
        parser.add_argument(f"--{option}", help=f"{what} (default {gpu[option]}; on a CPU {cpu[option]})")

    add("tokens", "rows of the stream, multiples of --seq_length")
    add("hidden", "widths")
    add("dtypes", f"of {', '.join(DTYPES)}")
    add("peers", f"of {', '.join(PEERS)}, or none")
    parser.add_argument("--rounds", type=int, help=f"turns (default {gpu['rounds']}; on a CPU {cpu['rounds']})")
    parser.add_argument("--operations", default=",".join(OPERATIONS), help=f"of {', '.join(OPERATIONS)} (default all)")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens a sequence (default 128)")
    parser.add_argument("--vocab_size", type=int, default=30528, help="of cross entropy (default 30528)")
    parser.add_argument("--no_graphs", action="store_true", help="launch each call instead of replaying a CUDA graph")
    parser.add_argument("--sweep", action="store_true", help="time each kernel with other tiles too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all operations at all sizes.

    Returns:
        JSON-ready: the device, versions and conditions, `copy_gb_s` (before and after all rows), one entry of `rows`
        for each operation, direction and size, and `failed`, the rows whose kernel is wrong or did not run.

    Raises:
        ValueError: an unknown name, or sizes that do not fit.
    """
    device = torch.device(options.device)
    if device.type not in _DEFAULTS:
        raise ValueError(f"--device {options.device}: must be cuda or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: there is no GPU here")
    default = _DEFAULTS[device.type]
    given = {
        key: getattr(options, key) if getattr(options, key) is not None else value for key, value in default.items()
    }
    for key, value in (("rounds", given["rounds"]), *((k, getattr(options, k)) for k in ("seq_length", "vocab_size"))):
        if value < 1:
            raise ValueError(f"--{key} {value}: must be at least 1")
    sizes = _sizes(given, options.seq_length, options.vocab_size)
    names = chosen("--operations", options.operations, tuple(OPERATIONS))
    peers = [] if given["peers"] == "none" else chosen("--peers", given["peers"], PEERS)
    conditions = Conditions(peers, given["rounds"], graphs=not options.no_graphs, sweep=options.sweep)

    rows: list[dict[str, Any]] = []
    with own_stream(device):
        copies = [copy_bandwidth(device, conditions.rounds)]
        for size in sizes:
            for name in names:
                print(f"{name}, {size.tokens} × {size.hidden}, {size.dtype} …", file=sys.stderr, flush=True)
                try:
                    rows += measure_rows(OPERATIONS[name](size, device), conditions)
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                except Exception as error:  # The others are still printed, and the command exits with 1.
                    rows.append(failed_row(name, size, error))
        with contextlib.suppress(RuntimeError):  # A kernel that failed may have taken the device with it.
            copies.append(copy_bandwidth(device, conditions.rounds))
    _judge(rows, max(copies))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "l2_bytes": torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "copy_gb_s": copies,
        "target_share": TARGET_SHARE,
        "dropout": DROPOUT,
        "rounds": conditions.rounds,
        "graphs": conditions.graphs and device.type == "cuda",
        "peers": peers,
        "rows": rows,
        "failed": [f"{row['operation']} {row['direction']}: {row['failed']}" for row in rows if row["failed"]],
    }


def report(result: dict[str, Any]) -> str:
    """The figures as a table."""
    return table(result)


def _sizes(given: dict[str, Any], seq_length: int, vocabulary: int) -> list[Size]:
    tokens = positive_integers("--tokens", given["tokens"])
    if uneven := [count for count in tokens if count % seq_length]:
        raise ValueError(f"--tokens {uneven[0]}: must be a multiple of --seq_length {seq_length}")
    return [
        Size(count, hidden, dtype, seq_length, vocabulary)
        for dtype in chosen("--dtypes", given["dtypes"], tuple(DTYPES))
        for hidden in positive_integers("--hidden", given["hidden"])
        for count in tokens
    ]


def _judge(rows: list[dict[str, Any]], copy_gb_s: float) -> None:
    """Give every time its share of the copy's bandwidth, and every kernel that ran a verdict."""
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
