import random
import time

import pytest

from data_prep.sources.mediawiki.site_info import CANONICAL_NAMES, SiteInfo
from data_prep.sources.mediawiki.wikitext import article_of_wikitext
from data_prep.sources.mediawiki.wikitext_inline import text_of_latex

SITE = SiteInfo({**CANONICAL_NAMES, "fails": 6, "attēls": 6, "kategoreja": 14})
SUBJECT = "The quick brown fox jumps over the "


def prose(text, title="Foxes"):
    return article_of_wikitext(text, title, SITE).prose


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        # Links
        ("[[bus]]es and [[a|b]] and [[Foo (bar)|]]", "buses and b and Foo"),
        ("[[A_b#C d]], [[:Category:X|label]], [[:Fails:y.png]]", "A b#C d, label, Fails:y.png"),
        ("dog[[Category:X]][[Kategoreja:Y|Z]][[fr:Renard]][[zh-min-nan:X]]", "dog"),
        ("dog [[File:A.jpg|thumb|a [[big]] one [[x|y]]]]and [[Fails:B|thumb|c]][[Bild:C d.PNG|left|e]]cat",
         "dog and cat"),
        ("[[wikt:fox|fox]] and [[2001: A Space Odyssey]]", "fox and 2001: A Space Odyssey"),
        ("[http://a.b/c?d the label], [//a.b too] [http://a.b]or http://a.b/c_(d), ftp://x.y.", "the label, too or."),
        ("[[unclosed and ]] closed ]] here", "unclosed and closed here"),
        # Quotes
        ("'''bold''', ''italic'', '''''both''''' and l'''amour''", "bold, italic, both and l'amour"),
        ("dog's '80s ''The ''n''s''", "dog's '80s The ns"),
        # Tags, entities
        ("dog<ref name=\"a\">{{cite|x}} y</ref><ref name=b/>, cat<ref group='n'>[[z]]</ref>", "dog, cat"),
        ("a <!-- not\n\n here -->b<br/>c <span style='display:none'>hidden</span><small>d</small> <u>e", "a b c d e"),
        ("H<sub>2</sub>O, 5 km<sup>2</sup>, 10<sup>−6</sup>, 19<sup>th</sup>", "H2O, 5 km², 10⁻⁶, 19th"),
        ("a&nbsp;b &amp;nbsp;c &lt;d&gt; &quot;e&quot; &#233;", 'a b c <d> "e" é'),
        ("<nowiki>[[a]] ''b''</nowiki> <code>x</code> <gallery>\nA.jpg|b\n</gallery><timeline>x</timeline>",
         "a ''b'' x"),
        ("<math>x^2 \\in \\mathbb{R}</math>, <math display=block>\\begin{matrix}a\\end{matrix}</math>", "x²∈R,"),
        ("-{zh-hans:a; zh-hant:b}- __NOTOC__ c", "a c"),
        # Templates
        ("{{convert|5|km|mi}}, {{convert|1|ft}}, {{convert|5|mi|km|adj=on}} race", "5 kilometres, 1 foot, 5-mile race"),
        ("{{convert|2381741|km2|sqmi|abbr=on}}, {{cvt|20|C}}, {{convert|3|-|5|lb|kg}}",
         "2,381,741 km², 20 °C, 3–5 pounds"),
        ("{{convert|5|ft|11|in|m}}, {{convert|3|x|4|m|sp=us}}", "5 ft 11 in, 3 by 4 meters"),
        ("{{lang|fr|mot [[x|y]]}}, {{lang-fr|mot}}, {{langx|de|Wort}}", "mot y, French: mot, German: Wort"),
        ("{{nowrap|a {{nbsp}} b}}{{spaced ndash}}c{{ndash}}d{{snd}}e", "a b – c–d – e"),
        ("{{as of|2010}}, {{As of|2010|5|lc=y}}, {{birth date|1950|4|5|df=y}}",
         "As of 2010, as of May 2010, 5 April 1950"),
        ("{{circa|1500}}, {{frac|1|2}}, {{val|5|u=m}}, {{formatnum:1234}}, {{ordinal|22}}",
         "c. 1500, 1/2, 5 m, 1234, 22nd"),
        ("{{ship|HMS|Hood}}, {{USS|Iowa|BB-61}}, {{sclass|Iowa|battleship}}",
         "HMS Hood, USS Iowa, Iowa-class battleship"),
        ("{{PAGENAME}}, {{ill|Name|de|Name}}, {{sic|teh}}, {{IPA|/a/}}, {{US$|5}}", "Foxes, Name, teh, /a/, US$5"),
        ("{{unknown|{{nested|{{{1|}}}}}|x=[[a|b]]}}dog {{#if:x|y|z}}", "dog"),
        ("{{nowrap|{{{1}}} x}} {{unclosed", "x unclosed"),
        # What removed templates leave
        ("Fox ({{lang-fr|}}; {{IPAc-en|f}}; born 1950), ({{x}}), (pronounced {{IPA-xx|y}})", "Fox (born 1950),"),
        ("Fox ({{lang-fr|mot}}; {{IPAc-en|f}}, {{audio|x}}; b. 1950)", "Fox (French: mot; b. 1950)"),
    ],
)  # fmt: skip
def test_markup_is_removed_and_visible_text_kept(wikitext, expected):
    end = " and so the story ends."
    assert prose(SUBJECT + wikitext + end) == SUBJECT + expected + end


