"""Refill by hand: scores, counts, ties; and groups of channels that go together."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deploykit.errors import UsageError
from deploykit.finder.coupling import Coupling, CouplingGroup, Member
from deploykit.finder.structures.refill import (
    feature_l1,
    feature_l2,
    refill,
    refill_coupled,
    remaining_count,
    remaining_l1,
    saliency,
)

NOTHING = np.zeros(0, dtype=np.int64)


def test_scores_of_weights():
    weight = np.array([[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]])
    mask = np.array([[True, True, False], [False, True, False]])
    assert remaining_l1(weight, mask).tolist() == [3, 5]
    assert remaining_count(mask).tolist() == [2, 1]
    # the outputs of a transposed convolution lie along axis 1
    assert remaining_l1(weight, mask, axis=1).tolist() == [1, 7, 0]


def test_scores_of_features():
    # two examples, two channels, two positions
    features = np.array([[[3.0, -4.0], [1.0, 1.0]], [[0.0, 2.0], [0.0, -1.0]]])
    assert feature_l1(features).tolist() == [(7 + 2) / 2, (2 + 1) / 2]
    np.testing.assert_allclose(feature_l2(features), [(5 + 2) / 2, (np.sqrt(2) + 1) / 2])
    gradients = np.array([[[1.0, 1.0], [2.0, -2.0]], [[5.0, -1.0], [0.0, 3.0]]])
    # products: channel 0: (3, -4), (0, -2); channel 1: (2, -2), (0, -3); means over space, magnitudes, mean over examples
    assert saliency(features, gradients).tolist() == [(0.5 + 1) / 2, (0 + 1.5) / 2]
    # the same with channels last
    turned = features.transpose(0, 2, 1)
    assert feature_l1(turned, axis=2).tolist() == feature_l1(features).tolist()


def masked(rows, columns, remaining):
    mask = np.zeros((rows, columns), dtype=bool)
    mask.ravel()[:remaining] = True
    return mask


@pytest.mark.parametrize(
    ("remaining", "options", "kept"),
    [
        (11, {}, [1, 3]),  # 11 of 24 weights in six rows of four: floor(2.75) = 2 rows
        (12, {}, [1, 3, 4]),
        (1, {}, [3]),  # never none
        (24, {}, range(6)),
        (4, {"extra": 0.5}, [1, 3, 4]),  # 1 + floor(5 * 0.5)
        (4, {"extra": 1.0}, range(6)),
        (8, {"multiple": 4}, [0, 1, 3, 4]),  # 2 is as near to 0 as to 4
        (12, {"multiple": 4}, [0, 1, 3, 4]),
        (20, {"multiple": 4}, range(6)),  # 5 is as near to 4 as to all 6
    ],
)
def test_how_many_rows_are_kept(remaining, options, kept):
    # falling: 3, then 1 and 4 of equal scores, then 0, 2, 5
    scores = np.array([2.0, 4.0, 1.0, 9.0, 4.0, 0.0])
    found = refill(masked(6, 4, remaining), scores, **options)
    assert np.flatnonzero(found.all(axis=1)).tolist() == list(kept)
    assert (found.all(axis=1) == found.any(axis=1)).all()


def test_equal_scores_keep_the_first():
    found = refill(masked(4, 3, 6), np.zeros(4))
    assert found.any(axis=1).tolist() == [True, True, False, False]


@hypothesis.given(
    arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))),
    st.integers(0, 99),
    st.floats(0, 1),
    st.integers(1, 4),
)
def test_refill_keeps_whole_rows_of_the_best_scores(mask, seed, extra, multiple):
    dice = np.random.default_rng(seed)
    scores, order = dice.permutation(len(mask)).astype(float), dice.permutation(len(mask))
    found = refill(mask, scores, extra=extra, multiple=multiple)
    rows = found.reshape(len(mask), -1)
    assert (rows.all(axis=1) == rows.any(axis=1)).all()
    kept = rows.any(axis=1)
    assert kept.sum() == len(mask) or kept.sum() % multiple == 0
    assert scores[kept].min() > scores[~kept].max(initial=-1)
    # the order of the channels does not matter
    again = refill(mask[order], scores[order], extra=extra, multiple=multiple)
    assert (again == found[order]).all()
    # without extra channels there are no more weights than before, but for the one row that always stays
    if extra == 0 and multiple == 1:
        assert found.sum() <= max(mask.sum(), mask[0].size)


def member(weight, role, axis, items, within=None):
    items = np.asarray(items)
    channels = NOTHING if role == "reads" else np.arange(items.size)
    return Member(weight, role, axis, np.arange(items.size), items, channels, within)


def chain():
    """a makes four channels, b reads them and makes four, c reads those; nothing holds any."""
    free = np.zeros(4, dtype=bool)
    first = CouplingGroup(
        (1, 4), free, (member("a", "makes", 0, range(4)), member("b", "reads", 1, range(4)))
    )
    second = CouplingGroup(
        (1, 4), free, (member("b", "makes", 0, range(4)), member("c", "reads", 1, range(4)))
    )
    return Coupling((first, second), {"a": (4, 3), "b": (4, 4), "c": (2, 4)})


def test_a_chain_loses_rows_and_the_columns_that_read_them():
    masks = {"a": masked(4, 3, 6), "b": masked(4, 4, 10)}
    scores = {"a": np.array([1.0, 4, 3, 2]), "b": np.array([1.0, 2, 3, 4])}
    # a: 4 * 6/12 = 2 channels, b: floor(4 * 10/16) = 2
    found = refill_coupled(masks, scores, chain())
    a, b, c = [0, 1, 1, 0], [0, 0, 1, 1], [1, 1]
    assert (found["a"] == np.outer(a, [1, 1, 1]).astype(bool)).all()
    assert (found["b"] == np.outer(b, a).astype(bool)).all()
    assert (found["c"] == np.outer(c, b).astype(bool)).all()


def test_as_many_weights_as_the_masks_leave():
    masks = {"a": masked(4, 3, 6), "b": masked(4, 4, 10)}
    scores = {"a": np.array([1.0, 4, 3, 2]), "b": np.array([1.0, 2, 3, 4])}
    # 16 weights may stay. (2, 2) channels are 2*3 + 2*2 = 10, (2, 3) are 6 + 6 = 12, (3, 3) are 9 + 9 = 18: with a common
    # power of the densities 0.5 and 0.625, b comes to three channels (power 0.61) before a does (power 0.41)
    found = refill_coupled(masks, scores, chain(), match="weights")
    assert found["a"].any(axis=1).tolist() == [False, True, True, False]
    assert found["b"].any(axis=1).tolist() == [False, True, True, True]
    assert sum(int(found[name].sum()) for name in masks) == 12
    # what is put back comes on top: 2 + floor(2 * 0.5) and 3 + floor(1 * 0.5)
    more = refill_coupled(masks, scores, chain(), match="weights", extra=0.5)
    assert [int(more[name].any(axis=1).sum()) for name in masks] == [3, 3]


def stream(held=()):
    """A residual stream of three channels: made by a large weight and by a small one."""
    stays = np.zeros(3, dtype=bool)
    stays[list(held)] = True
    members = (
        member("large", "makes", 0, range(3)),
        member("small", "makes", 0, range(3)),
        member("head", "reads", 1, range(3)),
    )
    shapes = {"large": (3, 10), "small": (3, 2), "head": (2, 3)}
    return Coupling((CouplingGroup((1, 3), stays, members),), shapes)


def test_scores_of_a_stream_are_pooled():
    # 12 of 36 weights: one channel
    masks = {"large": masked(3, 10, 9), "small": masked(3, 2, 3)}
    scores = {"large": np.array([30.0, 33.0, 27.0]), "small": np.array([1.0, 0.0, 5.0])}
    # by their means: (1, 1.1, 0.9) + (0.5, 0, 2.5)
    even = refill_coupled(masks, scores, stream())
    assert even["large"].any(axis=1).tolist() == [False, False, True]
    # as they are: 31, 33, 32
    plain = refill_coupled(masks, scores, stream(), normalise=False)
    assert plain["large"].any(axis=1).tolist() == [False, True, False]
    for found in (even, plain):
        assert (found["large"].any(axis=1) == found["small"].any(axis=1)).all()
        assert (found["head"].any(axis=0) == found["small"].any(axis=1)).all()
        assert found["head"].any(axis=1).all()


def test_what_is_held_stays_and_counts():
    masks = {"large": masked(3, 10, 18), "small": masked(3, 2, 6)}
    scores = {"large": np.array([1.0, 2, 3]), "small": np.array([1.0, 2, 3])}
    # 24 of 36 weights: two channels, of which one is held
    found = refill_coupled(masks, scores, stream(held=[0]))
    assert found["large"].any(axis=1).tolist() == [True, False, True]


def test_lines_keep_equally_many():
    # a convolution in two groups, which makes three channels in each
    weight = Member("grouped", "makes", 0, np.arange(6), np.arange(6), np.arange(6))
    group = CouplingGroup((2, 3), np.zeros(6, dtype=bool), (weight,))
    coupling = Coupling((group,), {"grouped": (6, 2)})
    scores = {"grouped": np.array([9.0, 8, 7, 1, 3, 2])}
    found = refill_coupled({"grouped": masked(6, 2, 5)}, scores, coupling)
    assert found["grouped"].any(axis=1).tolist() == [True, False, False, False, True, False]


def test_columns_of_one_group_of_a_convolution():
    within = np.array([2, 3])
    reads = Member("w", "reads", 1, np.array([0, 1]), np.array([0, 1]), NOTHING, within)
    found = np.zeros((4, 2, 3))
    found[reads.select(np.array([False, True]))] = 1
    assert found.sum() == 6
    assert (found[2:, 1] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.ones((3, 2))}, r"the mask is float64 of shape \[3, 2\]"),
        ({"scores": np.ones(4)}, r"the scores have shape \[4\], for 3 channels"),
        ({"scores": np.array([1.0, np.nan, 2])}, "the scores hold nan at channel 1"),
        ({"extra": 1.5}, r"extra=1\.5"),
        ({"multiple": 0}, "multiple=0"),
    ],
)
def test_refused(changes, message):
    good = {"mask": np.ones((3, 2), dtype=bool), "scores": np.ones(3)}
    arguments = {**good, **changes}
    with pytest.raises(UsageError, match=message):
        refill(arguments.pop("mask"), arguments.pop("scores"), **arguments)


@pytest.mark.parametrize(
    ("masks", "scores", "message"),
    [
        ({"other": masked(3, 2, 1)}, {}, "the mask 'other' is of no weight"),
        ({"small": masked(2, 3, 1)}, {}, r"'small' has shape \[2, 3\], its weight \[3, 2\]"),
        ({"small": masked(3, 2, 1)}, {"small": np.ones(3)}, "no scores for 'large'"),
        (
            {"small": masked(3, 2, 1)},
            {"small": np.ones(3), "large": np.array([1, np.inf, 1])},
            "scores of 'large' hold inf",
        ),
    ],
)
def test_coupled_refused(masks, scores, message):
    with pytest.raises(UsageError, match=message):
        refill_coupled(masks, scores, stream())


def test_scores_of_another_shape_than_their_mask():
    with pytest.raises(UsageError, match=r"the weight has shape \[2, 2\]"):
        remaining_l1(np.ones((2, 2)), np.ones((2, 3), dtype=bool))
