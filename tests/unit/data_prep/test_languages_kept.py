import json

from made_up_corpus import build

GERMAN = "Der Fluss fließt durch das Tal, und am Abend gehen die Leute gern an seinem Ufer spazieren, Tag {n}."
ENGLISH = "The river runs through the valley, and in the evening people like to walk along its banks, day {n}."


def test_documents_in_other_languages_are_dropped_and_counted(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join([ENGLISH.format(n=n) for n in range(20)] + [GERMAN.format(n=1)] * 3))
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n")
    flags = ["--vocab", str(vocab), "--deduplicate", "none", "--keep_language"]
    assert build(tmp_path / "a.txt", tmp_path / "en", *flags, "en") == 0
    assert build(tmp_path / "a.txt", tmp_path / "both", *flags, "en,de") == 0
    kept = {
        name: json.loads((tmp_path / name / "data_card.json").read_text())["documents"]["dropped"]
        for name in ("en", "both")
    }
    assert kept == {"en": {"language de": 3}, "both": {}}


def test_unknown_language_is_an_error_of_one_line(tmp_path, corpus, capsys):
    assert build(corpus, tmp_path / "out", "--keep_language", "en,xx") == 1
    assert "--keep_language en,xx: unknown language xx; allowed" in capsys.readouterr().err
