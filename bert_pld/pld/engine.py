"""`initialize`: a drop-in replacement of `deepspeed.initialize` that adds Progressive Layer Dropping to any model.

Since 0.19.8, which removed PLD, DeepSpeed rejects the `progressive_layer_drop` block; older releases would run a second
schedule of their own. So the block is removed before DeepSpeed reads the configuration, on every release, and a
forward pre-hook passes the gates to the model.
"""

from __future__ import annotations

import copy
import inspect
import os
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from bert_pld.config import (
    AUTO,
    BATCH_KEYS,
    OUR_BLOCKS,
    ConfigError,
    ProgressiveLayerDropConfig,
    RunConfig,
    load_config,
)
from bert_pld.pld.gates import Gates, draw_gates
from bert_pld.pld.schedule import Schedule

_HOOKS: weakref.WeakKeyDictionary[nn.Module, RemovableHandle] = weakref.WeakKeyDictionary()
"""Model → the hook that passes it gates: a model that gets a second engine must not see the first one's."""


def make_schedule(run: RunConfig, num_blocks: int | None = None) -> Schedule:
    """Return a run's schedule for `num_blocks` blocks, by default the model's; without PLD it keeps every block."""
    pld, blocks = run.progressive_layer_drop, num_blocks or run.model.num_layers
    if not pld.enabled:
        return Schedule(blocks, theta_limit=1.0, temporal="constant")
    pld, max_steps = pld.resolved(run.training.max_steps), run.training.max_steps
    assert pld.gamma != "auto"
    return Schedule(
        num_blocks=blocks,
        theta_limit=pld.theta,
        gamma=pld.gamma,
        temporal=pld.temporal,
        depth=pld.depth,
        keep_first_block=pld.keep_first_block,
        keep_last_block=pld.keep_last_block,
        keep_every=pld.keep_every,
        warmup_steps=round(pld.dense_warmup),
        ramp_steps=round(pld.ramp),
        finish_step=max_steps - round(pld.dense_finish) if pld.dense_finish else None,
    )


