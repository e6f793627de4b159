"""Our loader, and Hugging Face's collators over the same rows."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bert_pld.config import DataConfig
from bert_pld.data.loader import training_batches
from bert_pld.data.masking import MaskingVocabulary
from bert_pld.data.order import BatchShare
from bert_pld.data.rows import ShardedRows

OURS, HUGGING_FACE = "ours", "hugging_face"
MASKING = ("dynamic", "static", "whole_word")
SHUFFLES = ("global", "blocks")
_ENDLESS_STEPS = 2**40 // 512
_PREFETCHED_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class LoaderSetting:
    """One loader under measurement."""

    seq_length: int
    masking: str
    """One of `MASKING`."""
    workers: int
    micro_batch_size: int
    contender: str
    """`OURS` or `HUGGING_FACE`."""
    shuffle: str
    """One of `SHUFFLES`."""

    def batches(self, rows: ShardedRows) -> Iterator[torch.Tensor]:
        """Yield the input ids of one micro-batch after another, without end."""
        return our_batches(rows, self) if self.contender == OURS else hugging_face_batches(rows, self)


def our_batches(rows: ShardedRows, setting: LoaderSetting) -> Iterator[torch.Tensor]:
    """Yield input ids from our loader."""
    data = DataConfig(
        masking="static" if setting.masking == "static" else "dynamic",
        whole_word=setting.masking == "whole_word",
        shuffle="blocks" if setting.shuffle == "blocks" else "global",
        workers=setting.workers,
    )
    steps = training_batches(rows, data, BatchShare(setting.micro_batch_size), seed=0, num_steps=_ENDLESS_STEPS)
    return (micro_batch.input_ids for (micro_batch,) in steps)


def hugging_face_batches(rows: ShardedRows, setting: LoaderSetting) -> Iterator[torch.Tensor]:
    """Yield input ids from `DataCollatorForLanguageModeling`, used in the way that its documentation calls fastest.

    Our reader reads rows a batch at a time; special-token masks and character offsets are made beforehand; the order of
    rows is that of torch's random sampler. The collator's whole-word variant has no random replacement (it warns).
    """
    whole_word = setting.masking == "whole_word"
    from transformers import DataCollatorForLanguageModeling

    vocabulary = MaskingVocabulary.read(rows.data_dir, rows.manifest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collator = DataCollatorForLanguageModeling(_tokenizer(rows), mlm_probability=0.15, whole_word_mask=whole_word)
    loader = DataLoader(
        _Examples(rows, vocabulary, offsets=whole_word),
        batch_size=setting.micro_batch_size, drop_last=True, collate_fn=collator,
        shuffle=True, generator=torch.Generator().manual_seed(0),
        num_workers=setting.workers, persistent_workers=setting.workers > 0,
        prefetch_factor=_PREFETCHED_BATCHES if setting.workers else None,
    )  # fmt: skip
    return (batch["input_ids"] for _epoch in itertools.count() for batch in loader)


class _Examples(Dataset):
    """Rows in the form that a tokenizer returns."""

    def __init__(self, rows: ShardedRows, vocabulary: MaskingVocabulary, offsets: bool) -> None:
        self.rows, self.vocabulary, self.offsets = rows, vocabulary, offsets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        columns = self.rows.read(np.array(indices))
        ids, length = columns["input_ids"], columns["length"][:, None]
        positions = np.arange(ids.shape[1])
        features = {
            "input_ids": ids,
            "token_type_ids": (positions >= columns["segment_b_start"][:, None]) & (positions < length),
            "attention_mask": positions < length,
            "special_tokens_mask": ~self.vocabulary.is_ordinary[ids],
        }
        if self.offsets:  # as if each token had one character, with a gap before each word
            begins = positions + np.cumsum(~self.vocabulary.is_continuation[ids], axis=1)
            features["offset_mapping"] = np.stack((begins, begins + 1), axis=2)
        listed = {name: values.astype(np.int64).tolist() for name, values in features.items()}
        return [{name: values[i] for name, values in listed.items()} for i in range(len(indices))]


def _tokenizer(rows: ShardedRows) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    entries = (rows.data_dir / "vocab.txt").read_text(encoding="utf-8").splitlines()
    special = {f"{name}_token": entries[identity] for name, identity in rows.manifest.special_tokens.items()}
    model = WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token=special["unk_token"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)


@contextlib.contextmanager
def one_core_for_loading(workers: int) -> Iterator[Callable[[], None]]:
    """Restrict batch preparation to one core, where there is at most one worker.

    Yields a function to call once the workers run. Without workers, this process stays on the one core. A single worker
    inherits the core, and the function moves this process to the others. More workers are not restricted.
    """
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(1)
    if workers <= 1:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield lambda: os.sched_setaffinity(0, (cores - {min(cores)}) or cores) if workers == 1 else None
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
