"""The tasks of a build: reading (source to spool), comparing, writing (spool to shards), masking.

A task reads everything it needs from the build folder, given only its number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bert_pld.data.fast_tokenizer import REQUIRED_ROLES
from bert_pld.data.masking import MaskingVocabulary
from bert_pld.data.shards import ShardAttributes
from bert_pld.files import printable
from data_prep.build_folder import Markers
from data_prep.dedup.duplicates import Comparisons, Duplicates, find_exact, find_near
from data_prep.plan import BuildPlan
from data_prep.recipe import WriteSpool, left_out_by, reading_recipe, run_recipe
from data_prep.rows.instances import packed_rows, pair_rows
from data_prep.rows.packing import count_documents, document_rows
from data_prep.rows.shard_files import read_parts, write_group, write_nvidia_shards
from data_prep.rows.splitting import Group, Groups
from data_prep.rows.tokens import encode_documents, encode_whole_documents
from data_prep.rows.vocabulary import BuildTokenizer, load_tokenizer
from data_prep.spool import Spool
from data_prep.text.left_out import count_characters


def run_reading_task(build_dir: Path, task: int) -> None:
    """Read, clean and split text into sentences; write a spool, and a marker with the counts."""
    plan = _plan(build_dir)
    steps = reading_recipe(plan.arguments, plan.tasks[task], build_dir / "spool", task)
    dropped = run_recipe(steps)
    writer = steps[-1]
    assert isinstance(writer, WriteSpool)
    counts = {**writer.counts, "dropped": dict(sorted(dropped.items())), "left_out": left_out_by(steps).to_json()}
    Markers(build_dir).write("read", task, counts)


def run_exact_task(build_dir: Path, task: int) -> None:
    """Find documents that equal an earlier one."""
    share = Comparisons.read(build_dir).exact[task]
    found = find_exact(build_dir, task, share, len(_plan(build_dir).tasks))
    Markers(build_dir).write("exact", task, {"found": found})


def run_near_task(build_dir: Path, task: int) -> None:
    """Find pairs of near duplicates."""
    plan, share = _plan(build_dir), Comparisons.read(build_dir).near[task]
    compared = find_near(build_dir, task, share, len(plan.tasks), plan.arguments.similarity)
    Markers(build_dir).write("near", task, {"compared": compared})


def run_writing_task(build_dir: Path, task: int) -> None:
    """Tokenize a group of documents and make rows of each length; write shards, and a marker with their records."""
    plan, group = _plan(build_dir), _groups(build_dir).tasks[task]
    arguments = plan.arguments
    tokenizer, encoder = _tokenizer(build_dir)
    characters = 0

    def texts() -> Iterator[list[str]]:
        nonlocal characters
        for sentences in _texts(build_dir, plan, group, with_blanks=not tokenizer.splits_at_sentences):
            characters += sum(map(count_characters, sentences))
            yield sentences

    special_ids = tokenizer.special_ids()
    if tokenizer.splits_at_sentences:
        documents = encode_documents(encoder, texts(), special_ids.get("unk"))
    else:
        left_out = np.zeros(len(tokenizer.entries), np.bool_)
        left_out[[special_ids[role] for role in REQUIRED_ROLES]] = True
        documents = encode_whole_documents(encoder, texts(), left_out, special_ids.get("unk"))
    counts: dict[str, Any] = {
        "characters": characters,
        "tokens": len(documents.tokens),
        "unknown": int(np.count_nonzero(documents.tokens == special_ids["unk"])) if "unk" in special_ids else 0,
        "long_unknown": documents.long_unknown,
        "document_lengths": _histogram(np.diff(documents.segment_starts[documents.document_starts])),
        "sentence_lengths": _histogram(np.diff(documents.segment_starts)),
        "lengths": {},
    }
    for seq_length in arguments.seq_lengths:
        if arguments.pack == "documents":
            rows = document_rows(documents, seq_length, tokenizer.template)
        elif arguments.objective == "mlm":
            rows = packed_rows(documents, seq_length, tokenizer.template)
        else:
            key = arguments.seed, group.split, group.number
            rows = pair_rows(documents, seq_length, tokenizer.template, tokenizer.is_continuation, *key)
        attributes = shard_attributes(plan, tokenizer, seq_length)
        folder = build_dir / "shards" / str(seq_length)
        counts["lengths"][str(seq_length)] = {
            "records": write_group(folder, group, rows, attributes, arguments.shard_rows),
            "random_next": int(np.count_nonzero(np.asarray(rows["next_sentence_label"]) == 1)),
            **({"documents": count_documents(rows, seq_length)} if arguments.pack == "documents" else {}),
            "row_lengths": np.bincount(np.asarray(rows["length"]) * 16 // (seq_length + 1), minlength=16).tolist(),
        }
    Markers(build_dir).write("write", task, counts)


def run_masking_task(build_dir: Path, task: int) -> None:
    """Mask the rows of a native shard; write them in NVIDIA's format, and a marker with the records."""
    arguments, part = _plan(build_dir).arguments, read_parts(build_dir)[task]
    tokenizer, _ = _tokenizer(build_dir)
    ids = {f"{name}_id": identity for name, identity in tokenizer.special_ids().items()}
    masking_vocabulary = MaskingVocabulary(
        size=len(tokenizer.entries),
        is_continuation=tokenizer.is_continuation,
        **ids,  # type: ignore[arg-type]
    )
    folder = build_dir / "shards" / str(part.seq_length)
    records = write_nvidia_shards(folder, part, arguments.dupe_factor, masking_vocabulary, arguments.seed)
    Markers(build_dir).write("mask", task, {"records": records})


def shard_attributes(plan: BuildPlan, tokenizer: BuildTokenizer, seq_length: int) -> ShardAttributes:
    """Return the HDF5 attributes of the shards of a sequence length."""
    arguments = plan.arguments
    return ShardAttributes(
        vocabulary_hash=tokenizer.hash, vocabulary_size=len(tokenizer.entries), casing=tokenizer.casing,
        seq_length=seq_length, objective=arguments.objective, source=printable(", ".join(arguments.sources)),
        seed=arguments.seed, tokenizer_hash=tokenizer.tokenizer_hash, document_starts=arguments.pack == "documents",
    )  # fmt: skip


def _texts(build_dir: Path, plan: BuildPlan, group: Group, with_blanks: bool) -> Iterator[list[str]]:
    groups, duplicates = _groups(build_dir), Duplicates(build_dir)
    for number, first, end in group.members:
        spool = Spool(build_dir / "spool", number)
        chosen = groups.chosen(spool, duplicates, plan.arguments.seed, group.split, first, end)
        yield from spool.read(chosen, with_blanks)


def _histogram(lengths: NDArray[np.int64]) -> list[int]:
    """Return how many lengths have 1, 2, 3 … binary digits."""
    return np.bincount(np.frexp(lengths)[1], minlength=1)[1:].tolist() if len(lengths) else []


@functools.lru_cache(maxsize=1)
def _plan(build_dir: Path) -> BuildPlan:
    return BuildPlan.read(build_dir)


@functools.lru_cache(maxsize=1)
def _groups(build_dir: Path) -> Groups:
    return Groups.read(build_dir)


@functools.lru_cache(maxsize=1)
def _tokenizer(build_dir: Path) -> tuple[BuildTokenizer, Tokenizer]:
    tokenizer = load_tokenizer(build_dir)
    encoder = tokenizer.tokenizer()
    # A text about BERT holds "[MASK]" or "[PAD]". These are words there, not masks or padding.
    encoder.encode_special_tokens = True
    return tokenizer, encoder
