"""The batch scripts, run by bash with stand-ins for Slurm's commands: variables, exit codes and requeuing.

test_slurm_pretraining.py runs them with the real Slurm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository import REPOSITORY
from runs import clean_environment, run_captured, wait_until

SCRIPTS = REPOSITORY / "scripts" / "slurm"
GLUE = {"MODEL": "m", "GLUE_DIR": "g", "SLURM_ARRAY_TASK_ID": 0}


@pytest.fixture
def slurm(tmp_path):
    """Stand-ins that record their arguments; srun exits with $SRUN_EXIT.

    With $SRUN_WAITS it does so only after a signal, or once the file `may_end` exists.
    """
    programs = {
        "srun": 'printf "%s\\n" "$@" >"$CALLS/srun"; echo "$HF_HUB_OFFLINE $HF_DATASETS_OFFLINE" >"$CALLS/offline";'
        ' [ -z "${SRUN_WAITS:-}" ] || exec wait-then-exit "$SRUN_EXIT"; exit "$SRUN_EXIT"',
        "wait-then-exit": 'trap "touch $CALLS/signalled; exit $1" TERM USR1; touch "$CALLS/waits";'
        ' until [ -e "$CALLS/may_end" ]; do sleep 0.02; done; exit "$1"',
        "scontrol": 'case "$1 $2" in "show hostnames") echo node1;; "show node") echo "NodeAddr=10.0.0.1 x";;'
        ' "show job") echo "JobId=$3 ${JOB_STATE:-JobState=RUNNING Reason=None}"; touch "$CALLS/shown";;'
        ' *) echo "$@" >>"$CALLS/scontrol";; esac',
        "sbatch": 'echo "$OUTPUT_DIR|$CONFIG|${INITIALIZE_FROM:-}|$*" >>"$CALLS/sbatch"; wc -l <"$CALLS/sbatch"',
    }
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    calls.mkdir()
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = clean_environment()
    environment |= {
        "PATH": f"{folder}:{environment['PATH']}",
        "CALLS": str(calls),
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "BERT_PLD_VENV": sys.prefix,
        "CONFIG": "c.json",
        "DATA_DIR": "shards",
        "OUTPUT_DIR": str(tmp_path / "run"),
        "SRUN_EXIT": "0",
    }
    environment.pop("REPOSITORY", None)
    return environment


def run(script, environment, *arguments, **variables):
    environment = {**environment, **{name: str(value) for name, value in variables.items()}}
    return run_captured(["bash", SCRIPTS / script, *arguments], expect=None, env=environment)


def calls(environment, name):
    path = os.path.join(environment["CALLS"], name)
    return open(path).read().splitlines() if os.path.exists(path) else []


@pytest.mark.parametrize(
    ("code", "requeued", "message"),
    [
        (0, False, "job 7: done"),
        (75, True, "stopped by a signal, checkpoint saved; requeued"),
        (69, True, "lost a rank (exit 69), fault 1 of at most 3; requeued"),
        (130, True, "job 7: interrupted; resumes where it stopped; requeued"),
        (137, True, "lost a rank (exit 137), fault 1 of at most 3; requeued"),
        (1, False, "failed (exit 1); see the error above; not requeued"),
    ],
)
def test_exit_code_of_the_ranks_decides_about_requeuing(code, requeued, message, slurm):
    done = run("pretrain.sbatch", slurm, SRUN_EXIT=code)
    assert done.returncode == code, done.stderr
    assert message in done.stdout
    assert calls(slurm, "scontrol") == (["requeue 7"] if requeued else [])


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("data_prep.sbatch", 130, "job 7: interrupted; resumes where it stopped; requeued\n"),
        ("data_prep.sbatch", 138, "job 7: interrupted; resumes where it stopped; requeued\n"),
        ("data_prep.sbatch", 143, "job 7: interrupted; resumes where it stopped; requeued\n"),
        (
            "finetune_glue.sbatch",
            75,
            "stopped by a signal, finished fine-tunings and the one under way are kept; requeued\n",
        ),
    ],
)
def test_interrupted_data_preparation_and_fine_tuning_are_requeued_without_a_limit(script, code, message, slurm):
    variables = GLUE if script == "finetune_glue.sbatch" else {}
    for _ in range(5):
        assert run(script, slurm, SRUN_EXIT=code, **variables).stdout.endswith(message)
    assert calls(slurm, "scontrol") == ["requeue 7"] * 5


def test_faults_are_counted_over_restarts(slurm):
    outputs = [run("pretrain.sbatch", slurm, SRUN_EXIT=69, MAX_FAULTS=2).stdout for _ in range(3)]
    assert len(calls(slurm, "scontrol")) == 2
    assert "fault 2 of at most 2; requeued" in outputs[1]
    assert "fault 3, more than MAX_FAULTS=2; not requeued" in outputs[2]


def is_asleep(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


COMPLETING, TIME_LIMIT = "JobState=COMPLETING Reason=None", "JobState=COMPLETING Reason=TimeLimit"
ALONE = "JobState=RUNNING Reason=None"


@pytest.mark.parametrize(
    ("state", "code", "ends_with", "requeued", "message"),
    [
        (COMPLETING, 75, 75, False, "Slurm ended this job"),  # A cancelled job must stay cancelled.
        (COMPLETING, 137, 137, False, "Slurm ended this job"),
        (COMPLETING, 0, 143, False, "ended by Slurm"),
        (TIME_LIMIT, 75, 75, True, "stopped by a signal, checkpoint saved; requeued"),
        (TIME_LIMIT, 137, 137, True, "fault 1 of at most 3; requeued"),
        (ALONE, 75, 75, True, "stopped by a signal, checkpoint saved; requeued"),
        (ALONE, 0, 0, False, "job 7: done"),
    ],
)
def test_after_sigterm_the_reason_of_slurm_decides_about_requeuing(state, code, ends_with, requeued, message, slurm):
    started = subprocess.Popen(
        ["bash", str(SCRIPTS / "pretrain.sbatch")],
        env={**slurm, "SRUN_EXIT": str(code), "SRUN_WAITS": "1", "JOB_STATE": state},
        stdout=subprocess.PIPE,
        text=True,
    )
    called = Path(slurm["CALLS"])
    # The shell sleeps again once it waits for the step, after it has set its traps.
    wait_until(lambda: ((called / "waits").exists() and is_asleep(started.pid)) or started.poll() is not None)
    started.send_signal(signal.SIGTERM)
    wait_until(lambda: (called / "shown").exists() or started.poll() is not None)
    if state != ALONE:
        time.sleep(0.1)  # It would forward the signal now.
        (called / "may_end").touch()
    output, _ = started.communicate(timeout=120)
    assert started.returncode == ends_with
    assert calls(slurm, "scontrol") == (["requeue 7"] if requeued else [])
    assert message in output.splitlines()[-1]
    assert (called / "signalled").exists() == (state == ALONE)


def test_element_of_an_array_requeues_only_itself(slurm):
    """The last element has the job id of the array."""
    run("array.sbatch", slurm, SLURM_JOB_ID=5, SLURM_ARRAY_JOB_ID=5, SLURM_ARRAY_TASK_ID=3, SRUN_EXIT=75)
    assert calls(slurm, "scontrol") == ["requeue 5_3"]


def test_tasks_get_the_environment_of_the_shell_and_the_requested_cpus(slurm):
    run("pretrain.sbatch", slurm, SLURM_CPUS_PER_TASK=8)
    options = calls(slurm, "srun")
    assert {"--export=ALL", "--cpus-per-task=8"} <= set(options[: options.index("python")])


@pytest.mark.parametrize(
    ("script", "exported", "expected"),
    [
        ("pretrain.sbatch", "", "1"),
        ("pretrain.sbatch", "0", "0"),
        ("data_prep.sbatch", "", "0"),
        ("data_prep.sbatch", "1", "1"),
    ],
)
def test_only_data_preparation_may_download_unless_the_variables_say_otherwise(script, exported, expected, slurm):
    run(script, slurm, HF_HUB_OFFLINE=exported, HF_DATASETS_OFFLINE=exported)
    assert calls(slurm, "offline") == [f"{expected} {expected}"]


def test_arguments_are_passed_unchanged(slurm, tmp_path):
    unusual = f"{tmp_path}/a 'b' $(touch {tmp_path}/made) \"c\""
    run("pretrain.sbatch", slurm, "--set", "data.vocab_file=x y", OUTPUT_DIR=unusual, INITIALIZE_FROM="first run")
    command = calls(slurm, "srun")
    expected = [unusual, "--initialize_from", "first run", "--set", "data.vocab_file=x y"]
    assert command[command.index("--output_dir") + 1 :] == expected
    assert not (tmp_path / "made").exists()


def test_secrets_among_the_arguments_are_not_logged(slurm):
    done = run("pretrain.sbatch", slurm, "--set", "comet.api_key=abc123", "--set", "training.seed=4")
    assert "comet.api_key=*** --set training.seed=4" in done.stdout
    assert "abc123" not in done.stdout + done.stderr
    assert "comet.api_key=abc123" in calls(slurm, "srun")


def test_array_element_trains_with_its_seed_or_its_configuration(slurm, tmp_path):
    run("array.sbatch", slurm, SLURM_ARRAY_JOB_ID=5, SLURM_ARRAY_TASK_ID=3)
    seeds = calls(slurm, "srun")
    assert f"{tmp_path}/run/seed_3" in seeds
    assert seeds[-4:] == ["--set", "training.seed=3", "--set", "progressive_layer_drop.seed=3"]
    (tmp_path / "list").write_text("a.json\nmy configs/b.json\n")
    run("array.sbatch", slurm, SLURM_ARRAY_JOB_ID=5, SLURM_ARRAY_TASK_ID=2, CONFIG_LIST=tmp_path / "list")
    expected = ["my configs/b.json", "--data_dir", "shards", "--output_dir", f"{tmp_path}/run/b"]
    assert calls(slurm, "srun")[-5:] == expected
    done = run("array.sbatch", slurm, SLURM_ARRAY_JOB_ID=5, SLURM_ARRAY_TASK_ID=3, CONFIG_LIST=tmp_path / "list")
    assert done.returncode == 1
    assert f"CONFIG_LIST={tmp_path}/list: must have a line 3" in done.stderr


def test_two_configurations_of_an_array_must_not_share_a_folder(slurm, tmp_path):
    (tmp_path / "list").write_text("small/b.json\na.json\nlarge/b.json\n")
    for element, code in ((2, 0), (3, 1)):
        done = run(
            "array.sbatch", slurm, SLURM_ARRAY_JOB_ID=5, SLURM_ARRAY_TASK_ID=element, CONFIG_LIST=tmp_path / "list"
        )
        assert done.returncode == code, done.stderr
    assert f"CONFIG_LIST={tmp_path}/list: 2 lines name a configuration b; names must differ" in done.stderr


def test_second_phase_waits_for_the_first_and_starts_from_its_weights(slurm, tmp_path):
    done = run("two_phases.sh", slurm, "--nodes=4", REPOSITORY=REPOSITORY)
    assert done.stdout.split() == ["1", "2"]
    first, second = (line.split("|") for line in calls(slurm, "sbatch"))
    assert first[:3] == [f"{tmp_path}/run/phase_128", "configs/bert_base_pld_128.json", ""]
    assert second[:3] == [f"{tmp_path}/run/phase_512", "configs/bert_base_pld_512.json", f"{tmp_path}/run/phase_128"]
    assert "--dependency=afterok:1" in second[3]
    assert "--nodes=4" in first[3]


def test_missing_checkout_or_environment_is_a_one_line_error(slurm, tmp_path):
    done = run("pretrain.sbatch", slurm, BERT_PLD_VENV=tmp_path)
    assert done.returncode == 1
    assert f"error: BERT_PLD_VENV={tmp_path}: no virtual environment" in done.stderr
    done = run("pretrain.sbatch", slurm, REPOSITORY=tmp_path / "none", OUTPUT_DIR=tmp_path / "untouched")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert f"{tmp_path}/none/scripts/slurm/job.sh: No such file" in done.stderr
    assert not (tmp_path / "untouched").exists()


def test_array_index_without_a_task_is_an_error(slurm):
    done = run("finetune_glue.sbatch", slurm, **{**GLUE, "SLURM_ARRAY_TASK_ID": 9})
    assert done.returncode == 1
    assert "--array: element 9; must be in 0 to 8, the index of a task" in done.stderr


def test_import_error_of_the_environment_is_shown(slurm, tmp_path):
    """Python's own message is shown, and the script adds no guess."""
    broken = tmp_path / "venv" / "bin"
    broken.mkdir(parents=True)
    (broken / "python").write_text("#!/bin/bash\necho 'ModuleNotFoundError: no torch' >&2\nexit 1\n")
    (broken / "python").chmod(0o755)
    step = os.path.join(slurm["PATH"].split(":")[0], "srun")
    with open(step, "w") as file:
        file.write('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    done = run("finetune_glue.sbatch", slurm, BERT_PLD_VENV=tmp_path / "venv", **GLUE)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["ModuleNotFoundError: no torch"]
    assert "failed (exit 1); see the error above; not requeued" in done.stdout
