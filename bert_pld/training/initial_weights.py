"""What a new run starts from, `--initialize_from`: the weights of a run or checkpoint, or a Hugging Face model."""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from bert_pld.checkpoint import format as checkpoint_format
from bert_pld.checkpoint.resume import fit_weights, resolve_for_all
from bert_pld.config import FollowedModel, ModelConfig, load_config, rounded_vocabulary
from bert_pld.data.fast_tokenizer import FastTokenizer, entries_of
from bert_pld.data.rows import ShardedRows
from bert_pld.data.saved_tokenizer import read_saved_tokenizer
from bert_pld.data.shards import vocabulary_hash
from bert_pld.data.tokenizer import SPECIAL_TOKENS
from bert_pld.files import CHECKPOINTS, CONFIG, TOKENIZER, TOKENIZER_CONFIG
from bert_pld.model.hugging_face.directory import download, is_saved_model, open_saved_model
from bert_pld.training.new_vocabulary import find_sources

NEVER_LOGIT = -100.0
"""Decoder bias of the rows that only round a vocabulary up: e^-100 is 0 beside any other probability in fp32."""
_WORDS, _WORD_BIAS = "encoder.embeddings.word.weight", "mlm_head.bias"
_POSITIONS = "encoder.embeddings.position.weight"


class InitialWeights(abc.ABC):
    """Weights for a new run; with `new_vocabulary` the run's data has another tokenizer."""

    def __init__(self, path: Path, name: str, new_vocabulary: bool) -> None:
        self.path, self.new_vocabulary = path, new_vocabulary
        self.name = name
        """What the user gave: the path, or an id on the Hub."""

    @property
    @abc.abstractmethod
    def follows(self) -> FollowedModel | None:
        """The model whose values stand where the JSON gives none."""

    @abc.abstractmethod
    def check(self, rows: ShardedRows) -> None:
        """Raise a ValueError if the data has another tokenizer, unless `new_vocabulary` allows it."""

    @abc.abstractmethod
    def fill(self, model: nn.Module, config: ModelConfig, rows: ShardedRows) -> list[str]:
        """Put the weights into a new model of a resolved configuration; return lines that say what is new."""

    def resolved(self, config: ModelConfig, rows: ShardedRows) -> ModelConfig:
        """Return a run's model with the size of the vocabulary that an export has."""
        if not self.new_vocabulary:
            return config
        return dataclasses.replace(config, exported_vocab_size=rows.attributes.vocabulary_size)

    def _followed(self, config: ModelConfig, is_run: bool) -> FollowedModel:
        if self.new_vocabulary:  # Rows before the first position are those up to the old [PAD].
            config = dataclasses.replace(config, vocab_size=None, exported_vocab_size=None, position_offset=0)
        return FollowedModel(self.name, config, is_run)

    def _replace_vocabulary(
        self, state: dict[str, Tensor], old: Tokenizer, old_special: dict[str, int], rows: ShardedRows, offset: int
    ) -> list[str]:
        """Make the tables of words for the data's tokenizer, and leave out positions before the first."""
        with tempfile.TemporaryDirectory() as folder:  # NVIDIA's shards have no tokenizer.json before it is saved.
            rows.save_tokenizer(Path(folder))
            new = Tokenizer.from_file(f"{folder}/{TOKENIZER}")
        sources = find_sources(old, old_special, new, rows.manifest.special_tokens)
        entries = len(entries_of(json.loads(old.to_str())))
        for name in (_WORDS, _WORD_BIAS):
            if name in state:
                state[name] = sources.apply(state[name][:entries])
        if _POSITIONS in state:
            state[_POSITIONS] = state[_POSITIONS][offset:]
        return [sources.describe()]


class RunWeights(InitialWeights):
    """A run of ours, its `checkpoints` folder, or one checkpoint."""

    @functools.cached_property
    def checkpoint(self) -> Path:
        """The verified checkpoint, the same on all ranks, which ask together; reading all of it takes a while."""
        return resolve_for_all(self.path)

    @property
    def follows(self) -> FollowedModel | None:
        """The model of the run's configuration; None if it has none, which `fill` reports."""
        folder = self.path.parent if self.path.name == CHECKPOINTS else self.path
        if not (folder / CONFIG).is_file():
            return None
        return self._followed(load_config(folder / CONFIG, use="checkpoint").model, is_run=True)

    def check(self, rows: ShardedRows) -> None:
        """Raise a ValueError if the data has another tokenizer, unless `new_vocabulary` allows it."""
        if self.new_vocabulary:
            return
        checkpoint = self.checkpoint
        try:
            checkpoint_format.check_same_vocabulary(checkpoint, rows)
        except ValueError as error:
            raise ValueError(f"{error}, or give --new_vocabulary to start its embeddings from the old ones") from error

    def fill(self, model: nn.Module, config: ModelConfig, rows: ShardedRows) -> list[str]:
        """Put the weights into a new model of a resolved configuration; return lines that say what is new."""
        checkpoint = self.checkpoint
        state, notes = checkpoint_format.load_weights(checkpoint), []
        if self.new_vocabulary:
            old, special = _tokenizer_of(checkpoint)
            saved = load_config(checkpoint / CONFIG, use="checkpoint").model
            notes += self._replace_vocabulary(state, old, special, rows, saved.position_offset)
            pad_vocabulary(state, model.state_dict())
        notes += grow_positions(state, config)
        fit_weights(model, state, f"checkpoint {checkpoint}")
        return notes


