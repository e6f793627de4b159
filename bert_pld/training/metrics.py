"""What a run says of itself: metrics.jsonl, DeepSpeed's monitors, and the line on the terminal.

Losses stay on the device between logging steps; only a logging step waits for it.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from bert_pld.config import RunConfig
from bert_pld.cost.flops import ModelFlops
from bert_pld.data.batches import MicroBatch
from bert_pld.files import METRICS
from bert_pld.pld import Gates
from bert_pld.training.metrics_file import append_record, drop_records_after
from bert_pld.training.monitors import Monitors

# Dense bf16/fp16 tensor-core peaks, TFLOP/s, from NVIDIA's data sheets; matched as substrings of the device's name.
_PEAK_TFLOPS = {"GB200": 2500, "B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40": 181, "V100": 125}


@dataclasses.dataclass
class Counters:
    """Running totals that a checkpoint carries on."""

    tokens: int = 0
    """Tokens trained on over all ranks, padding not counted."""
    seconds: float = 0.0
    """Wall-clock time of training, evaluations and checkpoints not counted."""
    processor_seconds: float = 0.0
    """The same on this process's processors, all its threads together: hardly changed by what else a machine does."""


class Metrics:
    """Collects a run's figures and writes them at logging steps."""

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        train_batch_size: int,
        device: torch.device,
        leaves_padding_out: bool = False,
    ) -> None:
        self.config, self.train_batch_size, self.device = config, train_batch_size, device
        self.leaves_padding_out = leaves_padding_out
        """Whether blocks run on tokens only: what is counted as executed."""
        self.flops = ModelFlops(config.model, config.data.seq_length, config.data.mask_probability)
        self.path = run_dir / METRICS
        self.counters = Counters()
        self.is_writer = dist.get_rank() == 0
        self.monitors = Monitors(run_dir, config) if self.is_writer else None
        self.bar: tqdm[Any] | None = None
        self.non_finite_step = torch.full((), -1, dtype=torch.int64, device=device)
        """The first step whose loss was not finite, on the device; -1 for none."""
        self._started, self._processor_started = time.perf_counter(), time.process_time()
        self._reset()

    def _reset(self) -> None:
        self._losses = torch.zeros(3, device=self.device)
        self._steps = self._micro_steps = self._tokens = 0
        self._kept = self._theta = self._flops = 0.0
        self._seconds_before = self.counters.seconds

    def resume(self, step: int, counters: dict[str, Any]) -> None:
        """Go on after step `step` with what a checkpoint says; forget lines of steps that will be trained again."""
        names = (field.name for field in dataclasses.fields(Counters))
        self.counters = Counters(**{name: counters[name] for name in names if name in counters})
        self._reset()
        if self.is_writer:
            drop_records_after(self.path, step)
        if self.monitors is not None:
            self.monitors.go_on_after(step * self.train_batch_size)

    def start_clock(self) -> None:
        """Training begins, or goes on after an evaluation or a checkpoint."""
        self._started, self._processor_started = time.perf_counter(), time.process_time()

    def stop_clock(self) -> None:
        """Training pauses. Waits for the device, so that its work is counted where it belongs."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, processor_now = time.perf_counter(), time.process_time()
        self.counters.seconds += now - self._started
        self.counters.processor_seconds += processor_now - self._processor_started
        self._started, self._processor_started = now, processor_now

    def add_micro_batch(
        self, batch: MicroBatch, outputs: dict[str, torch.Tensor], gates: Gates | None, step: int
    ) -> None:
        """Take in one micro-batch's outputs, without waiting for the device."""
        losses = torch.stack([outputs["loss"].detach(), outputs["mlm_loss"], outputs["nsp_loss"]]).float()
        self._losses += losses
        is_first = ~torch.isfinite(losses[0]) & (self.non_finite_step < 0)
        self.non_finite_step = torch.where(is_first, step, self.non_finite_step)
        self._micro_steps += 1
        self._tokens += batch.tokens
        kept_blocks = gates.kept_blocks if gates is not None else self.config.model.num_layers
        self._kept += kept_blocks
        rows = len(batch.lengths)
        per_block = self.flops.block(batch.lengths) if self.leaves_padding_out else rows * self.flops.block_per_sequence
        self._flops += kept_blocks * per_block + rows * self.flops.heads_per_sequence
        self._theta = gates.theta if gates is not None else 1.0

    def log(self, step: int, lr: float, grad_norm: float | None) -> None:
        """Write the line of a logging step: means over the steps since the last one. All ranks call it."""
        self.stop_clock()
        counted = torch.tensor([self._tokens, self._flops], dtype=torch.float64, device=self.device)
        totals = torch.cat([self._losses.double(), counted])
        dist.all_reduce(totals)
        world = dist.get_world_size()
        loss, mlm_loss, nsp_loss = (totals[:3] / (self._micro_steps * world)).tolist()
        tokens = round(totals[3].item())
        self.counters.tokens += tokens
        seconds = max(self.counters.seconds - self._seconds_before, 1e-9)
        kept_blocks = self._kept / self._micro_steps
        tflops = totals[4].item() / world / seconds / 1e12
        peak = self.config.training.peak_tflops or _known_peak(self.device)
        record = {
            "step": step,
            "samples": step * self.train_batch_size,
            "tokens": self.counters.tokens,
            **self._clocks(),
            "loss": loss,
            "mlm_loss": mlm_loss,
            "nsp_loss": nsp_loss,
            "lr": lr,
            "theta": self._theta,
            "kept_blocks": kept_blocks,
            "grad_norm": grad_norm,
            "tokens_per_s": tokens / seconds,
            "tflops": tflops,
            "mfu": tflops / peak if peak else None,
            "memory_bytes": _peak_memory_bytes(self.device),
        }
        self._reset()
        self._write(record, "train")
        self.say(
            f"step {step}/{self.config.training.max_steps}  loss {loss:.4f} (mlm {mlm_loss:.4f}, nsp {nsp_loss:.4f})"
            f"  lr {lr:.2e}  θ {record['theta']:.3f}  kept {kept_blocks:.2f}/{self.config.model.num_layers}"
            f"  {tokens / seconds:,.0f} tokens/s",
            step,
        )

    def log_evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Write the line of an evaluation."""
        record = {
            "step": step,
            "samples": step * self.train_batch_size,
            **self._clocks(),
            **figures,
        }
        self._write(record, "eval")
        self.say(
            f"step {step}  held-out mlm {figures['eval_mlm_loss']:.4f}, accuracy {figures['eval_mlm_accuracy']:.4f}"
            f", nsp accuracy {figures['eval_nsp_accuracy']:.4f}",
            step,
        )

    def _clocks(self) -> dict[str, float]:
        seconds, processor_seconds = self.counters.seconds, self.counters.processor_seconds
        return {"seconds": round(seconds, 4), "processor_seconds": round(processor_seconds, 4)}

    def _write(self, record: dict[str, Any], group: str) -> None:
        if not self.is_writer:
            return
        append_record(self.path, record)
        if self.monitors is not None:
            skipped = ("step", "samples")
            self.monitors.write(
                [
                    (f"{group}/{k.removeprefix('eval_')}", v, record["samples"])
                    for k, v in record.items()
                    if k not in skipped and v is not None
                ]
            )

    def say(self, text: str, step: int | None = None) -> None:
        """A line for whoever watches, and on a terminal how far training is."""
        if not self.is_writer:
            return
        if self.bar is None and step is not None and sys.stderr.isatty():
            self.bar = tqdm(total=self.config.training.max_steps, initial=step, unit="step", dynamic_ncols=True)
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.n = self.bar.n if step is None else step
            self.bar.write(text)
            self.bar.refresh()

    def close(self) -> None:
        """End the progress bar."""
        if self.bar is not None:
            self.bar.close()


def _known_peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(peak) for key, peak in _PEAK_TFLOPS.items() if key in name), None)


def _peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
