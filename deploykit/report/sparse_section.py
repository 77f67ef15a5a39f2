"""The section on sparse kernels, and on the engine that was built."""

from __future__ import annotations

from html import escape

from deploykit.report.markup import Column, cell, table
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
        parts += [f'<p class="soft">{escape(ASKED)}.</p>', _verdict(report.sparse)]
    if report.engine is not None:
        parts.append(f"<p>{escape(engine_text(report.engine))}.</p>")
        if report.sparse is None:
            parts.append(f'<p class="soft">{escape(ASKED)}.</p>')
        parts.append(_verdict(report.engine.sparse))
    return "".join(parts)


def _verdict(verdict: SparseVerdict) -> str:
    columns = [Column("sparse kernels"), Column("layers", is_number=True), Column("")]
    return table(columns, [[cell(part) for part in row] for row in sparse_rows(verdict)])
