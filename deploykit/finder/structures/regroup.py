"""Regroup: dense blocks in place of scattered weights.

The rows of a weight (its output channels) are put into groups, and each group takes some columns; rows x columns becomes a
dense block, every element of which can be trained again. What is outside of all blocks is dropped. Blocks are what
hardware runs fast: a few small products in place of a large one.

A column is an *element* of the row, as in the paper, or a whole input *channel* with the full kernel, which stock operators
can run: gather the channels, convolve, concatenate. The fastest form is `balanced` and `disjoint`: groups of equally many
rows that read equally many channels, each of them read by one group, are a grouped convolution, with no gather at all once
the permutations are folded into the neighbours. `balanced` alone is one gather in front of a grouped convolution. Unequal
groups keep the most magnitude, and become a convolution each.

How good a grouping is, is measured by what share of the magnitude that the mask keeps lies inside the blocks, at a given
area of the blocks. The rows are grouped by the hypergraph partitioner or by co-clustering; `method="best"` takes whichever
keeps more.

The blocks are the result, not the mask: they cannot be read off it again without guessing.

Source: T. Chen et al., "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets", ICML 2022, algorithm 3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from deploykit.errors import UsageError
from deploykit.finder.structures.cocluster import Clusters, cluster, improve, sized
from deploykit.finder.structures.columns import Budget, Form, count_columns, ratio_columns
from deploykit.finder.structures.partition import partition_rows
from deploykit.ticket import Block, Bools, Ints
from passes.targets import TARGETS

if TYPE_CHECKING:
    from deploykit.ticket import Array
    from passes.targets import Target

__all__ = ["METHODS", "Columns", "Method", "Regrouped", "Rule", "regroup"]

Columns: TypeAlias = Literal["element", "channel"]
Method: TypeAlias = Literal["best", "hypergraph", "cocluster"]
Rule: TypeAlias = Literal["area", "ratio", "count"]

METHODS: Final[tuple[Method, ...]] = ("best", "hypergraph", "cocluster")
RULES: Final[tuple[Rule, ...]] = ("area", "ratio", "count")
MOST_BLOCKS = 8
"""As many groups as the paper's code makes. More keep more, and cost more to run."""
DENSE_SHARE = 0.5
"""Share of a group's rows in which a column of the rule "count" has weights, where nothing is said."""


@dataclasses.dataclass(frozen=True, eq=False)
class Regrouped:
    """A mask made of blocks.

    Attributes:
        mask: bool, the weight's shape: the union of the blocks. Without blocks it is the mask that was given.
        blocks: the blocks, by their first row. None of their rows is in two of them, but for the rule "count".
        reason: why there are no blocks, in words; None if there are some.
        kept: share of the magnitude that the mask kept which lies inside of the blocks, 0 to 1.
    """

    mask: Bools
    blocks: tuple[Block, ...]
    reason: str | None
    kept: float

    @property
    def density(self) -> float:
        """Share of the weight that is kept."""
        return float(np.count_nonzero(self.mask)) / self.mask.size


