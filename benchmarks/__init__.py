"""Measurements beside peers: `python -m benchmarks SUBJECT`, from a checkout.

A subject is a folder here. Its `command.py` has what `subject.Subject` lists; `paper`, which has commands of its own,
has `main(options) -> int` instead of `measure` and `report`. Files beside this one are shared; a subject imports from
them and from its own folder only.
"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
"""The checkout's root; benchmarks are no part of the installed package."""
