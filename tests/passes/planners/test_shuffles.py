"""Channel shuffles that are read in chunks: which channels may go so that every chunk still reads its own."""

from __future__ import annotations

import numpy as np
import pytest

import passes
from passes.planners.shuffles import dealt
from tests import oracle
from tests.graphs import Graph


def test_channels_are_dealt_column_by_column():
    # rows a, b: read a0 b0 a1 b1 a2 b2 in chunks of three: (a0 b0 a1), (b1 a2 b2)
    assert dealt(2, 2, 3).tolist() == [[2, 1], [1, 2]]
    assert dealt(4, 4, 8).tolist() == [[2] * 4] * 4
    assert dealt(2, 4, 3) is None


def shuffled(channels: int, rows: int, *, split: bool) -> tuple[Graph, str]:
    """conv -> shuffle -> grouped conv, or Split -> two convs -> Concat."""
    g = Graph(seed=5)
    x = g.conv(g.input("x", (2, 3, 6, 6)), channels, 1)
    sizes = (2, rows, channels // rows, 6, 6)
    x = g.add("Reshape", [x, g.const(np.asarray(sizes), "sizes")])
    x = g.add("Transpose", [x], perm=[0, 2, 1, 3, 4])
    x = g.add("Reshape", [x, g.const(np.asarray((2, channels, 6, 6)), "sizes")])
    if not split:
        return g, g.conv(x, 2 * rows, 1, group=rows)
    halves = g.const(np.asarray([channels // 2] * 2), "halves")
    parts = g.add("Split", [x, halves], n=2, axis=1)
    return g, g.add("Concat", [g.conv(part, 4, 1) for part in parts], axis=1)


def cells(channels: int, rows: int, chunks: int) -> list[list[int]]:
    """The channels of each (row, chunk)."""
    columns = channels // rows
    found: dict[tuple[int, int], list[int]] = {}
    for channel in range(channels):
        row, column = divmod(channel, columns)
        chunk = (column * rows + row) // (channels // chunks)
        found.setdefault((row, chunk), []).append(channel)
    return [found[key] for key in sorted(found)]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("channels", "rows", "dead"), [(16, 2, 2), (32, 4, 1), (48, 4, 2)])
def test_a_regular_removal_goes_through(channels, rows, dead, split):
    g, y = shuffled(channels, rows, split=split)
    rng = np.random.default_rng(0)
    chosen = [
        rng.permutation(cell)[:dead] for cell in cells(channels, rows, 2 if split else rows)
    ]
    gone = tuple(int(channel) for channel in np.concatenate(chosen))
    g.zero_rows(g.layers[0], gone, clean=True)
    proto = g.model(y)
    model = oracle.from_proto(proto)
    report = passes.RemoveChannels()(model)
    assert [(c.before, c.after) for c in report.changes] == [(channels, channels - len(gone))]
    assert report.skips == ()
    oracle.assert_same_function(proto, model, oracle.make_inputs(proto, {}))


def test_what_would_move_into_a_neighbours_chunk_stays():
    g, y = shuffled(16, 2, split=False)
    # all of the first row's part of the first chunk: the second chunk's would move up
    g.zero_rows(g.layers[0], (0, 1, 2, 3), clean=True)
    proto = g.model(y)
    model = oracle.from_proto(proto)
    report = passes.RemoveChannels()(model)
    assert not report.modified
    assert any("in each chunk" in skip.reason for skip in report.skips)
    oracle.assert_same_function(proto, model, oracle.make_inputs(proto, {}))
