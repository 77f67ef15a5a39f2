"""Draws what is known of sparse kernels on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deploykit.report.profile_wording import seconds_text
from deploykit.report.sparse_records import EngineRecord, SparseTime, SparseVerdict
from deploykit.report.sparse_wording import (
    ASKED,
    dense_texts,
    engine_text,
    sparse_rows,
    sparse_times_text,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["engine_parts", "sparse_parts", "sparse_times_parts"]


def sparse_parts(verdict: SparseVerdict | None, of: str = "") -> list[RenderableType]:
    """The four answers; nothing where nobody was asked."""
    if verdict is None:
        return []
    table = _table("sparse kernels", "layers", "")
    for row in sparse_rows(verdict):
        table.add_row(*(escape(cell) for cell in row))
    return [Text(""), Text(f"{ASKED}{f', of {of}' if of else ''}.", "dim"), table]


def engine_parts(engine: EngineRecord | None) -> list[RenderableType]:
    """The engine, and what is known of sparse kernels in it."""
    if engine is None:
        return []
    return [Text(""), Text(engine_text(engine)), *sparse_parts(engine.sparse)]


def sparse_times_parts(rows: Sequence[SparseTime]) -> list[RenderableType]:
    """Layers timed dense and in 2:4 form."""
    if not rows:
        return []
    table = _table("layer", "op", "rows x depth x columns", "dense", "2:4", "time / dense", "")
    for row in (row for row in rows if row.dense_s is not None):
        ratio = ""
        if row.ratio is not None and row.ci95 is not None:
            ratio = f"{row.ratio:.2f} [{row.ci95[0]:.2f}, {row.ci95[1]:.2f}]"
        is_reduced = row.sparse_s is not None and not row.obeys_2_4
        table.add_row(
            escape(row.layer),
            row.op_type,
            " x ".join(map(str, row.product)),
            seconds_text(row.dense_s),
            seconds_text(row.sparse_s),
            ratio,
            "reduced to 2:4 for this" if is_reduced else "",
        )
    ways = sorted({f"{row.op_type}: {row.computed_as}" for row in rows if row.computed_as})
    told = [Text(text, "dim") for text in (sparse_times_text(rows), *ways) if text]
    return [Text(""), table, *told, *(Text(text) for text in dense_texts(rows))]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 1)
    return table
