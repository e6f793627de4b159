"""A task of tagging words, from text to token ids and from predictions to figures.

A word's tag is predicted at its first token. Sentences are tokenized as text, with blanks between the words, so that
tokenizers that mark the space see words as in pretraining. A sentence that is too long becomes several rows between
words, so no word is left out of the figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_pld.files import file_sha256
from bert_pld.finetuning.batches import Encoded, TaskData
from bert_pld.tagging.conll import Sentence, are_spans, as_iobes, find_splits, read_conll


@dataclasses.dataclass(frozen=True)
class TaggedRows(Encoded):
    """Sentences as token ids. Its labels are those of the words that have a token."""

    words: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    """`[labels]` the word of each label, counted over all sentences."""
    sentences: list[Sentence] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class TaggingTask:
    """The tags of a data set, with its figures."""

    name: str
    tags: tuple[str, ...]
    """All tags of all splits, sorted: the classes."""
    is_regression: bool = False
    tags_words: bool = True
    learning_rate: float = 5e-5

    @property
    def num_outputs(self) -> int:
        """Number of the classifier's outputs."""
        return len(self.tags)

    def score(self, predictions: NDArray[np.float64], split: TaggedRows) -> dict[str, float]:
        """Return seqeval's F1, precision and recall of spans, or the accuracy of tags that mark every word."""
        expected = [sentence.tags for sentence in split.sentences]
        predicted = self.predicted_tags(predictions, split)
        if not are_spans(set(self.tags)):
            pairs = [pair for both in zip(expected, predicted, strict=True) for pair in zip(*both, strict=True)]
            return {"accuracy": 100.0 * sum(one == other for one, other in pairs) / len(pairs)}
        from seqeval.metrics import f1_score, precision_score, recall_score

        expected, predicted = (list(map(as_iobes, tags)) for tags in (expected, predicted))
        figures = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
        return {name: 100.0 * float(of(expected, predicted, zero_division=0)) for name, of in figures.items()}

    def selection(self, scores: dict[str, float]) -> float:
        """Return F1, or the accuracy."""
        return scores["f1"] if "f1" in scores else scores["accuracy"]

    def predicted_tags(self, predictions: NDArray[np.float64], split: TaggedRows) -> list[list[str]]:
        """Return a tag for each word.

        A word of which the tokenizer leaves no token gets O, the tag outside of all spans, or the first tag if the data
        set has no O.
        """
        outside = self.tags.index("O") if "O" in self.tags else 0
        classes = np.full(sum(len(sentence.words) for sentence in split.sentences), outside)
        classes[split.words] = predictions.astype(np.int64)
        ends = np.cumsum([len(sentence.words) for sentence in split.sentences])[:-1]
        return [[self.tags[number] for number in part] for part in np.split(classes, ends)]

    def write_predictions(self, path: Path, predictions: NDArray[np.float64], split: TaggedRows) -> None:
        """Write word, tag and predicted tag in CoNLL's format."""
        tags = self.predicted_tags(predictions, split)
        lines = [
            "".join(f"{word}\t{tag}\t{guess}\n" for word, tag, guess in zip(one.words, one.tags, found, strict=True))
            for one, found in zip(split.sentences, tags, strict=True)
        ]
        path.write_text("\n".join(lines), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class TaggingSource:
    """The splits of a folder in CoNLL's format."""

    data_dir: Path
    tokenizer: Any
    max_seq_length: int
    max_train_rows: int | None = None

    def read(self, task: TaggingTask) -> TaskData:
        """Return the splits as token ids; a ValueError names a file and a line that is not in the format."""
        files = find_splits(self.data_dir)
        found = {name: read_conll(path) for name, path in files.items()}
        found["train"] = found["train"][: self.max_train_rows]
        rows = {name: encode(self.tokenizer, split, task.tags, self.max_seq_length) for name, split in found.items()}
        test: Mapping[str, Encoded] = {files["test"].name: rows["test"]} if "test" in rows else {}
        return TaskData(task, rows["train"], {"dev": rows["dev"]}, dict(test), left_out={})

    def identity(self, task: TaggingTask) -> str:
        """Return the SHA-256 of each file."""
        return " ".join(file_sha256(path) for path in find_splits(self.data_dir).values())


def read_task(data_dir: Path) -> TaggingTask:
    """Return the task of a folder, named after it; errors are those of `find_splits` and `read_conll`."""
    splits = [read_conll(path) for path in find_splits(data_dir).values()]
    tags = {tag for sentences in splits for sentence in sentences for tag in sentence.tags}
    return TaggingTask(data_dir.resolve().name, tuple(sorted(tags)))


def encode(tokenizer: Any, sentences: list[Sentence], tags: tuple[str, ...], max_seq_length: int) -> TaggedRows:
    """Tokenize sentences with a fast tokenizer; no row has more than `max_seq_length` tokens with special ones."""
    numbers = {tag: number for number, tag in enumerate(tags)}
    room = max_seq_length - tokenizer.num_special_tokens_to_add()
    alone = [_tokens_of_words(tokenizer, sentence.words, special=False)[1] for sentence in sentences]
    ids: list[list[int]] = []
    types: list[list[int]] = []
    places: list[NDArray[np.int64]] = []
    labels: list[int] = []
    words: list[int] = []
    first_word = 0
    for sentence, starts in zip(sentences, alone, strict=True):
        for begin, end in _parts(starts, room):
            row, found = _tokens_of_words(tokenizer, sentence.words[begin:end], special=True)
            row, kept = row[:max_seq_length], [place is not None and place < max_seq_length for place in found[:-1]]
            ids.append(row)
            types.append([0] * len(row))
            places.append(np.array([place for place, is_kept in zip(found, kept, strict=False) if is_kept], np.int64))
            labels += [numbers[sentence.tags[begin + word]] for word, is_kept in enumerate(kept) if is_kept]
            words += [first_word + begin + word for word, is_kept in enumerate(kept) if is_kept]
        first_word += len(sentence.words)
    labels_of_words, of_words = np.array(labels, np.float64), np.array(words, np.int64)
    return TaggedRows(ids, types, labels_of_words, 0, places, of_words, sentences)


def _tokens_of_words(tokenizer: Any, words: list[str], special: bool) -> tuple[list[int], list[int | None]]:
    """Return the token ids of these words, and a list: the place of each word's first token, then the number of tokens.

    The place is None for a word without a token. `special` adds the special tokens.
    """
    found = tokenizer(" ".join(words), add_special_tokens=special, return_offsets_mapping=True, truncation=False)
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    begins = ends - [len(word) for word in words]
    places: list[int | None] = [None] * len(words)
    for place, (start, end) in enumerate(found["offset_mapping"]):
        if end <= start:  # A special token.
            continue
        word = int(np.searchsorted(ends, start, side="right"))  # A token may begin with the space before its word.
        while word < len(words) and begins[word] < end:
            if places[word] is None:
                places[word] = place
            word += 1
    return found["input_ids"], [*places, len(found["input_ids"])]


def _parts(starts: list[int | None], room: int) -> list[tuple[int, int]]:
    """Return ranges of words of at most `room` tokens each; a longer word is a range of its own.

    `starts` has the place of each word's first token, and the number of tokens.
    """
    *places, total = starts
    known = [total if place is None else place for place in places]
    for word in range(len(known) - 2, -1, -1):  # A word without a token begins where the next one does.
        known[word] = known[word] if places[word] is not None else known[word + 1]
    bounds = [*known, total]
    parts, begin = [], 0
    for end in range(1, len(known) + 1):
        if bounds[end] - bounds[begin] > room and end - 1 > begin:  # type: ignore[operator]
            parts.append((begin, end - 1))
            begin = end - 1
    return [*parts, (begin, len(known))]
