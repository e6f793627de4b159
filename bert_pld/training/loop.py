"""The training loop: read, step, log, evaluate, save; it ends if the loss is not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn

from bert_pld.data.batches import MicroBatch
from bert_pld.data.block_order import sample_order
from bert_pld.rng import Stream, random_words
from bert_pld.training.divergence import REMEDY, DivergedError, record_divergence
from bert_pld.training.run import Run

LONGEST_SKIP = 10
"""A run in fp16 ends if it skips this many steps in a row and a loss is not finite. A loss scale that has become too
large costs one or two steps; at the beginning it costs more, but the loss is finite."""


def train(run: Run) -> bool:
    """Train to `max_steps`; return False if a signal ended the run early, after its checkpoint."""
    engine, metrics, settings = run.engine, run.metrics, run.config.training
    progress = run.watchdog.progress
    preempted = False
    if run.evaluation_owed:
        _evaluate_and_log(run)
    metrics.start_clock()
    progress(f"step {engine.global_steps + 1}, loading data")
    for micro_batches in run.training_batches():
        step, lr = engine.global_steps + 1, engine.get_lr()[0]
        last = step == settings.max_steps
        stopping = run.stop_requested()
        preempted = stopping and not last
        logging = last or _is_due(step, settings.log_interval)
        evaluating = run.validation_rows is not None and (last or _is_due(step, settings.eval_interval))
        saving = last or preempted or _is_due(step, settings.checkpoint_interval)

        grad_norm = training_step(run, micro_batches, want_grad_norm=logging)
        progress(f"step {step}, after its last micro-batch")
        if logging:
            metrics.log(step, lr, grad_norm)
        if logging or saving:
            stop_if_not_finite(run, step)
        if evaluating or saving:
            metrics.stop_clock()
            # After a signal there may be no time for an evaluation: the checkpoint comes first, and says what is owed.
            run.evaluation_owed = evaluating and stopping
            if evaluating and not run.evaluation_owed:
                _evaluate_and_log(run)
            if saving:
                progress(f"step {step}, gathering its checkpoint")
                run.begin_checkpoint(step)
            metrics.start_clock()
        if preempted:
            break
        progress(f"step {step + 1}, loading data")
    progress("completing the last checkpoint")
    run.complete_checkpoint()
    if run.evaluation_owed and not preempted:
        _evaluate_and_log(run)
    return not preempted


def _evaluate_and_log(run: Run) -> None:
    """Evaluate after the engine's last step; no clock counts this time."""
    figures = evaluate(run.engine, run.evaluation_batches(), run.device)
    run.metrics.log_evaluation(run.engine.global_steps, figures)
    run.evaluation_owed = False


def training_step(run: Run, micro_batches: list[MicroBatch], want_grad_norm: bool = False) -> float | None:
    """Do one optimizer step on this rank's micro-batches; return the global gradient norm before clipping if wanted."""
    engine, step, norm = run.engine, run.engine.global_steps, None
    denominator = masked_tokens_per_micro_batch(micro_batches, run.device)
    for micro_step, batch in enumerate(micro_batches):
        run.watchdog.progress(f"step {step + 1}, micro-batch {micro_step}")
        seed_dropout(run.config.training.seed, step, micro_step, dist.get_rank())
        # The engine draws the gates of this micro-batch itself and passes them to the model (pld/engine.py).
        outputs = engine(**batch.to(run.device).model_inputs(), mlm_denominator=denominator)
        gates = engine.layer_dropper.last_gates if engine.layer_dropper is not None else None
        engine.backward(outputs["loss"])
        if want_grad_norm and run.config.zero_stage == 0 and run.config.precision == "fp32":
            # In this case alone, DeepSpeed computes no norm.
            norm = torch.nn.utils.get_total_norm(p.grad for p in engine.module.parameters() if p.grad is not None)
        run.metrics.add_micro_batch(batch, outputs, gates, step + 1)
        _take_step(run)
    if not want_grad_norm:
        return None
    if norm is None:
        norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def masked_tokens_per_micro_batch(micro_batches: list[MicroBatch], device: torch.device) -> torch.Tensor:
    """Return the step's masked tokens over all ranks, divided by its micro-batches over all ranks.

    Every micro-batch's summed loss is divided by this one number. The step's gradient is then that of the mean over all
    its masked tokens, however they are distributed over ranks and micro-batches.
    """
    count = torch.full((), float(sum(batch.masked_tokens for batch in micro_batches)), device=device)
    if dist.get_world_size() > 1:
        dist.all_reduce(count)
    return count / (len(micro_batches) * dist.get_world_size())


