"""Reads bzip2 files block by block from any byte on, so that many workers can share a file.

A bzip2 file holds one or more streams. A stream is a header `BZh1` … `BZh9`, independent blocks of at most 900 kB of
text, and an end marker. A block begins with a 48-bit magic number, at any bit. Here a block is found by its magic, cut
out and made a stream of its own; the standard library decodes it and checks its checksum.

48 random bits equal the magic once in 2^48, which is about once in a thousand dumps of 22 GB. A block that cannot be
decoded up to the next magic is therefore tried up to later ones before the file is reported as damaged.
"""

from __future__ import annotations

import bz2
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

SIGNATURE = b"BZh"
BLOCK_MAGIC = 0x314159265359
END_MAGIC = 0x177245385090
MAGIC_BITS = 48
HEADER_BYTES = 4
LARGEST_BLOCK_BYTES = 1 << 20
"""Largest compressed size of a block; 900,000 incompressible bytes become about 909,600."""
WINDOW_BYTES = 1 << 20
_TAIL_BYTES = 14
"""Bytes to search for an end marker (80 to 87 bits with padding), and the size of an empty stream."""
_EMPTY_STREAM = END_MAGIC.to_bytes(6, "big") + bytes(4)
_INNER_BYTES = [((BLOCK_MAGIC << (8 - shift)) >> 8 & (1 << 40) - 1).to_bytes(5, "big") for shift in range(8)]


class Block(NamedTuple):
    """A decoded block."""

    offset: int
    """Byte of the file in which the magic begins."""
    data: bytes


