"""Which rank this process is: as a launcher said, as Slurm says, or the only one."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

_FIRST_PORT, _PORTS = 15_000, 15_000
"""For jobs of Slurm; below the ports that systems hand out to outgoing connections."""


def describe_rank(environment: MutableMapping[str, str] | None = None) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT where no launcher has.

    A task of `srun` takes them from Slurm's variables. Anything else (a shell, a batch script without `srun`) is a
    run of one rank.

    Args:
        environment: read and written; by default this process's.

    Raises:
        ValueError: Slurm's variables do not say where rank 0 is.
    """
    environment = os.environ if environment is None else environment
    if "RANK" in environment:
        return
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        _from_slurm(environment)
        return
    # Port 0: whichever is free when it is opened; nobody else has to know it.
    environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


def _from_slurm(environment: MutableMapping[str, str]) -> None:
    local_rank = environment["SLURM_LOCALID"]
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if visible and "," not in visible:  # Slurm has bound one GPU to this task, which sees it as the first
        local_rank = "0"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    address = environment.get("MASTER_ADDR") or first_host(nodes)
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=environment["SLURM_STEP_NUM_TASKS"],
        LOCAL_RANK=local_rank,
        LOCAL_WORLD_SIZE=tasks_on_node(
            environment.get("SLURM_STEP_TASKS_PER_NODE", "1"), int(environment.get("SLURM_NODEID", "0"))
        ),
        MASTER_ADDR=address,
        MASTER_PORT=environment.get("MASTER_PORT")
        or str(_FIRST_PORT + int(environment.get("SLURM_JOB_ID", "0")) % _PORTS),
    )


def first_host(nodes: str) -> str:
    """The first of a list of hosts as Slurm writes it, `gpu[003-006,9],login1`.

    Raises:
        ValueError: there is none.
    """
    found = re.match(r"([^\[,\s]+)(?:\[(\d+)[^\]]*\]([^,\s]*))?", nodes.strip())
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST: {nodes!r}; names no host to meet at; set MASTER_ADDR to rank 0's")
    return "".join(part or "" for part in found.groups())


def tasks_on_node(tasks_per_node: str, node: int) -> str:
    """Tasks on the node of this index, from what Slurm writes as `8(x3),4`."""
    counts: list[str] = []
    for part in tasks_per_node.split(","):
        number, _, times = part.partition("(x")
        counts += [number] * int(times.rstrip(")") or 1)
    return counts[node] if node < len(counts) else "1"
