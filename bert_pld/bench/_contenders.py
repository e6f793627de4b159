"""What `bench train` compares: one model in several classes and backends, on the same random tokens."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bert_pld.config import ModelConfig
from bert_pld.model.bert import BertForPreTraining
from bert_pld.model.hugging_face import to_hugging_face
from bert_pld.pld.gates import Gates

CONTENDERS = ("hugging_face", "reference", "compiled", "pld_batch", "pld_sample")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of the whole model, as DeepSpeed casts it."""
MASK_PROBABILITY = 0.15


@dataclasses.dataclass(frozen=True)
class Batch:
    """Random tokens in both classes' forms; no row has padding."""

    input_ids: Tensor
    token_type_ids: Tensor
    masked_positions: Tensor
    masked_labels: Tensor
    labels: Tensor
    """[B, S], -100 where nothing is masked."""
    next_sentence_labels: Tensor


@dataclasses.dataclass
class Contender:
    """One way to train, with its model, optimizer and measured rounds."""

    name: str
    dtype: str
    model: nn.Module
    forward: Callable[[nn.Module, Batch, int], Tensor]
    """(model, batch, step within the round) → loss."""
    optimizer: torch.optim.Optimizer
    round_seconds: list[float] = dataclasses.field(default_factory=list)


def random_batch(config: ModelConfig, rows: int, seq: int, device: torch.device, seed: int) -> Batch:
    """B = `rows` sequences of S = `seq` random tokens, `MASK_PROBABILITY` of them masked in each row."""
    generator = torch.Generator().manual_seed(seed)
    assert config.vocab_size is not None
    input_ids = torch.randint(1, config.vocab_size, (rows, seq), generator=generator)
    # The same number in each row, at random positions.
    targets = max(round(MASK_PROBABILITY * seq), 1)
    columns = torch.rand(rows, seq, generator=generator).argsort(dim=1)[:, :targets].sort(dim=1).values
    labels = torch.full((rows, seq), -100).scatter(1, columns, input_ids.gather(1, columns))
    positions = (columns + torch.arange(rows)[:, None] * seq).flatten()
    tensors = (
        input_ids,
        (torch.arange(seq) >= seq // 2).long().expand(rows, seq).contiguous(),
        positions,
        input_ids.flatten()[positions],
        labels,
        torch.randint(0, 2, (rows,), generator=generator),
    )
    return Batch(*(tensor.to(device) for tensor in tensors))


def make_contender(
    name: str, dtype: str, config: ModelConfig, gates: dict[str, list[Gates]], device: torch.device
) -> Contender:
    """A contender by its name in `CONTENDERS`; all start from the same weights. `gates`: of the steps of a round."""
    torch.manual_seed(0)
    model: nn.Module = BertForPreTraining(config)
    forward = _forward_hugging_face
    if name == "hugging_face":
        model = _as_hugging_face(model)
    else:
        drawn = gates.get(name)
        model.encoder.use_backend("compiled" if name == "compiled" else "reference", device.type)

        def forward(model: nn.Module, batch: Batch, step: int) -> Tensor:
            return _forward_ours(model, batch, None if drawn is None else drawn[step])

    model.to(device, DTYPES[dtype]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return Contender(name, dtype, model, forward, optimizer)


def _as_hugging_face(model: nn.Module) -> nn.Module:
    """The stock class with the same weights and its default attention."""
    import transformers

    hf_config, state = to_hugging_face(model.state_dict(), model.config)
    theirs = getattr(transformers, hf_config.architectures[0])(hf_config)
    theirs.load_state_dict(state, strict=False)
    return theirs


def _forward_hugging_face(model: nn.Module, batch: Batch, step: int) -> Tensor:
    return model(
        input_ids=batch.input_ids,
        token_type_ids=batch.token_type_ids,
        labels=batch.labels,
        next_sentence_label=batch.next_sentence_labels,
    ).loss


def _forward_ours(model: nn.Module, batch: Batch, gates: Gates | None) -> Tensor:
    return model(
        batch.input_ids,
        batch.token_type_ids,
        None,
        batch.masked_positions,
        batch.masked_labels,
        batch.next_sentence_labels,
        gates=gates,
    )["loss"]


@torch.no_grad()
def loss_difference(config: ModelConfig, batch: Batch, device: torch.device) -> float:
    """How far the two classes' losses are apart, in evaluation and fp32: that they compute the same is checked here."""
    torch.manual_seed(0)
    ours = BertForPreTraining(config).eval()
    theirs = _as_hugging_face(ours).to(device).eval()
    difference = _forward_ours(ours.to(device), batch, None) - _forward_hugging_face(theirs, batch, 0)
    return abs(difference.item())


def train_step(contender: Contender, batch: Batch, step: int, device: torch.device) -> None:
    """Forward, backward, optimizer; a dropped block's parameters step with zero gradients, as under DeepSpeed."""
    contender.forward(contender.model, batch, step).backward()
    for parameter in contender.model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    contender.optimizer.step()
    contender.optimizer.zero_grad(set_to_none=True)


def time_round(contender: Contender, batches: list[Batch], steps: int, device: torch.device) -> float:
    """Seconds that a round of `steps` steps takes."""
    started = now(device)
    for step in range(steps):
        train_step(contender, batches[step % len(batches)], step, device)
    return now(device) - started


def now(device: torch.device) -> float:
    """Wall-clock seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
