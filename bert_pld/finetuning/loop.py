"""Fine-tune an encoder on one task with one learning rate and one seed; the epoch with the best dev score counts."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bert_pld.cluster.stopping import Preemption, StepAgreement
from bert_pld.config.errors import explaining
from bert_pld.finetuning.batches import IGNORED_LABEL, Encoded, TaskData, collate, evaluation_rows, training_order
from bert_pld.finetuning.encoder import PretrainedEncoder
from bert_pld.finetuning.interrupted import Interrupted, Progress
from bert_pld.finetuning.settings import Settings
from bert_pld.training.loop import seed_dropout
from bert_pld.training.optimizer import build_optimizer, parameter_groups

HIGHEST_SCORE = 5.0
"""Upper end of a regression task's scores."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one fine-tuning."""

    epochs: list[dict[str, Any]]
    """Training loss, dev scores by split, and seconds of each epoch."""
    best_epoch: int | None
    """Number of the best epoch, from 1; None after a divergence."""
    scores: dict[str, dict[str, float]]
    """Dev split → metric → value × 100, in the best epoch; empty after a divergence."""
    predictions: dict[str, NDArray[np.float64]]
    """The leaderboard's file → classes or scores, in the best epoch; on rank 0 only; empty after a divergence."""
    steps: int
    """Number of steps in all epochs."""
    diverged_at_step: int | None = None
    """The first step, from 1, with a non-finite loss or non-finite weights after it; its epoch is not in `epochs`."""


class StoppedError(Exception):
    """A rank received a stop signal; raised on all ranks at the same step."""


class SharedSignal:
    """Whether any rank received a stop signal.

    A check waits neither for the device nor, in practice, for other ranks, so that it can be made at every step.
    """

    def __init__(self, preemption: Preemption) -> None:
        """Call on all ranks, after the process group is initialized."""
        self._preemption = preemption
        self._is_single = dist.get_world_size() == 1
        self._agreement = StepAgreement(None if self._is_single else dist.new_group(backend="gloo"))

    def check(self) -> None:
        """Raise a StoppedError if any rank received a signal (with several ranks: before the previous call).

        Call it equally often on every rank.
        """
        any_rank_signalled, _ = self._agreement.result()
        if self._preemption.stop_requested if self._is_single else any_rank_signalled:
            raise StoppedError
        self._agreement.post(self._preemption.stop_requested, True)


def finetune(
    encoder: PretrainedEncoder,
    data: TaskData,
    settings: Settings,
    *,
    learning_rate: float,
    seed: int,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
    interrupted: Interrupted | None = None,
) -> Outcome:
    """Train through DeepSpeed and evaluate after each epoch. Call it on all ranks.

    All ranks hold the data, and each processes its part of every batch. The mean over the metrics of all dev splits
    selects the epoch. `learning_rate` is the peak of the schedule; `seed` is that of the classifier, the order of the
    examples and dropout. `check`, which may raise, is called before each step and each batch of an evaluation, equally
    often on every rank. The outcome is the same on every rank except for the predictions. A divergence is an outcome,
    not an error.

    If `check` raises a StoppedError, the work is saved in `interrupted`, from which the next call continues.
    """
    steps = settings.epochs * math.ceil(len(data.train) / settings.batch_size)
    model = encoder.classifier(data.task, seed)
    found = interrupted.find() if interrupted is not None else None
    if interrupted is not None and found is not None:
        interrupted.load_weights(model)
    engine = _make_engine(model, learning_rate, steps, settings)
    if interrupted is not None and found is not None:
        interrupted.load_optimizer(engine)
    accepted = frozenset(inspect.signature(model.forward).parameters)
    run = _FineTuning(engine, data, settings, seed, encoder.pad_id, device, check, accepted)
    progress = found or Progress()
    try:
        outcome = _run_epochs(run, progress, steps)
    except StoppedError:
        if interrupted is not None:
            interrupted.save(engine, progress)
        raise
    engine.destroy()
    return outcome


