"""The WordPiece vocabulary, trained on the spooled text or read from a given `vocab.txt`, and its tokenizer."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from bert_pld.data.fast_tokenizer import FastTokenizer, RowTemplate
from bert_pld.data.shards import vocabulary_hash
from bert_pld.data.tokenizer import (
    CONTINUATION,
    SIGNIFICANT_SHARE,
    SPECIAL_TOKENS,
    bert_normalizer,
    bert_tokenizer,
    changed_without_accents,
    count_capitals,
    keeps_accents,
    read_entries,
)
from bert_pld.files import TOKENIZER, VOCABULARY, write_atomically

USUAL_ALPHABET = 1000
"""Characters of a trained vocabulary, at most an eighth of its size; more where the text needs them."""
ALPHABET_COVERAGE = 0.999
"""Share of the text's characters that the characters of a trained vocabulary cover at least."""
UNKNOWN_WORDS = 0.0005
"""For text in scripts without capitals: largest share of the words that hold a character without an entry, as far as
the characters' entries fit into half of the vocabulary."""
MOST_UNKNOWN = 0.01
"""Share of [UNK] above which a build and `verify` warn."""
ACCENTS = ("auto", "keep", "strip")
LONGEST_TRAINED_WORD = 1000
"""Characters; training cuts longer words, because the trainers' time grows with the square of a word's length."""
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 256, 2**20
_CAPITALS_OF_A_CASED_VOCABULARY = 0.01
_LONG_WORD = re.compile(rf"\S{{{LONGEST_TRAINED_WORD}}}")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The entries in id order, the casing, and whether accents are kept in lower case."""

    entries: tuple[str, ...]
    cased: bool
    keep_accents: bool = False
    """Has no effect on a cased vocabulary, which always keeps them."""

    @property
    def hash(self) -> str:
        """SHA-256 of the entries, as stored in shards."""
        return vocabulary_hash(list(self.entries))

    @property
    def casing(self) -> str:
        """`cased` or `uncased`."""
        return "cased" if self.cased else "uncased"

    tokenizer_hash = ""
    """Empty, and not stored: entries, casing and accents determine BERT's tokenizer."""
    splits_at_sentences = True
    """The ids of a document are those of its sentences: words end at blanks and punctuation marks."""

    @property
    def keeps_accents(self) -> bool:
        """Whether accents stay, in a cased vocabulary or in lower case."""
        return self.cased or self.keep_accents

    @property
    def template(self) -> RowTemplate:
        """BERT's template of rows."""
        ids = self.special_ids()
        return RowTemplate(ids["pad"], ids["cls"], (ids["sep"],), ids["sep"])

    @property
    def is_continuation(self) -> NDArray[np.bool_]:
        """Bool `[entries]`: whether the entry continues a word."""
        return np.array([entry.startswith(CONTINUATION) for entry in self.entries], np.bool_)

    def special_ids(self) -> dict[str, int]:
        """Return the ids of pad, unk, cls, sep and mask."""
        return {name: self.entries.index(token) for name, token in SPECIAL_TOKENS.items()}

    def tokenizer(self) -> Tokenizer:
        """Return BERT's tokenizer: text cleaned, lower-cased and stripped of accents unless cased, then WordPiece."""
        return bert_tokenizer(self.entries, self.cased, self.keep_accents)

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and `vocab.txt`."""
        write_atomically(directory / VOCABULARY, "".join(f"{entry}\n" for entry in self.entries))
        write_atomically(directory / TOKENIZER, self.tokenizer().to_str(pretty=True) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Vocabulary:
        """Read what `save` wrote."""
        normalizer = json.loads((directory / TOKENIZER).read_text(encoding="utf-8"))["normalizer"]
        cased = not normalizer["lowercase"]
        return cls(tuple(read_entries(directory / VOCABULARY)), cased, normalizer["strip_accents"] is False)


BuildTokenizer = Vocabulary | FastTokenizer
"""The tokenizer of a build: a WordPiece vocabulary with BERT's tokenizer, or any other."""


def load_tokenizer(directory: Path) -> BuildTokenizer:
    """Read the tokenizer that a build saved."""
    return Vocabulary.load(directory) if (directory / VOCABULARY).is_file() else FastTokenizer.load(directory)


def read_vocabulary(path: Path, cased: bool, accents: str = "auto") -> Vocabulary:
    """Read a `vocab.txt`, one entry per line in id order; `accents` is one of `ACCENTS`.

    It is a ValueError if the file is not UTF-8, an entry is repeated or empty, a special token is missing, or the
    vocabulary has capitals although it is not `cased`.
    """
    try:
        entries = read_entries(path)
    except ValueError as error:
        raise ValueError(f"--vocab {error}") from None
    for line, count in Counter(entries).items():
        if count > 1 or not line:
            what = f"entry {line!r} occurs {count} times" if line else "an empty line"
            raise ValueError(
                f"--vocab {path}: {what}, line {entries.index(line) + 1}; every entry must have exactly one id"
            )
    missing = [token for token in SPECIAL_TOKENS.values() if token not in entries]
    if missing:
        wanted = " ".join(SPECIAL_TOKENS.values())
        raise ValueError(
            f"--vocab {path}: {', '.join(missing)} missing among {len(entries)} entries (required: {wanted})"
        )
    capitals = count_capitals(entries)
    if not cased and capitals > _CAPITALS_OF_A_CASED_VOCABULARY * len(entries):
        raise ValueError(f"--vocab {path}: {capitals} entries have capital letters, so it is cased; add --cased")
    keep = accents == "keep" or (accents == "auto" and keeps_accents(entries))
    return Vocabulary(tuple(entries), cased, keep and not cased)


