"""The last step of the masked-LM head: decoder and cross-entropy over chunks of positions.

Logits are computed for one chunk of positions at a time, in the model's precision. One kernel reads them, accumulates
in fp32 and overwrites them with their gradient, so that memory holds neither positions × vocabulary in fp32 nor two
copies of it. The forward pass also computes the three gradients for an upstream gradient of 1; the backward pass
multiplies them by the actual one. Matrix products are torch's. The specification is
`bert_pld.kernels.reference.linear_cross_entropy_sum`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_pld.kernels.reference import linear
from bert_pld.kernels.tiles import ASSERTIONS, Tile, ceil_div, power_of_two_from

CHUNK_ELEMENTS = 2**28
"""Most logits of one chunk: 512 MiB in 16 bits. The masked positions of 32,768 tokens are one chunk, which needs no
sum over chunks in fp32."""
_BLOCK = 4096


@triton.jit(debug=True)
def cross_entropy_kernel(
    logits_ptr,  # [M, V], overwritten with softmax − onehot if WRITE_GRADIENT
    labels_ptr,  # int64 [M]
    losses_ptr,  # fp32 [M]
    correct_ptr,  # int32 [M]
    VOCABULARY: tl.constexpr,
    WRITE_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program handles one position; it reads the logits in pieces, once for the sum, once for the gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * VOCABULARY
    label = tl.load(labels_ptr + row)
    tl.device_assert((label >= 0) & (label < VOCABULARY), "a label is outside the vocabulary")
    label_logit = tl.load(logits + label).to(tl.float32)
    highest = -float("inf")
    best = 0
    total = 0.0
    for first in range(0, VOCABULARY, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        piece = tl.load(logits + columns, mask=columns < VOCABULARY, other=-float("inf")).to(tl.float32)
        # Of equal logits the first one counts, as in torch's argmax on a CPU.
        piece_highest, piece_best = tl.max(piece, axis=0, return_indices=True)
        best = tl.where(piece_highest > highest, first + piece_best, best)
        higher = tl.maximum(highest, piece_highest)
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(piece - higher), axis=0)
        highest = higher
    tl.store(losses_ptr + row, tl.log(total) + highest - label_logit)
    tl.store(correct_ptr + row, (best == label).to(tl.int32))
    if WRITE_GRADIENT:
        for first in range(0, VOCABULARY, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            mask = columns < VOCABULARY
            piece = tl.load(logits + columns, mask=mask, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(piece - highest) / total - tl.where(columns == label, 1.0, 0.0)
            tl.store(logits + columns, gradient.to(logits_ptr.dtype.element_ty), mask=mask)


def cross_entropy(
    logits: Tensor, labels: Tensor, write_gradient: bool, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Launch the kernel.

    Args:
        logits: [M, V]; afterwards, with `write_gradient`, the gradient of the summed loss.
        labels: int64 [M].
        write_gradient: whether to overwrite the logits.
        tile: logits that a program reads at a time (`width`) and its warps; by default `block_and_warps(V)`.

    Returns:
        Losses in nats, fp32 [M], and whether the label has the highest logit, int32 [M].
    """
    count, vocabulary = logits.shape
    losses = torch.empty(count, dtype=torch.float32, device=logits.device)
    correct = torch.empty(count, dtype=torch.int32, device=logits.device)
    block, num_warps = block_and_warps(vocabulary) if tile is None else (tile.width, tile.num_warps)
    if count:
        cross_entropy_kernel[(count,)](
            logits,
            labels.contiguous(),
            losses,
            correct,
            VOCABULARY=vocabulary,
            WRITE_GRADIENT=write_gradient,
            BLOCK=block,
            num_warps=num_warps,
            **ASSERTIONS,
        )
    return losses, correct


def block_and_warps(vocabulary: int) -> tuple[int, int]:
    """Return the number of logits that a program reads at a time and its warps: eight logits per thread."""
    block = min(_BLOCK, power_of_two_from(vocabulary))
    return block, min(max(block // 256, 1), 16)


def chunk_rows(count: int, vocabulary: int) -> int:
    """Return the number of positions of a chunk: as few chunks as `CHUNK_ELEMENTS` allows, of equal size.

    A short last chunk would use a part of the device only.
    """
    most = max(CHUNK_ELEMENTS // vocabulary, 1)
    return ceil_div(count, max(ceil_div(count, most), 1))


def linear_cross_entropy_forward(
    hidden_states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, want_gradients: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Return the summed loss (fp32), the number of correct labels (int64) and the first three arguments' gradients."""
    count, vocabulary = hidden_states.shape[0], weight.shape[0]
    chunk = max(chunk_rows(count, vocabulary), 1)
    losses, corrects, grad_hidden = [], [], []
    grad_weight = grad_bias = None
    for first in range(0, max(count, 1), chunk):
        piece = hidden_states[first : first + chunk]
        logits = linear(piece, weight, bias)
        loss, correct = cross_entropy(logits, labels[first : first + chunk], want_gradients)
        losses.append(loss)
        corrects.append(correct)
        if want_gradients:
            grad_hidden.append(linear(logits, weight.t(), None))
            piece_weight, piece_bias = linear(logits.t(), piece.t(), None), logits.sum(0, dtype=torch.float32)
            if count > chunk:
                # Sums over several chunks are accumulated in fp32.
                piece_weight = piece_weight.float()
            grad_weight = piece_weight if grad_weight is None else grad_weight.add_(piece_weight)
            grad_bias = piece_bias if grad_bias is None else grad_bias.add_(piece_bias)
    loss_sum, correct_sum = torch.cat(losses).sum(), torch.cat(corrects).sum()
    if grad_weight is None or grad_bias is None:
        return loss_sum, correct_sum, None
    return loss_sum, correct_sum, (torch.cat(grad_hidden), grad_weight.to(weight.dtype), grad_bias)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_states, weight, bias, labels, want_gradients):
        loss, correct, gradients = linear_cross_entropy_forward(hidden_states, weight, bias, labels, want_gradients)
        if gradients is not None:
            ctx.save_for_backward(*gradients)
        ctx.bias_dtype = bias.dtype
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        grad_hidden, grad_weight, grad_bias = (gradient * grad_loss for gradient in ctx.saved_tensors)
        return grad_hidden, grad_weight, grad_bias.to(ctx.bias_dtype), None, None


def linear_cross_entropy_sum(
    hidden_states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `bert_pld.kernels.reference.linear_cross_entropy_sum` in chunks; differentiable once.

    Arguments and result are those of the reference. A label outside [0, V) is an IndexError on a CPU, and on a GPU an
    assertion of the device.
    """
    if labels.device.type == "cpu" and labels.numel() and not 0 <= labels.min() <= labels.max() < len(weight):
        raise IndexError(f"a label is outside the vocabulary of {len(weight)} entries")
    want_gradients = torch.is_grad_enabled() and any(t.requires_grad for t in (hidden_states, weight, bias))
    return _LinearCrossEntropy.apply(hidden_states, weight, bias, labels, want_gradients)
