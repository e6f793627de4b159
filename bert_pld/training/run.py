"""A run, put together: process group, data, model, engine, metrics, checkpoints; what the loop works with."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bert_pld.checkpoint import format as checkpoint_format
from bert_pld.checkpoint.resume import check_same_run, choose_checkpoint, load_weights
from bert_pld.checkpoint.writer import CheckpointWriter
from bert_pld.cluster import watchdog
from bert_pld.cluster.agreement import StepAgreement
from bert_pld.cluster.rendezvous import describe_rank
from bert_pld.cluster.run_lock import RunLock
from bert_pld.cluster.signals import Preemption
from bert_pld.config import BATCH_KEYS, ConfigError, RunConfig, resolve_batch_sizes
from bert_pld.data.batches import MicroBatch
from bert_pld.data.block_order import sample_order
from bert_pld.data.loader import check_matches_model, evaluation_batches, training_batches
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows, resolve_data_dir
from bert_pld.files import CONFIG, DIVERGED, METRICS, write_atomically
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.training.engine import make_engine
from bert_pld.training.metrics import Metrics

_VOCABULARY_MULTIPLE = 8


class NonFiniteLossError(ValueError):
    """Training diverged."""


@dataclasses.dataclass
class Run:
    """What the training loop works with."""

    config: RunConfig
    engine: Any
    metrics: Metrics
    checkpoints: CheckpointWriter
    preemption: Preemption
    agreement: StepAgreement
    lock: RunLock
    training_rows: ShardedRows
    validation_rows: ShardedRows | None
    device: torch.device

    @property
    def has_validation(self) -> bool:
        """Whether the data has held-out rows."""
        return self.validation_rows is not None

    @property
    def share(self) -> BatchShare:
        """This rank's share of every global batch."""
        return BatchShare(
            self.engine.train_micro_batch_size_per_gpu(),
            self.engine.gradient_accumulation_steps(),
            dist.get_rank(),
            dist.get_world_size(),
        )

    def training_batches(self) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches from the engine's present step to the last, a list for each step."""
        steps_done, share = self.engine.global_steps, self.share
        return training_batches(
            self.training_rows,
            self.config.data,
            share,
            seed=self.config.training.seed,
            num_steps=self.config.training.max_steps - steps_done,
            first_sample=steps_done * share.global_batch_size,
            pin_memory=self.device.type == "cuda",
        )

    def evaluation_batches(self) -> Iterator[MicroBatch]:
        """This rank's share of the held-out rows."""
        assert self.validation_rows is not None
        return evaluation_batches(
            self.validation_rows,
            self.config.data,
            self.share,
            seed=self.config.training.seed,
            max_rows=self.config.training.eval_rows,
            pin_memory=self.device.type == "cuda",
        )

    def told_to_stop(self) -> bool:
        """Whether to stop after the present step, the same on every rank. Names a checkpoint that all have written.

        Raises:
            OSError: that checkpoint could not be written.
        """
        stop, written = self.agreement.take()
        if written:
            self.complete_checkpoint()
        self.agreement.post(self.preemption.signalled, self.checkpoints.written)
        return stop if dist.get_world_size() > 1 else self.preemption.signalled

    def save(self, step: int) -> None:
        """Begin a checkpoint after step `step`; it is written while training goes on."""
        self.complete_checkpoint()
        self.checkpoints.begin(step, dataclasses.asdict(self.metrics.counters))

    def complete_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written, if any."""
        said = self.checkpoints.complete()
        if said is not None:
            self.metrics.say(said)

    def stop_if_not_finite(self, step: int) -> None:
        """End a diverged run before a checkpoint of it is made; fp16 overflows are its loss scaler's affair.

        Raises:
            NonFiniteLossError: names the first step whose loss was not finite and its samples.
        """
        world_size = dist.get_world_size()
        steps = self.metrics.non_finite_step.new_full((world_size,), -1)
        steps[dist.get_rank()] = self.metrics.non_finite_step
        dist.all_reduce(steps, op=dist.ReduceOp.MAX)
        found = [(bad, rank) for rank, bad in enumerate(steps.tolist()) if bad >= 0]
        if not found or self.config.precision == "fp16":
            return
        bad, rank = min(found)
        of_rank = f" on rank {rank}" if world_size > 1 else ""
        self.complete_checkpoint()
        if dist.get_rank() == 0:
            # The exit code is that of any error: who starts many runs reads the cause here.
            write_atomically(self.metrics.path.with_name(DIVERGED), json.dumps({"step": bad, "rank": rank}) + "\n")
        raise NonFiniteLossError(
            f"loss is not finite at step {bad}{of_rank} (noticed at step {step});"
            f" rows of its first micro-batch: {self._rows_of(bad - 1, rank).tolist()};"
            " the last checkpoint is kept; lower the learning rate or raise warm-up"
        )

    def _rows_of(self, step: int, rank: int) -> Any:
        positions = dataclasses.replace(self.share, rank=rank).positions(step, 0)
        order = sample_order(self.config.data, len(self.training_rows), self.config.training.seed)
        return order.rows_at(positions)[0]

    def close(self) -> None:
        """End progress bar and process group; a process that skips this can abort at exit."""
        self.metrics.close()
        self.checkpoints.close()
        self.lock.release()
        dist.destroy_process_group()


def join_process_group(timeout: timedelta | None = None) -> torch.device:
    """Join the ranks that a launcher started, or be the only one; return this rank's device.

    Args:
        timeout: how long a collective may wait; by default as DeepSpeed has it.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    describe_rank()
    device = torch.device(get_accelerator().device_name(int(os.environ["LOCAL_RANK"])))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # Gloo serves a CPU as it is; DeepSpeed's shared-memory collectives would be compiled first, for a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    limits = {} if timeout is None else {"timeout": timeout}
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False, **limits)
    return device


