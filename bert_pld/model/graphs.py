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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bert_pld.kernels.filling import Filling
from bert_pld.kernels.layout import FixedRows, TokenLayout
from bert_pld.model.block_calls import BlockCall, FixedMemory, block_calls
from bert_pld.model.block_graph import CHAINED, BlockGraph, CallBlock, Inputs, Recorder
from bert_pld.model.encoder import Encoder
from bert_pld.pld.gates import BlockGate


class BlockGraphs:
    """The captured blocks of an encoder: all but the last, which runs on a varying number of chosen tokens.

    They are captured in the first training forward in which every block runs on all tokens, on a fixed share of each
    sequence's tokens, or on none. Later forwards of these shapes replay them; where there is padding, fillers make the
    shapes equal. Other forwards, and blocks without a pending output where one was captured, run as usual. Other shapes
    that come several times in a row are captured in turn, so that a run that warms up and finishes dense is captured
    three times. Each time they must come twice as often as before, because capturing takes longer than a step.

    As soon as blocks run on other shares, the graphs are given up: ordinary blocks need as much memory again.
    """

    def __init__(self, make_recorder: Callable[[], Recorder]) -> None:
        self._make_recorder = make_recorder
        self._graphs: dict[nn.Module, BlockGraph] = {}
        self._shapes: Any = None
        """The shapes that are captured, or were captured last."""
        self._candidate: Any = None
        self._times, self._enough = 0, 1
        """How often the candidate came, without other shapes between, and how often it must come to be captured."""
        self._parameters: list[Tensor] = []
        self._addresses: list[int] = []
        self.memory: FixedMemory | None = None
        """What captured blocks read; None: nothing is captured."""
        self.tokens_per_sequence: float | None = None
        """Mean number of tokens of a sequence, for fillers; None: that of the first micro-batch. A run sets it, so that
        it computes on the same shapes when it resumes."""
        self._filling: Filling | None = None

    def filling(
        self,
        encoder: Encoder,
        gates: Sequence[BlockGate] | None,
        lengths: NDArray[np.int64],
        padded_length: int,
    ) -> Filling | None:
        """Return how a padded training forward is filled so that graphs can run it; None: it runs as usual."""
        if not _trains(encoder) or _shares(encoder, gates) is None:
            return None
        tokens, shape, filling = int(lengths.sum()), (len(lengths), padded_length), self._filling
        if filling is None or (filling.batch, filling.padded_length) != shape:
            mean = self.tokens_per_sequence
            self._filling = filling = Filling.for_tokens(tokens if mean is None else mean * len(lengths), *shape)
        return filling if filling.fits(tokens) else None

    def start(self, encoder: Encoder, stream: Tensor, layout: TokenLayout, gates: Sequence[BlockGate] | None) -> bool:
        """Return whether this forward can replay blocks; if they are not captured yet, `capture` must follow."""
        if not _trains(encoder):
            return False
        shares = _shares(encoder, gates)
        if self._graphs and shares != self._shapes[-1]:
            self._give_up()
        if shares is None or layout.documents is not None:
            return False
        if layout.cumulative_lengths is not None and layout.filling is None:
            return False
        # Where all sequences are short, a block may keep all of their tokens.
        subsets = _subsets(gates) if shares else ()
        shapes = stream.shape, stream.dtype, stream.device, layout.padded_length, layout.filling, subsets, shares
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
        some = len(set(_subsets(gates)) - {None})
        recorder, pending = self._make_recorder(), None
        self.memory = FixedMemory(
            torch.zeros(2 * len(encoder.blocks), 4, dtype=torch.int32, device=stream.device),
            FixedRows(
                torch.zeros(some, stream.shape[0], dtype=torch.int32, device=stream.device),
                torch.zeros(1 + some, len(layout.lengths) + 1, dtype=torch.int32, device=stream.device),
            ),
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
                inputs = [*graph.results[:CHAINED], *map(torch.zeros_like, graph.results[CHAINED:])]
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


def _trains(encoder: Encoder) -> bool:
    return encoder.training and torch.is_grad_enabled()


def _subsets(gates: Sequence[BlockGate] | None) -> tuple[int | None, ...]:
    """Return the number of the subset of tokens that each block runs on, from 0; None: all tokens, or no subset."""
    subsets = [None if gate.tokens is None else id(gate.tokens) for gate in gates or ()]
    different = [one for one in dict.fromkeys(subsets) if one is not None]
    return tuple(None if one is None else different.index(one) for one in subsets)


def _shares(encoder: Encoder, gates: Sequence[BlockGate] | None) -> tuple[float, ...] | None:
    """Return the share of the tokens that each block runs on, () if they run on all or none; None: no graph can.

    A Post-LN block takes and returns its own rows, so its neighbours' memory has other shapes.
    """
    gates = gates or ()
    if any(gate.keep and gate.rows is not None for gate in gates):
        return None
    if all(gate.tokens is None for gate in gates):
        return ()
    if encoder.final_norm is None or not all(gate.keep for gate in gates):
        return None
    return tuple(gate.keep_probability for gate in gates)
