"""`initialize`: a drop-in replacement of `deepspeed.initialize` that adds Progressive Layer Dropping to any model.

Since 0.19.8, which removed PLD, DeepSpeed rejects the `progressive_layer_drop` block; older releases would run a second
schedule of their own. So the block is removed before DeepSpeed reads the configuration, on every release, and a
forward pre-hook passes the gates to the model.
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
    """Return the schedule of a `progressive_layer_drop` block for a model of `num_blocks` blocks."""
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
    """Draws the gates of each training forward from the engine's step counters, without counters of its own."""

    def __init__(self, engine: Any, config: ProgressiveLayerDropConfig, num_blocks: int) -> None:
        self.engine = engine
        self.config = config
        self.schedule = make_schedule(config, num_blocks)
        self.last_gates: Gates | None = None
        """Gates of the latest training forward, for logging."""
        engine.module.register_forward_pre_hook(self._inject_gates, with_kwargs=True)

    @property
    def theta(self) -> float:
        """θ at the engine's current optimizer step."""
        return self.schedule.theta(self.engine.global_steps)

    def gates(self, rows: int) -> Gates:
        """Draw the gates of the engine's current micro-batch of `rows` sequences."""
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
        """Whether DeepSpeed reduces gradients correctly only if every backward sets all of them (see `run_gated`).

        True at ZeRO-3, and at ZeRO-1 with `overlap_comm` and accumulation: there only the hooks of the step's last
        backward reduce. A block that was kept in an earlier micro-batch and dropped in the last one would be updated
        with the gradient of one rank.
        """
        engine = self.engine
        stage, overlaps = engine.zero_optimization_stage(), engine.zero_overlap_comm()
        return stage == 3 or (stage == 1 and overlaps and engine.gradient_accumulation_steps() > 1)

    def _inject_gates(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Gates that the caller passes take precedence: a benchmark repeats the same gates.
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
    """Return the number of gated blocks, after checking that the model's forward accepts gates."""
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
    if num_blocks is None:
        num_blocks = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if not isinstance(num_blocks, int) or num_blocks < 1:
        raise ValueError(
            f"{type(model).__name__}: unknown number of gated blocks; pass num_blocks=… or set model.num_gated_blocks"
        )
    return num_blocks


def _rows_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the number of sequences in a forward's micro-batch: dimension 0 of its first tensor argument."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return value.shape[0]
    raise ValueError("progressive_layer_drop: the model's forward got no tensor, so the micro-batch size is unknown")


def _without_config(args: Any) -> Any:
    """Return `args` without `deepspeed_config`, because DeepSpeed rejects a configuration that is given twice."""
    if args is None or getattr(args, "deepspeed_config", None) is None:
        return args
    return type(args)(**{**vars(args), "deepspeed_config": None})
