"""A build from beginning to end: plan, read, vocabulary, groups, write, manifest."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bert_pld.data.shards import Manifest
from data_prep.data_card import make_card, summary, write_card
from data_prep.local_executor import LocalExecutor, Task
from data_prep.plan import BuildArguments, Markers, Plan, is_finished, make_plan, opened_build, remove_build
from data_prep.progress import Progress
from data_prep.splitting import Groups, make_groups
from data_prep.spool import text_path
from data_prep.tasks import run_reading_task, run_writing_task, shard_attributes
from data_prep.vocabulary import Vocabulary, read_vocabulary, train_vocabulary
from data_prep.write_shards import place_shards

VOCABULARY_SAMPLE_BYTES = 128 << 20
_SAMPLE_BATCH_BYTES = 1 << 20


def build(arguments: BuildArguments, vocab: Path | None, output_dir: Path, workers: int) -> None:
    """Make a data directory, or go on with one that an interrupted build of the same arguments left.

    Args:
        arguments: what decides the bytes.
        vocab: the vocabulary file that `arguments.vocab` is the digest of; None trains one.
        output_dir: a new or empty directory, or one with this very build in it.
        workers: processes at a time; no influence on the result.

    Raises:
        ValueError: a user's mistake: sources, vocabulary or directory.
        OSError: the directory cannot be written, or the disk is full.
    """
    began = time.monotonic()
    given = read_vocabulary(vocab, arguments.cased) if vocab else None
    plan = make_plan(arguments)
    if is_finished(output_dir, plan):
        print(f"{output_dir}: already holds this build, complete; nothing to do")
        return
    with opened_build(output_dir, plan) as build_dir, LocalExecutor(workers) as executor:
        markers = Markers(build_dir)
        sizes = [sum(piece.bytes for piece in task) for task in plan.tasks]
        reading = _run("reading", "read", run_reading_task, build_dir, markers, sizes, executor)
        _require_documents(plan, reading)
        vocabulary = _vocabulary(given, plan, build_dir, output_dir)
        groups = make_groups(build_dir / "spool", len(plan.tasks), arguments.seed, arguments.validation_fraction)
        groups.write(build_dir)
        sizes = [group.bytes for group in groups.tasks]
        writing = _run("tokenizing", "write", run_writing_task, build_dir, markers, sizes, executor)
        manifest = _finish(plan, groups, vocabulary, writing, build_dir, output_dir)
        card = make_card(plan, manifest, reading, writing)
        write_card(card, output_dir)
        manifest.write(output_dir)
        remove_build(build_dir)
    print(summary(card, output_dir, time.monotonic() - began))


def _run(
    title: str, stage: str, function: Task, build_dir: Path, markers: Markers, sizes: list[int], executor: LocalExecutor
) -> list[dict[str, Any]]:
    """Run the tasks of a stage that have no marker yet; the counts of all of them."""
    open_tasks = [task for task in range(len(sizes)) if markers.read(stage, task) is None]
    done = sum(sizes) - sum(sizes[task] for task in open_tasks)
    if done:
        print(f"{title}: going on, {len(sizes) - len(open_tasks)} of {len(sizes)} tasks were done", file=sys.stderr)
    with Progress(title, sum(sizes), done) as progress:
        executor.run(function, build_dir, open_tasks, lambda task: progress.advance(sizes[task]))
    counts = [markers.read(stage, task) for task in range(len(sizes))]
    assert all(count is not None for count in counts)
    return [count for count in counts if count is not None]


def _require_documents(plan: Plan, reading: list[dict[str, Any]]) -> None:
    if any(counts["documents"] for counts in reading):
        return
    dropped: Counter[str] = Counter()
    for counts in reading:
        dropped.update(counts["dropped"])
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "the files are empty"
    raise ValueError(f"{', '.join(plan.arguments.sources)}: no document is left after cleaning: {why}")


def _vocabulary(given: Vocabulary | None, plan: Plan, build_dir: Path, output_dir: Path) -> Vocabulary:
    """The given vocabulary, the one trained before an interruption, or one trained now; saved in `output_dir`."""
    arguments = plan.arguments
    kept = output_dir / "vocab.txt"
    if given is not None:
        given.save(output_dir)
        return given
    if kept.is_file() and (output_dir / "tokenizer.json").is_file():
        return read_vocabulary(kept, arguments.cased)
    assert arguments.vocab_size is not None
    print(f"vocabulary: training {arguments.vocab_size:,} entries", file=sys.stderr)
    texts = _vocabulary_sample(build_dir / "spool", len(plan.tasks))
    vocabulary = train_vocabulary(texts, arguments.vocab_size, arguments.cased)
    vocabulary.save(output_dir)
    return vocabulary


def _vocabulary_sample(spool_dir: Path, tasks: int) -> Callable[[], Iterator[list[str]]]:
    """Batches of sentences from the beginning of each spool: at most 128 MiB in all, the same share of each."""
    paths = [text_path(spool_dir, task) for task in range(tasks)]
    share = min(VOCABULARY_SAMPLE_BYTES / max(sum(path.stat().st_size for path in paths), 1), 1.0)

    def batches() -> Iterator[list[str]]:
        for path in paths:
            left = int(path.stat().st_size * share)
            with open(path, "rb") as file:
                while left > 0 and (lines := file.readlines(min(left, _SAMPLE_BATCH_BYTES))):
                    left -= sum(map(len, lines))
                    yield [line.decode("utf-8").rstrip("\n") for line in lines]

    return batches


def _finish(
    plan: Plan,
    groups: Groups,
    vocabulary: Vocabulary,
    writing: list[dict[str, Any]],
    build_dir: Path,
    output_dir: Path,
) -> Manifest:
    """Put the shards in place and describe them; the manifest is not written yet."""
    records = [(group, counts["records"]) for group, counts in zip(groups.tasks, writing, strict=True)]
    splits = place_shards(build_dir / "shards", output_dir, records)
    documents = {split: sum(group.documents for group in groups.tasks if group.split == split) for split in splits}
    return Manifest(shard_attributes(plan, vocabulary), splits, documents, vocabulary.special_ids())
