"""The command line: `python -m data_prep build | verify | sources`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

from bert_pld.cli import explain_missing_package, print_any_character

with explain_missing_package("data_prep"):
    from bert_pld.data.fast_tokenizer import FastTokenizer
    from bert_pld.data.shards import MANIFEST_NAME, OBJECTIVES
    from bert_pld.files import file_sha256
    from bert_pld.rng import MAX_SEED
    from data_prep.dedup.duplicates import DEDUPLICATION
    from data_prep.executors.options import ExecutorOptions, add_executor_flags, make_executor
    from data_prep.pipeline import build
    from data_prep.plan import BuildArguments
    from data_prep.rows.given_tokenizer import read_given_tokenizer
    from data_prep.rows.instances import SMALLEST_SEQ_LENGTH
    from data_prep.rows.shard_files import DEFAULT_DUPE_FACTOR
    from data_prep.rows.trained_tokenizer import ALGORITHMS
    from data_prep.rows.vocabulary import (
        ACCENTS,
        LARGEST_VOCABULARY,
        SMALLEST_VOCABULARY,
        BuildTokenizer,
        advice,
        read_vocabulary,
    )
    from data_prep.sources import KINDS, Source
    from data_prep.text.language import parse_languages
    from data_prep.text.sentences import check_language
    from data_prep.verify import verify

FORMATS = ("native", "nvidia")
PACKINGS = ("stream", "documents")
BAD_ROWS = ("stop", "skip")
LONGEST_SEQ_LENGTH = 2**16 - 1
LARGEST_DUPE_FACTOR = 1000

_EXAMPLE = """\
examples:
  python -m data_prep build --source python-docs --vocab_size 4096 --output_dir corpus
  python -m data_prep build --source wikiextractor=extracted/ --source 'books=novels/*.txt' \\
      --vocab bert-base-uncased-vocab.txt --seq_length 128 --workers 16 --output_dir corpus
