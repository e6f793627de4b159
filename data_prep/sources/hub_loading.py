"""Finds a data set of the Hugging Face Hub with `datasets`, and turns its errors into one-line messages.

`datasets` is imported only when it is needed, and its progress bars and log lines are switched off.
"""

from __future__ import annotations

import ast
import difflib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARQUET_COPY = "refs/convert/parquet"
"""Branch on which the Hub keeps a Parquet copy of a data set, in folders CONFIG/SPLIT."""
_LOCAL_HINT = "HF_HUB_OFFLINE=1 reads the local cache"
_AGAIN = "download it again with network access"
_MOST_NAMES = 12
_ABOUT_CONFIGURATION = re.compile(r"BuilderConfig '.*' not found|Config name is missing")
_NETWORK_MODULES = ("httpx", "httpcore", "requests", "urllib3", "aiohttp")


def quiet_datasets() -> Any:
    """Return the module `datasets` without progress bars and log lines."""
    import datasets
    import huggingface_hub.utils

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"datasets|huggingface_hub|fsspec")
    return datasets


def is_offline() -> bool:
    """Return whether `HF_DATASETS_OFFLINE` or `HF_HUB_OFFLINE` forbids downloading."""
    datasets = quiet_datasets()
    import huggingface_hub.constants

    return bool(datasets.config.HF_HUB_OFFLINE or huggingface_hub.constants.HF_HUB_OFFLINE)


def load_builder(where: str, name: str, config: str | None, revision: str | None) -> Any:
    """Return the `datasets.DatasetBuilder` of a data set, without downloading its text.

    `where` is the user's argument, for messages; `name` is an id on the Hub, or a folder in the Hub's layout. On the
    branch `PARQUET_COPY`, `config` is a folder. A data set, configuration or revision that does not exist or may not be
    read is a ValueError, and a Hub that cannot be reached is an OSError.
    """
    datasets = quiet_datasets()
    if os.path.isdir(name):
        with one_line_errors(where, name, config):
            return datasets.load_dataset_builder(name, config)
    if name.count("/") != 1 or name[0] in "./~":
        raise ValueError(f"hub={where}: no folder {name!r} exists, and an id on the Hub has the form OWNER/NAME")
    if is_offline():
        return _cached_builder(where, name, config, revision)
    with one_line_errors(where, name, config):
        if revision == PARQUET_COPY and config:
            return datasets.load_dataset_builder(name, data_dir=config, revision=revision)
        return datasets.load_dataset_builder(name, config, revision=revision)


def _cached_builder(where: str, name: str, config: str | None, revision: str | None) -> Any:
    """Return the builder of a data set that `datasets` has prepared, or that was downloaded, without network access."""
    datasets = quiet_datasets()
    import huggingface_hub
    import huggingface_hub.errors

    prepared = ""
    if revision is None:
        try:
            return datasets.load_dataset_builder(name, config)
        except (ValueError, OSError) as error:
            if "in the cache" in str(error):  # the cache has another configuration, or several
                prepared = " ".join(str(error).split())
    try:
        folder = huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
        complete = _is_listed(name, revision)
    except huggingface_hub.errors.LocalEntryNotFoundError as error:
        complete, folder = False, getattr(error, "snapshot_path", "")
    except huggingface_hub.errors.HFValidationError as error:
        raise ValueError(f"hub={where}: {_first_line(error)}") from None
    not_cached = (
        f"hub={where}: not in the local cache, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids downloading;"
        f" with network access: hf download --repo-type dataset {name}"
    )
    if not folder:
        raise ValueError(f"{not_cached} ({prepared})" if prepared else not_cached)
    try:
        if revision == PARQUET_COPY and config:
            builder = datasets.load_dataset_builder(folder, data_dir=config)
        else:
            with one_line_errors(where, name, config):
                builder = datasets.load_dataset_builder(folder, config)
    except (ValueError, FileNotFoundError) as error:
        if complete:
            raise
        if not any(path.is_file() for path in Path(folder).rglob("*") if path.suffix not in (".md", ".yaml")):
            raise ValueError(not_cached) from None
        raise ValueError(
            f"hub={where}: the download in the local cache is incomplete ({_first_line(error)}); {_AGAIN}"
        ) from None
    builder.download_is_complete = complete
    return builder


