"""Joining the process group: this process's rank and the address of rank 0, from a launcher's or Slurm's variables."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, MutableMapping
from datetime import timedelta

import torch

_FIRST_PORT, _NUM_PORTS = 15_000, 15_000
"""Ports for Slurm jobs; below the range from which systems choose ports of outgoing connections."""


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
        torch.set_num_threads(cpu_threads(os.environ, len(os.sched_getaffinity(0))))
    limits = {} if timeout is None else {"timeout": timeout}
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False, **limits)
    return device


def describe_rank(environment: MutableMapping[str, str] | None = None) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT unless a launcher has set them.

    A task of `srun` gets them from Slurm's variables. Any other process, such as a shell or a batch script without
    `srun`, is a run of one rank. By default, `environment` is that of this process. A ValueError is raised if Slurm's
    variables name no host for rank 0.
    """
    environment = os.environ if environment is None else environment
    if "RANK" in environment:
        return
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        _describe_slurm_task(environment)
        return
    # Port 0 means any free port: no other process has to know it.
    environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


def cpu_threads(environment: Mapping[str, str], usable_cpus: int) -> int:
    """Return how many threads a rank on a CPU takes, given the number of CPUs on which this process may run.

    The ranks of a machine share its CPUs, unless Slurm has bound each task to CPUs of its own.
    """
    local_ranks = int(environment.get("LOCAL_SIZE", environment.get("LOCAL_WORLD_SIZE", "1")))
    ranks_are_tasks = environment.get("WORLD_SIZE") == environment.get("SLURM_STEP_NUM_TASKS")
    cpus_per_task = int(environment.get("SLURM_CPUS_PER_TASK", "0"))
    # A task that is not bound sees the CPUs of all tasks on its node; one that is bound to a socket, those of several.
    if ranks_are_tasks and usable_cpus < local_ranks * cpus_per_task:
        return min(usable_cpus, cpus_per_task)
    return max(1, usable_cpus // local_ranks)


def _describe_slurm_task(environment: MutableMapping[str, str]) -> None:
    local_rank = environment["SLURM_LOCALID"]
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if visible and "," not in visible:  # Slurm has bound one GPU to this task, which is its device 0.
        local_rank = "0"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    tasks_per_node, node = environment.get("SLURM_STEP_TASKS_PER_NODE", "1"), environment.get("SLURM_NODEID", "0")
    port = _FIRST_PORT + int(environment.get("SLURM_JOB_ID", "0")) % _NUM_PORTS
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
        LOCAL_RANK=local_rank,
        LOCAL_WORLD_SIZE=tasks_on_node(tasks_per_node, int(node)),
        MASTER_ADDR=environment.get("MASTER_ADDR") or first_host(nodes),
        MASTER_PORT=environment.get("MASTER_PORT") or str(port),
    )


def first_host(nodes: str) -> str:
    """Return the first host of a list in Slurm's format, such as `gpu[003-006,9],login1`.

    `scontrol show hostnames` is not used, because a task in a container usually has no Slurm commands.
    """
    found = re.match(r"([^\[,\s]+)(?:\[(\d+)[^\]]*\]([^,\s]*))?", nodes.strip())
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes!r}: no host found; set MASTER_ADDR to the host of rank 0")
    return "".join(part or "" for part in found.groups())


def tasks_on_node(tasks_per_node: str, node: int) -> str:
    """Return the number of tasks on the node with this index, from a list in Slurm's format, such as `8(x3),4`."""
    counts: list[str] = []
    for part in tasks_per_node.split(","):
        number, _, times = part.partition("(x")
        counts += [number] * int(times.rstrip(")") or 1)
    return counts[node] if node < len(counts) else "1"
