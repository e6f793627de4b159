"""What an order of rows asks of a file system: the regions it touches, and its time without a cache."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from benchmarks.loader.contenders import our_batches
from bert_pld.config import DataConfig
from bert_pld.data.block_order import sample_order
from bert_pld.data.rows import ShardedRows

REGION_BYTES = 1 << 20
_ROWS = 1000


def regions_touched(rows: ShardedRows, data: DataConfig) -> dict[str, float]:
    """Regions of 1 MiB of the token ids that rows next to each other in the order lie in.

    Returns:
        `of_1000_rows`, the mean over ten places of an epoch; `of_a_window`, of `window_rows` rows; and `in_all`.
    """
    order = sample_order(data, len(rows), seed=0)
    row_bytes = rows.attributes.seq_length * np.dtype(rows.attributes.token_dtype).itemsize
    window = min(data.shuffle_block_rows * data.shuffle_window_blocks, len(rows))

    def touched(first: int, count: int) -> int:
        return len(np.unique(order.rows_at(np.arange(first, first + count))[0] * row_bytes // REGION_BYTES))

    count = min(_ROWS, len(rows))
    return {
        "of_1000_rows": float(np.mean([touched(place * (len(rows) - count) // 9, count) for place in range(10)])),
        "of_a_window": touched(0, window),
        "window_rows": window,
        "in_all": -(-len(rows) * row_bytes // REGION_BYTES),
    }


def cold_cache_seconds(rows: ShardedRows, shuffle: str, micro_batch_size: int, num_rows: int) -> dict[str, Any]:
    """Seconds until our loader, without workers, has read `num_rows` rows of shards that no cache holds.

    No process may have the shards mapped: the system keeps what is mapped.

    Returns:
        `seconds`, and `read_bytes`: what the storage delivered meanwhile, as Linux counts it for this process.
    """
    for record in rows.records:
        descriptor = os.open(rows.data_dir / record.file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    before, started = _read_bytes(), time.perf_counter()
    batches = our_batches(rows, "dynamic", shuffle, 0, micro_batch_size)
    seen = 0
    while seen < num_rows:
        seen += next(batches).shape[0]
    return {"seconds": time.perf_counter() - started, "read_bytes": _read_bytes() - before, "rows": seen}


def _read_bytes() -> int:
    with open("/proc/self/io", encoding="ascii") as counters:
        return next(int(line.split()[1]) for line in counters if line.startswith("read_bytes"))
