"""Things in groups of given sizes: as good as the general assignment problem's solution, which is slower."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from deploykit.finder.structures.transport import assign


def best_sum(gains, sizes):
    seats = np.repeat(np.arange(sizes.size), sizes)
    wide = gains[:, seats]
    return wide[linear_sum_assignment(-wide)].sum()


def test_by_hand():
    # all three gain most in the first group, which has one place; the last gains the least by going elsewhere, the second
    # the least in the third group
    gains = np.array([[9.0, 1.0, 1.0], [8.0, 5.0, 7.0], [9.0, 8.0, 2.0]])
    assert assign(gains, np.array([1, 1, 1])).tolist() == [0, 2, 1]
    # each to where it gains, if there is room
    assert assign(gains, np.array([3, 0, 0])).tolist() == [0, 0, 0]


@hypothesis.given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    st.integers(0, 9999),
    st.sampled_from(["real", "few values", "zeros", "prices"]),
)
def test_the_sum_is_the_largest_there_is(sizes, seed, kind):
    dice, sizes = np.random.default_rng(seed), np.asarray(sizes)
    gains = dice.random((sizes.sum(), sizes.size))
    if kind == "few values":
        gains = np.round(2 * gains)
    elif kind == "zeros":
        gains *= dice.random((sizes.sum(), 1)) < 0.3
    elif kind == "prices":
        # one group that everything wants to be in
        gains = gains / 100 + np.eye(sizes.size)[0]
    labels = assign(gains, sizes)
    assert (np.bincount(labels, minlength=sizes.size) == sizes).all()
    found = gains[np.arange(labels.size), labels].sum()
    assert found >= best_sum(gains, sizes) - 1e-6
    assert (assign(gains, sizes) == labels).all()
