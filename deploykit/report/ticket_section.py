"""The section on a ticket: what it keeps of each weight, and what its masks look like before and after the structure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from deploykit.report.markup import Column, Shown, cell, folded, span, table
from deploykit.report.mask_image import image
from deploykit.report.records import MaskPicture, Report, TicketLayer
from deploykit.report.wording import count_text, metrics_text, original_text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ticket_layers", "ticket_metrics"]


def ticket_metrics(report: Report) -> str:
    """What the original is, and how good the ticket in it; nothing without a ticket."""
    ticket = report.source.ticket
    if ticket is None:
        return ""
    figures = [
        Shown(f"source.ticket.{key}", value)
        for key, value in (
            ("test_metric", ticket.test_metric),
            ("dense_test_metric", ticket.dense_test_metric),
        )
        if value is not None
    ]
    told = metrics_text(ticket)
    return f"<p>{escape(original_text(report))} {span(told, *figures) if told else ''}</p>"


def ticket_layers(report: Report) -> str:
    """Pictures of the largest masks, and a table of all; nothing without a ticket."""
    rows = report.ticket_layers
    if not rows:
        return ""
    total = sum(row.outputs * row.columns for row in rows)
    kept = sum(row.kept for row in rows)
    text = (
        f"The ticket keeps {count_text(kept)} of the {count_text(total)} weights it has masks for "
        f"({100 * kept / total:.1f} %). Rows are output channels, columns their inputs; what is kept is coloured."
    )
    pictures = "".join(_figures(row) for row in rows if row.picture is not None)
    return (
        f'<h2>The ticket</h2><p>{text}</p><div class="masks">{pictures}</div>'
        f"{folded(f'all {len(rows)} weights' if len(rows) > 1 else 'the weight', _table(rows))}"
    )


def _figures(row: TicketLayer) -> str:
    parts = "".join(
        f"<figure><h3><small>{word}</small></h3>{image(picture, f'{row.weight}, {word}')}</figure>"
        for word, picture in _pictures(row)
    )
    return (
        f'<div class="mask"><h3>{escape(row.weight)}</h3><div class="row">{parts}</div></div>'
    )


def _pictures(row: TicketLayer) -> Iterator[tuple[str, MaskPicture]]:
    size = row.outputs * row.columns
    if row.picture_found is not None and row.found is not None:
        yield f"as it was found: {100 * row.found / size:.0f} % kept", row.picture_found
    if row.picture is not None:
        word = "with its structure" if row.picture_found is not None else "kept"
        yield f"{word}: {100 * row.kept / size:.0f} %", row.picture
    if row.picture_ordered is not None:
        order = "of its block" if row.blocks == 1 else f"of its {row.blocks} blocks"
        yield f"the same, in the order {order}", row.picture_ordered


def _table(rows: tuple[TicketLayer, ...]) -> str:
    cells = [
        [
            cell(row.weight, kind="name"),
            cell(str(row.outputs), Shown(f"{place}.outputs", row.outputs)),
            cell(str(row.columns), Shown(f"{place}.columns", row.columns)),
            cell("")
            if row.found is None
            else cell(count_text(row.found), Shown(f"{place}.found", row.found)),
            cell(count_text(row.kept), Shown(f"{place}.kept", row.kept)),
            cell(str(row.blocks), Shown(f"{place}.blocks", row.blocks)),
        ]
        for index, row in enumerate(rows)
        for place in [f"ticket_layers.{index}"]
    ]
    columns = [
        Column("weight"),
        *(
            Column(name, is_number=True)
            for name in ("outputs", "weights of each", "found", "kept", "blocks")
        ),
    ]
    return table(columns, cells)
