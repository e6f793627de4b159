"""A signal costs no evaluation and no record: the checkpoint comes first, and the resumed run makes up the rest."""

from __future__ import annotations

import shutil
import signal

from runs import forked_runs, pretrain_command, read_metrics, run_pretrain, small_config, start_with_signal

from bert_pld.checkpoint.format import list_checkpoints
from bert_pld.cluster.stopping import EXIT_PREEMPTED


def config(**training):
    return small_config(training={"max_steps": 6, "checkpoint_interval": 0, "eval_interval": 0, **training})


def stopped_in_its_first_step(settings, corpus, run_dir, expect=EXIT_PREEMPTED):
    """Run until a signal that arrives before the first step; return what was printed."""
    runs, log = forked_runs(), run_dir.with_suffix(".log")
    command = pretrain_command(settings, corpus, run_dir)
    pid = start_with_signal(lambda: runs.start(command, log, log), run_dir, signal.SIGTERM)
    assert runs.wait(pid) == expect, log.read_text()
    return log.read_text()


def evaluations(run_dir):
    return list(zip(read_metrics(run_dir, "eval_mlm_loss"), read_metrics(run_dir, "eval_mlm_accuracy"), strict=True))


def test_records_of_a_preempted_run_are_those_of_an_undisturbed_one(corpus, tmp_path):
    """Each record is the mean of four steps, the first of which was before the signal."""
    settings = config(log_interval=4)
    run_pretrain(settings, corpus, tmp_path / "whole")
    stopped_in_its_first_step(settings, corpus, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "resuming after step 1 " in run_pretrain(settings, corpus, tmp_path / "run").stdout
    for key in ("step", "loss", "mlm_loss", "tokens", "kept_blocks", "grad_norm"):
        assert read_metrics(tmp_path / "run", key) == read_metrics(tmp_path / "whole", key)


def test_evaluation_that_a_signal_puts_off_is_made_once_by_the_run_that_resumes(corpus, tmp_path):
    settings, run_dir = config(eval_interval=1), tmp_path / "run"
    run_pretrain(settings, corpus, tmp_path / "whole")
    assert "held-out" not in stopped_in_its_first_step(settings, corpus, run_dir)
    assert [path.name for path in list_checkpoints(run_dir / "checkpoints")] == ["step_00000001"]
    for _ in range(2):  # The second time from the same checkpoint, as after a kill.
        assert "resuming after step 1 " in run_pretrain(settings, corpus, run_dir).stdout
        assert evaluations(run_dir) == evaluations(tmp_path / "whole")
        shutil.rmtree(run_dir / "checkpoints" / "step_00000006")


def test_checkpoint_of_the_last_step_comes_before_its_evaluation_after_a_signal(corpus, tmp_path):
    settings, run_dir = config(max_steps=1), tmp_path / "run"
    printed = stopped_in_its_first_step(settings, corpus, run_dir, expect=0)
    assert 0 < printed.index("checkpoint step_00000001 written") < printed.index("held-out")
    whole = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text(whole[0] + "\n")  # as if it was killed during the evaluation
    run_pretrain(settings, corpus, run_dir)
    assert (run_dir / "metrics.jsonl").read_text().splitlines() == whole