def _run_epochs(run: _FineTuning, progress: Progress, steps: int) -> Outcome:
    """Run the epochs that are left, of `steps` steps in all; `progress` is up to date when a StoppedError is raised."""
    data, settings = run.data, run.settings
    for epoch in range(len(progress.epochs), settings.epochs):
        began = time.perf_counter() - progress.seconds
        try:
            losses, weights_are_finite = run.train_epoch(epoch, progress)
            is_finite = np.isfinite(losses)
            if not (is_finite.all() and weights_are_finite):
                step = len(losses) - 1 if is_finite.all() else int(np.argmin(is_finite))
                return Outcome(progress.epochs, None, {}, {}, steps, diverged_at_step=epoch * len(losses) + step + 1)
            scores = {name: run.score(split) for name, split in data.dev.items()}
            value = sum(map(data.task.selection, scores.values())) / len(scores)
            seconds = round(time.perf_counter() - began, 2)
            if value > progress.best_score:
                progress.predictions = {name: run.predict(split) for name, split in data.test.items()}
                progress.best_score, progress.best_epoch = value, epoch
        except StoppedError:
            progress.seconds = time.perf_counter() - began
            raise
        figures = {"epoch": epoch + 1, "loss": float(losses.mean()), "dev": scores, "seconds": seconds}
        progress.epochs.append(figures)
        progress.losses, progress.seconds = [], 0.0
        if settings.patience is not None and epoch - progress.best_epoch >= settings.patience:
            break
    predictions = progress.predictions if dist.get_rank() == 0 else {}
    best_epoch = progress.best_epoch
    return Outcome(progress.epochs, best_epoch + 1, progress.epochs[best_epoch]["dev"], predictions, steps)


def _make_engine(model: nn.Module, learning_rate: float, steps: int, settings: Settings) -> Any:
    import deepspeed

    block = {"type": "AdamW", "params": {"lr": learning_rate, "eps": 1e-6}}
    optimizer = build_optimizer(block, parameter_groups(model, settings.weight_decay))
    scheduler = LambdaLR(optimizer, lambda step: linear_schedule(step, steps, settings.warmup_share))
    config: dict[str, Any] = {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": settings.batch_size // dist.get_world_size(),
        "gradient_clipping": settings.gradient_clipping,
        "steps_per_print": 10**9,
        "zero_force_ds_cpu_optimizer": False,  # Offloading works with torch's AdamW too.
        **copy.deepcopy(settings.deepspeed_config or {}),
    }
    if settings.precision != "fp32":
        config[settings.precision] = {"enabled": True, **config.get(settings.precision, {})}
        config.setdefault("zero_optimization", {"stage": 1})
    with explaining("--deepspeed_config"):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    return engine


