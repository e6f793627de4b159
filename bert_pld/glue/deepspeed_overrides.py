"""The JSON of `--deepspeed_config`: DeepSpeed keys that fine-tuning adds to those made from its own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bert_pld.config import OUR_BLOCKS, ConfigError, read_json

HIGHEST_ZERO_STAGE = 2
_BATCH, _PRECISION = "use --batch_size, the sequences per step over all ranks", "use --precision"
_REFUSED = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), _BATCH),
    "elasticity": _BATCH,
    "gradient_clipping": "gradients are always clipped at 1",
    **dict.fromkeys(("fp16", "bf16", "bfloat16", "amp", "torch_autocast"), _PRECISION),
    "optimizer": "it is always AdamW; use --learning_rates",
    "scheduler": "it is always a linear warm-up and decay; use --learning_rates",
    **dict.fromkeys(OUR_BLOCKS, "it is for pretraining only"),
}


def read_deepspeed_overrides(path: Path | None, precision: str) -> dict[str, Any] | None:
    """Read and validate the overrides; None without a file.

    The file may have the block of `--precision` with settings such as `fp16.initial_scale_power`, but not its
    `enabled`. A ConfigError is raised for a key that an option sets or an unsupported ZeRO stage.
    """
    if path is None:
        return None
    where, values = f"--deepspeed_config {path}", read_json(path)
    block = values.get(precision)
    has_settings_only = isinstance(block, dict) and "enabled" not in block
    refused = [key for key in values if key in _REFUSED and not (key == precision and has_settings_only)]
    if refused:
        others = f"; nor are {', '.join(refused[1:])}" if refused[1:] else ""
        raise ConfigError(
            f"{where}: {refused[0]}: not allowed in fine-tuning, {_REFUSED[refused[0]]}{others};"
            f" other DeepSpeed keys are allowed, such as zero_optimization up to stage {HIGHEST_ZERO_STAGE}"
        )
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"{where}: zero_optimization: must be an object, is {zero!r}")
    stage = zero.get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= HIGHEST_ZERO_STAGE:
        raise ConfigError(f"{where}: zero_optimization.stage: {stage!r}; must be 0, 1 or {HIGHEST_ZERO_STAGE}")
    return values
