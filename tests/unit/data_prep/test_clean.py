import dataclasses

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.recipe import Drop, Normalise, ReadPieces, SplitSentences, WriteSpool, left_out_by, run_recipe
from data_prep.sources import KINDS
from data_prep.sources.kind import Document as SourceDocument
from data_prep.sources.kind import Piece
from data_prep.spool import Spool
from data_prep.text.clean import NO_WORDS, NOT_PROSE, TOO_SHORT, clean_text, drop_reason


class Given(PipelineStep):
    """Yields texts as documents."""

    def __init__(self, texts):
        super().__init__()
        self.texts = texts

    def run(self, data, rank=0, world_size=1):
        yield from (Document(text, "") for text in self.texts)


PROSE = "This is a perfectly good sentence, and it is long enough to be kept by the cleaner."


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("cafe\u0301", "café"),
        ("a\u00a0\u2003 b\t\tc", "a b c"),
        ("a\u200b\u00adb\ufeff \x00c", "ab c"),
        ("  one \r\n\r\n \n two\u2028three\u0085four\x0c", "one\ntwo\nthree\nfour"),
        ("a \u200b b", "a b"),
        ("नि\u200dज", "नि\u200dज"),
        ("bad \ufffd mark \ud800", "bad mark"),
        ("", ""),
    ],
)
def test_text_is_normalized(raw, clean):
    assert clean_text(raw) == clean
    assert clean_text(clean) == clean


def test_dropped_documents_are_counted_by_reason():
    numbers = "12 34 | 56 78 | 90 12 || 34.5 % 67.8 % 90.1 % 23 45 67 89 10 11 12 13"
    texts = [PROSE, "Too short.", "", numbers, PROSE + " B"]
    step = Drop("unfit", drop_reason)
    assert [document.text for document in step(Document(text, "") for text in texts)] == [PROSE, PROSE + " B"]
    assert run_recipe([Given(texts), Normalise(), Drop("unfit", drop_reason)]) == {TOO_SHORT: 2, NOT_PROSE: 1}


@pytest.mark.parametrize("text", ["━" * 70, "😀" * 64, "☙ ❧\n" * 40], ids=["line", "emoji", "ornaments"])
def test_document_without_a_letter_or_digit_is_dropped_and_counted(tmp_path, text):
    given, writer = Given([text, PROSE, text]), WriteSpool(tmp_path, 0, signed=True)
    recipe = [given, Normalise(), Drop("unfit", drop_reason), SplitSentences("en"), writer]
    assert run_recipe(recipe) == {NO_WORDS: 2}
    assert (writer.counts["documents"], writer.counts["sentences"]) == (1, 1)
    left_out = left_out_by(recipe).to_json()
    characters = 2 * len(text.replace(" ", "").replace("\n", ""))
    assert left_out == {f"document: {NO_WORDS}": {"parts": 2, "characters": characters}}
    assert list(Spool(tmp_path, 0).read(np.arange(1))) == [[PROSE]]


def test_documents_dropped_by_a_source_are_counted_by_reason(monkeypatch):
    redirect = SourceDocument("", "1", dropped="redirect")
    documents = [redirect, SourceDocument(PROSE, "2"), redirect]
    kind = dataclasses.replace(KINDS["text"], read_piece=lambda piece: iter(documents))
    monkeypatch.setitem(KINDS, "text", kind)
    reader = ReadPieces([Piece("text", "nowhere", 0, 1)])
    assert [document.text for document in reader()] == [PROSE]
    assert run_recipe([ReadPieces([Piece("text", "nowhere", 0, 1)]), Normalise()]) == {"redirect": 2}


def test_letters_of_other_scripts_are_prose():
    assert drop_reason("Это обыкновенное предложение, достаточно длинное, чтобы его не выбросили.") is None
