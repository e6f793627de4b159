"""The structure the documentation promises: imports go one way, files have names that say what they hold."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A package imports only from itself and from those before it.
LAYERS = [
    "counter_rng",
    "hardware",
    "config_blocks",
    "config_secrets",
    "config",
    "pld",
    "kernels",
    "model",
    "data",
    "train",
    "glue",
    "cli",
    "bench",
    "experiments",
]
COMMANDS = {"pretrain", "evaluate", "export", "plan", "plot", "status", "compile_kernels", "finetune_glue"}
USE_COMMANDS = {"bench", "experiments", "finetune_glue"}
FREE_OF_CONFIG = {"data": {"counter_rng", "data"}}


def imports_of(path: Path) -> set[str]:
    """Dotted names a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines()]


@pytest.mark.parametrize("path", tracked("bert_pld/*.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_from_those_before_it(path):
    own = path.relative_to(ROOT / "bert_pld").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("bert_pld.")} - {"__version__"}
    if own in COMMANDS:
        allowed = {*LAYERS}
    else:
        assert own in LAYERS, f"{own} has no place in the layers"
        allowed = set(LAYERS[: LAYERS.index(own) + 1])
    allowed |= COMMANDS if own in USE_COMMANDS else set()
    allowed = FREE_OF_CONFIG.get(own, allowed)
    assert used <= allowed, f"{path.name} of {own} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("path", tracked("data_prep/*.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_data_preparation_uses_only_the_shard_formats_masks_and_tokenizer(path):
    used = {name for name in imports_of(path) if name.startswith("bert_pld")}
    modules = {".".join(name.split(".")[:3]) for name in used}
    allowed = {f"bert_pld.data.{name}" for name in ("shards", "nvidia_shards", "masking", "wordpiece")}
    assert modules <= {"bert_pld", "bert_pld.data", "bert_pld.counter_rng"} | allowed | {
        name for name in modules if name.startswith("bert_pld.counter_rng.")
    }


def test_no_file_has_a_name_that_says_nothing():
    vague = {"util.py", "utils.py", "helper.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for path in tracked("*.py") if path.name in vague]


def test_every_module_says_what_it_is():
    for path in [*tracked("bert_pld/*.py"), *tracked("data_prep/*.py"), *tracked("scripts/*.py")]:
        assert ast.get_docstring(ast.parse(path.read_text())), path
