"""Contenders of `benchmarks quality`: Hugging Face's classes behind our model's arguments, and our own models."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.hugging_face import HUGGING_FACE, HUGGING_FACE_CONTENDERS, make_hugging_face
from benchmarks.timing import PeakMemory, StepClock, allocated_bytes, allocated_since
from bert_pld.config import RunConfig
from bert_pld.cost.flops import ModelFlops
from bert_pld.data.batches import IGNORED_LABEL, MicroBatch
from bert_pld.model import BertForPreTraining, use_backend
from bert_pld.training.engine import make_engine
from bert_pld.training.loop import evaluate, seed_dropout

OURS: dict[str, tuple[Literal["pre", "post"], Literal["batch", "sample", "token"] | None]] = {
    "post": ("post", None),
    "pre": ("pre", None),
    "pld_batch": ("pre", "batch"),
    "pld_sample": ("pre", "sample"),
    "pld_token": ("pre", "token"),
}
"""Normalization and granularity of our contenders."""
CONTENDERS = (*HUGGING_FACE_CONTENDERS, *OURS)


class HuggingFaceModel(nn.Module):
    """A Hugging Face class with our model's arguments. It trains as its users run it: MLM head on all positions."""

    def __init__(self, wrapped: nn.Module, always_masked: bool = False) -> None:
        """Wrap a model. With `always_masked`, pass an attention mask even without padding.

        A compiled model would otherwise be compiled again for the first batch without padding.
        """
        super().__init__()
        self.wrapped, self.always_masked = wrapped, always_masked

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor | None,
        masked_positions: Tensor,
        masked_labels: Tensor,
        next_sentence_labels: Tensor | None = None,
        mlm_denominator: float | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Like `BertForPreTraining.forward`; in training mode only `loss`."""
        if attention_mask is None and self.always_masked:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        mask = None if attention_mask is None else attention_mask.long()
        given = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": mask}
        if self.training:
            labels = torch.full_like(input_ids.flatten(), IGNORED_LABEL)
            labels[masked_positions] = masked_labels
            if next_sentence_labels is not None:
                given["next_sentence_label"] = next_sentence_labels
            return {"loss": self.wrapped(**given, labels=labels.view_as(input_ids)).loss}
        outputs = self.wrapped(**given)
        logits = outputs.logits if next_sentence_labels is None else outputs.prediction_logits
        masked = logits.flatten(0, 1)[masked_positions].float()
        loss = functional.cross_entropy(masked, masked_labels, reduction="sum")
        correct = torch.zeros((), device=input_ids.device)
        if next_sentence_labels is not None:
            correct = (outputs.seq_relationship_logits.argmax(-1) == next_sentence_labels).sum()
        denominator = max(masked_labels.numel(), 1) if mlm_denominator is None else mlm_denominator
        return {
            "mlm_loss": loss / denominator,
            "mlm_correct": (masked.argmax(-1) == masked_labels).sum(),
            "nsp_correct": correct,
        }


@dataclasses.dataclass
class QualityContender:
    """One model in training, the time and memory of its own steps, and its held-out losses."""

    name: str
    attention: str
    engine: Any
    config: RunConfig
    resident_bytes: int | None
    """GPU memory that stays between steps: parameters, and from the first turn on optimizer states and buffers."""
    turns: list[list[float]] = dataclasses.field(default_factory=list)
    """Seconds of each step, by turn."""
    processor_seconds: float = 0.0
    """Processor time of this process, all threads, in the contender's turns."""
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    """Executed matrix-product FLOPs of the useful function, by `ModelFlops`: tokens, not padding, and the MLM head on
    masked positions only, also where a class computes more."""
    rise_bytes: int | None = None
    """Largest rise of GPU memory above `resident_bytes` within a turn."""
    evaluated_at: list[int] = dataclasses.field(default_factory=list)
    """Step of each evaluation."""
    loss: list[float] = dataclasses.field(default_factory=list)
    accuracy: list[float] = dataclasses.field(default_factory=list)

    def train_turn(self, batches: list[list[MicroBatch]]) -> None:
        """Train on these steps' micro-batches, timing each step."""
        before, memory = allocated_bytes(self.engine.device), PeakMemory(self.engine.device)
        clock, used = StepClock(self.engine.device), time.process_time()
        for micro_batches in batches:
            for micro_step, batch in enumerate(micro_batches):
                seed_dropout(self.config.training.seed, self.steps, micro_step, 0)
                loss = self.engine(**batch.to(self.engine.device).model_inputs())["loss"]
                self.engine.backward(loss)
                self.engine.step()
                self._count(batch)
            self.steps += 1
            clock.mark()
        self.turns.append(clock.seconds())
        self.processor_seconds += time.process_time() - used
        rise, growth = memory.rise_bytes(), allocated_since(before, self.engine.device)
        if rise is not None and growth is not None and self.resident_bytes is not None:
            self.resident_bytes += growth
            self.rise_bytes = max(self.rise_bytes or 0, rise - growth)

    @property
    def peak_bytes(self) -> int | None:
        """Peak GPU memory in training, without that of other contenders; None on a CPU."""
        return None if self.resident_bytes is None else self.resident_bytes + (self.rise_bytes or 0)

    def _count(self, batch: MicroBatch) -> None:
        dropper, rows = self.engine.layer_dropper, len(batch.lengths)
        gates = None if dropper is None else dropper.last_gates
        targets = batch.masked_tokens / batch.input_ids.numel()
        model = ModelFlops(self.config.model, self.config.data.seq_length, targets)
        blocks = model.gated_blocks(batch.lengths, gates, without_padding=True, documents=batch.document_lengths)
        self.flops += blocks + rows * model.heads_per_sequence
        self.tokens += batch.tokens

    def seconds(self) -> list[float]:
        """Seconds of training until each evaluation.

        Each step of the first turn counts as their median: some of them compile kernels and fill caches, which does not
        matter in a run of useful length. (The median of later turns would be too low: layer dropping starts slowly.)
        """
        first, *later = self.turns
        typical = statistics.median(first)
        passed = list(itertools.accumulate([typical] * len(first) + [step for turn in later for step in turn]))
        return [passed[step - 1] for step in self.evaluated_at]

    def evaluate(self, batches: Iterator[MicroBatch]) -> None:
        """Add a held-out loss; the time of evaluations does not count."""
        figures = evaluate(self.engine, batches, self.engine.device)
        self.evaluated_at.append(self.steps)
        self.loss.append(figures["eval_mlm_loss"])
        self.accuracy.append(figures["eval_mlm_accuracy"])


