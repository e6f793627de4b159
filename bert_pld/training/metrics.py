"""Training metrics: sums between logging steps, for the records (`records.py`) and the terminal.

Losses stay on the device between logging steps: only a logging step waits for the device.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from bert_pld.config import RunConfig
from bert_pld.cost.flops import ModelFlops
from bert_pld.data.batches import MicroBatch
from bert_pld.data.order import Origin
from bert_pld.files import METRICS
from bert_pld.pld import Gates
from bert_pld.pld.gates import runs_dropped_last
from bert_pld.training.records import Monitors, append_record, drop_records_after, has_evaluation
from bert_pld.training.schedulers import WarmupStableDecay, our_schedule

# Peak TFLOP/s of tensor cores in bf16 and fp16 without sparsity, from NVIDIA's data sheets. The keys are searched in
# the device's name in this order, so a name stands before those that it contains.
_PEAK_TFLOPS = {
    **{"GB200": 2500, "B200": 2250, "H200 NVL": 835, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989},
    **{"A100": 312, "L40S": 362, "L40": 181, "V100": 125},
}


_SUMS = ("loss", "mlm_loss", "nsp_loss", "micro_batches", "kept_blocks", "tokens", "flops")
"""What is summed over the micro-batches of all ranks between two records."""


@dataclasses.dataclass
class Counters:
    """Running totals, which checkpoints save and resumed runs continue."""

    tokens: int = 0
    """Tokens trained on over all ranks, without padding."""
    seconds: float = 0.0
    """Wall-clock time of training, without evaluations and checkpoints."""
    processor_seconds: float = 0.0
    """Processor time of this process for the same work, summed over its threads. Other programs on the machine hardly
    change it."""
    since_record: dict[str, float] = dataclasses.field(default_factory=dict)
    """Sums since the last record over all ranks, by the names of `_SUMS`, and its `seconds`; empty in a new run."""


class Metrics:
    """Sums a run's metrics and writes them at logging steps.

    With `leaves_padding_out`, the blocks compute only the tokens that are not padding, and with `chooses_rows` the last
    one computes only the tokens that a loss looks at, as far as it can; `tflops` and `mfu` then count only these.
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        device: torch.device,
        leaves_padding_out: bool = False,
        chooses_rows: bool = False,
    ) -> None:
        self.config, self.device, self.leaves_padding_out = config, device, leaves_padding_out
        self.chooses_rows = chooses_rows
        self.train_batch_size: int = config.deepspeed["train_batch_size"]
        self.origin = Origin()
        self.flops = ModelFlops(config.model, config.data.seq_length, config.data.mask_probability_at(0))
        rates = our_schedule(config.deepspeed.get("scheduler"), config.training.max_steps)
        self.rates = rates if isinstance(rates, WarmupStableDecay) else None
        """The learning rates, if they have phases."""
        self.path = run_dir / METRICS
        self.counters = Counters()
        self.monitors = Monitors(run_dir, config) if dist.get_rank() == 0 else None
        """DeepSpeed's monitors; None on ranks other than 0, which write nothing."""
        self.progress_bar: tqdm[Any] | None = None
        self._non_finite_step = torch.full((), -1, dtype=torch.int64, device=device)
        """The first step on this rank whose loss was not finite, on the device; -1 for none."""
        self.start_clock()
        self._reset()

    def _reset(self) -> None:
        """Begin new sums after a logging step."""
        # In fp64 these sums are exact: a run that resumes between two records, with part of a sum, has the same ones.
        self._losses = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._micro_steps = self._tokens = 0
        self._kept_blocks = self._theta = self._flops = 0.0
        self._seconds_before = self.counters.seconds

    def _sums(self) -> dict[str, float]:
        """Return the sums since the last record over all ranks; all ranks call it together. It waits for the device."""
        own = [self._micro_steps, self._kept_blocks, self._tokens, self._flops]
        sums = torch.cat([self._losses, torch.tensor(own, dtype=torch.float64, device=self.device)])
        dist.all_reduce(sums)
        return dict(zip(_SUMS, sums.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint saves for `resume`; all ranks call it together, while the clock is stopped."""
        since_record = {**self._sums(), "seconds": self.counters.seconds - self._seconds_before}
        return dataclasses.asdict(dataclasses.replace(self.counters, since_record=since_record))

    def begin(self) -> None:
        """Begin an empty `metrics.jsonl`, and remove what monitors have of an attempt that left no checkpoint."""
        if self.monitors is not None:
            self.path.write_text("")
            self.monitors.drop_after(0)

    def resume(self, step: int, counters: dict[str, Any], origin: Origin) -> None:
        """Continue after step `step` with a checkpoint's counters; delete the records of steps to be trained again."""
        self.origin = origin
        names = (field.name for field in dataclasses.fields(Counters))
        self.counters = Counters(**{name: counters[name] for name in names if name in counters})
        self._reset()
        sums = self.counters.since_record
        if sums:
            self._seconds_before -= sums["seconds"]
        if sums and dist.get_rank() == 0:  # the sums of all ranks; the others begin with none
            self._losses += torch.tensor([sums[name] for name in _SUMS[:3]], dtype=torch.float64, device=self.device)
            self._micro_steps, self._tokens = round(sums["micro_batches"]), round(sums["tokens"])
            self._kept_blocks, self._flops = sums["kept_blocks"], sums["flops"]
        if self.monitors is not None:
            drop_records_after(self.path, step)
            self.monitors.drop_after(self._samples(step))

    def has_evaluation(self, step: int) -> bool:
        """Return whether the evaluation after a step is recorded; all ranks call it together."""
        found = [self.monitors is not None and has_evaluation(self.path, step)]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def start_clock(self) -> None:
        """Count time as training from now on."""
        self._started, self._processor_started = time.perf_counter(), time.process_time()

    def stop_clock(self) -> None:
        """Pause counting. Waits for the device, so that its queued work counts as training."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, processor_now = time.perf_counter(), time.process_time()
        self.counters.seconds += now - self._started
        self.counters.processor_seconds += processor_now - self._processor_started
        self._started, self._processor_started = now, processor_now

    def add_micro_batch(
        self, batch: MicroBatch, outputs: dict[str, torch.Tensor], gates: Gates | None, step: int
    ) -> None:
        """Add one micro-batch to the sums, without waiting for the device."""
        losses = torch.stack([outputs["loss"].detach(), outputs["mlm_loss"], outputs["nsp_loss"]]).float()
        self._losses += losses
        is_first_non_finite = ~torch.isfinite(losses[0]) & (self._non_finite_step < 0)
        self._non_finite_step = torch.where(is_first_non_finite, step, self._non_finite_step)
        self._micro_steps += 1
        self._tokens += batch.tokens
        kept_blocks = gates.kept_blocks if gates is not None else self.config.model.num_layers
        self._kept_blocks += kept_blocks
        rows = len(batch.lengths)
        lengths = batch.lengths if self.leaves_padding_out else np.full(rows, self.config.data.seq_length)
        blocks = self.flops.gated_blocks(lengths, gates, self.leaves_padding_out, batch.document_lengths)
        # In eager torch, a dropped last block that runs for its zero gradients gets all rows, as all blocks then do.
        if self.chooses_rows and (self.leaves_padding_out or not runs_dropped_last(gates)):
            first_tokens = rows if self.config.model.next_sentence_prediction else 0
            blocks -= self.flops.left_out(lengths, gates, batch.masked_positions.numel() + first_tokens)
        # The share of the batch itself: padding is never masked, and masks stored in shards follow no probability.
        masked_share = batch.masked_tokens / (rows * self.config.data.seq_length)
        heads = dataclasses.replace(self.flops, mask_probability=masked_share).heads_per_sequence
        self._flops += blocks + rows * heads
        self._theta = gates.theta if gates is not None else 1.0

    def forget_non_finite_losses(self) -> None:
        """Look for the first loss that is not finite from the next step on, without waiting for the device."""
        self._non_finite_step.fill_(-1)

    def first_non_finite_loss(self) -> tuple[int, int] | None:
        """Return the first step whose loss was not finite and its rank, or None; all ranks call it together."""
        steps = self._non_finite_step.new_full((dist.get_world_size(),), -1)
        steps[dist.get_rank()] = self._non_finite_step
        dist.all_reduce(steps, op=dist.ReduceOp.MAX)
        return min(((step, rank) for rank, step in enumerate(steps.tolist()) if step >= 0), default=None)

    def log(self, step: int, lr: float, grad_norm: float | None) -> None:
        """Write the record of a logging step: means since the last one. All ranks call it together."""
        self.stop_clock()
        sums = self._sums()
        means = {name: sums[name] / sums["micro_batches"] for name in _SUMS}
        loss, mlm_loss, nsp_loss, kept_blocks = (means[name] for name in (*_SUMS[:3], "kept_blocks"))
        tokens = round(sums["tokens"])
        self.counters.tokens += tokens
        seconds = max(self.counters.seconds - self._seconds_before, 1e-9)
        tflops = sums["flops"] / dist.get_world_size() / seconds / 1e12
        peak = self.config.training.peak_tflops or _known_peak(self.device)
        record = {
            "step": step,
            "samples": self._samples(step),
            "tokens": self.counters.tokens,
            **self._clocks(),
            "loss": loss,
            "mlm_loss": mlm_loss,
            "nsp_loss": nsp_loss,
            "lr": lr,
            **({} if self.rates is None else {"phase": self.rates.phase(step - 1)}),
            "mask_probability": self.config.data.mask_probability_at(step - 1),
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
        self.print_line(
            f"step {step}/{self.config.training.max_steps}  loss {loss:.4f} (mlm {mlm_loss:.4f}, nsp {nsp_loss:.4f})"
            f"  lr {lr:.2e}  θ {record['theta']:.3f}  kept {kept_blocks:.2f}/{self.config.model.num_layers}"
            f"  {tokens / seconds:,.0f} tokens/s",
            step,
        )

    def log_evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Write the record of an evaluation."""
        self._write({"step": step, "samples": self._samples(step), **self._clocks(), **figures}, "eval")
        self.print_line(
            f"step {step}  held-out mlm {figures['eval_mlm_loss']:.4f}, accuracy {figures['eval_mlm_accuracy']:.4f}"
            f", nsp accuracy {figures['eval_nsp_accuracy']:.4f}",
            step,
        )

    def _samples(self, step: int) -> int:
        return self.origin.samples_before(step, self.train_batch_size)

    def _clocks(self) -> dict[str, float]:
        seconds, processor_seconds = self.counters.seconds, self.counters.processor_seconds
        return {"seconds": round(seconds, 4), "processor_seconds": round(processor_seconds, 4)}

    def _write(self, record: dict[str, Any], group: str) -> None:
        """Append a record to metrics.jsonl and send its values to the monitors as `<group>/<name>`."""
        if self.monitors is None:
            return
        append_record(self.path, record)
        values = {k.removeprefix("eval_"): v for k, v in record.items() if k not in ("step", "samples")}
        numbers = {name: value for name, value in values.items() if value is not None and name != "phase"}
        self.monitors.write([(f"{group}/{name}", value, record["samples"]) for name, value in numbers.items()])

    def print_line(self, text: str, step: int | None = None) -> None:
        """Print a line on rank 0; on a terminal, also show a progress bar from the first `step` on."""
        if self.monitors is None:
            return
        if self.progress_bar is None and step is not None and sys.stderr.isatty():
            total = self.config.training.max_steps
            self.progress_bar = tqdm(total=total, initial=step, unit="step", dynamic_ncols=True)
        if self.progress_bar is None:
            print(text, flush=True)
        else:
            if step is not None:
                self.progress_bar.n = step
            self.progress_bar.write(text)
            self.progress_bar.refresh()

    def close(self) -> None:
        """End the progress bar."""
        if self.progress_bar is not None:
            self.progress_bar.close()


def _known_peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return peak_tflops_of(torch.cuda.get_device_name(device))


def peak_tflops_of(name: str) -> float | None:
    """Return the peak of the GPU with a name as the driver gives it, such as "NVIDIA L40S"; None if it is not known."""
    return next((float(peak) for key, peak in _PEAK_TFLOPS.items() if key in name), None)


def _peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