Give the same command again to resume an interrupted build.
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    print_any_character()
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("interrupted; the same command resumes the build", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        message = _os_message(error) if isinstance(error, OSError) else str(error)
        print(f"error: {_one_line(message)}", file=sys.stderr)
    return 1


def _build(arguments: argparse.Namespace) -> int:
    options = ExecutorOptions.from_flags(arguments)
    _check_flags(arguments)
    default_factor = DEFAULT_DUPE_FACTOR if arguments.format == "nvidia" else 1
    sources = tuple(str(Source.parse(source)) for source in arguments.source)
    given = _given_tokenizer(arguments)
    build_arguments = BuildArguments(
        sources=sources, vocab=file_sha256(arguments.vocab) if arguments.vocab else None,
        vocab_size=arguments.vocab_size, cased=arguments.cased, seq_lengths=tuple(sorted(set(arguments.seq_length))),
        objective=arguments.objective, validation_fraction=arguments.validation_fraction, seed=arguments.seed,
        shard_rows=arguments.shard_rows, language=arguments.language,
        keep_languages=parse_languages(arguments.keep_language) if arguments.keep_language else (),
        deduplicate=arguments.deduplicate, similarity=arguments.similarity, format=arguments.format,
        dupe_factor=default_factor if arguments.dupe_factor is None else arguments.dupe_factor,
        accents=arguments.accents, bad_rows=arguments.bad_rows,
        tokenizer=_identity(given) if isinstance(given, FastTokenizer) else None,
        algorithm=arguments.algorithm or ALGORITHMS[0], pack=arguments.pack,
    )  # fmt: skip
    with make_executor(options) as executor:
        build(build_arguments, given, arguments.output_dir, executor)
    return 0


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raise a ValueError for a value that is not allowed, and for flags that exclude each other."""
    if arguments.format not in FORMATS:
        raise ValueError(f"--format {arguments.format}: not available; allowed: {', '.join(FORMATS)}")
    if arguments.dupe_factor is not None and arguments.format != "nvidia":
        raise ValueError("--dupe_factor: requires --format nvidia; native rows hold no masks")
    if arguments.pack == "documents" and arguments.objective != "mlm":
        raise ValueError(f"--pack documents: requires --objective mlm; a row of {arguments.objective} is one pair")
    if arguments.pack == "documents" and arguments.format != "native":
        raise ValueError("--pack documents: requires --format native; NVIDIA's format cannot say where documents start")
    if arguments.dupe_factor is not None:
        _check_range("--dupe_factor", arguments.dupe_factor, 1, LARGEST_DUPE_FACTOR)
    for seq_length in arguments.seq_length:
        _check_range("--seq_length", seq_length, SMALLEST_SEQ_LENGTH, LONGEST_SEQ_LENGTH)
    _check_range("--seed", arguments.seed, 0, MAX_SEED)
    _check_range("--shard_rows", arguments.shard_rows, 1, 2**31 - 1)
    if arguments.vocab_size is not None:
        _check_range("--vocab_size", arguments.vocab_size, SMALLEST_VOCABULARY, LARGEST_VOCABULARY)
    _check_tokenizer_flags(arguments)
    if arguments.cased and arguments.accents == "strip":
        raise ValueError("--accents strip: a cased vocabulary keeps accents; leave out --cased or --accents")
    if not 0.0 < arguments.validation_fraction < 1.0:
        raise ValueError(f"--validation_fraction {arguments.validation_fraction}: must be above 0 and below 1")
    if not 0.0 < arguments.similarity <= 1.0:
        raise ValueError(f"--similarity {arguments.similarity}: must be above 0 and at most 1")
    check_language(arguments.language)


def _check_tokenizer_flags(arguments: argparse.Namespace) -> None:
    """Raise a ValueError for flags that the tokenizer's own flags exclude."""
    given = "--tokenizer" if arguments.tokenizer is not None else "--vocab" if arguments.vocab is not None else None
    if arguments.algorithm is not None and given:
        raise ValueError(
            f"--algorithm {arguments.algorithm}: for a tokenizer that --vocab_size trains; leave out {given}"
        )
    if arguments.add_mask_token and given != "--tokenizer":
        raise ValueError("--add_mask_token: requires --tokenizer; all other tokenizers have a [MASK]")
    flag = given if given == "--tokenizer" else f"--algorithm {arguments.algorithm}"
    if given == "--tokenizer" or arguments.algorithm in ALGORITHMS[1:]:
        why = "it decides on capitals and accents itself" if given else "it keeps capitals and accents"
        if arguments.cased and given:
            raise ValueError(f"--cased: not allowed with {flag}; {why}")
        if arguments.accents != ACCENTS[0]:
            raise ValueError(f"--accents {arguments.accents}: not allowed with {flag}; {why}")
        if arguments.format == "nvidia":
            raise ValueError(f"--format nvidia: requires a WordPiece vocab.txt (--vocab, or --vocab_size); not {flag}")


def _given_tokenizer(arguments: argparse.Namespace) -> BuildTokenizer | None:
    """Return the tokenizer of `--vocab` or `--tokenizer`, None to train one."""
    if arguments.tokenizer is not None:
        return read_given_tokenizer(arguments.tokenizer, arguments.add_mask_token)
    vocab = arguments.vocab
    if vocab is None:
        return None
    if not vocab.is_file():
        raise ValueError(f"--vocab {vocab}: no such file; required is a vocab.txt with one entry per line")
    given = read_vocabulary(vocab, arguments.cased, arguments.accents)
    if warning := advice(given):
        print(f"warning: --vocab {vocab}: {warning}", file=sys.stderr)
    if arguments.format == "nvidia" and (pad := given.special_ids()["pad"]) != 0:
        raise ValueError(f"--vocab {vocab}: the id of [PAD] is {pad}; --format nvidia requires 0")
    return given


def _identity(tokenizer: FastTokenizer) -> str:
    """Return what identifies a given tokenizer: its content and its special tokens."""
    return " ".join([tokenizer.tokenizer_hash, *map(str, tokenizer.special_ids().values())])


def _verify(arguments: argparse.Namespace) -> int:
    data_dirs = [arguments.data_dir]
    if not (arguments.data_dir / MANIFEST_NAME).is_file():
        # Also folders without a manifest: a build of several lengths is complete only with all of them.
        data_dirs = sorted(path for path in arguments.data_dir.glob("seq_*") if path.is_dir()) or data_dirs
    faults = [
        fault for data_dir in data_dirs for fault in verify(data_dir, samples=3, follow_links=arguments.follow_links)
    ]
    for fault in faults:
        print(f"error: {_one_line(fault)}", file=sys.stderr)
    return 1 if faults else 0


def _sources(_: argparse.Namespace) -> int:
    width = max(map(len, KINDS))
    for kind in KINDS.values():
        print(f"{kind.name:<{width}}  {kind.summary}\n{'':<{width}}  --source {kind.example}")
    return 0


def _check_range(flag: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise ValueError(f"{flag} {value}: must be between {lowest} and {highest}")


def _os_message(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
        return f"no space left to write ({error}); free some space, then resume the build with the same command"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `build`, `verify` and `sources`."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m data_prep", description="Make pretraining shards from text.", epilog=_EXAMPLE,
        formatter_class=form,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="build | verify | sources")

    add = commands.add_parser(
        "build", help="make a data directory", description="Make a data directory from text.", epilog=_EXAMPLE,
        formatter_class=form,
    )  # fmt: skip
    add.set_defaults(run=_build)
    add.add_argument(
        "--source", action="append", required=True, metavar="KIND=WHERE",
        help=f"a source of text; may be repeated; WHERE is a file, folder or glob; kinds: {', '.join(KINDS)}",
    )  # fmt: skip
    add.add_argument("--output_dir", type=Path, required=True, help="a new or empty directory")
    vocabulary = add.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument("--vocab", type=Path, metavar="FILE", help="use this WordPiece vocab.txt")
    vocabulary.add_argument(
        "--tokenizer", type=Path, metavar="FILE_OR_DIR",
        help="use any fast tokenizer: a tokenizer.json, or a folder that transformers' AutoTokenizer loads",
    )  # fmt: skip
    vocabulary.add_argument("--vocab_size", type=int, metavar="N", help="train a tokenizer of N entries on the text")
    add.add_argument(
        "--algorithm", choices=ALGORITHMS,
        help="with --vocab_size: BERT's WordPiece, byte-level BPE, or Unigram (default: wordpiece)",
    )  # fmt: skip
    add.add_argument(
        "--add_mask_token", action="store_true", help="with --tokenizer: add a mask token to one that has none"
    )
    add.add_argument("--cased", action="store_true", help="keep capitals and accents (default: uncased)")
    add.add_argument(
        "--accents", choices=ACCENTS, default=ACCENTS[0],
        help="without --cased: keep accents and vowel signs, or strip them as BERT does; auto keeps them where the"
        " script has no capitals and stripping would change the text, and strips them elsewhere (default: auto)",
    )  # fmt: skip
    add.add_argument(
        "--seq_length", type=int, nargs="+", default=[128], metavar="S",
        help="tokens per row (default: 128); several lengths make one data directory each, OUTPUT_DIR/seq_S, from the"
        " same documents",
    )  # fmt: skip
    add.add_argument(
        "--objective", choices=OBJECTIVES, default=OBJECTIVES[0],
        help="mlm+nsp: sentence pairs; mlm: packed full sequences (default: mlm+nsp)",
    )  # fmt: skip
    add.add_argument(
        "--pack", choices=PACKINGS, default=PACKINGS[0],
        help="how --objective mlm fills its rows. stream: with one document after the other; attention looks across"
        " them. documents: with whole documents where they fit; attention and positions restart at each (default:"
        " stream)",
    )  # fmt: skip
    add.add_argument(
        "--validation_fraction", type=float, default=0.003,
        help="share of the documents that is held out, at least one document (default: 0.003)",
    )  # fmt: skip
    add.add_argument("--seed", type=int, default=0, help="seed of the split and of the sentence pairs (default: 0)")
    add.add_argument("--shard_rows", type=int, default=65536, help="most rows per shard (default: 65536)")
    add.add_argument(
        "--deduplicate", choices=DEDUPLICATION, default=DEDUPLICATION[0],
        help="remove duplicates across all sources and keep the first of each (default: near)",
    )  # fmt: skip
    add.add_argument(
        "--similarity", type=float, default=0.6,
        help="lowest share of common shingles at which documents are near duplicates (default: 0.6)",
    )  # fmt: skip
    add.add_argument("--keep_language", metavar="en,de", help="drop documents in other languages (default: keep all)")
    add.add_argument(
        "--language", default="en", help="ISO 639 code of the language that sentence splitting assumes (default: en)"
    )
    add.add_argument(
        "--bad_rows", choices=BAD_ROWS, default=BAD_ROWS[0],
        help="stop at a row of JSON lines, a row of a table, or a page of a dump that cannot be read, or skip such rows"
        " and count them by reason (default: stop)",
    )  # fmt: skip
    add_executor_flags(add)
    add.add_argument(
        "--format", default=FORMATS[0],
        help=f"shard format: {', '.join(FORMATS)}; nvidia holds static masks (default: {FORMATS[0]})",
    )  # fmt: skip
    add.add_argument(
        "--dupe_factor", type=int, metavar="K",
        help=f"sets of masks per training row, with --format nvidia (default: {DEFAULT_DUPE_FACTOR})",
    )  # fmt: skip

    check = commands.add_parser(
        "verify", help="check a data directory", formatter_class=form,
        description="Check checksums, schema, counts and tokenizer, and show three decoded rows; exit 1 on a fault.",
        epilog="example:\n  python -m data_prep verify corpus",
    )  # fmt: skip
    check.set_defaults(run=_verify)
    check.add_argument("data_dir", type=Path, metavar="DIR")
    check.add_argument(
        "--follow_links", action="store_true",
        help="follow symlinks out of DIR; only for directories from people you trust (docs/security.md)",
    )  # fmt: skip

    kinds = commands.add_parser(
        "sources", help="list the source kinds", description="List the source kinds with an example each.",
        epilog="example:\n  python -m data_prep sources", formatter_class=form,
    )  # fmt: skip
    kinds.set_defaults(run=_sources)
    return parser


if __name__ == "__main__":
    with explain_missing_package("data_prep"):
        sys.exit(main())
