"""A build from beginning to end, one stage after another.

It plans the reading tasks, reads the sources, compares the documents to find duplicates, trains the tokenizer if none
is given, and groups the documents for the writing tasks. Then it writes their rows, masks them if the format is
NVIDIA's, and completes each data directory with a data card and a manifest.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bert_pld.data.shards import FORMAT_NAME, NVIDIA_FORMAT_NAME, SPLITS, Manifest, ShardRecord
from bert_pld.files import TOKENIZER
from data_prep import tasks
from data_prep.build_folder import BUILD_FOLDER, Markers, open_build_folder, remove_build_folder
from data_prep.data_card import (
    SIGNIFICANT_ACCENTS,
    Counts,
    dropped_by_reason,
    make_card,
    share_changed_by_accents,
    warnings_of,
)
from data_prep.data_card_page import summary, write_card
from data_prep.dedup.duplicates import Comparisons, Duplicates, cluster_near, join_exact
from data_prep.executors import Executor, Task
from data_prep.finished_build import is_finished, require_unchanged
from data_prep.plan import BuildArguments, BuildPlan, make_plan
from data_prep.progress import StageProgress
from data_prep.rows.shard_files import MaskingPart, masking_parts, place_nvidia_shards, place_shards, write_parts
from data_prep.rows.splitting import Group, Groups, make_groups
from data_prep.rows.trained_tokenizer import train_tokenizer
from data_prep.rows.vocabulary import BuildTokenizer, load_tokenizer, train_vocabulary
from data_prep.spool import Spool

SAMPLE_BYTES = {"wordpiece": 128 << 20, "bpe": 128 << 20, "unigram": 16 << 20}
"""Algorithm → most bytes of text that the training of its tokenizer reads."""
_SAMPLE_BATCH_CHARACTERS = 1 << 20


def build(arguments: BuildArguments, given: BuildTokenizer | None, output_dir: Path, executor: Executor) -> None:
    """Make a data directory, or resume an interrupted build with the same arguments.

    `given` is the tokenizer whose digest is in `arguments`; None trains one. `output_dir` must be new or empty, or hold
    this build. Sources or a directory that cannot be used are a ValueError, and so is a finished build whose inputs or
    shards have changed since.
    """
    began = time.monotonic()
    plan = make_plan(arguments, output_dir)
    if is_finished(output_dir, plan):
        if (output_dir / BUILD_FOLDER).is_dir():  # the build was killed while it removed its folder
            remove_build_folder(output_dir / BUILD_FOLDER)
        require_unchanged(output_dir, plan)
        print(f"{output_dir}: already holds this build, complete; nothing to do")
        return
    with open_build_folder(output_dir.absolute(), plan) as build_dir:
        run = _Build(plan, build_dir, executor)
        reading = run.read()
        removed = run.compare(sum(counts["documents"] for counts in reading))
        tokenizer = run.tokenizer(given, reading)
        groups = make_groups(build_dir, len(plan.tasks), arguments.seed, arguments.validation_fraction)
        groups.write(build_dir)
        writing = run.stage("tokenizing", "write", tasks.run_writing_task, [group.bytes for group in groups.tasks])
        _require_rows(groups, writing, arguments.seq_lengths)
        masking = run.mask(groups, writing) if arguments.format == "nvidia" else []
        cards = {}
        for seq_length, data_dir in arguments.data_dirs(output_dir).items():
            tokenizer.save(data_dir)
            if arguments.format == "nvidia":
                parts = [(part, records) for part, records in masking if part.seq_length == seq_length]
                splits = place_nvidia_shards(run.shard_dir(seq_length), data_dir, parts)
            else:
                native = _native_records(groups, writing, seq_length)
                splits = place_shards(run.shard_dir(seq_length), data_dir, native)
            manifest = Manifest(
                tasks.shard_attributes(plan, tokenizer, seq_length),
                splits,
                {split: sum(group.documents for group in groups.tasks if group.split == split) for split in splits},
                tokenizer.special_ids(),
                NVIDIA_FORMAT_NAME if arguments.format == "nvidia" else FORMAT_NAME,
                _attended_tokens(groups, writing, seq_length, splits["train"]),
            )
            cards[data_dir] = make_card(plan, manifest, reading, removed, writing, tokenizer)
            write_card(cards[data_dir], data_dir)
            manifest.write(data_dir)
            for leftover in data_dir.glob(".*.partial"):  # of a build that was killed while it wrote here
                leftover.unlink()
        remove_build_folder(build_dir)
    for data_dir, card in cards.items():
        print(summary(card, data_dir, time.monotonic() - began))
    for warning in warnings_of(card):  # the same for every length
        print(f"warning: {warning}")


@dataclasses.dataclass(frozen=True)
class _Build:
    """A running build; each method runs one stage and returns its result."""

    plan: BuildPlan
    build_dir: Path
    executor: Executor

    def stage(self, title: str, stage: str, function: Task, sizes: list[int]) -> Counts:
        """Run the tasks of a stage that have no completion marker, show the progress, and return all counts.

        `title` names the stage for the user, `stage` in the markers; `sizes` is the work of each task in bytes.
        """
        markers = Markers(self.build_dir)
        open_tasks = [task for task in range(len(sizes)) if markers.read(stage, task) is None]
        done = sum(sizes) - sum(sizes[task] for task in open_tasks)
        if done:
            finished_before = len(sizes) - len(open_tasks)
            print(f"{title}: resuming, {finished_before} of {len(sizes)} tasks are done", file=sys.stderr)

        def finished(task: int) -> None:
            progress.advance(sizes[task], (markers.read(stage, task) or {}).get("documents", 0))

        with StageProgress(title, sum(sizes), done) as progress:
            self.executor.run(function, self.build_dir, open_tasks, finished)
        return [counts for task in range(len(sizes)) if (counts := markers.read(stage, task)) is not None]

    def read(self) -> Counts:
        """Read, clean and spool all sources; raise ValueError if cleaning leaves no document."""
        sizes = [sum(piece.bytes for piece in task) for task in self.plan.tasks]
        counts = self.stage("reading", "read", tasks.run_reading_task, sizes)
        if not any(task_counts["documents"] for task_counts in counts):
            reasons = "; ".join(f"{count} {reason}" for reason, count in dropped_by_reason(counts).items())
            sources = ", ".join(self.plan.arguments.sources)
            raise ValueError(f"{sources}: no document is left after cleaning: {reasons or 'the files are empty'}")
        return counts

    def compare(self, documents: int) -> dict[str, int]:
        """Find the duplicates among all documents, and return their number by kind."""
        removed: dict[str, int] = {}
        if self.plan.arguments.deduplicate == "none":
            return removed
        comparisons = Comparisons.of(documents)
        comparisons.write(self.build_dir)
        digest_bytes, band_bytes = 16 * documents, 8 * documents
        exact = [digest_bytes // share.parts for share in comparisons.exact]
        self.stage("exact duplicates", "exact", tasks.run_exact_task, exact)
        removed["exact"] = join_exact(self.build_dir, len(exact))
        if self.plan.arguments.deduplicate == "near":
            near = [band_bytes * (s.end_band - s.first_band) // s.parts for s in comparisons.near]
            self.stage("near duplicates", "near", tasks.run_near_task, near)
            removed["near"] = cluster_near(self.build_dir, len(near))
        return removed

    def tokenizer(self, given: BuildTokenizer | None, reading: Counts) -> BuildTokenizer:
        """Return the given tokenizer, or the one trained before an interruption, or train one; save it."""
        arguments = self.plan.arguments
        if given is not None:
            given.save(self.build_dir)
            return given
        if (self.build_dir / TOKENIZER).is_file():  # written last, so all files are complete
            return load_tokenizer(self.build_dir)
        assert arguments.vocab_size is not None
        print(f"vocabulary: training {arguments.vocab_size:,} entries", file=sys.stderr)
        if arguments.algorithm != "wordpiece":
            sample = _sample(self.build_dir, len(self.plan.tasks), SAMPLE_BYTES[arguments.algorithm], with_blanks=True)
            trained = train_tokenizer(sample, arguments.vocab_size, arguments.algorithm)
            trained.save(self.build_dir)
            return trained
        sample = _sample(self.build_dir, len(self.plan.tasks), SAMPLE_BYTES["wordpiece"])
        changed = share_changed_by_accents(reading)
        keep = arguments.accents == "keep" or (arguments.accents == "auto" and changed >= SIGNIFICANT_ACCENTS)
        if keep and arguments.accents == "auto" and not arguments.cased:
            print(
                f"accents: kept; stripping them would change {changed:.1%} of the characters, in scripts without"
                " capitals (--accents strip: strip them as BERT does)",
                file=sys.stderr,
            )
        vocabulary = train_vocabulary(sample, arguments.vocab_size, arguments.cased, keep)
        vocabulary.save(self.build_dir)
        return vocabulary

    def mask(self, groups: Groups, writing: Counts) -> list[tuple[MaskingPart, list[dict[str, Any]]]]:
        """Write the rows of every length in NVIDIA's format; return each part with the records of its shards."""
        arguments = self.plan.arguments
        parts = [
            part
            for seq_length in arguments.seq_lengths
            for part in masking_parts(seq_length, _native_records(groups, writing, seq_length))
        ]
        write_parts(self.build_dir, parts)
        sizes = [part.rows * part.seq_length * part.dupe_factor(arguments.dupe_factor) for part in parts]
        counts = self.stage("masking", "mask", tasks.run_masking_task, sizes)
        return [(part, done["records"]) for part, done in zip(parts, counts, strict=True)]

    def shard_dir(self, seq_length: int) -> Path:
        """Return the folder of the shards of a sequence length, before they get their final names."""
        return self.build_dir / "shards" / str(seq_length)


