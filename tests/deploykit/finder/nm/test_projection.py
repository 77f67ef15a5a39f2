"""The best N:M mask: against every mask there is, and against the one that the passes choose."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from deploykit.errors import UsageError  # noqa: E402
from deploykit.finder.nm.pattern import Pattern, block_patterns  # noqa: E402
from deploykit.finder.nm.straight_through import choose_masks  # noqa: E402
from passes.analysis import patterns  # noqa: E402


def mask_of(array, pattern, *, layout=torch.contiguous_format):
    tensor = torch.from_numpy(array)
    if array.ndim == 4:
        tensor = tensor.to(memory_format=layout)
    return choose_masks([tensor], ["w"], pattern)["w"]


@st.composite
def weights(draw):
    """A weight, with ties and zeros, and a pattern that it has whole groups of."""
    group = draw(st.integers(2, 10))
    kept = draw(st.integers(1, group - 1))
    outputs, groups = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    kernel = draw(st.sampled_from([(), (3,), (2, 3), (1, 2, 2)]))
    dice = np.random.default_rng(draw(st.integers(0, 2**20)))
    array = dice.normal(size=(outputs, groups * group, *kernel)).astype(np.float32)
    if draw(st.booleans()):
        array = np.round(array)
    return array, Pattern(kept, group)


@given(weights(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_masks_are_those_of_the_passes_in_any_layout(drawn, last):
    array, pattern = drawn
    layout = torch.channels_last if last else torch.contiguous_format
    mask = mask_of(array, pattern, layout=layout)
    assert (
        mask == patterns.best_mask(array, 1, patterns.Pattern(pattern.kept, pattern.group))
    ).all()
    rows = np.moveaxis(mask, 1, -1).reshape(-1, pattern.group)
    assert (rows.sum(axis=1) == pattern.kept).all()


def test_each_group_keeps_the_most_of_all_choices_and_of_equal_ones_the_first():
    dice = np.random.default_rng(0)
    array = dice.integers(-3, 4, size=(8, 8)).astype(np.float32)
    mask = mask_of(array, Pattern(2, 4))
    for row, kept in zip(array.reshape(-1, 4), mask.reshape(-1, 4), strict=True):
        # itertools goes through them in order, and max takes the first.
        best = max(
            itertools.combinations(range(4), 2), key=lambda two: abs(row[list(two)]).sum()
        )
        assert tuple(np.flatnonzero(kept)) == best


@pytest.mark.parametrize(
    ("kept", "group", "count"), [(2, 4, 90), (1, 4, 24), (3, 4, 24), (1, 2, 2)]
)
def test_transposable_patterns_are_all_there(kept, group, count):
    found = block_patterns(Pattern(kept, group, transposable=True))
    assert len(np.unique(found, axis=0)) == len(found) == count
    blocks = found.reshape(-1, group, group)
    assert (blocks.sum(axis=1) == kept).all()
    assert (blocks.sum(axis=2) == kept).all()


@pytest.mark.parametrize("shape", [(8, 12), (4, 8, 3), (8, 4, 2, 2)])
def test_transposable_masks_obey_both_ways_and_keep_the_most(shape):
    array = np.random.default_rng(1).normal(size=shape).astype(np.float64)
    mask = mask_of(array, Pattern(2, 4, transposable=True))
    rows = [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]
    every = np.array(
        [
            block
            for block in itertools.product(rows, repeat=4)
            if (np.sum(block, axis=0) == 2).all()
        ]
    )
    flat, chosen = (each.reshape(*shape[:2], -1) for each in (np.abs(array), mask))
    for first, second, tap in itertools.product(
        range(0, shape[0], 4), range(0, shape[1], 4), range(flat.shape[2])
    ):
        block = flat[first : first + 4, second : second + 4, tap]
        kept = chosen[first : first + 4, second : second + 4, tap]
        assert (kept.sum(axis=0) == 2).all()
        assert (kept.sum(axis=1) == 2).all()
        assert (block * kept).sum() == pytest.approx((block * every).sum(axis=(1, 2)).max())


def test_many_layers_at_once_are_each_as_alone():
    dice = np.random.default_rng(2)
    arrays = [
        dice.normal(size=shape).astype(np.float32) for shape in ((8, 4), (4, 8, 3, 3), (12, 12))
    ]
    names = ["a", "b", "c"]
    for pattern in (Pattern(2, 4), Pattern(2, 4, transposable=True)):
        together = choose_masks([torch.from_numpy(each) for each in arrays], names, pattern)
        for name, array in zip(names, arrays, strict=True):
            assert (together[name] == mask_of(array, pattern)).all()


@pytest.mark.parametrize(
    ("text", "transposable", "message"),
    [
        ("3:2", False, "'3:2' is no pattern"),
        ("0:4", False, "'0:4' is no pattern"),
        ("4:4", False, "'4:4' is no pattern"),
        ("two of four", False, "it is N:M, M up to 64, such as 2:4"),
        ("1:65", False, "at most 64"),
        ("4:8", True, "'4:8' has too many. Take 2:4, or leave --transposable out"),
    ],
)
def test_patterns_that_are_none_are_refused(text, transposable, message):
    with pytest.raises(UsageError, match=message):
        Pattern.parse(text, transposable=transposable)
