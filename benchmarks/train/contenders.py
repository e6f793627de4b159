"""What `bench train` compares: Hugging Face's classes, DeepSpeed's layer, our backends, and ours under PLD."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.batches import Batch
from benchmarks.deepspeed_engine import make_engine
from benchmarks.timing import PeakMemory, StepClock, allocated_bytes, synchronize
from benchmarks.train.deepspeed_layer import use_deepspeed_blocks
from bert_pld.config import ModelConfig
from bert_pld.kernels import select_backend
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.model.hugging_face import to_hugging_face
from bert_pld.pld.gates import Gates

HUGGING_FACE: dict[str, Literal["pre", "post"]] = {"hf_bert": "post", "hf_megatron": "pre"}
"""Their eager contenders, with the normalization that each class has."""
OURS = ("reference", "compiled", "triton")
PLD = ("pld_batch", "pld_sample")
CONTENDERS = (
    *(f"{name}{suffix}" for name in HUGGING_FACE for suffix in ("", "_compiled")),
    "deepspeed_transformer",
    *OURS,
    *PLD,
)
Forward = Callable[[Any, Batch, int], Tensor]
_RECOMPILATIONS = 64
"""Of one function, for all contenders together; past them torch.compile would quietly run it eagerly."""


@dataclasses.dataclass
class Contender:
    """One way to train: its engine, and what was measured of it."""

    name: str
    dtype: str
    backend: str
    """What runs the blocks: eager, compiled, deepspeed, or one of ours."""
    attention: str
    engine: Any
    forward: Forward
    """(engine, batch, step within the round) → loss."""
    warmup_seconds: float = 0.0
    """Compilation included."""
    warmup_skipped_steps: int = 0
    """Of the warm-up, that a loss scale too high for fp16 cost the optimizer."""
    first_loss: float | None = None
    resident_bytes: int | None = None
    """Of parameters, optimizer states and whatever else stays between steps."""
    rise_bytes: list[int] = dataclasses.field(default_factory=list)
    """Of each round: how far memory rose over that."""
    step_seconds: list[list[float]] = dataclasses.field(default_factory=list)
    """Of each round's steps."""

    @property
    def round_seconds(self) -> list[float]:
        """Seconds of each round."""
        return [sum(steps) for steps in self.step_seconds]

    @property
    def peak_bytes(self) -> int | None:
        """Memory at its highest, as if no other contender were there; None where it was not measured."""
        return None if self.resident_bytes is None else self.resident_bytes + max(self.rise_bytes, default=0)

    @property
    def skipped_steps(self) -> int:
        """Measured steps whose optimizer did nothing, as a gradient overflowed."""
        return self.engine.skipped_steps - self.warmup_skipped_steps

    def train_step(self, batch: Batch, step: int) -> Tensor:
        """Forward, backward, optimizer."""
        loss = self.forward(self.engine, batch, step)
        self.engine.backward(loss)
        self.engine.step()
        return loss

    def warm_up(self, batches: Sequence[Batch], warmup_steps: int, steps_per_round: int) -> None:
        """Steps before the measurement; what compiles kernels by shape sees a whole round's batches and gates."""
        steps = warmup_steps if self.backend in ("eager", "reference") else max(warmup_steps, steps_per_round)
        started = time.perf_counter()
        for step in range(steps):
            loss = self.train_step(batches[step % len(batches)], step % steps_per_round)
            if step == 0:
                self.first_loss = loss.item()
        synchronize(self.engine.device)
        self.warmup_seconds = time.perf_counter() - started
        self.warmup_skipped_steps = self.engine.skipped_steps

    def measure_round(self, batches: Sequence[Batch], steps: int) -> None:
        """Time one turn of `steps` steps."""
        device = self.engine.device
        memory, clock = PeakMemory(device), StepClock(device)
        for step in range(steps):
            self.train_step(batches[step % len(batches)], step)
            clock.mark()
        self.step_seconds.append(clock.seconds())
        rise = memory.rise_bytes()
        if rise is not None:
            self.rise_bytes.append(rise)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all contenders have in common."""

    config: ModelConfig
    rows: int
    seq: int
    device: torch.device
    deepspeed: Mapping[str, Mapping[str, Any]]
    """The DeepSpeed configuration by dtype."""
    gates: Mapping[str, Sequence[Gates]]
    """Of a round's steps, for each PLD contender."""
    pld_kernels: str


