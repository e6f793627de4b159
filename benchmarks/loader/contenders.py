"""Who `bench loader` measures: our loader, and Hugging Face's collators over the same rows."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterator
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


def our_batches(
    rows: ShardedRows, masking: str, shuffle: str, workers: int, micro_batch_size: int
) -> Iterator[torch.Tensor]:
    """Input ids of one micro-batch after another, from our loader."""
    data = DataConfig(
        masking="static" if masking == "static" else "dynamic",
        whole_word=masking == "whole_word",
        shuffle="blocks" if shuffle == "blocks" else "global",
        workers=workers,
    )
    steps = training_batches(rows, data, BatchShare(micro_batch_size), seed=0, num_steps=_ENDLESS_STEPS)
    return (micro_batch.input_ids for (micro_batch,) in steps)


def hugging_face_batches(
    rows: ShardedRows, masking: str, workers: int, micro_batch_size: int
) -> Iterator[torch.Tensor]:
    """The same from `DataCollatorForLanguageModeling`, fed the way its documentation calls fastest.

    Rows are read a batch at a time by our reader, special-token masks and character offsets are there beforehand, and
    the order of rows is torch's random sampler's. Its whole-word variant knows no random replacement and says so.
    """
    from transformers import DataCollatorForLanguageModeling

    vocabulary = MaskingVocabulary.read(rows.data_dir, rows.manifest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collator = DataCollatorForLanguageModeling(
            _tokenizer(rows), mlm_probability=0.15, whole_word_mask=masking == "whole_word"
        )
    loader = DataLoader(
        _Examples(rows, vocabulary, offsets=masking == "whole_word"),
        batch_size=micro_batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collator,
        num_workers=workers,
        prefetch_factor=_PREFETCHED_BATCHES if workers else None,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
    )
    return (batch["input_ids"] for _epoch in itertools.count() for batch in loader)


class _Examples(Dataset):
    """Rows as the examples that a tokenizer would have returned."""

    def __init__(self, rows: ShardedRows, vocabulary: MaskingVocabulary, offsets: bool) -> None:
        self.rows, self.vocabulary, self.offsets = rows, vocabulary, offsets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        columns = self.rows.read(np.array(indices))
        ids, length = columns["input_ids"], columns["length"][:, None]
        places = np.arange(ids.shape[1])
        features = {
            "input_ids": ids,
            "token_type_ids": (places >= columns["segment_b_start"][:, None]) & (places < length),
            "attention_mask": places < length,
            "special_tokens_mask": ~self.vocabulary.is_ordinary[ids],
        }
        if self.offsets:  # characters of one letter a token, with a gap before each word
            begins = places + np.cumsum(~self.vocabulary.is_continuation[ids], axis=1)
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
def placed(workers: int) -> Iterator[Any]:
    """Put what prepares batches on one core while it is started, and what consumes them elsewhere afterwards.

    Yields a function to call once the workers run. With none, this process stays on the one core; with one, the worker
    has a core to itself where there are two; more of them go wherever the system puts them.
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
