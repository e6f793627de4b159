"""Errors that only one rank may have: its own rank prints them, because rank 0 does not learn of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager


class OneRankError(ValueError):
    """An error that other ranks may not have; the message is one line that names rank and host."""


@contextmanager
def naming_this_rank() -> Iterator[None]:
    """Turn each exception in the block into a OneRankError, except in a run of one rank.

    It passes unchanged as long as the rank is unknown. A missing package is for the command to explain.
    """
    from bert_pld.config.errors import describe  # All commands import this module, and some must start quickly.

    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        rank = os.environ.get("RANK")
        if rank is None or os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        text = " ".join(str(error).split()) if isinstance(error, OSError) else describe(error)
        raise OneRankError(f"rank {rank} (host {socket.gethostname()}): {text}") from error
