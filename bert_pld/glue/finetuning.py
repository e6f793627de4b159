"""Fine-tune an encoder on one task with one learning rate and one seed: the best epoch by the dev set counts."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bert_pld.glue.batches import Encoded, collate, evaluation_rows, training_order
from bert_pld.glue.metrics import mean_score, score
from bert_pld.glue.tasks import Task
from bert_pld.training.loop import seed_dropout
from bert_pld.training.optimizer import build_optimizer, parameter_groups

HIGHEST_SCORE = 5.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a fine-tuning is run with; part of what its result is kept under."""

    epochs: int = 3
    batch_size: int = 32
    """Sequences a step, over all ranks."""
    max_seq_length: int = 128
    warmup_share: float = 0.1
    """Of the steps; then the rate falls linearly to 0."""
    weight_decay: float = 0.01
    gradient_clipping: float = 1.0
    dropout: float | None = None
    """None: as the model's configuration has it, which is 0 for one that was pretrained without."""
    patience: int | None = None
    """Stop after so many epochs without a better dev score; None: never."""
    precision: str = "fp32"
    max_train_rows: int | None = None
    """The first so many; None: all."""
    deepspeed_config: dict[str, Any] | None = None
    """Further keys for DeepSpeed, as `further_keys` reads them."""

    def check(self, world_size: int, device_type: str) -> None:
        """See that they can be run.

        Raises:
            ValueError: names the option.
        """
        if self.precision == "fp16" and device_type == "cpu":
            raise ValueError("--precision fp16: needs a GPU; must be fp32 or bf16 here")
        if self.max_train_rows is not None and self.max_train_rows < 1:
            raise ValueError(f"--max_train_rows {self.max_train_rows}: must be >= 1")
        if self.batch_size < 1 or self.batch_size % world_size:
            raise ValueError(f"--batch_size {self.batch_size}: must be a positive multiple of {world_size} rank(s)")
        if self.epochs < 1:
            raise ValueError(f"--epochs {self.epochs}: must be >= 1")
        if self.max_seq_length < 8:
            raise ValueError(f"--max_seq_length {self.max_seq_length}: must be >= 8")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout {self.dropout:g}: must be in [0, 1)")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"--patience {self.patience}: must be >= 1")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one fine-tuning."""

    epochs: list[dict[str, Any]]
    """Per epoch: training loss, dev scores by split, seconds."""
    best_epoch: int | None
    """From 1; None after a divergence."""
    scores: dict[str, dict[str, float]]
    """Dev split → metric → value × 100, of the best epoch; empty after a divergence."""
    predictions: dict[str, NDArray[np.float64]]
    """The leaderboard's file → classes or scores, of the best epoch; empty on ranks but 0, and after a divergence."""
    steps: int
    """Of all epochs."""
    diverged_at_step: int | None = None
    """The first, from 1, whose loss, or the weights after it, were not finite; its epoch is the last and not listed."""


