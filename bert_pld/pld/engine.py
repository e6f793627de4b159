"""`initialize`: a drop-in for `deepspeed.initialize` that gives Progressive Layer Dropping to any model.

DeepSpeed removed PLD in 0.19.8 and refuses its block since; older releases would run a second schedule of their own.
So the block is taken out before DeepSpeed sees the configuration, on every release, and gates reach the model through
a hook on its forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bert_pld.config import OUR_BLOCKS, ConfigError, ProgressiveLayerDropConfig, RunConfig, load_config
from bert_pld.pld.gates import Gates, draw_gates
from bert_pld.pld.schedule import Schedule


def make_schedule(config: ProgressiveLayerDropConfig, num_blocks: int) -> Schedule:
    """The schedule that a `progressive_layer_drop` block describes, for a model of `num_blocks` blocks."""
    assert config.gamma != "auto", "gamma is resolved when the configuration is loaded"
    return Schedule(
        num_blocks=num_blocks,
        theta_limit=config.theta,
        gamma=float(config.gamma),
        temporal=config.temporal,
        depth=config.depth,
        keep_first_block=config.keep_first_block,
    )


class LayerDropper:
    """Draws the gates of each training forward from the engine's own counters; holds no state that could lag."""

    def __init__(self, engine: Any, config: ProgressiveLayerDropConfig, num_blocks: int) -> None:
        self.engine = engine
        self.config = config
        self.schedule = make_schedule(config, num_blocks)
        self.last_gates: Gates | None = None
        """Of the newest training forward: for logging only."""
        engine.module.register_forward_pre_hook(self._inject_gates, with_kwargs=True)

    @property
    def theta(self) -> float:
        """θ at the engine's present optimizer step."""
        return self.schedule.theta(self.engine.global_steps)

    def gates(self, rows: int) -> Gates:
        """The gates of the engine's present micro-batch of `rows` sequences."""
        engine = self.engine
        return draw_gates(
            self.schedule,
            granularity=self.config.granularity,
            seed=self.config.seed,
            step=engine.global_steps,
            micro_step=engine.micro_steps % engine.gradient_accumulation_steps(),
            rows=rows,
            first_row=torch.distributed.get_rank() * rows if torch.distributed.is_initialized() else 0,
            device=engine.device,
            zero_gradient_when_dropped=self._needs_zero_gradients,
        )

    @property
    def _needs_zero_gradients(self) -> bool:
        """Whether DeepSpeed reduces right only what every backward gives a gradient (see `run_gated`).

        ZeRO-1 with `overlap_comm` reduces from hooks of the step's last backward alone: a block that was kept in an
        earlier micro-batch and dropped in that one would be stepped with one rank's gradient.
        """
        engine = self.engine
        stage, overlaps = engine.zero_optimization_stage(), engine.zero_overlap_comm()
        return stage == 3 or (stage == 1 and overlaps and engine.gradient_accumulation_steps() > 1)

    def _inject_gates(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not module.training or kwargs.get("gates") is not None:
            return None
        self.last_gates = self.gates(_rows_of(args, kwargs))
        return args, {**kwargs, "gates": self.last_gates}


def initialize(
    args: Any = None,
    model: nn.Module | None = None,
    *positional: Any,
    config: str | Path | Mapping[str, Any] | RunConfig | None = None,
    config_params: str | Path | Mapping[str, Any] | None = None,
    num_blocks: int | None = None,
    **keywords: Any,
) -> tuple[Any, Any, Any, Any]:
    """Call `deepspeed.initialize` with Progressive Layer Dropping put back.

    Takes what `deepspeed.initialize` takes, in the same order, and returns what it returns:
    `(engine, optimizer, training_dataloader, lr_scheduler)`. If the configuration has an enabled
    `progressive_layer_drop` block, `engine.layer_dropper` is a `LayerDropper` and each training forward of the model
    receives `gates=Gates`; the model hands them, block by block, to `bert_pld.run_gated`. In evaluation
    (`model.eval()`) `gates` is not passed: all blocks run unscaled. Otherwise `engine.layer_dropper` is None.

    Args:
        args: as DeepSpeed's; its `deepspeed_config` is used where `config` is not given.
        model: its forward must accept the keyword `gates`, default None.
        positional: as DeepSpeed's.
        config: a DeepSpeed JSON (path or dict) with our blocks, or a loaded `RunConfig`.
        config_params: DeepSpeed's other name for `config`.
        num_blocks: gated blocks of the model; by default its `num_gated_blocks`, or its `config.num_hidden_layers`.
        keywords: as DeepSpeed's.

    Raises:
        ConfigError: a mistake in the configuration.
        ValueError: PLD is enabled and the model does not take gates, or does not say how many blocks it has.
    """
    import deepspeed

    if config is None:
        config = config_params if config_params is not None else getattr(args, "deepspeed_config", None)
    if config is None:
        raise ConfigError("config: missing; give a path or a dict, or args.deepspeed_config")
    run = config if isinstance(config, RunConfig) else load_config(config)
    pld = run.progressive_layer_drop
    if pld.enabled:
        num_blocks = _check_model(model, num_blocks)
    engine, *rest = deepspeed.initialize(
        _without_config(args),
        model,
        *positional,
        config={key: value for key, value in run.deepspeed.items() if key not in OUR_BLOCKS},
        **keywords,
    )
    engine.layer_dropper = LayerDropper(engine, pld, num_blocks) if pld.enabled and num_blocks else None
    return (engine, *rest)


def _check_model(model: nn.Module | None, num_blocks: int | None) -> int:
    """The model's number of gated blocks, once it is sure that gates will reach them."""
    if model is None:
        raise ValueError("model: missing; bert_pld.initialize takes what deepspeed.initialize takes")
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if "gates" not in parameters and not takes_any:
        raise ValueError(
            f"{type(model).__name__}.forward takes no 'gates', so progressive_layer_drop would have no effect;"
            " add the keyword and run each block through bert_pld.run_gated, or set enabled to false"
        )
    if num_blocks is None:
        num_blocks = getattr(model, "num_gated_blocks", None)
    if num_blocks is None:
        num_blocks = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if not isinstance(num_blocks, int) or num_blocks < 1:
        raise ValueError(
            f"{type(model).__name__} does not say how many gated blocks it has;"
            " pass num_blocks=… or set num_gated_blocks"
        )
    return num_blocks


def _rows_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Sequences in a forward's micro-batch: dimension 0 of the first tensor it is given."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return value.shape[0]
    raise ValueError("progressive_layer_drop: the model's forward got no tensor to count the micro-batch's rows by")


def _without_config(args: Any) -> Any:
    """DeepSpeed refuses a configuration given twice: hide the one in `args`, which we have read."""
    if args is None or getattr(args, "deepspeed_config", None) is None:
        return args
    hidden = type(args)(**{**vars(args), "deepspeed_config": None})
    return hidden
