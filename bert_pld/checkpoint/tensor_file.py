"""Writing a safetensors file in one pass: hashed and checked while it is written, so that nothing is read twice.

The library's own writer (which reads these files) holds the interpreter's lock from beginning to end and leaves hashing
to a second pass; this one runs beside training, in a thread that lets go of the lock for each piece.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_PIECE_VALUES = 2 << 20  # of 4 bytes: large enough that hashing and writing release the lock, small enough to share it


class NotFiniteError(ValueError):
    """A tensor holds NaN or infinity."""


@dataclasses.dataclass(frozen=True)
class FileSum:
    """What a file has to be to be whole."""

    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> FileSum:
    """Write fp32 tensors as safetensors and flush them to the disk.

    Args:
        path: made anew, or written over.
        tensors: name to contiguous float32 array of any shape.

    Raises:
        NotFiniteError: names the first tensor with a value that is not finite.
        OSError: no room, or the write failed.
    """
    header, end = {}, 0
    for name, array in tensors.items():
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise TypeError(f"{name}: {array.dtype}, contiguous {array.flags.c_contiguous}; must be contiguous float32")
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for prefix in (len(encoded).to_bytes(8, "little"), encoded):
            digest.update(prefix)
            file.write(prefix)
        for name, array in tensors.items():
            values = array.reshape(-1)
            for begin in range(0, values.size, _PIECE_VALUES):
                piece = values[begin : begin + _PIECE_VALUES]
                if not np.isfinite(piece).all():
                    raise NotFiniteError(f"{name} has values that are not finite")
                digest.update(piece.data)
                file.write(piece.data)
        file.flush()
        os.fsync(file.fileno())
    return FileSum(8 + len(encoded) + end, digest.hexdigest())