def regroup(
    mask: Bools,
    scores: Array,
    *,
    blocks: int | None = None,
    columns: Columns = "element",
    method: Method = "best",
    rule: Rule = "area",
    density: float | None = None,
    balanced: bool = False,
    disjoint: bool = False,
    target: Target = TARGETS["onnxruntime-cpu"],
    min_rows: int | None = None,
    min_columns: int | None = None,
    dense_rows: int | None = None,
    ratio: float = 1.5,
    groups: int = 1,
    seed: int = 0,
) -> Regrouped:
    """Turn the mask of one layer into dense blocks.

    Args:
        mask: bool, shape of the weight, output channels along axis 0, inputs along axis 1.
        scores: magnitudes of the weights, the same shape; what is outside the mask does not count.
        blocks: groups of rows (t1). None: as many as rows allow, at most 8; of `disjoint`, as many as the density asks for.
        columns: "element" or "channel": what is taken as a whole. Channels come in multiples of what the target likes.
        method: how rows are grouped: "hypergraph", "cocluster", or "best" of both.
        rule: how a group's columns are found: "area", so that the blocks have a given area and keep the most; "ratio", by
            the paper's code as it was meant; "count", by algorithm 3 as printed: then what is left outside is grouped
            again, while there is a dense block in it, and a row may be in several.
        density: share of the weight that the blocks are to take, of the rule "area". None: the mask's. It is met as well
            as multiples allow.
        balanced: groups of equally many rows with equally many columns; needs the rule "area".
        disjoint: balanced, and every column is in one group: a block-diagonal matrix, whose density is one over the
            number of groups.
        target: the multiple of rows, and of input channels, that blocks come in.
        min_rows: rows of the smallest block (b1), and what more rows are a multiple of, but for a rest in one block. None:
            the target's multiple.
        min_columns: the fewest columns of a block (b2). None: the target's multiple.
        dense_rows: weights that a column needs in a group, of the rule "count" (t2). None: in half of the rows.
        ratio: of the rule "ratio".
        groups: of a grouped convolution, whose rows read different channels: it gets no blocks.
        seed: of all that is random.

    Returns:
        the blocks; or the mask unchanged, with the reason.

    Raises:
        UsageError: shapes that differ, scores that are negative, NaN or infinite, options that do not fit together.
        RuntimeUnavailable: the partitioner is not installed.
    """
    _check(mask, scores)
    form: Form = "disjoint" if disjoint else "equal" if balanced else "free"
    multiple = target.group_multiple
    step = multiple if columns == "channel" else 1
    wanted = np.count_nonzero(mask) / mask.size if density is None else density
    _check_choices(columns=columns, method=method, rule=rule)
    _check_numbers(rule, form, wanted)
    _check_counts(
        blocks=blocks, min_rows=min_rows, min_columns=min_columns, dense_rows=dense_rows
    )
    layer = _Layer.of(mask, scores, columns)
    # equal counts have to come out even, so rows without a weight take their part
    rows = np.flatnonzero(layer.counts.any(1)) if form == "free" else np.arange(len(mask))
    search = _Search(
        rows=rows,
        budget=Budget(
            wanted * layer.counts.size,
            step,
            multiple if min_columns is None else min_columns,
            form,
        ),
        min_rows=multiple if min_rows is None else min_rows,
        method=method,
        rule=rule,
        ratio=ratio,
        dense_rows=dense_rows,
        density=wanted,
        seed=seed,
    )
    reason = _why_never(mask, groups) or search.why_not(layer)
    if reason is not None:
        return Regrouped(mask, (), reason, 1.0)
    count = search.count(layer, blocks)
    found = sorted(search.blocks(layer, count), key=lambda block: block.rows.tolist())
    if not found:
        return Regrouped(mask, (), search.why_none(layer, count), 1.0)
    matrix = np.zeros((len(mask), mask[0].size), dtype=np.bool_)
    for block in found:
        matrix[np.ix_(block.rows, block.columns)] = True
    whole = matrix.reshape(mask.shape)
    total = float(layer.table.sum())
    inside = float(np.abs(scores[whole & mask]).sum(dtype=np.float64))
    return Regrouped(whole, tuple(found), None, inside / total if total else 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Layer:
    """A weight as a table of columns.

    Attributes:
        table: float64, shape `(rows, columns)`: magnitude that the mask keeps.
        counts: int64, the same shape: weights that the mask keeps.
        kernel: elements of a column.
        unit: what a column is, in words.
    """

    table: Array
    counts: Ints
    kernel: int
    unit: str

    @classmethod
    def of(cls, mask: Bools, scores: Array, columns: Columns) -> _Layer:
        """The table of a weight."""
        kept = np.where(mask, scores, 0).astype(np.float64)
        kernel = math.prod(mask.shape[2:]) if columns == "channel" else 1
        shape = (len(mask), -1, kernel)
        table, counts = kept.reshape(shape).sum(2), mask.reshape(shape).sum(2, dtype=np.int64)
        return cls(
            table, counts, kernel, "input channels" if columns == "channel" else "columns"
        )

    def elements(self, columns: Ints) -> Ints:
        """The elements of some columns, as columns of the matrix view."""
        return (columns[:, None] * self.kernel + np.arange(self.kernel)).ravel()

    def without(self, rows: Ints, columns: Ints) -> _Layer:
        """What is left outside of a block."""
        table, counts = self.table.copy(), self.counts.copy()
        table[np.ix_(rows, columns)] = 0
        counts[np.ix_(rows, columns)] = 0
        return dataclasses.replace(self, table=table, counts=counts)

    def joins(self, rows: Ints, density: float) -> Bools:
        """Which columns join which rows: where there are weights; of whole kernels, those with the most magnitude.

        A kernel of nine loses all of its weights so rarely that nearly every channel would join all rows.
        """
        table = self.table[rows]
        if self.kernel == 1:
            return self.counts[rows] > 0
        most = min(max(round(density * table.size), 1), table.size)
        bound = np.partition(table.ravel(), -most)[-most]
        joined: Bools = (table >= bound) & (table > 0)
        return joined


@dataclasses.dataclass(frozen=True, eq=False)
class _Search:
    """How blocks are looked for; see `regroup`."""

    rows: Ints
    budget: Budget
    min_rows: int
    method: Method
    rule: Rule
    ratio: float
    dense_rows: int | None
    density: float
    seed: int

    def why_not(self, layer: _Layer) -> str | None:
        """Why there can be no block, before any is looked for."""
        height, width = layer.counts.shape
        if self.rows.size < self.min_rows:
            there = f"of its {height} outputs {self.rows.size} have weights"
            return f"{there}, and a block takes {self.min_rows} or more"
        if self.budget.counts(width).size < 2:
            least = max(self.budget.least, self.budget.multiple)
            return f"it has {width} {layer.unit}, and a block that takes {least} or more would leave none of them out"
        if self.budget.form == "disjoint" and not self._diagonals(layer):
            return (
                f"no number of groups divides its {height} outputs and {width} {layer.unit} into equal parts of at least "
                f"{self.min_rows} and {self.budget.least}"
            )
        return None

    def why_none(self, layer: _Layer, count: int) -> str:
        """Why none was found."""
        if self.rule == "count":
            least = "half of its rows" if self.dense_rows is None else f"{self.dense_rows} rows"
            return f"in none of {count} groups of rows are there {self.budget.least} {layer.unit} with weights in {least}"
        return "nothing that its mask keeps has any magnitude"

    def count(self, layer: _Layer, wanted: int | None) -> int:
        """How many groups of rows there are."""
        if self.budget.form == "disjoint":
            ideal = wanted or 1 / max(self.density, 1 / layer.counts.size)
            return min(self._diagonals(layer), key=lambda parts: abs(math.log(parts / ideal)))
        most = min(wanted or MOST_BLOCKS, self.rows.size // self.min_rows)
        if self.budget.form == "free":
            return most
        dividing = [parts for parts in range(1, most + 1) if self.rows.size % parts == 0]
        return max(dividing, key=lambda parts: (self._even(self.rows.size // parts), parts))

    def _even(self, rows: int) -> bool:
        return rows % self.min_rows == 0

    def _diagonals(self, layer: _Layer) -> list[int]:
        """Numbers of groups that a block-diagonal matrix can have: those that fit the target, if any do."""
        height, width = layer.counts.shape
        most = min(height // self.min_rows, width // max(self.budget.least, 1))
        found = [
            parts for parts in range(2, most + 1) if height % parts == 0 and width % parts == 0
        ]
        fit = [
            parts
            for parts in found
            if self._even(height // parts) and width // parts % self.budget.multiple == 0
        ]
        return fit or found

    def blocks(self, layer: _Layer, count: int) -> Iterator[Block]:
        """Look for blocks."""
        rows = self.rows
        while rows.size >= self.min_rows:
            found = list(self.round(layer, rows, min(count, rows.size // self.min_rows)))
            for mine, columns in found:
                layer = layer.without(mine, columns)
                yield Block(mine, layer.elements(columns))
            if self.rule != "count" or not found:
                return
            rows = np.flatnonzero(layer.counts.any(1))

    def round(self, layer: _Layer, rows: Ints, count: int) -> Iterator[tuple[Ints, Ints]]:
        """Group rows once: rows and columns of each block."""
        clusters = self.group(layer, rows, self.sizes(rows.size, count))
        for index in range(count):
            mine = rows[clusters.labels == index]
            columns = np.flatnonzero(clusters.columns[index])
            if self.rule == "ratio":
                columns = ratio_columns(
                    layer.counts[mine], layer.kernel, self.ratio, self.budget
                )
            elif self.rule == "count":
                least = DENSE_SHARE * mine.size if self.dense_rows is None else self.dense_rows
                columns = count_columns(layer.counts[mine], layer.kernel, least, self.budget)
            if columns.size:
                yield mine, columns

    def sizes(self, rows: int, count: int) -> Ints:
        """Rows of each group: multiples, as equal as can be; the last takes what is left over."""
        if self.budget.form != "free":
            return np.full(count, rows // count)
        units = rows // self.min_rows
        sizes = np.asarray(
            [(units // count + (part < units % count)) * self.min_rows for part in range(count)]
        )
        sizes[-1] += rows - sizes.sum()
        return sizes

    def group(self, layer: _Layer, rows: Ints, sizes: Ints) -> Clusters:
        """Put rows into groups, by the method that is asked for."""
        table = layer.table[rows]
        if self.method == "cocluster":
            return cluster(table, sizes, self.budget, seed=self.seed)
        joined = layer.joins(rows, self.density)
        parts = partition_rows(joined, sizes.size, seed=self.seed)
        found = sized(table, parts, sizes, self.budget)
        if self.method == "hypergraph":
            return found
        others = (
            improve(table, found.labels, sizes, self.budget),
            cluster(table, sizes, self.budget, seed=self.seed),
        )
        return max(found, *others, key=lambda one: one.kept)


def _why_never(mask: Bools, groups: int) -> str | None:
    """Why a layer gets no blocks, whatever is asked for."""
    if groups > 1 and mask.shape[1] == 1:
        return "it is a depthwise convolution, whose rows read one input channel each"
    if groups > 1:
        return (
            f"it is a convolution in {groups} groups, whose rows read different input channels"
        )
    if not mask.any():
        return "its mask keeps nothing"
    return None


def _check(mask: Bools, scores: Array) -> None:
    if mask.dtype != np.bool_ or mask.ndim < 2 or not mask.size:
        msg = f"the mask is {mask.dtype} of shape {list(mask.shape)}. Give bool with an axis of outputs and one of inputs."
        raise UsageError(msg)
    if mask.shape != scores.shape:
        msg = f"the mask has shape {list(mask.shape)}, the scores {list(scores.shape)}. Give one score for each weight."
        raise UsageError(msg)
    if not np.isfinite(scores).all() or (scores < 0).any():
        msg = "the scores hold NaN, infinity or negative numbers. Give magnitudes, and look for NaN in the weights."
        raise UsageError(msg)


def _check_choices(**choices: str) -> None:
    known = {"columns": ("element", "channel"), "method": METHODS, "rule": RULES}
    for name, choice in choices.items():
        if choice not in known[name]:
            msg = f"{name}='{choice}': it is one of {', '.join(known[name])}."
            raise UsageError(msg)


def _check_numbers(rule: Rule, form: Form, density: float) -> None:
    if rule != "area" and form != "free":
        msg = f"the rule '{rule}' gives every group the columns that it finds, so they cannot be balanced. Use the rule 'area'."
        raise UsageError(msg)
    if not 0 <= density <= 1:
        msg = f"density={density}: the share of the weight that the blocks take is a number from 0 to 1."
        raise UsageError(msg)


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            msg = f"{name}={count}: it is 1 or more."
            raise UsageError(msg)
