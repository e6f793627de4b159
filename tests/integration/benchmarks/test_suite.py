"""The suite on a small corpus: configurations of variants, interruption and continuation."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from repository import REPOSITORY
from runs import clean_environment, logged_lines, wait_until, write_corpus

from benchmarks.paper.command import record_conditions
from benchmarks.paper.curves import read_curve
from benchmarks.paper.suite import GIVEN_CONFIG, RunningJob, Suite, failure_of, finished_runs, plan_jobs
from benchmarks.paper.variants import RECIPE, VARIANTS, Scale, apply_changes, configuration, load_scale
from bert_pld.checkpoint.format import list_checkpoints
from bert_pld.config import ConfigError, load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.cost.work import BlockWork, mean_work
from bert_pld.files import RUN_LOCK, write_json
from bert_pld.plan import make_plan
from bert_pld.pld.engine import make_schedule

TINY = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 8,
    "bf16": None,
    "zero_optimization": None,
    "scheduler": {"params": {"warmup_num_steps": 2, "decay_step": 2}},
    "model": {
        "preset": None, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
    "data": {"seq_length": 32, "workers": 0},
    "training": {"max_steps": 12, "log_interval": 2, "eval_interval": 4, "checkpoint_interval": 4},
}  # fmt: skip
SCALE = Scale("tiny", {"0.0001": 1e-3, "0.001": 3e-3}, 0.7292, TINY)


def test_variants_differ_in_normalization_rate_and_schedule():
    configs = {variant.name: configuration(variant, SCALE, 7) for variant in VARIANTS}
    assert len(configs) == 9
    post = {name for name, c in configs.items() if c["model"]["normalization"] == "post"}
    assert post == {"post_ln", "post_ln_high_lr"}
    low = {name for name, c in configs.items() if c["optimizer"]["params"]["lr"] == 1e-3}
    assert low == {"post_ln", "pre_ln"}
    schedules = {}
    for name, values in configs.items():
        loaded = load_config(values)
        assert loaded.training.seed == 7
        assert "bf16" not in loaded.deepspeed
        if loaded.progressive_layer_drop.enabled:
            assert loaded.progressive_layer_drop.seed == 7
            schedules[name] = make_schedule(loaded, 12)
    assert set(schedules) == {"uniform_dropping", "time_only", "depth_only", "pld_batch", "pld_sample"}
    start = {name: schedule.expected_depth(0) for name, schedule in schedules.items()}
    end = {name: schedule.expected_depth(10**6) for name, schedule in schedules.items()}
    assert {name for name, depth in start.items() if depth == 12} == {"time_only", "pld_batch", "pld_sample"}
    # All of them run as much at the limit: 8.75 of 12 blocks.
    assert end == {name: pytest.approx(8.75, abs=0.02) for name in schedules}
    assert schedules["pld_batch"].gamma == pytest.approx(100 / 12)


def test_scales_load_and_invalid_ones_are_errors(tmp_path):
    assert load_scale("cpu").learning_rates["0.001"] > load_scale("cpu").learning_rates["0.0001"]
    for scale in map(load_scale, ("cpu", "cpu_long", "gpu")):
        runs = [load_config(configuration(variant, scale, 1)) for variant in VARIANTS]
        dropping = [run for run in runs if run.progressive_layer_drop.enabled]
        depths = [make_schedule(run).limit.expected_depth(0) for run in dropping]
        assert depths == pytest.approx([depths[0]] * 5)
    on_gpu = {one.name: load_config(configuration(one, load_scale("recipe_gpu"), 1)) for one in RECIPE}
    assert on_gpu["tokens_near_40_muon"].training.max_steps == on_gpu["dense_muon"].training.max_steps == 1000
    assert on_gpu["dense_muon_equal_compute"].training.max_steps == 605
    assert on_gpu["dense_muon_equal_time"].training.max_steps == 750
    short = next(one for one in RECIPE if one.equal_time), load_scale("recipe_cpu_8_mask_15_short")
    assert configuration(*short, 1)["training"]["max_steps"] == 1480
    with pytest.raises(ConfigError, match="--scale tpu: must be one of cpu, cpu_long, gpu, recipe_cpu_12"):
        load_scale("tpu")
    write_json(tmp_path / "scales.json", {"learning_rates": {}, "uniform_theta": 0.7, "config": {}, "equal_time": 1.5})
    with pytest.raises(ConfigError, match=r"scales.json: equal_time: 1.5; must be a number in \(0, 1\]"):
        load_scale("scales", tmp_path)
    with pytest.raises(ConfigError, match="has no entry for 0.001, a rate of pld_batch"):
        configuration(VARIANTS[2], Scale("x", {}, 0.7, {}), 1)


@pytest.mark.parametrize("layers", [4, 8, 12])
def test_recipe_is_compared_with_a_dense_run_of_as_many_flops_and_its_own_decay(layers):
    scale = load_scale(f"recipe_cpu_{layers}")
    runs = {variant.name: load_config(configuration(variant, scale, 1)) for variant in RECIPE}
    for dropping, baseline, equal in (
        ("tokens", "dense", "dense_equal_compute"),
        ("tokens_muon", "dense_muon", "dense_muon_equal_compute"),
        ("tokens_near_muon", "dense_muon", "dense_muon_equal_compute"),
        ("tokens_near_40_muon", "dense_muon", "dense_muon_equal_compute"),
        ("tokens_same_40_muon", "dense_muon", "dense_muon_equal_compute"),
        ("tokens_first_muon", "dense_muon", "dense_muon_equal_compute_first"),
    ):
        tokens, dense, partner = runs[dropping], runs[baseline], runs[equal]
        assert tokens.training.max_steps == dense.training.max_steps == 2000
        whole = make_plan(dense).flops_full * partner.training.max_steps
        assert whole == pytest.approx(make_plan(tokens).flops_mean * 2000, rel=1 / 1000)
        assert not partner.progressive_layer_drop.enabled
        settings = [copy.deepcopy(run.deepspeed) for run in (dense, partner)]
        steps = [each["scheduler"]["params"].pop("total_num_steps") for each in settings]
        assert steps == [2000, partner.training.max_steps]
        assert settings[0] == settings[1]
    rates = runs["tokens_muon"].deepspeed["optimizer"]["params"]
    assert (rates["lr"], rates["muon_lr"]) == (0.0028, 0.0056)


def test_ablations_have_one_seed_unless_named(tmp_path):
    def planned(names=None):
        return [(job.variant.name, job.seed) for job in plan_jobs(SCALE, tmp_path, 2, names)]

    everything = planned()
    assert [name for name, seed in everything if seed == 1] == [variant.name for variant in VARIANTS]
    twice = {name for name, seed in everything if seed == 2}
    assert twice == {"post_ln", "pre_ln", "pld_batch", "pld_sample", "pre_ln_high_lr"}
    named = [(name, seed) for seed in (1, 2) for name in ("depth_only", "theta_0_7")]
    assert planned(["theta_0_7", "depth_only"]) == named


@pytest.fixture
def finished_job(tmp_path):
    """A job with the folder of a finished run."""
    job = plan_jobs(SCALE, tmp_path, 1, ["post_ln"])[0]
    (job.run_dir / "checkpoints" / "step_00000012").mkdir(parents=True)
    (job.run_dir / "metrics.jsonl").write_text('{"step": 12, "mlm_loss": 5.0}\n{"step": 12, "eval_mlm_loss": 5.0}\n')
    (job.run_dir / "log.txt").write_text("error: of an earlier attempt\n")
    return job


def test_run_is_done_when_its_last_step_is_evaluated_and_saved(finished_job):
    assert finished_job.is_done()
    (finished_job.run_dir / "checkpoints" / "step_00000012").rename(finished_job.run_dir / "checkpoints" / "x")
    assert not finished_job.is_done()


def test_copies_of_runs_are_no_runs_of_the_suite(finished_job, tmp_path):
    (finished_job.run_dir / GIVEN_CONFIG).write_text(json.dumps(finished_job.config))
    shutil.copytree(finished_job.run_dir, finished_job.run_dir.with_name("seed_1_old"))
    assert finished_runs(tmp_path) == {"post_ln": {1: finished_job.run_dir}}


def test_failure_is_read_from_exit_code_divergence_file_and_own_log_lines(finished_job):
    log = finished_job.run_dir / "log.txt"
    started = RunningJob(finished_job, None, log.stat().st_size)
    assert failure_of(started, 0) is None
    assert failure_of(started, 75) == "stopped; the same command continues it"
    assert failure_of(started, -9) == f"exit code -9; see {log}"
    with open(log, "a") as lines:
        lines.write("error: No space left on device\n")
    assert failure_of(started, 1) == "error: No space left on device"
    (finished_job.run_dir / "diverged.json").write_text('{"step": 3, "rank": 0}')
    assert failure_of(started, 1) is None
    assert read_curve(finished_job.run_dir, "seconds").diverged


def test_each_run_gets_its_own_gpu(tmp_path, capfd):
    show = [sys.executable, "-c", "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(1)"]
    jobs = plan_jobs(SCALE, tmp_path, 1, ["post_ln", "pre_ln", "pld_batch"])
    failures = Suite(tmp_path, 2, 1, ["3", "MIG-1"], show).run(jobs)
    assert len(failures) == 3  # they trained nothing
    said = [(job.run_dir / "log.txt").read_text().strip() for job in jobs]
    assert said[:2] == ["3", "MIG-1"]
    assert said[2] in said[:2]


def test_changed_conditions_are_recorded_or_rejected(tmp_path):
    path = tmp_path / "conditions.json"
    first = {
        "scale": "cpu", "device": "cpu", "data": {"fingerprint": "a"}, "commit": "1", "command": "x --seeds 1",
        "hardware": "h", "versions": {}, "runs_at_once": 2,
    }  # fmt: skip
    record_conditions(path, first)
    record_conditions(path, first)
    assert json.loads(path.read_text())["later"] == []
    record_conditions(path, {**first, "commit": "2", "command": "x --seeds 3"})
    noted = json.loads(path.read_text())
    assert (noted["commit"], [later["commit"] for later in noted["later"]]) == ("1", ["2"])
    with pytest.raises(ValueError, match="was started with data {'fingerprint': 'a'}, now {'fingerprint': 'b'}"):
        record_conditions(path, {**first, "data": {"fingerprint": "b"}})


def test_changes_merge_sections_and_null_removes_a_key():
    values = {"a": {"b": 1, "c": 2}, "d": {"e": 1}}
    apply_changes(values, {"a": {"b": 3}, "d": None, "f": [1]})
    assert values == {"a": {"b": 3, "c": 2}, "f": [1]}


DRIVER = """
import json, sys
from pathlib import Path
from benchmarks import __main__ as bench
from benchmarks.paper import command
from benchmarks.paper.variants import Scale
from bert_pld import cli
tiny = json.loads(Path(sys.argv[1]).read_text())
command.load_scale = lambda name: Scale(name, {"0.0001": 1e-3, "0.001": 3e-3}, 0.6667, tiny)
cli.run(bench.main, bench.build_parser("paper"), sys.argv[2:])
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Start `benchmarks paper` with a tiny scale."""
    folder = tmp_path_factory.mktemp("suite")
    corpus, scale = write_corpus(folder / "corpus"), folder / "tiny.json"

    def start(steps, *arguments):
        scale.write_text(json.dumps({**TINY, "training": {**TINY["training"], "max_steps": steps}}))
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(scale), *arguments],
            env={**clean_environment(), "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    shared = ["run", "--scale", "tiny", "--data_dir", str(corpus), "--seeds", "1", "--at_once", "2"]
    start.folder = folder
    start.two_runs = lambda out, *variants: [*shared, "--output_dir", str(out), "--variants", *variants]
    return start


def test_interrupted_suite_continues_and_is_summarized(command):
    out = command.folder / "runs"
    arguments = command.two_runs(out, "post_ln", "pld_batch")
    first = command(300, *arguments)
    folders = [out / name / "seed_1" for name in ("post_ln", "pld_batch")]
    metrics, held = folders[0] / "metrics.jsonl", {}

    def both_train():
        for folder in folders:
            if folder not in held and logged_lines(folder):
                held[folder] = json.loads((folder / RUN_LOCK).read_bytes())["pid"]
                os.kill(held[folder], signal.SIGSTOP)  # It must not end before the other one trains.
        return len(held) == 2

    wait_until(both_train)
    os.kill(first.pid, signal.SIGTERM)
    for pid in held.values():
        os.kill(pid, signal.SIGCONT)
    said, errors = first.communicate(timeout=300)
    assert first.returncode == 130, errors
    assert said.count("stopped; the same command continues it") == 2

    stopped = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert stopped < 300
    refused = command(stopped + 5, *arguments)
    assert "was started with other settings" in refused.communicate(timeout=300)[1]
    assert refused.returncode == 1

    done = command(300, *arguments)
    said, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"mlm_loss"' in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == 300

    again = command(300, *arguments)
    assert "2 runs, 2 of them done" in again.communicate(timeout=300)[0]
    plots = (f"--plot={out / 'x.png'}", f"--time_plot={out / 't.png'}")
    summary = command(300, "summarize", str(out), f"--json={out / 'x.json'}", *plots)
    said, errors = summary.communicate(timeout=300)
    assert summary.returncode == 0, errors
    result = json.loads((out / "x.json").read_text())
    assert result["conditions"]["command"].endswith("run --scale tiny --seeds 1 --variants post_ln pld_batch")
    assert result["conditions"]["data"]["seq_length"] == 32
    assert {claim["verdict"] for claim in result["claims"]} <= {"one seed", "reached by 0 of 1"}
    rows = {row["variant"]: row for row in result["comparison"]["rows"]}
    assert rows["post_ln"]["kept_blocks"]["mean"] == 3
    ran = load_config(out / "pld_batch" / "seed_1" / "config.json")
    kept = rows["pld_batch"]["kept_blocks"]["mean"]
    # A step's depth has a deviation of at most 0.8 blocks: three of the mean's over 300 steps.
    assert kept == pytest.approx(mean_work(make_schedule(ran, 3), 300, "batch", 32).depth, abs=0.14)
    flops = ModelFlops(ran.model, ran.data.seq_length, ran.data.mask_probability)
    counted = flops.ratio(BlockWork(kept, kept, last_whole=1.0))
    assert rows["pld_batch"]["flops_a_sample"]["mean"] == pytest.approx(counted, rel=0.02)
    assert (out / "x.png").stat().st_size > 10_000
    assert (out / "t.png").stat().st_size > 5_000
    assert "| Post-LN |" in said


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent death signal")
def test_runs_of_a_killed_suite_save_a_checkpoint_and_end(command):
    out = command.folder / "killed"
    suite = command(100_000, *command.two_runs(out, "post_ln", "pre_ln"))
    folders = [out / name / "seed_1" for name in ("post_ln", "pre_ln")]
    wait_until(lambda: all(map(logged_lines, folders)))
    suite.kill()
    suite.communicate()
    try:
        # A run that ends signs off: its lock is empty then.
        wait_until(lambda: all((folder / RUN_LOCK).read_bytes() == b"" for folder in folders))
    finally:
        for held in filter(None, ((folder / RUN_LOCK).read_bytes() for folder in folders)):
            os.kill(json.loads(held)["pid"], signal.SIGKILL)
    for folder in folders:
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        saved = int(list_checkpoints(folder / "checkpoints")[0].name.removeprefix("step_"))
        assert last <= saved <= last + 1  # logged are even steps
