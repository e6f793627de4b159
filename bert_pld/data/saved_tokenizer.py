"""The tokenizer in a saved Hugging Face directory, as transformers' `AutoTokenizer` makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

ROLES = ("pad", "unk", "cls", "sep", "mask")


def read_saved_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Return a folder's fast tokenizer and its special tokens by role; a ValueError if it has none.

    Some classes build parts of their tokenizer anew, so it may differ from the folder's `tokenizer.json`.
    """
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # its types vary: missing files, unknown classes, packages that are not installed
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers cannot load a tokenizer from it ({why})") from error
    if not getattr(loaded, "is_fast", False):
        raise ValueError(
            f"{folder}: {type(loaded).__name__} is no fast tokenizer; required is one that the library `tokenizers`"
            " runs (a tokenizer.json)"
        )
    tokens = {role: getattr(loaded, f"{role}_token", None) for role in ROLES}
    tokens["cls"] = tokens["cls"] or loaded.bos_token
    tokens["sep"] = tokens["sep"] or loaded.eos_token
    return loaded.backend_tokenizer, {role: str(token) for role, token in tokens.items() if token}


def entries_of(tokenizer: Tokenizer) -> list[str]:
    """Return a tokenizer's entries in id order; an id that no token has is an empty text."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    entries = [""] * (max(ids.values(), default=-1) + 1)
    for entry, index in ids.items():
        entries[index] = entry
    return entries
