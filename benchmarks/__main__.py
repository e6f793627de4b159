"""`python -m benchmarks SUBJECT …`: every folder beside this file is a subject, and its `command.py` the command."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from bert_pld.cli import make_parser, run_as_rank


def subjects() -> dict[str, str]:
    """Each subject with the first line of its command's docstring, read without importing it."""
    commands = {path.parent.name: path for path in sorted(Path(__file__).parent.glob("*/command.py"))}
    return {
        name: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        for name, path in commands.items()
    }


def build_parser(subject: str | None) -> argparse.ArgumentParser:
    """The command line of one subject, or of the list of subjects."""
    known = subjects()
    if subject in known:
        module = importlib.import_module(f"benchmarks.{subject}.command")
        parser = make_parser(f"benchmarks {subject}", known[subject], module.EXAMPLE)
        module.add_arguments(parser)
        if hasattr(module, "measure"):
            parser.add_argument("--json", type=Path, help="also write all figures to this file")
        parser.set_defaults(module=module)
        return parser
    parser = make_parser(
        "benchmarks",
        "Measure against peers, all in one run.\n\nsubjects (each has a --help of its own):\n"
        + "\n".join(f"  {name:17} {line}" for name, line in known.items()),
        "python -m benchmarks train --dtypes fp32 --json train.json",
    )
    parser.add_argument("subject", choices=list(known), metavar="SUBJECT", help=", ".join(known))
    return parser


def main(options: argparse.Namespace) -> int:
    """Run one subject; return 1 if a part of it failed."""
    if not hasattr(options.module, "measure"):
        return options.module.main(options)
    return _measure(options.module, options)


def _measure(module: Any, options: argparse.Namespace) -> int:
    """Measure, print the table on rank 0, and write the figures where asked."""
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json {options.json}: its folder does not exist; nothing was measured")
    result = module.measure(options)
    if os.environ.get("RANK", "0") != "0":
        return 0
    print(module.report(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result.get("failed") else 0


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else None
    run_as_rank(main, build_parser(name), sys.argv[2:] if name in subjects() else None)