def prepare_contender(
    name: str, dtype: str, setup: Setup, batches: Sequence[Batch], warmup_steps: int, steps_per_round: int
) -> Contender:
    """A contender by its name in `CONTENDERS`, warmed up; all of one normalization start from the same weights.

    Raises:
        ValueError: it cannot run here, and why.
    """
    before = allocated_bytes(setup.device)
    model: nn.Module
    if name.startswith("hf_"):
        model, backend, attention = _make_hugging_face(name, setup)
        forward: Forward = forward_hugging_face
    else:
        model, backend, attention = _make_ours(name, dtype, setup)
        forward = _forward_with(setup.gates.get(name))
    engine = make_engine(model.to(setup.device).train(), setup.deepspeed[dtype])
    contender = Contender(name, dtype, backend, attention, engine, forward)
    contender.warm_up(batches, warmup_steps, steps_per_round)
    after = allocated_bytes(setup.device)
    contender.resident_bytes = None if before is None or after is None else after - before
    return contender


def one_line(error: Exception) -> str:
    """What went wrong, for a line of a table."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def recompiling() -> contextlib.AbstractContextManager[None]:
    """Let torch.compile make a version for each contender and shape, and fail rather than run eagerly."""
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=_RECOMPILATIONS, fail_on_recompile_limit_hit=True)


def import_hugging_face() -> None:
    """Load their classes now: transformers loads what it has only when asked, which is no contender's memory."""
    import transformers

    assert transformers.BertForPreTraining, transformers.MegatronBertForPreTraining


def as_hugging_face(model: BertForPreTraining) -> nn.Module:
    """The stock class with the same weights; SDPA where the class has it, else its own attention."""
    import transformers

    hf_config, state = to_hugging_face(model.state_dict(), model.config)
    cls = getattr(transformers, hf_config.architectures[0])
    theirs = cls._from_config(hf_config, attn_implementation="sdpa" if cls._supports_sdpa else "eager")
    theirs.load_state_dict(state, strict=False)
    return theirs


def forward_hugging_face(model: nn.Module, batch: Batch, step: int = 0) -> Tensor:
    """Their loss, as users run it: the MLM head on all positions."""
    mask = batch.attention_mask
    return model(
        input_ids=batch.input_ids,
        token_type_ids=batch.token_type_ids,
        attention_mask=None if mask is None else mask.long(),
        labels=batch.labels,
        next_sentence_label=batch.next_sentence_labels,
    ).loss


def forward_ours(model: nn.Module, batch: Batch, gates: Gates | None = None) -> Tensor:
    """Our loss, under explicit gates."""
    return model(
        batch.input_ids,
        batch.token_type_ids,
        batch.attention_mask,
        batch.masked_positions,
        batch.masked_labels,
        batch.next_sentence_labels,
        gates=gates,
        sequence_lengths=None if batch.attention_mask is None else batch.sequence_lengths,
    )["loss"]


@torch.no_grad()
def loss_difference(config: ModelConfig, batch: Batch, device: torch.device) -> float:
    """How far the two classes' losses are apart, in evaluation and fp32: that they compute the same is checked here."""
    torch.manual_seed(0)
    ours = BertForPreTraining(config).eval()
    theirs = as_hugging_face(ours).to(device).eval()
    difference = forward_ours(ours.to(device), batch) - forward_hugging_face(theirs, batch)
    return abs(difference.item())


def _make_hugging_face(name: str, setup: Setup) -> tuple[nn.Module, str, str]:
    eager = name.removesuffix("_compiled")
    config = dataclasses.replace(setup.config, normalization=HUGGING_FACE[eager])
    if name != eager:
        select_backend("compiled", setup.device.type, config.hidden_size)
    torch.manual_seed(0)
    model = as_hugging_face(BertForPreTraining(config))
    if name != eager:
        model.compile()
    return model, "eager" if name == eager else "compiled", model.config._attn_implementation


def _make_ours(name: str, dtype: str, setup: Setup) -> tuple[nn.Module, str, str]:
    torch.manual_seed(0)
    model = BertForPreTraining(setup.config)
    if name == "deepspeed_transformer":
        use_deepspeed_blocks(model, setup.rows, setup.seq, dtype, setup.device)
        return model, "deepspeed", "deepspeed"
    backend = select_backend(setup.pld_kernels if name in PLD else name, setup.device.type, setup.config.hidden_size)
    use_backend(model, backend, setup.device.type)
    return model, backend, "sdpa"


def _forward_with(gates: Sequence[Gates] | None) -> Forward:
    def forward(engine: Any, batch: Batch, step: int) -> Tensor:
        return forward_ours(engine, batch, None if gates is None else gates[step])

    return forward
