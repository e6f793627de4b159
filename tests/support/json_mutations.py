"""Seeded mutations of run configurations: other types, null, words, missing and misspelt keys, numbers out of range."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

OTHER_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2.5, -0.5, 1e-3, 1e9, 1e30, 10**400, float("nan"), float("inf"), "", "auto", "on",
    "text", "1e-3", "128", "False", [], [1], ["a"], [0.9, None], {}, {"enabled": True}, {"enabled": "maybe"},
    {"type": 3},
    {"params": []}, [[[]]], {"a": {"b": {"c": []}}}, -(10**20), "\x00", "θ",
]  # fmt: skip
ADDED: dict[str, Any] = {
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000},
    "bf16": {"enabled": True, "check_grad_overflow": False},
    "gradient_clipping": 1.0,
    "prescale_gradients": False,
    "steps_per_print": 100,
    "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 5, "total_num_steps": 100}},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": False, "contiguous_gradients": True},
    "tensorboard": {"enabled": False, "output_path": "", "job_name": "x"},
    "csv_monitor": {"enabled": False, "output_path": "", "job_name": "x"},
    "flops_profiler": {"enabled": False, "profile_step": 1},
    "communication_data_type": "fp32",
    "data_efficiency": {"enabled": False, "seed": 1},
    "activation_checkpointing": {"partition_activations": False},
}
"""DeepSpeed's keys that a configuration may have; some of them are added before it is mutated."""
FREE = {"data.vocab_file", "training.eval_rows", "model.preset"}
"""Keys with values of more than one type, about which a mutation says nothing."""


STRICT = ("model", "training", "progressive_layer_drop", "optimizer", "scheduler", "zero_optimization", "fp16", "bf16")
"""Blocks in which an unknown key is an error; elsewhere it is a warning."""
LAX = ("zero_optimization", "tensorboard", "csv_monitor")
"""Blocks in which DeepSpeed takes a quoted number for a number."""


def paths(values: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each key of an object, at any depth."""
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


def mutate(config: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str, bool]:
    """Return a configuration with one mistake in it or none, what was changed, and whether it must be refused."""
    mutated = copy.deepcopy(config)
    for key in rng.sample(sorted(ADDED), 3):
        mutated.setdefault(key, copy.deepcopy(ADDED[key]))
    # Without its sizes, the model would be BERT-base.
    path = rng.choice(sorted(path for path in paths(mutated) if path != ("model",)))
    block = mutated
    for key in path[:-1]:
        block = block[key]
    name, old = path[-1], block[path[-1]]
    kind = rng.choices(["replace", "remove", "misspell"], [8, 1, 1])[0]
    where = ".".join(path)
    if kind == "remove":
        del block[name]
        return mutated, f"without {where}", False
    if kind == "misspell":
        at = rng.randrange(len(name))
        misspelt = name[:at] + rng.choice("xqz".replace(name[at], "")) + name[at + 1 :]
        block[misspelt] = block.pop(name)
        return mutated, f"{where} misspelt as {misspelt}", len(path) > 1 and path[0] in STRICT
    new = copy.deepcopy(rng.choice(OTHER_VALUES))
    block[name] = new
    return mutated, f"{where} = {str(new)[:40]!r}", where not in FREE and must_be_refused(old, new, path[0] in LAX)


def must_be_refused(old: Any, new: Any, is_lax: bool) -> bool:
    """Whether no reader could take `new` for a value of the kind of `old`."""
    if (
        new is None or new in ("auto", "False", "on") or old == "auto"
    ):  # Absent, automatic, or words that DeepSpeed takes for booleans.
        return False
    if isinstance(old, dict):
        return not isinstance(new, (dict, bool))
    if isinstance(old, bool):
        return not isinstance(new, (bool, int, float))
    if isinstance(old, (int, float)):
        if is_lax and new in ("128", "1e-3"):
            return False
        is_number = isinstance(new, (int, float)) and (is_lax or not isinstance(new, bool))
        return not is_number or not 0 <= new < 1e300
    if isinstance(old, str):
        return not isinstance(new, str)
    return not isinstance(new, list)
