"""The interface of a fused operation under measurement: inputs, bytes, formula, specification and launchers.

Bytes are the fewest that the operation must move: the needed part of each input is read once, each output is written
once, with mean, rstd and the row maps. Partial sums that a kernel leaves for a second pass are not counted.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.options import DTYPES

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

Formula = Callable[..., tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of one measurement."""

    tokens: int
    """T, a multiple of `seq_length`."""
    hidden: int
    """H."""
    dtype: str
    """A key of `DTYPES`."""
    seq_length: int = 128
    vocabulary: int = 30528

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class InputSet:
    """One set of random inputs."""

    arguments: tuple[Tensor, ...]
    """Arguments of the formula; those of floating type are differentiated."""
    upstream: tuple[Tensor | None, ...]
    """Gradient of each of the formula's outputs; None where the output is not differentiated."""

    @property
    def leaves(self) -> list[Tensor]:
        """Arguments that get a gradient."""
        return [tensor for tensor in self.arguments if tensor.is_floating_point()]


class Operation(abc.ABC):
    """One fused operation at one size."""

    name: str
    directions: tuple[str, ...] = ("forward", "backward")
    overwrites: bool = False
    """Whether the launcher writes its result over the first argument."""
    swept: bool = True
    """Whether `--sweep` tries other tiles."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device

    @abc.abstractmethod
    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes that one call must move."""

    @abc.abstractmethod
    def random_inputs(self, seed: int) -> InputSet:
        """Draw arguments and upstream gradients."""

    @abc.abstractmethod
    def formula(self) -> Formula:
        """The operation in eager torch with torch's own dropout, as a peer would write it; for timing."""

    @abc.abstractmethod
    def specification(self) -> Formula:
        """The operation in eager torch with the dropout mask that the kernel draws; for checking."""

    @abc.abstractmethod
    def forward(self, inputs: InputSet, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """Launch the kernel; return the formula's outputs, then what backward needs."""

    @abc.abstractmethod
    def backward(self, inputs: InputSet, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """Launch the kernel; return the gradients of `inputs.leaves`."""

    @abc.abstractmethod
    def default_tile(self, direction: str) -> Tile:
        """The tile that the launcher chooses."""

    def normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        """Normally distributed values of the operation's dtype, as a leaf of autograd."""
        values = torch.randn(*shape, generator=generator, device=self.device, dtype=DTYPES[self.size.dtype])
        return values.requires_grad_()

    def generator(self, seed: int) -> torch.Generator:
        """A generator on the operation's device."""
        return torch.Generator(self.device).manual_seed(seed)


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation, one of its directions, and the input sets that it is timed on."""

    operation: Operation
    direction: str
    input_sets: list[InputSet]
