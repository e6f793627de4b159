"""Locality of an order of rows: file regions that it reads, and its time without a page cache."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from benchmarks.loader.contenders import OURS, LoaderSetting, our_batches
from bert_pld.config import DataConfig
from bert_pld.data.block_order import sample_order
from bert_pld.data.rows import ShardedRows

REGION_BYTES = 1 << 20
_ROWS = 1000


def regions_read(rows: ShardedRows, data: DataConfig) -> dict[str, float]:
    """Number of 1 MiB regions of the token ids that hold rows which are consecutive in the order.

    `of_1000_rows` is the mean over ten places of an epoch; `of_a_window` is for `window_rows` rows.
    """
    order = sample_order(data, len(rows), seed=0)
    row_bytes = rows.attributes.seq_length * np.dtype(rows.attributes.token_dtype).itemsize
    window = min(data.shuffle_block_rows * data.shuffle_window_blocks, len(rows))

    def regions(first: int, count: int) -> int:
        return len(np.unique(order.rows_at(np.arange(first, first + count))[0] * row_bytes // REGION_BYTES))

    count = min(_ROWS, len(rows))
    return {
        "of_1000_rows": float(np.mean([regions(place * (len(rows) - count) // 9, count) for place in range(10)])),
        "of_a_window": regions(0, window),
        "window_rows": window,
        "in_all": -(-len(rows) * row_bytes // REGION_BYTES),
    }


def cold_cache_seconds(rows: ShardedRows, shuffle: str, micro_batch_size: int, num_rows: int) -> dict[str, Any]:
    """Time our loader, without workers, on `num_rows` rows of shards that are not in the page cache.

    No process may have the shards mapped, because Linux does not drop mapped pages. `read_bytes` is what the storage
    delivered to this process.
    """
    for record in rows.records:
        descriptor = os.open(rows.data_dir / record.file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    before, started = _read_bytes(), time.perf_counter()
    setting = LoaderSetting(rows.attributes.seq_length, "dynamic", 0, micro_batch_size, OURS, shuffle)
    batches = our_batches(rows, setting)
    seen = 0
    while seen < num_rows:
        seen += next(batches).shape[0]
    return {"seconds": time.perf_counter() - started, "read_bytes": _read_bytes() - before, "rows": seen}


def _read_bytes() -> int:
    with open("/proc/self/io", encoding="ascii") as counters:
        return next(int(line.split()[1]) for line in counters if line.startswith("read_bytes"))
