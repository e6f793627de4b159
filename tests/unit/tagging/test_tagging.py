"""CoNLL files are read as they are, each word has a label at its first token, and figures are seqeval's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import VOCABULARY, word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from bert_pld.finetuning.batches import collate
from bert_pld.finetuning.loop import loss_of
from bert_pld.tagging.conll import Sentence, find_splits, read_conll
from bert_pld.tagging.task import TaggingTask, encode, read_task

CONLL_2003 = """-DOCSTART- -X- O O

EU NNP I-NP B-ORG
rejects VBZ I-VP O
# # O O

Peter NNP I-NP B-PER
Blackburn NNP I-NP I-PER"""


def wordpiece():
    """The synthetic corpus's WordPiece, with [CLS] and [SEP]."""
    tokenizer = word_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def byte_level():
    """A byte-level BPE in which a blank belongs to the token after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(["Peter Blackburn lives in Köln and works in Köln", "Peter lives"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_words_and_tags_are_the_first_and_the_last_column(tmp_path):
    (tmp_path / "eng.train").write_text(CONLL_2003)
    assert read_conll(tmp_path / "eng.train") == [
        Sentence(["EU", "rejects", "#"], ["B-ORG", "O", "O"]),
        Sentence(["Peter", "Blackburn"], ["B-PER", "I-PER"]),
    ]
    (tmp_path / "dev.txt").write_text("\ufeff# sent_id = 4\r\nNew York\tB-LOC\r\n\r\n\r\nhere\tO\r\n", encoding="utf-8")
    assert read_conll(tmp_path / "dev.txt") == [Sentence(["New York"], ["B-LOC"]), Sentence(["here"], ["O"])]
    assert {split: path.name for split, path in find_splits(tmp_path).items()} == {
        "train": "eng.train",
        "dev": "dev.txt",
    }
    assert read_task(tmp_path).tags == ("B-LOC", "B-ORG", "B-PER", "I-PER", "O")


def test_no_break_space_belongs_to_its_word(tmp_path):
    words = ["10\u202f000", "Nations\u00a0unies", "\u00a0"]
    for blank in (" ", "  ", "\t", " \t "):
        (tmp_path / "train.txt").write_text("".join(f"{word}{blank}O \n" for word in words), encoding="utf-8")
        assert read_conll(tmp_path / "train.txt") == [Sentence(words, ["O"] * 3)]


def test_no_break_space_after_a_tag_does_not_make_another_tag(tmp_path):
    (tmp_path / "train.txt").write_text("EU B-ORG\u00a0\nrejects\tO\u00a0\n", encoding="utf-8")
    assert read_conll(tmp_path / "train.txt") == [Sentence(["EU", "rejects"], ["B-ORG", "O"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"EU B-ORG\nrejects\n", r"dev\.txt, line 2: 1 column\(s\) \('rejects'\); must have 2 columns as line 1 has"),
        (b"EU\n", r"line 1: 1 column\(s\) \('EU'\); must have a word and a tag"),
        (b"EU\t\n", r"line 1: an empty tag"),
        (b"\n\n", "holds no sentence"),
        (b"\xff O\n", r"not UTF-8 \(byte 0\)"),
    ],
)
def test_file_in_another_format_is_one_line(tmp_path, content, message):
    (tmp_path / "train.txt").write_text("EU O\n")
    (tmp_path / "dev.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_task(tmp_path)
    assert "\n" not in str(error.value)


def test_folder_without_a_split_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no train.txt"):
        find_splits(tmp_path)


SENTENCES = [
    Sentence(["w1", "w2##p3", "w4"], ["B-A", "I-A", "O"]),
    Sentence(["w5", "w6"], ["I-A", "O"]),
]


def test_ids_and_first_tokens_are_those_of_the_tokenizer_on_split_words():
    tokenizer, words = wordpiece(), ["w1", "nonsense", "w2", "a-b", "w3"]
    rows = encode(tokenizer, [Sentence(words, ["O", "B-A", "I-A", "O", "B-A"])], ("B-A", "I-A", "O"), 32)
    expected = tokenizer(words, is_split_into_words=True)
    assert rows.input_ids == [expected["input_ids"]]
    assert rows.word_places[0].tolist() == [expected.word_ids().index(word) for word in range(5)]
    assert rows.labels.tolist() == [2, 0, 1, 2, 0]


def test_words_of_a_byte_level_tokenizer_have_the_blank_before_them():
    tokenizer, words = byte_level(), ["Peter", "lives", "in", "Köln", "Bonn"]
    rows = encode(tokenizer, [Sentence(words, ["O"] * 5)], ("O",), 64)
    assert rows.input_ids == [tokenizer("Peter lives in Köln Bonn")["input_ids"]]
    starts = [tokenizer.convert_ids_to_tokens(rows.input_ids[0][place])[0] for place in rows.word_places[0]]
    assert starts == ["P", "Ġ", "Ġ", "Ġ", "B"]  # The last blank is a token of its own, and no part of the word.


def test_long_sentence_becomes_several_rows_between_words_and_loses_none():
    words = [f"w{number}" for number in range(20)]
    tags = ["B-A" if number % 3 else "O" for number in range(20)]
    rows = encode(wordpiece(), [Sentence(words, tags), SENTENCES[1]], ("B-A", "I-A", "O"), 8)
    assert [len(row) for row in rows.input_ids] == [8, 8, 8, 4, 4]
    assert rows.words.tolist() == list(range(22))
    assert rows.labels.tolist() == [0 if tag == "B-A" else 2 for tag in tags] + [1, 2]


def test_labels_are_at_first_tokens_and_the_loss_is_that_of_transformers():
    torch.manual_seed(0)
    rows = encode(
        wordpiece(), [Sentence(["w1", "w2", "x-y"], ["O", "B-A", "O"]), SENTENCES[1]], ("B-A", "I-A", "O"), 32
    )
    inputs, labels = collate(rows, np.array([0, 1]), 0, torch.device("cpu"), classes=True)
    assert labels.tolist() == [[-100, 2, 0, 2, -100, -100, -100], [-100, 1, 2, -100, -100, -100, -100]]
    config = BertConfig(vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = BertForTokenClassification(config).eval()
    model.config.num_labels = model.num_labels = 3
    model.classifier = torch.nn.Linear(16, 3)
    outputs = model(**inputs, labels=labels)
    torch.testing.assert_close(loss_of(outputs.logits, labels, words=5), outputs.loss)


def test_figures_are_those_of_seqeval_with_spans_that_end_with_their_sentence():
    seqeval = pytest.importorskip("seqeval.metrics")
    task = TaggingTask("names", ("B-A", "I-A", "O"))
    rows = encode(wordpiece(), SENTENCES, task.tags, 32)
    predictions = np.array([0, 1, 2, 2, 2], float)
    predicted = [["B-A", "I-A", "O"], ["O", "O"]]
    assert task.predicted_tags(predictions, rows) == predicted
    scores = task.score(predictions, rows)
    gold = [one.tags for one in SENTENCES]
    assert scores["f1"] == pytest.approx(100 * seqeval.f1_score(gold, predicted)) == pytest.approx(200 / 3)
    assert (scores["precision"], scores["recall"]) == (100.0, 50.0)
    assert task.selection(scores) == scores["f1"]


def test_figures_of_bilou_are_those_of_the_same_spans_in_iob2():
    """Two neighbours of one kind, a span of two words, and a wrong guess of its last word."""
    pytest.importorskip("seqeval")
    words = [f"w{number}" for number in range(6)]
    spans = {
        "iob2": (["B-A", "B-A", "B-B", "I-B", "O", "B-A"], ["B-A", "B-A", "B-B", "O", "O", "B-A"]),
        "bilou": (["U-A", "U-A", "B-B", "L-B", "O", "U-A"], ["U-A", "U-A", "U-B", "O", "O", "U-A"]),
    }
    for expected, predicted in spans.values():
        task = TaggingTask("names", tuple(sorted({*expected, *predicted})))
        rows = encode(wordpiece(), [Sentence(words, expected)], task.tags, 32)
        scores = task.score(np.array([task.tags.index(tag) for tag in predicted], float), rows)
        assert scores == {"f1": 75.0, "precision": 75.0, "recall": 75.0}


def test_tags_that_mark_every_word_are_scored_by_accuracy():
    sentences = [Sentence(["w1", "w2"], ["NOUN", "VERB"]), Sentence(["w3"], ["NOUN"])]
    task = TaggingTask("pos", ("NOUN", "VERB"))
    rows = encode(wordpiece(), sentences, task.tags, 32)
    assert task.score(np.array([0, 0, 0], float), rows) == {"accuracy": pytest.approx(200 / 3)}


def test_word_without_a_token_is_outside_of_all_spans(tmp_path):
    task = TaggingTask("names", ("B-A", "O"))
    sentences = [Sentence(["w1", "\u200b", "w2"], ["B-A", "B-A", "O"])]
    tokenizer = wordpiece()
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    rows = encode(tokenizer, sentences, task.tags, 32)
    assert rows.words.tolist() == [0, 2]
    assert task.predicted_tags(np.array([0.0, 1.0]), rows) == [["B-A", "O", "O"]]
    task.write_predictions(tmp_path / "out.txt", np.array([0.0, 1.0]), rows)
    assert (tmp_path / "out.txt").read_text() == "w1\tB-A\tB-A\n\u200b\tB-A\tO\nw2\tO\tO\n"