def linear_schedule(step: int, steps: int, warmup_share: float) -> float:
    """Return the learning rate at `step` (from 0) as a share of its peak: up in the warm-up, then down to 0."""
    warmup = math.ceil(warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def loss_of(logits: torch.Tensor, labels: torch.Tensor, words: float = 0.0) -> torch.Tensor:
    """Return the cross-entropy, or for logits `[rows, 1]` the mean squared error, in fp32; `labels` is `[rows]`.

    With labels `[rows, tokens]` of words, it is the sum over the words of these rows, divided by `words`.
    """
    if labels.dim() == 2:
        flat, options = logits.float().flatten(0, 1), {"ignore_index": IGNORED_LABEL, "reduction": "sum"}
        return nn.functional.cross_entropy(flat, labels.flatten(), **options) / max(words, 1.0)
    if logits.shape[-1] == 1:
        return nn.functional.mse_loss(logits.float().squeeze(-1), labels)
    return nn.functional.cross_entropy(logits.float(), labels)


def _means(losses: torch.Tensor) -> list[float]:
    """Return the mean over ranks of each loss."""
    summed = losses.clone()
    dist.all_reduce(summed)
    return (summed.double().cpu().numpy() / dist.get_world_size()).tolist()


@dataclasses.dataclass(frozen=True)
class _FineTuning:
    """The engine of one fine-tuning, with all that its epochs and evaluations need."""

    engine: Any
    data: TaskData
    settings: Settings
    seed: int
    pad_id: int
    device: torch.device
    check: Callable[[], None]
    accepted: frozenset[str]
    """Arguments of the model's forward; some models have no `token_type_ids`."""

    def train_epoch(self, epoch: int, progress: Progress) -> tuple[NDArray[np.float64], bool]:
        """Train the rest of an epoch; return the loss of each of its steps `[steps]`, the mean over ranks, and whether
        all weights are finite.

        The host waits for the device only once, after the last step.
        """
        rank, world_size = dist.get_rank(), dist.get_world_size()
        lengths = np.array([len(row) for row in self.data.train.input_ids])
        counts = np.diff(self.data.train.label_starts)
        batches = training_order(lengths, self.settings.batch_size, self.seed, epoch)
        done = len(progress.losses)
        losses = torch.zeros(len(batches), device=self.device)
        losses[:done] = torch.tensor(progress.losses)
        self.engine.train()
        for number, rows in enumerate(batches[done:], done):
            try:
                self.check()
            except StoppedError:
                progress.losses, progress.steps = _means(losses[:number]), epoch * len(batches) + number
                raise
            seed_dropout(self.seed, epoch * len(batches) + number, 0, rank)
            inputs, labels = self._collate(self.data.train, rows[rank::world_size])
            assert labels is not None
            # The loss of several ranks is that of one: the mean over all words of the step.
            words = float(counts[rows].sum()) / world_size
            loss = loss_of(self.engine(**inputs).logits, labels, words)
            losses[number] = loss.detach()
            self.engine.backward(loss)
            try:
                self.engine.step()
            except Exception as error:
                # When fp16 overflows at the lowest loss scale, DeepSpeed raises a bare Exception, on all ranks at once.
                if type(error) is not Exception or not getattr(self.engine.optimizer, "overflow", False):
                    raise
                losses[number] = torch.nan
                break
        weights_are_finite = torch.stack([weight.isfinite().all() for weight in self.engine.module.parameters()]).all()
        *means, of_weights = _means(torch.cat([losses, torch.where(weights_are_finite, 0.0, torch.nan)[None]]))
        progress.losses, progress.steps = means, (epoch + 1) * len(batches)
        return np.array(means), math.isfinite(of_weights)

    @torch.no_grad()
    def predict(self, split: Encoded) -> NDArray[np.float64]:
        """Return the predictions for all rows or words, in their order, the same on every rank.

        They are classes, or scores in [0, 5].
        """
        self.engine.eval()
        mine: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        for rows in evaluation_rows(split, 2 * self.settings.batch_size, dist.get_rank(), dist.get_world_size()):
            self.check()
            if not len(rows):
                continue
            inputs, _ = self._collate(split, rows)
            logits = self.engine.module(**inputs).logits.float()
            is_regression = self.data.task.is_regression
            predicted = logits.squeeze(-1).clamp(0.0, HIGHEST_SCORE) if is_regression else logits.argmax(-1)
            mine.append((rows, predicted.double().cpu().numpy()))
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        starts = split.label_starts
        predictions = np.zeros(starts[-1])
        for rows, values in (part for parts in gathered for part in parts):
            if split.word_places is None:
                predictions[rows] = values
            else:
                for row, of_tokens in zip(rows, values, strict=True):
                    predictions[starts[row] : starts[row + 1]] = of_tokens[split.word_places[row]]
        return predictions

    def score(self, split: Encoded) -> dict[str, float]:
        """Return the task's metrics on a dev split."""
        assert split.labels is not None
        return self.data.task.score(self.predict(split), split)

    def _collate(self, split: Encoded, rows: NDArray[np.int64]) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        inputs, labels = collate(split, rows, self.pad_id, self.device, classes=not self.data.task.is_regression)
        return {name: tensor for name, tensor in inputs.items() if name in self.accepted}, labels
