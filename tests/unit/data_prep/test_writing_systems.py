import random

import pytest
from made_up_corpus import read_source
from scripts.measure.measure_scripts import SCRIPTS, paragraph, with_changed_characters
from ten_languages import SENTENCES
from tokenizers import Tokenizer
from transformers import BertTokenizer

from bert_pld.data.tokenizer import bert_tokenizer, keeps_accents
from data_prep.dedup.minhash import signatures
from data_prep.rows.vocabulary import SPECIAL_TOKENS, advice, read_vocabulary, train_vocabulary
from data_prep.sources.mediawiki.article_prose import is_sentence, prose_of_article, why_no_prose
from data_prep.sources.mediawiki.site_info import read_site_info
from data_prep.sources.mediawiki.wikitext import article_of_wikitext
from data_prep.text.clean import clean_text, drop_reason
from data_prep.text.scripts import count_words
from data_prep.text.sentences import split_sentences

HEAD = list(SPECIAL_TOKENS.values())
SITE = read_site_info(b"<mediawiki><siteinfo></siteinfo><page>", "made-up")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("six words between blanks, as before", 6),
        ("数学是研究数量结构变化的学科", 7),
        ("東京 2020 年", 2),
        ("ประเทศไทยมีเมืองหลวงชื่อกรุงเทพ", 6),
        ("대한민국의 수도는 서울이다.", 3),
    ],
)
def test_words_are_counted_by_script(line, words):
    assert count_words(line) == words


@pytest.mark.parametrize(
    "paragraph",
    [
        "上海是一个城市。",
        "그는 학교에 갔다.",
        "वह घर गया।",
        "הוא הלך הביתה.",
        "ذهب إلى البيت.",
        "彼はDNAを調べた。",
        "第3回",
        "ใช่",
    ],
)
def test_short_paragraph_of_a_script_without_capitals_is_no_heading(tmp_path, paragraph):
    (tmp_path / "a.txt").write_text(f"{paragraph}\nCHAPTER IV.\nLA 1.ª PARTE\n* * *\n{paragraph}", encoding="utf-8")
    (book,) = read_source(f"books={tmp_path}")
    assert book.text == f"{paragraph}\n{paragraph}"
    assert book.left_out.to_json() == {"heading or ornament": {"parts": 3, "characters": 10 + 10 + 3}}


def test_lines_of_a_chinese_article_are_kept_and_the_others_counted():
    text = "数学\n\n数学是利用符号语言研究数量、结构以及空间的学科。\n歷史.\n* 列表\n包括以下：\n"
    prose, left_out = prose_of_article(text, "数学")
    assert prose == "数学是利用符号语言研究数量、结构以及空间的学科。"
    assert left_out.to_json() == {
        "clause that introduces a list": {"parts": 1, "characters": 5},
        "list entry or table row that is no sentence": {"parts": 1, "characters": 3},
        "paragraph of at most 6 words": {"parts": 1, "characters": 3},
        "title line": {"parts": 1, "characters": 2},
    }


@pytest.mark.parametrize("stop", ["。", "！", "؟", "۔", "।", "॥", "။", "។", "።", "།"])
def test_sentence_may_end_with_the_stop_of_any_script(stop):
    assert is_sentence(f"上海{stop}")
    assert not is_sentence("上海")


def test_long_list_entry_in_thai_is_a_sentence_without_a_stop():
    assert is_sentence("ประเทศไทยมีเมืองหลวงชื่อกรุงเทพมหานครซึ่งเป็นเมืองที่ใหญ่ที่สุดในประเทศ")
    assert not is_sentence("กรุงเทพมหานคร")
    assert why_no_prose("กรุงเทพมหานคร") == "paragraph of at most 6 words"


