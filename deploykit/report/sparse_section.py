"""The section on sparse kernels, and on the engine that was built."""

from __future__ import annotations

from html import escape

from deploykit.report.markup import Column, Shown, cell, span, table
from deploykit.report.records import Report
from deploykit.report.sparse_records import SparseVerdict
from deploykit.report.sparse_wording import ASKED, engine_text, sparse_rows

__all__ = ["sparse_kernels"]


def sparse_kernels(report: Report) -> str:
    """What is known of sparse kernels in the written model and in its engine; nothing where nobody was asked."""
    if report.sparse is None and report.engine is None:
        return ""
    parts = ["<h2>Sparse kernels</h2>"]
    if report.sparse is not None:
        parts += [f'<p class="soft">{escape(ASKED)}.</p>', _verdict(report.sparse, "sparse")]
    if report.engine is not None:
        figures = (
            Shown("engine.bytes", report.engine.bytes),
            Shown("engine.seconds", report.engine.seconds),
        )
        parts.append(f"<p>{span(engine_text(report.engine), *figures)}.</p>")
        if report.sparse is None:
            parts.append(f'<p class="soft">{escape(ASKED)}.</p>')
        parts.append(_verdict(report.engine.sparse, "engine.sparse"))
    return "".join(parts)


def _verdict(verdict: SparseVerdict, place: str) -> str:
    """A table of who says what.

    Args:
        verdict: what is said.
        place: where the document has it.
    """
    counts = {
        f"{place}.{name}.count": said.count
        for name, said in (("found", verdict.found), ("chosen", verdict.chosen))
        if said is not None
    }
    columns = [Column("sparse kernels"), Column("layers", is_number=True), Column("")]
    rows = []
    for who, count, names in sparse_rows(verdict):
        word = who.split()[0]
        figures = [Shown(key, value) for key, value in counts.items() if f".{word}." in key]
        rows.append([cell(who), cell(count, *figures), cell(names)])
    return table(columns, rows)
