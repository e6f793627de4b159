import json
import random
import re
import tracemalloc

import numpy as np
import pytest
from made_up_corpus import WORDS, build, card_of
from repository import REPOSITORY
from scripts.measure.measure_deduplication import edited, removed

from data_prep.dedup import duplicates, minhash
from data_prep.dedup.duplicates import Comparisons
from data_prep.dedup.minhash import BAND_ROWS, BANDS, HASHES, SHINGLE_WORDS, signatures


def document(draw, words=200):
    return " ".join(draw.choices(WORDS, k=words))


def jaccard(a, b):
    def shingles(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}

    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def estimate(a, b):
    signed = signatures([a, b]).reshape(2, HASHES)
    return float(np.mean(signed[0] == signed[1]))


def test_signatures_estimate_the_jaccard_similarity_without_bias():
    draw = random.Random(1)
    errors = []
    for rate in np.linspace(0.005, 0.3, 120):
        text = document(draw)
        other = edited(draw, text, rate, WORDS)
        errors.append(estimate(text, other) - jaccard(text, other))
    deviation = np.sqrt(0.25 / HASHES)
    assert abs(np.mean(errors)) < 3 * deviation / np.sqrt(len(errors))
    assert np.max(np.abs(errors)) < 4.5 * deviation
    assert np.std(errors) > 0.3 * deviation


def test_case_punctuation_and_white_space_are_ignored():
    text = document(random.Random(2))
    other = text.upper().replace(" ", ",\n", 50)
    assert estimate(text, other) == 1.0
    assert estimate(text, document(random.Random(3))) < 0.05


def test_typographic_punctuation_and_case_outside_ascii_are_ignored():
    draw = random.Random(2)
    straight = "".join(f"'{draw.choice(WORDS)} it's,' -- \"{draw.choice(WORDS)}...\" " for _ in range(200))
    curly = re.sub(r"'(\w+ it)'s,'", "‘\\1’s,’", re.sub(r'"(\w+)\.\.\."', "“\\1…”", straight)).replace(
        " -- ", "\u00a0— "
    )
    assert not {"'", '"', "-"} & set(curly)
    assert estimate(straight, curly) == 1.0
    assert removed([[straight, curly]], 0.6) == (set(), {(0, 1)})
    russian = " ".join("".join(draw.choices("абвгдеёжзийклмнопрсту", k=6)) for _ in range(200))
    assert estimate(russian, russian.upper()) == estimate(russian, f"«{russian.title()}»") == 1.0
    assert estimate("İ" * 500 + " " + russian, "İ" * 500 + " " + russian.upper()) == 1.0


def test_signature_is_independent_of_other_documents_and_of_windows(monkeypatch):
    draw = random.Random(4)
    texts = [document(draw, n) for n in (70, 3, 300, 0, 90, 61, 2000, 5)]
    together = signatures(texts)
    for number, text in enumerate(texts):
        assert np.array_equal(signatures([text])[0], together[number])
    monkeypatch.setattr(minhash, "WINDOW_BYTES", 4096)
    minhash.base_powers.cache_clear()
    in_windows = signatures(texts)
    minhash.base_powers.cache_clear()
    for number, text in enumerate(texts):
        same = np.mean(in_windows[number] == together[number])
        assert same == 1.0 if len(text) < 4096 else same > 0.9


def test_short_documents_are_similar_only_with_the_same_subject():
    words = document(random.Random(5), 60).split()
    first, second, other = (
        " ".join([name, *words[:20], "Ostra", *words[20:]]) for name in ("Velma", "Velma", "Kestrin")
    )
    second = second.replace(words[50], "another")
    signed = signatures([first, second, other, first.replace("Ostra", "Ostra Mill"), "four words are few", ""])
    alike = [float(np.mean(signed[0] == row)) for row in signed]
    assert alike[0] == 1.0
    assert 0.7 < alike[1] < 1.0
    assert alike[2] < 0.05
    assert alike[3] < 0.05
    assert not signed[4:].any()
    assert signed.shape == (6, BANDS, BAND_ROWS)


def test_long_documents_are_similar_with_different_names():
    words = document(random.Random(5), 400)
    assert estimate(f"Velma {words}", f"Kestrin {words}") > 0.95


def test_planted_copies_and_edited_copies_are_found_without_false_positives():
    draw = random.Random(6)
    originals = [document(draw, draw.randint(100, 400)) for _ in range(2000)]
    copies = draw.sample(originals, 200)
    changed = [edited(draw, text, 0.02, WORDS) for text in draw.sample(originals, 200)]
    exact, everything = removed([originals[:700], originals[700:] + copies, [], changed], 0.65)
    unchanged = {(3, n) for n, text in enumerate(changed) if text in originals}
    assert exact == {(1, 1300 + n) for n in range(200)} | unchanged
    assert len(everything & {(3, n) for n in range(200)}) >= 195
    assert not everything & ({(0, n) for n in range(700)} | {(1, n) for n in range(1300)})


