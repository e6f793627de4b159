"""Training of byte-level BPE and Unigram tokenizers on the spooled text; WordPiece is in `vocabulary.py`.

Both keep capitals and accents. A piece is a part of a run of letters with their marks, of digits, or of other
characters, with the space before it. BPE has all 256 bytes and therefore no [UNK]. Unigram has all of the text's
characters except the rarest, as SentencePiece does.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_pld.data.fast_tokenizer import FastTokenizer
from bert_pld.data.tokenizer import SPECIAL_TOKENS, bert_template
from bert_pld.data.word_starts import BLANK
from data_prep.rows.unigram import train_pieces
from data_prep.rows.vocabulary import LONGEST_TRAINED_WORD, SMALLEST_VOCABULARY

ALGORITHMS = ("wordpiece", "bpe", "unigram")
UNIGRAM_COVERAGE = (0.9995, 0.9999)
"""Shares of the text's characters that a Unigram vocabulary covers: the least, and the usual one. The usual one holds
where its characters take at most half of the entries."""
_NOT_LONG = f"{{1,{LONGEST_TRAINED_WORD}}}"
"""In place of `+` in a pattern of words: words of which none is longer than the trainers can take."""
_NEVER = -1000.0
"""Score of a special token, so that the model never finds one in a text."""

Texts = Callable[[], Iterable[list[str]]]


def train_tokenizer(texts: Texts, size: int, algorithm: str) -> FastTokenizer:
    """Train a tokenizer of `size` entries, special tokens included; the same texts give the same one.

    `texts` returns batches of documents and is called more than once. A size too small for the characters, and a text
    that does not give as many entries, are a ValueError with the size that is possible.
    """
    tokenizer = _train_bpe(texts, size) if algorithm == "bpe" else _train_unigram(texts, size)
    found = tokenizer.get_vocab_size()
    if found < size:
        use = f"use --vocab_size {found}, or add" if found >= SMALLEST_VOCABULARY else "add"
        raise ValueError(f"--vocab_size {size}: the text gives only {found} entries; {use} more text")
    tokens = {role: token for role, token in SPECIAL_TOKENS.items() if tokenizer.token_to_id(token) is not None}
    return FastTokenizer(tokenizer.to_str(), tokens, f"--algorithm {algorithm}")


def _train_bpe(texts: Texts, size: int) -> Tokenizer:
    special = [token for role, token in SPECIAL_TOKENS.items() if role != "unk"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if size < len(special) + len(alphabet):
        raise ValueError(f"--vocab_size {size}: bytes and special tokens take {len(special) + len(alphabet)} entries")
    tokenizer = _with_bytes(models.BPE(), _words(_NOT_LONG))
    # The trainer numbers special tokens first, and breaks ties between merges by numbers: with the alphabet among them,
    # nothing depends on a hash table.
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, show_progress=False, special_tokens=[*special, *alphabet], initial_alphabet=[]
    )
    tokenizer.train_from_iterator(texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return _completed(
        _with_bytes(models.BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])),
        [processors.ByteLevel(trim_offsets=True)],
    )


def _words(some: str = "+") -> str:
    """Return a pattern of GPT-2's words, but with a letter's marks in its word: Indic scripts have many.

    `some` is the quantifier that a run of characters gets.
    """
    letters, digits = rf"[\p{{L}}\p{{M}}\u200c\u200d]{some}", rf"\p{{N}}{some}"
    others = rf"[^\s\p{{L}}\p{{M}}\p{{N}}]{some}"
    return rf"'(?:[sdmt]|ll|ve|re)| ?{letters}| ?{digits}| ?{others}|\s+(?!\S)|\s+"


def _words_after_blank(some: str = "+") -> str:
    """Return the same pattern for texts in which a mark stands for the blank."""
    letters, digits = rf"[\p{{L}}\p{{M}}\u200c\u200d]{some}", rf"\p{{N}}{some}"
    others = rf"[^\p{{L}}\p{{M}}\p{{N}}{BLANK}]{some}"
    return rf"{BLANK}?{letters}|{BLANK}?{digits}|{BLANK}?{others}|{BLANK}"


def _with_bytes(model: models.Model, pattern: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(pattern or _words()), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train_unigram(texts: Texts, size: int) -> Tokenizer:
    special = list(SPECIAL_TOKENS.values())
    kept = _characters(texts, size)
    room = size - len(special) - len(kept)
    if room < 0:
        raise ValueError(
            f"--vocab_size {size}: {UNIGRAM_COVERAGE[0]:.2%} of this text's characters take {size - room} entries;"
            " use a larger size"
        )
    pieces = train_pieces(_count_words(texts), kept, size - len(special))
    vocabulary = [*((token, _NEVER) for token in special), *pieces]
    unigram = models.Unigram(vocabulary, unk_id=special.index(SPECIAL_TOKENS["unk"]), byte_fallback=False)
    return _completed(_with_blanks(unigram), [])


def _with_blanks(model: models.Model, pattern: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " ")])
    # A blank before the first word alone: after a [MASK], a word begins where the text has a blank.
    words = pre_tokenizers.Split(Regex(pattern or _words_after_blank()), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(BLANK, prepend_scheme="first"), words])
    tokenizer.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme="first")
    return tokenizer


def _count_words(texts: Texts) -> Counter[str]:
    """Return how often each word occurs: what stands between two blanks, with the mark of the first."""
    tokenizer = _with_blanks(models.Unigram(), _words_after_blank(_NOT_LONG))
    counts: Counter[str] = Counter()
    for batch in texts():
        for text in batch:
            normal = tokenizer.normalizer.normalize_str(text)
            counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    return counts


def _characters(texts: Texts, size: int) -> set[str]:
    """Return the most frequent characters of the normalized text, enough to cover it, and the mark of a blank."""
    normalizer = normalizers.NFC()
    counts: Counter[str] = Counter()
    for batch in texts():
        for text in batch:
            counts.update(normalizer.normalize_str(text))
    ranked = sorted(
        ((character, count) for character, count in counts.items() if not character.isspace()),
        key=lambda item: (-item[1], item[0]),
    )
    covered = list(itertools.accumulate(count for _, count in ranked))
    least, usual = (bisect_left(covered, share * covered[-1]) + 1 if covered else 0 for share in UNIGRAM_COVERAGE)
    needed = usual if usual <= size // 2 else least
    return {BLANK, *(character for character, _ in ranked[:needed])}


def _completed(tokenizer: Tokenizer, before_template: list[Any]) -> Tokenizer:
    """Add the special tokens and BERT's template."""
    special = [token for token in SPECIAL_TOKENS.values() if tokenizer.token_to_id(token) is not None]
    mask = SPECIAL_TOKENS["mask"]
    # A [MASK] takes the blank before it with it, as the words do.
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == mask, normalized=False) for token in special])
    template = bert_template({token: tokenizer.token_to_id(token) for token in special})
    tokenizer.post_processor = processors.Sequence([*before_template, template]) if before_template else template
    return tokenizer