def make_contender(name: str, config: RunConfig, device: torch.device) -> QualityContender:
    """Make one of `CONTENDERS`; those of one normalization start from the same weights.

    `config` is resolved for the data; normalization and dropping are replaced by the contender's own. Raises ValueError
    with the reason if the contender cannot run here.
    """
    eager = name.removesuffix("_compiled")
    normalization, granularity = (HUGGING_FACE[eager], None) if eager in HUGGING_FACE else OURS[name]
    drop = config.progressive_layer_drop
    drop = dataclasses.replace(drop, enabled=granularity is not None, granularity=granularity or drop.granularity)
    before = allocated_bytes(device)
    model_config = dataclasses.replace(config.model, normalization=normalization)
    config = dataclasses.replace(config, progressive_layer_drop=drop, model=model_config)
    if eager in HUGGING_FACE:
        theirs = make_hugging_face(name, model_config, config.training.seed, device)
        attention = theirs.config._attn_implementation
        engine = make_engine(config, HuggingFaceModel(theirs, always_masked=name != eager))
    else:
        torch.manual_seed(config.training.seed)
        ours = BertForPreTraining(model_config)
        use_backend(ours, model_config.kernels, device.type)
        attention, engine = "sdpa", make_engine(config, ours)
    engine.train()
    return QualityContender(name, attention, engine, config, allocated_since(before, device))
