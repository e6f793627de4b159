"""The watchdog on processes that do nothing else: the rank that is reported, and the exit code of each rank."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time

import pytest
import torch.distributed as dist
from repository import REPOSITORY, SUPPORT
from runs import clean_environment, free_port, run_captured

from bert_pld.cluster.coordinator import EXIT_LOST_RANK
from bert_pld.cluster.watchdog import Watchdog

RANKS = 3
STALL_S = 3.0


def _scenario(name, rank, watchdog):
    """What a rank does after the watchdog has started."""
    watchdog.progress("step 1, micro-batch 0")
    if name == "own_error" and rank == 2:
        raise ValueError("shard_00007: damaged")
    if name == "network" and rank == 2:
        raise dist.DistNetworkError("connection reset by peer")
    if name == "bug" and rank == 2:
        raise KeyError("x")
    if name.startswith("exit") or name == "same_error":
        # Only a rank that is connected can notice that rank 0 has ended, and an error of all is raised at one time.
        dist.barrier()
    if (name, rank) in (("exit", 2), ("exit_of_rank_0", 0)):
        os._exit(7)
    if name == "stall":
        if rank == 1:
            time.sleep(60)
        watchdog.progress("step 1, micro-batch 1")
    if name == "slow_phase":
        watchdog.progress("opening the data", may_take_long=rank == 1)
        if rank == 1:
            time.sleep(1.5 * STALL_S)
        watchdog.progress("step 1, loading data")
    if name == "same_error":
        raise ValueError("loss is not finite")
    dist.barrier()


def _serve():
    """Fork the ranks of every scenario from a process that has imported everything; print each one's exit code."""
    from bert_pld.cli import run_as_rank

    def main(options):
        rank = int(os.environ["RANK"])
        dist.init_process_group("gloo", rank=rank, world_size=RANKS)
        watchdog = Watchdog()
        timeout_s = 5 if name == "network" else 20
        watchdog.start(heartbeat_timeout_s=timeout_s, stall_timeout_s=STALL_S if name in ("stall", "slow_phase") else 0)
        with watchdog.reporting():
            _scenario(name, rank, watchdog)
        dist.destroy_process_group()
        watchdog.stop()
        return 0

    for name in SCENARIOS:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(RANKS))
        pids = {}
        for rank in range(RANKS):
            pid = os.fork()
            if not pid:
                os.environ["RANK"] = str(rank)
                os.dup2(os.open(f"{name}.{rank}", os.O_WRONLY | os.O_CREAT), 2)
                run_as_rank(main, argparse.ArgumentParser(), [])
            pids[pid] = rank
        codes = {pids[pid]: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in list(pids)}
        print(name, *(codes[rank] for rank in range(RANKS)), flush=True)


SCENARIOS = ("own_error", "network", "bug", "exit", "exit_of_rank_0", "stall", "slow_phase", "same_error")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Scenario → (exit code of each rank, what each wrote to stderr)."""
    folder = tmp_path_factory.mktemp("watchdog")
    environment = {**clean_environment(), "PYTHONPATH": f"{SUPPORT}:{REPOSITORY}"}
    done = run_captured([sys.executable, __file__], expect=None, env=environment, cwd=folder)
    lines = [line.split() for line in done.stdout.splitlines()]
    found = {name: [int(code) for code in codes] for name, *codes in lines}
    return {name: (found[name], [(folder / f"{name}.{rank}").read_text() for rank in range(RANKS)]) for name in found}


def errors(texts):
    return [line for text in texts for line in text.splitlines() if line.startswith("error: ")]


def test_error_of_one_rank_is_reported_once_and_ends_all_with_code_1(outcomes):
    codes, texts = outcomes["own_error"]
    assert codes == [1, 1, 1]
    [error] = errors(texts)
    assert re.fullmatch(r"error: rank 2 \(host .*, process \d+\) failed: shard_00007: damaged", error)
    assert "Traceback" not in "".join(texts)


def test_collective_that_fails_although_all_ranks_live_ends_them_with_the_code_of_a_lost_rank(outcomes):
    codes, texts = outcomes["network"]
    assert codes == [EXIT_LOST_RANK] * RANKS
    [error] = errors(texts)
    assert re.fullmatch(r"error: rank 2 \(.*\) failed: DistNetworkError: connection reset by peer", error)


def test_bug_on_one_rank_is_reported_with_its_traceback(outcomes):
    codes, texts = outcomes["bug"]
    assert codes == [1, 1, 1]
    [error] = errors(texts)
    assert re.fullmatch(r"error: rank 2 \(.*\) failed: KeyError: 'x'", error)
    assert ["Traceback" in text for text in texts] == [False, False, True]


def test_rank_that_exits_unexpectedly_is_reported(outcomes):
    codes, texts = outcomes["exit"]
    assert codes == [EXIT_LOST_RANK, EXIT_LOST_RANK, 7]
    [error] = errors(texts)
    assert re.match(r"error: rank 2 \(.*\) exited unexpectedly; its last reported position is ", error)


def test_loss_of_rank_0_is_reported_by_one_rank_of_its_host(outcomes):
    codes, texts = outcomes["exit_of_rank_0"]
    assert codes == [7, EXIT_LOST_RANK, EXIT_LOST_RANK]
    assert errors(texts) == errors(texts[1:2])
    [error] = errors(texts)
    assert re.match(r"error: rank 0 \(.*\) exited unexpectedly; the position of rank 1 is step 1, micro-batch 0", error)


def test_stalled_rank_is_reported_with_its_stack(outcomes):
    codes, texts = outcomes["stall"]
    assert codes == [EXIT_LOST_RANK] * RANKS
    [error] = errors(texts)
    expected = rf"error: no progress for {STALL_S:g} s: rank 1 \(.*\) is at step 1, micro-batch 0, others at"
    assert re.match(expected, error)
    assert "time.sleep(60)" in texts[1]
    assert "rank 1" in texts[1]
    assert "time.sleep" not in texts[0] + texts[2]


def test_phase_that_may_take_long_is_not_a_stall(outcomes):
    assert outcomes["slow_phase"] == ([0] * RANKS, [""] * RANKS)


def test_error_of_all_ranks_is_printed_by_rank_0_only(outcomes):
    codes, texts = outcomes["same_error"]
    assert codes == [1, 1, 1]
    assert errors(texts) == errors(texts[:1]) == ["error: loss is not finite"]


if __name__ == "__main__":
    _serve()
