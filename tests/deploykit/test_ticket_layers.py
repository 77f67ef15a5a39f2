"""What a report says of a ticket, and the pictures of its masks."""

from __future__ import annotations

import base64

import numpy as np

from deploykit.report.records import MaskPicture
from deploykit.ticket import Block, Ticket
from deploykit.ticket_layers import COLUMNS, ROWS, draw, find_ticket_layers


def cells(picture: MaskPicture) -> np.ndarray:
    found = np.frombuffer(base64.b64decode(picture.cells), np.uint8)
    return found.reshape(picture.height, picture.width)


def test_a_small_mask_is_drawn_element_by_element():
    mask = np.array([[1, 0, 1], [0, 0, 1]], bool)
    np.testing.assert_array_equal(cells(draw(mask)), 255 * mask)


def test_a_large_mask_is_drawn_as_shares_that_lose_nothing():
    dice = np.random.default_rng(0)
    mask = dice.random((3 * ROWS, 5 * COLUMNS)) < 0.3
    mask[: 3 * ROWS // 2] = False
    picture = cells(draw(mask))
    assert picture.shape == (ROWS, COLUMNS)
    assert not picture[: ROWS // 2].any()
    # each cell stands for 15 elements, and is rounded to one of 255 steps
    by_hand = mask[-3:, -5:].mean()
    assert abs(picture[-1, -1] / 255 - by_hand) <= 0.5 / 255
    assert abs(picture.mean() / 255 - mask.mean()) <= 0.5 / 255


def test_sizes_that_do_not_divide_cover_everything():
    mask = np.zeros((ROWS + 1, COLUMNS + 7), bool)
    mask[-1, -1] = True
    picture = cells(draw(mask))
    assert np.count_nonzero(picture) == 1
    assert picture[-1, -1] > 0


def test_blocks_are_drawn_in_their_order_as_well():
    # Rows 0 and 2 read columns 1 and 3, row 1 reads columns 0 and 3.
    blocks = (Block(np.array([0, 2]), np.array([1, 3])), Block(np.array([1]), np.array([0, 3])))
    mask = np.zeros((3, 4), bool)
    for block in blocks:
        mask[np.ix_(block.rows, block.columns)] = True
    found = mask.copy()
    found[0, 1], found[0, 0] = False, True
    weights = {"w": mask.astype(np.float32), "b": np.zeros(3, np.float32)}
    (row,) = find_ticket_layers(
        Ticket({"w": mask}, weights, {"w": blocks}, found={"w": found}).check()
    )
    assert (row.weight, row.outputs, row.columns) == ("w", 3, 4)
    assert (row.found, row.kept, row.blocks) == (6, 6, 2)
    np.testing.assert_array_equal(cells(row.picture_found), 255 * found)
    np.testing.assert_array_equal(cells(row.picture), 255 * mask)
    # rows 0, 2, 1 and columns 1, 3, 0, 2
    ordered = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]
    np.testing.assert_array_equal(cells(row.picture_ordered), 255 * np.array(ordered))


def test_without_masks_there_is_nothing_to_say():
    assert find_ticket_layers(Ticket({}, {"w": np.ones(3, np.float32)})) == ()
