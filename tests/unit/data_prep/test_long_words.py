"""Words of a hundred thousand characters: what each algorithm makes of them, and in what time."""

import random
import time

import numpy as np
import pytest
from ten_languages import SENTENCES, made_documents

from data_prep.rows.tokens import TokenizedDocuments, encode_documents, encode_whole_documents, split_long_segments
from data_prep.rows.trained_tokenizer import train_tokenizer
from data_prep.rows.vocabulary import train_vocabulary

TEXTS = [text for language in ("de", "th") for text in made_documents(language, 8)]


def train(algorithm, texts):
    if algorithm == "wordpiece":
        return train_vocabulary(lambda: [texts], 400, cased=False)
    return train_tokenizer(lambda: [texts], 450, algorithm)


def letters(count):
    return "".join(random.Random(1).choices("enirsatdhu", k=count))


def encoded(tokenizer, documents):
    if tokenizer.splits_at_sentences:
        return encode_documents(tokenizer.tokenizer(), documents, tokenizer.special_ids()["unk"])
    nothing = np.zeros(len(tokenizer.entries), bool)
    return encode_whole_documents(tokenizer.tokenizer(), documents, nothing, tokenizer.special_ids().get("unk"))


def seconds(work, *arguments):
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
def test_time_of_training_and_tokenizing_grows_no_faster_than_the_word(algorithm):
    tokenizer = train(algorithm, TEXTS)
    for work in (lambda word: train(algorithm, [*TEXTS, word]), lambda word: encoded(tokenizer, [[word]])):
        for _ in range(3):  # another process may disturb a measurement
            small, large = seconds(work, letters(25_000)), seconds(work, letters(100_000))
            if large < 0.1 + 6 * small:  # the trainers alone take 14 times as long
                break
        else:
            pytest.fail(f"{small:.2f} s for 25,000 characters, {large:.2f} s for 100,000")


def test_wordpiece_makes_one_unk_of_a_long_word_and_counts_it():
    vocabulary = train_vocabulary(lambda: [made_documents("de", 8)], 190, cased=False)
    documents = encoded(vocabulary, [["der Zug " + "n" * 100_000, "n" * 101 + " " + "n" * 100, "der Ω Zug " * 20]])
    unknown = vocabulary.special_ids()["unk"]
    assert documents.tokens.tolist().count(unknown) == 2 + 20
    assert documents.long_unknown == 2
    assert documents.segment_starts[1] == len(vocabulary.tokenizer().encode("der Zug", add_special_tokens=False)) + 1


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_other_algorithms_keep_a_long_word(algorithm):
    tokenizer = train(algorithm, TEXTS)
    documents = encoded(tokenizer, [["Der Zug " + letters(100_000)]])
    assert tokenizer.tokenizer().decode(documents.tokens.tolist()) == "Der Zug " + letters(100_000)
    assert documents.long_unknown == 0


def test_unigram_counts_a_long_run_of_characters_that_it_does_not_have():
    tokenizer = train("unigram", TEXTS)
    assert encoded(tokenizer, [["Der Zug " + "Ω" * 101 + " " + "Ω" * 100 + " war"]]).long_unknown == 1


def test_thai_without_spaces_is_cut_and_not_unknown():
    vocabulary = train_vocabulary(lambda: [TEXTS], 400, cased=False, keep_accents=True)
    documents = encoded(vocabulary, [["".join(SENTENCES["th"]).replace(" ", "") * 100]])
    assert len(documents.tokens) > 2_000
    assert documents.long_unknown == 0


def test_a_segment_of_a_million_tokens_is_cut_in_a_moment():
    """At word starts, which are every third token here."""
    tokens = np.tile(np.array([1, 2, 2], np.uint32), 333_334)
    documents = TokenizedDocuments(tokens, np.array([0, len(tokens)]), np.array([0, 1]))
    began = time.process_time()
    cut = split_long_segments(documents, 62, np.array([False, False, True]))
    assert time.process_time() - began < 3  # a search of the whole segment for each cut takes 30 s
    assert len(cut.segment_starts) - 1 == -(-len(tokens) // 62)
    assert np.diff(cut.segment_starts).max() == 62
    assert (tokens[cut.segment_starts[:29]] == 1).all()  # after them, a shorter part would make the rest too long
