"""No step of cleaning takes time that grows faster than the text, whatever the text is."""

import functools
import time

import numpy as np
import pytest

from data_prep.dedup.minhash import signatures
from data_prep.sources import books
from data_prep.sources.mediawiki.article_prose import prose_of_article
from data_prep.sources.mediawiki.site_info import CANONICAL_NAMES, SiteInfo
from data_prep.sources.mediawiki.wikitext import article_of_wikitext
from data_prep.sources.mediawiki.wikitext_inline import text_of_link
from data_prep.sources.text import join_lines
from data_prep.spool import Spool, write_spool
from data_prep.text.clean import clean_text
from data_prep.text.language import language_of
from data_prep.text.sentences import split_sentences

SMALL = 8_000
"""Characters of the smaller text; the larger one has four times as many."""
CHINESE = "北京是一座历史悠久的城市。那里有很多人！"
REPEATED = {
    "one line of Chinese": CHINESE, "Chinese without stops": "北京是一座历史悠久的城市",
    "one line of English": "It is so. ",
    "full stops": ".", "full stops apart": ". ", "ellipses": "... ", "stops after spaces": " .", "apostrophes": "'",
    "apostrophes apart": "' ", "brackets": "[", "closing brackets": "]", "parentheses": "(",
    "empty parentheses": "( ; ",
    "braces": "{", "templates": "{{a|", "named arguments": "{{lang|a=", "closed templates": "{{a|b}}", "tables": "{|\n",
    "links": "[[", "nested links": "[[a|", "links in templates": "{{nowrap|[[", "references": "<ref", "tags": "<a ",
    "references and text": "<ref name=x>a\n", "variants": "-{", "entities": "&amp;", "ampersands": "&", "quotes": '"',
    "curly quotes": "“a", "unclosed corner quotes": "'「", "no blanks": "abcdefghij", "blanks": " ", "lines": "\n",
    "wide blanks": "\u3000\n", "comments": "<!--", "commas": ",", "semicolons": "; ", "equals": "=", "hidden": "<br> ",
    "exclamations": "!a", "web addresses": "[http://a", "combining marks": "\u0301\u0323", "list marks": "*",
    "hatnotes": ":''a", "editorial brackets": "[Footnote ", "emphasis": "_a", "initials": "A. ", "formulas": "<math>",
}  # fmt: skip
AROUND = {
    "a link of blanks": ("a", " ", "b|"), "an argument of blanks": ("{{lang|", " ", "é" * 40 + "=x}}"),
    "an italic line of blanks": (":''a''", " ", "x"), "blanks before a parenthesis": ("(a ", "; ", "x )"),
    "commas before a word": ("", ",", "x"), "blanks before a word": ("a b c d e f g , ", " ", "x"),
    "a reference of digits": ("&#", "9", ";"), "a variant of blanks": ("-{", " ", "x}-"),
    "stops of Khmer before one": ("", "។", " ។"), "an accent of marks": ("e", "\u0301\u0323", ""),
}  # fmt: skip
TEXTS = {name: ("", repeated, "") for name, repeated in REPEATED.items()} | AROUND


def book(text):
    return books.without_gutenberg_header(text), join_lines(text), books.is_heading(text)


site = SiteInfo(dict(CANONICAL_NAMES))
STEPS = {
    "wikitext": lambda text: article_of_wikitext(text, "Title", site),
    "extracted article": lambda text: prose_of_article(text, "Title"),
    "link": lambda text: text_of_link(text, site),
    "book": book,
    "characters": clean_text,
    "language": language_of,
    "English sentences": split_sentences,
    "German sentences": functools.partial(split_sentences, language="de"),
    "Chinese sentences": functools.partial(split_sentences, language="zh"),
    "signature": lambda text: signatures([text]),
}


@pytest.mark.parametrize("step", STEPS)
def test_time_grows_no_faster_than_the_text(step):
    def seconds(name, characters):
        before, repeated, after = TEXTS[name]
        text = before + (repeated * characters)[:characters] + after
        began = time.process_time()
        STEPS[step](text)
        return time.process_time() - began

    slow = {}
    for name in TEXTS:
        for _ in range(3):  # Another process, or Python's collector, may disturb a measurement.
            small, large = seconds(name, SMALL), seconds(name, 4 * SMALL)
            if large < 0.05 + 8 * small:  # A square would give 16 times the time.
                break
        else:
            slow[name] = round(small, 3), round(large, 3)
    assert slow == {}


def test_a_document_of_chinese_on_one_line_is_split_in_a_second():
    text = CHINESE * 15_000
    began = time.process_time()
    sentences = split_sentences(text, "zh")
    assert time.process_time() - began < 8  # About 0.5 on a fast machine, where the library alone takes 20.
    assert "".join(sentences) == text
    assert len(sentences) == 2 * len(text) // len(CHINESE)


def test_reading_a_document_takes_no_longer_in_a_large_spool(tmp_path):
    chosen, spools = np.arange(2_000), []
    for number, documents in enumerate((2_000, 200_000)):
        write_spool(tmp_path, number, (["A small document."] for _ in range(documents)), signed=False)
        spools.append(Spool(tmp_path, number))
        assert len(list(spools[-1].read(chosen[:1]))) == 1  # loads the index

    def seconds(spool):
        began = time.process_time()
        assert list(spool.read(chosen)) == [["A small document."]] * len(chosen)
        return time.process_time() - began

    small, large = (min(seconds(spool) for _ in range(3)) for spool in spools)
    assert large < 0.05 + 3 * small


def test_text_split_window_by_window_has_the_same_sentences():
    text = "".join(f"第{number}章（见“附录。{number}”）写完了。" for number in range(3000))
    whole = [
        sentence
        for start in range(3000)
        for sentence in split_sentences(f"第{start}章（见“附录。{start}”）写完了。", "zh")
    ]
    assert split_sentences(text, "zh") == whole


def test_numbers_of_thousands_of_digits_are_replaced():
    text = f"The letter &#65; and &#{'9' * 6000}; are in this sentence of many words."
    assert prose_of_article(text, "Title")[0] == "The letter A and \ufffd are in this sentence of many words."


def test_long_runs_of_combining_marks_are_interrupted():
    text = clean_text("e" + "\u0301" * 100)
    assert text == "é" + "\u0301" * 29 + ("\u034f" + "\u0301" * 30) * 2 + "\u034f" + "\u0301" * 10
