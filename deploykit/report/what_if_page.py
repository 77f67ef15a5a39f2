"""What-ifs, rooflines and sweeps as one page that needs nothing else: pictures first, then the tables they are drawn from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib import resources

from deploykit.report.markup import Cell, Column, Shown, cell, noted, picture, table
from deploykit.report.profile_records import ProfileReport
from deploykit.report.profile_wording import seconds_text
from deploykit.report.what_if_records import (
    AllocationRecord,
    RooflineRecord,
    SweepRecord,
    WhatIfRecord,
)

__all__ = ["render_page"]

MOST_BARS = 30
MOST_STAIRS = 3
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
CONTROL_CODE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def render_page(report: ProfileReport) -> str:
    """The page, as HTML text."""
    # Drawing costs half a second to import: only what draws pays for it.
    from deploykit.report import plots

    model = report.models[0]
    with plots.settings():
        body = [
            f"<h1>deploykit: {escape(model.path)}</h1>",
            *(_networks(report, report.what_if) if report.what_if is not None else ()),
            *(_roofline(report.roofline) if report.roofline is not None else ()),
            *(part for at, each in enumerate(report.sweeps) for part in _sweep(each, at)),
            *(f'<p class="warning">{escape(text)}</p>' for text in report.warnings),
            f'<footer><p class="soft">{escape(_about(report))}</p></footer>',
        ]
    style = resources.files("deploykit.report").joinpath("page.css").read_text("utf-8")
    written = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>deploykit: {escape(model.path)}</title><style>{style}</style></head><body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    # Names may hold anything; a page may hold no control codes, and nothing that turns the direction of writing.
    return CONTROL_CODE.sub("·", written)


def _about(report: ProfileReport) -> str:
    threads = (
        "the runtime's own threads" if report.threads is None else f"{report.threads} thread(s)"
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"{report.device.get('cpu')}; {report.runtime}, {threads}; {versions}. {report.command}"
    )


# -- what-ifs ---------------------------------------------------------------------------------------


def _networks(report: ProfileReport, record: WhatIfRecord) -> list[str]:
    from deploykit.report import plots

    rows = [
        plots.Bar(
            row.name,
            f"{row.ratio:.3f}",
            1.0,
            row.ratio,
            (Shown(f"what_if.predictions.{at}.ratio", row.ratio),),
            after_figures=(Shown(f"what_if.predictions.{at}.ratio", row.ratio),),
            interval=row.ci95,
            label=f"{row.ratio:.3f}",
        )
        for at, row in enumerate(record.predictions)
    ]
    parts = [
        f'<p class="verdict">{escape(record.allocation.said)}</p>'
        if record.allocation is not None
        else "",
        picture(
            "Time as it would be, of the original's",
            plots.gains(rows, "Time of each network over that of the original"),
            escape(
                "networks were made up and timed in turns with the original; lines are 95 % intervals"
            ),
        ),
        *(
            f"<p>{escape(f'{row.name}: {said}')}</p>"
            for row in record.predictions
            for said in row.assumed
        ),
        *(
            f'<p class="warning">{escape(f"{each.name}: {each.reason}")}</p>'
            for each in record.refused
        ),
    ]
    parts += [_layers(report, at) for at in range(1, len(report.models))]
    if record.allocation is not None:
        parts += _allocation(record.allocation)
    return parts


def _layers(report: ProfileReport, at: int) -> str:
    """Each layer before and after."""
    from deploykit.report import plots

    before = {
        row.name: (index, row.seconds) for index, row in enumerate(report.models[0].layers)
    }
    after = {
        row.name: (index, row.seconds) for index, row in enumerate(report.models[at].layers)
    }
    rows = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        figures = [
            Shown(f"models.{model}.layers.{found[0]}.seconds", found[1])
            for model, found in ((0, old), (at, new))
            if found is not None
        ]
        text = " → ".join(
            seconds_text(None if each is None else each[1]) for each in (old, new)
        )
        rows.append(
            plots.Bar(
                name,
                text,
                None if old is None else old[1],
                None if new is None else new[1],
                tuple(figures),
                tuple(figures[:1]) if old is not None else (),
                tuple(figures[-1:]) if new is not None else (),
            )
        )
    rows.sort(key=lambda row: -max(row.before or 0.0, row.after or 0.0))
    if not rows:
        return ""
    svg = plots.bars(rows[:MOST_BARS], f"layers{at}", "Time of each layer, before and after")
    left = len(rows) - MOST_BARS
    more = f"; {left} more take less" if left > 0 else ""
    return picture(
        f"Layers of the original and of {report.models[at].name}",
        svg,
        escape(f"slowest first{more}"),
    )


def _allocation(record: AllocationRecord) -> list[str]:
    from deploykit.report import plots

    bars = [
        plots.Bar(
            ", ".join(row.weights),
            f"{row.size} → {row.keep} (uniform {row.uniform})",
            float(row.size),
            float(row.keep),
            (
                Shown(f"what_if.allocation.groups.{at}.size", row.size),
                Shown(f"what_if.allocation.groups.{at}.keep", row.keep),
                Shown(f"what_if.allocation.groups.{at}.uniform", row.uniform),
            ),
            (Shown(f"what_if.allocation.groups.{at}.size", row.size),),
            (Shown(f"what_if.allocation.groups.{at}.keep", row.keep),),
        )
        for at, row in enumerate(record.groups)
    ]
    parts = [
        picture(
            "Channels that are kept",
            plots.bars(
                bars, "allocation", "Channels of each group, before and after", are_shares=True
            ),
            escape("weights that are named together keep the same channels"),
        )
    ]
    slowest = sorted(range(len(record.table)), key=lambda at: -record.table[at].seconds[-1][-1])
    for at in slowest[:MOST_STAIRS]:
        row = record.table[at]
        parts.append(
            picture(
                f"{row.layer}: {row.description}",
                plots.stairs(row, f"what_if.allocation.table.{at}"),
                escape("alone, at counts of outputs; a line for each count of inputs"),
            )
        )
    return parts


# -- roofline ----------------------------------------------------------------------------------------


def _roofline(record: RooflineRecord) -> list[str]:
    from deploykit.report import plots

    columns = [
        Column("layer"),
        Column("op"),
        Column("MACs", is_number=True),
        Column("bytes", is_number=True),
        Column("time", is_number=True),
        Column("attainable", is_number=True),
        Column("reached", is_number=True),
        Column("limit"),
    ]
    rows: list[Sequence[Cell]] = []
    for at, row in enumerate(record.layers):
        place = f"roofline.layers.{at}"
        rows.append(
            [
                noted(row.name, row.said),
                cell(row.op_type),
                cell(f"{row.macs:,}", Shown(f"{place}.macs", row.macs)),
                cell(f"{row.bytes:,}", Shown(f"{place}.bytes", row.bytes)),
                cell(seconds_text(row.seconds), Shown(f"{place}.seconds", row.seconds)),
                cell(
                    seconds_text(row.attainable_s),
                    Shown(f"{place}.attainable_s", row.attainable_s),
                ),
                cell(f"{100 * row.share:.0f} %", Shown(f"{place}.share", row.share)),
                cell(row.limit),
            ]
        )
    peaks = [
        [
            cell(row.what),
            cell(f"{row.per_s / 1e9:.4g}", Shown(f"roofline.peaks.{at}.per_s", row.per_s)),
            cell("yes" if row.is_best else ""),
        ]
        for at, row in enumerate(record.peaks)
    ]
    return [
        f'<p class="verdict">{escape(record.said)}</p>',
        picture(
            "Roofline",
            plots.roofline(record),
            escape(
                "a point a layer, larger where it takes more time; the lines are what the device gives from memory, from caches, "
                "and in arithmetic. Green points are limited by arithmetic, red ones by memory, grey ones by what any node costs"
            ),
        ),
        "<h2>Layers</h2>",
        table(columns, rows),
        "<h2>What the device gives</h2>",
        table(
            [Column("tried with"), Column("G a second", is_number=True), Column("counts")],
            peaks,
        ),
    ]


# -- sweeps ------------------------------------------------------------------------------------------


def _sweep(record: SweepRecord, at: int) -> list[str]:
    from deploykit.report import plots

    best = max(row.items_s for row in record.rows)
    bars = [
        plots.Bar(
            f"{record.what} {row.setting}",
            f"{row.items_s:,.4g} items/s, p50 {seconds_text(row.p50_s)}, {100 * row.efficiency:.0f} % efficiency",
            best,
            row.items_s,
            (
                Shown(f"sweeps.{at}.rows.{index}.items_s", row.items_s),
                Shown(f"sweeps.{at}.rows.{index}.p50_s", row.p50_s),
                Shown(f"sweeps.{at}.rows.{index}.efficiency", row.efficiency),
            ),
            after_figures=(Shown(f"sweeps.{at}.rows.{index}.items_s", row.items_s),),
        )
        for index, row in enumerate(record.rows)
    ]
    return [
        f'<p class="verdict">{escape(record.said)}</p>',
        picture(
            f"Items in a second, by {record.what}",
            plots.bars(bars, f"sweep{at}", f"Items in a second for each {record.what}"),
        ),
    ]
