"""The end of an optimizer step at ZeRO 0 to 2 in cheaper operators: one norm, one number for the host.

DeepSpeed checks every gradient for overflow and computes every gradient's norm in fp64, parameter by parameter. For
BERT-base in bf16 at ZeRO 1 these are 2,461 operators and four waits for the device in a step, more operators than the
model has. Here one multi-tensor operator computes all norms in fp32, and the host reads the global norm alone. This
norm is finite exactly when every gradient is (a gradient beyond 1e19 counts as an overflow too), so it also decides
whether the step is skipped; the clipping factor is computed on the host.

One result differs: where fp16's loss scale has just grown, DeepSpeed divides this step's gradients by the new scale,
so that they are half as large. Here they are divided by the scale that they have.

Only methods of the engine's one optimizer object are replaced. `python -m benchmarks operators` counts the operators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

REPLACED = ("check_overflow", "scaled_global_norm", "unscale_and_clip_grads", "step")
"""Methods that may be replaced."""


def light_zero_block(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `zero_optimization` block that at stage 1 copies no gradient into a bucket, unless it says otherwise."""
    return {"contiguous_gradients": False, **block} if block.get("stage") == 1 else dict(block)


def lighten_boundary(engine: Any) -> None:
    """Replace overflow check, norm, clipping and casts of an engine's optimizer by cheaper ones.

    An engine stays as it is at ZeRO 3, with gradients in host memory, and in fp32 at ZeRO 0, where torch's own clipping
    is as cheap.
    """
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer) and not optimizer.cpu_offload:
        _lighten_partitioned(optimizer)
    elif isinstance(optimizer, FP16_UnfusedOptimizer) and hasattr(optimizer, "_skip_invalid_grad_norm"):
        _lighten_whole(optimizer)


def _lighten_partitioned(optimizer: Any) -> None:
    """Replace three methods of DeepSpeed's optimizer of ZeRO 1 and 2, which its `step` calls in this order."""
    known_norm: float | None = None
    scale: float | None = None
    """The loss scale of this step's gradients: DeepSpeed may raise it before it divides them by it."""

    def check_overflow(partition_gradients: bool = True) -> None:
        nonlocal known_norm
        known_norm = global_norm()
        optimizer.overflow = not math.isfinite(known_norm)

    def scaled_global_norm(norm_type: int = 2) -> float:
        """Return the norm of all ranks' gradients, times the loss scale."""
        nonlocal known_norm
        norm, known_norm = known_norm, None
        return global_norm() if norm is None else norm  # with "check_grad_overflow": false, there was no check

    def unscale_and_clip_grads(grads: Sequence[Tensor], total_norm: float) -> None:
        of_grads = optimizer.loss_scale if scale is None else scale  # None: nothing asked for the norm
        _unscale_and_clip(grads, total_norm, of_grads, optimizer.clip_grad)

    def global_norm() -> float:
        nonlocal scale
        scale = optimizer.loss_scale
        partitions = optimizer.averaged_gradients.values()
        grads = [grad for partition in partitions for grad in partition or () if grad.numel()]
        squared = _squared_norm(grads, optimizer.device)
        dist.all_reduce(squared, group=optimizer.dp_process_group)
        return squared.sqrt().item()  # the step's only wait for the device

    optimizer.check_overflow = check_overflow
    optimizer.scaled_global_norm = scaled_global_norm
    optimizer.unscale_and_clip_grads = unscale_and_clip_grads


def _lighten_whole(optimizer: Any) -> None:
    """Replace `step` of DeepSpeed's optimizer of ZeRO 0 in 16 bits, which keeps a copy of the weights in fp32."""
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    pairs = [pair for low_and_high in groups for pair in zip(*low_and_high, strict=True)]

    def step(closure: None = None) -> bool:
        """Update the weights; return whether the step was skipped because a gradient is not finite."""
        present = [(low, high) for low, high in pairs if low.grad is not None]
        grads = [low.grad for low, _ in present]
        norm = _squared_norm(grads, pairs[0][0].device).sqrt().item()  # the same on all ranks, which share gradients
        optimizer.overflow = not math.isfinite(norm)
        if optimizer.overflow:
            return optimizer._skip_invalid_grad_norm()
        scale = optimizer.loss_scale_config.cur_scale  # of these gradients
        optimizer._global_grad_norm = norm / scale
        optimizer._update_scale(False)
        for low, high in pairs:
            # Without a gradient, a dropped block's weights follow their moments.
            high.grad = torch.zeros_like(high) if low.grad is None else torch.empty_like(high)
        wide = [high.grad for _, high in present]
        torch._foreach_copy_(wide, grads)
        _unscale_and_clip(wide, norm, scale, optimizer.clip_grad)
        optimizer.optimizer.step()
        torch._foreach_copy_([low.data for low, _ in pairs], [high.data for _, high in pairs])
        for _, high in pairs:
            high.grad = None
        return False

    optimizer.step = step


def _squared_norm(grads: Sequence[Tensor], device: torch.device) -> Tensor:
    if not grads:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(grads, 2, dtype=torch.float32)).square().sum()


def _unscale_and_clip(grads: Sequence[Tensor], norm: float, loss_scale: float, limit: float) -> None:
    """Divide gradients by the loss scale, and by how many times their norm exceeds `gradient_clipping` (0: none)."""
    excess = max(1.0, (norm / loss_scale + 1e-6) / limit) if limit > 0 else 1.0
    if grads and loss_scale * excess != 1.0:
        torch._foreach_mul_(grads, 1.0 / (loss_scale * excess))