class SavedModelWeights(InitialWeights):
    """A saved model of transformers."""

    def __init__(self, path: Path, name: str, new_vocabulary: bool) -> None:
        super().__init__(path, name, new_vocabulary)
        self.saved = open_saved_model(path, None if Path(name).exists() else name)

    @property
    def follows(self) -> FollowedModel:
        """The directory's model, with a vocabulary rounded up."""
        entries = self.saved.config.vocab_size
        assert entries is not None
        config = dataclasses.replace(
            self.saved.config, vocab_size=rounded_vocabulary(entries), exported_vocab_size=entries
        )
        return self._followed(config, is_run=False)

    def check(self, rows: ShardedRows) -> None:
        """Raise a ValueError if the data has another tokenizer, unless `new_vocabulary` allows it."""
        tokenizer, _ = read_saved_tokenizer(self.path, str(self.path))
        entries, found = entries_of(json.loads(tokenizer.to_str())), rows.attributes
        if len(entries) > (self.saved.config.vocab_size or 0):
            raise ValueError(
                f"{self.path}: its tokenizer has {len(entries)} entries, its model {self.saved.config.vocab_size}"
            )
        if not self.new_vocabulary and vocabulary_hash(list(entries)) != found.vocabulary_hash:
            raise ValueError(
                f"data directory {rows.data_dir}: its vocabulary ({found.vocabulary_size} entries) differs from that of"
                f" {self.path} ({len(entries)} entries); build the data with --tokenizer {self.path}, or give"
                " --new_vocabulary to start its embeddings from the old ones"
            )

    def fill(self, model: nn.Module, config: ModelConfig, rows: ShardedRows) -> list[str]:
        """Put the weights into a new model of a resolved configuration; return lines that say what is new."""
        imported = self.saved.read_state(config.next_sentence_prediction is True)
        state, notes = dict(imported.state), [f"initialized from {self.name} ({self.saved.family.model_type})"]
        if self.new_vocabulary:
            tokenizer, tokens = read_saved_tokenizer(self.path, str(self.path))
            special = {role: tokenizer.token_to_id(token) for role, token in tokens.items()}
            notes += self._replace_vocabulary(state, tokenizer, special, rows, self.saved.config.position_offset)
        notes += grow_positions(state, config)
        fresh = model.state_dict()
        state |= {name: fresh[name].clone() for name in imported.missing}
        pad_vocabulary(state, fresh)
        fit_weights(model, state, str(self.path))
        for what, names in (("new", imported.missing), ("not used", imported.ignored)):
            if names:
                notes.append(f"{what}: {', '.join(sorted({name.rpartition('.')[0] or name for name in names}))}")
        return notes


def open_initial_weights(where: str | None, new_vocabulary: bool) -> InitialWeights | None:
    """Return what `--initialize_from` names, or None for new weights; a ValueError says what it must be."""
    if where is None:
        if new_vocabulary:
            raise ValueError("--new_vocabulary: needs --initialize_from, the weights that have another vocabulary")
        return None
    path = Path(where)
    if not path.exists():
        try:
            path = download(where)
        except ValueError as error:
            raise ValueError(f"--initialize_from {error}") from error
    if is_saved_model(path):
        return SavedModelWeights(path, where, new_vocabulary)
    if not (path / CONFIG).is_file() and not any(map(checkpoint_format.list_checkpoints, (path, path / CHECKPOINTS))):
        raise ValueError(
            f"--initialize_from {where}: must be a run, a checkpoint, or a saved Hugging Face model with {CONFIG} and"
            " safetensors"
        )
    return RunWeights(path, where, new_vocabulary)


def _tokenizer_of(checkpoint: Path) -> tuple[Tokenizer, dict[str, int]]:
    """Return a checkpoint's tokenizer and the ids of its special tokens by role."""
    if (checkpoint / TOKENIZER_CONFIG).is_file():
        saved = FastTokenizer.load(checkpoint)
        return saved.tokenizer(), saved.special_ids()
    tokenizer = Tokenizer.from_file(str(checkpoint / TOKENIZER))
    ids = {role: tokenizer.token_to_id(token) for role, token in SPECIAL_TOKENS.items()}
    return tokenizer, {role: index for role, index in ids.items() if index is not None}


def grow_positions(state: dict[str, Tensor], config: ModelConfig) -> list[str]:
    """Give learned positions more rows: those after the last repeat the first ones in order."""
    table = state.get(_POSITIONS)
    if table is None:
        return []
    own = len(table) - config.position_offset
    if own >= config.max_position_embeddings or own < 1:
        return []
    places = torch.arange(config.max_position_embeddings) % own + config.position_offset
    state[_POSITIONS] = torch.cat([table[: config.position_offset], table[places]])
    return [f"positions {own + 1} to {config.max_position_embeddings} start as copies of the first ones"]


def pad_vocabulary(state: dict[str, Tensor], fresh: dict[str, Tensor]) -> None:
    """Round the tables of words up to those of a model: the rows are 0, and are never predicted."""
    words, size = state[_WORDS], len(fresh[_WORDS])
    bias = state.get(_WORD_BIAS, fresh[_WORD_BIAS])[: len(words)]
    more = max(size - len(words), 0)
    state[_WORDS] = torch.cat([words, words.new_zeros(more, words.shape[1])])
    state[_WORD_BIAS] = torch.cat([bias, bias.new_full((more,), NEVER_LOGIT)])
