"""Contenders of `benchmarks train`: Hugging Face's classes, DeepSpeed's layer, our backends, and ours with PLD."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.batches import Batch
from benchmarks.engines import wrap_in_engine
from benchmarks.hugging_face import HUGGING_FACE_CONTENDERS, MODERNBERT_CONTENDERS, as_hugging_face, make_hugging_face
from benchmarks.timing import PeakMemory, StepClock, allocated_bytes, allocated_since, synchronize
from benchmarks.train.deepspeed_layer import use_deepspeed_blocks
from bert_pld.config import ModelConfig
from bert_pld.kernels import select_backend
from bert_pld.model import make_model, use_backend
from bert_pld.pld.gates import Gates
from bert_pld.pld.schedule import Schedule

OURS = ("reference", "compiled", "triton", "triton_fp8", "triton_graphs")
PLD: dict[str, Literal["batch", "sample", "token"]] = {
    "pld_batch": "batch",
    "pld_batch_graphs": "batch",
    "pld_sample": "sample",
    "pld_token": "token",
    "pld_token_graphs": "token",
    "pld_token_same": "token",
}
"""The contenders with layer dropping, and their granularity; in `pld_token_same` all blocks drop the same tokens."""
PEERS = (*HUGGING_FACE_CONTENDERS, *MODERNBERT_CONTENDERS)
"""Hugging Face's classes."""
CONTENDERS = (*PEERS, "deepspeed_transformer", *OURS, *PLD)
Forward = Callable[[Any, Batch, int], Tensor]
"""(engine, batch, step within the round) → loss."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """Settings that all contenders share."""

    config: ModelConfig
    micro_batch_size: int
    seq_length: int
    device: torch.device
    batches: Sequence[Batch]
    """Micro-batch of each step of a round."""
    gates: Mapping[str, Sequence[Gates]]
    """Gates of each step of a round, for each PLD contender."""
    deepspeed: Mapping[str, Mapping[str, Any]]
    """DeepSpeed configuration for each dtype."""
    pld_kernels: str
    """Backend of the PLD contenders."""
    warmup_steps: int
    optimizer: str = "AdamW"
    """Optimizer of our contenders; the others have AdamW."""


@dataclasses.dataclass
class ThroughputContender:
    """An engine to time, and its measurements."""

    name: str
    dtype: str
    backend: str
    """Implementation of the blocks: eager, compiled, deepspeed, or one of our backends, perhaps with CUDA graphs."""
    attention: str
    engine: Any
    forward: Forward
    warmup_seconds: float = 0.0
    """Duration of the warm-up, compilation included."""
    warmup_skipped_steps: int = 0
    """Warm-up steps that the optimizer skipped because fp16's first loss scales are too high."""
    first_loss: float | None = None
    resident_bytes: int | None = None
    """Memory that stays between steps: parameters, optimizer states, buffers."""
    rise_bytes: list[int] = dataclasses.field(default_factory=list)
    """Rise of memory above that, in each round."""
    step_seconds: list[list[float]] = dataclasses.field(default_factory=list)
    """Seconds of each step, by round."""
    profile: dict[str, Any] | None = None
    """See `benchmarks.train.profile`."""

    @property
    def chooses_rows(self) -> bool:
        """Whether the last block's end is computed on the tokens that a loss looks at only."""
        return getattr(getattr(self.engine.module, "encoder", None), "run_chosen", None) is not None

    @property
    def round_seconds(self) -> list[float]:
        """Seconds of each round."""
        return [sum(steps) for steps in self.step_seconds]

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory, without that of other contenders; None where it was not measured."""
        return None if self.resident_bytes is None else self.resident_bytes + max(self.rise_bytes, default=0)

    @property
    def skipped_steps(self) -> int:
        """Measured steps that the optimizer skipped because a gradient overflowed."""
        return self.engine.skipped_steps - self.warmup_skipped_steps

    def train_step(self, batch: Batch, step: int) -> Tensor:
        """Run forward, backward and optimizer; return the loss."""
        loss = self.forward(self.engine, batch, step)
        self.engine.backward(loss)
        self.engine.step()
        return loss

    def warm_up(self, batches: Sequence[Batch], steps: int) -> None:
        """Train before the measurement. Backends that compile by shape need a whole round's batches and gates."""
        steps = steps if self.backend in ("eager", "reference") else max(steps, len(batches))
        started = time.perf_counter()
        for step in range(steps):
            index = step % len(batches)
            loss = self.train_step(batches[index], index)
            if step == 0:
                self.first_loss = loss.item()
        synchronize(self.engine.device)
        self.warmup_seconds = time.perf_counter() - started
        self.warmup_skipped_steps = self.engine.skipped_steps

    def measure_round(self, batches: Sequence[Batch], now: Callable[[], float] = time.perf_counter) -> None:
        """Time a step on each batch; `now` is the clock on a CPU."""
        device = self.engine.device
        memory, clock = PeakMemory(device), StepClock(device, now)
        for step, batch in enumerate(batches):
            self.train_step(batch, step)
            clock.mark()
        self.step_seconds.append(clock.seconds())
        rise = memory.rise_bytes()
        if rise is not None:
            self.rise_bytes.append(rise)


