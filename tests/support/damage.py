"""Seeded damage to files: random bytes, and the structure of HDF5 files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

LONGEST_PIECE = 4096


def damage_bytes(content: bytes, draw: np.random.Generator) -> tuple[str, bytes]:
    """Return what was done to the content, and the damaged content, which always differs."""
    size = len(content)
    # Half of the damage is near the beginning, where formats keep their structure.
    place = int(draw.integers(size if draw.random() < 0.5 else min(size, 2048)))
    length = int(draw.integers(1, min(LONGEST_PIECE, size - place) + 1))
    piece = content[place : place + length]
    noise = draw.integers(0, 256, length, dtype=np.uint8).tobytes()
    extreme = bytes([int(draw.choice([0, 255, 127, 128]))]) * int(draw.choice([1, 2, 4, 8]))
    kind, new = [
        ("one bit flipped", bytes([content[place] ^ 1 << int(draw.integers(8))])),
        ("random bytes", noise),
        ("an extreme number", extreme),
        ("zeros", bytes(length)),
        ("removed", b""),
        ("doubled", piece + piece),
        ("inserted", noise + piece),
        ("reversed", piece[::-1]),
        ("cut off", None),
        ("appended", piece),
    ][int(draw.integers(10))]
    if kind == "cut off":
        damaged = content[:place]
    elif kind == "appended":
        damaged = content + noise
    else:
        replaced = {"one bit flipped": 1, "an extreme number": len(extreme)}.get(kind, length)
        damaged = content[:place] + new + content[place + replaced :]
    if damaged == content:
        damaged = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
    return f"{kind} at {place}, {length} bytes", damaged


def damage_structure(path: Path, draw: np.random.Generator) -> str:
    """Change a dataset or an attribute of an HDF5 file, and return what was done."""
    with h5py.File(path, "r+") as file:
        names, attributes = list(file), list(file.attrs)
        if attributes and draw.random() < 0.35:
            name = str(draw.choice(attributes))
            changes = {
                "removed": None,
                "a number": -7,
                "a large number": 2**40,
                "a text": "θ\n",
                "bytes": np.bytes_(b"\xff\xfe"),
                "a list": [1, 2],
                "NaN": float("nan"),
                "empty": h5py.Empty("f4"),
            }
            how = str(draw.choice(list(changes)))
            del file.attrs[name]
            if how != "removed":
                file.attrs[name] = changes[how]
            return f"attribute {name}: {how}"
        name = str(draw.choice(names))
        values = file[name][...]
        kinds = {
            "removed": None,
            "a group": None,
            "a scalar": np.int32(3),
            "one row less": values[:-1],
            "no rows": values[:0],
            "another dimension": values[..., None],
            "transposed": values.T.copy(),
            "real numbers": values.astype("f4"),
            "64 bits": values.astype("i8"),
            "big-endian": values.astype(values.dtype.newbyteorder(">")),
            "text": np.full(len(values), b"abc"),
            "a compound": np.zeros(len(values), [("a", "i4"), ("b", "f8")]),
            "largest numbers": np.full_like(values, np.iinfo(values.dtype).max),
            "smallest numbers": np.full_like(values, np.iinfo(values.dtype).min),
            "empty": h5py.Empty("i4"),
            "compressed": values,
            "without storage": None,
            "a huge shape": None,
        }
        how = str(draw.choice(list(kinds)))
        del file[name]
        if how == "a group":
            file.create_group(name)
        elif how == "compressed":
            file.create_dataset(name, data=values, compression="gzip", chunks=True)
        elif how == "without storage":
            file.create_dataset(name, values.shape, values.dtype)
        elif how == "a huge shape":
            shape = (2**40, *values.shape[1:])
            file.create_dataset(name, shape, values.dtype, chunks=(1, *values.shape[1:]))
        elif how != "removed":
            file.create_dataset(name, data=kinds[how])
    return f"dataset {name}: {how}"


STRANGE = [None, True, -1, 0, 10**30, 1.5, float("nan"), "", "θ", "1", [], [[]], {}, {"a": None}, [1, "a"]]


def damage_json(value: object, draw: np.random.Generator) -> object:
    """Return a JSON value with one part removed, repeated, renamed or replaced; the part may lie at any depth."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(draw.integers(len(keys)))]
        changed = dict(value) if isinstance(value, dict) else list(value)
        action = draw.random()
        if action < 0.1:
            del changed[key]
        elif action < 0.2 and isinstance(changed, dict):
            changed[f"{key}s"] = changed.pop(key)
        elif action < 0.2:
            changed.append(changed[key])
        else:
            changed[key] = damage_json(changed[key], draw)
        return changed
    return STRANGE[int(draw.integers(len(STRANGE)))]
