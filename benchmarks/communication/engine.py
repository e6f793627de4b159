"""An engine for one setting of ZeRO stage, precision, gates and batch, and its training steps."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.batches import random_batch
from benchmarks.engines import deepspeed_json, model_section, without_optimizer
from bert_pld.config import RunConfig, load_config
from bert_pld.model import BertForPreTraining
from bert_pld.pld.engine import initialize
from bert_pld.pld.gates import Gates, draw_gates
from bert_pld.training.loop import masked_tokens_per_micro_batch
from bert_pld.training.optimizer import build_optimizer, parameter_groups

GATES = ("none", "batch", "sample", "token")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The sizes and options of one engine."""

    stage: int = 0
    precision: str = "fp32"
    gates: str = "none"
    """`none`, or the granularity."""
    theta: float = 1.0
    """θ, constant from the first step on."""
    accumulation: int = 1
    micro_batch_size: int = 4
    num_layers: int = 4
    hidden_size: int = 256
    vocab_size: int = 2048
    seq_length: int = 64
    overlap_comm: bool | None = None
    """None: DeepSpeed's default."""

    @property
    def run(self) -> RunConfig:
        """The configuration of a run with this setting."""
        config = deepspeed_json(self.precision, self.stage, self.micro_batch_size)
        config["gradient_accumulation_steps"] = self.accumulation
        if self.overlap_comm is not None:
            config["zero_optimization"]["overlap_comm"] = self.overlap_comm
        sizes = {"num_layers": self.num_layers, "vocab_size": self.vocab_size}
        config["model"] = model_section(self.hidden_size, **sizes, next_sentence_prediction=True, kernels="reference")
        config["data"] = {"seq_length": self.seq_length}
        drop = {"theta": self.theta, "temporal": "constant", "granularity": self.gates}
        config["progressive_layer_drop"] = {"enabled": False} if self.gates == "none" else drop
        return load_config(config)

    def __str__(self) -> str:
        gates = "no PLD" if self.gates == "none" else f"{self.gates}, θ {self.theta:g}"
        overlap = ", overlap_comm" if self.overlap_comm else ""
        return f"ZeRO-{self.stage}{overlap}, {self.precision}, {gates}, {self.accumulation} × {self.micro_batch_size}"


class Trainer:
    """A warm engine that trains on random tokens, different on every rank."""

    def __init__(self, setting: Setting, device: torch.device, same_gates: bool = False) -> None:
        """Make and warm up the engine.

        With `same_gates`, every step uses the first gates that keep about the expected number of blocks.
        """
        self.setting, self.device, self.run = setting, device, setting.run
        torch.manual_seed(0)
        model = BertForPreTraining(self.run.model)
        block = self.run.deepspeed["optimizer"]
        optimizer = build_optimizer(block, parameter_groups(model, block["params"]["weight_decay"]))
        for_engine = dataclasses.replace(self.run, deepspeed=without_optimizer(self.run.deepspeed))
        self.engine, *_ = initialize(model=model, optimizer=optimizer, config=for_engine)
        self.engine.train()
        rows, seq = setting.micro_batch_size, setting.seq_length
        self.batches = [
            random_batch(self.run.model, rows, seq, device, seed=dist.get_rank() * setting.accumulation + index)
            for index in range(setting.accumulation)
        ]
        self.gates = self._average_gates() if same_gates and self.engine.layer_dropper is not None else None
        for _ in range(2):
            self.step()

    def step(self) -> list[list[float]]:
        """Run one optimizer step; return for each micro-batch the share of it that each block ran on."""
        counts: Any = [SimpleNamespace(masked_tokens=batch.masked_labels.numel()) for batch in self.batches]
        denominator = masked_tokens_per_micro_batch(counts, self.device)
        kept = []
        for batch in self.batches:
            given = {**batch.model_inputs(), "sequence_lengths": batch.sequence_lengths}
            self.engine.backward(self.engine(**given, mlm_denominator=denominator, gates=self.gates)["loss"])
            self.engine.step()
            dropper = self.engine.layer_dropper
            if dropper is None:
                kept.append([1.0] * self.setting.num_layers)
            else:
                kept.append(_shares(self.gates or dropper.last_gates, self.setting.micro_batch_size))
        return kept

    def _average_gates(self) -> Gates:
        schedule, dropper = self.engine.layer_dropper.schedule, self.engine.layer_dropper
        drawn = (
            draw_gates(
                schedule,
                granularity=dropper.config.granularity,
                seed=dropper.config.seed,
                step=step,
                rows=self.setting.micro_batch_size,
                first_row=dist.get_rank() * self.setting.micro_batch_size,
                lengths=np.full(self.setting.micro_batch_size, self.setting.seq_length),
                padded_length=self.setting.seq_length,
                device=self.device,
                zero_gradient_when_dropped=self.setting.stage == 3,
            )
            for step in itertools.count()
        )
        return next(gates for gates in drawn if abs(gates.kept_blocks - schedule.expected_depth(0)) <= 0.5)


def _shares(gates: Gates, rows: int) -> list[float]:
    """The share of the micro-batch's rows, or of its tokens, that each block ran on."""
    by_row = [float(gate.keep) if gate.rows is None else len(gate.rows) / rows for gate in gates]
    by_token = [gate.tokens.counts.sum() / gate.tokens.lengths.sum() if gate.tokens else 1.0 for gate in gates]
    return [float(one * other) for one, other in zip(by_row, by_token, strict=True)]