def read_blocks(path: str | Path, start: int = 0) -> Iterator[Block]:
    """Yield the blocks whose magic begins in byte `start` or later, in order, up to the end of the file."""
    with open(path, "rb") as file:
        magics = _Magics(file, start)
        if start == 0 and (len(head := magics.bytes_at(0, HEADER_BYTES)) < HEADER_BYTES or not _is_header(head)):
            raise ValueError(f"{path}: not a bzip2 file: begins with {head!r}, not b'BZh1' to b'BZh9'")
        first = magics.next(8 * start)
        starts_empty = magics.bytes_at(HEADER_BYTES, len(_EMPTY_STREAM)) == _EMPTY_STREAM
        if start == 0 and first != 8 * HEADER_BYTES and not starts_empty:
            raise _damaged(path, 0)
        # The first magic after a byte within the file may be false. The file's first one, and one after a sound block,
        # are known to begin a block.
        known = start == 0
        while first is not None:
            data, following = _decode_from(magics, first)
            if data is None and not known and (true := _after_false_magic(file, first)) != -1:
                first = true
                continue
            if data is None:
                if following is None and magics.end_of_block(first, None) is None:
                    raise ValueError(
                        f"{path}: ends at byte {magics.size} within a bzip2 stream (last block at byte {first // 8});"
                        " is the file truncated?"
                    )
                raise _damaged(path, first // 8)
            yield Block(first // 8, data)
            first, known = following, True


def _damaged(path: str | Path, byte: int) -> ValueError:
    return ValueError(f"{path}: the bzip2 block at byte {byte} is damaged; test the file with bzip2 -t")


def _decode_from(magics: _Magics, first: int) -> tuple[bytes | None, int | None]:
    """Return a decoded block and the bit at which the next block begins (None after the last block).

    The data is None if the block cannot be decoded; the bit is then that of the last magic tried, or None at the end of
    the file.
    """
    following: int | None = first
    while True:
        assert following is not None
        following = magics.next(following + 1)
        end = magics.end_of_block(first, following)
        if end is not None and (data := _decode(magics.bits(first, end))) is not None:
            return data, following
        if following is None or following - first > 8 * LARGEST_BLOCK_BYTES:
            return None, following


def _after_false_magic(file: BinaryIO, found: int) -> int | None:
    """Return where the next block begins if `found` is a false magic within an earlier block; −1 if it is true."""
    magics = _Magics(file, max(0, found // 8 - LARGEST_BLOCK_BYTES))
    earlier = magics.next(0)
    while earlier is not None and earlier < found:
        data, following = _decode_from(magics, earlier)
        if data is not None and (following is None or following > found):
            return following
        earlier = magics.next(earlier + 1)
    return -1


def _decode(bits: tuple[int, int]) -> bytes | None:
    """Decode one block, given as (value, number of bits); return None if the bits are not exactly one sound block."""
    value, count = bits
    if count < MAGIC_BITS + 32:
        return None
    checksum = (value >> (count - MAGIC_BITS - 32)) & 0xFFFFFFFF
    stream = ((value << MAGIC_BITS | END_MAGIC) << 32) | checksum
    total = count + MAGIC_BITS + 32
    padding = -total % 8
    decoder = bz2.BZ2Decompressor()
    try:
        data = decoder.decompress(b"BZh9" + (stream << padding).to_bytes((total + padding) // 8, "big"))
    except (OSError, EOFError):
        return None
    return data if decoder.eof and not decoder.unused_data else None


def _is_header(data: bytes) -> bool:
    return data[:3] == SIGNATURE and data[3:4] in b"123456789"


class _Magics:
    """The magics of a file from a byte on, searched on demand, in ascending order of their bits."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file.fileno()
        self.size = os.fstat(self._file).st_size
        self._searched = start
        self._found: list[int] = []

    def next(self, bit: int) -> int | None:
        """Return the bit of the first magic at `bit` or later, or None at the end of the file."""
        while True:
            for found in self._found:
                if found >= bit:
                    return found
            if self._searched >= self.size:
                return None
            # A magic at any bit lies within seven bytes, so windows overlap by six.
            window = self.bytes_at(self._searched, WINDOW_BYTES + 6)
            far = 8 * (self._searched - 4 * LARGEST_BLOCK_BYTES)
            self._found = [found for found in self._found if found >= far]
            self._found += sorted(8 * self._searched + found for found in find_magics(window, WINDOW_BYTES))
            self._searched += WINDOW_BYTES

    def end_of_block(self, first: int, following: int | None) -> int | None:
        """Return the bit after the block at `first`, given the bit of the next block; None without an end marker."""
        if following is not None and (
            following % 8 or not _is_header(self.bytes_at(following // 8 - HEADER_BYTES, HEADER_BYTES))
        ):
            return following
        end = self.size if following is None else following // 8 - HEADER_BYTES
        while end > first // 8:
            tail = self.bytes_at(end - _TAIL_BYTES, _TAIL_BYTES)
            if _is_header(tail) and tail[HEADER_BYTES:] == _EMPTY_STREAM:
                end -= _TAIL_BYTES
                continue
            value = int.from_bytes(tail, "big")
            for padding in range(8):
                if (value >> (32 + padding)) & ((1 << MAGIC_BITS) - 1) == END_MAGIC:
                    return 8 * end - padding - 32 - MAGIC_BITS
            break
        return None

    def bits(self, first: int, end: int) -> tuple[int, int]:
        """Return bits [first, end) as (value, number of bits)."""
        last_byte = (end + 7) // 8
        value = int.from_bytes(self.bytes_at(first // 8, last_byte - first // 8), "big") >> (8 * last_byte - end)
        return value & ((1 << (end - first)) - 1), end - first

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Read bytes of the file; fewer at its end."""
        return os.pread(self._file, count, offset) if offset >= 0 else b""


def find_magics(data: bytes, limit: int) -> Iterator[int]:
    """Yield the bits at which a magic begins in the first `limit` bytes, by searching five whole bytes per shift."""
    for shift, inner in enumerate(_INNER_BYTES):
        position = data.find(inner, 1)
        while 0 < position <= limit:
            around = int.from_bytes(data[position - 1 : position + 6].ljust(7, b"\0"), "big")
            if (around >> (8 - shift)) & (1 << MAGIC_BITS) - 1 == BLOCK_MAGIC:
                yield 8 * (position - 1) + shift
            position = data.find(inner, position + 1)
