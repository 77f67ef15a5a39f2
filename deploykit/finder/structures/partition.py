"""Partitions rows that share columns, as a hypergraph: a row is a vertex, a column joins the rows in which it is not zero.

The partitioner is Mt-KaHyPar in its deterministic preset, with one thread: the same table and seed give the same parts. It
makes few columns reach into several parts (the connectivity objective), of nearly equal size.

Source: T. Chen et al., "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets", ICML 2022, algorithm 3,
which uses hMETIS; L. Gottesbüren et al., "Deterministic Parallel Hypergraph Partitioning", Euro-Par 2022.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from deploykit.ticket import Bools, Ints

__all__ = ["partition_rows"]

IMBALANCE = 0.03
PINS = 60_000
"""Non-zeros that the partitioner is given, which takes about two seconds. Of a larger table it sees some columns, chosen at
random: parts found with a ninth of the columns of a 512x4608 table keep as much as those found with all of them."""


def partition_rows(table: Bools, parts: int, *, seed: int = 0) -> Ints:
    """Put rows that share columns into the same part.

    Args:
        table: bool, shape `(rows, columns)`: where the rows are not zero.
        parts: how many parts, at most as many as rows.
        seed: of the partitioner, and of the choice of columns where there are too many.

    Returns:
        the part of each row, shape `(rows,)`; parts have nearly equal sizes.

    Raises:
        RuntimeUnavailable: Mt-KaHyPar is not installed.
    """
    library = _library()
    rows = table.shape[0]
    # a column in one row, or none, joins nothing
    joining = np.flatnonzero(np.count_nonzero(table, axis=0) > 1)
    if parts == 1 or rows <= parts or not joining.size:
        return np.asarray(np.arange(rows) * parts // rows)
    pins = np.count_nonzero(table[:, joining], axis=0)
    order = np.random.default_rng(seed).permutation(joining.size)
    few = order[: max(int(np.searchsorted(np.cumsum(pins[order]), PINS)), 1)]
    edges = [np.flatnonzero(table[:, column]).tolist() for column in joining[np.sort(few)]]
    library.set_seed(seed)
    started = _started()
    context = started.context_from_preset(library.PresetType.DETERMINISTIC)
    context.set_partitioning_parameters(parts, IMBALANCE, library.Objective.KM1)
    context.logging = False
    graph = started.create_hypergraph(context, rows, len(edges), edges)
    labels: Ints = np.array(graph.partition(context).get_partition(), dtype=np.int64)
    return labels


def _library() -> Any:  # noqa: ANN401 - a module without types
    try:
        import mtkahypar  # type: ignore[import-not-found]  # an extra without types
    except ImportError as error:
        msg = (
            "the hypergraph partitioner Mt-KaHyPar is not installed, which regroup needs. Install it with 'pip install "
            "mtkahypar', or regroup with the method 'cocluster', which needs none."
        )
        raise RuntimeUnavailable(msg) from error
    return mtkahypar


@functools.cache
def _started() -> Any:  # noqa: ANN401 - the library has no types
    """The partitioner, started once in a process, with one thread."""
    return _library().initialize(1)
