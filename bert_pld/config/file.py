"""Reading a run's JSON file as DeepSpeed reads it: comments, trailing commas and a byte order mark are allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bert_pld.config.errors import ConfigError


def find_config(source: str | Path) -> Path:
    """Return the path as given if it exists, or else the shipped configuration of that name, if there is one.

    An installed package carries `configs/`, so `bert_base_pld_128.json` and `configs/bert_base_pld_128.json` name the
    same file in any working directory.
    """
    path = Path(source)
    package = Path(__file__).parent.parent
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    shipped = (folder / name for folder in (package / "configs", package.parent / "configs"))
    return next((file for file in shipped if file.is_file()), path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object and reject duplicate keys, of which Python's parser would silently keep the last.

    What is not JSON is read as Hjson, which DeepSpeed uses: with comments, and with commas where none are needed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON (not UTF-8: {error.reason} at byte {error.start})") from error
    if not text.strip():
        raise ConfigError(f"{path}: not valid JSON (the file is empty)")
    try:
        values = _parse(text, path)
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid JSON (its values are nested too deeply)") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a JSON object, is a {type(values).__name__}")
    return values


def _parse(text: str, path: Path) -> Any:
    import hjson

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        duplicates = sorted({key for key in keys if keys.count(key) > 1})
        if duplicates:
            raise ConfigError(f"{path}: duplicate key '{duplicates[0]}'")
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise ConfigError(f"{path}: not valid JSON ({constant} is not a number of JSON)")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except ConfigError:
        raise
    except json.JSONDecodeError as error:
        try:
            return hjson.loads(text, object_pairs_hook=unique)
        except ConfigError:
            raise
        except ValueError as second:
            # JSON's error is the clearer one, unless it is about something that Hjson allows.
            before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
            allowed = after.startswith(("//", "/*", "#")) or (before.endswith(",") and after.startswith(("}", "]")))
            shown = second if allowed else error
            raise ConfigError(f"{path}: not valid JSON ({shown})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON (a number has too many digits)") from error
