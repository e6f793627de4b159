"""The JSON of `--deepspeed_config`: keys of DeepSpeed's beside those that the command's own options are made into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bert_pld.config import OUR_BLOCKS, ConfigError, read_json

HIGHEST_ZERO_STAGE = 2
_BATCH, _PRECISION = "--batch_size says how large a step is, over all ranks", "--precision says it"
_REFUSED = {
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "elasticity": _BATCH,
    "gradient_clipping": "gradients are clipped at 1",
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "bfloat16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "optimizer": "it is AdamW, with --learning_rates",
    "scheduler": "rates rise and fall linearly to and from --learning_rates",
    **dict.fromkeys(OUR_BLOCKS, "it is pretraining's"),
}


def further_keys(path: Path | None, precision: str) -> dict[str, Any] | None:
    """Read and validate them; None without a file.

    Args:
        path: of the JSON.
        precision: of `--precision`; its own block may say how, such as `fp16.initial_scale_power`, but not whether.

    Raises:
        ConfigError: no JSON object; a key that an option has; ZeRO at a stage that fine-tuning does not run at.
    """
    if path is None:
        return None
    where, values = f"--deepspeed_config {path}", read_json(path)
    block = values.get(precision)
    how = isinstance(block, dict) and "enabled" not in block
    refused = [key for key in values if key in _REFUSED and not (key == precision and how)]
    if refused:
        others = f", nor may {', '.join(refused[1:])}" if refused[1:] else ""
        raise ConfigError(
            f"{where}: {refused[0]}: must not be there, for {_REFUSED[refused[0]]}{others};"
            f" allowed are other keys of DeepSpeed's, such as zero_optimization up to stage {HIGHEST_ZERO_STAGE}"
        )
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"{where}: zero_optimization: must be an object, is {zero!r}")
    stage = zero.get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= HIGHEST_ZERO_STAGE:
        raise ConfigError(f"{where}: zero_optimization.stage: {stage!r}; must be 0, 1 or {HIGHEST_ZERO_STAGE}")
    return values
