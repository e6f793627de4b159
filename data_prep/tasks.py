"""The two kinds of task, reading (source to spool) and writing (spool to shards); each needs only its number."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bert_pld.data.shards import ShardAttributes
from data_prep.clean import cleaned
from data_prep.instances import packed_rows, pair_rows
from data_prep.plan import Markers, Plan
from data_prep.sentences import split_sentences
from data_prep.sources import KINDS
from data_prep.splitting import Groups
from data_prep.spool import Spool, write_spool
from data_prep.tokens import encode_documents
from data_prep.vocabulary import CONTINUATION, Vocabulary, read_vocabulary
from data_prep.write_shards import write_group


def run_reading_task(build_dir: Path, task: int) -> None:
    """Read, clean and split into sentences; leave a spool and a marker with the counts.

    Raises:
        ValueError: an input is damaged; says file and place.
    """
    plan = _plan(build_dir)
    dropped: Counter[str] = Counter()
    documents = itertools.chain.from_iterable(KINDS[piece.kind].read_piece(piece) for piece in plan.tasks[task])
    language = plan.arguments.language
    sentences = (split_sentences(text, language) for text in cleaned(documents, dropped))
    counts: dict[str, Any] = dict(write_spool(build_dir / "spool", task, sentences))
    Markers(build_dir).write("read", task, {**counts, "dropped": dict(sorted(dropped.items()))})


def run_writing_task(build_dir: Path, task: int) -> None:
    """Tokenize a group of documents and make rows of them; leave shards and a marker with their records."""
    plan, groups = _plan(build_dir), _groups(build_dir)
    group, arguments = groups.tasks[task], plan.arguments
    vocabulary, tokenizer, is_continuation = _tokenizer(build_dir, arguments.cased)
    ids = vocabulary.special_ids()

    def texts() -> Any:
        for number, first, end in group.members:
            spool = Spool(build_dir / "spool", number)
            yield from spool.read(groups.chosen(spool, arguments.seed, group.split)[first:end])

    documents = encode_documents(tokenizer, texts())
    if arguments.objective == "mlm":
        rows = packed_rows(documents, arguments.seq_length, ids)
    else:
        rows = pair_rows(
            documents, arguments.seq_length, ids, is_continuation, arguments.seed, group.split, group.number
        )
    records = write_group(build_dir / "shards", group, rows, shard_attributes(plan, vocabulary), arguments.shard_rows)
    counts = {
        "records": records,
        "tokens": len(documents.tokens),
        "unknown": int(np.count_nonzero(documents.tokens == ids["unk"])),
        "random_next": int(np.count_nonzero(np.asarray(rows["next_sentence_label"]) == 1)),
    }
    Markers(build_dir).write("write", task, counts)


def shard_attributes(plan: Plan, vocabulary: Vocabulary) -> ShardAttributes:
    """What every shard of a build says of itself."""
    arguments = plan.arguments
    return ShardAttributes(
        vocabulary_hash=vocabulary.hash,
        vocabulary_size=len(vocabulary.entries),
        casing=vocabulary.casing,
        seq_length=arguments.seq_length,
        objective=arguments.objective,
        source=", ".join(arguments.sources),
        seed=arguments.seed,
    )


@functools.lru_cache(maxsize=1)
def _plan(build_dir: Path) -> Plan:
    return Plan.read(build_dir)


@functools.lru_cache(maxsize=1)
def _groups(build_dir: Path) -> Groups:
    return Groups.read(build_dir)


@functools.lru_cache(maxsize=1)
def _tokenizer(build_dir: Path, cased: bool) -> tuple[Vocabulary, Tokenizer, NDArray[np.bool_]]:
    vocabulary = read_vocabulary(build_dir.parent / "vocab.txt", cased)
    continuation = np.array([entry.startswith(CONTINUATION) for entry in vocabulary.entries])
    return vocabulary, vocabulary.tokenizer(), continuation