def seed_dropout(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, micro-step, rank), so that a resumed run repeats it."""
    high, low, *_ = random_words(seed, Stream.DROPOUT, step, micro_step, rank)
    torch.manual_seed((int(high) << 32 | int(low)) >> 1)


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _take_step(run: Run) -> None:
    """Let the engine end a micro-batch; after the last one of a step, count the steps that fp16 skips in a row."""
    engine = run.engine
    steps, skipped = engine.global_steps, engine.skipped_steps
    try:
        engine.step()
    except Exception as error:
        # When fp16 overflows at the lowest loss scale, DeepSpeed raises a bare Exception, on all ranks at once.
        if type(error) is not Exception or not getattr(engine.optimizer, "overflow", False):
            raise
        _end_diverged(run, steps + 1, "fp16 overflows at the lowest loss scale")
    if run.config.precision != "fp16" or engine.global_steps == steps:
        return
    run.skipped_in_a_row = run.skipped_in_a_row + 1 if engine.skipped_steps > skipped else 0
    if not run.skipped_in_a_row:
        run.metrics.forget_non_finite_losses()  # Their steps were skipped.


def stop_if_not_finite(run: Run, step: int) -> None:
    """Raise a DivergedError if any loss up to step `step` was not finite; all ranks call it together.

    The loss scaler of fp16 skips steps that overflow. So with fp16, an error is raised only if the last `LONGEST_SKIP`
    steps or more were all skipped, and the loss was not finite in one of them.
    """
    if run.config.precision == "fp16" and run.skipped_in_a_row < LONGEST_SKIP:
        return
    if run.metrics.first_non_finite_loss() is not None:
        skipped = f"; the last {run.skipped_in_a_row} steps were skipped" if run.skipped_in_a_row else ""
        _end_diverged(run, step, f"noticed at step {step}{skipped}")


def _end_diverged(run: Run, step: int, why: str) -> NoReturn:
    """Record at which step the run has diverged, the last one or an earlier one, and raise a DivergedError."""
    found = run.metrics.first_non_finite_loss()
    run.complete_checkpoint()
    first_step, rank = found or (step, None)
    record_divergence(run.output_dir, first_step, rank)
    kept = f"the last checkpoint is kept; {REMEDY}"
    if rank is None:
        raise DivergedError(f"gradients are not finite at step {step} ({why}); {kept}")
    on_rank = f" on rank {rank}" if dist.get_world_size() > 1 else ""
    rows = f"rows of its first micro-batch: {_first_rows(run, first_step, rank)}"
    raise DivergedError(f"loss is not finite at step {first_step}{on_rank} ({why}); {rows}; {kept}")


def _first_rows(run: Run, step: int, rank: int) -> list[int]:
    """Return the row indices of a rank's first micro-batch of a step."""
    share = dataclasses.replace(run.batch_share, rank=rank)
    positions = share.positions(0, micro_step=0) + run.origin.position_of(step - 1, share.global_batch_size)
    order = sample_order(run.config.data, len(run.training_rows), run.config.training.seed)
    return order.rows_at(positions)[0].tolist()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[MicroBatch], device: torch.device) -> dict[str, float]:
    """Return the figures of a model or a DeepSpeed engine on all ranks' held-out rows; all ranks call it together.

    These are `eval_mlm_loss` in nats a masked token, `eval_mlm_accuracy`, and `eval_nsp_accuracy` (NaN without pairs).
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    for host_batch in batches:
        batch = host_batch.to(device)
        outputs = model(**batch.model_inputs(), mlm_denominator=1.0)
        labels = batch.next_sentence_labels
        totals[0] += outputs["mlm_loss"]
        totals[1] += outputs["mlm_correct"]
        totals[2] += batch.masked_tokens
        totals[3] += outputs["nsp_correct"]
        totals[4] += 0 if labels is None else (labels >= 0).sum()
    model.train(was_training)
    if dist.is_initialized():
        dist.all_reduce(totals)
    loss, correct, masked_tokens, nsp_correct, pairs = totals.tolist()
    return {
        "eval_mlm_loss": loss / max(masked_tokens, 1.0),
        "eval_mlm_accuracy": correct / max(masked_tokens, 1.0),
        "eval_nsp_accuracy": nsp_correct / pairs if pairs else float("nan"),
    }
