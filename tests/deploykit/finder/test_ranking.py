"""What is kept of all weights together: exactly so many, and the same ones every time."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from deploykit.errors import UsageError
from deploykit.finder.ranking import count_kept, keep_largest, plan_counts

SCORES = {"a": np.array([[3.0, 1.0], [2.0, 2.0]]), "b": np.array([2.0, 5.0])}


def test_the_largest_of_all_layers_are_kept_and_the_first_of_equal_ones():
    masks = keep_largest(SCORES, 3)
    assert masks["a"].tolist() == [[True, False], [True, False]]
    assert masks["b"].tolist() == [False, True]
    masks = keep_largest(SCORES, 5)
    assert masks["a"].tolist() == [[True, False], [True, True]]
    assert masks["b"].tolist() == [True, True]
    assert count_kept(keep_largest(SCORES, 0)) == 0


def test_what_was_dropped_stays_dropped():
    among = {"a": np.array([[False, True], [True, True]]), "b": np.array([True, False])}
    masks = keep_largest(SCORES, 2, among=among)
    assert masks["a"].tolist() == [[False, False], [True, True]]
    assert not masks["b"].any()
    with pytest.raises(UsageError, match="5 weights cannot be kept of 4"):
        keep_largest(SCORES, 5, among=among)


@given(
    arrays.arrays(np.float32, 40, elements=st.sampled_from([0.0, 1.0, 1.5, 2.0])),
    st.integers(0, 40),
)
def test_it_is_a_stable_sort(scores, kept):
    masks = keep_largest({"a": scores[:15].reshape(3, 5), "b": scores[15:]}, kept)
    flat = np.concatenate([masks["a"].ravel(), masks["b"]])
    best = np.argsort(-scores, kind="stable")[:kept]
    assert sorted(np.flatnonzero(flat)) == sorted(best)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(UsageError, match="scores of the weight 'b' are not finite"):
        keep_largest({"a": np.ones(2), "b": np.array([1.0, np.nan])}, 1)


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"rounds": 3}, (800, 640, 512)),
        ({"rounds": 2, "sparsity": 0.75}, (500, 250)),
        # Exactly three rounds of 20 % make no fourth.
        ({"sparsity": 1 - 0.8**3}, (800, 640, 512)),
        # As few as take no more than 20 % each, and the last one reaches the sparsity.
        ({"sparsity": 0.5}, (841, 707, 595, 500)),
        ({"sparsity": 0.5, "one_shot": True}, (500,)),
        ({"rounds": 2, "sparsity": 0.75, "one_shot": True}, (500, 250)),
    ],
)
def test_counts_of_rounds(options, counts):
    given = {"rounds": None, "sparsity": None, "rate": 0.2, "one_shot": False, **options}
    assert plan_counts(1000, **given) == counts


@pytest.mark.parametrize(
    ("total", "options", "message"),
    [
        (10, {"rounds": 40}, "nothing of the 10 weights would be left"),
        (10, {"rounds": 9, "sparsity": 0.3}, "would prune nothing"),
        (10, {}, "Give a number of rounds, or a sparsity"),
    ],
)
def test_rounds_without_an_effect_are_refused(total, options, message):
    given = {"rounds": None, "sparsity": None, "rate": 0.2, "one_shot": False, **options}
    with pytest.raises(UsageError, match=message):
        plan_counts(total, **given)
