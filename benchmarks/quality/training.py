"""Training of all contenders in turns on the same micro-batches, with evaluations on the same rows."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.engines import recompiling, single_rank
from benchmarks.host_memory import HostMemory
from benchmarks.hugging_face import import_hugging_face
from benchmarks.options import DTYPES
from benchmarks.quality.contenders import QualityContender, make_contender
from benchmarks.results import one_line
from benchmarks.timing import ceiling_gflops
from bert_pld.config import RunConfig
from bert_pld.data.batches import MicroBatch
from bert_pld.data.loader import evaluation_batches, training_batches
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows, resolve_data_dir


def open_data(config: RunConfig, data_dir: Path, split: str) -> ShardedRows:
    """Open a split's rows as training does."""
    vocab_file = Path(config.data.vocab_file) if config.data.vocab_file else None
    follow_links = config.data.follow_links
    data_dir = resolve_data_dir(data_dir, config.data.seq_length, follow_links)
    return open_rows(data_dir, split, vocab_file, follow_links)


class JointTraining:
    """Contenders that train in turns, and those that failed."""

    def __init__(
        self, contenders: list[QualityContender], config: RunConfig, training: ShardedRows, held_out: ShardedRows
    ) -> None:
        self.contenders, self.config, self.training, self.held_out = contenders, config, training, held_out
        self.device = contenders[0].engine.device
        self.failed: list[str] = []
        """`NAME: reason` of each contender that failed and was removed."""

    def run(
        self, steps_per_turn: int, stop_requested: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, float]]:
        """Train in turns of `steps_per_turn` steps, to the end or until a stop is requested.

        Batches are made before each turn. After each evaluation, yield its step and GFLOP/s of a matrix product in the
        run's precision: the median of measurements at the evaluations.
        """
        settings, rates, step = self.config.training, [], 0
        batches = training_turns(self.config, self.training, settings.max_steps)
        while turn := list(itertools.islice(batches, steps_per_turn)):
            step += len(turn)
            self._with_each(functools.partial(QualityContender.train_turn, batches=turn))
            if step % settings.eval_interval == 0 or step == settings.max_steps:
                rates.append(ceiling_gflops(DTYPES[self.config.precision], self.device))
                self._with_each(lambda one: one.evaluate(self._evaluation_batches()))
                losses = ", ".join(f"{one.name} {one.loss[-1]:.3f}" for one in self.contenders)
                print(f"step {step} of {settings.max_steps}: {losses}", file=sys.stderr, flush=True)
                yield step, statistics.median(rates)
            if stop_requested():
                return

    def _with_each(self, work: Callable[[QualityContender], None]) -> None:
        """Call `work` for each contender; remove one that fails, so that the others' hours of work are not lost."""
        for one in list(self.contenders):
            try:
                work(one)
            except Exception as error:
                logging.getLogger(__name__).exception("%s", one.name)
                self.failed.append(f"{one.name}: {one_line(error)}")
                self.contenders.remove(one)
        if not self.contenders:
            raise ValueError(f"all contenders failed; {self.failed[0]}")

    def _evaluation_batches(self) -> Iterator[MicroBatch]:
        return evaluation_batches(
            self.held_out,
            self.config.data,
            batch_share(self.config),
            seed=self.config.training.seed,
            max_rows=self.config.training.eval_rows,
            pin_memory=self.device.type == "cuda",
        )


def batch_share(config: RunConfig) -> BatchShare:
    """Return the only rank's share of a global batch: all of it."""
    deepspeed = config.deepspeed
    return BatchShare(deepspeed["train_micro_batch_size_per_gpu"], deepspeed["gradient_accumulation_steps"])


def training_turns(config: RunConfig, training: ShardedRows, steps: int) -> Iterator[list[MicroBatch]]:
    """The micro-batches of each step, as a run reads them, but without workers beside a turn."""
    return training_batches(
        training,
        dataclasses.replace(config.data, workers=0),
        batch_share(config),
        seed=config.training.seed,
        num_steps=steps,
        pin_memory=torch.cuda.is_available(),
    )


def host_memory_of(name: str, config: RunConfig, data_dir: Path, steps: int) -> int:
    """Peak memory of a contender's first steps, before layers are dropped; to be called in a fresh process."""
    with single_rank("cpu") as device, recompiling():
        turn = list(training_turns(config, open_data(config, data_dir, "train"), steps))
        import_hugging_face()
        memory = HostMemory()
        contender = make_contender(name, config, device)
        contender.train_turn(turn)
        return sum(memory.figures().values())
