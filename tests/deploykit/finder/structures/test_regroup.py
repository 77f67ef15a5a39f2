"""Regroup: blocks that can be found, what holds of all blocks, and layers that get none."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from deploykit.errors import RuntimeUnavailable, UsageError
from deploykit.finder.structures import partition
from deploykit.finder.structures.cocluster import cluster, improve
from deploykit.finder.structures.columns import Budget
from deploykit.finder.structures.partition import partition_rows
from deploykit.finder.structures.regroup import METHODS, regroup
from passes.targets import TARGETS

PARTITIONER = importlib.util.find_spec("mtkahypar") is not None
needs_partitioner = pytest.mark.skipif(not PARTITIONER, reason="Mt-KaHyPar is not installed")
each_method = pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=() if method == "cocluster" else needs_partitioner)
        for method in METHODS
    ],
)
PAIRS = dataclasses.replace(TARGETS["generic"], group_multiple=2)
FOURS = dataclasses.replace(TARGETS["generic"], group_multiple=4)


def planted(groups, columns, *, noise=0.0, seed=0, kernel=1):
    """A weight whose rows of each group use their own columns, in a random order, and a few weights elsewhere."""
    dice = np.random.default_rng(seed)
    label = dice.permutation(np.repeat(np.arange(len(groups)), groups))
    owner = dice.permutation(np.repeat(np.arange(len(columns)), columns))
    scores = 1 + dice.random((label.size, owner.size, kernel))
    inside = (label[:, None] == owner)[:, :, None]
    mask = np.broadcast_to(inside, scores.shape) | (dice.random(scores.shape) < noise)
    shape = scores.shape if kernel > 1 else scores.shape[:2]
    return mask.reshape(shape), scores.reshape(shape), label, owner


def found_blocks(result):
    return {
        (tuple(block.rows.tolist()), tuple(block.columns.tolist())) for block in result.blocks
    }


@each_method
@pytest.mark.parametrize("rule", ["area", "ratio", "count"])
def test_two_blocks_by_hand(method, rule):
    #     0 1 2 3 4 5     rows 0 and 2 have columns 0, 1, 4; rows 1 and 3 have 2, 3, 5
    # 0   x x . . x .
    # 1   . . x x . x
    # 2   x x . . x .
    # 3   . . x x . x
    mask = np.array([[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1]] * 2, dtype=bool)
    found = regroup(mask, np.ones(mask.shape), method=method, rule=rule, target=PAIRS)
    if rule == "ratio":
        # two columns are enough: they are more than 1.5 times the one weight that each row loses
        assert found_blocks(found) == {((0, 2), (0, 1)), ((1, 3), (2, 3))}
        assert (found.kept, found.reason) == (pytest.approx(2 / 3), None)
        return
    assert found_blocks(found) == {((0, 2), (0, 1, 4)), ((1, 3), (2, 3, 5))}
    assert (found.mask == mask).all()
    assert (found.kept, found.reason, found.density) == (1.0, None, 0.5)


def test_weights_outside_are_dropped_and_holes_are_filled():
    mask = np.array([[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1]] * 2, dtype=bool)
    mask[0, 1], mask[0, 5] = False, True
    scores = np.full(mask.shape, 2.0)
    scores[0, 5] = 1
    found = regroup(mask, scores, method="cocluster", target=PAIRS)
    assert found_blocks(found) == {((0, 2), (0, 1, 4)), ((1, 3), (2, 3, 5))}
    assert found.mask[0, 1]
    assert not found.mask[0, 5]
    # 11 weights of 2 are kept, and one of 1 is not
    assert found.kept == pytest.approx(22 / 23)


def test_whole_channels_by_hand():
    # two kernels of two for each of four rows; rows 0 and 1 read the channels 0 and 2, rows 2 and 3 read 1 and 3
    mask = np.zeros((4, 4, 2), dtype=bool)
    mask[:2, [0, 2], 0] = mask[2:, [1, 3], 1] = True
    found = regroup(
        mask,
        np.ones(mask.shape),
        columns="channel",
        density=0.5,
        method="cocluster",
        target=PAIRS,
    )
    assert found_blocks(found) == {((0, 1), (0, 1, 4, 5)), ((2, 3), (2, 3, 6, 7))}
    assert found.kept == 1
    # at the density of the mask there is room for one channel a block only, and blocks take two: one block is left
    sparse = regroup(
        mask, np.ones(mask.shape), columns="channel", method="cocluster", target=PAIRS
    )
    assert [block.columns.size for block in sparse.blocks] == [4]


@pytest.mark.parametrize(
    ("method", "noise"),
    # a column that reaches into every part counts the same however few of its rows do: the hypergraph shows less
    [
        pytest.param("best", 0.05, marks=needs_partitioner),
        ("cocluster", 0.05),
        pytest.param("hypergraph", 0.002, marks=needs_partitioner),
    ],
)
def test_planted_blocks_are_found(method, noise):
    mask, scores, label, owner = planted((32,) * 4, (24, 40, 16, 48), noise=noise, seed=3)
    found = regroup(mask, scores, blocks=4, density=0.25, method=method)
    expected = {
        (tuple(np.flatnonzero(label == g).tolist()), tuple(np.flatnonzero(owner == g).tolist()))
        for g in range(4)
    }
    assert found_blocks(found) == expected


@needs_partitioner
def test_the_best_method_keeps_at_least_as_much_as_the_others():
    dice = np.random.default_rng(5)
    scores = np.abs(dice.standard_normal((96, 160)) * np.exp(dice.standard_normal((96, 1)) / 2))
    mask = scores > np.quantile(scores, 0.8)
    found = {method: regroup(mask, scores, method=method, seed=1) for method in METHODS}
    kept = {method: one.kept for method, one in found.items()}
    assert kept["best"] >= max(kept.values())
    for method, one in found.items():
        again = regroup(mask, scores, method=method, seed=1)
        assert found_blocks(again) == found_blocks(one)
    # far more than the 0.2 that random blocks of this area would keep
    assert min(kept.values()) > 0.35


@hypothesis.given(
    st.integers(2, 24),
    st.integers(2, 20),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from(["element", "channel"]),
    st.sampled_from(["area", "ratio", "count"]),
    st.sampled_from([{}, {"balanced": True}, {"disjoint": True}, {"density": 0.5}]),
    st.integers(0, 999),
)
def test_what_holds_of_all_blocks(rows, inputs, blocks, columns, rule, options, seed):
    dice = np.random.default_rng(seed)
    kernel = (1, 3)[seed % 2]
    shape = (rows, inputs, kernel) if kernel > 1 else (rows, inputs)
    scores = dice.random(shape)
    mask = dice.random(shape) < dice.random()
    if rule != "area":
        options = {}
    options = {
        "blocks": blocks,
        "columns": columns,
        "rule": rule,
        "method": "cocluster",
        **options,
    }
    found = regroup(mask, scores, target=PAIRS, seed=seed, **options)
    if found.reason is not None:
        assert not found.blocks
        assert (found.mask == mask).all()
        return
    matrix = found.mask.reshape(rows, -1)
    union = np.zeros_like(matrix)
    for block in found.blocks:
        for line in (block.rows, block.columns):
            assert line.dtype == np.int64
            assert (np.diff(line) > 0).all()
        assert block.rows.size >= 2
        union[np.ix_(block.rows, block.columns)] = True
        if columns == "channel":
            whole = block.columns.reshape(-1, kernel)
            assert (whole == whole[:, :1] + np.arange(kernel)).all()
            assert (whole[:, 0] % kernel == 0).all()
            assert len(whole) % 2 == 0 or len(whole) == inputs
    assert (union == matrix).all()
    together = np.concatenate([block.rows for block in found.blocks])
    if rule != "count":
        assert np.unique(together).size == together.size
    kept = scores[mask & found.mask].sum() / scores[mask].sum()
    assert found.kept == pytest.approx(kept)
    if "balanced" in options or "disjoint" in options:
        assert together.size == rows
        assert len({block.rows.size for block in found.blocks}) == 1
        if "balanced" in options or inputs % len(found.blocks) == 0:
            assert len({block.columns.size for block in found.blocks}) == 1
    if "disjoint" in options:
        read = np.concatenate([block.columns for block in found.blocks])
        assert np.unique(read).size == read.size == matrix.shape[1]
    again = regroup(mask, scores, target=PAIRS, seed=seed, **options)
    assert found_blocks(again) == found_blocks(found)


@hypothesis.given(st.integers(0, 999), st.floats(0.05, 0.95))
def test_blocks_take_the_density_that_is_asked_for(seed, density):
    dice = np.random.default_rng(seed)
    scores = dice.random((32, 60))
    mask = dice.random(scores.shape) < 0.9
    found = regroup(
        mask, scores, density=density, method="cocluster", target=FOURS, min_columns=1
    )
    # the last column that is taken may belong to a block of eight rows
    assert abs(found.density - density) <= 8 / mask.size
    assert found.kept >= density - 8 / mask.size


def test_the_count_rule_goes_on_with_what_is_left():
    # Columns 0 and 1 are full. Of the others, 2 and 3 are in rows 0 and 1, 4 and 5 in rows 0 and 2: with two groups of two
    # rows no first grouping has both pairs, and a later one finds the other pair in what the first leaves.
    mask = np.zeros((4, 6), dtype=bool)
    mask[:, :2] = True
    mask[np.ix_([0, 1], [2, 3])] = mask[np.ix_([0, 2], [4, 5])] = True
    found = regroup(
        mask,
        np.ones(mask.shape),
        rule="count",
        dense_rows=2,
        blocks=2,
        method="cocluster",
        target=PAIRS,
    )
    assert (found.mask == mask).all()
    assert found.kept == 1
    assert len(found.blocks) == 3


def test_rows_without_weights_take_no_part_unless_counts_have_to_be_equal():
    mask, scores, _, _ = planted((6, 6), (5, 5), seed=1)
    mask[:2] = False
    free = regroup(mask, scores, method="cocluster", target=PAIRS)
    assert not free.mask[:2].any()
    equal = regroup(mask, scores, method="cocluster", target=PAIRS, balanced=True, blocks=2)
    assert [block.rows.size for block in equal.blocks] == [6, 6]


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((32, 1, 3, 3), {"groups": 32}, "it is a depthwise convolution"),
        ((32, 8, 3, 3), {"groups": 4}, "a convolution in 4 groups"),
        ((8, 64), {}, "of its 8 outputs 8 have weights, and a block takes 16 or more"),
        (
            (32, 3, 3, 3),
            {"columns": "channel"},
            "it has 3 input channels, and a block that takes 16",
        ),
        ((32, 9), {}, "it has 9 columns, and a block that takes 16 or more would leave none"),
        (
            (37, 64),
            {"disjoint": True},
            "no number of groups divides its 37 outputs and 64 columns",
        ),
        (
            (32, 64),
            {"rule": "count", "dense_rows": 17},
            "in none of 2 groups of rows are there 16 columns with weights in 17 rows",
        ),
    ],
)
def test_a_layer_without_blocks_says_why(shape, options, reason):
    dice = np.random.default_rng(0)
    mask = dice.random(shape) < 0.5
    found = regroup(mask, dice.random(shape), method="cocluster", **options)
    assert found.reason is not None
    assert reason in found.reason
    assert (found.mask == mask).all()
    assert not found.blocks


def test_a_mask_that_keeps_nothing():
    found = regroup(np.zeros((32, 64), dtype=bool), np.ones((32, 64)))
    assert found.reason == "its mask keeps nothing"


def test_layers_narrower_than_in_the_paper_get_blocks():
    # the paper's code makes eight parts and drops those of 16 rows or fewer: nothing is left of 128 outputs
    dice = np.random.default_rng(0)
    scores = dice.random((128, 64, 3, 3))
    found = regroup(scores > 0.8, scores, columns="channel", method="cocluster")
    assert found.reason is None
    assert all(block.rows.size % 16 == 0 for block in found.blocks)
    assert all(block.columns.size % (16 * 9) == 0 for block in found.blocks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.ones((16, 32))}, "the mask is float64"),
        ({"scores": np.ones((16, 31))}, r"shape \[16, 32\], the scores \[16, 31\]"),
        ({"scores": np.full((16, 32), np.nan)}, "the scores hold NaN"),
        ({"scores": np.full((16, 32), -1.0)}, "negative"),
        ({"method": "magic"}, "method='magic': it is one of best, hypergraph, cocluster"),
        ({"columns": "row"}, "columns='row'"),
        ({"rule": "ratio", "balanced": True}, "cannot be balanced"),
        ({"blocks": 0}, "blocks=0: it is 1 or more"),
        ({"min_rows": 0}, "min_rows=0"),
        ({"density": 1.5}, r"density=1\.5"),
    ],
)
def test_refused(change, message):
    arguments = {"mask": np.ones((16, 32), dtype=bool), "scores": np.ones((16, 32)), **change}
    with pytest.raises(UsageError, match=message):
        regroup(arguments.pop("mask"), arguments.pop("scores"), **arguments)


def test_without_the_partitioner(monkeypatch):
    monkeypatch.setitem(sys.modules, "mtkahypar", None)
    mask, scores, _, _ = planted((16, 16), (16, 16))
    with pytest.raises(RuntimeUnavailable, match="pip install mtkahypar") as error:
        regroup(mask, scores)
    assert error.value.exit_code == 4
    assert regroup(mask, scores, method="cocluster").kept == 1


@needs_partitioner
def test_parts_of_a_hypergraph():
    mask, _, label, _ = planted((8, 8, 8), (9, 9, 9), seed=2)
    parts = partition_rows(mask, 3, seed=7)
    # each part is one group
    assert len(set(zip(parts.tolist(), label.tolist(), strict=True))) == 3
    assert (partition_rows(mask, 3, seed=7) == parts).all()
    # nothing joins any rows
    assert np.bincount(partition_rows(np.eye(9, dtype=bool), 3)).tolist() == [3, 3, 3]


@needs_partitioner
def test_a_large_hypergraph_is_sampled(monkeypatch):
    mask, _, label, _ = planted((8, 8, 8), (90, 90, 90), seed=2)
    monkeypatch.setattr(partition, "PINS", 300)
    parts = partition_rows(mask, 3, seed=7)
    assert len(set(zip(parts.tolist(), label.tolist(), strict=True))) == 3


@hypothesis.given(st.integers(0, 99), st.sampled_from(["free", "equal", "disjoint"]))
def test_turns_never_keep_less(seed, form):
    dice = np.random.default_rng(seed)
    table, sizes = dice.random((24, 18)) ** 3, np.array([8, 8, 8])
    start = dice.permutation(np.repeat(np.arange(3), 8))
    budget = Budget(24 * 18 / 3, form=form)
    first = improve(table, start, sizes, budget)
    again = improve(table, first.labels, sizes, budget)
    assert again.kept >= first.kept * (1 - 1e-9)
    assert (np.bincount(first.labels) == sizes).all()
    member = first.labels == np.arange(3)[:, None]
    inside = sum(
        table[np.ix_(rows, columns)].sum()
        for rows, columns in zip(member, first.columns, strict=True)
    )
    assert first.kept == pytest.approx(inside)
    assert cluster(table, sizes, budget, seed=seed).kept >= 0.97 * first.kept
