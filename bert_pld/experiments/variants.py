"""What is compared: one JSON a variant for the paper's own run, and a scale that makes all of them smaller alike."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from bert_pld.config import ConfigError, read_json

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train; `name` is that of its file in configs/paper/."""

    name: str
    label: str
    is_main: bool
    """Run with several seeds; the others are ablations, which get one."""


VARIANTS = (
    Variant("post_ln", "Post-LN", True),
    Variant("pre_ln", "Pre-LN", True),
    Variant("pld_batch", "PLD, by batch", True),
    Variant("pld_sample", "PLD, by sample", True),
    Variant("pre_ln_high_lr", "Pre-LN, high rate", False),
    Variant("uniform_dropping", "fixed, uniform", False),
    Variant("time_only", "over time only", False),
    Variant("depth_only", "over depth only", False),
)
BASELINE = "post_ln"


@dataclasses.dataclass(frozen=True)
class Scale:
    """A file of configs/scales/: how much smaller than the paper's run."""

    name: str
    learning_rates: dict[str, float]
    """The paper's peak learning rate, as its JSON writes it → the one used here."""
    config: dict[str, Any]
    """Laid over each variant's JSON, section by section."""


def load_scale(name: str, folder: Path = CONFIGS / "scales") -> Scale:
    """Read a scale.

    Raises:
        ConfigError: no such scale, or it lacks a part.
    """
    known = sorted(path.stem for path in folder.glob("*.json"))
    if name not in known:
        raise ConfigError(f"--scale {name}: must be one of {', '.join(known)}")
    values = read_json(folder / f"{name}.json")
    if set(values) != {"learning_rates", "config"}:
        raise ConfigError(f"{folder / name}.json: has {', '.join(values)}; must have learning_rates and config")
    return Scale(name, values["learning_rates"], values["config"])


def configuration(variant: Variant, scale: Scale, seed: int, folder: Path = CONFIGS / "paper") -> dict[str, Any]:
    """The JSON of one run: the variant's, made smaller, with this seed for weights, order, masks, dropout and gates.

    γ follows the paper's rule 100 / steps. Everything but the variant's own keys is the same in all runs of a seed.

    Raises:
        ConfigError: the scale has no learning rate in place of the variant's.
    """
    values = read_json(folder / f"{variant.name}.json")
    rate = values["optimizer"]["params"]["lr"]
    if str(rate) not in scale.learning_rates:
        raise ConfigError(f"scale {scale.name}: learning_rates: none in place of {rate}, which {variant.name} asks for")
    lay_over(values, scale.config)
    values["optimizer"]["params"]["lr"] = scale.learning_rates[str(rate)]
    values["training"]["seed"] = values["progressive_layer_drop"]["seed"] = seed
    if "gamma" in values["progressive_layer_drop"]:
        values["progressive_layer_drop"]["gamma"] = "auto"
    return values


def lay_over(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Merge `changes` into `values` in place: sections are merged, anything else is replaced, null removes."""
    for key, change in changes.items():
        if change is None:
            values.pop(key, None)
        elif isinstance(change, dict) and isinstance(values.get(key), dict):
            lay_over(values[key], change)
        else:
            values[key] = copy.deepcopy(change)
