"""The status command reads a run's progress from its folder, without torch, in whatever state the folder is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from repository import REPOSITORY
from runs import run_captured

from bert_pld import status
from bert_pld.cluster.run_lock import RunLock
from bert_pld.files import RUN_LOCK
from bert_pld.status import read_progress

NOW = 1_700_000_000.0


def record(step):
    fixed = {"theta": 0.75, "kept_blocks": 2.5, "tokens_per_s": 1234.0}
    return {"step": step, "seconds": 0.5 * step, "loss": 6.0 - step / 100, **fixed}


def write_run(run_dir, steps=(10, 20, 30), max_steps=100, checkpoints=(), evaluations=(), incomplete=""):
    """Write the folder of a run that started 1,000 s before NOW: a step takes 0.5 s, or 2 s with pauses."""
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps({"training": {"max_steps": max_steps}, "model": {"num_layers": 3}}))
    os.utime(run_dir / "config.json", (NOW - 1000, NOW - 1000))
    records = [record(step) for step in steps]
    records += [{"step": step, "seconds": 1.0, "eval_mlm_loss": 5.5} for step in evaluations]
    text = "".join(json.dumps(one) + "\n" for one in sorted(records, key=lambda one: one["step"]))
    (run_dir / "metrics.jsonl").write_text(text + incomplete)
    os.utime(run_dir / "metrics.jsonl", (NOW - 1000 + 2 * max(steps, default=0),) * 2)
    for step in checkpoints:
        folder = run_dir / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        os.utime(folder / "state.json", (NOW - 1000 + 2 * step,) * 2)
    return run_dir


def test_line_of_a_stopped_run(tmp_path):
    run_dir = write_run(tmp_path / "a", checkpoints=(10, 20), evaluations=(20,))
    progress = read_progress(run_dir, NOW)
    assert (progress.state, progress.since_s, progress.step, progress.max_steps) == ("stopped", 940.0, 30, 100)
    assert (progress.loss, progress.eval_mlm_loss, progress.eval_step) == (5.7, 5.5, 20)
    assert (progress.checkpoint_step, progress.checkpoint_age_s) == (20, 960.0)
    assert status.progress_line(progress) == (
        f"{run_dir}: stopped 16 min ago  step 30/100  loss 5.7000  held-out 5.5000 (step 20)  θ 0.750  kept 2.50/3"
        "  1,234 tokens/s  2 min left  checkpoint 20 (16 min old)"
    )


def test_run_that_a_signal_stopped_between_two_records_is_at_its_checkpoint_s_step(tmp_path):
    progress = read_progress(write_run(tmp_path / "a", checkpoints=(20, 37)), NOW)
    assert (progress.state, progress.step, progress.checkpoint_step) == ("stopped", 37, 37)
    assert progress.seconds_left == pytest.approx(63 * progress.seconds_per_step)


@pytest.mark.parametrize(
    ("checkpoints", "seconds_left", "with_pauses"), [((), 35.0, False), ((10,), 140.0, True), ((10, 20), 140.0, True)]
)
def test_time_left_includes_pauses_once_a_checkpoint_exists(tmp_path, checkpoints, seconds_left, with_pauses):
    progress = read_progress(write_run(tmp_path / "a", checkpoints=checkpoints), NOW)
    assert progress.seconds_left == pytest.approx(seconds_left)
    assert progress.seconds_per_step_includes_pauses is with_pauses


def test_checkpoints_from_before_a_restart_do_not_count_for_the_speed(tmp_path):
    run_dir = write_run(tmp_path / "a", checkpoints=(10, 20))
    os.utime(run_dir / "config.json", (NOW - 950, NOW - 950))
    progress = read_progress(run_dir, NOW)
    assert (progress.seconds_left, progress.seconds_per_step_includes_pauses) == (35.0, False)


def test_incomplete_last_line_is_ignored_and_a_damaged_one_is_named(tmp_path):
    assert read_progress(write_run(tmp_path / "a", incomplete='{"step": 40, "lo'), NOW).step == 30
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 4: not a line of metrics \('\{\"step\"'\)"):
        read_progress(write_run(tmp_path / "b", incomplete='{"step"\n'), NOW)


def test_records_without_seconds_have_no_speed(tmp_path):
    lines = [{"step": 5}, {"step": 6, "seconds": None}, {"step": 7, "seconds": 3.5}]
    for count, speed in ((1, None), (2, None), (3, 0.5)):
        run_dir = write_run(tmp_path / str(count), steps=())
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
        progress = read_progress(run_dir, NOW)
        assert (progress.step, progress.seconds_per_step) == (4 + count, speed)


def test_last_evaluation_is_found_far_from_the_end(tmp_path):
    run_dir = write_run(tmp_path / "a", steps=range(1, 61), evaluations=(7,))
    assert read_progress(run_dir, NOW).eval_step == 7


def test_state_is_read_from_the_lock(tmp_path):
    run_dir = write_run(tmp_path / "a")
    other = json.dumps({"machine": "another boot", "host": "n7", "beat": 3})
    cases = [(60, other, ("running", "n7")), (600, other, ("killed", "n7")), (5, "", ("stopped", None))]
    for age, content, expected in cases:
        (run_dir / RUN_LOCK).write_text(content)
        os.utime(run_dir / RUN_LOCK, (NOW - age, NOW - age))
        progress = read_progress(run_dir, NOW)
        assert (progress.state, progress.host) == expected


def test_run_is_finished_once_its_last_step_has_a_checkpoint(tmp_path):
    assert read_progress(write_run(tmp_path / "a", steps=(50, 100)), NOW).state == "stopped"
    assert read_progress(write_run(tmp_path / "b", steps=(50, 100), checkpoints=(50,)), NOW).state == "stopped"
    assert read_progress(write_run(tmp_path / "c", steps=(50, 100), checkpoints=(100,)), NOW).state == "finished"


@pytest.mark.parametrize("steps", [(10, 20), (50, 100)])
def test_run_whose_loss_was_not_finite_has_diverged(tmp_path, steps):
    run_dir = write_run(tmp_path / "a", steps=steps, checkpoints=(10,))
    (run_dir / "diverged.json").write_text(json.dumps({"step": steps[-1], "rank": 0}))
    assert read_progress(run_dir, NOW).state == "diverged"


def test_lock_held_by_a_live_process_means_running_and_by_a_killed_one_does_not(tmp_path):
    run_dir = write_run(tmp_path / "a", steps=(100,), checkpoints=(100,))
    hold = f"from bert_pld.cluster.run_lock import *; RunLock(Path({str(run_dir)!r})).acquire(); print(1, flush=True)"
    command, pipes = [sys.executable, "-c", f"{hold}; input()"], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as holder:
        try:
            assert holder.stdout.readline() == b"1\n"
            os.utime(run_dir / RUN_LOCK, (1.0, 1.0))  # the kernel's lock counts, not the age of the file
            assert read_progress(run_dir, NOW).state == "running"
        finally:
            holder.kill()
    assert read_progress(run_dir, NOW).state == "finished"
    write_run(tmp_path / "b")
    (run_dir / RUN_LOCK).rename(tmp_path / "b" / RUN_LOCK)
    assert read_progress(tmp_path / "b").state == "killed"
    lock = RunLock(tmp_path / "b")
    lock.acquire()  # reading the progress has not locked it
    lock.release()


def test_command_prints_a_line_a_run_and_an_error_for_each_other_folder(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "new", steps=())
    (tmp_path / "empty").mkdir()
    names = ("a", "new", "empty", "absent")
    options = status.build_parser().parse_args([str(tmp_path / name) for name in names])
    assert status.main(options) == 1
    printed = capsys.readouterr()
    assert [text.split(": ")[0] for text in printed.out.splitlines()] == [str(tmp_path / "a"), str(tmp_path / "new")]
    assert "stopped  step 0/100  no metrics yet  no checkpoint" in printed.out
    assert printed.err.splitlines() == [
        f"error: {tmp_path}/empty: not a run's folder (it has no metrics.jsonl, config.json or run.lock)",
        f"error: {tmp_path}/absent: no such folder; give a run's --output_dir",
    ]


def test_json_is_printed_fast_and_without_torch(tmp_path):
    write_run(tmp_path / "a", checkpoints=(10,))
    code = (
        "import sys; from bert_pld import status\n"
        "status.main(status.build_parser().parse_args(['--json', sys.argv[1]]))\n"
        "assert not {'torch', 'numpy', 'h5py'} & set(sys.modules)"
    )
    before = os.times()
    done = run_captured([sys.executable, "-c", code, tmp_path / "a"])
    after = os.times()
    processor_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert processor_s < 2  # about 0.1 on a fast machine
    (run,) = json.loads(done.stdout)
    assert (run["step"], run["checkpoint_step"], run["state"]) == (30, 10, "stopped")


def test_durations_are_printed_in_readable_units():
    expected = {42: "42 s", 440: "7 min", 11_100: "3 h 05 min", 187_200: "2 d 4 h"}
    assert {seconds: status.duration(seconds) for seconds in expected} == expected


def test_line_names_the_phase_and_a_share_of_masks_that_changes(tmp_path):
    run_dir = write_run(tmp_path / "a")
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps({**config, "data": {"mask_probability": {"start": 0.3}}}))
    (run_dir / "metrics.jsonl").write_text(
        json.dumps({**record(30), "phase": "decay", "mask_probability": 0.214}) + "\n"
    )
    line = status.progress_line(read_progress(run_dir, NOW))
    assert "step 30/100 (decay)  loss" in line
    assert "kept 2.50/3  masked 21.4%  1,234 tokens/s" in line
