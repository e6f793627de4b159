"""One captured block, and how its launches are captured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bert_pld.model.block_calls import BlockCall

Inputs = Sequence[Tensor | None]
CallBlock = Callable[[Any, Inputs, BlockCall], tuple[Tensor, ...]]
"""Runs a block: its module, its inputs with gradients (None: there is none), and the others."""
CHAINED = 2
"""Inputs that a block may read where the block before it left them: stream and pending output, but not that block's
bias, which is a parameter."""


class Recorder(Protocol):
    """Captures launches."""

    def rehearse(self, body: Callable[[], Any]) -> None:
        """Run a body beforehand, so that what is compiled, loaded or planned at its first run is not captured."""

    def record(self, body: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """Return a body's results and a function that computes them again, in the same memory."""


class CudaRecorder:
    """Captures CUDA graphs that share a pool of memory."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def rehearse(self, body: Callable[[], Any]) -> None:
        """`Recorder.rehearse`."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            body()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, body: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """`Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads go on: they pin the next micro-batch's memory, and watch collective operations.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            results = body()
        return results, graph.replay


class BlockGraph:
    """One captured block and its memory."""

    def __init__(self, block: nn.Module, call: BlockCall, call_block: CallBlock, inputs: Sequence[Tensor]) -> None:
        self.inputs = [one.detach().requires_grad_() for one in inputs]
        self.pending_words = None if call.pending is None else call.pending.words
        # Other leaves in the parameters' memory: DeepSpeed's hooks tie the parameters' own to another stream.
        leaves = {name: one.detach().requires_grad_() for name, one in block.named_parameters() if one.requires_grad}
        self.parameters = [one for one in block.parameters() if one.requires_grad]
        self._call = functools.partial(
            torch.func.functional_call,
            _Caller(block, call, call_block),
            {f"block.{name}": leaf for name, leaf in leaves.items()},
        )
        self._differentiated = [*self.inputs, *leaves.values()]
        self.chained = min(len(inputs), CHAINED)
        """Inputs that may be where the block before left them, and their gradients."""
        self._live: tuple[Tensor, ...] = ()
        self._turn = 0
        self.results: list[Tensor] = []
        self.upstream: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.replay_forward = self.replay_backward = _not_captured

    def rehearsal(self) -> None:
        """Run forward and backward once."""
        with torch.enable_grad():
            results = self._call(tuple(self.inputs))
        torch.autograd.grad(results, self._differentiated, [torch.zeros_like(one) for one in results])

    def capture_forward(self, recorder: Recorder) -> None:
        """Capture the forward pass; sets `results`."""
        self.results, self.replay_forward = recorder.record(self._forward)

    def capture_backward(self, recorder: Recorder, upstream: Sequence[Tensor]) -> None:
        """Capture the backward pass, which reads the results' gradients in `upstream`, or in memory of its own."""
        own = [torch.zeros_like(one) for one in self.results[len(upstream) :]]
        self.upstream = [*upstream, *own]
        self.gradients, self.replay_backward = recorder.record(self._backward)

    def forward(self, inputs: Sequence[Tensor], pending_words: Tensor | None) -> int:
        """Run the forward pass on these inputs; return its number, which its backward pass must give."""
        for memory, value in zip(self.inputs, inputs, strict=True):
            _place(memory, value)
        if pending_words is not None and self.pending_words is not None:
            _place(self.pending_words, pending_words)
        self.replay_forward()
        self._turn += 1
        return self._turn

    def backward(self, turn: int, upstream: Sequence[Tensor]) -> None:
        """Run the backward pass of forward pass `turn`."""
        if turn != self._turn:
            raise RuntimeError(
                "model.cuda_graphs: a block's backward pass after its next forward pass, or a second time; call"
                " backward once after each forward pass, or set model.cuda_graphs to false"
            )
        self._turn += 1
        for memory, value in zip(self.upstream, upstream, strict=True):
            _place(memory, value)
        self.replay_backward()

    def _forward(self) -> list[Tensor]:
        with torch.enable_grad():
            self._live = self._call(tuple(self.inputs))
        return [one.detach() for one in self._live]

    def _backward(self) -> list[Tensor]:
        return list(torch.autograd.grad(self._live, self._differentiated, self.upstream))


class _Caller(nn.Module):
    """A block's call as a module, of whose parameters others can take the place."""

    def __init__(self, block: nn.Module, call: BlockCall, call_block: CallBlock) -> None:
        super().__init__()
        self.block, self._arguments, self._call_block = block, call, call_block

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return self._call_block(self.block, inputs, self._arguments)


def _place(memory: Tensor, value: Tensor) -> None:
    """Copy a value to where a graph reads it, unless it is there."""
    if memory.data_ptr() != value.data_ptr():
        memory.detach().copy_(value)


def _not_captured() -> None:
    raise AssertionError("not captured")
