"""Errors that only one rank may have: its own rank prints them, because rank 0 does not learn of them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAIT_FOR_RANK_0_S = 5.0
"""How long rank 0 has to fail alike; a launcher then ends the other ranks."""
_POLL_S = 0.1


class OneRankError(ValueError):
    """An error that other ranks may not have; the message is one line that names rank and host."""


@contextmanager
def naming_this_rank() -> Iterator[None]:
    """Turn each exception in the block into a OneRankError, except in a run of one rank.

    It passes unchanged as long as the rank is unknown. A missing package is for the command to explain.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if os.environ.get("RANK") is None or os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        raise _with_rank(error) from error


@contextmanager
def naming_this_rank_if_alone(was_told_to_stop: Callable[[], bool]) -> Iterator[None]:
    """Turn a user's mistake in the block into a OneRankError, unless rank 0 has made it, too.

    If all ranks fail, rank 0 prints and ends, and the launcher stops the others: a rank that is told to stop within
    `WAIT_FOR_RANK_0_S` says nothing.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OneRankError) or os.environ.get("RANK", "0") == "0":
            raise
        deadline = time.monotonic() + WAIT_FOR_RANK_0_S
        while time.monotonic() < deadline:
            if was_told_to_stop():
                raise
            time.sleep(_POLL_S)
        raise _with_rank(error) from error


def _with_rank(error: Exception) -> OneRankError:
    from bert_pld.config.errors import describe  # All commands import this module, and some must start quickly.

    text = " ".join(str(error).split()) if isinstance(error, OSError) else describe(error)
    return OneRankError(f"rank {os.environ['RANK']} (host {socket.gethostname()}): {text}")
