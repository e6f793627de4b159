"""Matrix products with weights; bf16 products run in fp32 on processors without bf16 instructions.

Such a CPU multiplies bf16 matrices a hundred times slower than fp32 matrices. There the operands are converted to fp32,
and the product is rounded once, as in bf16 hardware with fp32 accumulation.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · Wᵀ + b in the inputs' dtype: [..., I], [O, I], [O] → [..., O]."""
    if not needs_widening(inputs):
        return F.linear(inputs, weight, bias)
    product = F.linear(inputs.float(), weight.float(), None if bias is None else bias.float())
    return product.to(inputs.dtype)


def needs_widening(values: Tensor) -> bool:
    """Whether this device multiplies values of this dtype far more slowly than fp32 values."""
    return values.dtype is torch.bfloat16 and values.device.type == "cpu" and not cpu_multiplies_bf16()


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Return whether this processor has bf16 instructions."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Linear(nn.Linear):
    """`nn.Linear` that calls `linear`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer: [..., I] → [..., O]."""
        return linear(inputs, self.weight, self.bias)
