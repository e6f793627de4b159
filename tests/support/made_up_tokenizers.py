"""Small tokenizers of the kinds in use, trained on the spot and saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ten_languages import SENTENCES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [sentence for sentences in SENTENCES.values() for sentence in sentences]
ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def _template(tokens: Sequence[str], tokenizer: Tokenizer, separators: int = 1) -> processors.TemplateProcessing:
    cls, sep = tokens
    second = f"$B:{int(separators == 1)} {sep}:{int(separators == 1)}"
    ids = [(token, tokenizer.token_to_id(token)) for token in tokens]
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {' '.join([sep] * separators)} {second}", special_tokens=ids
    )


def roberta(size: int = 700, texts: Sequence[str] = TEXTS) -> Tokenizer:
    """Byte-level BPE with two separators; [PAD] is 1; no prefix."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def modernbert() -> Tokenizer:
    """Byte-level BPE with BERT's special tokens at its end, after tokens for runs of blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in (4, 3, 2)])
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", AddedToken("[MASK]", lstrip=True), "[unused0]"])
    tokenizer.post_processor = _template(("[CLS]", "[SEP]"), tokenizer)
    return tokenizer


def xlm_roberta() -> Tokenizer:
    """Unigram over words between blanks, with two separators."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([*special[:4], AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = _template(("<s>", "</s>"), tokenizer, separators=2)
    return tokenizer


def lower_unigram() -> Tokenizer:
    """Unigram over the whole text, in lower case and without line feeds; only the first word gets a mark."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = _template(("[CLS]", "[SEP]"), tokenizer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece's BPE: blanks replaced by a normalizer, no pre-tokenizer, unknown characters as bytes."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]
    letters = sorted({character for sentence in SENTENCES["de"] for character in sentence.replace(" ", "▁")})
    pairs = [("▁", "d"), ("e", "r"), ("c", "h"), ("▁d", "er"), ("e", "n"), (".", "▁"), (".▁", "D")]
    entries = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, *map("".join, pairs)]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = _template(("<s>", "</s>"), tokenizer)
    return tokenizer


def bert() -> Tokenizer:
    """WordPiece, cased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = _template(("[CLS]", "[SEP]"), tokenizer)
    return tokenizer


KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, str]]] = {
    "roberta": (roberta, ROBERTA),
    "modernbert": (modernbert, BERT),
    "xlm_roberta": (xlm_roberta, ROBERTA),
    "lower_unigram": (lower_unigram, BERT),
    "byte_fallback": (byte_fallback, ROBERTA),
    "bert": (bert, BERT),
}


def save(tokenizer: Tokenizer, folder: Path, tokens: dict[str, str], **settings: Any) -> Path:
    """Save a tokenizer as a folder that `AutoTokenizer` loads."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens, **settings).save_pretrained(str(folder))
    return folder
