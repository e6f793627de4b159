"""Measurements against peers, each within one run: `python -m benchmarks SUBJECT`.

A subject is one file with `EXAMPLE`, `add_arguments(parser)`, `measure(options) -> dict` and `report(result) -> str`.
A truthy `failed` in the result makes the command exit with 1 once everything is printed and written.
"""
