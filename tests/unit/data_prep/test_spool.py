"""The files that a reading task leaves for the later tasks."""

import tracemalloc

import numpy as np
import pytest

from data_prep import spool
from data_prep.dedup.minhash import BAND_ROWS, BANDS, signatures
from data_prep.spool import Spool, write_spool


def documents(count):
    return ([f"Sentence {n} of a small document.", " And another one."] for n in range(count))


@pytest.mark.parametrize(("signed", "most_bytes"), [(True, 400), (False, 100)])
def test_writing_a_spool_keeps_few_bytes_of_each_document(tmp_path, monkeypatch, signed, most_bytes):
    monkeypatch.setattr(spool, "signatures", lambda texts: np.zeros((len(texts), BANDS, BAND_ROWS), np.uint16))
    monkeypatch.setattr(spool, "SIGNATURE_BATCH_BYTES", 1 << 14)

    def peak(count):
        tracemalloc.start()
        write_spool(tmp_path, 0, documents(count), signed)
        bytes_ = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_

    assert (peak(10_000) - peak(2_000)) / 8_000 < most_bytes


def test_signatures_of_a_spool_are_those_of_its_documents_band_by_band(tmp_path):
    write_spool(tmp_path, 3, documents(40), signed=True)
    expected = signatures(["\n".join(piece.lstrip() for piece in pieces) for pieces in documents(40)])
    read = Spool(tmp_path, 3)
    assert np.array_equal(read.signatures(np.arange(40)), expected.reshape(40, BANDS * BAND_ROWS))
    assert np.array_equal(read.band(5), np.ascontiguousarray(expected[:, 5]).view(np.uint64)[:, 0])
    assert len(read) == len(set(map(bytes, read.digests))) == 40