@pytest.mark.parametrize(
    "sentences",
    [
        ["ភ្នំពេញជារាជធានី។", "តើនេះជាអ្វី?"], ["བོད་ཡིག་འདི།", "ལྷ་ས་ནི།"], ["ეს არის სახლი.", "ის დიდია."],
        ["هل هذه جملة؟", "نعم."], ["यह एक वाक्य है।", "दूसरा।"], ["یہ جملہ ہے۔", "ہاں۔"],
    ],
)  # fmt: skip
def test_sentences_end_at_the_stops_of_their_script(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


def test_zero_width_space_separates_words_only_where_the_script_has_no_blanks():
    assert (
        clean_text("ភាសា\u200bខ្មែរ\u200b។ ไทย\u200bใหม่\u200b2020 a\u200bb 漢\u200b字")
        == "ភាសា ខ្មែរ។ ไทย ใหม่ 2020 ab 漢字"
    )


def test_short_chinese_document_is_long_enough():
    assert drop_reason("数学是利用符号语言研究数量、结构以及空间的学科。") is None
    assert drop_reason("A short English text.") == drop_reason("数学。") == "shorter than 64 characters"


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("甲-{H|zh-hans:计算机;zh-hant:電腦}-乙", "甲乙"), ("-{T|zh:标题}-甲", "甲"),
        ("-{zh-hans:计算机; zh-hant:電腦;}-", "计算机"), ("-{A|HTML=>zh-cn:超文本;}-", "超文本"),
        ("-{zh-cn:外-{zh-tw:內;zh-cn:内}-面;zh-tw:x}-", "外內面"), ("-{H|zh-hans:甲-{zh:乙}-丙}-丁", "丁"),
        ("-{R|zh-cn:a}-", "zh-cn:a"), ("-{zh-hans;zh-hant|通用}-", "通用"), ("-{[[乙|-{zh-cn:甲}-]]}-", "甲"),
        ("-{{{nowrap|甲}}}-", "甲"), ("甲-{{nowrap|乙}}-", "甲-乙-"), ("甲-{乙", "甲-{乙"), ("甲}-乙", "甲}-乙"),
        ("-{" * 30 + "甲" + "}-" * 30, "甲"), ("x-{y}-z", "xyz"),
    ],
)  # fmt: skip
def test_variant_markup_gives_the_visible_text(markup, shown):
    rest = "是利用符号语言研究数量、结构以及空间的学科。"
    assert article_of_wikitext(markup + rest, "", SITE).prose == shown + rest


@pytest.mark.parametrize("language", SCRIPTS)
def test_near_duplicates_are_found_and_others_are_not(language):
    draw = random.Random(5)
    texts = ["\n".join(paragraph(language, draw) for _ in range(8)) for _ in range(12)]
    signed = signatures(texts + [with_changed_characters(language, text, draw, 0.01) for text in texts])
    alike = (signed[:, None] == signed[None]).mean(axis=(2, 3))
    copies = [alike[number, number + 12] for number in range(12)]
    others = [alike[a, b] for a in range(12) for b in range(a)]
    assert min(copies) > 0.6
    assert max(others) < 0.3


def test_short_documents_from_one_template_are_different_in_chinese_too():
    draw = random.Random(6)
    han = SCRIPTS["zh"][0][:200]
    frame, province = "".join(draw.choices(han, k=200)), "".join(draw.choices(han, k=4))
    first, second = (province + "".join(draw.choices(han, k=4)) + frame for _ in range(2))
    signed = signatures([first, second, first])
    assert (signed[0] == signed[1]).mean() < 0.05
    assert (signed[0] == signed[2]).all()


def test_alphabet_covers_the_text_and_a_size_too_small_for_it_is_an_error():
    draw = random.Random(7)
    texts = [[paragraph("ja", draw) for _ in range(100)]]
    with pytest.raises(
        ValueError, match=r"--vocab_size 256: 99.9% of this text's characters take \d+ entries; use a larger size"
    ):
        train_vocabulary(lambda: texts, 256, False, True)
    vocabulary = train_vocabulary(lambda: texts, 370, False, True)
    ids = vocabulary.tokenizer().encode("".join(texts[0])).ids
    assert ids.count(1) < 0.002 * len(ids)


