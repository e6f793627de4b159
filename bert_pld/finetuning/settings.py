"""The settings of a fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that all fine-tunings of a command share; they are part of a result's conditions."""

    epochs: int = 3
    batch_size: int = 32
    """Sequences per step, over all ranks."""
    max_seq_length: int = 128
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises; afterwards it falls linearly to 0."""
    weight_decay: float = 0.01
    gradient_clipping: float = 1.0
    dropout: float | None = None
    """Dropout probability; None: the value in the model's configuration, which is 0 for a model pretrained without."""
    patience: int | None = None
    """Number of epochs without a better dev score after which training stops; None: never."""
    precision: str = "fp32"
    max_train_rows: int | None = None
    """Number of training rows, the first of the file; None: all."""
    deepspeed_config: dict[str, Any] | None = None
    """Additional DeepSpeed keys, as `read_deepspeed_overrides` returns them."""

    def check(self, world_size: int, device_type: str) -> None:
        """Raise a ValueError that names the option if these settings cannot run here."""
        if self.precision == "fp16" and device_type == "cpu":
            raise ValueError("--precision fp16: requires a GPU; must be fp32 or bf16 here")
        if self.batch_size < 1 or self.batch_size % world_size:
            raise ValueError(f"--batch_size {self.batch_size}: must be a positive multiple of {world_size} rank(s)")
        for name, least in (("epochs", 1), ("max_seq_length", 8), ("max_train_rows", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value}: must be >= {least}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout {self.dropout:g}: must be in [0, 1)")
