"""The rank of a process, from the variables of launchers and Slurm."""

from __future__ import annotations

import pytest

from bert_pld.cluster.process_group import cpu_threads, describe_rank, first_host, tasks_on_node

TASK = {"SLURM_JOB_ID": "40123", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "12"}
TASK |= {"SLURM_STEP_NUM_TASKS": "12", "SLURM_STEP_NODELIST": "gpu[003-004]", "SLURM_STEP_TASKS_PER_NODE": "8,4"}
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def described(**variables):
    environment = {name: value for name, value in variables.items() if value is not None}
    describe_rank(environment)
    return environment


def test_task_of_srun_is_a_rank():
    found = described(**TASK)
    assert [found[name] for name in RANK_VARIABLES] == ["9", "12", "1", "4", "gpu003", str(15_000 + 40123 % 15_000)]


def test_address_and_port_of_the_batch_script_have_precedence():
    found = described(**TASK, MASTER_ADDR="10.0.0.3", MASTER_PORT="2222")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.3", "2222")


def test_task_that_slurm_bound_to_one_gpu_uses_device_0():
    assert described(**TASK, CUDA_VISIBLE_DEVICES="5")["LOCAL_RANK"] == "0"
    assert described(**TASK, CUDA_VISIBLE_DEVICES="0,1,2,3")["LOCAL_RANK"] == "1"


def test_variables_of_a_launcher_are_not_changed():
    launched = {**TASK, "RANK": "3", "WORLD_SIZE": "4"}
    assert described(**launched) == launched


@pytest.mark.parametrize(
    "variables",
    [{}, {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, {**TASK, "SLURM_STEP_NUM_TASKS": "1"}],
)
def test_shell_batch_script_and_single_task_are_runs_of_one_rank(variables):
    found = described(**variables)
    assert [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")] == ["0", "1", "0", "127.0.0.1"]


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        *(("node1", "node1"), ("n1.site.org", "n1.site.org"), ("a1,a2", "a1")),
        *(("node[1-2]", "node1"), ("gpu[003,007-009],cpu1", "gpu003"), ("rack[1-4]-gpu,x", "rack1-gpu")),
    ],
)
def test_first_host_of_a_list(nodes, host):
    assert first_host(nodes) == host


def test_empty_host_list_is_an_error():
    with pytest.raises(ValueError, match="no host found; set MASTER_ADDR"):
        first_host("")


def test_tasks_on_each_node():
    assert [tasks_on_node("8(x2),4", node) for node in range(3)] == ["8", "8", "4"]


@pytest.mark.parametrize(
    ("usable_cpus", "variables", "threads"),
    [
        (8, {"SLURM_CPUS_PER_TASK": "8"}, 8),  # bound to its own CPUs
        (4, {"SLURM_CPUS_PER_TASK": "3"}, 3),  # bound to whole cores of two hardware threads
        (16, {"SLURM_CPUS_PER_TASK": "8"}, 8),  # bound to a socket, which two tasks share
        (32, {"SLURM_CPUS_PER_TASK": "8"}, 8),  # not bound: the CPUs of all four tasks of the node
        (64, {"SLURM_CPUS_PER_TASK": "8"}, 16),  # not bound: all CPUs of the node
        (2, {}, 1),
        # A launcher in one task, whose ranks share the task's CPUs.
        (8, {"SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_NUM_TASKS": "1", "RANK": "1", "WORLD_SIZE": "4"}, 2),
    ],
)
def test_ranks_share_the_cpus_that_slurm_has_not_divided(usable_cpus, variables, threads):
    task = {**TASK, "LOCAL_WORLD_SIZE": "4", **variables}
    assert cpu_threads(described(**task), usable_cpus) == threads


def test_ranks_of_a_launcher_share_the_machine():
    assert cpu_threads({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 8) == 2
    assert cpu_threads({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_SIZE": "4"}, 2) == 1
