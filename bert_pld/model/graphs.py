"""CUDA graphs of blocks: the host launches all kernels of a block at once, in each direction.

A graph repeats launches on the same memory. So a captured block reads its inputs and the upstream gradients from fixed
memory, and leaves its results and gradients there. All blocks are captured in the order of a training step, in one pool
of memory, which they share as ordinary blocks do: what one block frees, a later one uses. A step may leave blocks out.
Neighbours are chained: a block's results lie where the next block reads, and its gradients where the one before reads.
Only where a block between was left out are they copied, into the memory of that block, which nobody else reads.

Seeds, scales and row maps are on the device, in memory of their own (`FixedMemory`); attention's dropout is drawn from
torch's generator, whose state a replay reads. So every replay has its own tokens and its own dropout, the same ones as
ordinary launches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bert_pld.kernels.layout import TokenLayout
from bert_pld.model.block_calls import BlockCall, FixedMemory, block_calls
from bert_pld.model.encoder import Encoder
from bert_pld.pld.gates import BlockGate

Inputs = Sequence[Tensor | None]
CallBlock = Callable[[Any, Inputs, BlockCall], tuple[Tensor, ...]]
"""Runs a block: its module, its inputs with gradients (None: there is none), and the others."""
_CHAINED = 2
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
        self.chained = min(len(inputs), _CHAINED)
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


class BlockGraphs:
    """The captured blocks of an encoder: all but the last, which runs on a varying number of chosen tokens.

    They are captured in the first training forward that has no padding and in which every block runs on all tokens, on
    a fixed number of tokens of each sequence, or on none. Later forwards of these shapes replay them. Other forwards,
    and blocks without a pending output where one was captured, run as usual. Other shapes that come several times in a
    row are captured in turn, so that a run that warms up and finishes dense is captured three times. Each time they
    must come twice as often as before, because capturing takes longer than a step.

    As soon as a block runs on other tokens, the graphs are given up: ordinary blocks need as much memory again.
    """

    def __init__(self, make_recorder: Callable[[], Recorder]) -> None:
        self._make_recorder = make_recorder
        self._graphs: dict[nn.Module, BlockGraph] = {}
        self._shapes: Any = None
        """The shapes that are captured, or were captured last."""
        self._candidate: Any = None
        self._times, self._enough = 0, 1
        """How often the candidate came in a row, and how often it must come to be captured."""
        self._parameters: list[Tensor] = []
        self._addresses: list[int] = []
        self.memory: FixedMemory | None = None
        """What captured blocks read; None: nothing is captured."""

    def start(self, encoder: Encoder, stream: Tensor, layout: TokenLayout, gates: Sequence[BlockGate] | None) -> bool:
        """Return whether this forward can replay blocks; if they are not captured yet, `capture` must follow."""
        if not (encoder.training and torch.is_grad_enabled()):
            return False
        kept = _kept_tokens(encoder, gates)
        if self._graphs and kept != self._shapes[-1]:
            self._give_up()
        if kept is None or layout.cumulative_lengths is not None or layout.documents is not None:
            return False
        shapes = stream.shape, stream.dtype, stream.device, layout.padded_length, kept
        if self._graphs and shapes == self._shapes:
            self._times = 0
            return True
        self._times = self._times + 1 if shapes == self._candidate else 1
        self._candidate = shapes
        return self._times >= self._enough

    @property
    def is_captured(self) -> bool:
        """Whether the shapes of this forward are captured, with the parameters where they are now."""
        addresses = [one.data_ptr() for one in self._parameters]
        return self.memory is not None and self._times == 0 and self._addresses == addresses

    def capture(
        self,
        encoder: Encoder,
        stream: Tensor,
        layout: TokenLayout,
        gates: Sequence[BlockGate] | None,
        probabilities: tuple[float, float],
        call_block: CallBlock,
    ) -> None:
        """Capture the blocks for streams and kept tokens of these shapes; random generators stay as they are."""
        self._give_up()
        if self._times:
            self._shapes, self._times, self._enough = self._candidate, 0, 2 * self._enough
        some = sum(gate.tokens is not None for gate in gates or ())
        recorder, pending = self._make_recorder(), None
        self.memory = FixedMemory(
            torch.zeros(2 * len(encoder.blocks), 4, dtype=torch.int32, device=stream.device),
            torch.zeros(some, stream.shape[0], dtype=torch.int32, device=stream.device),
        )
        inputs = [torch.zeros_like(stream)]
        with torch.random.fork_rng([stream.device] if stream.device.type == "cuda" else []):
            # A block that is dropped in this forward runs in others; at token granularity none is dropped.
            calls = block_calls(encoder, layout, gates if some else None, probabilities, self.memory)
            for block, call, _ in list(calls)[:-1]:
                graph = BlockGraph(block, dataclasses.replace(call, pending=pending), call_block, inputs)
                recorder.rehearse(graph.rehearsal)
                graph.capture_forward(recorder)
                self._graphs[block] = graph
                pending = call.joins[1] if len(graph.results) > 1 else None
                inputs = [*graph.results[:_CHAINED], *map(torch.zeros_like, graph.results[_CHAINED:])]
            upstream: Sequence[Tensor] = ()
            for graph in reversed(self._graphs.values()):
                graph.capture_backward(recorder, upstream)
                upstream = graph.gradients[: graph.chained]
        self._parameters = [one for graph in self._graphs.values() for one in graph.parameters]
        self._addresses = [one.data_ptr() for one in self._parameters]

    def _give_up(self) -> None:
        self._graphs, self.memory, self._parameters = {}, None, []

    def run(self, call_block: CallBlock, block: nn.Module, inputs: Inputs, call: BlockCall) -> tuple[Tensor, ...]:
        """Replay a block, or run it as usual."""
        graph, words = self._graphs.get(block), None if call.pending is None else call.pending.words
        if graph is None or call.chosen is not None or (words is None) != (graph.pending_words is None):
            return call_block(block, inputs, call)
        given = [one for one in inputs if one is not None]
        return _Replay.apply(graph, words, len(given), *given, *graph.parameters)


def block_runner(
    encoder: Encoder,
    stream: Tensor,
    layout: TokenLayout,
    gates: Sequence[BlockGate] | None,
    probabilities: tuple[float, float],
    call_block: CallBlock,
) -> tuple[CallBlock, FixedMemory | None]:
    """Return what runs this forward's blocks, `call_block` or graphs of it, and the memory that the graphs read."""
    graphs: BlockGraphs | None = encoder.graphs
    if graphs is None or not graphs.start(encoder, stream, layout, gates):
        return call_block, None
    if not graphs.is_captured:
        graphs.capture(encoder, stream, layout, gates, probabilities, call_block)
    return functools.partial(graphs.run, call_block), graphs.memory