def _sample(
    build_dir: Path, task_count: int, most_bytes: int, with_blanks: bool = False
) -> Callable[[], Iterator[list[str]]]:
    """Return a function that yields batches of sentences: the first part of each spool, at most `most_bytes` together.

    `with_blanks` puts the sentences of a document together. The last document of a part is cut between sentences.
    """
    spools, duplicates = [Spool(build_dir / "spool", task) for task in range(task_count)], Duplicates(build_dir)
    share = min(most_bytes / max(sum(spool.path.stat().st_size for spool in spools), 1), 1.0)

    def batches() -> Iterator[list[str]]:
        batch: list[str] = []
        characters, room = 0, 0.0
        for spool in spools:
            # What a part leaves over, because its next sentence is too long, goes to the parts after it.
            room += spool.path.stat().st_size * share
            chosen = np.flatnonzero(duplicates.kept(spool.task, len(spool)))
            sizes = spool.bytes[chosen].tolist()
            for sentences, size in zip(spool.read(chosen, with_blanks), sizes, strict=True):
                is_cut = size > room
                if is_cut:
                    ends = itertools.accumulate(len(sentence.encode()) + 1 for sentence in sentences)
                    ends_within = [0, *(end for end in ends if end <= room)]
                    sentences, size = sentences[: len(ends_within) - 1], ends_within[-1]
                room -= size
                for text in ["".join(sentences)] if with_blanks and sentences else sentences:
                    batch.append(text)
                    characters += len(text)
                    if characters >= _SAMPLE_BATCH_CHARACTERS:
                        yield batch
                        batch, characters = [], 0
                if is_cut:
                    break
        yield batch

    return batches


