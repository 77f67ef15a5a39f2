"""Which columns a group of rows takes, by hand."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

from deploykit.finder.structures.columns import (
    Budget,
    choose_columns,
    count_columns,
    ratio_columns,
)


def chosen(found):
    return [np.flatnonzero(row).tolist() for row in found]


def test_columns_that_keep_the_most_for_their_area():
    gains = np.array([[9.0, 1.0, 5.0, 0.0], [4.0, 4.0, 2.0, 8.0]])
    # two rows in the first block, one in the second: a column of the first costs twice as much. By gain for each row:
    # 8 (second, column 3), 4.5 (first, 0), 4 and 4 (second, 0 and 1), 2.5 (first, 2), 2 (second, 2), 0.5 (first, 1)
    sizes = np.array([2, 1])
    assert chosen(choose_columns(gains, sizes, Budget(1))) == [[], [3]]
    assert chosen(choose_columns(gains, sizes, Budget(5))) == [[0], [0, 1, 3]]
    assert chosen(choose_columns(gains, sizes, Budget(7))) == [[0, 2], [0, 1, 3]]
    # six is as near to five as to seven: the larger
    assert chosen(choose_columns(gains, sizes, Budget(6))) == [[0, 2], [0, 1, 3]]
    # nothing is taken that keeps nothing
    assert chosen(choose_columns(gains, sizes, Budget(99))) == [[0, 1, 2], [0, 1, 2, 3]]


def test_columns_come_in_multiples():
    gains = np.array([[9.0, 1.0, 5.0, 0.0, 2.0], [4.0, 4.0, 2.0, 8.0, 0.0]])
    sizes = np.array([1, 1])
    # pairs: 14 (columns 0, 2), 3 (4, 1) and 12 (3, 0), 6 (1, 2), then single ones that keep nothing
    assert chosen(choose_columns(gains, sizes, Budget(4, 2))) == [[0, 2], [0, 3]]
    assert chosen(choose_columns(gains, sizes, Budget(6, 2))) == [[0, 2], [0, 1, 2, 3]]
    # at least three, in pairs: first four, 17 against 18
    assert chosen(choose_columns(gains, sizes, Budget(4, 2, least=3))) == [[], [0, 1, 2, 3]]


def test_equal_columns():
    gains = np.array([[9.0, 1.0, 5.0, 0.0], [4.0, 4.0, 2.0, 8.0]])
    found = choose_columns(gains, np.array([2, 2]), Budget(7, form="equal"))
    # 7 is 1.75 columns for each of four rows; of the two fours the first
    assert chosen(found) == [[0, 2], [0, 3]]


def test_disjoint_columns():
    gains = np.array([[9.0, 5.0, 5.0, 0.0], [8.0, 1.0, 4.0, 1.0]])
    # 0 and 1 to the first would leave 5; 1 and 2 leave 19 in all, 0 and 1 leave 19, too: 14 + 5 and 10 + 9
    found = choose_columns(gains, np.array([2, 2]), Budget(0, form="disjoint"))
    assert gains[found].sum() == 19
    assert found.sum(axis=0).tolist() == [1, 1, 1, 1]
    assert found.sum(axis=1).tolist() == [2, 2]


def test_allowed_counts():
    assert Budget(0).counts(3).tolist() == [1, 2, 3]
    assert Budget(0, 4, 5).counts(18).tolist() == [8, 12, 16, 18]
    assert Budget(0, 16, 16).counts(9).tolist() == [9]
    assert Budget(0, 4).nearest(6, 12) == 8
    assert Budget(0, 4).nearest(5.9, 12) == 4


def test_the_ratio_rule_as_it_was_meant():
    counts = np.array(
        [
            [1, 1, 0, 1, 1],
            [1, 0, 1, 1, 0],
        ]
    )
    # The fullest first: 0, 3, 1, 2, 4. Lost by the worst row with one column: 3, with two: 2, with three: 1.
    # 1 > 4.5 and 2 > 3 are false, 3 > 1.5 is true.
    assert ratio_columns(counts, 1, 1.5, Budget(0)).tolist() == [0, 1, 3]
    # with a ratio of 0.5: 1 > 1.5 is false, 2 > 1 is true
    assert ratio_columns(counts, 1, 0.5, Budget(0)).tolist() == [0, 3]
    # three, to multiples of four
    assert ratio_columns(counts, 1, 1.5, Budget(0, 4)).tolist() == [0, 1, 2, 3]


def test_the_ratio_rule_counts_the_weights_of_kernels():
    # kernels of four; the fullest first: 1, 0, 2
    counts = np.array([[2, 4, 1], [3, 3, 0]])
    # One channel is 4 elements, and row 0 loses 3 weights: 4 > 4.5 is false. Two are 8, and it loses 1.
    assert ratio_columns(counts, 4, 1.5, Budget(0)).tolist() == [0, 1]
    assert ratio_columns(counts, 4, 1.2, Budget(0)).tolist() == [1]


def test_the_count_rule():
    counts = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]])
    assert count_columns(counts, 1, 2, Budget(0)).tolist() == [0, 1, 3]
    assert count_columns(counts, 1, 3, Budget(0)).tolist() == [0]
    assert count_columns(counts, 1, 3, Budget(0, least=2)).tolist() == []
    # an odd one out goes, the first of equals stay
    assert count_columns(counts, 1, 2, Budget(0, 2)).tolist() == [0, 1]
    # kernels of two: 3 weights are one and a half
    assert count_columns(counts, 2, 1.5, Budget(0)).tolist() == [0]


@hypothesis.given(
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(0, 99),
    st.floats(0, 1),
    st.sampled_from([Budget(0), Budget(0, 3), Budget(0, 2, 3), Budget(0, form="equal")]),
)
def test_choice_does_not_depend_on_the_order_of_columns(blocks, columns, seed, share, budget):
    dice = np.random.default_rng(seed)
    gains, sizes = dice.random((blocks, columns)), dice.integers(1, 5, blocks)
    budget = Budget(share * sizes.sum() * columns, budget.multiple, budget.least, budget.form)
    found, order = choose_columns(gains, sizes, budget), dice.permutation(columns)
    assert (choose_columns(gains[:, order], sizes, budget) == found[:, order]).all()
    counts = found.sum(axis=1)
    assert np.isin(counts[counts > 0], budget.counts(columns)).all()
    # in each block none is left out that keeps more than one that is taken
    for row, mine in zip(gains, found, strict=True):
        assert row[mine].min(initial=np.inf) >= row[~mine].max(initial=-np.inf)
    area, step = float(counts @ sizes), max(budget.multiple, budget.least + 1)
    assert abs(area - budget.area) <= step * sizes.max() or area == sizes.sum() * columns


def test_equal_counts_are_the_nearest():
    gains = np.arange(20.0).reshape(1, 20)
    for wanted, count in ((1, 4), (5.9, 4), (6, 8), (17.9, 16), (18, 20), (19, 20)):
        found = choose_columns(gains, np.array([1]), Budget(wanted, 4, form="equal"))
        assert found.sum() == count