def resolve_for_data(config: RunConfig, training_rows: ShardedRows, world_size: int, device: torch.device) -> RunConfig:
    """Fill in what depends on the data, the ranks and the device, and check that they fit.

    Raises:
        ConfigError: fp16 on a CPU, or batch sizes that do not divide.
        ValueError: shards that the model cannot read.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "fp16.enabled: true, but this machine has no GPU and a CPU cannot train in fp16;"
            " use --set fp16.enabled=false, or a GPU"
        )
    attributes = training_rows.attributes
    padded = -(-attributes.vocabulary_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    vocabulary = config.model.vocab_size or padded
    pairs = config.model.next_sentence_prediction
    config = config.with_model(
        vocab_size=vocabulary,
        next_sentence_prediction=attributes.objective == "mlm+nsp" if pairs == "auto" else pairs,
    )
    check_matches_model(training_rows, config.model, config.data.seq_length)
    sizes = dict(zip(BATCH_KEYS, resolve_batch_sizes(config.deepspeed, world_size), strict=True))
    return dataclasses.replace(config, deepspeed={**config.deepspeed, **sizes})


def prepare_run(
    config: RunConfig,
    data_dir: Path,
    output_dir: Path,
    resume: str,
    initialize_from: Path | None,
    preemption: Preemption,
) -> Run:
    """Build everything a run needs and bring it to where it left off.

    Args:
        config: as loaded.
        data_dir: shards, native ones or NVIDIA's, or a directory with those of `data.seq_length` in `seq_<S>`.
        output_dir: the run's folder.
        resume: `auto` (go on from the folder's newest checkpoint, if any), `never`, or a checkpoint's path.
        initialize_from: a checkpoint whose weights a new run starts with (its second phase, say).
        preemption: what has caught the scheduler's signals since the process started.

    Raises:
        ValueError: anything a user can mend, in one line.
    """
    timeout = watchdog.collective_timeout(config.training.stall_timeout)
    device = join_process_group(timeout)
    watchdog.start(config.training.heartbeat_timeout, config.training.stall_timeout)
    watchdog.mark("opening the data", patient=True)
    data_dir = resolve_data_dir(data_dir, config.data.seq_length)
    vocab_file = Path(config.data.vocab_file) if config.data.vocab_file else None
    training_rows = open_rows(data_dir, "train", vocab_file)
    held_out = training_rows.manifest.rows("validation") > 0
    validation_rows = open_rows(data_dir, "validation", vocab_file) if held_out else None
    watchdog.mark("building model and engine")
    config = resolve_for_data(config, training_rows, dist.get_world_size(), device)
    lock = RunLock(output_dir)
    start = choose_checkpoint(output_dir, resume, lock)

    torch.manual_seed(config.training.seed)
    model = BertForPreTraining(config.model)
    if start is not None:
        check_same_run(start, config, training_rows.manifest)
        load_weights(model, start)
    elif initialize_from is not None:
        checkpoint = checkpoint_format.resolve_checkpoint(initialize_from)
        checkpoint_format.check_same_vocabulary(checkpoint, training_rows)
        load_weights(model, checkpoint)
    use_backend(model, config.model.kernels, device.type)
    engine = make_engine(config, model)
    batch_size = config.deepspeed["train_batch_size"]
    metrics = Metrics(output_dir, config, batch_size, device, leaves_padding_out=model.encoder.leaves_padding_out)
    group = dist.new_group(backend="gloo", timeout=timeout) if dist.get_world_size() > 1 else None
    manifest = training_rows.manifest
    facts = {"data_source": manifest.attributes.source, "data_fingerprint": manifest.fingerprint()}
    writer = CheckpointWriter(output_dir, engine, config, facts, output_dir, group)
    agreement = StepAgreement(group)
    run = Run(config, engine, metrics, writer, preemption, agreement, lock, training_rows, validation_rows, device)
    if start is not None:
        watchdog.mark("loading the checkpoint")
        state = writer.restore(start)
        metrics.resume(state["step"], state)
        metrics.say(f"going on after step {state['step']} from checkpoint {start}")
    if dist.get_rank() == 0:
        _write_run_files(output_dir, config, training_rows, fresh=start is None)
    dist.barrier()
    return run


def _write_run_files(output_dir: Path, config: RunConfig, rows: ShardedRows, fresh: bool) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / CONFIG).write_text(json.dumps(config.as_json(), indent=2) + "\n")
    (output_dir / DIVERGED).unlink(missing_ok=True)
    rows.save_tokenizer(output_dir)
    if fresh:
        (output_dir / METRICS).write_text("")
