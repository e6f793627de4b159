"""A saved Hugging Face model: its directory or Hub id, its configuration and its weights. Nothing in it runs code."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face import family_named
from bert_pld.model.hugging_face.conversion import ImportedState, import_state
from bert_pld.model.hugging_face.family import Family

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_READ_FROM_HUB = ("*.json", "*.safetensors", "*.txt", "*.model")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DECODER_CLASSES = re.compile("CausalLM|LMHeadModel|ConditionalGeneration")


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A directory with a model of one of our families."""

    path: Path
    family: Family
    config: ModelConfig
    """As saved: `vocab_size` is that of the weights; `next_sentence_prediction` is `auto` if a class has it."""

    def read_state(self, next_sentence_prediction: bool) -> ImportedState:
        """Return the weights in fp32, with or without an NSP head.

        A ValueError names a file that is missing or damaged, or a tensor that does not fit.
        """
        state: dict[str, Tensor] = {}
        for file in _weight_files(self.path):
            state |= _load(file)
        config = dataclasses.replace(self.config, next_sentence_prediction=next_sentence_prediction)
        try:
            return import_state(state, config, self.family)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error


def is_saved_model(path: Path) -> bool:
    """Return whether a directory holds a model of transformers rather than a run or checkpoint of ours."""
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return (path / INDEX).is_file()
    return isinstance(content, dict) and "training" not in content


def open_saved_model(path: Path, hub_id: str | None = None) -> SavedModel:
    """Read a directory's configuration; a ValueError of one line says what we cannot train, and what we can.

    `hub_id` is the id of which `path` is the local copy, if it is one.
    """
    import transformers

    file = path / CONFIG
    content = _read_object(file)
    try:
        family = family_named(content.get("model_type"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    # Some old files do not name the class. The weights tell which heads there are, so it is needed for advice only.
    classes = content.get("architectures") or [f"{family.class_prefix}ForMaskedLM"]
    if not isinstance(classes, list) or not all(str(name).isidentifier() for name in classes):
        raise ValueError(
            f"{file}: architectures: {classes!r}; must name the class that saved the weights, such as"
            f' ["{family.class_prefix}ForMaskedLM"]'
        )
    if _DECODER_CLASSES.search(classes[0]):
        raise ValueError(f"{file}: architectures: {classes[0]} is a decoder; must be an encoder's class")
    try:
        hf_config = getattr(transformers, f"{family.class_prefix}Config").from_dict(content)
        config = family.read_config(hf_config)
        problem = next(iter(config.check()), None)
    except Exception as error:  # transformers validates with exceptions of several types
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
    if problem is not None:
        raise ValueError(f"{file}: {problem}")
    if hub_id is not None and not (path / WEIGHTS).is_file() and not (path / INDEX).is_file():
        # Pickles are not downloaded, so the copy does not tell whether there are any. Without a network, it is what an
        # earlier download has left, perhaps by a program that wanted the tokenizer alone.
        folder = hub_id.rpartition("/")[2]
        raise ValueError(
            f"{hub_id}: its copy on this machine has no safetensors; if the Hub has them, fetch them where there is a"
            f" network: hf download {hub_id}; if it has a pickle alone, which can run code when it is read, convert it"
            f' where you trust it, and name the folder instead: python -c "from transformers import AutoTokenizer,'
            f" {classes[0]} as Model; [kind.from_pretrained('{hub_id}').save_pretrained('{folder}') for kind in"
            ' (AutoTokenizer, Model)]"'
        )
    _weight_files(path, classes[0])
    return SavedModel(path, family, config)


def download(name: str) -> Path:
    """Return the local copy of a model on the Hugging Face Hub; a ValueError says why there is none."""
    if not _HUB_ID.fullmatch(name):
        raise ValueError(f"{name}: does not exist")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_READ_FROM_HUB)))
    except Exception as error:  # no network, no such model, no access: each has its own type
        why = " ".join(str(error).split())
        why = why if len(why) <= 120 else f"{why[:120]}…"
        raise ValueError(
            f"{name}: no such directory, and the Hugging Face Hub does not give a model of this name"
            f" ({type(error).__name__}: {why}); without a network, copy the model's directory to this machine"
        ) from error


def _weight_files(path: Path, saved_by: str = "AutoModelForMaskedLM") -> list[Path]:
    """Return the safetensors files; a ValueError if one is missing, or if there are only pickles.

    `saved_by` is the class that converts pickles.
    """
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    index = path / INDEX
    if index.is_file():
        names = _read_object(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ValueError(f"{index}: weight_map: must name the file of each tensor")
        files = sorted({str(name) for name in names.values()})
        for name in files:
            if Path(name).name != name or not name.endswith(".safetensors") or not (path / name).is_file():
                raise ValueError(f"{index}: {name} is missing; must be a safetensors file beside it")
        return [path / name for name in files]
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ValueError(
            f"{path}: has its weights only in {pickles[0]}, a pickle, which can run code when it is read; convert it"
            f' where you trust it: python -c "from transformers import {saved_by} as Model;'
            f" Model.from_pretrained('{path}').save_pretrained('{path}')\""
        )
    raise ValueError(f"{path}: has no {WEIGHTS} and no {INDEX}")


def _load(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read, truncated or damaged ({error})") from error
    return {name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a JSON object, is a {type(content).__name__}")
    return content
