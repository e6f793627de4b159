"""A given tokenizer, `--tokenizer`: a `tokenizer.json`, or a directory that transformers' `AutoTokenizer` loads.

The ids are those of `AutoTokenizer` for a directory, which may differ from its `tokenizer.json`: some classes build
parts of the tokenizer anew. What the class made is therefore saved.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import PostProcessor
from tokenizers.processors import Sequence as PostProcessors

from bert_pld.data.fast_tokenizer import FastTokenizer, RowTemplate, entries_of, parse, read_text
from bert_pld.data.saved_tokenizer import DamagedTokenizerError, check_tokenizer, read_saved_tokenizer
from bert_pld.data.tokenizer import bert_template

WELL_KNOWN = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>", "<cls>", "<bos>"),
    "sep": ("[SEP]", "</s>", "<sep>", "<eos>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Role → names of its token, for a `tokenizer.json` without settings."""


def read_given_tokenizer(path: Path, add_mask_token: bool) -> FastTokenizer:
    """Read a tokenizer and complete it, with a line on standard error for each change.

    `add_mask_token` adds a mask token where there is none. A post-processor that adds nothing gets BERT's template. A
    path without a fast tokenizer, one without a pad, cls, sep or mask token, and one whose ids have such gaps that the
    mask token would take the id of another entry, are a ValueError.
    """
    where = f"--tokenizer {path}"
    if not path.exists():
        raise ValueError(f"{where}: no such file or directory; required is a tokenizer.json, or a folder with one")
    try:
        if path.is_dir():
            loaded, settings = read_saved_tokenizer(path, where)
            text = loaded.to_str()
        else:
            text, settings = read_text(path), {}
            check_tokenizer(text, where)
    except DamagedTokenizerError as error:
        raise ValueError(f"{error}; a vocab.txt is given with --vocab") from error
    content = parse(text, where)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokens = {**_well_known(content), **settings, **_of_template(content, tokenizer, where)}
    if "mask" not in tokens and add_mask_token:
        tokens["mask"] = _add_mask_token(tokenizer, tokens, content, where)
        print(
            f"{where}: mask token {tokens['mask']} added as id {tokenizer.token_to_id(tokens['mask'])}", file=sys.stderr
        )
    elif "mask" not in tokens:
        raise ValueError(f"{where}: the tokenizer has no mask token; --add_mask_token adds one to the saved tokenizer")
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    _add_special_tokens(tokenizer, [token for token in tokens.values() if token not in added], where)
    if RowTemplate.of(content, 0, where) is None and "cls" in tokens and "sep" in tokens:
        _add_template(tokenizer, tokens["cls"], tokens["sep"])
        print(
            f"{where}: adds no special tokens; rows are {tokens['cls']} … {tokens['sep']}, as in BERT", file=sys.stderr
        )
    return FastTokenizer(tokenizer.to_str(), tokens, where)


def _well_known(content: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens by role where they have well-known names."""
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    entries = special or set(entries_of(content))
    return {role: name for role, names in WELL_KNOWN.items() for name in reversed(names) if name in entries}


def _of_template(content: dict[str, Any], tokenizer: Tokenizer, where: str) -> dict[str, str]:
    """Return the tokens that the post-processor puts before and after a text: they are cls and sep."""
    template = RowTemplate.of(content, 0, where)
    if template is None:
        return {}
    return {"cls": tokenizer.id_to_token(template.cls_id), "sep": tokenizer.id_to_token(template.sep_id)}


def _add_mask_token(tokenizer: Tokenizer, tokens: dict[str, str], content: dict[str, Any], where: str) -> str:
    name = "[MASK]" if any(token.startswith("[") for token in tokens.values()) else "<mask>"
    # Where words carry the space before them, a mask takes this space with it, as in RoBERTa.
    _add_special_tokens(tokenizer, [AddedToken(name, lstrip=content["model"].get("type") != "WordPiece")], where)
    return name


def _add_special_tokens(tokenizer: Tokenizer, tokens: Sequence[AddedToken | str], where: str) -> None:
    """Add special tokens; one that would take the id of another entry is a ValueError."""
    # The library numbers a new token by the number of entries. Where ids have gaps, that id may be in use.
    entries = {identity: entry for entry, identity in tokenizer.get_vocab(with_added_tokens=True).items()}
    tokenizer.add_special_tokens(tokens)
    for name in map(str, tokens):
        identity = tokenizer.token_to_id(name)
        if entries.get(identity, name) != name:
            raise ValueError(
                f"{where}: token {name} would get id {identity}, which is the entry {entries[identity]!r}, because the"
                f" ids have gaps; required is a tokenizer that has {name}, or one without gaps"
            )


def _add_template(tokenizer: Tokenizer, cls: str, sep: str) -> None:
    ids = {token: tokenizer.token_to_id(token) for token in (cls, sep)}
    template: PostProcessor = bert_template(ids, cls, sep)
    before = tokenizer.post_processor
    tokenizer.post_processor = template if before is None else PostProcessors([before, template])
