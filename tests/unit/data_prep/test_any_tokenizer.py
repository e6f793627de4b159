"""Given tokenizers of all kinds: ids are those of `AutoTokenizer` on whole documents, and rows have its template."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from datatrove.data import Document
from made_up_tokenizers import BERT, KINDS, ROBERTA, roberta, save, xlm_roberta
from ten_languages import SENTENCES, made_documents
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, RobertaTokenizer, XLMRobertaTokenizer

from bert_pld.data.fast_tokenizer import FastTokenizer
from bert_pld.data.masking import MaskingVocabulary, mask_tokens
from data_prep.recipe import SplitSentences
from data_prep.rows.given_tokenizer import read_given_tokenizer
from data_prep.rows.instances import pair_rows
from data_prep.rows.tokens import encode_documents, encode_whole_documents
from data_prep.rows.vocabulary import read_vocabulary


def sentences_of(text):
    """The sentences of a document as a build makes them, each with the blank before it."""
    (document,) = SplitSentences("en").run([Document(text, "0")])
    return document.metadata["sentences"]


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    make, tokens = KINDS[request.param]
    return save(make(), tmp_path / request.param, tokens)


def test_ids_are_those_of_auto_tokenizer_on_whole_documents_of_ten_languages(folder, tmp_path):
    tokenizer = read_given_tokenizer(folder, add_mask_token=False)
    tokenizer.save(tmp_path)
    given, saved = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for language in SENTENCES for text in made_documents(language, 3)]
    documents = [sentences_of(text) for text in texts]
    assert ["".join(sentences) for sentences in documents] == texts

    nothing = np.zeros(len(tokenizer.entries), bool)
    encoded = encode_whole_documents(tokenizer.tokenizer(), documents, nothing)
    starts = encoded.segment_starts[encoded.document_starts]
    for text, start, end in zip(texts, starts, starts[1:], strict=False):
        ids = [tokenizer.template.cls_id, *encoded.tokens[start:end].tolist(), tokenizer.template.sep_id]
        assert ids == given(text)["input_ids"] == saved(text)["input_ids"]
    assert encoded.document_starts[-1] == sum(map(len, documents))
    if tokenizer.splits_at_sentences:
        alone = encode_documents(tokenizer.tokenizer(), [[piece.strip() for piece in piece_] for piece_ in documents])
        assert alone.tokens.tolist() == encoded.tokens.tolist()
        assert alone.segment_starts.tolist() == encoded.segment_starts.tolist()


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "xlm_roberta"])
def test_a_token_belongs_to_the_sentence_in_which_it_begins(kind, tmp_path):
    """And a blank before a sentence to this sentence. Here no token holds letters of two sentences."""
    make, tokens = KINDS[kind]
    tokenizer = read_given_tokenizer(save(make(), tmp_path / kind, tokens), add_mask_token=False)
    documents = [sentences_of(text) for language in ("de", "tr", "ja") for text in made_documents(language, 2)]
    encoded = encode_whole_documents(tokenizer.tokenizer(), documents, np.zeros(len(tokenizer.entries), bool))
    spans = zip(encoded.segment_starts, encoded.segment_starts[1:], strict=False)
    found = [tokenizer.tokenizer().decode(encoded.tokens[start:end].tolist()).strip() for start, end in spans]
    unknown = kind == "xlm_roberta"  # has no digits
    for sentence, decoded in zip(itertools.chain.from_iterable(documents), found, strict=True):
        wanted = sentence.strip()
        assert decoded == (wanted.lstrip("12 ") if unknown else wanted)


def test_pair_rows_have_the_separators_and_types_of_the_tokenizer(folder, tmp_path):
    tokenizer = read_given_tokenizer(folder, add_mask_token=False)
    tokenizer.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    documents = [sentences_of(text) for language in ("de", "hi") for text in made_documents(language, 4)]
    encoded = encode_whole_documents(tokenizer.tokenizer(), documents, np.zeros(len(tokenizer.entries), bool))
    rows = pair_rows(encoded, 64, tokenizer.template, tokenizer.is_continuation, 1, "train", 0)
    pad = tokenizer.special_ids()["pad"]
    assert len(rows["length"]) > 10
    for ids, length, start in zip(rows["input_ids"], rows["length"], rows["segment_b_start"], strict=True):
        pair = auto("a", "a", return_special_tokens_mask=True)
        special = [token for token, mask in zip(pair["input_ids"], pair["special_tokens_mask"], strict=True) if mask]
        assert [ids[0], *ids[start - len(special) + 2 : start], ids[length - 1]] == special
        assert (ids[length:] == pad).all()
        assert pad not in ids[:length]
    types = auto("a", "b", return_token_type_ids=True)["token_type_ids"]
    assert types[-2] == tokenizer.template.segment_b_type == (0 if "token_type_ids" not in auto("a", "b") else 1)


@pytest.mark.parametrize("kind", ["roberta", "xlm_roberta"])
def test_classes_that_build_their_tokenizer_anew_give_the_same_ids(kind, tmp_path):
    tokenizer = {"roberta": roberta, "xlm_roberta": xlm_roberta}[kind]()
    model = json.loads(tokenizer.to_str())["model"]
    if kind == "roberta":
        made = RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    else:
        made = XLMRobertaTokenizer(vocab=[tuple(entry) for entry in model["vocab"]])
    made.save_pretrained(str(tmp_path / "given"))
    given = AutoTokenizer.from_pretrained(tmp_path / "given")
    read = read_given_tokenizer(tmp_path / "given", add_mask_token=False)
    read.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for language in SENTENCES:
        for text in made_documents(language, 2):
            assert saved(text)["input_ids"] == given(text)["input_ids"]
    assert saved("One <mask> two")["input_ids"] == given("One <mask> two")["input_ids"]
    assert saved.mask_token_id == given.mask_token_id == read.special_ids()["mask"]
    assert read.special_ids()["pad"] == 1


def test_a_file_alone_has_the_special_tokens_of_well_known_names(tmp_path):
    path = tmp_path / "tokenizer.json"
    roberta().save(str(path))
    assert read_given_tokenizer(path, add_mask_token=False).special_tokens == {
        "pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>",
    }  # fmt: skip


def test_special_tokens_that_a_text_spells_are_words_and_no_others_are_in_rows(tmp_path):
    """A Unigram model has entries for special tokens and finds them in a text; they are left out."""
    for kind in ("modernbert", "lower_unigram"):
        make, tokens = KINDS[kind]
        tokenizer = read_given_tokenizer(save(make(), tmp_path / kind, tokens), add_mask_token=False)
        encoder = tokenizer.tokenizer()
        encoder.encode_special_tokens = True
        required = np.zeros(len(tokenizer.entries), bool)
        ids = tokenizer.special_ids()
        required[[ids["pad"], ids["cls"], ids["sep"], ids["mask"]]] = True
        documents = [["Der Markt [MASK] war [PAD] voll.", " Die [SEP] Kinder"]]
        encoded = encode_whole_documents(encoder, documents, required)
        assert not required[encoded.tokens].any()
        assert len(encoded.segment_starts) == 3
        assert "Markt" in encoder.decode(encoded.tokens.tolist()) or kind == "lower_unigram"


def test_whole_words_are_those_of_the_collator_of_transformers(tmp_path):
    from transformers import DataCollatorForLanguageModeling

    # The collator takes the bytes of a character for several words: byte-level BPE gets characters that it has whole.
    languages = {"roberta": ("tr", "de"), "xlm_roberta": ("ko", "hi", "ar", "he", "tr", "de")}
    for kind in languages:
        make, tokens = (
            (lambda: roberta(500, SENTENCES["de"] + SENTENCES["tr"]), ROBERTA) if kind == "roberta" else KINDS[kind]
        )
        save(make(), tmp_path / kind, tokens)
        auto = AutoTokenizer.from_pretrained(tmp_path / kind)
        vocabulary = MaskingVocabulary.of(read_given_tokenizer(tmp_path / kind, add_mask_token=False))
        for language in languages[kind]:
            text = " ".join(SENTENCES[language]).replace("„", "").replace("“", "")
            encoding = auto(text, return_offsets_mapping=True, return_special_tokens_mask=True)
            del encoding["attention_mask"]
            collator = DataCollatorForLanguageModeling(auto, whole_word_mask=True, mlm_probability=0.5, seed=1)
            theirs = collator([dict(encoding) for _ in range(64)])["labels"].numpy() != -100
            ours = drawn(encoding["input_ids"], vocabulary)
            # A blank that is a token of its own is a word for the collator, and belongs to the next word here.
            blank = np.array(encoding.tokens()) == "▁"
            theirs[:, blank], ours[:, blank] = False, False
            assert groups(theirs) == groups(ours), (kind, language)
            assert len(groups(theirs)) < (~blank).sum() - 2


def drawn(ids, vocabulary):
    """Bool `[64, tokens]`: what whole-word masking masks in 64 epochs."""
    rows = np.tile(np.array(ids, np.int64), (64, 1))
    masked = mask_tokens(
        rows, np.full(64, len(ids)), np.zeros(64, np.int64), np.arange(64), vocabulary=vocabulary, seed=3,
        mask_probability=0.5, unit="word",
    )  # fmt: skip
    chosen = np.zeros(rows.size, bool)
    chosen[masked.positions] = True
    return chosen.reshape(rows.shape)


def groups(chosen):
    """The tokens that are always masked together, without those that never are."""
    found = {}
    for place in range(chosen.shape[1]):
        if chosen[:, place].any():
            found.setdefault(chosen[:, place].tobytes(), []).append(place)
    return sorted(found.values())


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "lower_unigram", "byte_fallback"])
@pytest.mark.parametrize("language", ["zh", "ja", "th", "km"])
def test_a_token_is_a_word_in_scripts_without_blanks(kind, language, tmp_path):
    make, tokens = KINDS[kind]
    tokenizer = read_given_tokenizer(save(make(), tmp_path / kind, tokens), add_mask_token=False)
    text = "".join(character for character in SENTENCES[language][0] if character != " ")
    ids = tokenizer.tokenizer().encode(text, add_special_tokens=False).ids
    begins = ~tokenizer.is_continuation[ids]
    letters = len(text)
    assert len(ids) > 4
    # Marks and the later bytes of a character stay with it; nothing longer than a character's bytes is one group.
    assert begins.sum() >= letters / 6 if len(ids) > letters else begins.sum() >= len(ids) / 3


def test_random_replacements_are_never_special_tokens(tmp_path):
    make, tokens = KINDS["modernbert"]
    tokenizer = read_given_tokenizer(save(make(), tmp_path / "t", tokens), add_mask_token=False)
    vocabulary = MaskingVocabulary.of(tokenizer)
    special = [number for number, entry in enumerate(tokenizer.entries) if entry.startswith("[") and len(entry) > 1]
    assert len(special) == 6
    assert not set(vocabulary.replacement_ids) & set(special)
    assert len(vocabulary.replacement_ids) == len(tokenizer.entries) - 6


def test_a_byte_level_tokenizer_needs_no_unk(tmp_path):
    tokens = {name: token for name, token in ROBERTA.items() if name != "unk_token"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.add_special_tokens(list(tokens.values()))
    tokenizer.add_tokens(sorted(pre_tokenizers.ByteLevel.alphabet()))
    read = read_given_tokenizer(save(tokenizer, tmp_path / "t", tokens), add_mask_token=False)
    assert "unk" not in read.special_ids()
    assert MaskingVocabulary.of(read).special_ids == (1, 0, 2, 3)
    read.save(tmp_path)
    assert FastTokenizer.load(tmp_path).special_ids() == read.special_ids()


def test_a_tokenizer_without_mask_gets_one_on_demand(tmp_path, capsys):
    tokenizer = roberta()
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<mask>"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^--tokenizer \S+: the tokenizer has no mask token; --add_mask_token"):
        read_given_tokenizer(path, add_mask_token=False)
    read = read_given_tokenizer(path, add_mask_token=True)
    assert "mask token <mask> added as id 700" in capsys.readouterr().err
    assert read.special_ids()["mask"] == 700
    read.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert auto.mask_token_id == 700
    before, masked, after = (
        auto(text, add_special_tokens=False)["input_ids"] for text in ("Der", "Der <mask> war", " war")
    )
    assert masked == [*before, 700, *after]


def test_a_mask_token_never_takes_the_id_of_another_entry(tmp_path):
    """The library numbers it by the number of entries; after a gap in the ids, that is the id of the last entry."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "last"]
    path = tmp_path / "tokenizer.json"
    for ids in ([0, 1, 2, 3, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6]):
        tokenizer = Tokenizer(models.WordPiece(dict(zip(entries, ids, strict=True)), unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(path))
        if 4 in ids:
            read = read_given_tokenizer(path, add_mask_token=True)
            assert (read.special_ids()["mask"], read.entries[6]) == (7, "last")
        else:
            with pytest.raises(ValueError, match=r"token \[MASK\] would get id 7, which is the entry 'last', because"):
                read_given_tokenizer(path, add_mask_token=True)


def test_a_tokenizer_that_adds_nothing_gets_berts_template(tmp_path, capsys):
    ids = {entry: number for number, entry in enumerate([*BERT.values(), "a", "b"])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    read = read_given_tokenizer(path, add_mask_token=False)
    assert "adds no special tokens; rows are [CLS] … [SEP]" in capsys.readouterr().err
    read.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a b", "a")["input_ids"] == [2, 5, 6, 3, 5, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a tokenizer.json"),
        ("[PAD]\n[UNK]\n", "a vocab.txt is given with --vocab"),
        ('{"model": {"type": "BPE", "vocab": {}}}', "not a tokenizer.json"),
    ],
)
def test_a_damaged_file_is_an_error_of_one_line(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    for path in (tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(ValueError, match=message) as caught:
            read_given_tokenizer(path, add_mask_token=False)
        assert str(caught.value).startswith(f"--tokenizer {tmp_path}/tokenizer.json: ")
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_fast_tokenizer_is_an_error_of_one_line(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(ValueError, match=r"(is no fast tokenizer|cannot load a tokenizer from it)") as caught:
        read_given_tokenizer(tmp_path, add_mask_token=False)
    assert str(caught.value).startswith(f"--tokenizer {tmp_path}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_model_alone_is_an_error_of_one_line(tmp_path):
    """transformers makes an empty tokenizer for such a folder, and every word would be [UNK]."""
    for kind in ("bert", "bart", "modernbert"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(
            ValueError, match=r": (holds no tokenizer, only a model|transformers cannot load)"
        ) as caught:
            read_given_tokenizer(tmp_path, add_mask_token=False)
        assert "\n" not in str(caught.value)


def test_a_decoders_tokenizer_is_an_error_that_names_the_roles(tmp_path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.add_tokens(sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    folder = tmp_path / "gpt2"
    save(tokenizer, folder, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    with pytest.raises(ValueError, match="no pad and no mask|no mask token|must differ"):
        read_given_tokenizer(folder, add_mask_token=False)
    with pytest.raises(ValueError, match=r"no pad token; required: pad, cls, sep, mask"):
        read_given_tokenizer(folder, add_mask_token=True)


def test_ids_far_beyond_the_entries_are_refused(tmp_path):
    content = json.loads(roberta().to_str())
    content["added_tokens"][-1]["id"] = 2**32 + 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a tokenizer.json"):
        read_given_tokenizer(tmp_path / "tokenizer.json", add_mask_token=False)


def test_berts_folder_gives_the_rows_of_its_vocabulary_file(tmp_path):
    make, tokens = KINDS["bert"]
    folder = save(make(), tmp_path / "bert", tokens)
    given = read_given_tokenizer(folder, add_mask_token=False)
    (tmp_path / "vocab.txt").write_text("".join(f"{entry}\n" for entry in given.entries), encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path / "vocab.txt", cased=True)
    assert (vocabulary.hash, vocabulary.template, vocabulary.casing) == (given.hash, given.template, given.casing)
    assert (vocabulary.is_continuation == given.is_continuation).all()
    assert given.splits_at_sentences
