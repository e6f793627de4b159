"""Stock classes of transformers, small and with random weights, for each family that we read and write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from runs import VOCABULARY, word_tokenizer
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from bert_pld.data.tokenizer import SPECIAL_TOKENS

ENTRIES, POSITIONS = len(VOCABULARY), 40
_SIZES = {
    "vocab_size": ENTRIES,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
# RoBERTa's positions begin after the row of [PAD].
_ROBERTA = {**_SIZES, "type_vocab_size": 1, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}
_DISTILBERT = {
    "vocab_size": ENTRIES,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": POSITIONS,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.2,
}
# Two of its four blocks attend within a window of 8 tokens.
_MODERNBERT = {
    **{key: value for key, value in _SIZES.items() if not key.endswith("_prob")},
    "num_hidden_layers": 4,
    "local_attention": 8,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", _SIZES),
    "megatron-bert": ("MegatronBert", _SIZES),
    "roberta": ("Roberta", _ROBERTA),
    "xlm-roberta": ("XLMRoberta", _ROBERTA),
    "camembert": ("Camembert", {**_ROBERTA, "type_vocab_size": 2}),
    "distilbert": ("DistilBert", _DISTILBERT),
    "electra": ("Electra", {**_SIZES, "embedding_size": 32}),
    "electra-small": ("Electra", {**_SIZES, "embedding_size": 16}),
    "modernbert": ("ModernBert", _MODERNBERT),
}
"""Case → beginning of the classes' names, and their configuration; positions for `POSITIONS` tokens."""


def make_stock(case: str, head: str = "ForMaskedLM", **changes: Any) -> Any:
    """Return a stock model in evaluation mode; every parameter is random, so that a swapped one is detected."""
    name, values = STOCK[case]
    config = getattr(transformers, f"{name}Config")(**{**values, **changes})
    torch.manual_seed(5)
    model = getattr(transformers, name + head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save_stock(
    folder: Path,
    case: str = "bert",
    head: str = "ForMaskedLM",
    tokenizer: Tokenizer | None = None,
    max_shard_size: str = "1GB",
    **changes: Any,
) -> Any:
    """Save a stock model with the tokenizer of the synthetic corpus, or another one; return the model."""
    model = make_stock(case, head, **{"pad_token_id": 0, **changes})
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    special = {f"{role}_token": token for role, token in SPECIAL_TOKENS.items()}
    tokenizer = tokenizer or word_tokenizer()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return model


def word_pieces(entries: Sequence[str]) -> Tokenizer:
    """Return a WordPiece tokenizer with these entries in id order."""
    tokenizer = Tokenizer(WordPiece({entry: index for index, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.decoder = WordPieceDecoder()
    return tokenizer