def schedule_of(name: str, num_blocks: int, theta: float) -> Schedule:
    """Return the constant schedule of a PLD contender: the paper's depth, or by token uniform between kept ends."""
    shape: dict[str, Any] = {}
    if name.startswith("pld_token"):
        shape = {"depth": "uniform", "keep_first_block": True, "keep_last_block": True}
    return Schedule(num_blocks, theta_limit=theta, temporal="constant", **shape)


def prepare_contender(name: str, dtype: str, setup: Setup) -> ThroughputContender:
    """Make a contender of `CONTENDERS` and warm it up; those of one normalization start from the same weights.

    Raises ValueError with the reason if it cannot run here.
    """
    before = allocated_bytes(setup.device)
    if name in PEERS:
        model = make_hugging_face(name, setup.config, 0, setup.device)
        backend = "compiled" if name.endswith("_compiled") else "eager"
        attention = model.config._attn_implementation
        reads_pairs = bool(setup.config.next_sentence_prediction)
        forward: Forward = functools.partial(forward_hugging_face, reads_pairs=reads_pairs)
    else:
        model, backend, attention = _make_ours(name, dtype, setup)
        gates = setup.gates.get(name)

        def forward(engine: Any, batch: Batch, step: int) -> Tensor:
            return forward_ours(engine, batch, None if gates is None else gates[step])

    is_ours = name in OURS or name in PLD
    settings = setup.deepspeed[dtype]
    if is_ours:
        settings = {**settings, "optimizer": {**settings["optimizer"], "type": setup.optimizer}}
    engine = wrap_in_engine(model.to(setup.device).train(), settings, light_boundary=is_ours)
    contender = ThroughputContender(name, dtype, backend, attention, engine, forward)
    contender.warm_up(setup.batches, setup.warmup_steps)
    contender.resident_bytes = allocated_since(before, setup.device)
    return contender


def forward_hugging_face(model: nn.Module, batch: Batch, step: int = 0, reads_pairs: bool = True) -> Tensor:
    """The class's own loss, as its users run it: with the MLM head on all positions."""
    mask, pairs = batch.attention_mask, {}
    if reads_pairs:
        pairs = {"token_type_ids": batch.token_type_ids, "next_sentence_label": batch.next_sentence_labels}
    mask = None if mask is None else mask.long()
    return model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels, **pairs).loss


def forward_ours(model: nn.Module, batch: Batch, gates: Gates | None = None) -> Tensor:
    """Our model's loss under given gates."""
    lengths = None if batch.attention_mask is None else batch.sequence_lengths
    return model(**batch.model_inputs(), gates=gates, sequence_lengths=lengths)["loss"]


@torch.no_grad()
def loss_difference(config: ModelConfig, batch: Batch, device: torch.device) -> float:
    """Difference of our loss and Hugging Face's with the same weights, in evaluation mode and fp32.

    A small value shows that the compared classes compute the same function.
    """
    torch.manual_seed(0)
    ours = make_model(config).eval()
    theirs = as_hugging_face(ours).to(device).eval()
    their_loss = forward_hugging_face(theirs, batch, reads_pairs=bool(config.next_sentence_prediction))
    return abs((forward_ours(ours.to(device), batch) - their_loss).item())


def _make_ours(name: str, dtype: str, setup: Setup) -> tuple[nn.Module, str, str]:
    torch.manual_seed(0)
    graphs = "_graphs" if name.endswith("_graphs") else ""
    model = make_model(dataclasses.replace(setup.config, fp8=name.endswith("_fp8"), cuda_graphs=bool(graphs)))
    if name == "deepspeed_transformer":
        if setup.config.architecture != "bert":
            raise ValueError("deepspeed_transformer: its blocks are those of --architecture bert")
        use_deepspeed_blocks(model, setup.micro_batch_size, setup.seq_length, dtype, setup.device)
        return model, "deepspeed", "deepspeed"
    kernels = setup.pld_kernels if name in PLD else name.removesuffix("_fp8").removesuffix("_graphs")
    backend = select_backend(kernels, setup.device.type, setup.config.hidden_size)
    use_backend(model, backend, setup.device.type)
    return model, backend + graphs, "sdpa"
