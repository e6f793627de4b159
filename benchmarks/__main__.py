"""`python -m benchmarks SUBJECT …`."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from pathlib import Path

from benchmarks.results import save
from bert_pld.cli import check_json_option, make_parser, run_as_rank


def subjects() -> dict[str, str]:
    """Each subject with the first line of its command's docstring, which is read without importing the command."""
    commands = {path.parent.name: path for path in sorted(Path(__file__).parent.glob("*/command.py"))}
    return {
        name: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        for name, path in commands.items()
    }


def build_parser(subject: str | None) -> argparse.ArgumentParser:
    """The command line of one subject; for anything else, that of the list of subjects."""
    known = subjects()
    if subject in known:
        module = importlib.import_module(f"benchmarks.{subject}.command")
        parser = make_parser(f"benchmarks {subject}", known[subject], module.EXAMPLE)
        module.add_arguments(parser)
        if hasattr(module, "measure"):
            parser.add_argument("--json", type=Path, help="also write all figures to this file")
        parser.set_defaults(subject=subject)
        return parser
    parser = make_parser(
        "benchmarks",
        "Measure against other software, all contenders in one run.\n\nsubjects (each has its own --help):\n"
        + "\n".join(f"  {name:17} {line}" for name, line in known.items()),
        "python -m benchmarks train --dtypes fp32 --json train.json",
    )
    parser.add_argument("subject", choices=list(known), metavar="SUBJECT", help=", ".join(known))
    return parser


def main(options: argparse.Namespace) -> int:
    """Run one subject; print the report and write the result on rank 0; return 1 if a part failed or was not done."""
    subject = importlib.import_module(f"benchmarks.{options.subject}.command")
    if not hasattr(subject, "measure"):
        return subject.main(options)
    check_json_option(options.json)
    result = subject.measure(options)
    if os.environ.get("RANK", "0") != "0":
        return 0
    print(subject.report(result))
    save(result, options.json)
    return 1 if result.get("failed") or result.get("stopped_after_step") else 0


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else None
    run_as_rank(main, build_parser(name), sys.argv[2:] if name in subjects() else None)