def test_lines_of_a_paragraph_are_joined_and_headings_removed():
    text = (
        f"== One ==\n{SUBJECT}dog.\nIt goes on here.\n\n{SUBJECT}cat.\n=== Two ===\nShort line.\n{SUBJECT}cow."
        f"<br><br>{SUBJECT}hen."
    )
    expected = [f"{SUBJECT}dog. It goes on here.", f"{SUBJECT}cat.", f"Short line. {SUBJECT}cow.", f"{SUBJECT}hen."]
    assert prose(text).split("\n") == expected


@pytest.mark.parametrize(
    "heading", ["References", " See also", "External links ", "Einzelnachweise", "Références", "Ссылки", "脚注"]
)
def test_sections_without_prose_are_removed_with_their_sub_sections(heading):
    text = f"{SUBJECT}dog.\n=={heading}==\n{SUBJECT}cat.\n=== More ===\n{SUBJECT}cow.\n== History ==\n{SUBJECT}hen."
    assert prose(text).split("\n") == [SUBJECT + "dog.", SUBJECT + "hen."]


def test_only_sentences_of_lists_are_kept():
    entries = [
        "* [[Red fox]], the most common one of them all",
        f"* {SUBJECT}dog.",
        "*# lower case items are fragments of something and no sentences.",
        f"** ''{SUBJECT}cat''!",
        "* Smith, John (1999). A History of Foxes in the North. London: Penguin.",
        "* Title of a Book About Many Things. Oxford, 1999. ISBN 0-19-000000-0.",
        "; Term",
        f": {SUBJECT}cow.",
        ":''For the animal that lives in the north, see [[Arctic fox]].''",
        "----",
        "| a row of a table that was never opened.",
    ]
    assert prose("\n".join(entries)).split("\n") == [SUBJECT + "dog.", SUBJECT + "cat!", SUBJECT + "cow."]


def test_clause_that_introduces_a_list_is_removed():
    assert prose(f"{SUBJECT}dog. It has these parts:\n* one\n* two") == SUBJECT + "dog."


def test_nested_and_unclosed_tables_are_removed():
    cell = "A cell that is long enough to be a sentence."
    table = f'{{| class="wikitable"\n! head\n|-\n| cell\n{{|\n| inner\n|}}\n| {cell}\n|}}\n'
    unclosed = "{|\n|-\n| A cell that is long enough to be a sentence.\n\n"
    html_table = "<table><tr><td>A cell that is long enough to be a sentence.</td></tr></table>"
    text = (
        f"{SUBJECT}dog.\n{table}{SUBJECT}cat.\n{html_table}\n:{table}{unclosed}{SUBJECT}cow.\n"
        f"{{|\n| x\n== Heading ==\n{SUBJECT}hen."
    )
    assert prose(text).split("\n") == [SUBJECT + word for word in ("dog.", "cat.", "cow.", "hen.")]


def test_article_with_a_table_as_infobox_is_not_a_list():
    rows = "".join(f"|-\n| Number {number} || of many rows that there are\n" for number in range(60))
    text = f'{{| class="infobox" align=right\n{rows}|}}\n{SUBJECT}dog and goes away.'
    assert not article_of_wikitext(text, "Fox", SITE).is_list
    assert article_of_wikitext(text.replace('class="infobox" align=right', ""), "Fox", SITE).is_list


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (r"\alpha \le \frac{a}{b}", "α≤a/b"),
        ("x_{n+1} = x^{10}", "x_n+1 = x¹⁰"),
        (r"\mathrm{d}x \, dy", "dx dy"),
        (r"\begin{cases} a \\ b \end{cases}", ""),
        ("x" * 300, ""),
    ],
)
def test_formulas_become_plain_characters(formula, text):
    assert text_of_latex(formula) == text


def test_time_is_linear_in_the_length_of_unclosed_markup():
    """At this length, quadratic time would be many seconds, and linear time is less than a tenth of one."""
    many = 20_000
    cases = [
        "{{" * many, "[[" * many, "{|\n" * many, "<ref>" * many, "<ref name=" * many, "'" * (2 << 20), "<!--" * many,
        "<math>" * many, "[http://a " * many, "{{nowrap|" * many, "[[File:a.jpg|" * many, "<" * many, "&amp;" * many,
        "( " * many, ", " * many, "-{" * many, "__" * many, "=" * many, "* " * many, "<br " * many, "\n|}" * many,
        ": " * many, "{{nowrap|" * 20_000 + "x" * 50_000 + "}}" * 20_000, "[[" * 20_000 + "x" * 50_000 + "]]" * 20_000,
        "{" * many + "}" * many, "{|\n" * 20_000 + "|}\n" * 20_000, "{{convert|1|" * many, "{{}}" * many,
    ]  # fmt: skip
    for case in cases:
        began = time.process_time()
        prose(SUBJECT + case + " (so it goes.")
        prose("* " + SUBJECT + case)
        assert time.process_time() - began < 1, case[:20]


def test_random_markup_never_raises_and_is_removed():
    draw = random.Random(11)
    marks = [
        "{{", "}}", "[[", "]]", "{|", "|}", "\n", "|", "'''", "''", "<ref>", "</ref>", "<!--", "-->", "=", "*", "File:",
        "x.jpg", "http://x.y", "[http://a b", "]", "The ", "one two three four five six seven. ", "convert", "lang",
        "5", "km", "<br>", "<sup>2</sup>", "&nbsp;", "thumb|", "(", ")", ";", ",", "{{{", "}}}", "-{", "}-", "__TOC__",
        "|-", "<table>", "</table>", " ",
    ]  # fmt: skip
    for _ in range(500):
        text = "".join(draw.choices(marks, k=draw.randint(1, 80)))
        result = prose(text)
        assert result == prose(text)
        assert not [mark for mark in ("[[", "]]", "<ref", "&nbsp;", "{|", "http:") if mark in result], text
