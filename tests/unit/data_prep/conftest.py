"""Builds for the tests of data preparation."""

from data_prep_fixtures import corpus, small_tasks, sound_build  # noqa: F401
