"""A run in progress: what the training loop works with, and its batches, checkpoints and end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bert_pld.checkpoint.safetensors_file import NonFiniteTensorError
from bert_pld.checkpoint.writer import CheckpointWriter
from bert_pld.cluster.run_lock import RunLock
from bert_pld.cluster.stopping import Preemption, StepAgreement
from bert_pld.cluster.watchdog import Watchdog
from bert_pld.config import RunConfig
from bert_pld.data.batches import MicroBatch
from bert_pld.data.loader import evaluation_batches, training_batches
from bert_pld.data.order import BatchShare, Origin
from bert_pld.data.rows import ShardedRows
from bert_pld.training.divergence import REMEDY, DivergedError, record_divergence
from bert_pld.training.metrics import Metrics


@dataclasses.dataclass(kw_only=True)
class Run:
    """Everything that the training loop works with."""

    config: RunConfig
    """The resolved configuration."""
    output_dir: Path
    training_rows: ShardedRows
    validation_rows: ShardedRows | None
    """Held-out rows; None if the data has none."""
    batch_share: BatchShare
    origin: Origin
    engine: Any
    """DeepSpeed's engine around the model."""
    metrics: Metrics
    checkpoints: CheckpointWriter
    preemption: Preemption
    watchdog: Watchdog
    agreement: StepAgreement
    lock: RunLock
    device: torch.device
    evaluation_owed: bool = False
    """Whether the evaluation after the engine's last step was put off because of a signal, and is still to be made."""
    skipped_in_a_row: int = 0
    """How many steps up to the last one the loss scaler of fp16 has skipped."""

    def training_batches(self) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches from the engine's next step to the last, a list for each step."""
        steps_done = self.engine.global_steps
        return training_batches(
            self.training_rows,
            self.config.data,
            self.batch_share,
            seed=self.config.training.seed,
            num_steps=self.config.training.max_steps - steps_done,
            first_sample=self.origin.position_of(steps_done, self.batch_share.global_batch_size),
            first_step=steps_done,
            pin_memory=self.device.type == "cuda",
        )

    def evaluation_batches(self) -> Iterator[MicroBatch]:
        """Yield this rank's share of the held-out rows; the watchdog counts each batch as progress."""
        assert self.validation_rows is not None
        batches = evaluation_batches(
            self.validation_rows,
            self.config.data,
            self.batch_share,
            seed=self.config.training.seed,
            max_rows=self.config.training.eval_rows,
            pin_memory=self.device.type == "cuda",
        )
        for number, batch in enumerate(batches):
            self.watchdog.progress(f"evaluation, batch {number}")
            yield batch

    def stop_requested(self) -> bool:
        """Return whether to stop after the present step, with the same answer on every rank.

        Also completes a pending checkpoint that all ranks have written, or raises the OSError of a rank that could not.
        """
        stop, written = self.agreement.result()
        if written:
            self.complete_checkpoint()
        self.agreement.post(self.preemption.stop_requested, self.checkpoints.written)
        # Ranks learn of a signal one step late, all at the same step; a single rank need not wait for that.
        return stop if dist.get_world_size() > 1 else self.preemption.stop_requested

    def begin_checkpoint(self, step: int) -> None:
        """Gather a checkpoint after step `step`; it is written while training continues."""
        self.complete_checkpoint()
        self.checkpoints.begin(step, {**self.metrics.state(), "evaluation_owed": self.evaluation_owed})

    def complete_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written, if any; a DivergedError is raised if it is not finite."""
        step = self.checkpoints.pending_step
        try:
            message = self.checkpoints.complete()
        except NonFiniteTensorError as error:  # on all ranks together
            assert step is not None
            record_divergence(self.output_dir, step, rank=None)
            raise DivergedError(f"the run has diverged at step {step}: {error}; {REMEDY}") from error
        if message is not None:
            self.metrics.print_line(message)

    def close(self) -> None:
        """End the progress bar and the process group; a process that skips this may abort at exit."""
        self.metrics.close()
        self.checkpoints.close()
        self.lock.release()
        dist.destroy_process_group()
