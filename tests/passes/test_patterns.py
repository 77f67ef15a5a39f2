"""N:M patterns on arrays, against a search through all masks."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from passes.analysis import patterns
from passes.analysis.patterns import Pattern, best_mask, measure, obeys, sparsify

TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8, np.uint8)
PATTERNS = tuple(map(Pattern.parse, ("2:4", "1:4", "3:4", "1:2", "2:6", "4:6")))


def best_of_all(group, pattern):
    """The kept positions of the best mask: all masks are tried, in the order in which ties are to be broken."""
    masks = itertools.combinations(range(pattern.group), pattern.kept)
    return max(masks, key=lambda kept: sum(group[at] for at in kept))


def by_search(array, axis, pattern):
    """The best mask, group by group."""
    magnitude = np.moveaxis(np.abs(array.astype(np.float64)), axis, -1)
    mask = np.zeros(magnitude.shape, dtype=bool)
    groups = magnitude.reshape(-1, pattern.group)
    for at, group in enumerate(groups):
        mask.reshape(-1, pattern.group)[at, list(best_of_all(group, pattern))] = True
    return np.moveaxis(mask, -1, axis)


@st.composite
def cases(draw):
    """An array with ties, zeros and both signs, an axis with whole groups, and a pattern."""
    pattern = draw(st.sampled_from(PATTERNS))
    shape = list(draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=3)))
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] *= pattern.group
    dtype = draw(st.sampled_from(TYPES))
    # Few different numbers, which all of the types hold: most groups have ties.
    low = 0 if dtype is np.uint8 else -3
    numbers = draw(arrays.arrays(np.int64, tuple(shape), elements=st.integers(low, 3)))
    return numbers.astype(dtype), draw(st.sampled_from((axis, axis - len(shape)))), pattern


@given(cases(), st.sampled_from((1, 64, patterns.ELEMENTS_AT_ONCE)))
def test_no_mask_is_better(case, at_once):
    array, axis, pattern = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "ELEMENTS_AT_ONCE", at_once)
        before = array.copy()
        expected = by_search(array, axis, pattern)
        np.testing.assert_array_equal(best_mask(array, axis, pattern), expected)
        made = sparsify(array, axis, pattern)
        np.testing.assert_array_equal(made, np.where(expected, array, 0).astype(array.dtype))
        np.testing.assert_array_equal(array, before)
        assert made.dtype == array.dtype
        assert obeys(made, axis, pattern)
        found = measure(array, axis, pattern)
        nonzero = np.moveaxis(array != 0, axis, -1).reshape(-1, pattern.group).sum(axis=1)
        assert found.groups == len(nonzero)
        assert found.obeying == (nonzero <= pattern.kept).sum()
        assert obeys(array, axis, pattern) == (found.obeying == found.groups)
        total = np.abs(array.astype(np.float64)).sum()
        kept = np.abs(made.astype(np.float64)).sum() / total if total else 1.0
        assert found.kept == pytest.approx(kept, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_magnitudes_of_all_sizes(dtype):
    dice = np.random.default_rng(0)
    array = (
        dice.standard_normal((8, 64, 3, 3)) * 10.0 ** dice.integers(-7, 4, (8, 64, 1, 1))
    ).astype(dtype)
    for pattern in PATTERNS[:3]:
        made = sparsify(array, 1, pattern)
        np.testing.assert_array_equal(
            best_mask(array, 1, pattern), by_search(array, 1, pattern)
        )
        kept = np.abs(made.astype(np.float64)).sum() / np.abs(array.astype(np.float64)).sum()
        assert measure(array, 1, pattern).kept == pytest.approx(kept, abs=1e-6)


def test_the_least_of_int8_is_larger_than_all_others():
    array = np.array([[127, -128, 1, 127]], dtype=np.int8)
    assert best_mask(array, 1, Pattern(1, 4)).tolist() == [[False, True, False, False]]
    assert best_mask(array, 1, Pattern(2, 4)).tolist() == [[True, True, False, False]]


def test_what_goes_is_plus_zero():
    made = sparsify(np.array([-1.0, -2, -3, -4], dtype=np.float32), 0, Pattern(2, 4))
    assert np.signbit(made).tolist() == [False, False, True, True]


def test_scales_are_part_of_the_magnitude():
    stored = np.array([[100, 90, 80, 70]], dtype=np.int8)
    scale = np.array([[0.1, 0.2, 0.3, 0.4]], dtype=np.float32)
    made = sparsify(stored, 1, Pattern(2, 4), scale=scale)
    assert made.tolist() == [[0, 0, 80, 70]]
    found = measure(stored, 1, Pattern(2, 4), scale=scale)
    assert found.kept == pytest.approx((24 + 28) / (10 + 18 + 24 + 28), abs=1e-6)


def test_arrays_that_lie_in_another_order():
    array = np.random.default_rng(0).standard_normal((6, 8, 4)).astype(np.float32).T
    np.testing.assert_array_equal(
        sparsify(array, 1, Pattern(2, 4)), sparsify(array.copy("C"), 1, Pattern(2, 4))
    )


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4", "2/4", "2:4:8", "", "2:128"])
def test_what_is_no_pattern(text):
    with pytest.raises(ValueError, match="is no pattern"):
        Pattern.parse(text)


def test_groups_have_to_be_whole():
    with pytest.raises(ValueError, match="an axis of 6 has no whole groups of 4"):
        best_mask(np.ones((2, 6), np.float32), 1, Pattern(2, 4))
