"""Fixtures of the tests of models with kernels."""

import pytest

from bert_pld.kernels import tiles


@pytest.fixture
def few_programs(monkeypatch):
    """Interpret each kernel as one program, for speed; several are for comparisons with the eager model."""
    monkeypatch.setattr(tiles, "INTERPRETED_TILES", 1)
    monkeypatch.setattr(tiles, "INTERPRETED_PROGRAMS", 1)
