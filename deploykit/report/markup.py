"""Pieces of the page: cells and tables in which every figure carries its exact value and its place in `report.json`.

`data-key` names the place ("profile.ratio.ci95.0"), `data-value` the value as JSON writes it; where a text shows several
figures, both hold several, in order. Scripts may read them, and a test holds the page to the document with them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape

from deploykit.report.records import Count

__all__ = [
    "Cell",
    "Column",
    "Shown",
    "arrow",
    "attributes",
    "below",
    "both",
    "breakable",
    "cell",
    "folded",
    "noted",
    "picture",
    "span",
    "table",
]

SEPARATOR = re.compile(r"(?<=[/._:])(?=[^/._:])")


@dataclasses.dataclass(frozen=True)
class Shown:
    """A figure of the report that a text or a picture shows: its place in `report.json`, and its value."""

    key: str
    value: float | None


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: HTML text, and the figures that it shows."""

    html: str
    figures: tuple[Shown, ...] = ()
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    is_number: bool = False


def attributes(figures: Sequence[Shown]) -> dict[str, str]:
    """The attributes that tell where figures come from; nothing if there are none."""
    if not figures:
        return {}
    return {
        "data-key": " ".join(each.key for each in figures),
        "data-value": " ".join(_json(each.value) for each in figures),
    }


def span(text: str, *figures: Shown) -> str:
    """A text that shows figures."""
    return f"<span{_written(figures)}>{escape(text)}</span>"


def cell(text: str, *figures: Shown, kind: str = "") -> Cell:
    """A cell with a text that is escaped."""
    return Cell(escape(text), figures, kind)


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    kind: str = "",
    classes: Sequence[str] = (),
) -> str:
    """A table in a box of its own, which scrolls where the screen is narrower.

    Args:
        columns: its columns.
        rows: its cells, row by row.
        kind: class of the table.
        classes: class of each row; nothing for none.
    """
    head = "".join(
        f'<th{_class("number" if column.is_number else "")} scope="col">{escape(column.title)}</th>'
        for column in columns
    )
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(
            f"<td{_class(' '.join(filter(None, ('number' if column.is_number else '', part.kind))))}"
            f"{_written(part.figures)}>{part.html}</td>"
            for column, part in zip(columns, row, strict=True)
        )
        lines.append(f"<tr{_class(classes[index] if classes else '')}>{cells}</tr>\n")
    return (
        f'<div class="scroll" tabindex="0"><table{_class(kind)}><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{''.join(lines)}</tbody></table></div>"
    )


def picture(title: str, svg: str, caption: str = "") -> str:
    """A picture with a title in plain text and a caption in HTML."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return (
        f"<figure>{head}{svg}"
        + (f"<figcaption>{caption}</figcaption>" if caption else "")
        + "</figure>"
    )


def folded(summary: str, inside: str, *figures: Shown) -> str:
    """HTML that is unfolded by its summary, which may show figures."""
    return f"<details><summary>{span(summary, *figures)}</summary>{inside}</details>"


def both(place: str, count: Count) -> tuple[Shown, Shown]:
    """A count before and after, as figures."""
    return Shown(f"{place}.before", count.before), Shown(f"{place}.after", count.after)


def arrow(before: int | None, after: int | None) -> str:
    """A number before and after, in words."""
    if after is None:
        return f"{before} → gone"
    return str(before) if before == after else f"{before} → {after}"


def noted(name: str, note: str) -> Cell:
    """A cell with a name and a note under it."""
    return Cell(below(name, note), kind="name")


def below(text: str, note: str) -> str:
    """A text with a note under it."""
    return breakable(text) + (
        f'<br><span class="soft">{breakable(note)}</span>' if note else ""
    )


def breakable(name: str) -> str:
    """A name, escaped, that may be broken after its separators."""
    return "<wbr>".join(escape(part) for part in SEPARATOR.split(name))


def _class(name: str) -> str:
    return f' class="{escape(name)}"' if name else ""


def _written(figures: Sequence[Shown]) -> str:
    return "".join(f' {name}="{escape(text)}"' for name, text in attributes(figures).items())


def _json(value: float | None) -> str:
    # What JSON has no number for is null there as well.
    is_number = value is not None and math.isfinite(value)
    return json.dumps(value) if is_number else "null"
