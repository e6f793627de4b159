"""The variants under comparison: a JSON each for the paper's run, and scales that make all of them smaller."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from bert_pld.config import ConfigError, load_config, read_json
from bert_pld.plan import make_plan

CONFIGS = REPOSITORY / "configs"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to train, described by configs/<group>/<name>.json."""

    name: str
    label: str
    is_main: bool
    """Whether it is run with several seeds; the others are ablations with one seed, unless they are named."""
    group: str = "paper"
    equal_compute_to: str | None = None
    """A dense variant has as many steps as cost the FLOPs of the named one, over which its learning rate decays."""
    equal_time: bool = False
    """A dense variant has the scale's share `equal_time` of the steps, over which its learning rate decays."""
    config_name: str | None = None
    """Name of the JSON file, if it is not `name`."""


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
"""Options that a user can choose, to be compared with `pld_batch` and `pld_sample`."""
RECIPE = (
    Variant("recipe_post_ln", "Post-LN", False, "recipe", config_name="post_ln"),
    Variant("recipe_pre_ln", "Pre-LN, Post-LN's rate", False, "recipe", config_name="pre_ln"),
    Variant("dense", "dense", False, "recipe"),
    Variant("tokens", "by token", False, "recipe"),
    Variant("dense_equal_compute", "dense, equal compute", False, "recipe", "tokens", config_name="dense"),
    Variant("dense_muon", "dense, Muon", False, "recipe"),
    Variant("tokens_muon", "by token, Muon", False, "recipe"),
    Variant("tokens_near_muon", "by token, near masked ones, Muon", False, "recipe"),
    Variant("tokens_near_40_muon", "by token, near masked ones, 40 %, Muon", False, "recipe"),
    Variant("tokens_same_40_muon", "by token, near masked ones, 40 %, the same in every block, Muon", False, "recipe"),
    Variant("tokens_first_muon", "by token, last block too, Muon", False, "recipe"),
    Variant("tokens_every_4_muon", "by token, every 4th block whole, Muon", False, "recipe"),
    Variant(
        "dense_muon_equal_compute",
        "dense, Muon, equal compute",
        False,
        "recipe",
        "tokens_near_40_muon",
        config_name="dense_muon",
    ),
    Variant(
        "dense_muon_equal_compute_first",
        "dense, Muon, equal compute to last block too",
        False,
        "recipe",
        "tokens_first_muon",
        config_name="dense_muon",
    ),
    Variant(
        "dense_muon_equal_time",
        "dense, Muon, equal time",
        False,
        "recipe",
        equal_time=True,
        config_name="dense_muon",
    ),
)
"""Dropping by token and Muon against dense runs of as many steps, of equal compute (FLOPs) and of equal time, at scales
`recipe_*`.

Every learning rate decays to zero at the end of its own run: an unfinished run's curve says little about a finished one
(Kaddour et al., arXiv:2307.06440).
"""
KNOWN = VARIANTS + CHOICES + RECIPE
_PAPER_GAMMA = 0.001
BASELINE = "post_ln"
FIRST_PAGE = {*(variant.name for variant in VARIANTS if variant.is_main), "keep_first_block", "keep_first_block_sample"}
"""The variants in README.md: the main ones (`pre_ln_high_lr` is PLD without dropping), and those that we recommend."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """A file of configs/scales/, which makes the paper's run smaller."""

    name: str
    learning_rates: dict[str, float]
    """Peak learning rate in the paper's JSON, as text → the rate at this scale."""
    uniform_theta: float
    """θ of the variants that drop uniformly over depth; it keeps as many blocks as linear depth with θ = 0.5."""
    config: dict[str, Any]
    """Changes to each variant's JSON, merged by section."""
    equal_time: float = 0.75
    """The time of a recipe's run over that of a dense run of as many steps, as measured at this scale; by default what
    is claimed of the recipe."""


def load_scale(name: str, folder: Path = CONFIGS / "scales") -> Scale:
    """Read a scale; raise ConfigError if it is unknown or a part of it is missing."""
    known = sorted(path.stem for path in folder.glob("*.json"))
    if name not in known:
        raise ConfigError(f"--scale {name}: must be one of {', '.join(known)}")
    values = read_json(folder / f"{name}.json")
    share = values.pop("equal_time", Scale.equal_time)
    if set(values) != {"learning_rates", "uniform_theta", "config"}:
        has = ", ".join(values)
        raise ConfigError(f"{folder / name}.json: has {has}; must have learning_rates, uniform_theta and config")
    if not (isinstance(share, (int, float)) and 0 < share <= 1):
        raise ConfigError(f"{folder / name}.json: equal_time: {share!r}; must be a number in (0, 1]")
    return Scale(name, values["learning_rates"], values["uniform_theta"], values["config"], share)


def configuration(variant: Variant, scale: Scale, seed: int, folder: Path = CONFIGS) -> dict[str, Any]:
    """The JSON of one run: the variant's at the scale, with this seed for weights, order, masks, dropout and gates.

    γ follows the paper's rule 100 / steps; a variant with a fraction of the paper's 0.001 gets that fraction of it.
    Variants that drop uniformly over depth keep as many blocks as the others. Runs of a seed differ only in the keys of
    the variant.
    """
    values = read_json(folder / variant.group / f"{variant.config_name or variant.name}.json")
    optimizer = values["optimizer"]["params"]
    rates = {key: optimizer[key] for key in ("lr", "muon_lr") if key in optimizer}
    for rate in rates.values():
        if str(rate) not in scale.learning_rates:
            raise ConfigError(f"scale {scale.name}: learning_rates: has no entry for {rate}, a rate of {variant.name}")
    apply_changes(values, scale.config)
    values["optimizer"]["params"] |= {key: scale.learning_rates[str(rate)] for key, rate in rates.items()}
    values["training"]["seed"] = seed
    dropping = values["progressive_layer_drop"]
    dropping["seed"] = seed
    if "gamma" in dropping:
        share = dropping["gamma"] / _PAPER_GAMMA
        dropping["gamma"] = "auto" if share == 1 else share * 100 / values["training"]["max_steps"]
    if variant.group == "paper" and dropping.get("depth") == "uniform":
        dropping["theta"] = scale.uniform_theta
    if variant.equal_compute_to is not None:
        other = next(known for known in KNOWN if known.name == variant.equal_compute_to)
        plan = make_plan(load_config(configuration(other, scale, seed, folder)))
        values["training"]["max_steps"] = round(values["training"]["max_steps"] * plan.ratio_over_run)
    if variant.equal_time:
        values["training"]["max_steps"] = round(values["training"]["max_steps"] * scale.equal_time)
    return values


def apply_changes(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Apply `changes` to `values` in place: sections are merged, other values are replaced, null removes a key."""
    for key, change in changes.items():
        if change is None:
            values.pop(key, None)
        elif isinstance(change, dict) and isinstance(values.get(key), dict):
            apply_changes(values[key], change)
        else:
            values[key] = copy.deepcopy(change)
