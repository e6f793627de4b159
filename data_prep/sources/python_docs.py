"""Kind `python-docs`: the prose that every Python carries, so that a first run needs no download.

Two parts: the language reference's topics as `help()` shows them (`pydoc_data.topics`), and the docstrings of the
standard library, one document a module. Sources are parsed, never imported or run. The text belongs to the Python
that reads it: another Python version gives another corpus.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.kind import Document, Piece, SourceKind
from data_prep.sources.text import blocks, join_lines

_LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip", "pydoc_data",
    "__phello__", "__pycache__", "lib-dynload", "_vendor",
}  # fmt: skip
_CODE = re.compile(r"^\s*(?:>>>|\.\.\. |[|+=~^-]{3}|\$ |#|import |from \S+ import )|::=", re.MULTILINE)
_MARKUP = re.compile(r"[`*]{1,2}(?=\S)([^`*\n]+?)(?<=\S)[`*]{1,2}|\"([\w.]+(?:\(\))?)\"|:\w+:`([^`]+)`")
_LETTERS = re.compile(r"[^\W\d_]")
FEWEST_WORDS = 6


def list_pieces(where: str) -> list[Piece]:
    """The topics, then each module in order of its path.

    Raises:
        ValueError: this Python came without them.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    modules = [
        path for path in sorted(stdlib.rglob("*.py"), key=str) if not _LEFT_OUT & set(path.relative_to(stdlib).parts)
    ]
    topics = stdlib / "pydoc_data" / "topics.py"
    if not topics.is_file() or not modules:
        raise ValueError(f"python-docs: {stdlib} holds no pydoc_data/topics.py or no modules; use another source")
    return [Piece("python-docs", str(path), 0, path.stat().st_size) for path in [topics, *modules]]


def read_piece(piece: Piece) -> Iterator[Document]:
    """The documents of one source file: each topic, or the docstrings of a module together."""
    path = Path(piece.path)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    if path.name == "topics.py" and path.parent.name == "pydoc_data":
        for title, text in _topics(tree):
            yield Document("\n".join(prose(text)), f"topic {title}", piece.kind, title)
        return
    paragraphs = [paragraph for text in _docstrings(tree) for paragraph in prose(inspect.cleandoc(text))]
    if paragraphs:
        yield Document("\n".join(dict.fromkeys(paragraphs)), f"module {path.stem}", piece.kind, path.stem)


def prose(text: str) -> list[str]:
    """The paragraphs of reStructuredText or a docstring that read as prose, markup removed.

    Left out: code and examples, tables, underlined headings, and lines of fewer than six words.
    """
    kept = []
    for block in blocks(text):
        if _CODE.search(block):
            continue
        line = _MARKUP.sub(lambda match: match[1] or match[2] or match[3], join_lines(block)).lstrip("*- ")
        letters = len(_LETTERS.findall(line))
        if len(line.split()) >= FEWEST_WORDS and letters >= 0.7 * len(line):
            kept.append(line)
    return kept


def _docstrings(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """The docstrings of a module or class and of what it defines, in order of the source; not of inner functions."""
    yield ast.get_docstring(node, clean=False) or ""
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _docstrings(child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(child, clean=False) or ""


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The entries of the dictionary that `pydoc_data/topics.py` assigns, in order of name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from sorted(ast.literal_eval(node.value).items())


KIND = SourceKind(
    "python-docs",
    "documentation of the Python that runs this; takes no path",
    "python-docs",
    list_pieces,
    read_piece,
    needs_place=False,
    licence="Python Software Foundation License",
)
