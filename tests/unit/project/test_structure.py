"""The structure that the documentation promises: imports go one way, and file names say what a file holds."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from repository import REPOSITORY, tracked

# A package imports only from itself and from those before it.
LAYERS = ["rng", "files", "config", "pld", "kernels", "model", "cost"]
LAYERS += ["data", "cluster", "checkpoint", "training", "finetuning", "glue", "tagging", "retrieval", "cli"]
COMMANDS = {"pretrain", "evaluate", "export", "plan", "plot", "status", "compile_kernels"}
USE_COMMANDS = {"finetune_glue", "finetune_tokens", "finetune_retrieval"}
COMMANDS |= USE_COMMANDS
FORMER_NAMES = {"bench", "experiments"}
TOKENIZER_AND_FORMATS = (
    "shards",
    "documents",
    "saved_tokenizer",
    "nvidia_format",
    "masking",
    "tokenizer",
    "fast_tokenizer",
    "word_starts",
)
# data_prep, which has no run and no configuration, uses the formats, the masks and the tokenizer; so the modules of
# `data` know neither model nor DeepSpeed, and only those that make a run's micro-batches know its configuration.
USED_BY_DATA = {"rng", "files", "data"}
DATA_WITH_CONFIG = {"batches", "block_order", "loader"}
USED_BY_DATA_PREP = {"bert_pld.cli", "bert_pld.files", "bert_pld.rng"}
USED_BY_DATA_PREP |= {f"bert_pld.data.{name}" for name in TOKENIZER_AND_FORMATS}


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def test_a_package_imports_only_from_those_before_it():
    for path in tracked("bert_pld/*.py"):
        own = path.relative_to(REPOSITORY / "bert_pld").parts[0].removesuffix(".py")
        if own in {"__init__", *FORMER_NAMES}:
            continue
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("bert_pld.")} - {"__version__"}
        if own in COMMANDS:
            allowed = {*LAYERS}
        else:
            assert own in LAYERS, f"{own} has no place in the layers"
            allowed = set(LAYERS[: LAYERS.index(own) + 1])
        allowed |= COMMANDS if own in USE_COMMANDS else set()
        if own == "data":
            allowed = USED_BY_DATA | ({"config"} if path.stem in DATA_WITH_CONFIG else set())
        assert used <= allowed, f"{path.relative_to(REPOSITORY)} imports {sorted(used - allowed)}"


def test_no_module_imports_itself_through_others():
    """`TopologicalSorter` raises a CycleError that names the circle."""
    files = {module_name(path): path for path in tracked("bert_pld/*.py", "data_prep/*.py", "benchmarks/*.py")}
    graph = {name: imports_of(path) & files.keys() - {name} for name, path in files.items()}
    # A package's __init__ names its parts, and its parts name the package: only imports between parts can be circular.
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    TopologicalSorter({name: used - packages for name, used in graph.items() if name not in packages}).prepare()


def test_installed_packages_do_not_import_benchmarks():
    for path in tracked("bert_pld/*.py", "data_prep/*.py"):
        assert not {name for name in imports_of(path) if name.split(".")[0] == "benchmarks"}, path


def test_data_preparation_uses_only_the_formats_masks_tokenizer_and_files():
    for path in tracked("data_prep/*.py"):
        used = {name for name in imports_of(path) if name.startswith("bert_pld.")} - {"bert_pld.data"}
        others = {name for name in used if not any(f"{name}.".startswith(f"{part}.") for part in USED_BY_DATA_PREP)}
        assert not others, f"{path.relative_to(REPOSITORY)} imports {sorted(others)}"


def test_no_file_has_a_name_that_says_nothing():
    vague = {"util.py", "utils.py", "helper.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for path in tracked("*.py") if path.name in vague]


def test_every_module_has_a_docstring():
    for path in tracked("bert_pld/*.py", "data_prep/*.py", "benchmarks/*.py", "scripts/*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_test_file_has_a_name_of_its_own():
    """Pytest imports test files by their names alone: a worker that collects two of one name ends with an error."""
    names = [path.name for path in tracked("tests/*/test_*.py")]
    assert sorted(set(names)) == sorted(names)
    assert len(names) > 100
