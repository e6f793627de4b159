"""A new vocabulary on old weights: which embeddings are taken over, and what the others start from."""

import dataclasses

import pytest
import torch
from begun_runs import begin, write_checkpoint
from hugging_face_models import ENTRIES, save_stock, word_pieces
from runs import SPECIAL, VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers

from bert_pld.config import load_config
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import Manifest, vocabulary_hash
from bert_pld.model import make_model
from bert_pld.model.hugging_face import to_hugging_face
from bert_pld.training.new_vocabulary import find_sources

OLD_SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
# Most old words in another order, one word of two old pieces, and one that is unknown.
NEW = ["[MASK]", "[PAD]", "[UNK]", "[CLS]", "[SEP]", *VOCABULARY[:7:-1], "w3##p1", "hé"]


@pytest.fixture
def rows(corpus, tmp_path):
    """The synthetic corpus as if it had been made with another tokenizer."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in corpus.iterdir():
        (folder / path.name).symlink_to(path)
    rows = ShardedRows(folder, "train", Manifest.read(folder, follow_links=True))
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    word_pieces(NEW).save(str(folder / "tokenizer.json"))
    attributes = dataclasses.replace(rows.attributes, vocabulary_hash=vocabulary_hash(NEW), vocabulary_size=len(NEW))
    special = {"pad": 1, "unk": 2, "cls": 3, "sep": 4, "mask": 0}
    rows.manifest = dataclasses.replace(rows.manifest, attributes=attributes, special_tokens=special)
    return rows


def test_common_entries_are_taken_over_and_others_start_from_their_pieces(rows, tmp_path):
    theirs = save_stock(tmp_path / "old")
    model, _, notes = begin(tmp_path / "old", rows, new_vocabulary=True)
    # Of the text "w3##p1", the old tokenizer knows the words w3 and p1; the second as a piece that continues a word.
    kept = len(NEW) - 2
    assert (
        f"new vocabulary of {len(NEW)} entries: {kept} embeddings taken over, 1 from the mean of their pieces" in notes
    )
    words, bias = model.encoder.embeddings.word.weight, model.mlm_head.bias
    old_words, old_bias = theirs.bert.embeddings.word_embeddings.weight, theirs.cls.predictions.bias
    for index in range(kept):
        same = VOCABULARY.index(NEW[index])
        assert torch.equal(words[index], old_words[same])
        assert bias[index] == old_bias[same]
    torch.testing.assert_close(words[len(NEW) - 1], old_words.mean(0))
    assert words.shape[0] == -(-len(NEW) // 8) * 8
    assert torch.equal(bias[len(NEW) :], torch.full((len(bias) - len(NEW),), -100.0))
    hf_config, state = to_hugging_face(model.state_dict(), model.config, pad_token_id=1)
    assert (hf_config.vocab_size, len(state["cls.predictions.bias"])) == (len(NEW), len(NEW))


def test_positions_of_roberta_begin_after_the_new_pad_token(rows, tmp_path):
    theirs = save_stock(tmp_path / "old", "roberta", pad_token_id=3)
    model, *_ = begin(tmp_path / "old", rows, new_vocabulary=True)
    used = theirs.roberta.embeddings.position_embeddings.weight[4:]
    assert torch.equal(model.encoder.embeddings.position.weight, used)
    hf_config, state = to_hugging_face(model.state_dict(), model.config, pad_token_id=1)
    assert torch.equal(state["roberta.embeddings.position_embeddings.weight"][2:], used)
    assert hf_config.max_position_embeddings == len(used) + 2


def test_weights_of_a_run_take_a_new_vocabulary_too(rows, corpus, tmp_path):
    sizes = {"preset": None, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"vocab_size": ENTRIES, "next_sentence_prediction": True, "max_position_embeddings": 32}
    run = load_config({"train_batch_size": 8, "model": sizes, "data": {"seq_length": 32}})
    first = make_model(run.model)
    folder = write_checkpoint(tmp_path / "run", first, run, ShardedRows(corpus, "train"))
    with pytest.raises(ValueError, match="differs from that of checkpoint .* or give --new_vocabulary to start"):
        begin(folder, rows)
    model, _, notes = begin(folder, rows, new_vocabulary=True)
    assert f"{len(NEW) - 2} embeddings taken over" in notes
    old = first.encoder.embeddings.word.weight
    assert torch.equal(model.encoder.embeddings.word.weight[0], old[4])
    assert torch.equal(model.encoder.blocks[1].qkv_weight, first.encoder.blocks[1].qkv_weight)


def byte_level(entries):
    tokenizer = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def test_words_are_recognised_across_kinds_of_tokenizers():
    word_piece = word_pieces([*SPECIAL, "the", "##s", "fi", "##é", "c", "##at"])
    bytes_of = byte_level(["<s>", "Ġthe", "s", "the", "Ã©", "Ã", "Ġc", "at"])
    found = find_sources(word_piece, OLD_SPECIAL, bytes_of, {"cls": 0}).ids
    # <s> is the old [CLS]; "the" inside a word starts from the word; half a character has no text.
    assert found == ((2,), (5,), (6,), (5,), (8,), (), (9,), (10,))
    back = find_sources(bytes_of, {"cls": 0}, word_piece, OLD_SPECIAL).ids
    assert back == ((), (), (0,), (), (), (1,), (2,), (), (4,), (6,), (7,))


def test_sentencepiece_marks_the_beginning_of_a_word():
    pieces = [("<unk>", 0.0), ("▁the", -1.0), ("s", -2.0), ("▁", -3.0), ("t", -4.0)]
    unigram = Tokenizer(models.Unigram(pieces, 0, False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    found = find_sources(unigram, {"unk": 0}, word_pieces([*SPECIAL, "the", "##s", "st"]), OLD_SPECIAL).ids
    assert found == ((), (0,), (), (), (), (1,), (2,), (3, 2, 4))


def test_five_thousand_new_entries_take_less_than_a_second():
    old = word_pieces([*SPECIAL, *(f"w{i}" for i in range(5000))])
    new = word_pieces([*SPECIAL, *(f"w{i} w{i + 1}" for i in range(4999))])
    sources = find_sources(old, OLD_SPECIAL, new, OLD_SPECIAL)
    table = torch.arange(5005.0)[:, None].expand(-1, 4)
    torch.testing.assert_close(sources.apply(table)[5:, 0], torch.arange(4999) + 5.5)