def _is_listed(name: str, revision: str | None) -> bool:
    """Return whether the cache holds the list of the data set's files, which `snapshot_download` has checked."""
    import huggingface_hub

    if not hasattr(huggingface_hub, "get_cached_repo_tree"):
        return False
    try:
        huggingface_hub.get_cached_repo_tree(name, repo_type="dataset", revision=revision)
    except Exception as error:
        if type(error).__name__ == "CachedRepoTreeNotFoundError":
            return False
        raise
    return True


def require_complete(where: str, builder: Any, split: str, rows: int | None) -> None:
    """Check that a download holds a whole split, by the numbers in its file names and by its rows, if they are known.

    A split that is incomplete, or cannot be shown to be complete, is a ValueError.
    """
    files = [os.path.basename(str(path)) for path in builder.config.data_files[split]]
    numbered = [match for match in (re.search(r"-(\d{5})-of-(\d{5})", file) for file in files) if match]
    expected = int(numbered[0][2]) if numbered and len(numbered) == len(files) else None
    if expected is not None and len({match[1] for match in numbered}) != expected:
        raise ValueError(f"hub={where}: the local cache holds {len(files)} of {expected} files; {_AGAIN}")
    described = (builder.info.splits or {}).get(split)
    if rows is not None and described and described.num_examples and described.num_examples != rows:
        raise ValueError(f"hub={where}: the local cache holds {rows} of {described.num_examples} rows; {_AGAIN}")
    if not builder.download_is_complete and expected is None and not (described and rows is not None):
        raise ValueError(f"hub={where}: the download in the local cache is incomplete; {_AGAIN}")


@contextmanager
def one_line_errors(where: str, name: str = "", config: str | None = None) -> Iterator[None]:
    """Turn the errors of `datasets` into `ValueError` for mistakes of the user, and `OSError` for network failures.

    The message is one line that begins with the user's argument.
    """
    try:
        yield
    except Exception as error:
        message = _first_line(error)
        if (cause := _network_cause(error)) is not None:
            why = "" if message.startswith("Couldn't reach") else f" ({_first_line(cause)})"
            raise OSError(f"hub={where}: the Hub cannot be reached{why}; {_LOCAL_HINT}") from None
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        if "scripts are no longer supported" in message:
            raise ValueError(
                f"hub={where}: needs a loading script, which 'datasets' no longer runs; try the Hub's own"
                f" Parquet copy: hub={where},revision={PARQUET_COPY}, or another data set with the same text"
            ) from None
        if _ABOUT_CONFIGURATION.match(message) and (names := _listed_names(str(error))):
            example = f"hub={name}:{difflib.get_close_matches(config or '', names, 1, 0.0)[0]}"
            problem = f"no configuration {config!r}" if config else "has several configurations; select one"
            raise ValueError(f"hub={where}: {problem}, for example {example} (available: {shortened(names)})") from None
        if "is a gated dataset" in message:
            message += " Log in with 'hf auth login', or set HF_TOKEN."
        if isinstance(error, (ValueError, FileNotFoundError)) or type(error).__module__.startswith("datasets"):
            raise ValueError(message if message.startswith("hub=") else f"hub={where}: {message}") from None
        raise ValueError(f"hub={where}: {type(error).__name__}: {message}") from None


def shortened(names: list[str]) -> str:
    """Join names for a message; only the first of many."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _network_cause(error: BaseException) -> BaseException | None:
    """Return the connection or server failure that caused an error, or None if it has another cause."""
    found: BaseException | None = None
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if status is not None:
            return seen if status >= 500 or status == 429 else None
        if isinstance(seen, (ConnectionError, TimeoutError)) or type(seen).__module__.startswith(_NETWORK_MODULES):
            found = seen
        seen = seen.__cause__ or seen.__context__
    return found


def _first_line(error: object) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split("\n")[0].split())


def _listed_names(message: str) -> list[str]:
    """Return the names in a message that contains a Python list of them."""
    match = re.search(r"\[.*\]", message)
    try:
        return [str(name) for name in ast.literal_eval(match[0])] if match else []
    except (ValueError, SyntaxError):
        return []
