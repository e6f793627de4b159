"""The fused operations that `benchmarks kernels` measures.

Shapes: T tokens, H hidden, K rows of the branch, N rows that are normalised, I = 4·H, M masked positions, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.batches import targets_of
from benchmarks.kernels.embedding_case import Embeddings
from benchmarks.kernels.modern_cases import Geglu, RotaryHeads
from benchmarks.kernels.operation import Formula, InputSet, Operation, Size
from benchmarks.kernels.split_case import SplitQkv
from bert_pld.kernels import reference
from bert_pld.kernels.dropout import CounterDropout
from bert_pld.kernels.layout import TokenLayout, kept_layouts
from bert_pld.kernels.reference import Join, RowMap

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

DROPOUT = 0.1
EPS = 1e-5
GATE_SCALE = 1.25
KEPT_SHARE = 0.75
_FP32 = 4
_INT32 = 4
_INT64 = 8


class AddNorm(Operation):
    """LayerNorm of all rows or of a subset of sequences, with or without a branch that is added first.

    Without a branch only the normalised rows have an upstream gradient: a plain LayerNorm, as peers implement it.
    """

    def __init__(self, name: str, size: Size, device: torch.device, branch: bool, subsets: bool) -> None:
        super().__init__(size, device)
        self.name = name
        joined: RowMap | None
        self.rows: RowMap | None
        joined, self.rows = _two_subsets(size, device) if subsets else (None, None)
        dropout = CounterDropout(DROPOUT, seed=1 << 40, site=3)
        self.join = Join(GATE_SCALE, dropout, joined) if branch else None
        self.in_norm = size.tokens if self.rows is None else self.rows.count
        self.in_branch = 0 if not branch else size.tokens if joined is None else joined.count
        self._joined_rows, self._normed_rows = (_stream_rows(rows) for rows in (joined, self.rows))

    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes; without a branch only the normalised rows must be read."""
        rows, width, item = self.size.tokens, self.size.hidden, self.size.item_bytes
        branch = self.join is not None
        maps = _INT32 * rows * ((self.rows is not None) + (branch and self._joined_rows is not None))
        statistics = 2 * _FP32 * self.in_norm
        if direction == "forward":
            read = (rows if branch else self.in_norm) + self.in_branch + (3 if branch else 2)
            written = (rows if branch else 0) + self.in_norm
            return (read + written) * width * item + maps + statistics
        read = 2 * self.in_norm + (rows if branch else 0) + 1
        written = rows + self.in_branch
        return (read + written) * width * item + (3 if branch else 2) * width * _FP32 + maps + statistics

    def random_inputs(self, seed: int) -> InputSet:
        """Draw stream [T, H], weight [H], norm_bias [H] and, with a branch, values [K, H], bias [H]."""
        generator, width = self.generator(seed), self.size.hidden
        arguments = [self.normal(generator, *shape) for shape in ((self.size.tokens, width), (width,), (width,))]
        upstream = [self.normal(generator, self.in_norm, width).detach()]
        if self.join is not None:
            arguments += [self.normal(generator, self.in_branch, width), self.normal(generator, width)]
            upstream.append(self.normal(generator, self.size.tokens, width).detach())
        return InputSet(tuple(arguments), tuple(upstream))

    def formula(self) -> Formula:
        """Returns normed [N, H] and, with a branch, the new stream [T, H]."""
        joined, chosen, width = self._joined_rows, self._normed_rows, self.size.hidden

        def norm(stream: Tensor, weight: Tensor, norm_bias: Tensor) -> tuple[Tensor, ...]:
            rows = stream if chosen is None else stream.index_select(0, chosen)
            return (F.layer_norm(rows, (width,), weight, norm_bias, EPS),)

        def add_norm(
            stream: Tensor, weight: Tensor, norm_bias: Tensor, values: Tensor, bias: Tensor
        ) -> tuple[Tensor, ...]:
            branch = F.dropout(values + bias, DROPOUT)
            if joined is None:
                stream = torch.add(stream, branch, alpha=GATE_SCALE)
            else:
                stream = stream.index_add(0, joined, branch, alpha=GATE_SCALE)
            return *norm(stream, weight, norm_bias), stream

        return norm if self.join is None else add_norm

    def specification(self) -> Formula:
        """The same with the counter's dropout mask."""
        outputs = 1 if self.join is None else 2

        def specified(stream: Tensor, weight: Tensor, norm_bias: Tensor, *branch: Tensor) -> tuple[Tensor, ...]:
            values, bias = branch or (None, None)
            return reference.add_norm(stream, weight, norm_bias, EPS, values, bias, self.join, self.rows)[:outputs]

        return specified

    def forward(self, inputs: InputSet, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`add_norm_forward`."""
        from bert_pld.kernels.add_norm import add_norm_forward

        stream, weight, norm_bias, *branch = inputs.arguments
        values, bias = branch or (None, None)
        return add_norm_forward(stream, weight, norm_bias, EPS, values, bias, self._join_on_device, self.rows, tile)

    def backward(self, inputs: InputSet, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`add_norm_backward`."""
        from bert_pld.kernels.add_norm import add_norm_backward

        (_, new_stream, mean, rstd), join = saved, self._join_on_device
        grad_normed, grad_new_stream = (*inputs.upstream, None)[:2]
        grad_stream, grad_values, sums = add_norm_backward(
            grad_normed, grad_new_stream, new_stream, inputs.arguments[1], mean, rstd, join, self.rows, tile
        )
        if grad_values is None:
            return grad_stream, sums[0], sums[1]
        return grad_stream, sums[0], sums[1], grad_values, sums[2]

    @functools.cached_property
    def _join_on_device(self) -> Join | None:
        """The join as training passes it, with its words uploaded before: a launch would upload them each time."""
        from bert_pld.kernels.joins import on_device

        return None if self.join is None else on_device([self.join], self.device)[0]

    def default_tile(self, direction: str) -> Tile:
        """A tile of rows; backward reduces over them."""
        from bert_pld.kernels.tiles import reducing_row_tile, row_tile

        return row_tile(self.size.hidden) if direction == "forward" else reducing_row_tile(self.size.hidden)


class BiasGelu(Operation):
    """GELU of values plus bias, [T, I]."""

    def __init__(self, size: Size, device: torch.device, activation: Literal["gelu", "gelu_tanh"]) -> None:
        super().__init__(size, device)
        self.name, self.activation, self.width = f"bias_{activation}", activation, 4 * size.hidden

    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes; backward reads values and upstream gradient and writes one gradient."""
        rows, item = self.size.tokens, self.size.item_bytes
        if direction == "forward":
            return (2 * rows + 1) * self.width * item
        return (3 * rows + 1) * self.width * item + self.width * _FP32

    def random_inputs(self, seed: int) -> InputSet:
        """Draw values [T, I] and bias [I]."""
        generator, shape = self.generator(seed), (self.size.tokens, self.width)
        arguments = (self.normal(generator, *shape), self.normal(generator, self.width))
        return InputSet(arguments, (self.normal(generator, *shape).detach(),))

    def formula(self) -> Formula:
        """Returns the activations [T, I]."""
        approximate = "tanh" if self.activation == "gelu_tanh" else "none"
        return lambda values, bias: (F.gelu(values + bias, approximate=approximate),)

    def specification(self) -> Formula:
        """The reference backend's function."""
        return lambda values, bias: (reference.bias_gelu(values, bias, self.activation),)

    def forward(self, inputs: InputSet, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`bias_gelu_forward`."""
        from bert_pld.kernels.bias_gelu import bias_gelu_forward

        values, bias = inputs.arguments
        return (bias_gelu_forward(values, bias, self.activation, tile),)

    def backward(self, inputs: InputSet, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`bias_gelu_backward`."""
        from bert_pld.kernels.bias_gelu import bias_gelu_backward

        values, bias = inputs.arguments
        (grad_out,) = inputs.upstream
        assert grad_out is not None
        return bias_gelu_backward(grad_out, values, bias, self.activation, tile)

    def default_tile(self, direction: str) -> Tile:
        """A tile of elements."""
        from bert_pld.kernels.tiles import element_tile

        return element_tile(self.width)


class CrossEntropy(Operation):
    """Loss of [M, V] logits and whether the prediction is correct; the gradient is written over the logits."""

    name = "cross_entropy"
    directions = ("both",)
    overwrites = True

    def __init__(self, size: Size, device: torch.device) -> None:
        super().__init__(size, device)
        self.rows = targets_of(size.tokens)

    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes: logits are read once, their gradient is written once."""
        return 2 * self.rows * self.size.vocabulary * self.size.item_bytes + self.rows * (_INT64 + _FP32 + _INT32)

    def random_inputs(self, seed: int) -> InputSet:
        """Draw logits [M, V] and labels [M]."""
        generator = self.generator(seed)
        logits = self.normal(generator, self.rows, self.size.vocabulary)
        labels = torch.randint(0, self.size.vocabulary, (self.rows,), generator=generator, device=self.device)
        return InputSet((logits, labels), (torch.ones(self.rows, device=self.device), None))

    def formula(self) -> Formula:
        """Returns losses [M] and whether each prediction is correct, [M]."""
        return _cross_entropy

    def specification(self) -> Formula:
        """Returns losses [M] in the logits' precision."""
        return lambda logits, labels: (F.cross_entropy(logits, labels, reduction="none"),)

    def forward(self, inputs: InputSet, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """`cross_entropy`: losses, correct predictions, and the logits' gradient."""
        from bert_pld.kernels.linear_cross_entropy import cross_entropy

        logits, labels = inputs.arguments
        return *cross_entropy(logits, labels, True, tile), logits

    def backward(self, inputs: InputSet, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """The gradient that forward wrote over the logits."""
        return (saved[2],)

    def default_tile(self, direction: str) -> Tile:
        """One row a program, `width` logits at a time."""
        from bert_pld.kernels.linear_cross_entropy import block_and_warps
        from bert_pld.kernels.tiles import Tile

        block, num_warps = block_and_warps(self.size.vocabulary)
        return Tile(rows=1, width=block, num_warps=num_warps)


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses, logits.detach().argmax(-1) == labels


OPERATIONS: dict[str, Callable[[Size, torch.device], Operation]] = {
    "layer_norm": lambda size, device: AddNorm("layer_norm", size, device, branch=False, subsets=False),
    "layer_norm_gather": lambda size, device: AddNorm("layer_norm_gather", size, device, branch=False, subsets=True),
    "add_norm": lambda size, device: AddNorm("add_norm", size, device, branch=True, subsets=False),
    "add_norm_scatter_gather": lambda size, device: AddNorm(
        "add_norm_scatter_gather", size, device, branch=True, subsets=True
    ),
    "embed": lambda size, device: Embeddings("embed", size, device, norm=False, dropout=DROPOUT),
    "embed_norm": lambda size, device: Embeddings("embed_norm", size, device, norm=True, dropout=DROPOUT),
    "bias_gelu": lambda size, device: BiasGelu(size, device, "gelu"),
    "bias_gelu_tanh": lambda size, device: BiasGelu(size, device, "gelu_tanh"),
    "geglu": Geglu,
    "rotary": RotaryHeads,
    "split_qkv": SplitQkv,
    "cross_entropy": CrossEntropy,
}


def _two_subsets(size: Size, device: torch.device) -> tuple[RowMap, RowMap]:
    """Row maps of two random subsets of the sequences: those that a block kept, and those that the next one keeps."""
    sequences = size.tokens // size.seq_length
    count = max(round(KEPT_SHARE * sequences), 1)
    random = np.random.default_rng(0)
    kept = [np.sort(random.choice(sequences, count, replace=False)).astype(np.int64) for _ in range(2)]
    layout = TokenLayout(np.full(sequences, size.seq_length, np.int64), size.seq_length, device)
    (_, joined), (_, normed) = kept_layouts(layout, kept)
    assert joined is not None
    assert normed is not None
    return joined, normed


def _stream_rows(rows: RowMap | None) -> Tensor | None:
    """int64 [K], ascending: the stream's row of each compact row."""
    return None if rows is None else (rows.compact_row >= 0).nonzero().squeeze(1)
