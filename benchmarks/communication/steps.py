"""Step times: predicted from separate measurements, and measured.

The rate of compute is fitted to forward and backward of models other than the predicted ones, on all ranks at once as
in training. A concatenation gives the rate of copies, AdamW's step that of the update, and single collectives those of
the links. DeepSpeed's own time a tensor is what remains of the steps of a network so narrow that the rest is small. All
of these take turns with the predicted steps, so that other work on the machine affects both. All times are lower
quartiles.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.batches import random_batch
from benchmarks.communication.engine import Setting, Trainer
from benchmarks.communication.links import Links, lower_quartile, slowest_rank_seconds
from benchmarks.markdown import table_lines
from bert_pld.config import RunConfig
from bert_pld.cost.flops import ModelFlops, parameter_tensors
from bert_pld.cost.memory import estimate_memory
from bert_pld.cost.scaling import UPDATE_BYTES, Cluster, StepTime, predict_step
from bert_pld.model import BertForPreTraining

_CALIBRATION = (
    Setting(num_layers=2, hidden_size=192, micro_batch_size=6),
    Setting(num_layers=3, hidden_size=320, micro_batch_size=3),
    Setting(num_layers=6, hidden_size=192, micro_batch_size=2),
    Setting(num_layers=2, hidden_size=448, micro_batch_size=8),
)
_FLAT_ELEMENTS = 4_000_000
_NARROW = Setting(num_layers=4, hidden_size=64, vocab_size=64, micro_batch_size=1, seq_length=16)
_SIZES = (
    Setting(num_layers=4, hidden_size=256, micro_batch_size=4),
    Setting(num_layers=4, hidden_size=256, micro_batch_size=16),
    Setting(num_layers=2, hidden_size=512, micro_batch_size=2),
    Setting(num_layers=8, hidden_size=128, micro_batch_size=8),
)
_GATED = (("batch", 0.5), ("sample", 0.5), ("token", 0.5))


def settings_to_predict(stages: list[int]) -> list[Setting]:
    """All sizes at all stages without PLD; the first size also with gates and with accumulation."""
    settings = [dataclasses.replace(size, stage=stage) for size in _SIZES for stage in stages]
    for stage in stages:
        base = dataclasses.replace(_SIZES[0], stage=stage)
        settings += [dataclasses.replace(base, gates=gates, theta=theta) for gates, theta in _GATED]
        settings.append(dataclasses.replace(base, accumulation=2))
    return settings


def predict_and_measure(
    rounds: int, stages: list[int], device: torch.device, gloo: bool
) -> tuple[Links, dict[str, Any]]:
    """Measure parts and steps in turns, and predict the steps from the parts; also return the links' times."""
    machine = _Machine(stages, device)
    trainers = [Trainer(setting, device, same_gates=True) for setting in settings_to_predict(stages)]
    measured: dict[int, list[float]] = {}
    for _ in range(rounds):
        machine.turn()
        for index, trainer in enumerate(trainers):
            measured.setdefault(index, []).append(slowest_rank_seconds(trainer.step, device))
    cluster, results = machine.cluster(gloo), []
    for index, trainer in enumerate(trainers):
        setting = trainer.setting
        own = dataclasses.replace(cluster, fixed_step_s=machine.fixed_seconds(setting, cluster))
        predicted = predicted_step(trainer.run, setting, own, trainer.step())
        seconds = lower_quartile(measured[index])
        results.append(
            {
                "name": f"{setting.num_layers} × {setting.hidden_size}, {setting}",
                **vars(setting),
                "predicted_s": predicted.total,
                "measured_s": seconds,
                "measured_median_s": statistics.median(measured[index]),
                "measured_range_s": [min(measured[index]), max(measured[index])],
                "ratio": predicted.total / seconds,
                "prediction": predicted.as_json(),
            }
        )
        trainer.engine.destroy()
    return machine.links, {"cluster": dataclasses.asdict(cluster), "rounds": rounds, "settings": results}


def predicted_step(run: RunConfig, setting: Setting, cluster: Cluster, kept: list[list[float]]) -> StepTime:
    """The cost model's step of a setting, for the blocks that its gates kept."""
    ranks = dist.get_world_size()
    memory = estimate_memory(run, setting.micro_batch_size, ranks)
    return predict_step(
        run, cluster, world_size=ranks, micro_batch_size=setting.micro_batch_size, kept=kept, memory=memory
    )


def report_steps(result: dict[str, Any]) -> list[str]:
    """Format a Markdown table, a row for each setting."""
    steps = result["steps"]
    cluster = steps["cluster"]
    lines = [
        f"fitted: {cluster['flops_per_s'] / 1e9:.1f} GFLOP/s, {cluster['activation_bytes_per_s'] / 1e9:.2f} GB/s of"
        f" activations, {cluster['update_bytes_per_s'] / 1e9:.2f} GB/s in the update,"
        f" {cluster['copy_bytes_per_s'] / 1e9:.2f} in copies, {cluster['intra_bytes_per_s'] / 1e9:.2f} GB/s and"
        f" {cluster['intra_latency_s'] * 1e6:.0f} µs between ranks; lower quartiles of {steps['rounds']} turns",
        "",
    ]
    header = ("setting", "predicted, ms", "of it communication", "measured, ms", "fastest–median")
    rows = []
    for one in steps["settings"]:
        seconds = (one["predicted_s"], one["prediction"]["exposed"], one["measured_s"])
        spread = (f"{1e3 * value:.0f}" for value in (one["measured_range_s"][0], one["measured_median_s"]))
        rows.append((one["name"], *(f"{1e3 * s:.0f}" for s in seconds), "–".join(spread), f"{one['ratio']:.2f}"))
    return lines + table_lines((*header, "predicted / measured"), rows)


