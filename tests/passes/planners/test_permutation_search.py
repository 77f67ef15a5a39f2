"""The search for an order of channels: optimal where everything can be tried, never worse, and the same for the same seed."""

from __future__ import annotations

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from passes.analysis.patterns import TWO_OF_FOUR, Pattern
from passes.planners import permutation_search
from passes.planners.permutation_search import kept, search_order


def magnitudes(channels, rows, seed=0, dtype=np.float32):
    dice = np.random.default_rng(seed)
    array = dice.standard_t(4, (channels, rows)) * np.exp(dice.standard_normal((channels, 1)))
    return np.abs(array).astype(dtype)


def by_hand(columns, pattern):
    """What a pattern keeps, one group and row at a time."""
    total = 0.0
    for start in range(0, len(columns), pattern.group):
        for row in columns[start : start + pattern.group].T:
            total += float(np.sort(row)[-pattern.kept :].sum(dtype=np.float64))
    return total


@hypothesis.given(
    st.sampled_from(
        [Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(4, 8), Pattern(1, 2)]
    ),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 999),
)
def test_what_is_told_is_what_the_order_keeps(pattern, groups, rows, seed):
    columns = magnitudes(groups * pattern.group, rows, seed)
    found = search_order(columns, pattern, seconds=0.01, seed=seed)
    assert sorted(found.order) == list(range(len(columns)))
    assert found.before == pytest.approx(by_hand(columns, pattern))
    assert found.after == pytest.approx(by_hand(columns[found.order], pattern))
    assert found.after >= found.before
    assert kept(columns, pattern) == pytest.approx(found.before)


@pytest.mark.parametrize("seed", range(8))
def test_eight_channels_come_to_stand_as_well_as_they_can(seed):
    columns = magnitudes(8, 16, seed)
    best = max(
        by_hand(columns[[0, *one, *(at for at in range(1, 8) if at not in one)]], TWO_OF_FOUR)
        for one in itertools.combinations(range(1, 8), 3)
    )
    found = search_order(columns, TWO_OF_FOUR, seconds=0.1, seed=seed)
    assert found.after == pytest.approx(best)


def test_a_hidden_order_that_keeps_everything_is_found():
    dice = np.random.default_rng(3)
    # Channels come in four kinds, of which two are zero in each row.
    live = np.stack([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]] * 8).T
    columns = np.repeat(live, 8, axis=0) * np.abs(dice.standard_normal((32, 32)))
    assert kept(columns, TWO_OF_FOUR) < 0.8 * columns.sum()
    found = search_order(columns, TWO_OF_FOUR, seconds=0.3)
    assert found.after == pytest.approx(columns.sum())


def test_the_seed_decides_and_not_the_clock():
    columns = magnitudes(64, 48)
    one, other = (search_order(columns, TWO_OF_FOUR, seconds=0.05, seed=7) for _ in range(2))
    assert np.array_equal(one.order, other.order)
    assert one.rounds == other.rounds > 20
    assert not np.array_equal(
        one.order, search_order(columns, TWO_OF_FOUR, seconds=0.05, seed=8).order
    )


def test_more_time_keeps_more():
    columns = magnitudes(128, 64, 2)
    after = [search_order(columns, TWO_OF_FOUR, seconds=s).after for s in (0.002, 0.02, 0.2)]
    assert after == sorted(after)
    assert after[0] < after[-1]


def test_channels_change_places_within_their_part_only():
    columns = magnitudes(48, 20)
    parts = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], 16))
    found = search_order(columns, TWO_OF_FOUR, seconds=0.05, parts=parts)
    assert np.array_equal(parts[found.order], parts)
    assert found.after > found.before


def test_where_nothing_can_move_nothing_does():
    columns = magnitudes(16, 5)
    alone = search_order(columns, TWO_OF_FOUR, parts=np.arange(16))
    assert np.array_equal(alone.order, np.arange(16))
    empty = search_order(np.zeros((16, 5)), TWO_OF_FOUR)
    assert (empty.after, empty.rounds) == (0, 0)
    assert search_order(magnitudes(4, 5), TWO_OF_FOUR).rounds == 0


def test_magnitudes_in_steps_lead_as_far_as_exact_ones(monkeypatch):
    columns = magnitudes(256, 96, 5)
    exact = search_order(columns, TWO_OF_FOUR, seconds=0.3)
    monkeypatch.setattr(permutation_search, "MANY_GROUPS", 8)
    coarse = search_order(columns, TWO_OF_FOUR, seconds=0.3)
    assert coarse.after == pytest.approx(by_hand(columns[coarse.order], TWO_OF_FOUR))
    gain = exact.after - exact.before
    assert coarse.after - coarse.before > 0.9 * gain


@pytest.mark.parametrize("rows", [1, 3, 1024, 1030, 2100])
def test_sums_of_the_larger_do_not_overflow(rows):
    dice = np.random.default_rng(rows)
    top = permutation_search.LEVELS
    one, other = (dice.integers(top - 3, top + 1, (rows, 5)).astype(np.uint8) for _ in range(2))
    expected = np.maximum(one[:, :, None].astype(int), other[:, None, :]).sum(axis=0)
    assert np.array_equal(permutation_search._sums_of_larger(one, other), expected)


def test_of_many_rows_some_are_read_at_a_time(monkeypatch):
    monkeypatch.setattr(permutation_search, "ROWS_AT_ONCE", 64)
    columns = magnitudes(64, 500, 4)
    found = search_order(columns, TWO_OF_FOUR, seconds=0.1)
    assert found.after == pytest.approx(by_hand(columns[found.order], TWO_OF_FOUR))
    assert found.after > found.before


def test_how_far_the_search_is_can_be_followed():
    told = []
    search_order(magnitudes(64, 32), TWO_OF_FOUR, seconds=0.05, tell=told.append)
    assert told == sorted(told)
    assert len(told) > 2
    assert told[0] == 0
    assert told[-1] < 1
