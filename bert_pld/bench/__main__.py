"""`python -m bert_pld.bench SUBJECT [--json FILE]`: every module beside this one is a subject."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import pkgutil
import sys
from pathlib import Path

import bert_pld.bench
from bert_pld.cli import make_parser, run_as_rank


def subjects() -> dict[str, str]:
    """Each subject with the first line of its docstring, read without importing it."""
    folder = Path(bert_pld.bench.__file__).parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_"))
    return {
        name: (ast.get_docstring(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))) or "").split("\n")[0]
        for name in names
    }


def build_parser(subject: str | None) -> argparse.ArgumentParser:
    """The command line: of one subject, or the list of subjects."""
    known = subjects()
    if subject in known:
        module = importlib.import_module(f"bert_pld.bench.{subject}")
        parser = make_parser(f"bert_pld.bench {subject}", known[subject], module.EXAMPLE)
        parser.set_defaults(module=module)
        module.add_arguments(parser)
        parser.add_argument("--json", type=Path, help="write every figure to this file too")
        return parser
    parser = make_parser(
        "bert_pld.bench",
        "Measure against peers, all in one run.\n\nsubjects (each has a --help of its own):\n"
        + "\n".join(f"  {name:9} {line}" for name, line in known.items()),
        "python -m bert_pld.bench train --dtypes fp32 --json train.json",
    )
    parser.add_argument("subject", choices=list(known), metavar="SUBJECT", help=", ".join(known))
    return parser


def main(options: argparse.Namespace) -> int:
    """Measure one subject, print its table, and write it where asked; 1 where the subject found something `failed`."""
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json {options.json}: its folder is not there; nothing was measured")
    result = options.module.measure(options)
    if os.environ.get("RANK", "0") != "0":  # of several ranks the first speaks
        return 0
    print(options.module.report(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result.get("failed") else 0


if __name__ == "__main__":
    subject = sys.argv[1] if len(sys.argv) > 1 else None
    parser = build_parser(subject)
    run_as_rank(main, parser, sys.argv[2:] if subject in subjects() else None)
