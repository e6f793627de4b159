"""Tiles of kernels that need whole rows: no thread is idle at common widths, and none has too many columns."""

from __future__ import annotations

import pytest

from bert_pld.kernels.tiles import reducing_row_tile

WIDTHS = [16, 96, 384, 512, 768, 1000, 1024, 1280, 1536, 2048, 4096, 8192]


@pytest.mark.parametrize("width", WIDTHS)
def test_pieces_cover_a_row_and_leave_less_than_half_of_it_idle(width):
    tile = reducing_row_tile(width)
    assert width <= tile.pieces * tile.width < 2 * width


@pytest.mark.parametrize("width", [384, 768, 1024, 1536, 2048, 3072, 4096])
def test_no_column_of_a_common_width_is_idle(width):
    tile = reducing_row_tile(width)
    assert tile.pieces * tile.width == width


@pytest.mark.parametrize("width", WIDTHS)
def test_thread_adds_up_at_most_24_columns_of_one_row(width):
    """More sums would not fit its registers beside the row."""
    tile = reducing_row_tile(width)
    assert tile.rows * tile.pieces * tile.width <= 24 * 32 * tile.num_warps
    assert tile.rows * tile.width <= 8 * 32 * tile.num_warps
    assert tile.num_warps * 32 * (tile.max_registers or 0) <= 65536