def advice(vocabulary: Vocabulary) -> str | None:
    """Return a warning about a cased vocabulary without capitals, or None.

    It is no error, because a vocabulary of a script without capitals has none.
    """
    if not vocabulary.cased or count_capitals(vocabulary.entries):
        return None
    return (
        "no entry has a capital letter; if the script has capitals, the vocabulary is uncased, and every word with a"
        " capital becomes [UNK]: leave out --cased"
    )


def unknown_warning(share: float) -> str | None:
    """Return a warning about the share of [UNK] among the tokens, or None if it is small."""
    if share <= MOST_UNKNOWN:
        return None
    return f"{share:.1%} of the tokens are [UNK]: the vocabulary does not fit the text; train one with --vocab_size"


def train_vocabulary(
    texts: Callable[[], Iterable[list[str]]], size: int, cased: bool, keep_accents: bool = False
) -> Vocabulary:
    """Train a WordPiece vocabulary; the same texts give the same entries in the same order.

    The trainer numbers characters in the order of a hash table, and breaks ties between merges by these numbers. Both
    become deterministic because it gets the sorted alphabet as special tokens, which it numbers first.

    `texts` returns batches of sentences and is called twice. `size` includes the special tokens (ids 0 to 4). A size
    too small for 99.9 % of the text's characters, and a text that does not give as many entries, are a ValueError with
    the size that is possible.
    """
    normalizer = bert_normalizer(cased, keep_accents)
    alphabet = _Alphabet.of(texts(), normalizer)
    entries = _train(texts, size, alphabet, normalizer)
    if len(entries) != size:
        # A smaller size can have fewer characters, and so fewer entries again.
        possible = len(entries)
        while (found := len(_train(texts, possible, alphabet, normalizer))) != possible:
            possible = found
        use = f"use --vocab_size {possible}, or add" if possible >= SMALLEST_VOCABULARY else "use --vocab FILE, or add"
        raise ValueError(f"--vocab_size {size}: the text gives only {len(entries)} entries; {use} more text")
    return Vocabulary(tuple(entries), cased, keep_accents and not cased)


def _train(
    texts: Callable[[], Iterable[list[str]]], size: int, alphabet: _Alphabet, normalizer: BertNormalizer
) -> list[str]:
    head = [*SPECIAL_TOKENS.values(), *alphabet.entries(size)]
    if len(head) > size:
        raise ValueError(
            f"--vocab_size {size}: {ALPHABET_COVERAGE:.1%} of this text's characters take {len(head)} entries;"
            " use a larger size"
        )
    tokenizer = Tokenizer(WordPiece({}, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=size, min_frequency=2, show_progress=False, special_tokens=head, limit_alphabet=0,
        continuing_subword_prefix=CONTINUATION,
    )  # fmt: skip
    tokenizer.train_from_iterator(([_cut_long_words(text) for text in batch] for batch in texts()), trainer)
    return [entry for entry, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def _cut_long_words(text: str) -> str:
    return text if len(text) <= LONGEST_TRAINED_WORD else _LONG_WORD.sub(r"\g<0> ", text)


@dataclasses.dataclass(frozen=True)
class _Alphabet:
    """How often each character begins a word, and occurs later in one."""

    first: Counter[str]
    later: Counter[str]

    @classmethod
    def of(cls, texts: Iterable[list[str]], normalizer: BertNormalizer) -> _Alphabet:
        words: Counter[str] = Counter()
        for batch in texts:
            words.update(normalizer.normalize_str("\n".join(batch)).split())
        first: Counter[str] = Counter()
        later: Counter[str] = Counter()
        splitter = BertPreTokenizer()
        for word, count in words.items():
            for part, _ in splitter.pre_tokenize_str(word):
                first[part[0]] += count
                for character in part[1:]:
                    later[character] += count
        return cls(first, later)

    def entries(self, size: int) -> list[str]:
        """Return the most frequent characters, sorted: those that begin words, then, with `##`, those inside words.

        A word with another character is [UNK] as a whole. Where scripts without capitals are more than 1 % of the text,
        more characters are taken than the coverage asks for, as long as they are at most half of the entries.
        """
        ranked = sorted((self.first + self.later).items(), key=lambda item: (-item[1], item[0]))
        if not ranked:
            return []
        covered = list(itertools.accumulate(count for _, count in ranked))
        needed = bisect.bisect_left(covered, ALPHABET_COVERAGE * covered[-1]) + 1
        needed = max(needed, min(USUAL_ALPHABET, size // 8))
        if sum(count for character, count in ranked if _is_without_case(character)) > SIGNIFICANT_SHARE * covered[-1]:
            enough = bisect.bisect_left(covered, covered[-1] - UNKNOWN_WORDS * self.first.total()) + 1
            larger = range(needed + 1, enough + 1)
            needed += bisect.bisect_right(larger, size // 2, key=lambda count: len(self._entries_of(ranked[:count])))
        return self._entries_of(ranked[:needed])

    def _entries_of(self, ranked: list[tuple[str, int]]) -> list[str]:
        kept = {character for character, _ in ranked}
        # The trainer leaves a character out of its merges if it is no entry without `##`. Vowel signs begin no word.
        only_inside = {mark for mark in kept - self.first.keys() if _is_without_case(mark)}
        characters = self.first.total() + self.later.total()
        if sum(self.later[mark] for mark in only_inside) <= (1 - ALPHABET_COVERAGE) * characters:
            only_inside = set()  # a few foreign words in the text
        begin, inside = sorted(kept & self.first.keys() | only_inside), sorted(kept & self.later.keys())
        return begin + [CONTINUATION + character for character in inside]


def _is_without_case(character: str) -> bool:
    """Return whether a character is a letter or vowel sign of a script without capitals."""
    return unicodedata.category(character) in ("Lo", "Mc") or changed_without_accents().match(character) is not None
