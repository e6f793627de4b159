"""A build from beginning to end: plan, read, compare, vocabulary, groups, write, manifest."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bert_pld.data.shards import FORMAT_NAME, NVIDIA_FORMAT_NAME, Manifest
from data_prep.carry_over import carry_over
from data_prep.data_card import make_card, summary, write_card
from data_prep.dedup.duplicates import Comparisons, Duplicates, cluster_near, join_exact
from data_prep.plan import (
    BUILD_FOLDER,
    BuildArguments,
    Markers,
    Plan,
    is_finished,
    make_plan,
    opened_build,
    remove_build,
)
from data_prep.progress import Progress
from data_prep.rows.shard_files import MaskingPart, masking_parts, place_nvidia_shards, place_shards, write_parts
from data_prep.rows.splitting import Group, Groups, make_groups
from data_prep.rows.vocabulary import Vocabulary, read_vocabulary, train_vocabulary
from data_prep.spool import Spool
from data_prep.tasks import (
    run_exact_task,
    run_masking_task,
    run_near_task,
    run_reading_task,
    run_writing_task,
    shard_attributes,
)

VOCABULARY_SAMPLE_BYTES = 128 << 20
_SAMPLE_BATCH_SENTENCES = 1 << 13

Task = Callable[[Path, int], None]
Counts = list[dict[str, Any]]


class Executor(Protocol):
    """Runs tasks somewhere, in any order and number at a time."""

    def run(self, function: Task, build_dir: Path, tasks: Sequence[int], finished: Callable[[int], None]) -> None:
        """Run `function(build_dir, task)` for every task, and call `finished(task)` after each.

        Raises:
            ValueError, OSError: what a task raised, or a worker was lost.
        """


def build(arguments: BuildArguments, vocab: Path | None, output_dir: Path, executor: Executor) -> None:
    """Make a data directory, or go on with one that an interrupted build of the same arguments left.

    Args:
        arguments: what decides the bytes.
        vocab: the vocabulary file that `arguments.vocab` is the digest of; None trains one.
        output_dir: a new or empty directory, or one with this very build in it.
        executor: where the tasks run; no influence on the result.

    Raises:
        ValueError: a user's mistake: sources, vocabulary or directory.
        OSError: the directory cannot be written, or the disk is full.
    """
    began = time.monotonic()
    given = read_vocabulary(vocab, arguments.cased) if vocab else None
    if arguments.format == "nvidia" and given is not None and given.special_ids()["pad"] != 0:
        raise ValueError(f"--vocab {vocab}: [PAD] is {given.special_ids()['pad']}; it must be 0 for --format nvidia")
    plan = make_plan(arguments)
    if is_finished(output_dir, plan):
        if (output_dir / BUILD_FOLDER).is_dir():  # of a build that was killed while it cleared up
            remove_build(output_dir / BUILD_FOLDER)
        print(f"{output_dir}: already holds this build, complete; nothing to do")
        return
    with opened_build(output_dir.absolute(), plan, carry_over) as build_dir:
        stages = _Stages(build_dir, executor)
        sizes = [sum(piece.bytes for piece in task) for task in plan.tasks]
        reading = stages.run("reading", "read", run_reading_task, sizes)
        _require_documents(plan, reading)
        removed = _compare(plan, stages, sum(counts["documents"] for counts in reading))
        vocabulary = _vocabulary(given, plan, build_dir)
        groups = make_groups(build_dir, len(plan.tasks), arguments.seed, arguments.validation_fraction)
        groups.write(build_dir)
        writing = stages.run("tokenizing", "write", run_writing_task, [group.bytes for group in groups.tasks])
        masking = _mask(plan, groups, writing, stages) if arguments.format == "nvidia" else []
        cards = {}
        for seq_length, data_dir in arguments.data_dirs(output_dir).items():
            manifest = _finish(plan, groups, vocabulary, writing, masking, build_dir, data_dir, seq_length)
            cards[data_dir] = make_card(plan, manifest, reading, removed, writing)
            write_card(cards[data_dir], data_dir)
            manifest.write(data_dir)
            for leftover in data_dir.glob(".*.partial"):  # of a build that was killed while it wrote here
                leftover.unlink()
        remove_build(build_dir)
    for data_dir, card in cards.items():
        print(summary(card, data_dir, time.monotonic() - began))


class _Stages:
    """Runs the tasks of a stage that have no marker yet, showing how far they are."""

    def __init__(self, build_dir: Path, executor: Executor) -> None:
        self.build_dir, self.executor, self.markers = build_dir, executor, Markers(build_dir)

    def run(self, title: str, stage: str, function: Task, sizes: list[int]) -> Counts:
        """The counts of all tasks of the stage, whose work has these sizes in bytes."""
        open_tasks = [task for task in range(len(sizes)) if self.markers.read(stage, task) is None]
        done = sum(sizes) - sum(sizes[task] for task in open_tasks)
        if done:
            print(f"{title}: going on, {len(sizes) - len(open_tasks)} of {len(sizes)} tasks were done", file=sys.stderr)

        def finished(task: int) -> None:
            progress.advance(sizes[task], (self.markers.read(stage, task) or {}).get("documents", 0))

        with Progress(title, sum(sizes), done) as progress:
            self.executor.run(function, self.build_dir, open_tasks, finished)
        counts = [self.markers.read(stage, task) for task in range(len(sizes))]
        assert all(count is not None for count in counts)
        return [count for count in counts if count is not None]


def _require_documents(plan: Plan, reading: Counts) -> None:
    if any(counts["documents"] for counts in reading):
        return
    dropped: Counter[str] = Counter()
    for counts in reading:
        dropped.update(counts["dropped"])
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "the files are empty"
    raise ValueError(f"{', '.join(plan.arguments.sources)}: no document is left after cleaning: {why}")


def _compare(plan: Plan, stages: _Stages, documents: int) -> dict[str, int]:
    """Find the duplicates among all documents; how many there are of each kind."""
    removed: dict[str, int] = {}
    if plan.arguments.deduplicate == "none":
        return removed
    build_dir = stages.build_dir
    comparisons = Comparisons.of(documents)
    comparisons.write(build_dir)
    bytes_of_digest, bytes_of_band = 16 * documents, 8 * documents
    exact = [bytes_of_digest // share.parts for share in comparisons.exact]
    stages.run("exact duplicates", "exact", run_exact_task, exact)
    removed["exact"] = join_exact(build_dir, len(exact))
    if plan.arguments.deduplicate == "near":
        near = [bytes_of_band * (s.end_band - s.first_band) // s.parts for s in comparisons.near]
        stages.run("near duplicates", "near", run_near_task, near)
        removed["near"] = cluster_near(build_dir, len(near))
    return removed


def _vocabulary(given: Vocabulary | None, plan: Plan, build_dir: Path) -> Vocabulary:
    """The given vocabulary, the one trained before an interruption, or one trained now; kept in the build folder."""
    arguments = plan.arguments
    if given is not None:
        given.save(build_dir)
        return given
    if (build_dir / "tokenizer.json").is_file():  # written after vocab.txt
        return read_vocabulary(build_dir / "vocab.txt", arguments.cased)
    assert arguments.vocab_size is not None
    print(f"vocabulary: training {arguments.vocab_size:,} entries", file=sys.stderr)
    vocabulary = train_vocabulary(_vocabulary_sample(build_dir, len(plan.tasks)), arguments.vocab_size, arguments.cased)
    vocabulary.save(build_dir)
    return vocabulary


def _vocabulary_sample(build_dir: Path, tasks: int) -> Callable[[], Iterator[list[str]]]:
    """Batches of sentences from the beginning of each spool: at most 128 MiB in all, the same share of each."""
    spools, duplicates = [Spool(build_dir / "spool", task) for task in range(tasks)], Duplicates(build_dir)
    share = min(VOCABULARY_SAMPLE_BYTES / max(sum(spool.path.stat().st_size for spool in spools), 1), 1.0)

    def batches() -> Iterator[list[str]]:
        batch: list[str] = []
        for spool in spools:
            size = spool.path.stat().st_size * share
            kept = duplicates.kept(spool.task, len(spool))
            for sentences in spool.read(np.flatnonzero(kept & (spool.starts < size))):
                batch += sentences
                if len(batch) >= _SAMPLE_BATCH_SENTENCES:
                    yield batch
                    batch = []
        yield batch

    return batches


def _native_records(groups: Groups, writing: Counts, seq_length: int) -> list[tuple[Group, list[dict[str, Any]]]]:
    of_groups = zip(groups.tasks, writing, strict=True)
    return [(group, counts["lengths"][str(seq_length)]["records"]) for group, counts in of_groups]


def _mask(plan: Plan, groups: Groups, writing: Counts, stages: _Stages) -> list[tuple[MaskingPart, Any]]:
    """Mask the rows of every length and write them in NVIDIA's format; the parts and the records of each."""
    parts = [
        part
        for seq_length in plan.arguments.seq_lengths
        for part in masking_parts(seq_length, _native_records(groups, writing, seq_length))
    ]
    write_parts(stages.build_dir, parts)
    sizes = [part.rows * part.seq_length * part.dupe_factor(plan.arguments.dupe_factor) for part in parts]
    counts = stages.run("masking", "mask", run_masking_task, sizes)
    return [(part, done["records"]) for part, done in zip(parts, counts, strict=True)]


def _finish(
    plan: Plan,
    groups: Groups,
    vocabulary: Vocabulary,
    writing: Counts,
    masking: list[tuple[MaskingPart, Any]],
    build_dir: Path,
    data_dir: Path,
    seq_length: int,
) -> Manifest:
    """Put the shards of a sequence length in place and describe them; the manifest is not written yet."""
    vocabulary.save(data_dir)
    folder, is_nvidia = build_dir / "shards" / str(seq_length), plan.arguments.format == "nvidia"
    if is_nvidia:
        splits = place_nvidia_shards(folder, data_dir, [of for of in masking if of[0].seq_length == seq_length])
    else:
        splits = place_shards(folder, data_dir, _native_records(groups, writing, seq_length))
    documents = {split: sum(group.documents for group in groups.tasks if group.split == split) for split in splits}
    attributes, name = shard_attributes(plan, vocabulary, seq_length), NVIDIA_FORMAT_NAME if is_nvidia else FORMAT_NAME
    return Manifest(attributes, splits, documents, vocabulary.special_ids(), name)
