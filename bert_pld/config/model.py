"""The `model` block of a run's JSON: keys, types, defaults and allowed ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

from bert_pld.config.ranges import check_least, check_most

_VOCABULARY_MULTIPLE = 8
"""Tensor cores need matrix sizes that are multiples of 8."""
KEYS_OF_NO_WEIGHT = (
    *("kernels", "activation_checkpointing", "fp8", "cuda_graphs"),
    *("initializer_range", "position_initialization"),
)
"""Keys that say how a model runs or begins, not what its weights are."""


def rounded_vocabulary(entries: int) -> int:
    """Return the rows of the word embedding for a vocabulary: its entries, rounded up for tensor cores."""
    return -(-entries // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


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
    cuda_graphs: bool = False
    """Whether a GPU repeats the launches of whole blocks from CUDA graphs, as far as shapes allow."""

    def check(self) -> Iterable[str]:
        """Yield one message for each invalid value, as 'key: given; allowed'."""
        sizes = ("hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "embedding_size")
        yield from check_least(self, 1, *sizes, "exported_vocab_size")
        yield from check_least(self, 0, "type_vocab_size", "position_offset")
        yield from check_least(self, 8, "max_position_embeddings")
        yield from check_least(self, 6, "vocab_size")
        yield from check_least(self, 2, "local_attention")
        yield from check_least(self, 1, "global_attn_every_n_layers")
        yield from check_most(self, 10_000, "num_layers")
        yield from check_most(self, 1 << 20, "hidden_size", "type_vocab_size", "max_position_embeddings")
        yield from check_most(self, 1 << 20, "embedding_size", "position_offset")
        yield from check_most(self, 1 << 24, "intermediate_size", "vocab_size")
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
        if self.cuda_graphs and self.activation_checkpointing:
            yield "cuda_graphs: true; must be false with activation_checkpointing"
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