def linear_schedule(step: int, steps: int, warmup_share: float) -> float:
    """The learning rate's share at `step` (from 0): up over the warm-up, then down to 0 at `steps`."""
    warmup = math.ceil(warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def finetune(
    model: nn.Module,
    task: Task,
    train: Encoded,
    dev: Mapping[str, Encoded],
    test: Mapping[str, Encoded],
    *,
    learning_rate: float,
    seed: int,
    settings: Settings,
    pad_id: int,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train through DeepSpeed and evaluate after each epoch. All ranks call it.

    Args:
        model: called with `input_ids`, `token_type_ids` and `attention_mask`, `[rows, tokens]`; gives `.logits`.
        task: of the examples.
        train: shared by all ranks, each of which takes its part of every batch.
        dev: split → examples; the mean over splits and metrics chooses the epoch.
        test: the leaderboard's file → examples to be answered.
        learning_rate: peak.
        seed: of the order and of dropout.
        settings: the rest.
        pad_id: of the vocabulary.
        device: of this rank.
        check: called before each step and each batch of an evaluation, equally often on every rank; may raise.

    Returns:
        The outcome, alike on every rank but for the answers; a divergence is one too.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
    engine = _make_engine(model, learning_rate, steps, settings, world_size)
    epochs: list[dict[str, Any]] = []
    best: tuple[float, int] = (-math.inf, 0)
    predictions: dict[str, NDArray[np.float64]] = {}
    for epoch in range(settings.epochs):
        began = time.perf_counter()
        losses = _train_epoch(engine, task, train, epoch, seed, settings, pad_id, device, check)
        if not np.isfinite(losses).all():
            first = min(int(np.argmin(np.isfinite(losses))), len(losses) - 2)
            engine.destroy()
            return Outcome(epochs, None, {}, {}, steps, epoch * (len(losses) - 1) + first + 1)
        mean_loss = float(losses[:-1].mean())
        scores = {
            name: _score_split(engine, task, split, settings, pad_id, device, check) for name, split in dev.items()
        }
        value = sum(map(mean_score, scores.values())) / len(scores)
        seconds = round(time.perf_counter() - began, 2)
        epochs.append({"epoch": epoch + 1, "loss": mean_loss, "dev": scores, "seconds": seconds})
        if value > best[0]:
            best = (value, epoch)
            predictions = {
                name: predict(engine, task, split, settings.batch_size, pad_id, device, check)
                for name, split in test.items()
            }
        elif settings.patience is not None and epoch - best[1] >= settings.patience:
            break
    engine.destroy()
    return Outcome(epochs, best[1] + 1, epochs[best[1]]["dev"], predictions if rank == 0 else {}, steps)


def _train_epoch(
    engine: Any,
    task: Task,
    train: Encoded,
    epoch: int,
    seed: int,
    settings: Settings,
    pad_id: int,
    device: torch.device,
    check: Callable[[], None],
) -> NDArray[np.float64]:
    """Each step's loss, the mean over ranks; in the end 0, or NaN where a weight is not finite. `[steps + 1]`

    The host waits for the device once, after the last step.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    lengths = np.array([len(row) for row in train.input_ids])
    batches = training_order(lengths, settings.batch_size, seed, epoch)
    losses = torch.zeros(len(batches) + 1, device=device)
    engine.train()
    for number, rows in enumerate(batches):
        check()
        seed_dropout(seed, epoch * len(batches) + number, 0, rank)
        inputs, labels = collate(train, rows[rank::world_size], pad_id, device, classes=not task.is_regression)
        assert labels is not None
        loss = loss_of(engine(**inputs).logits, labels)
        losses[number] = loss.detach()
        engine.backward(loss)
        try:
            engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            losses[number] = torch.nan  # fp16 that overflows at any scale, which ranks find out together
            break
    weights_are_finite = torch.stack([weight.isfinite().all() for weight in engine.module.parameters()]).all()
    losses[-1] = torch.where(weights_are_finite, 0.0, torch.nan)
    dist.all_reduce(losses)
    return losses.double().cpu().numpy() / world_size


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy for classes, mean squared error for scores; logits `[rows, outputs]`, in fp32."""
    if logits.shape[-1] == 1:
        return nn.functional.mse_loss(logits.float().squeeze(-1), labels)
    return nn.functional.cross_entropy(logits.float(), labels)


def _make_engine(model: nn.Module, learning_rate: float, steps: int, settings: Settings, world_size: int) -> Any:
    import deepspeed

    optimizer = build_optimizer(
        {"type": "AdamW", "params": {"lr": learning_rate, "eps": 1e-6}}, parameter_groups(model, settings.weight_decay)
    )
    scheduler = LambdaLR(optimizer, lambda step: linear_schedule(step, steps, settings.warmup_share))
    config: dict[str, Any] = {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": settings.batch_size // world_size,
        "gradient_clipping": settings.gradient_clipping,
        "steps_per_print": 10**9,
        **copy.deepcopy(settings.deepspeed_config or {}),
    }
    if settings.precision != "fp32":
        config[settings.precision] = {"enabled": True, **config.get(settings.precision, {})}
        config.setdefault("zero_optimization", {"stage": 1})
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    return engine


@torch.no_grad()
def predict(
    engine: Any,
    task: Task,
    split: Encoded,
    batch_size: int,
    pad_id: int,
    device: torch.device,
    check: Callable[[], None],
) -> NDArray[np.float64]:
    """Answers to all rows, in their order, the same on every rank: classes, or scores from 0 to 5."""
    engine.eval()
    mine: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for rows in evaluation_rows(split, 2 * batch_size, dist.get_rank(), dist.get_world_size()):
        check()
        if not len(rows):
            continue
        inputs, _ = collate(split, rows, pad_id, device, classes=not task.is_regression)
        logits = engine.module(**inputs).logits.float()
        answers = logits.squeeze(-1).clamp(0.0, HIGHEST_SCORE) if task.is_regression else logits.argmax(-1)
        mine.append((rows, answers.double().cpu().numpy()))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    found = np.zeros(len(split))
    for rows, answers in (part for one in everyone for part in one):
        found[rows] = answers
    return found


def _score_split(
    engine: Any,
    task: Task,
    split: Encoded,
    settings: Settings,
    pad_id: int,
    device: torch.device,
    check: Callable[[], None],
) -> dict[str, float]:
    assert split.labels is not None
    return score(task.metrics, predict(engine, task, split, settings.batch_size, pad_id, device, check), split.labels)