class _Machine:
    """The parts that predictions are made from, measured apart from the predicted steps."""

    def __init__(self, stages: list[int], device: torch.device) -> None:
        self.device, self.links = device, Links(device)
        self._passes = [_forward_backward(setting, device) for setting in _CALIBRATION]
        self._update, self._copy = _update(device), _copy(device)
        self._narrow = {stage: Trainer(dataclasses.replace(_NARROW, stage=stage), device) for stage in stages}
        self._seconds: dict[Any, list[float]] = {}

    def turn(self) -> None:
        """Measure every part once."""
        self.links.turn()
        parts: dict[Any, Callable[[], Any]] = dict(enumerate(self._passes))
        parts |= {"update": self._update, "copy": self._copy}
        for name, call in parts.items():
            self._seconds.setdefault(name, []).append(slowest_rank_seconds(call, self.device))
        for stage, trainer in self._narrow.items():
            self._seconds.setdefault(("narrow", stage), []).append(slowest_rank_seconds(trainer.step, self.device))

    def cluster(self, gloo: bool) -> Cluster:
        """These ranks as one node of the cost model."""
        rows, seconds, ranks = [], [], dist.get_world_size()
        for index, setting in enumerate(_CALIBRATION):
            run = setting.run
            flops = ModelFlops(run.model, setting.seq_length, run.data.greatest_mask_probability).per_sequence()
            memory = estimate_memory(run, setting.micro_batch_size, 1)
            rows.append([setting.micro_batch_size * flops, memory.activation_bytes])
            seconds.append(self._typical(index))
        per_flop, per_byte = _fit_two(rows, seconds)
        links = self.links.result()
        rate = {kind: one["bytes_per_s"] for kind, one in links.items()}
        return Cluster(
            flops_per_s=1.0 / per_flop,
            activation_bytes_per_s=1.0 / per_byte,
            ranks_per_node=ranks,
            intra_bytes_per_s=rate["all_reduce"],
            # An all-reduce has 2 · (ranks − 1) hops.
            intra_latency_s=max(links["all_reduce"]["latency_s"] / (2 * (ranks - 1)), 1e-9),
            all_gather_slowness=rate["all_reduce"] / rate["all_gather"],
            reduce_scatter_slowness=rate["all_reduce"] / rate["reduce_scatter"],
            update_bytes_per_s=_FLAT_ELEMENTS * UPDATE_BYTES / self._typical("update"),
            copy_bytes_per_s=_FLAT_ELEMENTS * 8 / self._typical("copy"),
            launch_s_per_block=0.0,
            fixed_step_s=0.0,
            reduce_scatter_as_all_reduce=gloo,
        )

    def fixed_seconds(self, setting: Setting, cluster: Cluster) -> float:
        """DeepSpeed's own time in a step, taken as proportional to tensors and micro-batches."""
        narrow = self._narrow[setting.stage]
        predicted = predicted_step(narrow.run, narrow.setting, cluster, [[1.0] * _NARROW.num_layers]).total
        rest = self._typical(("narrow", setting.stage)) - predicted
        tensors = [len(parameter_tensors(run.model)) for run in (setting.run, narrow.run)]
        return max(rest, 0.0) * tensors[0] / tensors[1] * setting.accumulation

    def _typical(self, name: Any) -> float:
        return lower_quartile(self._seconds[name])


def _fit_two(rows: list[list[float]], seconds: list[float]) -> tuple[float, float]:
    """Fit seconds a FLOP and a byte with the least squared relative error; FLOPs alone where one would be negative."""
    matrix = torch.tensor(rows, dtype=torch.float64) / torch.tensor(seconds, dtype=torch.float64)[:, None]
    scale = matrix.mean(0)
    target = torch.ones(len(rows), 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(matrix / scale, target).solution.flatten() / scale
    if float(solution.min()) <= 0.0:
        column = matrix[:, :1]
        return float(column.sum() / column.square().sum()), 1e-30
    return float(solution[0]), float(solution[1])


def _forward_backward(setting: Setting, device: torch.device) -> Callable[[], None]:
    """A call of a whole network's forward and backward, without engine and communication."""
    config = setting.run.model
    model = BertForPreTraining(config).to(device)
    batch = random_batch(config, setting.micro_batch_size, setting.seq_length, device, seed=0)

    def once() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch.model_inputs())["loss"].backward()

    once()
    return once


def _update(device: torch.device) -> Callable[[], Any]:
    """A call of torch's fused AdamW, with the passes for the gradient norm and clipping."""
    flat = torch.randn(_FLAT_ELEMENTS, device=device, requires_grad=True)
    flat.grad = torch.randn_like(flat)
    optimizer = torch.optim.AdamW([flat], lr=1e-5, fused=True)

    def once() -> None:
        torch.nn.utils.clip_grad_norm_([flat], 1.0)
        optimizer.step()

    once()
    return once


def _copy(device: torch.device) -> Callable[[], Any]:
    """A call of a concatenation into a new tensor, as gradients are flattened for a reduction."""
    parts = list(torch.randn(_FLAT_ELEMENTS, device=device).split(_FLAT_ELEMENTS // 16))
    return lambda: torch.cat(parts)