def test_articles_from_one_template_are_kept():
    draw = random.Random(7)
    frame = document(draw, 25)
    articles = [f"{draw.choice(WORDS).title()}{n} is a village {frame}" for n in range(300)]
    assert removed([articles], 0.65) == (set(), set())


def test_first_document_of_a_cluster_is_kept():
    draw = random.Random(8)
    text = document(draw, 300)
    chain = [text]
    for _ in range(4):
        chain.append(edited(draw, chain[-1], 0.01, WORDS))
    _, everything = removed([[document(draw), chain[0]], [chain[1], chain[2], document(draw)], chain[3:]], 0.65)
    assert everything == {(1, 0), (1, 1), (2, 0), (2, 1)}


@pytest.mark.parametrize("joined_pairs", [1, 40, 1 << 20])
def test_clusters_do_not_depend_on_how_many_pairs_are_joined_at_once(tmp_path, monkeypatch, joined_pairs):
    monkeypatch.setattr(duplicates, "JOINED_PAIRS", joined_pairs)
    draw = np.random.default_rng(3)
    (tmp_path / "duplicates").mkdir()
    first = np.arange(500)  # of each document's cluster
    for task in range(9):
        pairs = draw.integers(0, 500, (0 if task == 4 else 30, 2))
        np.save(tmp_path / "duplicates" / f"near_{task:05d}.npy", pairs.astype(np.uint64))
        for a, b in pairs:
            lower, higher = sorted((first[a], first[b]))
            first[first == higher] = lower
    expected = np.flatnonzero(first != np.arange(500))
    assert len(expected) > 200
    assert duplicates.cluster_near(tmp_path, 9) == len(expected)
    assert np.load(tmp_path / "duplicates" / "all_near.npy").tolist() == expected.tolist()


def test_memory_for_duplicates_does_not_grow_with_the_bands_that_find_them(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "JOINED_PAIRS", 1000)
    copies = 4000
    pairs = np.stack([np.zeros(copies, np.uint64), np.arange(1, copies + 1, dtype=np.uint64)], axis=1)
    (tmp_path / "duplicates").mkdir()
    for task in range(64):
        np.save(tmp_path / "duplicates" / f"near_{task:05d}.npy", pairs)
    duplicates.cluster_near(tmp_path, 1)  # imports scipy
    tracemalloc.start()
    try:
        assert duplicates.cluster_near(tmp_path, 64) == copies
        assert tracemalloc.get_traced_memory()[1] < 600 * copies  # bytes
    finally:
        tracemalloc.stop()
    assert np.load(tmp_path / "duplicates" / "all_near.npy").tolist() == list(range(1, copies + 1))


def test_shares_of_a_large_corpus_find_the_same_duplicates(monkeypatch):
    draw = random.Random(9)
    originals = [document(draw, 120) for _ in range(400)]
    texts = [originals, draw.sample(originals, 60) + [edited(draw, text, 0.02, WORDS) for text in originals[:60]]]
    one = removed(texts, 0.65)
    monkeypatch.setattr(duplicates, "KEYS_PER_TASK", 100)
    comparisons = Comparisons.of(520)
    assert (len(comparisons.exact), len(comparisons.near)) == (6, 6 * BANDS)
    assert removed(texts, 0.65, comparisons) == one


def test_build_removes_duplicates_across_sources_and_counts_them(tmp_path):
    draw = random.Random(10)
    texts = [document(draw, 250) for _ in range(100)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    with open(tmp_path / "b.jsonl", "w") as file:
        for text in texts[:10] + [edited(draw, text, 0.025, WORDS) for text in texts[10:20]] + [document(draw, 120)]:
            file.write(json.dumps({"text": text}) + "\n")
    cards = {}
    for what in ("near", "exact", "none"):
        flags = ["--source", f"jsonl={tmp_path}/b.jsonl", "--deduplicate", what]
        assert build(tmp_path / "a.txt", tmp_path / what, *flags) == 0
        cards[what] = card_of(tmp_path / what)["documents"]
    kept = {what: card["train"] + card["validation"] for what, card in cards.items()}
    assert kept == {"near": 101, "exact": 111, "none": 121}
    assert cards["near"]["duplicates"] == {"exact": 10, "near": 10}
    assert cards["exact"]["duplicates"] == {"exact": 10}
    assert cards["none"]["duplicates"] == {}


def test_documented_shares_equal_the_measured_ones():
    measured = json.loads((REPOSITORY / "docs/results/deduplication_cpu.json").read_text())
    page = (REPOSITORY / "docs/data_preparation.md").read_text(encoding="utf-8")
    found = {(row["fewest_words"], row["words_changed"]): row["edited_found"] for row in measured["planted"]}
    for rate in (0.01, 0.02, 0.03):
        shares = " | ".join(f"{100 * found[fewest, rate]:.1f} %" for fewest in (0, 60))
        assert f"| {100 * rate:.0f} % of the words changed | {shares} | 0 % |" in page
    assert all(row["copies_found"] == 1.0 and row["others_lost"] == 0.0 for row in measured["planted"])
    assert f"{measured['exact']} exact ones, and {measured['near']} near ones" in page