def test_characters_of_a_single_sentence_are_entries_where_scripts_without_capitals_fit():
    """A character that the alphabet lacks makes its whole word [UNK]."""
    texts = [[" ".join(SENTENCES[language] * 4) for language in ("zh", "ko", "th", "de")] + ["까치 뵙다 쾌청"]]
    # All characters take 331 entries, of which a smaller vocabulary has no more than 99.9 % of the text need.
    for size, unknown in ((600, 2), (690, 0)):
        vocabulary = train_vocabulary(lambda: texts, size, False, True)
        tokens = vocabulary.tokenizer().encode(" ".join(texts[0]), add_special_tokens=False).tokens
        assert tokens.count("[UNK]") == unknown


@pytest.mark.parametrize(("cased", "entries"), [(False, "12072b5a9c381774"), (True, "a5570836372f7399")])
def test_vocabulary_of_a_script_with_capitals_is_that_of_earlier_releases(cased, entries):
    """Here 0.1 % of the characters are rare letters."""
    draw = random.Random(3)
    rare = "ăąćçđęğıłñőœřşšßťūžøåêôαβγδеижк漢字かな"
    words = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 7))) for _ in range(300)]

    def word():
        drawn = draw.choice(words)
        return drawn.capitalize() + draw.choice(rare) if draw.random() < 0.004 else drawn

    texts = [[" ".join(word() for _ in range(12)) + "." for _ in range(400)]]
    assert train_vocabulary(lambda: texts, 256, cased).hash.startswith(entries)


def test_size_that_the_error_names_is_possible():
    texts = [["the same few words again with some other letters: " + "".join(map(chr, range(0x4E00, 0x4EF0)))] * 9]
    with pytest.raises(ValueError, match="the text gives only") as caught:
        train_vocabulary(lambda: texts, 5000, False)
    possible = int(str(caught.value).split("use --vocab_size ")[1].split(",")[0])
    assert len(train_vocabulary(lambda: texts, possible, False).entries) == possible


def test_kept_accents_are_those_of_hugging_face_and_come_back_from_the_files(tmp_path):
    texts = [["में और हिन्दी भाषा", "が ぱら", "أحمد ؤ", "한국 서울", "Café"] * 5]
    vocabulary = train_vocabulary(lambda: texts, 66, False, keep_accents=True)
    assert {"में", "भाषा"} <= set(vocabulary.entries)  # vowel signs, which begin no word, take part in merges
    vocabulary.save(tmp_path)
    assert vocabulary.load(tmp_path) == vocabulary == read_vocabulary(tmp_path / "vocab.txt", False)
    assert read_vocabulary(tmp_path / "vocab.txt", False, "strip").keep_accents is False
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = {entry: number for number, entry in enumerate(vocabulary.entries)}
    hugging_face = BertTokenizer(vocab=ids, do_lower_case=True, strip_accents=False)
    for text in texts[0]:
        assert tokenizer.encode(text).ids == hugging_face(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text).ids) == text.lower()


def test_vocabulary_shows_whether_it_was_made_with_accents():
    assert keeps_accents([*HEAD, "में", "##ें", "a"])
    assert not keeps_accents([*HEAD, "म", "##ा", "é", "ü", "ё", "a\u0301"])


def test_clause_of_thai_of_more_than_100_characters_is_not_one_unknown_word():
    entries = [*HEAD, "ก", "##ก", "า", "##า"]
    ids = bert_tokenizer(entries, cased=False).encode("กา" * 120, add_special_tokens=False).ids
    assert len(ids) == 240
    assert entries.index("[UNK]") not in ids
    latin = bert_tokenizer([*HEAD, "a", "##a"], cased=False)
    assert latin.encode("a" * 120, add_special_tokens=False).ids == [1]


def test_cased_vocabulary_without_capitals_is_advice(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*HEAD, "में", "##क"]), encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path / "vocab.txt", cased=True)
    assert "leave out --cased" in advice(vocabulary)
    (tmp_path / "vocab.txt").write_text("\n".join([*HEAD, "में", "The"]), encoding="utf-8")
    assert advice(read_vocabulary(tmp_path / "vocab.txt", cased=True)) is None
