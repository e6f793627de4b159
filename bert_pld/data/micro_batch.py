"""One micro-batch, and how rows become one: reading, masking, segments, labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.data.masking import MaskedTokens, Vocabulary, mask_tokens
from bert_pld.data.nvidia_rows import NvidiaRows
from bert_pld.data.shards import NO_PAIR, ShardedRows

Int64Array = NDArray[np.int64]

IGNORED_LABEL = -100
"""The next-sentence label that a loss ignores (`ignore_index` of torch's cross entropy)."""

_TENSORS = (
    "input_ids",
    "token_type_ids",
    "attention_mask",
    "masked_positions",
    "masked_labels",
    "next_sentence_labels",
)


@dataclasses.dataclass(eq=False)
class MicroBatch:
    """B rows of S tokens, masked. What the host must know of it is kept on the host: asking never waits for a GPU."""

    input_ids: torch.Tensor
    """int64 `[B, S]`, masks applied."""
    token_type_ids: torch.Tensor
    """int64 `[B, S]`: 1 in segment B, else 0."""
    attention_mask: torch.Tensor | None
    """bool `[B, S]`, True where there is a token; None when no row has padding."""
    masked_positions: torch.Tensor
    """int64 `[M]` flat indices into B · S, ascending."""
    masked_labels: torch.Tensor
    """int64 `[M]` original tokens at `masked_positions`."""
    next_sentence_labels: torch.Tensor | None
    """int64 `[B]`: 0 B follows A, 1 B is random, -100 no label; None for objective `mlm`."""
    tokens: int
    """Tokens of the real rows that are not padding."""
    rows: int
    """Real rows; the others (evaluation only) repeat a row to fill up and have no targets."""
    row_indices: Int64Array
    """`[B]` running indices in the split: which samples these are."""
    lengths: Int64Array
    """`[B]` tokens of each row, on the host."""

    @property
    def masked_tokens(self) -> int:
        """M, the number of targets."""
        return self.masked_positions.shape[0]

    def to(self, device: torch.device | str) -> MicroBatch:
        """A copy on the device; from pinned memory the transfer runs alongside the host."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> MicroBatch:
        """A copy in page-locked memory; the DataLoader calls this where `pin_memory` is asked for."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        changed: dict[str, Any] = {}
        for name in _TENSORS:
            tensor = getattr(self, name)
            changed[name] = None if tensor is None else change(tensor)
        return dataclasses.replace(self, **changed)

    # Pickled as NumPy arrays, micro-batches travel through a worker's pipe: torch would put each tensor into a shared
    # memory file of its own, which is slower at this size and fails where /dev/shm is small, as in containers.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(
            {k: torch.from_numpy(v) if k in _TENSORS and v is not None else v for k, v in state.items()}
        )


@dataclasses.dataclass(frozen=True)
class MicroBatchMaker:
    """Turns row indices into micro-batches; holds what stays the same through a run."""

    rows: ShardedRows
    vocabulary: Vocabulary
    masking_seed: int
    mask_probability: float
    whole_word: bool
    own_masks: bool = False
    """Take the masks that the rows bring along, whatever the seed and the epoch."""

    def make(self, row_indices: Int64Array, epochs: Int64Array, real_rows: int) -> MicroBatch:
        """The micro-batch of these rows, of which those from `real_rows` on are fillers without targets."""
        columns, masked = self._masked(row_indices, epochs)
        lengths, segment_b_start = columns["length"], columns["segment_b_start"]
        seq_length = masked.input_ids.shape[1]
        positions = np.arange(seq_length)
        is_token = positions < lengths[:, None]
        targets = int(np.searchsorted(masked.positions, real_rows * seq_length))
        next_sentence_labels = None
        if self.rows.attributes.objective != "mlm":
            labels = columns["next_sentence_label"]
            labels[labels == NO_PAIR] = IGNORED_LABEL
            labels[real_rows:] = IGNORED_LABEL
            next_sentence_labels = torch.from_numpy(labels)
        return MicroBatch(
            input_ids=torch.from_numpy(masked.input_ids),
            token_type_ids=torch.from_numpy(((positions >= segment_b_start[:, None]) & is_token).astype(np.int64)),
            attention_mask=None if is_token.all() else torch.from_numpy(is_token),
            masked_positions=torch.from_numpy(masked.positions[:targets]),
            masked_labels=torch.from_numpy(masked.labels[:targets]),
            next_sentence_labels=next_sentence_labels,
            tokens=int(lengths[:real_rows].sum()),
            rows=real_rows,
            row_indices=row_indices,
            lengths=lengths,
        )

    def _masked(self, row_indices: Int64Array, epochs: Int64Array) -> tuple[dict[str, NDArray[Any]], MaskedTokens]:
        """The columns of these rows, and the rows masked."""
        if self.own_masks:
            assert isinstance(self.rows, NvidiaRows)
            return self.rows.read_masked(row_indices)
        columns = self.rows.read(row_indices)
        return columns, mask_tokens(
            columns["input_ids"],
            columns["length"],
            row_indices,
            epochs,
            vocabulary=self.vocabulary,
            seed=self.masking_seed,
            mask_probability=self.mask_probability,
            whole_word=self.whole_word,
        )
