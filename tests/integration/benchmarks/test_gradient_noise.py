"""The gradient noise scale: of gradients with known moments, and of a run's checkpoint."""

import pytest
import torch
from benchmark_command import check_error, measure
from runs import run_pretrain, small_config, write_corpus

from benchmarks.gradient_noise import command as gradient_noise
from benchmarks.gradient_noise.command import GradientSums

CHECKPOINT = ("gradient_noise", "--device=cpu", "--micro_batch_size=2", "--micro_batches=64", "--checkpoints")


def test_noise_scale_is_the_variance_of_a_sequence_over_the_squared_mean():
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((100,), 0.2, dtype=torch.float64)  # ‖G‖² = 4
    rows = mean + 3.0 * torch.randn(40_000, 100, generator=generator, dtype=torch.float64)  # tr Σ = 900
    for size in (1, 8):
        sums = GradientSums()
        for batch in rows.split(size):
            sums.add(batch.mean(0))
        assert sums.noise_scale(size) == pytest.approx(900 / 4, rel=0.02)


def test_sums_of_two_parts_are_those_of_all():
    gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1.0
    parts = [GradientSums(), GradientSums(), GradientSums()]
    for index, gradient in enumerate(gradients):
        parts[index % 2].add(gradient)
        parts[2].add(gradient)
    assert (parts[0] + parts[1]).noise_scale(4) == pytest.approx(parts[2].noise_scale(4))


def test_a_mean_that_chance_hides_has_no_noise_scale():
    sums = GradientSums()
    for gradient in (torch.tensor([1.0]), torch.tensor([-1.0])):
        sums.add(gradient)
    assert sums.noise_scale(1) is None


def test_checkpoints_of_a_run_are_measured_and_bad_options_refused(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus", validation_rows=128)
    run_pretrain(small_config(), corpus, tmp_path / "run")
    result = measure(tmp_path, *CHECKPOINT, str(tmp_path / "run"), f"--data_dir={corpus}")
    assert gradient_noise.report(result) in capsys.readouterr().out
    (figure,) = result["figures"]
    assert figure["train_batch_size"] == small_config()["train_batch_size"]
    assert figure["step"] == small_config()["training"]["max_steps"]
    assert figure["all"] > 1.0
    assert len(figure["halves"]) == 2

    given = (*CHECKPOINT, str(tmp_path / "run"), f"--data_dir={corpus}")
    check_error(capsys, "--micro_batches 3: must be at least 4", *given, "--micro_batches=3")
    check_error(capsys, "--micro_batch_size 0: must be at least 1", *given, "--micro_batch_size=0")
    too_many = "--micro_batches 65 × --micro_batch_size 2: must be at most 128, the held-out rows in"
    check_error(capsys, too_many, *given, "--micro_batches=65")
