"""A sub-layer's output joins the residual stream, which is then normalised for the next sub-layer, in one pass.

    x'[t] = x[t] + s · dropout(z[i(t)] + b)        where the branch has row i(t) for stream row t, else x[t]
    n[j]  = LN(x'[t]) with j = j(t)                for the rows that the next sub-layer runs on

s is the gate's scale 1 / p_l of the switchable block (arXiv:2010.13369, section 3); i and j are row maps: the
scatter-add of the sequences that one block kept and the gather of those that the next one keeps. Without a branch this
is a LayerNorm with an optional gather. The specification is `bert_pld.kernels.reference.add_norm`.

Bytes moved: forward reads x and z and writes x' and n; backward reads x' and the gradients of x' and n, and writes
those of x and z. Backward needs x' and, for each row, mean and 1 / σ in fp32; it draws the dropout mask again from its
counter. Reductions are in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.kernels.add_norm_backward import add_norm_backward
from bert_pld.kernels.add_norm_forward import add_norm_forward
from bert_pld.kernels.reference import Join, RowMap


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stream, weight, norm_bias, eps, values, bias, join, rows):
        normed, new_stream, mean, rstd = add_norm_forward(stream, weight, norm_bias, eps, values, bias, join, rows)
        ctx.save_for_backward(new_stream, weight, mean, rstd)
        ctx.join, ctx.rows = join, rows
        ctx.set_materialize_grads(False)
        return normed, new_stream

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_normed, grad_new_stream):
        new_stream, weight, mean, rstd = ctx.saved_tensors
        grad_stream, grad_values, sums = add_norm_backward(
            grad_normed, grad_new_stream, new_stream, weight, mean, rstd, ctx.join, ctx.rows
        )
        grad_weight, grad_norm_bias, *grad_bias = sums.to(weight.dtype)
        return grad_stream, grad_weight, grad_norm_bias, None, grad_values, *(grad_bias or [None]), None, None


def add_norm(
    stream: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    join: Join | None = None,
    rows: RowMap | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `bert_pld.kernels.reference.add_norm` as one kernel in each direction; differentiable once.

    Arguments and result are those of the reference; H is at most `TRITON_MAX_WIDTH`.
    """
    values = None if values is None else values.contiguous()
    return _AddNorm.apply(stream.contiguous(), weight, norm_bias, eps, values, bias, join, rows)
