import functools
import json
import subprocess
import sys
import time

import pytest
from repository import REPOSITORY
from scripts.measure import compare_segmenters

from data_prep.text.sentences import LANGUAGES, check_language, split_sentences

# Made up. ‖ marks the end of a sentence, ¦ a place where both readings are right; see the script's docstring.
GOLD = {
    "abbreviations": [
        "Dr. Ellen F. Marsh met Lt. Comdr. Paul Reed and Ms. Olga Brandt at St. Mark's.‖ They left at 4 p.m.",
        "The firm of Hale & Co. was sold in Oct. 1911.‖ Its heir, A. B. Hale Jr., moved to the U.S. Virgin Islands.",
        "He holds a Ph.D. in botany.‖ She was born c. 1850 near Mt. Arden, e.g. in a mill.‖ See vol. 2, pp. 3–9.",
        "The boat sailed to Port William I.‖ It never came back from the U.S.‖ The crew did.",
        "She smiled at me.‖ Robert said no.‖ Harriet fell ill.‖ George wept.",
        "We drove past the Node.js office and the shop Dev.Q on the way.‖ Nobody was in.",
    ],
    "quotations": [
        '"Where is it?" asked Tom.‖ "I left it here.‖ Somebody took it!" he shouted.‖ Nobody spoke.',
        "“You are late, Mr. Finch.‖ Sit down.‖ Have you eaten?”‖ He shook his head.",
        "'I will not go,' she said; 'and you can't make me.‖ Ask the Franks' boy.'‖ They asked him.",
        '"What a day!" I said.‖ "Is it over?" Mary asked.‖ "Not yet!"‖ And John laughed.',
        "She wrote: 'Bring the horse, the dog, and the lamp.'‖ Then she sealed it.",
    ],
    "ellipses": [
        "I wonder ... perhaps not.‖ He might have gone…‖ But nobody saw him.",
        "The door. . . .‖ It opened slowly . . . and shut again.",
        "She stopped....‖ What was that noise?",
    ],
    "numbers": [
        "It measures 3.5 m by 12.75 metres.‖ In 1999 it cost $4.20.‖ Room No. 7 is on p. 12.",
        "The total was 1,024.‖ 512 of them were sold.‖ At 10.30 a.m. the doors closed.",
    ],
    "lists and headings": [
        "3. Turn the handle to the left.‖ Wait for the bell.",
        "IV. The army shall march at dawn.‖ No one stays behind.",
        "Early life.‖ Anna Keller was born in a village near the coast.",
        "OWL, n.¦ A bird that keeps late hours.",
    ],
}


@pytest.fixture
def gold(tmp_path):
    items = [
        {"id": f"{kind} {n}", "register": kind, "text": text}
        for kind, texts in GOLD.items()
        for n, text in enumerate(texts)
    ]
    path = tmp_path / "made_up.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


@pytest.mark.parametrize("text", [text for texts in GOLD.values() for text in texts])
def test_english_sentences_are_split_as_a_reader_would(text):
    joined, cut = ([sentence.strip() for sentence in text.replace("¦", mark).split("‖")] for mark in ("", "‖"))
    assert split_sentences(text.replace("¦", "").replace("‖", "")) in (joined, cut)


def test_gold_set_is_split_without_faults_unlike_by_the_bare_library(gold):
    items = compare_segmenters.read_gold(gold)
    ours = compare_segmenters.measure_accuracy(split_sentences, items)
    bare = compare_segmenters.measure_accuracy(compare_segmenters.SEGMENTERS["sentencex"](), items)
    assert sum(len(item["ends"]) for item in items) == ours["wanted"] == 33
    assert ours["f1"] == ours["exact_paragraphs"] == 1.0
    assert bare["by_phenomenon"]["quotation"]["recall"] <= 0.7
    assert bare["f1"] < 0.9


