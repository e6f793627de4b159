"""What every command shares: a user's mistake ends in one line on stderr and exit code 1, not in a traceback."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import sys
from collections.abc import Callable, Sequence

EXIT_ERROR = 1


def make_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose `--help` ends with an example."""
    return argparse.ArgumentParser(
        prog=f"python -m {command}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse, call `main`, and exit: 0, or what `main` returns, or 1 after one line for a ValueError or OSError.

    Errors that every rank meets alike are printed by rank 0 alone.
    """
    options = parser.parse_args(arguments)
    try:
        code = main(options) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = EXIT_ERROR
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)


def run_as_rank(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> None:
    """`run` for a process that was one rank of several: leaves without C++'s static destructors.

    By then everything is written and the process group is gone, but a thread of the collectives' library that is
    still winding down makes those destructors abort the process now and then, and a finished run would look failed.
    """
    try:
        run(main, parser, arguments)
    except SystemExit as leaving:
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else EXIT_ERROR)
