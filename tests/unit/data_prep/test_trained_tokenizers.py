"""Byte-level BPE and Unigram, trained on ten languages."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import ten_languages
from ten_languages import SENTENCES, made_documents
from tokenizers import Tokenizer, models

from data_prep.rows.trained_tokenizer import train_tokenizer
from data_prep.rows.unigram import train_pieces

TEXTS = [text for language in SENTENCES for text in made_documents(language, 12)]
TRAIN = (
    "from ten_languages import *; from data_prep.rows.trained_tokenizer import train_tokenizer;"
    "t = [text for language in SENTENCES for text in made_documents(language, 12)];"
    "print(*(train_tokenizer(lambda: [t], 900, a).tokenizer_hash for a in ('bpe', 'unigram')))"
)


def train(algorithm, size, texts=TEXTS):
    return train_tokenizer(lambda: [texts], size, algorithm)


def test_a_trained_tokenizer_is_the_same_in_every_process():
    running = []
    for seed in ("1", "2"):
        folders = [str(Path(ten_languages.__file__).parent), os.environ.get("PYTHONPATH", ""), os.getcwd()]
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "RAYON_NUM_THREADS": seed,
            "PYTHONPATH": os.pathsep.join(folders),
        }
        running.append(subprocess.Popen([sys.executable, "-c", TRAIN], env=environment, stdout=subprocess.PIPE))
    hashes = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(hashes) == 1


@pytest.mark.parametrize(("algorithm", "special"), [("bpe", 4), ("unigram", 5)])
def test_it_has_the_requested_size_keeps_the_text_and_knows_all_of_it(algorithm, special):
    trained = train(algorithm, 1200)
    assert len(trained.entries) == 1200
    assert sorted(trained.special_ids().values()) == list(range(special))
    assert (trained.casing, trained.keeps_accents, trained.template.segment_b_type) == ("cased", True, 1)
    tokenizer = trained.tokenizer()
    for text in TEXTS[::7]:
        encoding = tokenizer.encode(text)
        assert encoding.ids[0] == trained.special_ids()["cls"]
        kept = text if algorithm == "bpe" else text.replace("\n", " ")
        assert tokenizer.decode(encoding.ids).strip() == kept
        assert trained.special_ids().get("unk") not in encoding.ids


def test_bpe_encodes_any_text_and_unigram_has_unk_for_new_characters():
    text = "Ωμέγα 🦉"
    bpe, unigram = (train(algorithm, 1000).tokenizer() for algorithm in ("bpe", "unigram"))
    assert bpe.decode(bpe.encode(text).ids) == text
    assert unigram.encode(text).ids.count(unigram.token_to_id("[UNK]")) == 2


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_word_after_a_mask_is_the_word_of_the_text(algorithm):
    tokenizer = train(algorithm, 1200).tokenizer()
    ids = tokenizer.encode("Der [MASK] Markt, Der [MASK].", add_special_tokens=False).ids
    texts = ("Der", "Der Markt, Der", "Der.")
    first, middle, last = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    mask = tokenizer.token_to_id("[MASK]")
    assert ids == [*first, mask, *middle[len(first) :], mask, *last[len(first) :]]


def test_letters_stay_with_their_marks_and_apart_from_punctuation():
    for algorithm in ("bpe", "unigram"):
        tokenizer = train(algorithm, 1200).tokenizer()
        splits = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("है। (Zug)")]
        pieces = [tokenizer.decoder.decode([word]).strip() for word in splits]
        assert [piece for piece in pieces if piece] == ["है", "।", "(", "Zug", ")"]


def test_too_large_or_too_small_a_size_is_an_error_with_the_size_that_is_possible():
    with pytest.raises(ValueError, match=r"^--vocab_size 259: bytes and special tokens take 260 entries"):
        train("bpe", 259)
    with pytest.raises(ValueError, match=r"^--vocab_size 300: 99.95% of this text's characters take \d{3} entries"):
        train("unigram", 300)
    for algorithm in ("bpe", "unigram"):
        with pytest.raises(ValueError, match=r"^--vocab_size 90000: the text gives only \d+ entries; use") as caught:
            train(algorithm, 90000)
        possible = int(str(caught.value).split("only ")[1].split(" ")[0])
        assert len(train(algorithm, possible).entries) == possible


def test_unigram_finds_the_words_that_a_text_is_made_of():
    """With room for five pieces beside the characters, and scores that are the logarithms of shares."""
    words = Counter({"▁kalomi": 50, "▁kalo": 40, "▁mika": 30, "▁lomika": 20, "▁ka": 60})
    pieces = dict(train_pieces(words, set("▁kalomi"), 12))
    assert pieces.keys() == {*words, *"▁kalomi"}
    assert list(pieces) == sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    # Of all pieces in the best segmentations, these make up exactly their shares.
    model = Tokenizer(models.Unigram([*pieces.items(), ("?", -99.0)], unk_id=len(pieces)))
    counts = Counter()
    for word, count in words.items():
        counts.update(dict.fromkeys(model.encode(word).tokens, count))
    shares = {piece: counts[piece] / counts.total() for piece in counts}
    assert {piece: math.exp(pieces[piece]) for piece in counts} == pytest.approx(shares, rel=1e-4)