class LayerDropper:
    """Draws the gates of each training forward from the engine's step counters, without counters of its own."""

    def __init__(self, engine: Any, config: ProgressiveLayerDropConfig, schedule: Schedule) -> None:
        self.engine, self.config, self.schedule = engine, config, schedule
        self.last_gates: Gates | None = None
        """Gates of the latest training forward, for logging."""
        _HOOKS[engine.module] = engine.module.register_forward_pre_hook(self._inject_gates, with_kwargs=True)

    @property
    def theta(self) -> float:
        """θ at the engine's current optimizer step."""
        return self.schedule.theta(self.engine.global_steps)

    def gates(
        self,
        rows: int,
        padded_length: int | None = None,
        lengths: NDArray[np.int64] | None = None,
        masked_positions: torch.Tensor | None = None,
    ) -> Gates:
        """Draw the gates of the engine's current micro-batch of `rows` sequences.

        Token granularity requires `padded_length`, and `lengths` [rows] if there is padding; `keep_masked_tokens`
        requires `masked_positions` (see `draw_gates`).
        """
        engine = self.engine
        if lengths is None and padded_length is not None:
            lengths = np.full(rows, padded_length)
        return draw_gates(
            self.schedule,
            granularity=self.config.granularity,
            seed=self.config.seed,
            step=engine.global_steps,
            micro_step=engine.micro_steps % engine.gradient_accumulation_steps(),
            rows=rows,
            first_row=self._data_parallel_rank * rows,
            lengths=lengths,
            padded_length=padded_length,
            masked_positions=masked_positions,
            near_masked=self.config.keep_near_masked,
            same_tokens=self.config.same_tokens,
            device=engine.device,
            zero_gradient_when_dropped=self._needs_zero_gradients,
        )

    @property
    def _data_parallel_rank(self) -> int:
        """The rank among those with other sequences; ranks that share sequences must draw the same gates."""
        if not torch.distributed.is_initialized():
            return 0
        return torch.distributed.get_rank(getattr(self.engine, "data_parallel_group", None))

    @property
    def _needs_zero_gradients(self) -> bool:
        """Whether DeepSpeed reduces gradients correctly only if every backward sets all of them (see `run_gated`).

        True at ZeRO-3. At ZeRO-1 with `overlap_comm` and accumulation, only the hooks of the step's last backward
        reduce: a block that was kept in an earlier micro-batch and dropped in the last one would be updated with the
        gradient of one rank. With an offloaded optimizer at ZeRO 1 and 2, the gradients' buffer on the host keeps what
        no backward overwrites: a dropped block would be updated with the gradient of an earlier step.
        """
        engine = self.engine
        stage, overlaps = engine.zero_optimization_stage(), engine.zero_overlap_comm()
        reduces_last_only = stage == 1 and overlaps and engine.gradient_accumulation_steps() > 1
        return stage == 3 or reduces_last_only or bool(stage and engine.zero_cpu_offload())

    def _inject_gates(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Gates that the caller passes take precedence: a benchmark repeats the same gates.
        named = _by_name(module, args, kwargs)
        if not module.training or named.get("gates") is not None:
            return None
        rows, *length = _first_tensor(args, kwargs).shape[:2]
        if self.config.granularity != "token":
            self.last_gates = self.gates(rows)
        elif length:
            lengths = _sequence_lengths(named, rows, length[0])
            self.last_gates = self.gates(rows, length[0], lengths, self._masked_positions(named))
        else:
            raise ValueError("granularity 'token': the model's first tensor must be [rows, tokens, …]")
        return args, {**kwargs, "gates": self.last_gates}

    def _masked_positions(self, named: Mapping[str, Any]) -> torch.Tensor | None:
        if not self.config.keep_masked_tokens:
            return None
        if named.get("masked_positions") is None:
            raise ValueError(
                "keep_masked_tokens: the engine got no argument masked_positions, int64 [M], indices into the flattened"
                " [rows · tokens]"
            )
        return named["masked_positions"]


def initialize(
    args: Any = None,
    model: nn.Module | None = None,
    *positional: Any,
    config: str | Path | Mapping[str, Any] | RunConfig | None = None,
    config_params: str | Path | Mapping[str, Any] | None = None,
    num_blocks: int | None = None,
    **keywords: Any,
) -> tuple[Any, Any, Any, Any]:
    """Call `deepspeed.initialize` and add Progressive Layer Dropping.

    The arguments and the result are those of `deepspeed.initialize`, in the same order. The result is
    `(engine, optimizer, training_dataloader, lr_scheduler)`. If the configuration has an enabled
    `progressive_layer_drop` block, `engine.layer_dropper` is a `LayerDropper` and each training forward of the model
    receives `gates=Gates`; the model passes one gate with each block to `bert_pld.run_gated`. In evaluation
    (`model.eval()`) no `gates` are passed: all blocks run unscaled. Without the block `engine.layer_dropper` is None.

    Args:
        args: as in DeepSpeed; its `deepspeed_config` is used if `config` is not given.
        model: a model whose forward accepts the keyword `gates`, default None.
        positional: as in DeepSpeed.
        config: a DeepSpeed JSON (path or dict) with our blocks, or a loaded `RunConfig`.
        config_params: DeepSpeed's other name for `config`.
        num_blocks: number of gated blocks; by default the model's `num_gated_blocks` or `config.num_hidden_layers`.
        keywords: as in DeepSpeed.

    Raises:
        ConfigError: a mistake in the configuration.
        ValueError: PLD is enabled, and the model's forward does not accept gates or its number of blocks is unknown.
    """
    import deepspeed

    if config is None:
        config = config_params if config_params is not None else getattr(args, "deepspeed_config", None)
    if config is None:
        raise ConfigError("config: missing; give a path or a dict, or args.deepspeed_config")
    run = config if isinstance(config, RunConfig) else load_config(config, use="own_model")
    for warning in () if run is config else run.warnings:
        warnings.warn(warning, stacklevel=2)
    pld = run.progressive_layer_drop
    if pld.enabled:
        num_blocks = _check_model(model, num_blocks)
    if model is not None and model in _HOOKS:
        _HOOKS.pop(model).remove()
    settings = {key: value for key, value in run.deepspeed.items() if key not in OUR_BLOCKS}
    automatic = AUTO in (settings.get(key) for key in BATCH_KEYS)  # DeepSpeed reads only numbers.
    if automatic or run.training.max_micro_batch_size is not None:
        settings |= dict(zip(BATCH_KEYS, run.batch_sizes(_world_size()), strict=True))
    engine, *rest = deepspeed.initialize(
        _without_config(args),
        model,
        *positional,
        config=settings,
        **keywords,
    )
    engine.layer_dropper = None
    if pld.enabled and num_blocks:
        engine.layer_dropper = LayerDropper(engine, pld, make_schedule(run, num_blocks))
    return (engine, *rest)


def _check_model(model: nn.Module | None, num_blocks: int | None) -> int:
    """Return the number of gated blocks, after checking that the model's forward accepts gates.

    A forward with `**kwargs` may ignore them, as transformers' classes do, so the number must be given for it.
    """
    if model is None:
        raise ValueError("model: missing; bert_pld.initialize requires model, as deepspeed.initialize does")
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if "gates" not in parameters and not takes_any:
        raise ValueError(
            f"{type(model).__name__}.forward does not accept 'gates', so progressive_layer_drop would have no effect;"
            " add the keyword and run each block through bert_pld.run_gated, or set enabled to false"
        )
    if num_blocks is None:
        num_blocks = getattr(model, "num_gated_blocks", None)
    if num_blocks is None and "gates" not in parameters:
        raise ValueError(
            f"{type(model).__name__}.forward has **kwargs but no 'gates', and may ignore them; add the keyword and run"
            " each block through bert_pld.run_gated, or, if it passes them on, give num_blocks=… or"
            " model.num_gated_blocks"
        )
    if num_blocks is None:
        num_blocks = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if not isinstance(num_blocks, int) or num_blocks < 1:
        raise ValueError(
            f"{type(model).__name__}: unknown number of gated blocks; pass num_blocks=… or set model.num_gated_blocks"
        )
    return num_blocks


def _world_size() -> int:
    """Return the number of ranks, which DeepSpeed's own initialization may join only later."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a forward by name; positional ones have their names in its signature."""
    if not args:
        return kwargs
    try:
        return {**inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments, **kwargs}
    except TypeError:  # The forward's own error tells what does not fit.
        return kwargs


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return a forward's first tensor argument, whose dimension 0 is the micro-batch's sequences."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return value
    raise ValueError("progressive_layer_drop: the model's forward got no tensor, so the micro-batch size is unknown")


def _sequence_lengths(named: Mapping[str, Any], rows: int, length: int) -> NDArray[np.int64] | None:
    """Return the number of tokens of each sequence, on the host; None if no row has padding.

    Without `sequence_lengths` it is computed from `attention_mask`, which waits for the device.
    """
    mask, given = named.get("attention_mask"), named.get("sequence_lengths")
    if given is not None:
        lengths = np.asarray(given, np.int64)
        if lengths.shape != (rows,) or lengths.min() < 1 or lengths.max() > length:
            raise ValueError(f"sequence_lengths: must be {rows} numbers of tokens, each in 1 … {length}")
        return lengths
    if mask is None:
        return None
    if mask.shape != (rows, length):
        raise ValueError(
            f"granularity 'token': attention_mask has the shape {tuple(mask.shape)}; must be {(rows, length)}, 1 for a"
            " token and 0 for padding, or give the engine sequence_lengths"
        )
    tokens = mask != 0
    counts = tokens.sum(1)
    padded_at_the_end = (tokens == (torch.arange(length, device=mask.device) < counts[:, None])).all(1)
    lengths = torch.where(padded_at_the_end, counts, 0).cpu().numpy()
    if (lengths == 0).any():
        row = int((lengths == 0).argmax())
        raise ValueError(
            f"granularity 'token': attention_mask: row {row} must have 1 for its tokens, then 0 for padding at the end"
        )
    return lengths


def _without_config(args: Any) -> Any:
    """Return `args` without `deepspeed_config`, because DeepSpeed rejects a configuration that is given twice."""
    if args is None or getattr(args, "deepspeed_config", None) is None:
        return args
    args = copy.copy(args)
    args.deepspeed_config = None
    return args
