"""Batch sizes of a run: train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps × ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bert_pld.config.deepspeed import AUTO, BATCH_KEYS, whole
from bert_pld.config.errors import ConfigError


def resolve_batch_sizes(
    deepspeed: Mapping[str, Any], world_size: int, max_micro_batch_size: int | None = None
) -> tuple[int, int, int]:
    """Return train_batch_size and the micro-batch size of a rank, in sequences, and the accumulation steps.

    `max_micro_batch_size` has an effect only if train_batch_size is the only number among DeepSpeed's keys: then the
    micro-batch is the largest divisor of a rank's share up to it. A ConfigError is raised if too few keys are given, if
    their product is not train_batch_size, or if no divisor comes near the maximum.
    """
    given = {key: deepspeed.get(key) for key in BATCH_KEYS}
    automatic = AUTO in given.values()
    given = {key: None if value == AUTO else value for key, value in given.items()}
    for key, value in given.items():
        if value is not None and (whole(value) or 0) < 1:
            raise ConfigError(f"{key}: {value!r}; must be an integer >= 1")
    total, micro, accumulation = (whole(given[key]) for key in BATCH_KEYS)
    if total is None and micro is None:
        raise ConfigError(
            f"train_batch_size or train_micro_batch_size_per_gpu: {'auto' if automatic else 'missing'}; give at least"
            " one, such as --set train_micro_batch_size_per_gpu=32"
        )
    if micro is None and accumulation is None and max_micro_batch_size and total and total % world_size == 0:
        micro = _largest_divisor(total, world_size, max_micro_batch_size)
    if micro is None:
        assert total is not None
        micro, rest = divmod(total, (accumulation or 1) * world_size)
        accumulation = accumulation or 1
    elif accumulation is None:
        accumulation, rest = divmod(total, micro * world_size) if total is not None else (1, 0)
    else:
        rest = 0
    product = micro * accumulation * world_size
    total = product if total is None else total
    if rest or product != total or not product:
        raise ConfigError(
            f"train_batch_size: {total}; must be train_micro_batch_size_per_gpu ({given[BATCH_KEYS[1]] or 'free'})"
            f" × gradient_accumulation_steps ({given[BATCH_KEYS[2]] or 'free'}) × {world_size} rank(s)"
        )
    return total, micro, accumulation


def _largest_divisor(total: int, world_size: int, most: int) -> int:
    """Return the largest divisor of a rank's share of the batch that is at most `most`.

    A divisor below half of `most` would waste the device that the maximum was chosen for, so it is an error.
    """
    share = total // world_size
    micro = next(size for size in range(min(most, share), 0, -1) if share % size == 0)
    if micro < share and 2 * micro < most:
        raise ConfigError(
            f"train_batch_size: {total}; on {world_size} rank(s), the largest micro-batch up to"
            f" training.max_micro_batch_size ({most}) that divides it is {micro}; use a multiple of"
            f" {most * world_size}, or give train_micro_batch_size_per_gpu"
        )
    return micro