def test_comparison_counts_missed_and_wrong_boundaries_by_phenomenon():
    gold = [{"id": "1", "register": "r", "text": "It is Mr. Fox. He ran.", "ends": {11}, "either": set()}]
    gold[0]["phenomenon"] = compare_segmenters.phenomena(gold[0]["text"])
    assert gold[0]["phenomenon"][7] == "abbreviation"
    wrong = compare_segmenters.measure_accuracy(lambda text: ["It is Mr.", "Fox.", "He ran."], gold)
    assert (wrong["wanted"], wrong["missed"], wrong["wrong"], wrong["precision"]) == (1, 0, 1, 0.5)
    assert wrong["by_phenomenon"]["abbreviation"]["precision"] == 0.0
    assert wrong["exact_paragraphs"] == 0.0
    missed = compare_segmenters.measure_accuracy(lambda text: [text], gold)
    assert (missed["precision"], missed["recall"], missed["f1"]) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="gave 'It was', which is not in the text"):
        compare_segmenters.measure_accuracy(lambda text: ["It was"], gold)


def test_comparison_writes_figures_and_names_an_invalid_gold_item(gold, tmp_path):
    (tmp_path / "text.txt").write_text("One sentence. And another one.\nA second line.\n" * 20)
    script = REPOSITORY / "scripts" / "measure" / "compare_segmenters.py"
    command = [sys.executable, str(script), "--gold", str(gold), "--repeats", "2"]
    options = ["--text", str(tmp_path / "text.txt"), "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command + options, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "made_up: 20 paragraphs; by phenomenon" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["gold"]["made_up"]["segmenters"]["data_prep"]["f1"] == 1.0
    assert figures["speed"]["sentencex"]["mb_per_s"] > 0
    gold.write_text('[{"id": "1", "text": "x"}]')
    with pytest.raises(ValueError, match="made_up.json: item 1: must be an object with id, register and text"):
        compare_segmenters.read_gold(gold)


def test_invalid_input_of_the_comparison_is_an_error_of_one_line(gold, tmp_path, run_script):
    whole = '[{"id": "1", "register": "r", "text": "All of it."}]'
    files = {"blank": "\n \n", "empty_list": "[]", "unmarked": whole, "number": "3", "torn": whole[:20]}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "latin").write_bytes("‖ é".encode("utf-16"))
    for arguments, message in (
        (["--gold", gold, "--text", tmp_path / "blank"], "blank: contains only white space; must contain"),
        (["--gold", gold, "--text", tmp_path / "latin"], "latin: must be UTF-8"),
        (["--gold", tmp_path / "empty_list"], "empty_list: no boundary is marked; must have at least one ‖"),
        (["--gold", tmp_path / "unmarked"], "unmarked: no boundary is marked"),
        (["--gold", tmp_path / "number"], "number: must be a JSON list of items"),
        (["--gold", tmp_path / "torn"], "torn: not JSON"),
        (["--gold", tmp_path / "nowhere"], "No such file or directory"),
        (["--gold", gold, "--repeats", 0], "--repeats 0: must be at least 1"),
    ):
        code, printed, errors = run_script("compare_segmenters", *arguments)
        assert (code, printed) == (1, "")
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert message in errors


