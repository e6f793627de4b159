"""Data loading: tokens/s of our loader and of Hugging Face's collators, and what each order of rows reads.

Every setting takes its turn in each round, so that other work on the machine affects all of them; figures are medians
over rounds. With no worker or one, micro-batches are prepared on one core; the consumer does nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loader.contenders import HUGGING_FACE, MASKING, OURS, SHUFFLES, LoaderSetting, one_core_for_loading
from benchmarks.loader.locality import cold_cache_seconds, regions_read
from benchmarks.loader.made_up_rows import write_made_up_rows
from benchmarks.options import chosen, positive_integers
from bert_pld.config import DataConfig
from bert_pld.data.rows import ShardedRows, resolve_data_dir

EXAMPLE = "python -m benchmarks loader --data_dir shards/ --json loader.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subject's own options."""
    add = parser.add_argument
    add("--data_dir", type=Path, help="shards, or seq_<S> directories of them (default: random rows)")
    add("--rows", type=int, default=262_144, help="random rows of 128 tokens (default 262,144)")
    add("--seq_lengths", default="128,512", help="(default 128,512)")
    add("--micro_batch_sizes", default="32,256", help="sequences (default 32,256)")
    add("--workers", default="0,1,2", help="(default 0,1,2)")
    add("--masking", default=",".join(MASKING), help=f"list of {', '.join(MASKING)} (default all)")
    add("--shuffles", default=",".join(SHUFFLES), help=f"list of {', '.join(SHUFFLES)} (default all)")
    add("--contenders", default=f"{OURS},{HUGGING_FACE}", help=f"(default {OURS},{HUGGING_FACE})")
    add("--seconds", type=float, default=1.0, help="seconds of each turn (default 1)")
    add("--rounds", type=int, default=3, help="turns of each setting (default 3)")
    add("--cold_rows", type=int, default=65_536, help="rows to read without a page cache; 0: none")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every setting (`figures`), and every sequence length and order of rows (`orders`)."""
    names = chosen("--contenders", options.contenders, (OURS, HUGGING_FACE))
    masking = chosen("--masking", options.masking, MASKING)
    shuffles = chosen("--shuffles", options.shuffles, SHUFFLES)
    if not all(part.strip().isdecimal() for part in options.workers.split(",")):
        raise ValueError(f"--workers {options.workers}: must be numbers of processes joined by commas")
    workers = [int(part) for part in options.workers.split(",")]
    sizes = positive_integers("--micro_batch_sizes", options.micro_batch_sizes)
    if options.rounds < 1 or options.seconds <= 0 or options.rows < 1 or options.cold_rows < 0:
        raise ValueError("--rounds, --seconds, --rows: must be above 0, and --cold_rows at least 0")
    with tempfile.TemporaryDirectory(prefix="bench_loader_") as scratch:
        splits = _splits(options, Path(scratch))
        # Our setting takes its turn next to the same setting of the peer, whose masks are always dynamic.
        settings = [
            LoaderSetting(length, mask, count, size, name, shuffle)
            for length, mask, count, size, name in itertools.product(splits, masking, workers, sizes, names)
            for shuffle in (shuffles if name == OURS else ["global"])
            if name == OURS or mask != "static"
        ]
        rates: dict[LoaderSetting, list[float]] = {setting: [] for setting in settings}
        for _ in range(options.rounds):
            for setting in settings:
                rates[setting].append(_tokens_per_second(splits[setting.seq_length], setting, options.seconds))
        figures = [
            {**dataclasses.asdict(setting), "tokens_per_second": statistics.median(found), "rounds": found}
            for setting, found in rates.items()
        ]
        orders = [
            _order_figures(splits[length], shuffle, options.cold_rows)
            for length, shuffle in itertools.product(splits, shuffles)
        ]
        rows = {str(length): len(ShardedRows(directory, "train")) for length, directory in splits.items()}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "data_dir": None if options.data_dir is None else str(options.data_dir),
        "rows": rows,
        "figures": figures,
        "orders": orders,
    }


def _splits(options: argparse.Namespace, scratch: Path) -> dict[int, Path]:
    """The data directory of each sequence length."""
    splits = {}
    for length in positive_integers("--seq_lengths", options.seq_lengths):
        if options.data_dir is None:
            directory = write_made_up_rows(scratch / f"seq_{length}", max(1, options.rows * 128 // length), length)
        else:
            directory = resolve_data_dir(options.data_dir, length)
        # The directory may hold one length only, which can differ from the one asked for.
        splits[ShardedRows(directory, "train").attributes.seq_length] = directory
    return splits


def _tokens_per_second(directory: Path, setting: LoaderSetting, seconds: float) -> float:
    """Positions of the tensors, padding included, that a consumer gets per second after a warm-up."""
    rows = ShardedRows(directory, "train")  # opened here, so that nothing stays mapped afterwards
    with one_core_for_loading(setting.workers) as workers_started:
        batches = setting.batches(rows)
        next(batches)
        workers_started()
        _consume(batches, seconds / 3)
        positions, elapsed = _consume(batches, seconds)
        del batches
        gc.collect()  # stops the workers
    return positions / elapsed


def _consume(batches: Iterator[torch.Tensor], seconds: float) -> tuple[int, float]:
    positions, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        positions += next(batches).numel()
    return positions, elapsed


def _order_figures(directory: Path, shuffle: str, cold_rows: int) -> dict[str, Any]:
    rows = ShardedRows(directory, "train")
    figures = {
        "seq_length": rows.attributes.seq_length,
        "shuffle": shuffle,
        "regions": regions_read(rows, DataConfig(shuffle="blocks" if shuffle == "blocks" else "global")),
    }
    if cold_rows:
        figures["cold_cache"] = cold_cache_seconds(rows, shuffle, 256, min(cold_rows, len(rows)))
    return figures


def report(result: dict[str, Any]) -> str:
    """Format tokens/s of each setting, with the median of the rounds' ratios over Hugging Face, and the orders."""
    peers = {_kind(one): one["rounds"] for one in result["figures"] if one["contender"] == HUGGING_FACE}
    lines = [
        f"{result['cores']} cores, torch {result['torch']}, NumPy {result['numpy']}; 0 and 1 workers have one core",
        f"{'':14}{'masking':12}{'shuffle':9}{'S':>5}{'B':>5}{'workers':>9}{'M tokens/s':>12}{'× HF':>10}",
    ]
    for one in result["figures"]:
        ratio = ""
        if one["contender"] == OURS and _kind(one) in peers:
            ratios = [ours / peer for ours, peer in zip(one["rounds"], peers[_kind(one)], strict=True)]
            ratio = f"{statistics.median(ratios):10.1f}"
        lines.append(
            f"{one['contender']:14}{one['masking']:12}{one['shuffle']:9}{one['seq_length']:5}"
            f"{one['micro_batch_size']:5}{one['workers']:9}{one['tokens_per_second'] / 1e6:12.2f}{ratio}"
        )
    for one in result["orders"]:
        regions, cold = one["regions"], one.get("cold_cache")
        lines.append(
            f"S = {one['seq_length']}, {one['shuffle']}: of {regions['in_all']} regions of 1 MiB, 1,000 rows lie in"
            f" {regions['of_1000_rows']:.0f}, {regions['window_rows']} rows in {regions['of_a_window']}"
        )
        if cold:
            megabytes = cold["read_bytes"] / 1e6
            lines.append(f"    {cold['rows']} rows without a cache: {cold['seconds']:.2f} s, {megabytes:.0f} MB read")
    return "\n".join(lines)


def _kind(figure: dict[str, Any]) -> tuple[Any, ...]:
    """The key that a setting shares with its peer, whose masks are always dynamic."""
    masking = "dynamic" if figure["masking"] == "static" else figure["masking"]
    return figure["seq_length"], masking, figure["workers"], figure["micro_batch_size"]
