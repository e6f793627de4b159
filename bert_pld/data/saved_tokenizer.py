"""The tokenizer in a saved Hugging Face directory, as transformers' `AutoTokenizer` makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bert_pld.data.fast_tokenizer import ROLES, read_text
from bert_pld.files import TOKENIZER


class DamagedTokenizerError(ValueError):
    """A `tokenizer.json` that the library cannot load."""


def read_saved_tokenizer(folder: Path, where: str) -> tuple[Tokenizer, dict[str, str]]:
    """Return a folder's fast tokenizer and its special tokens by role.

    Some classes build parts of their tokenizer anew, so it may differ from the folder's `tokenizer.json`. A folder
    without a fast tokenizer is a ValueError that begins with `where`.
    """
    from transformers import AutoTokenizer

    if (folder / TOKENIZER).is_file():  # transformers' own error would not name a damaged file
        check_tokenizer(read_text(folder / TOKENIZER), f"{where}/{TOKENIZER}")
    try:
        loaded: Any = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # its types vary: missing files, unknown classes, packages that are not installed
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{where}: transformers cannot load a tokenizer from it ({why})") from error
    if not getattr(loaded, "is_fast", False):
        raise ValueError(
            f"{where}: {type(loaded).__name__} is no fast tokenizer; required is one that the library `tokenizers` runs"
            " (a tokenizer.json)"
        )
    special = {token.content for token in loaded.added_tokens_decoder.values() if token.special}
    if not loaded.get_vocab().keys() - special:
        # transformers makes an empty tokenizer of the model's class where a folder has none.
        raise ValueError(
            f"{where}: holds no tokenizer, only a model; required is a {TOKENIZER}, as `save_pretrained` of a tokenizer"
            " writes it"
        )
    tokens = {role: getattr(loaded, f"{role}_token", None) for role in ROLES}
    tokens["cls"] = tokens["cls"] or loaded.bos_token
    tokens["sep"] = tokens["sep"] or loaded.eos_token
    return loaded.backend_tokenizer, {role: str(token) for role, token in tokens.items() if token}


def check_tokenizer(text: str, where: str) -> None:
    """Raise a DamagedTokenizerError unless the library loads the text of a `tokenizer.json`."""
    try:
        Tokenizer.from_str(text)
    except Exception as error:  # the library raises Exception itself
        why = " ".join(str(error).split())[:200]
        raise DamagedTokenizerError(f"{where}: not a tokenizer.json ({why})") from error
