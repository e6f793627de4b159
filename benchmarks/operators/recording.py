"""A record of what a training step gives to the device: each operator and kernel launch, with its bytes and FLOPs.

Each operator is at least one kernel launch. Views and allocations are left out: they launch nothing. A multi-tensor
operator counts once, although it is a few kernels. Bytes are those that must move: each tensor that is read, once, and
each that is written, once. Triton kernels are recorded and not run, so they need no GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.batches import random_batch
from bert_pld.config import ModelConfig
from bert_pld.model import BertForPreTraining, use_backend

MODEL_PARTS = ("embeddings", "blocks", "final norm", "MLM head", "NSP head", "losses")
"""Parts of forward and backward. `losses`: the model outside its modules."""
PARTS = (*MODEL_PARTS, "accumulation", "reduction", "boundary")
"""Parts of a step: also what follows the gradient of each parameter, DeepSpeed's work after the last backward, and
`engine.step`."""
_WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
"""Operators whose result the host reads."""
_LAUNCH_NOTHING = ("empty", "detach", "alias", "_unsafe_view", "_reshape_alias", "set_", "lift_fresh")
_WRITE_ONLY = ("copy_", "_foreach_copy_", "fill_", "zero_", "_foreach_zero_")
_GATHERS = ("embedding", "index_select", "index", "gather")
"""Operators that read as many values of their first tensor as they return."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One operator or kernel launch."""

    name: str
    part: str
    kind: str
    """`product` (matrix product), `attention`, `kernel` (Triton), or `operator`."""
    bytes: int
    flops: int = 0
    width: int = 0
    """Smallest dimension of a matrix product."""

    @property
    def waits(self) -> bool:
        """Whether the host waits for the result."""
        return self.name in _WAITING


