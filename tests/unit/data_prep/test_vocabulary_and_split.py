import json
import os
import subprocess
import sys

import numpy as np
import pytest
from made_up_corpus import made_up_documents
from tokenizers import Tokenizer

from data_prep import pipeline
from data_prep.build_folder import open_build_folder
from data_prep.dedup.duplicates import Duplicates
from data_prep.plan import BuildArguments, BuildPlan
from data_prep.rows.splitting import make_groups
from data_prep.rows.tokens import encode_documents
from data_prep.rows.vocabulary import SPECIAL_TOKENS, read_vocabulary, train_vocabulary
from data_prep.spool import Spool, write_spool

HEAD = "\n".join(SPECIAL_TOKENS.values())
TRAIN = (
    "from data_prep.rows.vocabulary import train_vocabulary;"
    "import random; d = random.Random(1);"
    "t = [["
    "'Ça '+' '.join(''.join(d.choices('abcdeéÉxyzñ漢', k=d.randint(1, 6))) for _ in range(9)) for _ in range(400)]];"
    "print(train_vocabulary(lambda: t, 300, True).hash)"
)


def test_trained_vocabulary_is_the_same_in_every_process():
    hashes = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        hashes.add(subprocess.check_output([sys.executable, "-c", TRAIN], env=environment))
    assert len(hashes) == 1


@pytest.mark.parametrize("cased", [False, True])
def test_trained_vocabulary_has_the_requested_size_and_begins_with_special_tokens(tmp_path, cased):
    texts = [[*text.split("\n"), "Éric WROTE a café."] for text in made_up_documents(60, 1)]
    vocabulary = train_vocabulary(lambda: texts, 320, cased)
    assert len(vocabulary.entries) == 320
    assert vocabulary.special_ids() == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    vocabulary.save(tmp_path)
    assert read_vocabulary(tmp_path / "vocab.txt", cased) == vocabulary
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    encoded = tokenizer.encode("The river stone. Éric WROTE a café")
    assert encoded.tokens[0] == "[CLS]"
    assert encoded.tokens[-1] == "[SEP]"
    assert "[UNK]" not in encoded.tokens
    text = tokenizer.decode(encoded.ids)
    assert text == ("The river stone. Éric WROTE a café" if cased else "the river stone. eric wrote a cafe")


def test_too_large_vocabulary_is_an_error_with_the_possible_size():
    with pytest.raises(ValueError, match=r"--vocab_size 5000: the text gives only \d+ entries"):
        train_vocabulary(lambda: [["the same few words again"] * 9], 5000, False)


@pytest.mark.parametrize(
    ("content", "cased", "message"),
    [
        ("[PAD]\n[UNK]\na\n", False, r"\[CLS\], \[SEP\], \[MASK\] missing among 3 entries"),
        (f"{HEAD}\na\nb\na\n", False, "entry 'a' occurs 2 times, line 6"),
        (f"{HEAD}\na\n\nb\n", False, "an empty line, line 7"),
        (f"{HEAD}\nThe\nriver\n", False, "add --cased"),
    ],
)
def test_invalid_vocabulary_is_an_error(tmp_path, content, cased, message):
    path = tmp_path / "vocab.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(path, cased)


