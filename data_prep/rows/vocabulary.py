"""The WordPiece vocabulary, trained on the spooled text or read from a given `vocab.txt`, and its tokenizer."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from bert_pld.data.shards import vocabulary_hash
from bert_pld.data.tokenizer import (
    CONTINUATION,
    SPECIAL_TOKENS,
    bert_normalizer,
    bert_tokenizer,
    count_capitals,
    read_entries,
)
from bert_pld.files import write_atomically

LARGEST_ALPHABET = 1000
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 256, 2**20
_CAPITALS_OF_A_CASED_VOCABULARY = 0.01


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The entries in id order, and the casing."""

    entries: tuple[str, ...]
    cased: bool

    @property
    def hash(self) -> str:
        """SHA-256 of the entries, as stored in shards."""
        return vocabulary_hash(list(self.entries))

    @property
    def casing(self) -> str:
        """`cased` or `uncased`."""
        return "cased" if self.cased else "uncased"

    def special_ids(self) -> dict[str, int]:
        """Return the ids of pad, unk, cls, sep and mask."""
        return {name: self.entries.index(token) for name, token in SPECIAL_TOKENS.items()}

    def tokenizer(self) -> Tokenizer:
        """Return BERT's tokenizer: text cleaned, lower-cased and stripped of accents unless cased, then WordPiece."""
        return bert_tokenizer(self.entries, self.cased)

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and `vocab.txt`."""
        write_atomically(directory / "vocab.txt", "".join(f"{entry}\n" for entry in self.entries))
        write_atomically(directory / "tokenizer.json", self.tokenizer().to_str(pretty=True) + "\n")


def read_vocabulary(path: Path, cased: bool) -> Vocabulary:
    """Read a `vocab.txt`, one entry per line in id order.

    It is a ValueError if the file is not UTF-8, an entry is repeated or empty, a special token is missing, or the
    casing does not match.
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
    if cased and not capitals:
        raise ValueError(f"--vocab {path}: no entry has a capital letter, so it is uncased; leave out --cased")
    return Vocabulary(tuple(entries), cased)


def train_vocabulary(texts: Callable[[], Iterable[list[str]]], size: int, cased: bool) -> Vocabulary:
    """Train a WordPiece vocabulary; the same texts give the same entries in the same order.

    The trainer numbers characters in the order of a hash table, and breaks ties between merges by these numbers. Both
    become deterministic because it gets the sorted alphabet as special tokens, which it numbers first.

    `texts` returns batches of sentences and is called twice. `size` includes the special tokens (ids 0 to 4); a text
    that does not give as many entries is a ValueError.
    """
    tokenizer = Tokenizer(WordPiece({}, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = bert_normalizer(cased)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    head = [*SPECIAL_TOKENS.values(), *_alphabet(texts(), tokenizer, min(LARGEST_ALPHABET, size // 8))]
    trainer = WordPieceTrainer(
        vocab_size=size, min_frequency=2, show_progress=False, special_tokens=head, limit_alphabet=0,
        continuing_subword_prefix=CONTINUATION,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(), trainer)
    entries = [entry for entry, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    if len(entries) != size:
        raise ValueError(
            f"--vocab_size {size}: the text gives only {len(entries)} entries; use a smaller size or add more text"
        )
    return Vocabulary(tuple(entries), cased)


def _alphabet(texts: Iterable[list[str]], tokenizer: Tokenizer, limit: int) -> list[str]:
    """Return the most frequent characters, sorted: those that begin words, then, with `##`, those inside words."""
    words: Counter[str] = Counter()
    for batch in texts:
        words.update(tokenizer.normalizer.normalize_str("\n".join(batch)).split())
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for word, count in words.items():
        for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(word):
            first[part[0]] += count
            for character in part[1:]:
                later[character] += count
    ranked = sorted((first + later).items(), key=lambda item: (-item[1], item[0]))
    kept = {character for character, _ in ranked[:limit]}
    return sorted(kept & first.keys()) + [CONTINUATION + character for character in sorted(kept & later.keys())]
