"""Benchmarks against other software: `python -m benchmarks SUBJECT`, from a checkout.

A subject is a folder here. Its `command.py` has

- `EXAMPLE`: a command line for `--help`;
- `add_arguments(parser)`: adds the subject's own options;
- `measure(options)`: returns a result that JSON can hold. It raises ValueError for options or data that are invalid
  here. A non-empty `failed` in the result makes the command exit with 1 after the report is printed and saved;
- `report(result)`: formats a result, fresh or read from its file, as text.

`paper`, which has commands of its own, has `main(options) -> int` instead of the last two. Files beside this one are
shared; a subject imports from them and from its own folder only.
"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout's root; benchmarks are no part of the installed package."""
