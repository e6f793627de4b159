"""Take some rows out of the hidden states for a block, and put its results back: one copy, one gather, one scatter.

Plain autograd would build the gradient from three tensors of full size: zeros to which the gathered rows' gradient is
added, the other rows' gradient, and their sum. Here the gathered rows' gradient overwrites its place instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def run_on_rows(function: Callable[[Tensor], Tensor], hidden_states: Tensor, index: Tensor) -> Tensor:
    """Return a copy of `hidden_states` in which the rows of `index` are `function(hidden_states[index])`.

    Args:
        function: called with [K, …]; returns the same shape.
        hidden_states: [N, …]; differentiable once.
        index: int64 [K], different indices into dimension 0.
    """
    chosen, rest = _Take.apply(hidden_states, index)
    return _Put.apply(rest, index, function(chosen))


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, index):
        ctx.save_for_backward(index)
        return hidden_states.index_select(0, index), hidden_states.view_as(hidden_states)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_chosen, grad_rest):
        # In place: `_Put` alone reads `rest`, and its backward made this tensor.
        return grad_rest.index_copy_(0, ctx.saved_tensors[0], grad_chosen), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rest, index, updated):
        ctx.save_for_backward(index)
        return rest.index_copy(0, index, updated)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad.clone(), None, grad.index_select(0, ctx.saved_tensors[0])
