"""Blocks found in a matrix: they hold all that is not zero, they are those that were planted, and no others."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from passes.analysis.blocks import Blocks, find_blocks, fit_blocks
from tests import blocked


@st.composite
def masks(draw):
    """Matrices of any density, with rows that are alike or not."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    dice = np.random.default_rng(draw(st.integers(0, 2**16)))
    kinds = draw(st.integers(1, 8))
    mask = dice.random((kinds, columns)) < draw(st.sampled_from([0.5, 0.1, 0.9, 0.0, 1.0]))
    holes = dice.random((rows, columns)) < draw(st.sampled_from([0.0, 0.02, 0.3]))
    return mask[dice.integers(0, kinds, rows)] & ~holes


def held(blocks):
    """Bool: what lies in blocks."""
    found = np.zeros(blocks.shape, dtype=bool)
    for part in blocks.parts:
        found[np.ix_(part.rows, part.columns)] = True
    return found


@hypothesis.given(st.one_of(masks(), blocked.structures().map(lambda found: found.mask)))
def test_blocks_have_every_row_once_and_hold_all_that_is_not_zero(support):
    blocks = find_blocks(support)
    if isinstance(blocks, str):
        return
    assert sorted(blocks.order) == list(range(len(support)))
    for part in blocks.parts:
        assert part.rows.size
        assert part.columns.size
        assert (np.diff(part.rows) > 0).all()
        assert (np.diff(part.columns) > 0).all()
    inside = held(blocks)
    assert not (support & ~inside).any()
    assert blocks.area == inside.mean() <= 0.9
    # Blocks are dense, but for rows that are empty.
    full = support.any(axis=1)
    assert support[full].sum() >= 0.5 * inside[full].sum()


@hypothesis.given(st.data())
def test_planted_blocks_are_found_as_they_are(data):
    structure = data.draw(blocked.structures(kinds=("diagonal", "overlapping")))
    counts = {rows.size for rows, _ in structure.parts}
    planted = {rows.tobytes(): columns for rows, columns in structure.parts}
    distinct = len({columns.tobytes() for columns in planted.values()}) == len(planted)
    full = sum(rows.size for rows, _ in structure.parts) == structure.shape[0]
    hypothesis.assume(distinct and full and min(counts) >= 4)
    hypothesis.assume(structure.mask.mean() < 0.9)
    # Joining two that share nearly all is cheap, and is done.
    far = min(
        np.setdiff1d(one, other).size
        for at, (_, one) in enumerate(structure.parts)
        for _, other in [*structure.parts[:at], *structure.parts[at + 1 :]]
    )
    hypothesis.assume(8 * far > 0.03 * structure.mask.sum())
    holes = data.draw(st.sampled_from([0, 2]))
    support = structure.mask.copy()
    dice = np.random.default_rng(data.draw(st.integers(0, 99)))
    places = np.argwhere(support)
    # Zeros by chance: fewer than would pay for a block of their own.
    for row, column in places[dice.permutation(len(places))[:holes]]:
        support[row, column] = False
    hypothesis.assume((held_columns(structure, support) == structure.mask).all())
    blocks = find_blocks(support)
    assert isinstance(blocks, Blocks)
    found = {part.rows.tobytes(): part.columns for part in blocks.parts}
    assert found.keys() == planted.keys()
    assert all((found[rows] == planted[rows]).all() for rows in planted)


def held_columns(structure, support):
    """The mask again, from what is left of it."""
    found = np.zeros_like(support)
    for rows, _ in structure.parts:
        found[np.ix_(rows, np.flatnonzero(support[rows].any(axis=0)))] = True
    return found


@pytest.mark.parametrize("blocks", [2, 4, 8, 16, 32])
def test_many_small_blocks_stay_apart(blocks):
    size = 128 // blocks
    found = find_blocks(np.kron(np.eye(blocks), np.ones((size, size))).astype(bool))
    assert isinstance(found, Blocks)
    assert str(found) == f"{blocks} of {size}x{size} in 128x128"


def scattered(rows, columns):
    return np.random.default_rng(0).random((rows, columns)) < 0.1


@pytest.mark.parametrize(
    ("support", "reason"),
    [
        (np.ones((8, 8), dtype=bool), "no zeros that whole input channels share"),
        (np.zeros((8, 8), dtype=bool), "all of it is zero"),
        (scattered(600, 64), "its zeros are scattered: 600 of 600 rows read different inputs"),
        (
            scattered(64, 64),
            "its zeros are scattered: of the smallest blocks that hold the rest",
        ),
        (np.arange(256).reshape(16, 16) > 3, "what lies in blocks is 100% of it"),
    ],
    ids=["dense", "zero", "many", "scattered", "nearly dense"],
)
def test_what_has_no_blocks_says_why(support, reason):
    found = find_blocks(support)
    assert isinstance(found, str)
    assert reason in found


def test_empty_rows_go_to_the_smallest_block():
    support = np.zeros((13, 8), dtype=bool)
    support[np.ix_(range(6), range(4))] = True
    support[np.ix_(range(8, 13), range(4, 8))] = True
    blocks = find_blocks(support)
    assert isinstance(blocks, Blocks)
    assert [part.rows.tolist() for part in blocks.parts] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11, 12],
    ] or [part.rows.size for part in blocks.parts] == [7, 6]
    assert str(blocks).endswith("in 13x8")


def test_few_rows_join_others_and_many_blocks_are_few():
    # Two rows of their own kind among eight: too few for a block.
    support = np.kron(np.eye(2), np.ones((4, 8))).astype(bool)
    support[0, :4] = support[1, 4:8] = False
    blocks = find_blocks(support)
    assert isinstance(blocks, Blocks)
    assert [part.rows.tolist() for part in blocks.parts] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    many = find_blocks(np.kron(np.eye(64), np.ones((4, 4))).astype(bool))
    assert isinstance(many, Blocks)
    assert len(many.parts) == 32


def test_known_blocks_hold_or_do_not():
    support = np.kron(np.eye(4), np.ones((4, 4))).astype(bool)
    halves = [(np.arange(8), np.arange(8)), (np.arange(8, 16), np.arange(8, 16))]
    blocks = fit_blocks(halves, support, support.shape)
    assert isinstance(blocks, Blocks)
    assert str(blocks) == "2 of 8x8 in 16x16"
    assert fit_blocks(halves[:1], support, support.shape) == (
        "weights outside of its blocks are not zero"
    )
