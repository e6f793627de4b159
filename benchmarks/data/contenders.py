"""Contenders beside the build, each in a process of its own that prints its figures as JSON.

    python -m benchmarks.data.contenders CONTENDER SENTENCES TOKENIZER_FOLDER MOST_BYTES SEQ_LENGTH

SENTENCES has one sentence a line and a blank line after each document. Time counts from the first sentence to the last
token (for `python_static`, to the closed HDF5 file), without imports and without reading the vocabulary and the file.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.python_static import write_static_shard

BARE, BARE_FAST = "encode_batch", "encode_batch_fast"
PURE_PYTHON, PYTHON_STATIC = "pure_python", "python_static"
_BATCH_SENTENCES = 4096
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]*[A-Z])")


def read_documents(path: Path, most_bytes: int) -> Iterator[list[str]]:
    """Yield the documents of a file of sentences until `most_bytes` are read; 0 reads all."""
    document: list[str] = []
    size = 0
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            size += len(line.encode())
            if line != "\n":
                document.append(line.rstrip("\n"))
                continue
            yield document
            document = []
            if most_bytes and size >= most_bytes:
                return
    if document:
        yield document


def tokenize_bare(contender: str, documents: list[list[str]], tokenizer_folder: Path) -> dict[str, float]:
    """Time the library `tokenizers` alone, in RAYON_NUM_THREADS threads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    encode = tokenizer.encode_batch if contender == BARE else tokenizer.encode_batch_fast
    encode(["warm up"], add_special_tokens=False)
    sentences = [sentence for document in documents for sentence in document]
    return _timed(
        lambda: sum(
            len(encoding.ids)
            for start in range(0, len(sentences), _BATCH_SENTENCES)
            for encoding in encode(sentences[start : start + _BATCH_SENTENCES], add_special_tokens=False)
        )
    )


def tokenize_in_python(documents: list[list[str]], tokenizer_folder: Path) -> dict[str, float]:
    """Time the Python tokenizer of `transformers`, called for each sentence.

    Sentences are split by a regular expression, as the published preparation scripts do. Those also make pairs and
    masks in Python, which is not included.
    """
    tokenizer = _slow_tokenizer(tokenizer_folder)
    texts = [" ".join(document) for document in documents]
    return _timed(lambda: sum(len(tokenizer.tokenize(s)) for text in texts for s in _SENTENCE_END.split(text)))


def prepare_in_python(documents: list[list[str]], tokenizer_folder: Path, seq_length: int) -> dict[str, float]:
    """Time the whole published approach, from split sentences to HDF5 with static masks."""
    tokenizer = _slow_tokenizer(tokenizer_folder)
    entries = tokenizer.get_vocab()
    with tempfile.TemporaryDirectory(prefix="bench_static_") as folder:
        path = Path(folder) / "training.hdf5"
        return _timed(lambda: write_static_shard(documents, tokenizer.tokenize, entries, path, seq_length))


def _slow_tokenizer(tokenizer_folder: Path) -> Any:
    try:
        from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy as Slow
    except ImportError:
        from transformers import BertTokenizer as Slow  # before version 5
    manifest = json.loads((tokenizer_folder / "manifest.json").read_text(encoding="utf-8"))
    lower = "uncased" in json.dumps(manifest)
    tokenizer = Slow(vocab_file=str(tokenizer_folder / "vocab.txt"), do_lower_case=lower)
    if tokenizer.is_fast:
        raise ValueError("this version of transformers has no Python tokenizer for BERT")
    return tokenizer


def _timed(count_tokens: Callable[[], int]) -> dict[str, float]:
    start, used = time.perf_counter(), time.process_time()
    tokens = count_tokens()
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - used
    return {"tokens": tokens, "seconds": seconds, "processor_seconds": processor_seconds}


def main(contender: str, sentences: str, tokenizer_folder: str, most_bytes: str, seq_length: str) -> None:
    """Run one contender and print its figures."""
    documents = list(read_documents(Path(sentences), int(most_bytes)))
    folder = Path(tokenizer_folder)
    if contender == PURE_PYTHON:
        figures = tokenize_in_python(documents, folder)
    elif contender == PYTHON_STATIC:
        figures = prepare_in_python(documents, folder, int(seq_length))
    else:
        figures = tokenize_bare(contender, documents, folder)
    size = sum(len(sentence.encode()) + 1 for document in documents for sentence in document)
    print(json.dumps({**figures, "text_bytes": size}))


if __name__ == "__main__":
    main(*sys.argv[1:])
