"""Compressed files, recognized by their first bytes and read as a stream: gzip, bzip2, xz and zstd."""

from __future__ import annotations

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_BEGINNINGS = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9]"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
_READ_BYTES = 1 << 14
"""Small, because it can become a thousand times as much."""
_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}


class DamagedError(Exception):
    """Compressed data that cannot be decoded to its end, with the reason."""


def compression_of(path: str | Path) -> str | None:
    """Return how a file is compressed, whatever its name; None if it is not."""
    with open(path, "rb") as file:
        beginning = file.read(8)
    return next((name for name, pattern in _BEGINNINGS.items() if pattern.match(beginning)), None)


def decompressed(path: str | Path) -> Iterator[bytes]:
    """Yield the content of a file, decompressed if need be; raise DamagedError for compressed data that is damaged."""
    name = compression_of(path)
    if name == "zstd":
        yield from _read_zstd(path)
        return
    with open(path, "rb") as file:
        if name is None:
            yield from iter(lambda: file.read(1 << 20), b"")
            return
        decoder: Any = None
        data = b""
        while data := data or file.read(_READ_BYTES):
            if decoder is None and not (data := data.lstrip(b"\0")):  # Tapes and block devices pad with zeros.
                continue
            decoder = decoder or _DECODERS[name]()
            try:
                yield decoder.decompress(data)
            except (OSError, lzma.LZMAError, zlib.error, EOFError) as error:
                raise DamagedError(f"{name}: {error}") from None
            data = b""
            if decoder.eof:
                data, decoder = decoder.unused_data, None
        if decoder is not None:
            raise DamagedError(f"{name}: the file ends before the compressed data does")


def _read_zstd(path: str | Path) -> Iterator[bytes]:
    import pyarrow

    try:
        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            reader = io.BufferedReader(stream, 1 << 20)
            yield from iter(lambda: reader.read(1 << 20), b"")
    except OSError as error:
        if error.errno is not None:
            raise
        if "too much memory" in str(error):
            raise ValueError(
                f"{path}: compressed by zstd with a window above 128 MiB (--long=28 or more); compress it again"
                " without: zstd -dc --long=31 FILE | zstd -o NEW_FILE"
            ) from None
        raise DamagedError(f"zstd: {error}") from None


def beginning(path: str | Path, count: int) -> bytes:
    """Return the first `count` bytes of a file, decompressed, or fewer if it is shorter or damaged."""
    data = b""
    try:
        for chunk in decompressed(path):
            data += chunk
            if len(data) >= count:
                break
    except DamagedError:
        pass  # Reading the file reports it, with the line.
    return data[:count]
