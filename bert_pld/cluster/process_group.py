"""Joining the process group of a run's ranks."""

from __future__ import annotations

import logging
import os
from datetime import timedelta

import torch

from bert_pld.cluster.rendezvous import describe_rank


def join_process_group(timeout: timedelta | None = None) -> torch.device:
    """Join the ranks that a launcher or Slurm started, or form a group of one; return this rank's device.

    A collective may wait for `timeout`, or by default for DeepSpeed's timeout.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # Once more: DeepSpeed sets the level of its own logger when it is imported.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    describe_rank()
    device = torch.device(get_accelerator().device_name(int(os.environ["LOCAL_RANK"])))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # Gloo works on a CPU without it; DeepSpeed would compile its shared-memory collectives first, for a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        local_ranks = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    limits = {} if timeout is None else {"timeout": timeout}
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False, **limits)
    return device
