"""Our blocks of a run's JSON but `model`: keys, types, defaults and allowed ranges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from bert_pld.config.mask_schedule import MaskSchedule
from bert_pld.config.ranges import check_durations, check_least, check_most, duration_in_steps
from bert_pld.rng import MAX_SEED


@dataclasses.dataclass(frozen=True)
class ProgressiveLayerDropConfig:
    """The `progressive_layer_drop` block: Progressive Layer Dropping, arXiv:2010.13369."""

    enabled: bool = True
    theta: float = 0.5
    """Limit of θ(t), in (0, 1]: the keep probability that the last block approaches."""
    gamma: float | Literal["auto"] = "auto"
    """Decay rate of θ per optimizer step, >= 0; `auto` is the paper's rule, 100 / training.max_steps."""
    granularity: Literal["batch", "sample", "token"] = "batch"
    """`batch` (the paper): a block is dropped for the whole micro-batch. `sample`: for an exact share of its
    sequences. `token`: for an exact share of each sequence's tokens; p_l is the share that the block runs on."""
    temporal: Literal["exponential", "linear", "growing", "constant"] = "exponential"
    """How θ moves between the dense warm-up and the dense finish. `exponential`: it decays from 1 to `theta`. `linear`:
    it falls from 1 to `theta` over `ramp`. `growing`: it rises from `theta` to 1 over `ramp`. `constant`: `theta`."""
    ramp: float = 0.1
    """Duration of a `linear` or `growing` ramp: a share of `training.max_steps` if below 1, else a number of steps."""
    dense_warmup: float = 0.0
    """Steps at the beginning in which nothing is dropped: a share of `training.max_steps` if below 1, else steps."""
    dense_finish: float = 0.0
    """Steps at the end in which nothing is dropped: a share of `training.max_steps` if below 1, else steps."""
    depth: Literal["linear", "uniform"] = "linear"
    """`linear`: the keep probability falls linearly with depth to θ. `uniform`: it is θ for every block."""
    keep_first_block: bool = False
    """Never drop the first block; with `depth: linear` the depth is counted from 0, as in the published code."""
    keep_last_block: bool = False
    """Never drop the last block."""
    keep_every: int = 0
    """Never drop blocks 1, 1 + n, 1 + 2n and so on; 0: drop them too."""
    keep_masked_tokens: bool = False
    """At `token` granularity, a block runs on a sequence's masked tokens first, as far as its share goes."""
    keep_near_masked: int = 0
    """With `keep_masked_tokens`, tokens at most this far from a masked one come next, also those of another document in
    the row; 0: no others are preferred."""
    same_tokens: bool = False
    """At `token` granularity, all blocks draw from one order of a sequence's tokens: those of equal share run on the
    same tokens, and one of a smaller share on some of them. Else every block has an order of its own."""
    seed: int = 0

    def check(self) -> Iterable[str]:
        """Yield one message for each invalid value, as 'key: given; allowed'."""
        if not 0.0 < self.theta <= 1.0:
            yield f"theta: {self.theta}; must be in (0, 1]"
        if self.gamma != "auto" and self.gamma < 0:
            yield f"gamma: {self.gamma}; must be >= 0, or 'auto'"
        yield from check_durations(self, "ramp", "dense_warmup", "dense_finish")
        yield from check_least(self, 0, "keep_every", "keep_near_masked")
        if self.keep_near_masked and not self.keep_masked_tokens:
            yield f"keep_near_masked: {self.keep_near_masked}; needs keep_masked_tokens: true"
        yield from _check_seed(self.seed)

    def needs_max_steps(self) -> Iterable[str]:
        """Yield one message for each value that means nothing where the run's number of steps is not known."""
        steps, give = "training.max_steps, which is not given; give it", "or a number of steps"
        if not self.enabled:
            return
        if self.temporal == "exponential" and self.gamma == "auto":
            yield f"gamma: 'auto' is 100 / {steps}, or a number"
        if self.temporal in ("linear", "growing") and self.ramp < 1:
            yield f"ramp: {self.ramp:g} is a share of {steps}, {give}"
        if 0 < self.dense_warmup < 1:
            yield f"dense_warmup: {self.dense_warmup:g} is a share of {steps}, {give}"
        if self.dense_finish:
            yield f"dense_finish: {self.dense_finish:g} counts from the end of {steps}"

    def describe(self) -> str:
        """Return one line on a resolved block, for `plan` and for model cards."""
        over_steps = f"{self.temporal} over {self.ramp:,.0f} steps"
        if self.temporal == "exponential":
            over_steps = f"γ = {float(self.gamma):g}, exponential over steps"
        elif self.temporal == "constant":
            over_steps = "constant over steps"
        ends = [name for name, kept in (("first", self.keep_first_block), ("last", self.keep_last_block)) if kept]
        thetas = f"θ from {self.theta:g} to 1" if self.temporal == "growing" else f"θ → {self.theta:g}"
        parts = [thetas, over_steps, f"{self.depth} over depth"]
        if ends:
            parts.append(f"{' and '.join(ends)} block kept")
        if self.keep_every:
            parts.append(f"each block 1 + {self.keep_every}n kept")
        if self.keep_masked_tokens:
            parts.append("masked tokens kept")
        if self.keep_near_masked:
            parts.append(f"tokens within {self.keep_near_masked} of them preferred")
        if self.same_tokens:
            parts.append("the same tokens in every block")
        if self.dense_warmup or self.dense_finish:
            parts.append(
                f"nothing dropped in the first {self.dense_warmup:,.0f} and last {self.dense_finish:,.0f} steps"
            )
        return f"{', '.join(parts)}, granularity {self.granularity}"

    def resolved(self, max_steps: int) -> ProgressiveLayerDropConfig:
        """Return a copy with `gamma: auto` and all shares of a run of `max_steps` steps replaced by numbers.

        What has no effect becomes the same in every run, so that it cannot make two runs differ: `gamma` and `ramp`
        where `temporal` does not use them, `keep_masked_tokens`, `keep_near_masked` and `same_tokens` without token
        granularity, and everything if dropping is disabled.
        """
        if not self.enabled:
            return ProgressiveLayerDropConfig(enabled=False, gamma=0.0, ramp=0.0)
        warmup, finish = (duration_in_steps(value, max_steps) for value in (self.dense_warmup, self.dense_finish))
        if max(self.dense_warmup, self.dense_finish) < 1 and math.isclose(self.dense_warmup + self.dense_finish, 1):
            finish = max_steps - warmup  # rounded apart, the two can be a step too long or too short
        gamma = 100.0 / max_steps if self.gamma == "auto" else self.gamma
        return dataclasses.replace(
            self,
            gamma=gamma if self.temporal == "exponential" else 0.0,
            keep_masked_tokens=self.keep_masked_tokens and self.granularity == "token",
            keep_near_masked=self.keep_near_masked if self.granularity == "token" else 0,
            same_tokens=self.same_tokens and self.granularity == "token",
            ramp=duration_in_steps(self.ramp, max_steps) if self.temporal in ("linear", "growing") else 0.0,
            dense_warmup=warmup,
            dense_finish=finish,
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The `data` block."""

    seq_length: int = 128
    masking: Literal["dynamic", "static"] = "dynamic"
    """`dynamic`: new masks in each epoch. `static`: the same masks in each epoch; shards that contain masks keep
    those."""
    mask_probability: float | MaskSchedule = 0.15
    """Share of the tokens that are selected, or an object by which it changes over the run."""
    eval_mask_probability: float | None = None
    """The share in evaluations; by default that of the run's end. Losses at different shares do not compare."""
    masking_unit: Literal["token", "word", "span"] = "token"
    """What is masked together: a token, a whole word, or 1 to 10 words."""
    whole_word: bool = False
    """The same as `masking_unit` word."""
    shuffle: Literal["global", "blocks"] = "global"
    """`global`: a row can come at any place of the epoch. `blocks`: rows that are neighbours in a file are used close
    together."""
    shuffle_block_rows: int = 4096
    """With `blocks`: neighbouring rows in one block."""
    shuffle_window_blocks: int = 64
    """With `blocks`: blocks whose rows are mixed; two such windows should fit into a node's file cache."""
    workers: int = 1
    """Data loader processes per rank; 0 loads in the training process."""
    vocab_file: str | None = None
    """Vocabulary file for shards in NVIDIA's format whose directory has no `vocab.txt`."""
    follow_links: bool = False
    """Whether the data directory's files may be symlinks to outside it; only for directories from people you trust."""

    def check(self) -> Iterable[str]:
        """Yield one message for each invalid value, as 'key: given; allowed'."""
        if self.whole_word and self.masking_unit == "span":
            yield "whole_word: true; must be false with masking_unit 'span', which masks whole words"
        yield from check_least(self, 8, "seq_length")
        for key in ("mask_probability", "eval_mask_probability"):
            value = getattr(self, key)
            if isinstance(value, float) and not 0.0 < value < 1.0:
                yield f"{key}: {value}; must be in (0, 1)"
        if self.masking == "static":
            allowed = "must not be given with masking 'static', whose masks stay the same; use 'dynamic'"
            if isinstance(self.mask_probability, MaskSchedule):
                yield f"mask_probability: an object; {allowed}"
            if self.eval_mask_probability is not None:
                yield f"eval_mask_probability: {self.eval_mask_probability}; {allowed}"
        yield from check_least(self, 1, "shuffle_block_rows", "shuffle_window_blocks")
        yield from check_least(self, 0, "workers")
        yield from check_most(self, 1024, "workers")

    def mask_probability_at(self, step: int) -> float:
        """Return the share of selected tokens in optimizer step `step`, counted from 0."""
        return (
            self.mask_probability.at(step) if isinstance(self.mask_probability, MaskSchedule) else self.mask_probability
        )

    def mean_mask_probability(self, num_steps: int) -> float:
        """Return the mean share over the optimizer steps 0 … num_steps − 1."""
        share = self.mask_probability
        return share.mean(num_steps) if isinstance(share, MaskSchedule) else share

    @property
    def greatest_mask_probability(self) -> float:
        """The greatest share of any step."""
        share = self.mask_probability
        return max(share.start, share.end) if isinstance(share, MaskSchedule) else share

    @property
    def evaluated_mask_probability(self) -> float:
        """The share in evaluations."""
        share = self.mask_probability
        last = share.end if isinstance(share, MaskSchedule) else share
        return last if self.eval_mask_probability is None else self.eval_mask_probability

    def resolved(self, max_steps: int) -> DataConfig:
        """Return a copy in which a schedule of the share has steps for a run of `max_steps` steps."""
        share = self.mask_probability
        if not isinstance(share, MaskSchedule):
            return self
        return dataclasses.replace(self, mask_probability=share.resolved(max_steps))


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The `training` block. Intervals are in optimizer steps; 0 switches evaluation or checkpoints off."""

    max_steps: int = 200_000
    max_micro_batch_size: int | None = None
    """Largest micro-batch of a rank, in sequences, where the JSON gives `train_batch_size` alone; by default all of the
    rank's share. The micro-batch is the largest divisor of that share up to it."""
    log_interval: int = 10
    eval_interval: int = 1000
    eval_rows: int | None = None
    """Rows of the validation split that each evaluation during training uses; by default all."""
    checkpoint_interval: int = 1000
    keep_checkpoints: int = 3
    seed: int = 42
    """Seed of initialisation, data order, masks and dropout. The gates have their own: progressive_layer_drop.seed."""
    peak_tflops: float | None = None
    """Peak TFLOP/s of one device, for `mfu`; by default known for the GPUs in bert_pld/training/metrics.py."""
    heartbeat_timeout: float = 30.0
    """Heartbeat timeout in seconds: if a rank sends no heartbeat within it, the run ends on every host."""
    stall_timeout: float = 1800.0
    """Stall timeout in seconds: if no rank makes progress within it, the run ends; 0: no timeout."""

    def check(self) -> Iterable[str]:
        """Yield one message for each invalid value, as 'key: given; allowed'."""
        yield from check_least(self, 1, "max_steps", "log_interval", "keep_checkpoints", "eval_rows")
        yield from check_least(self, 1, "max_micro_batch_size")
        yield from check_most(self, 1 << 24, "max_micro_batch_size")
        yield from check_most(self, 10**9, "max_steps")
        yield from check_most(self, 10**7, "heartbeat_timeout", "stall_timeout")
        yield from check_least(self, 0, "eval_interval", "checkpoint_interval", note=" (0: never)")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            yield f"peak_tflops: {self.peak_tflops}; must be > 0"
        yield from check_least(self, 2, "heartbeat_timeout", note=" seconds")
        if self.stall_timeout and self.stall_timeout < self.heartbeat_timeout:
            yield f"stall_timeout: {self.stall_timeout}; must be >= heartbeat_timeout, or 0 (never)"
        yield from _check_seed(self.seed)


def _check_seed(seed: int) -> Iterable[str]:
    if not 0 <= seed <= MAX_SEED:
        yield f"seed: {seed}; must be in [0, {MAX_SEED}]"
