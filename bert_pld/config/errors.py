"""Exceptions about a run's JSON, ours and DeepSpeed's, as one line: the file, the key, what is given, what is allowed.

DeepSpeed reports a mistake by whatever exception comes up: pydantic's, an assertion, a TypeError from an optimizer.
`explaining` turns each into a `ConfigError`; the exception itself stays its cause, for `--traceback`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# The blocks that DeepSpeed's classes read, by the name that pydantic gives in its errors.
_BLOCK_OF_CLASS = {
    "DeepSpeedZeroConfig": "zero_optimization",
    "DeepSpeedZeroOffloadParamConfig": "zero_optimization.offload_param",
    "DeepSpeedZeroOffloadOptimizerConfig": "zero_optimization.offload_optimizer",
    "DeepSpeedZeroLeafModuleConfig": "zero_optimization.leaf_module",
    "ZenFlowConfig": "zero_optimization.zenflow",
    "DeepSpeedFP16Config": "fp16",
    "DeepSpeedBF16Config": "bf16",
    "CommsLoggerConfig": "comms_logger",
    "TensorBoardConfig": "tensorboard",
    "WandbConfig": "wandb",
    "CSVConfig": "csv_monitor",
    "CometConfig": "comet",
    "DeepSpeedMonitorConfig": "",
    "HybridEngineConfig": "hybrid_engine",
    "CompileConfig": "compile",
    "TPTrainingConfig": "tensor_parallel",
    "TPConfig": "tensor_parallel.tp",
    "WeightQuantConfig": "weight_quantization",
    "DeepSpeedThroughputTimerConfig": "timers.throughput",
}


class ConfigError(ValueError):
    """A mistake in a run's JSON; the message is one line."""


def nearest(key: str, valid: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ", did you mean 'x'?" for the most similar valid key, or nothing."""
    near = difflib.get_close_matches(key, list(valid), n=1, cutoff=cutoff)
    return f", did you mean '{near[0]}'?" if near else ""


@contextmanager
def explaining(where: str, keep_value_errors: bool = False) -> Iterator[None]:
    """Turn each exception in the block into a ConfigError that begins with `where`, the configuration's file.

    An OSError names its own file, and a missing package is for the command to explain: both pass unchanged. With
    `keep_value_errors` so does a ValueError, where all of them are one line with a place.
    """
    try:
        yield
    except (OSError, ModuleNotFoundError):
        raise
    except Exception as error:
        if keep_value_errors and isinstance(error, ValueError):
            raise
        text = describe(error)
        raise ConfigError(text if text.startswith(f"{where}:") else f"{where}: {text}") from error


def describe(error: Exception) -> str:
    """Return an exception as one line; for a message that says little by itself, with the exception's type."""
    if isinstance(getattr(error, "title", None), str) and callable(getattr(error, "errors", None)):
        return _describe_validation(error)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and text:
        return text
    name = type(error).__name__
    if name == "DeepSpeedConfigError":
        return f"DeepSpeed: {text}"
    return f"the run cannot be set up ({name}{': ' if text else ''}{text[:500]}); --traceback shows where"


def _describe_validation(error: Any) -> str:
    """Return the first problem of pydantic's ValidationError: key, what is given, what is allowed."""
    first = error.errors(include_url=False)[0]
    block = _BLOCK_OF_CLASS.get(error.title, error.title)
    path = [block, *(str(part) for part in first["loc"])] if block else [str(part) for part in first["loc"]]
    key, given = ".".join(part for part in path if part), first.get("input")
    if first["type"] == "extra_forbidden":
        valid = _fields_of(error.title, [str(part) for part in first["loc"][:-1]])
        known = f"; valid: {', '.join(valid)}" if valid else ""
        return f"{key}: unknown key{nearest(str(first['loc'][-1]), valid)}{known}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not first["loc"]:  # A check of the whole block, whose message names the keys.
        return f"{key}: {message}"
    return f"{key}: {given!r}; {message[:1].lower()}{message[1:]}"


def _fields_of(title: str, path: list[str]) -> list[str]:
    """Return the keys that a class of DeepSpeed's knows, by its name; none if it is nested in another."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    if path:
        return []
    classes = [cls for cls in DeepSpeedConfigModel.__subclasses__() if cls.__name__ == title]
    return sorted(field.alias or name for cls in classes for name, field in cls.model_fields.items())
