"""Comparison of a kernel's errors with those of the eager operation, both against fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 2**-10, torch.float16: 2**-13}
"""Allowed error relative to the largest value if eager has almost none: a fraction of a rounding step."""


def random_tensor(*shape: int, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Return normal values, rounded to the dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def outputs_and_gradients(
    operation: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], upstream: Sequence[Tensor | None]
) -> list[Tensor]:
    """Return the outputs, then the gradient of every input; an output with the upstream gradient None is not used."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outputs = operation(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    used = [(out, grad.to(out.dtype)) for out, grad in zip(outputs, upstream, strict=True) if grad is not None]
    torch.autograd.backward([out for out, _ in used], [grad for _, grad in used])
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return [*(out.detach() for out in outputs), *gradients]


def assert_close_as_eager(
    kernel: Callable[..., Tensor | tuple[Tensor, ...]],
    eager: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    upstream: Sequence[Tensor | None],
    names: Sequence[str],
) -> None:
    """Assert that the largest error of each output and gradient is at most twice that of eager, both against fp64."""
    dtype = inputs[0].dtype
    exact = outputs_and_gradients(
        eager, [t.double() for t in inputs], [None if t is None else t.double() for t in upstream]
    )
    ours = outputs_and_gradients(kernel, inputs, upstream)
    theirs = outputs_and_gradients(eager, inputs, upstream)
    assert len(names) == len(ours) == len(theirs) == len(exact)
    for name, mine, other, truth in zip(names, ours, theirs, exact, strict=True):
        assert mine.shape == truth.shape, name
        assert mine.dtype == other.dtype, name
        if not truth.numel():
            continue
        error = (mine.double() - truth).abs().max().item()
        eager_error = (other.double() - truth).abs().max().item()
        floor = FLOOR[dtype] * truth.abs().max().item()
        assert error <= 2 * eager_error + floor, f"{name}: {error:.3g}, eager {eager_error:.3g}"
