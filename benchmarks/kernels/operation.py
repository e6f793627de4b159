"""What `bench kernels` asks of a fused operation: inputs, bytes, formula, specification and launchers.

Bytes are the fewest that the operation must move: what it needs of each input read once, each output written once,
with mean and rstd and the row maps; partial sums that a kernel leaves for a second pass are not counted.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bert_pld.kernels.tiles import Tile

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Formula = Callable[..., tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class Size:
    """Of one measurement."""

    tokens: int
    """T, in whole sequences."""
    hidden: int
    """H."""
    dtype: str
    """A key of `DTYPES`."""
    seq_length: int = 128
    vocabulary: int = 30528

    @property
    def item_bytes(self) -> int:
        """Of one element."""
        return DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class Draw:
    """One set of random inputs."""

    inputs: tuple[Tensor, ...]
    """The formula's arguments; floating ones are differentiated."""
    upstream: tuple[Tensor | None, ...]
    """The gradient of each of the formula's outputs; None: not used."""

    @property
    def leaves(self) -> list[Tensor]:
        """Inputs that get a gradient."""
        return [tensor for tensor in self.inputs if tensor.is_floating_point()]


class Operation(abc.ABC):
    """One fused operation at one size."""

    name: str
    directions: tuple[str, ...] = ("forward", "backward")
    overwrites: bool = False
    """The launcher writes its result over the first input."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device

    @abc.abstractmethod
    def moved_bytes(self, direction: str) -> int:
        """The fewest bytes of one call."""

    @abc.abstractmethod
    def draw(self, seed: int) -> Draw:
        """Random inputs and upstream gradients."""

    @abc.abstractmethod
    def formula(self) -> Formula:
        """In eager torch with torch's own dropout, as a peer would write it, for timing."""

    @abc.abstractmethod
    def specification(self) -> Formula:
        """With the mask that the kernel draws, for checking."""

    @abc.abstractmethod
    def forward(self, draw: Draw, tile: Tile | None = None) -> tuple[Tensor, ...]:
        """Launch the kernel: the formula's outputs, then what backward needs."""

    @abc.abstractmethod
    def backward(self, draw: Draw, saved: tuple[Tensor, ...], tile: Tile | None = None) -> tuple[Tensor, ...]:
        """Launch the kernel: the gradients of `draw.leaves`."""

    @abc.abstractmethod
    def default_tile(self, direction: str) -> Tile:
        """What the launcher chooses."""

    def normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        """A leaf of the size's dtype."""
        values = torch.randn(*shape, generator=generator, device=self.device, dtype=DTYPES[self.size.dtype])
        return values.requires_grad_()

    def generator(self, seed: int) -> torch.Generator:
        """On the operation's device."""
        return torch.Generator(self.device).manual_seed(seed)