def test_speed_is_finite_on_a_coarse_clock(monkeypatch):
    monkeypatch.setattr(time, "process_time", lambda: 7.0)
    tick = time.get_clock_info("process_time").resolution
    rates = compare_segmenters.measure_speed({"data_prep": lambda text: [text]}, "Hm.", 2)["data_prep"]
    assert rates == {key: pytest.approx(4 / tick / 1e6) for key in ("mb_per_s", "mb_per_s_least", "mb_per_s_most")}


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("en", ["Dr. Smith met Mr. J. R. Jones in Washington, D.C. on Jan. 5.", "It cost $3.50.",
                "See Fig. 3 (p. 12)."]),
        ("en", ['"Where are you?" he asked.', "“I am here,” said Mrs. Bennet.", "Then all left."]),
        ("de", ["Dr. Maier wohnt z. B. in Köln.", "Am 3. Mai 1999 kam er an.", "„Wo bist du?“, fragte sie.",
                "Er ging."]),
        ("de", ["»Komm her!«", "Dann sagte er nichts mehr.", "Prof. Schmidt las ca. 20 Seiten."]),
        ("fr", ["M. Dupont est arrivé.", "Il a dit : « Je suis là. »", "Mme Martin est partie à 15 h.", "Et alors ?"]),
        ("es", ["El Sr. García llegó ayer.", "¿Dónde está la Sra. López?", "¡No lo sé!", "«No puedo», dijo Ana."]),
        ("ru", ["Он родился в 1900 г. в Москве.", "«Где ты?» — спросила она.", "Проф. Иванов уехал."]),
        ("it", ["Il sig. Rossi è arrivato.", "«Dove sei?» chiese lei.", "Nessuno rispose."]),
        ("pl", ["Jis dzims 1900. godā Rēzeknē.", "„Es asmu,“ jis saceja.", "Tai ir."]),
    ],
)  # fmt: skip
def test_sentences_of_every_language_are_split(language, sentences):
    assert split_sentences(" ".join(sentences), language) == sentences


def test_long_speech_is_split_within_quotation_marks():
    speech = "“" + " ".join(f"This is sentence number {n} of a long speech." for n in range(20)) + "”"
    sentences = split_sentences(speech)
    assert len(sentences) == 20
    assert sentences[0].startswith("“This")
    assert sentences[-1].endswith("speech.”")
    assert " ".join(sentences) == speech


def test_scripts_without_spaces_are_split():
    assert split_sentences("他来了。然后走了！你在哪里？", "zh") == ["他来了。", "然后走了！", "你在哪里？"]


def test_only_white_space_and_pieces_without_words_are_removed():
    text = "\n".join(text.replace("‖", "").replace("¦", "") for texts in GOLD.values() for text in texts)
    parts = split_sentences(text)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert split_sentences("No full stop here\nA new paragraph") == ["No full stop here", "A new paragraph"]
    assert split_sentences("One. * * *\n/>\nTwo.") == ["One.", "Two."]
    assert split_sentences("") == split_sentences("\"\n' \n…") == []
    assert split_sentences("'") == []
    assert split_sentences("He left.\" '") == ["He left.\" '"]


def test_unknown_language_is_an_error_that_lists_the_known_ones():
    for language in ("ltg", "EN", ""):
        message = f"--language {language}: no sentence rules for this language; allowed: am, ar, .*, zh"
        for check in (check_language, functools.partial(split_sentences, "Some text.")):
            with pytest.raises(ValueError, match=message):
                check(language)
    assert len(LANGUAGES) == 34


def test_documented_accuracy_equals_the_committed_results():
    result = json.loads((REPOSITORY / "docs/results/sentence_segmentation.json").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs/data_preparation.md").read_text(encoding="utf-8")
    table = page[page.index("|  | precision | recall | F1 |") :].split("<!--")[0].splitlines()[2:]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows] == list(compare_segmenters.SEGMENTERS)
    for name, *cells in rows:
        held_out, development = (result["gold"][gold]["segmenters"][name] for gold in ("held_out", "development"))
        wanted = [held_out["precision"], held_out["recall"], held_out["f1"], development["f1"]]
        assert [float(cell) for cell in cells[:4]] == pytest.approx(wanted, abs=6e-4)
        for cell, kind in zip(cells[4:9], compare_segmenters.PHENOMENA, strict=True):
            faults = held_out["by_phenomenon"].get(kind, {"missed": 0, "wrong": 0})
            assert cell == f"{faults['missed']} + {faults['wrong']}"
        assert float(cells[9]) == pytest.approx(result["speed"][name]["mb_per_s"], abs=0.06)
