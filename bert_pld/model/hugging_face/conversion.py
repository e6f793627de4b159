"""Renaming, splitting and joining of tensors between our state dict and that of a family's class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from bert_pld.config import ModelConfig
from bert_pld.model.hugging_face.family import Family

HEADS = ("mlm_head.", "nsp_head.")
"""Beginnings of the names of our parameters that a model without a head lacks."""
_WORDS = ("encoder.embeddings.word.weight", "mlm_head.bias")
_POSITIONS = "encoder.embeddings.position.weight"


@dataclasses.dataclass(frozen=True)
class ImportedState:
    """The parameters that a Hugging Face state dict has for our model."""

    state: dict[str, Tensor]
    """By our names."""
    missing: tuple[str, ...]
    """Our names of the parameters of heads that it lacks."""
    ignored: tuple[str, ...]
    """Its names of the parameters of heads that our model lacks."""


def export_state(
    state: Mapping[str, Tensor], config: ModelConfig, family: Family, pad_token_id: int
) -> dict[str, Tensor]:
    """Return a family's contiguous tensors of our state dict; as in a file of `save_pretrained`, tied ones once.

    The vocabulary has `exported_vocab_size` rows, and the position embeddings begin where the family's classes do.
    """
    shapes = parameter_shapes(config)
    _check(state, shapes, "our state dict")
    values = {name: tensor.detach() for name, tensor in state.items()}
    for name in _WORDS:
        values[name] = values[name][: config.exported_vocab_size]
    unused = family.unused_positions(pad_token_id)
    if unused != config.position_offset:
        table = values[_POSITIONS][config.position_offset :]
        values[_POSITIONS] = torch.cat([table.new_zeros(unused, table.shape[1]), table])
    hf_state: dict[str, Tensor] = {}
    for ours, theirs in family.names(config):
        for name, part in zip(theirs, values[ours].tensor_split(len(theirs)), strict=True):
            hf_state[name] = part.contiguous()
    return hf_state


def import_state(hf_state: Mapping[str, Tensor], config: ModelConfig, family: Family) -> ImportedState:
    """Return our parameters from a family's state dict, with or without heads, decoder and the encoder's prefix.

    `config.vocab_size` is that of the state dict.

    Raises:
        ValueError: an untied decoder, or a parameter of the encoder that is missing, unknown or of the wrong shape.
    """
    where = "Hugging Face state dict"
    found = _untied(_with_present_names(hf_state, family), family, where)
    shapes = parameter_shapes(config)
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    for ours, theirs in family.names(config):
        shape = (shapes[ours][0] // len(theirs), *shapes[ours][1:])
        absent = [name for name in theirs if name not in found]
        if absent and ours.startswith(HEADS):
            missing.append(ours)
            continue
        _check({name: found[name] for name in theirs if name in found}, dict.fromkeys(theirs, shape), where)
        parts = [found.pop(name).detach() for name in theirs]
        state[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    for name in found:
        if name.startswith(f"{family.encoder}.") and not name.startswith(f"{family.encoder}.pooler."):
            raise ValueError(f"{where}: unexpected {name} {list(found[name].shape)}")
    return ImportedState(state, tuple(missing), tuple(found))


def _with_present_names(hf_state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Return a state dict with the names of today's class with a head: old files say gamma and beta."""
    prefix = f"{family.encoder}."
    bare = not any(name.startswith(prefix) for name in hf_state)
    found = {}
    for name, tensor in hf_state.items():
        stem, dot, last = name.rpartition(".")
        name = stem + dot + {"gamma": "weight", "beta": "bias"}.get(last, last)
        found[prefix + name if bare else name] = tensor
    return {name: tensor for name, tensor in found.items() if name.removeprefix(prefix) not in family.not_learned}


def _untied(found: dict[str, Tensor], family: Family, where: str) -> dict[str, Tensor]:
    """Take the decoder out, which holds the same values as other parameters; in some files it alone holds them."""
    for name, source in family.tied.items():
        if name in found and source in found and not torch.equal(found[name], found[source]):
            raise ValueError(f"{where}, {name}: differs from {source}; the decoder must be tied")
        if name in found:
            found.setdefault(source, found[name])
            del found[name]
    return found


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter, by our names."""
    from bert_pld.model import make_model

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in make_model(config).state_dict().items()}


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise a ValueError unless the state dict has exactly these names and shapes."""
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"{where}: {name} {list(shape)} is missing")
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{where}, {name}: shape {list(state[name].shape)}; must be {list(shape)}")
    for name in state:
        if name not in shapes:
            raise ValueError(f"{where}: unexpected {name} {list(state[name].shape)}")
