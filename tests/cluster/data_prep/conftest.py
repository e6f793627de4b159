"""Builds for the tests of data preparation."""

from data_prep_fixtures import corpus, small_tasks, sound_build, tiny_vocab  # noqa: F401
