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
    """One way to train; its JSON is configs/<group>/<name>.json."""

    name: str
    label: str
    is_main: bool
    """Run with several seeds; the others are ablations, which get one unless asked for by name."""
    group: str = "paper"


VARIANTS = (
    Variant("post_ln", "Post-LN", True),
    Variant("pre_ln", "Pre-LN", True),
    Variant("pld_batch", "PLD, by batch", True),
    Variant("pld_sample", "PLD, by sample", True),
    Variant("post_ln_high_lr", "Post-LN, high rate", False),
    Variant("pre_ln_high_lr", "Pre-LN, high rate", True),
    Variant("uniform_dropping", "fixed, uniform", False),
    Variant("time_only", "over time only", False),
    Variant("depth_only", "over depth only", False),
)
CHOICES = tuple(
    Variant(name, label, False, "choices")
    for name, label in (
        ("gamma_a_tenth", "PLD, by batch, γ a tenth"),
        ("theta_0_7", "PLD, by batch, θ = 0.7"),
        ("keep_first_block", "PLD, by batch, first block kept"),
        ("keep_first_block_theta_0_7", "PLD, by batch, first block kept, θ = 0.7"),
        ("keep_first_block_theta_0_3", "PLD, by batch, first block kept, θ = 0.3"),
        ("keep_first_block_sample", "PLD, by sample, first block kept"),
        ("keep_first_block_sample_gamma_a_tenth", "PLD, by sample, first block kept, γ a tenth"),
    )
)
"""What a user can choose, each beside `pld_batch` and `pld_sample`."""
KNOWN = VARIANTS + CHOICES
_PAPER_GAMMA = 0.001
BASELINE = "post_ln"
FIRST_PAGE = (
    "post_ln",
    "pre_ln",
    "pre_ln_high_lr",
    "pld_batch",
    "pld_sample",
    "keep_first_block",
    "keep_first_block_sample",
)
"""What the first page shows: the main variants, `pre_ln_high_lr` being what PLD would be without dropping, and what we
advise."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """A file of configs/scales/: how much smaller than the paper's run."""

    name: str
    learning_rates: dict[str, float]
    """The paper's peak learning rate, as its JSON writes it → the one used here."""
    uniform_theta: float
    """θ of the variants that drop alike at every depth: as many blocks as θ = 0.5 keeps over this scale's depth."""
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
    if set(values) != {"learning_rates", "uniform_theta", "config"}:
        raise ConfigError(
            f"{folder / name}.json: has {', '.join(values)}; must have learning_rates, uniform_theta and config"
        )
    return Scale(name, values["learning_rates"], values["uniform_theta"], values["config"])


def configuration(variant: Variant, scale: Scale, seed: int, folder: Path = CONFIGS) -> dict[str, Any]:
    """The JSON of one run: the variant's, made smaller, with this seed for weights, order, masks, dropout and gates.

    γ follows the paper's rule 100 / steps, and what is a share of the paper's 0.001 is that share of it. What drops
    alike at every depth keeps as many blocks as the others. Everything but the variant's own keys is the same in all
    runs of a seed.

    Raises:
        ConfigError: the scale has no learning rate in place of the variant's.
    """
    values = read_json(folder / variant.group / f"{variant.name}.json")
    rate = values["optimizer"]["params"]["lr"]
    if str(rate) not in scale.learning_rates:
        raise ConfigError(f"scale {scale.name}: learning_rates: none in place of {rate}, which {variant.name} asks for")
    lay_over(values, scale.config)
    values["optimizer"]["params"]["lr"] = scale.learning_rates[str(rate)]
    values["training"]["seed"] = seed
    dropping = values["progressive_layer_drop"]
    dropping["seed"] = seed
    if "gamma" in dropping:
        share = dropping["gamma"] / _PAPER_GAMMA
        dropping["gamma"] = "auto" if share == 1 else share * 100 / values["training"]["max_steps"]
    if dropping.get("depth") == "uniform":
        dropping["theta"] = scale.uniform_theta
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