def _native_records(groups: Groups, writing: Counts, seq_length: int) -> list[tuple[Group, list[dict[str, Any]]]]:
    """Return each group with the records of its native shards of a sequence length."""
    pairs = zip(groups.tasks, writing, strict=True)
    return [(group, counts["lengths"][str(seq_length)]["records"]) for group, counts in pairs]


def _require_rows(groups: Groups, writing: Counts, seq_lengths: tuple[int, ...]) -> None:
    """Raise a ValueError if a split has no row of a sequence length."""
    for seq_length in seq_lengths:
        records = _native_records(groups, writing, seq_length)
        for split in SPLITS:
            if not any(own for group, own in records if group.split == split):
                raise ValueError(
                    f"--seq_length {seq_length}: the {split} documents give no row, but each split needs at least one;"
                    " they have too few tokens: add more text, or use a tokenizer with entries for its characters"
                )


def _attended_tokens(groups: Groups, writing: Counts, seq_length: int, train: list[ShardRecord]) -> float | None:
    """Return `Manifest.attended_tokens` of a sequence length."""
    counts = [written["lengths"][str(seq_length)].get("documents") for written in writing]
    pairs = zip(groups.tasks, counts, strict=True)
    squares = [count["squares"] for group, count in pairs if count is not None and group.split == "train"]
    return sum(squares) / max(sum(record.tokens for record in train), 1) if squares else None
