"""Micro-batches, and making them from rows: reading, masking, sending from a worker process, unpacking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bert_pld.config import DataConfig
from bert_pld.data.documents import document_lengths, unpack_starts
from bert_pld.data.masking import Float64Array, MaskedTokens, MaskingVocabulary, mask_tokens
from bert_pld.data.nvidia_rows import NvidiaRows
from bert_pld.data.rows import ShardedRows
from bert_pld.data.shards import DOCUMENT_STARTS, NO_PAIR

Int64Array = NDArray[np.int64]
IntegerArray = NDArray[np.integer[Any]]

IGNORED_LABEL = -100
"""Next-sentence label that the loss ignores (`ignore_index` of torch's cross entropy)."""

_INPUTS = ("input_ids", "token_type_ids", "attention_mask", "masked_positions", "masked_labels", "next_sentence_labels")


@dataclasses.dataclass(eq=False)
class MicroBatch:
    """B rows of S tokens, masked. Sizes and lengths stay on the host, so reading them never waits for a GPU."""

    input_ids: torch.Tensor
    """int64 `[B, S]` tokens with the masks applied."""
    token_type_ids: torch.Tensor
    """int64 `[B, S]`: 1 in segment B, else 0."""
    attention_mask: torch.Tensor | None
    """bool `[B, S]`, True where there is a token; None when no row has padding."""
    masked_positions: torch.Tensor
    """int64 `[M]` flat indices into B · S, ascending."""
    masked_labels: torch.Tensor
    """int64 `[M]` original tokens at `masked_positions`."""
    next_sentence_labels: torch.Tensor | None
    """int64 `[B]`: 0 if segment B follows A, 1 if it is random, -100 for no label; None for objective `mlm`."""
    tokens: int
    """Number of tokens of the real rows without padding."""
    rows: int
    """Number of real rows; the others (in evaluation only) repeat a row to fill up the batch and have no targets."""
    row_indices: Int64Array
    """`[B]` indices of the rows in the split."""
    lengths: Int64Array
    """`[B]` number of tokens of each row without padding, on the host."""
    document_lengths: Int64Array | None = None
    """`[D]` tokens of each document, row by row, on the host; None if the rows do not say where documents start."""

    @property
    def masked_tokens(self) -> int:
        """The number of targets, M."""
        return self.masked_positions.shape[0]

    def model_inputs(self) -> dict[str, Any]:
        """Return the arguments of the model's forward."""
        inputs = {**{name: getattr(self, name) for name in _INPUTS}, "sequence_lengths": self.lengths}
        return inputs if self.document_lengths is None else {**inputs, "document_lengths": self.document_lengths}

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return a copy on the device; from pinned memory, the host does not wait for the transfer."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> MicroBatch:
        """Return a copy in page-locked memory."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        tensors = {name: getattr(self, name) for name in _INPUTS}
        return dataclasses.replace(self, **{name: change(t) for name, t in tensors.items() if t is not None})


@dataclasses.dataclass(eq=False)
class PackedMicroBatches:
    """K masked micro-batches in one set of arrays, the form in which a worker makes and sends them.

    The pipe carries a sixth of the tensors' bytes: everything that follows from the lengths is left out, and ids have
    fewer bytes. NumPy arrays are sent through the pipe itself. Torch would put each tensor into a shared memory file of
    its own, which is slower at this size and fails where /dev/shm is small, as in containers.
    """

    micro_batch_size: int
    """Rows of each of the K micro-batches, B."""
    input_ids: IntegerArray
    """`[K · B, S]` tokens with the masks applied."""
    masked_positions: IntegerArray
    """`[M]` flat indices into K · B · S, ascending."""
    masked_labels: IntegerArray
    """`[M]` original tokens."""
    lengths: Int64Array
    """`[K · B]` number of tokens of each row without padding."""
    segment_b_starts: Int64Array
    """`[K · B]` first position of segment B."""
    next_sentence_labels: Int64Array | None
    """`[K · B]`, or None for objective `mlm`."""
    row_indices: Int64Array
    """`[K · B]` indices of the rows in the split."""
    real_rows: list[int]
    """`[K]` number of real rows of each micro-batch; the rest fills it up."""
    document_lengths: Int64Array | None
    """`[D]` number of tokens of each document, row by row; None if rows do not say where documents start."""
    documents_of_row: Int64Array | None
    """`[K · B]` number of documents in each row, or None."""

    def __getstate__(self) -> dict[str, Any]:
        narrowed = {"input_ids": _narrowed(self.input_ids), "masked_labels": _narrowed(self.masked_labels)}
        positions = self.masked_positions.astype(np.uint32 if self.input_ids.size < 2**32 else np.uint64)
        return {**self.__dict__, **narrowed, "masked_positions": positions}

    def pin_memory(self) -> list[MicroBatch]:
        """Return the micro-batches in page-locked memory; the DataLoader calls this if its `pin_memory` is set."""
        return [micro_batch.pin_memory() for micro_batch in self.unpack()]

    def unpack(self) -> list[MicroBatch]:
        """Return the K micro-batches."""
        seq_length, size = self.input_ids.shape[1], self.micro_batch_size
        places = np.arange(seq_length, dtype=np.int32)
        is_token = places < self.lengths.astype(np.int32)[:, None]
        in_segment_b = places >= self.segment_b_starts.astype(np.int32)[:, None]
        in_segment_b &= is_token
        input_ids = torch.from_numpy(self.input_ids.astype(np.int64, copy=False))
        token_type_ids = torch.from_numpy(in_segment_b.astype(np.int64))
        attention_mask = torch.from_numpy(is_token)
        positions = torch.from_numpy(self.masked_positions.astype(np.int64))
        labels = torch.from_numpy(self.masked_labels.astype(np.int64, copy=False))
        pairs = None if self.next_sentence_labels is None else torch.from_numpy(self.next_sentence_labels)
        firsts = np.arange(len(self.real_rows)) * size
        from_document = [0] * (len(firsts) + 1)
        if self.documents_of_row is not None:
            per_batch = self.documents_of_row.reshape(len(firsts), size).sum(axis=1)
            from_document[1:] = np.cumsum(per_batch).tolist()
        # The rows that fill up a micro-batch come last and have no targets.
        ends = [(first + real) * seq_length for first, real in zip(firsts.tolist(), self.real_rows, strict=True)]
        from_target = np.searchsorted(self.masked_positions, firsts * seq_length).tolist()
        to_target = np.searchsorted(self.masked_positions, ends).tolist()
        unpacked = []
        for index, first in enumerate(firsts.tolist()):
            rows, targets = slice(first, first + size), slice(from_target[index], to_target[index])
            lengths, real = self.lengths[rows], self.real_rows[index]
            unpacked.append(
                MicroBatch(
                    input_ids=input_ids[rows],
                    token_type_ids=token_type_ids[rows],
                    attention_mask=None if lengths.min() == seq_length else attention_mask[rows],
                    masked_positions=positions[targets] - first * seq_length,
                    masked_labels=labels[targets],
                    next_sentence_labels=None if pairs is None else pairs[rows],
                    tokens=int(lengths[:real].sum()),
                    rows=real,
                    row_indices=self.row_indices[rows],
                    lengths=lengths,
                    document_lengths=None
                    if self.document_lengths is None
                    else self.document_lengths[from_document[index] : from_document[index + 1]],
                )
            )
        return unpacked


def _narrowed(ids: IntegerArray) -> IntegerArray:
    """Return token ids, which are never negative, with the fewest bytes that hold them."""
    return ids.astype(np.uint16 if not ids.size or ids.max() < 2**16 else np.uint32)


@dataclasses.dataclass(frozen=True)
class MicroBatchMaker:
    """Makes micro-batches from row indices, with the settings that stay the same through a run."""

    rows: ShardedRows
    vocabulary: MaskingVocabulary
    data: DataConfig
    seed: int
    """Seed of the masks."""

    def make(
        self, row_indices: Int64Array, epochs: Int64Array, real_rows: list[int], mask_probability: float | Float64Array
    ) -> PackedMicroBatches:
        """Return these rows in equal micro-batches; `real_rows` of each are real, and the rest has no targets.

        `mask_probability` is one number or one for each row.
        """
        columns, masked = self._masked(row_indices, epochs, mask_probability)
        size = len(row_indices) // len(real_rows)
        labels = None
        if self.rows.attributes.objective != "mlm":
            labels = columns["next_sentence_label"]
            is_extra = np.tile(np.arange(size), len(real_rows)) >= np.repeat(real_rows, size)
            labels[(labels == NO_PAIR) | is_extra] = IGNORED_LABEL
        documents = documents_of_row = None
        if DOCUMENT_STARTS in columns:
            is_start = unpack_starts(columns[DOCUMENT_STARTS], self.rows.attributes.seq_length)
            documents, documents_of_row = document_lengths(is_start, columns["length"])
        return PackedMicroBatches(
            micro_batch_size=size,
            input_ids=masked.input_ids,
            masked_positions=masked.positions,
            masked_labels=masked.labels,
            lengths=columns["length"],
            # Where the tokenizer gives both segments the same type, no position has another one.
            segment_b_starts=columns["segment_b_start" if self.vocabulary.segment_b_type else "length"],
            next_sentence_labels=labels,
            row_indices=row_indices,
            real_rows=real_rows,
            document_lengths=documents,
            documents_of_row=documents_of_row,
        )

    def _masked(
        self, row_indices: Int64Array, epochs: Int64Array, mask_probability: float | Float64Array
    ) -> tuple[dict[str, NDArray[Any]], MaskedTokens]:
        """Return the columns of these rows, and the masked rows."""
        if self.data.masking == "static" and self.rows.has_masks:
            assert isinstance(self.rows, NvidiaRows)
            return self.rows.read_masked(row_indices)
        columns = self.rows.read(row_indices)
        return columns, mask_tokens(
            columns["input_ids"],
            columns["length"],
            row_indices,
            np.zeros_like(epochs) if self.data.masking == "static" else epochs,
            vocabulary=self.vocabulary,
            seed=self.seed,
            mask_probability=mask_probability,
            unit="word" if self.data.whole_word else self.data.masking_unit,
        )