class _Caller(nn.Module):
    """A block's call as a module, of whose parameters others can take the place."""

    def __init__(self, block: nn.Module, call: BlockCall, call_block: CallBlock) -> None:
        super().__init__()
        self.block, self._arguments, self._call_block = block, call, call_block

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return self._call_block(self.block, inputs, self._arguments)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph, pending_words, count, *tensors):
        ctx.graph = graph
        ctx.turn = graph.forward(tensors[:count], pending_words)
        return tuple(one.detach() for one in graph.results)

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream):
        graph = ctx.graph
        graph.backward(ctx.turn, upstream)
        in_place = [one.detach() for one in graph.gradients[: graph.chained]]
        # Copies, in one launch: a parameter may keep its gradient, and the next replay writes here again.
        copied = torch._foreach_mul(graph.gradients[graph.chained :], 1)
        return None, None, None, *in_place, *copied


def _kept_tokens(encoder: Encoder, gates: Sequence[BlockGate] | None) -> tuple[int | None, ...] | None:
    """Return how many tokens each block keeps, None: all or none; or None if the blocks cannot be captured.

    A Post-LN block takes and returns its own rows, so its neighbours' memory has other shapes.
    """
    gates = gates or ()
    if any(gate.keep and gate.rows is not None for gate in gates):
        return None
    kept = tuple(None if gate.tokens is None else int(gate.tokens.counts.sum()) for gate in gates)
    if not any(kept):
        return ()
    return None if encoder.final_norm is None else kept


def _place(memory: Tensor, value: Tensor) -> None:
    """Copy a value to where a graph reads it, unless it is there."""
    if memory.data_ptr() != value.data_ptr():
        memory.detach().copy_(value)


def _not_captured() -> None:
    raise AssertionError("not captured")
