"""A run that is killed at random times, half of them during the writing of a checkpoint, loses only time.

`BERT_PLD_KILLS` sets the number of kills (default 12; 50 take two and a half minutes).
"""

from __future__ import annotations

import os
import random
import re
import signal
import time

from runs import forked_runs, pretrain_command, read_metrics, small_config

from bert_pld.checkpoint.format import PARTIAL, fault, list_checkpoints

KILLS = int(os.environ.get("BERT_PLD_KILLS", "12"))
STEPS = 8 * KILLS
ENDLESS = 1_000_000


def command(corpus, run_dir, steps):
    pld, sizes = {"temporal": "exponential", "gamma": 0.02}, {"hidden_size": 64, "intermediate_size": 256}
    config = small_config(progressive_layer_drop=pld, model=sizes)
    config["training"].update(max_steps=steps, checkpoint_interval=2, eval_interval=0, keep_checkpoints=2)
    return pretrain_command(config, corpus, run_dir)


def is_writing(checkpoints):
    return any(checkpoints.glob(f".step*{PARTIAL}"))


def newest_step(checkpoints):
    found = list_checkpoints(checkpoints)
    return int(found[0].name.split("_")[1]) if found else 0


def test_run_killed_at_any_time_resumes_bitwise_from_a_complete_checkpoint(corpus, tmp_path):
    runs = forked_runs()
    log = tmp_path / "uninterrupted.log"
    assert runs.wait(runs.start(command(corpus, tmp_path / "uninterrupted", STEPS), log, log)) == 0, log.read_text()

    rng = random.Random(0)
    run_dir, while_writing = tmp_path / "killed", 0
    checkpoints = run_dir / "checkpoints"
    for kill in range(KILLS):
        log, before = tmp_path / f"{kill}.log", newest_step(checkpoints)
        pid = runs.start(command(corpus, run_dir, ENDLESS), log, log)
        deadline = time.monotonic() + 240
        if kill % 2 == 0:
            while newest_step(checkpoints) == before and time.monotonic() < deadline:
                time.sleep(0.002)
            while time.monotonic() < deadline:
                while not is_writing(checkpoints) and time.monotonic() < deadline:
                    pass
                time.sleep(rng.choice([0.0, rng.uniform(0.0, 0.003)]))
                os.kill(pid, signal.SIGSTOP)  # It must still be writing when it is killed.
                if is_writing(checkpoints):
                    break
                os.kill(pid, signal.SIGCONT)
        else:
            until, share = time.monotonic() + rng.uniform(0.1, 1.2), STEPS * (kill + 1) // (KILLS + 1)
            # On a fast machine too, most of the kills come within the steps that are compared.
            while time.monotonic() < until and newest_step(checkpoints) < share:
                time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        assert runs.wait(pid) == -signal.SIGKILL, log.read_text()
        while_writing += is_writing(checkpoints)

        assert newest_step(checkpoints) >= before
        assert all(fault(checkpoint) is None for checkpoint in list_checkpoints(checkpoints))
        resumed = re.search(r"resuming after step (\d+)", log.read_text())
        assert resumed is None or int(resumed[1]) == before
    print(f"{KILLS} kills, {while_writing} of them while a checkpoint was being written")
    assert while_writing >= 0.4 * KILLS

    log, last = tmp_path / "last.log", max(STEPS, newest_step(checkpoints) + 2)
    assert runs.wait(runs.start(command(corpus, run_dir, last), log, log)) == 0, log.read_text()
    assert read_metrics(run_dir)[:STEPS] == read_metrics(tmp_path / "uninterrupted")
    assert len(read_metrics(run_dir)) == last
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["latest", f"step_{last - 2:08d}", f"step_{last:08d}"]
