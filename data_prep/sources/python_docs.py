"""Kind `python-docs`: the documentation that is part of every Python, so that a first run needs no download.

There are two parts: the topics of the language reference as `help()` shows them (`pydoc_data.topics`), and the
docstrings of the standard library, one document per module. Source files are parsed, never imported or run. The text is
that of the running Python, so another Python version gives another corpus.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.kind import Document, Piece, SourceKind
from data_prep.sources.text import join_lines, split_blocks

_EXCLUDED = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip", "pydoc_data",
    "__phello__", "__pycache__", "lib-dynload", "_vendor",
}  # fmt: skip
_CODE = re.compile(r"^\s*(?:>>>|\.\.\. |[|+=~^-]{3}|\$ |#|import |from \S+ import )|::=", re.MULTILINE)
_MARKUP = re.compile(r"[`*]{1,2}(?=\S)([^`*\n]+?)(?<=\S)[`*]{1,2}|\"([\w.]+(?:\(\))?)\"|:\w+:`([^`]+)`")
_LETTERS = re.compile(r"[^\W\d_]")
FEWEST_WORDS = 6


def list_pieces(where: str) -> list[Piece]:
    """List the topics and then each module, in order of path; raise ValueError if this Python has none."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    modules = [
        path for path in sorted(stdlib.rglob("*.py"), key=str) if not _EXCLUDED & set(path.relative_to(stdlib).parts)
    ]
    topics = stdlib / "pydoc_data" / "topics.py"
    if not topics.is_file() or not modules:
        raise ValueError(f"python-docs: {stdlib} holds no pydoc_data/topics.py or no modules; use another source")
    return [Piece("python-docs", str(path), 0, path.stat().st_size) for path in [topics, *modules]]


def read_piece(piece: Piece) -> Iterator[Document]:
    """Yield the documents of one source file: each topic, or all docstrings of a module together."""
    path = Path(piece.path)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        yield Document("", f"module {path.stem}", path.stem, dropped="not Python")
        return
    if path.name == "topics.py" and path.parent.name == "pydoc_data":
        for title, text in _topics(tree):
            yield Document("\n".join(prose(text)), f"topic {title}", title)
        return
    paragraphs = [paragraph for text in _docstrings(tree) for paragraph in prose(inspect.cleandoc(text))]
    if paragraphs:
        yield Document("\n".join(dict.fromkeys(paragraphs)), f"module {path.stem}", path.stem)


def prose(text: str) -> list[str]:
    """Return the prose paragraphs of reStructuredText or a docstring, without markup.

    Code, examples, tables, underlined headings and paragraphs of fewer than six words are left out.
    """
    kept = []
    for block in split_blocks(text):
        if _CODE.search(block):
            continue
        line = _MARKUP.sub(lambda match: match[1] or match[2] or match[3], join_lines(block)).lstrip("*- ")
        letters = len(_LETTERS.findall(line))
        if len(line.split()) >= FEWEST_WORDS and letters >= 0.7 * len(line):
            kept.append(line)
    return kept


def _docstrings(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Yield the docstrings of a module or class and its members, in source order; inner functions are left out."""
    yield ast.get_docstring(node, clean=False) or ""
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(child, clean=False) or ""


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the entries of the dictionary that `pydoc_data/topics.py` assigns, in order of name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from sorted(ast.literal_eval(node.value).items())


KIND = SourceKind(
    "python-docs", "documentation of the running Python; takes no path", "python-docs", list_pieces, read_piece,
    needs_path=False, licence="Python Software Foundation License",
)  # fmt: skip
