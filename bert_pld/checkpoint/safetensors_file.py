"""Writes a safetensors file in one pass, which also checks and hashes the values and does not stop other threads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_VALUES_PER_WRITE = 2 << 20
"""fp32 values: enough for hashing and writing to release the interpreter's lock, few enough to release it often."""


class NonFiniteTensorError(ValueError):
    """A tensor holds NaN or infinity."""


@dataclasses.dataclass(frozen=True)
class FileChecksum:
    """Size and hash of a complete file."""

    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> FileChecksum:
    """Write contiguous fp32 tensors as a safetensors file, checked and hashed in the same pass; flush it to the disk.

    The safetensors library's own writer would hold the interpreter's lock until the end, which stops training, and the
    hash would need a second pass over the file. A NonFiniteTensorError names the first tensor that is not finite.
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
            for begin in range(0, values.size, _VALUES_PER_WRITE):
                part = values[begin : begin + _VALUES_PER_WRITE]
                if not np.isfinite(part).all():
                    raise NonFiniteTensorError(f"{name} has values that are not finite")
                digest.update(part.data)
                file.write(part.data)
        file.flush()
        os.fsync(file.fileno())
    return FileChecksum(8 + len(encoded) + end, digest.hexdigest())
