"""The four blocks of a run's JSON that are ours: keys, types, defaults and allowed ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

from bert_pld.config.mask_schedule import MaskSchedule
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
    keep_masked_tokens: bool = False
    """At `token` granularity, a block runs on a sequence's masked tokens first, as far as its share goes."""
    seed: int = 0

    def check(self) -> Iterable[str]:
        """Yield one message for each invalid value, as 'key: given; allowed'."""
        if not 0.0 < self.theta <= 1.0:
            yield f"theta: {self.theta}; must be in (0, 1]"
        if self.gamma != "auto" and self.gamma < 0:
            yield f"gamma: {self.gamma}; must be >= 0, or 'auto'"
        for key in ("ramp", "dense_warmup", "dense_finish"):
            value = getattr(self, key)
            if value < 0 or (value >= 1 and value != int(value)):
                yield f"{key}: {value:g}; must be a share of the run in [0, 1), or a whole number of steps"
        yield from _check_seed(self.seed)

    def describe(self) -> str:
        """Return one line on a resolved block, for `plan` and for model cards."""
        over_steps = f"{self.temporal} over {self.ramp:,.0f} steps"
        if self.temporal == "exponential":
            over_steps = f"γ = {float(self.gamma):g}, exponential over steps"
        elif self.temporal == "constant":
            over_steps = "constant over steps"
        ends = [name for name, kept in (("first", self.keep_first_block), ("last", self.keep_last_block)) if kept]
        parts = [f"θ → {self.theta:g}", over_steps, f"{self.depth} over depth"]
        if ends:
            parts.append(f"{' and '.join(ends)} block kept")
        if self.keep_masked_tokens:
            parts.append("masked tokens kept")
        if self.dense_warmup or self.dense_finish:
            parts.append(
                f"nothing dropped in the first {self.dense_warmup:,.0f} and last {self.dense_finish:,.0f} steps"
            )
        return f"{', '.join(parts)}, granularity {self.granularity}"

    def resolved(self, max_steps: int) -> ProgressiveLayerDropConfig:
        """Return a copy with `gamma: auto` and all shares of a run of `max_steps` steps replaced by numbers.

        What has no effect becomes the same in every run, so that it cannot make two runs differ: `gamma` and `ramp`
        where `temporal` does not use them, `keep_masked_tokens` without token granularity, and everything if dropping
        is disabled.
        """
        if not self.enabled:
            return ProgressiveLayerDropConfig(enabled=False, gamma=0.0, ramp=0.0)

        def steps(value: float) -> float:
            return float(round(value * max_steps) if value < 1 else value)

        gamma = 100.0 / max_steps if self.gamma == "auto" else self.gamma
        return dataclasses.replace(
            self,
            gamma=gamma if self.temporal == "exponential" else 0.0,
            keep_masked_tokens=self.keep_masked_tokens and self.granularity == "token",
            ramp=steps(self.ramp) if self.temporal in ("linear", "growing") else 0.0,
            dense_warmup=steps(self.dense_warmup),
            dense_finish=steps(self.dense_finish),
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The `model` block. `architecture` and `preset` set what is not given (`architectures.py`)."""

    architecture: Literal["bert", "modernbert"] = "bert"
    """`bert`: learned positions and segments. `modernbert`: rotary positions, gated feed-forwards, no biases, global
    and local attention."""
    preset: Literal["tiny", "mini", "small", "medium", "base", "large"] | None = "base"
    hidden_size: int = 768
    num_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    """Rows of the segment embedding; with one row all tokens are in the same segment, and 0 leaves it out."""
    vocab_size: int | None = None
    """Rows of the word embedding; by default the size of the data's vocabulary, rounded up to a multiple of 8."""
    normalization: Literal["pre", "post"] = "pre"
    """`pre`: Pre-LN, the paper's identity-mapping blocks (Hugging Face: MegatronBert). `post`: Post-LN, the original
    BERT."""
    family: Literal["roberta", "xlm-roberta", "camembert", "distilbert", "electra"] | None = None
    """Hugging Face's model type that an export has; by default BERT's or MegatronBert's, as `normalization` says."""
    embedding_size: int | None = None
    """Width of the embeddings, which a projection widens to `hidden_size` (ELECTRA); by default `hidden_size`."""
    position_offset: int = 0
    """Unused rows of the position embeddings before the first position's (RoBERTa)."""
    exported_vocab_size: int | None = None
    """Entries of the vocabulary in an export; by default `vocab_size`."""
    next_sentence_prediction: bool | Literal["auto"] = "auto"
    """Whether the model has a pooler and an NSP head; `auto`: if the data has sentence pairs."""
    hidden_act: Literal["gelu", "gelu_tanh"] = "gelu"
    hidden_dropout: float = 0.1
    """`bert`: of the embeddings and of both sub-layers' outputs. `modernbert`: of the embeddings and inside the
    feed-forward, before its last matrix."""
    attention_dropout: float = 0.1
    """Of the attention weights; in `modernbert` also of the attention's output."""
    local_attention: int | None = None
    """`modernbert`: width of the window of a local block, in tokens: i attends to j if |i − j| <= local_attention // 2.
    """
    global_attn_every_n_layers: int | None = None
    """`modernbert`: the first block and every n-th after it attend to the whole sequence, the others locally."""
    global_rope_theta: float | None = None
    """`modernbert`: base of the rotary positions' wavelengths in global blocks."""
    local_rope_theta: float | None = None
    """The same in local blocks."""
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    position_initialization: Literal["normal", "sinusoidal"] = "normal"
    """Initial values of the learned position embeddings: normal noise, or sinusoids. Neighbouring sinusoids differ by a
    rotation, which attention learns sooner. Both are trained and exported in the same way."""
    kernels: Literal["auto", "reference", "compiled", "triton"] = "auto"
    activation_checkpointing: bool = False
    fp8: bool = False
    """Whether the blocks' matrix products have operands in FP8 during training, on a GPU that has it (8.9 or newer)."""

    def check(self) -> Iterable[str]:
        """Yield one message for each invalid value, as 'key: given; allowed'."""
        sizes = ("hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "embedding_size")
        yield from _check_least(self, 1, *sizes, "exported_vocab_size")
        yield from _check_least(self, 0, "type_vocab_size", "position_offset")
        yield from _check_least(self, 8, "max_position_embeddings")
        yield from _check_least(self, 6, "vocab_size")
        yield from _check_least(self, 2, "local_attention")
        yield from _check_least(self, 1, "global_attn_every_n_layers")
        yield from _check_most(self, 10_000, "num_layers")
        yield from _check_most(self, 1 << 20, "hidden_size", "type_vocab_size", "max_position_embeddings")
        yield from _check_most(self, 1 << 20, "embedding_size", "position_offset")
        yield from _check_most(self, 1 << 24, "intermediate_size", "vocab_size")
        if self.num_attention_heads >= 1 and self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            yield f"hidden_size: {self.hidden_size}; must be a multiple of num_attention_heads ({heads})"
        elif self.architecture == "modernbert" and self.hidden_size // self.num_attention_heads % 2:
            heads = self.num_attention_heads
            yield f"hidden_size: {self.hidden_size}; rotary positions need an even width of each of the {heads} heads"
        for key in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                yield f"{key}: {getattr(self, key)}; must be in [0, 1)"
        for key in ("layer_norm_eps", "initializer_range", "global_rope_theta", "local_rope_theta"):
            value = getattr(self, key)
            if value is not None and value <= 0.0:
                yield f"{key}: {value}; must be > 0"
        yield from self._check_family()

    def _check_family(self) -> Iterable[str]:
        """Yield a message if the model could not be exported as its family."""
        distilled = self.family == "distilbert"
        if self.family is not None:
            if self.architecture != "bert":
                yield f"architecture: {self.architecture!r}; must be 'bert' for family {self.family!r}"
            if self.normalization == "pre":
                yield f"normalization: 'pre'; must be 'post' for family {self.family!r}"
            if self.next_sentence_prediction is True:
                yield f"next_sentence_prediction: true; must be false for family {self.family!r}"
            if not distilled and self.hidden_act != "gelu":
                yield f"hidden_act: {self.hidden_act!r}; must be 'gelu' for family {self.family!r}"
        if distilled and self.layer_norm_eps != 1e-12:
            yield f"layer_norm_eps: {self.layer_norm_eps}; must be 1e-12 for family 'distilbert'"
        if (self.type_vocab_size == 0) != distilled and self.architecture == "bert":
            yield f"type_vocab_size: {self.type_vocab_size}; must be 0 for family 'distilbert' and >= 1 otherwise"
        if (self.exported_vocab_size or 0) > (self.vocab_size or self.exported_vocab_size or 0):
            yield f"exported_vocab_size: {self.exported_vocab_size}; must be at most vocab_size ({self.vocab_size})"
        if self.embedding_size is not None and self.family != "electra":
            yield f"embedding_size: {self.embedding_size}; only family 'electra' has it"

    def is_local(self, block: int) -> bool:
        """Return whether a block, counted from 0, attends within a window only."""
        return self.global_attn_every_n_layers is not None and block % self.global_attn_every_n_layers != 0

    @property
    def attention_reach(self) -> int | None:
        """Largest distance over which a local block attends, in tokens; None without local blocks."""
        return None if self.local_attention is None else self.local_attention // 2

    @property
    def feed_forward_matrices(self) -> int:
        """Number of `hidden_size` × `intermediate_size` matrices in a block."""
        return 3 if self.architecture == "modernbert" else 2


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
        yield from _check_least(self, 8, "seq_length")
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
        yield from _check_least(self, 1, "shuffle_block_rows", "shuffle_window_blocks")
        yield from _check_least(self, 0, "workers")
        yield from _check_most(self, 1024, "workers")

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
        yield from _check_least(self, 1, "max_steps", "log_interval", "keep_checkpoints", "eval_rows")
        yield from _check_least(self, 1, "max_micro_batch_size")
        yield from _check_most(self, 1 << 24, "max_micro_batch_size")
        yield from _check_most(self, 10**9, "max_steps")
        yield from _check_most(self, 10**7, "heartbeat_timeout", "stall_timeout")
        yield from _check_least(self, 0, "eval_interval", "checkpoint_interval", note=" (0: never)")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            yield f"peak_tflops: {self.peak_tflops}; must be > 0"
        yield from _check_least(self, 2, "heartbeat_timeout", note=" seconds")
        if self.stall_timeout and self.stall_timeout < self.heartbeat_timeout:
            yield f"stall_timeout: {self.stall_timeout}; must be >= heartbeat_timeout, or 0 (never)"
        yield from _check_seed(self.seed)


def _check_least(block: object, least: int, *keys: str, note: str = "") -> Iterable[str]:
    for key in keys:
        value = getattr(block, key)
        if value is not None and value < least:
            yield f"{key}: {value}; must be >= {least}{note}"


def _check_most(block: object, most: int, *keys: str) -> Iterable[str]:
    """Reject sizes that are typing errors, before anything counts up to them."""
    for key in keys:
        value = getattr(block, key)
        if value is not None and value > most:
            yield f"{key}: {value}; must be at most {most}"


def _check_seed(seed: int) -> Iterable[str]:
    if not 0 <= seed <= MAX_SEED:
        yield f"seed: {seed}; must be in [0, {MAX_SEED}]"