class Recorder(TorchDispatchMode):
    """Records the work of a block of code in `work`.

    Work of a forward belongs to the module in which it runs, and work of a backward to the module whose forward made
    the gradient's node.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.work: list[Work] = []
        self.part = "losses"
        """Part of what runs outside modules and outside the nodes of a backward."""
        self._module: str | None = None
        self._began = 0
        self._nodes: list[tuple[int, int, str]] = []
        self._on_host: set[int] = set()
        for module, name in _parts(model):
            module.register_forward_pre_hook(self._enter(name))
            module.register_forward_hook(self._leave)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and record it."""
        result = operator(*args, **(kwargs or {}))
        namespace, name = operator.name().split("::")
        name = name.split(".")[0]
        if name == "randint":  # A seed, which is drawn on the host.
            self._on_host.add(result.untyped_storage()._cdata)
        elif name == "_local_scalar_dense" and args[0].untyped_storage()._cdata in self._on_host:
            self._on_host.clear()
        elif not operator.is_view and not name.startswith(_LAUNCH_NOTHING) and namespace not in ("profiler", "prim"):
            self._record_operator(operator, name, args, kwargs or {}, result)
        return result

    def record(self, name: str, kind: str, moved: Iterable[Tensor], flops: int = 0) -> None:
        """Record a launch that reads or writes each of some tensors once."""
        self.work.append(Work(name, self._current_part(), kind, _bytes(moved), flops))

    def _record_operator(self, operator: Any, name: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        read = 0
        for index, argument in enumerate(operator._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            size = _bytes(_tensors(value))
            read += size * (is_written + (not is_written or name not in _WRITE_ONLY))
        # What is written into an argument is counted there.
        returned = operator._schema.returns
        written = _bytes(_tensors(result)) if all(one.alias_info is None for one in returned) else 0
        if name in _GATHERS:
            read = written
        elif name == "embedding_dense_backward":
            read += written  # The gradient is set to zero first.
        formula = flop_registry.get(operator._overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula is not None else 0
        kind, width = ("product", _width(args)) if flops else ("operator", 0)
        self.work.append(Work(name, self._current_part(), kind, read + written, flops, width))

    def _current_part(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._module or self.part
        number = node._sequence_nr()
        if number > 1 << 60:  # the node that accumulates a parameter's gradient
            return "accumulation"
        return next((part for first, end, part in self._nodes if first <= number < end), "losses")

    def _enter(self, part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._module, self._began = part, torch.autograd._get_sequence_nr()

        return hook

    def _leave(self, *_: Any) -> None:
        assert self._module is not None
        self._nodes.append((self._began, torch.autograd._get_sequence_nr(), self._module))
        self._module = None


def _parts(model: nn.Module | None) -> Iterator[tuple[nn.Module, str]]:
    if not isinstance(model, BertForPreTraining):
        return
    yield model.encoder.embeddings, "embeddings"
    for block in model.encoder.blocks:
        yield block, "blocks"
    if model.encoder.final_norm is not None:
        yield model.encoder.final_norm, "final norm"
    yield model.mlm_head, "MLM head"
    if model.nsp_head is not None:
        yield model.nsp_head, "NSP head"


def record_model(config: ModelConfig, kernels: str, rows: int, seq: int) -> list[Work]:
    """Return the work of forward and backward on `rows` sequences of `seq` tokens in bf16, on meta tensors."""
    with torch.device("meta"):
        model = BertForPreTraining(config).to(torch.bfloat16)
    inputs = random_batch(config, rows, seq, torch.device("cpu"), seed=0).model_inputs()
    recorder = Recorder(model)
    with as_on_a_gpu(recorder):
        use_backend(model, kernels, "cuda")
        with recorder:
            outputs = model(**{name: None if value is None else value.to("meta") for name, value in inputs.items()})
            outputs["loss"].backward()
    return recorder.work


@contextlib.contextmanager
def as_on_a_gpu(recorder: Recorder | None = None, multiprocessors: int = 132) -> Iterator[None]:
    """Let a model on a CPU or on meta tensors run as on a GPU: Triton's launches, attention and dropout.

    Launches are recorded and skipped, so the values are meaningless. Attention is one launch in each direction, as in
    cuDNN and FlashAttention.
    """
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from bert_pld import model
    from bert_pld.kernels import dropout, reference_attention, tiles

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if recorder is not None:
            recorder.record(kernel.__name__, "kernel", _tensors([args, list(kwargs.values())]))

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _Attention.apply(recorder, query, key, value)

    with (
        mock.patch.object(model, "select_backend", lambda name, *_: name),
        mock.patch.object(model, "check_fp8"),
        mock.patch.object(JITFunction, "run", launch),
        mock.patch.object(InterpretedFunction, "run", launch),
        mock.patch.object(tiles, "multiprocessors", return_value=multiprocessors),
        mock.patch.object(tiles.Tile, "fitted", lambda tile, *_: tile),
        mock.patch.object(F, "scaled_dot_product_attention", attend),
        mock.patch.object(dropout, "draws_integers", return_value=False),
        mock.patch.object(reference_attention, "draws_integers", return_value=False),
        mock.patch.object(F, "dropout", lambda values, p, *_: torch.native_dropout(values, p, True)[0]),
    ):
        yield


class _Attention(torch.autograd.Function):
    """One launch in each direction, without arithmetic."""

    @staticmethod
    def forward(ctx: Any, recorder: Recorder | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.recorder = recorder
        out = torch.zeros_like(query)
        if recorder is not None:
            recorder.work.pop()  # the zeros
            recorder.record("attention forward", "attention", (query, key, value, out), 2 * _product_flops(query, key))
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        gradients = [torch.zeros_like(one) for one in (query, key, value)]
        if ctx.recorder is not None:
            del ctx.recorder.work[-3:]
            moved = (query, key, value, upstream[0], torch.empty_like(query), *gradients)
            ctx.recorder.record("attention backward", "attention", moved, 5 * _product_flops(query, key))
        return None, *gradients


def _width(args: Any) -> int:
    """Return the smallest of m, k and n in a product of the last two of some matrices, […, m, k] and […, k, n]."""
    first, second = [one.shape for one in args if isinstance(one, Tensor) and one.dim() >= 2][-2:]
    return min(*first[-2:], second[-1])


def _product_flops(query: Tensor, key: Tensor) -> int:
    return 2 * query.numel() * key.shape[-2]


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an argument, and in its lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of different tensors; one that is given twice, or repeated along a dimension, counts once."""
    seen = {}
    for tensor in tensors:
        shape = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0]
        key = tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        seen[key] = math.prod(shape) * tensor.itemsize
    return sum(seen.values())