def test_given_vocabulary_may_have_special_tokens_at_any_id(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\nriver\n##s\nstone\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    vocabulary = read_vocabulary(path, cased=False)
    assert vocabulary.special_ids() == {"pad": 0, "unk": 4, "cls": 5, "sep": 6, "mask": 7}
    documents = encode_documents(vocabulary.tokenizer(), [["Rivers stone", "\u0300"], ["\u0301"], ["x stone", "river"]])
    assert documents.tokens.tolist() == [1, 2, 3, 4, 3, 1]
    assert documents.segment_starts.tolist() == [0, 3, 5, 6]
    assert documents.document_starts.tolist() == [0, 1, 3]


def spooled(folder, texts_of_tasks):
    """A build folder with these documents, of a sentence each."""
    (folder / "spool").mkdir(parents=True)
    for task, texts in enumerate(texts_of_tasks):
        write_spool(folder / "spool", task, ([text] for text in texts), signed=False)
    return folder


def spooled_books(folder, books):
    """A build folder with a book of sentences in each task."""
    (folder / "spool").mkdir(parents=True)
    for task, pieces in enumerate(books):
        write_spool(folder / "spool", task, [pieces], signed=False)
    return folder


@pytest.mark.parametrize("with_blanks", [False, True])
def test_sample_for_a_tokenizer_stays_within_its_bytes_and_its_batches_are_small(tmp_path, monkeypatch, with_blanks):
    monkeypatch.setattr(pipeline, "_SAMPLE_BATCH_CHARACTERS", 1000)
    book = ["Öne sentence.", *(f" Sentence {n} of a long book." for n in range(100))]
    build_dir = spooled_books(tmp_path, [book] * 20)
    whole = sum((build_dir / "spool" / f"{task:05d}.txt").stat().st_size for task in range(20))
    for most_bytes in (100, 300, 5_000, whole - 1, whole):
        batches = list(pipeline._sample(build_dir, 20, most_bytes, with_blanks)())
        texts = [text for batch in batches for text in batch]
        read = sum(len(text.encode()) for text in texts)
        assert 0.9 * most_bytes - 100 < read <= most_bytes
        longest = len("".join(book)) if with_blanks else 30
        assert max(sum(map(len, batch)) for batch in batches) < 1000 + longest
        plain = "".join(book) if with_blanks else [sentence.strip() for sentence in book]
        assert all(text and text in plain for text in texts)
    assert texts == ([plain] * 20 if with_blanks else plain * 20)


def test_spool_returns_what_was_written(tmp_path):
    documents = [["One.", "Zwei ü."], ["Three."], ["四。", "Five."]]
    assert write_spool(tmp_path, 0, documents, signed=True) == {"documents": 3, "sentences": 5, "bytes": 34}
    assert list(Spool(tmp_path, 0).read(np.array([2, 0]))) == [documents[2], documents[0]]


def test_spool_keeps_what_is_between_sentences(tmp_path):
    documents = [["One.", " Two.", "\nThree."], ["四。", "五。"], ["Six."]]
    written = write_spool(tmp_path, 0, documents, signed=False)
    spool, all_of_them = Spool(tmp_path, 0), np.arange(3)
    assert list(spool.read(all_of_them, with_blanks=True)) == documents
    assert list(spool.read(all_of_them)) == [[piece.strip() for piece in document] for document in documents]
    # Neither the size nor the digest, which decide about duplicates and groups, depends on the blanks.
    (tmp_path / "plain").mkdir()
    plain = [[piece.strip() for piece in document] for document in documents]
    assert write_spool(tmp_path / "plain", 0, plain, signed=False) == written
    assert (Spool(tmp_path / "plain", 0).digests == spool.digests).all()


def test_unfinished_build_of_an_earlier_release_is_refused(tmp_path):
    arguments = BuildArguments(("text=a",), None, 300, False, (32,), "mlm", 0.1, 0, 99, "en")
    plan = BuildPlan(arguments, [], [])
    with open_build_folder(tmp_path / "out", plan) as build_dir:
        path = build_dir / "plan.json"
    content = json.loads(path.read_text())
    assert content.pop("spool") == 2
    path.write_text(json.dumps(content))
    refused = pytest.raises(ValueError, match="holds an unfinished build of another release; nothing was changed")
    with refused, open_build_folder(tmp_path / "out", plan):
        pass
    assert path.is_file()


def validation_texts(build_dir, task, groups, seed=3):
    spool = Spool(build_dir / "spool", task)
    return {text[0] for text in spool.read(groups.chosen(spool, Duplicates(build_dir), seed, "validation"))}


def test_split_has_the_requested_fraction_and_depends_only_on_text_and_seed(tmp_path):
    texts = [f"document {n}" for n in range(4000)]
    build_dir = spooled(tmp_path / "a", [texts[:1000], texts[1000:]])
    groups = make_groups(build_dir, 2, seed=3, validation_fraction=0.1)
    held_out = validation_texts(build_dir, 0, groups) | validation_texts(build_dir, 1, groups)
    assert abs(len(held_out) - 400) < 4 * np.sqrt(4000 * 0.09)
    other_dir = spooled(tmp_path / "b", [list(reversed(texts))])
    other = make_groups(other_dir, 1, seed=3, validation_fraction=0.1)
    assert validation_texts(other_dir, 0, other) == held_out != validation_texts(other_dir, 0, other, seed=4)


@pytest.mark.parametrize("fraction", [1e-9, 0.999999])
def test_two_documents_give_one_to_each_split(tmp_path, fraction):
    groups = make_groups(spooled(tmp_path, [["first"], [], ["second"]]), 3, 0, fraction)
    assert [(group.split, group.documents) for group in groups.tasks] == [("train", 1), ("validation", 1)]


def test_copies_of_one_document_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="a single document"):
        make_groups(spooled(tmp_path, [["same"], ["same"]]), 2, 0, 0.5)


def test_groups_contain_each_document_once_and_are_bounded(tmp_path, small_tasks):
    texts = [[f"{task} {n} " + "x" * 400 for n in range(100)] for task in range(3)] + [["last one"]]
    build_dir = spooled(tmp_path, texts)
    groups = make_groups(build_dir, 4, 1, 0.2)
    seen = []
    for group in groups.tasks:
        chosen = []
        for task, first, end in group.members:
            spool = Spool(build_dir / "spool", task)
            own = groups.chosen(spool, Duplicates(build_dir), 1, group.split, first, end)
            assert set(own) == set(groups.chosen(spool, Duplicates(build_dir), 1, group.split)) & {*range(first, end)}
            chosen += [(task, int(n)) for n in own]
        assert len(chosen) == group.documents >= 16
        assert group.bytes <= 3 * (1 << 13)
        seen += chosen
    assert len(seen) == len(set(seen)) == 301
    assert len(groups.tasks) > 8
