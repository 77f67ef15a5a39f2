"""The sections on single layers: how long each takes and what it kept, and the staircases of the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from deploykit.report.markup import (
    Cell,
    Column,
    Shown,
    arrow,
    both,
    breakable,
    cell,
    folded,
    noted,
    picture,
    span,
    table,
)
from deploykit.report.records import Count, Layer, LayerTimeRow, Report, Staircase
from deploykit.report.wording import marks_of, time_text

if TYPE_CHECKING:
    from deploykit.report.plots import Bar

__all__ = ["layers", "staircases"]

SLOWEST_SHOWN = 12
OPEN_ROWS = 16
"""A longer table is folded up: what it says is summed up by the pictures above it."""

KEY = '<span class="key">before</span><span class="key after">after</span>'


def staircases(report: Report) -> str:
    """Time against channel count of the layers that were swept; nothing if none were."""
    if not report.staircases:
        return ""
    from deploykit.report import plots

    parts = []
    for index, stair in enumerate(report.staircases):
        place = f"staircases.{index}"
        label = f"Time of {stair.layer} against {stair.axis}: " + ", ".join(
            f"{count}: {time_text(seconds)}"
            for count, seconds in zip(stair.counts, stair.seconds, strict=True)
        )
        rows = [
            [
                cell(str(count), Shown(f"{place}.counts.{at}", count)),
                *(
                    cell(
                        time_text(getattr(stair, key)[at]),
                        Shown(f"{place}.{key}.{at}", getattr(stair, key)[at]),
                    )
                    for key in ("seconds", "lo_s", "hi_s")
                ),
                cell(_marked(stair, count)),
            ]
            for at, count in enumerate(stair.counts)
        ]
        columns = [
            *(
                Column(each, is_number=True)
                for each in ("channels", "time", "95 %: from", "to")
            ),
            Column(""),
        ]
        parts.append(
            f"<figure><h3>{breakable(stair.layer or stair.weight)}<small>{escape(stair.description)}</small></h3>"
            + plots.staircase(stair, place, label)
            + f"<figcaption>{_steps(stair, place)}</figcaption>"
            + folded(
                f"all {len(rows)} counts, each timed {stair.rounds} times",
                table(columns, rows, kind="counts"),
                Shown(f"{place}.rounds", stair.rounds),
            )
            + "</figure>"
        )
    fine = min(report.staircases[0].multiples, default=1)
    return (
        "<h2>The staircase of this device</h2>"
        "<p>Time does not follow the number of channels: it climbs in steps, and some counts take longer than larger "
        "ones. Each layer was timed by itself, at all counts in turns.</p>"
        f'<p><span class="key dot">multiples of {fine}</span><span class="key other">other counts</span></p>'
        f'<div class="grid stairs">{"".join(parts)}</div>'
    )


def _steps(stair: Staircase, place: str) -> str:
    """What the counts that matter cost, in a sentence."""
    found = dict(zip(stair.counts, range(len(stair.counts)), strict=True))

    def told(key: str, count: int) -> str:
        at = found[count]
        return span(
            f"{count} {stair.axis} take {time_text(stair.seconds[at])}",
            Shown(f"{place}.{key}", count),
            Shown(f"{place}.seconds.{at}", stair.seconds[at]),
        )

    if stair.before == stair.after:
        return f"The layer stayed as it was: {told('before', stair.before)}."
    parts = [f"The original's {told('before', stair.before)}"]
    if stair.as_is != stair.after:
        parts.append(f"removal alone: {told('as_is', stair.as_is)}")
    parts.append(f"chosen: {told('after', stair.after)}")
    return "; ".join(parts) + "."


def _marked(stair: Staircase, count: int) -> str:
    return ", ".join(
        word for key, word in marks_of(stair).items() if getattr(stair, key) == count
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """A layer of the user's model: its weight, its time, or both, each with its place in the report."""

    name: str
    op_type: str
    layer: Layer | None = None
    layer_index: int = 0
    time: LayerTimeRow | None = None
    time_index: int = 0

    @property
    def slowest_s(self) -> float:
        """The longer one of its times; 0 if it was not timed."""
        times = () if self.time is None else (self.time.before_s, self.time.after_s)
        return max((each for each in times if each is not None), default=0.0)


def _entries(report: Report) -> list[Entry]:
    """All layers, those with a time in their order, those without among them or after."""
    times = {row.name: (index, row) for index, row in enumerate(report.layer_times) if row.name}
    found = []
    for index, layer in enumerate(report.layers):
        at, row = times.pop(layer.node, (0, None))
        found.append(Entry(layer.node or layer.weight, layer.op_type, layer, index, row, at))
    known = {id(entry.time) for entry in found}
    found += [
        Entry(row.name or row.op_type, row.op_type, None, 0, row, index)
        for index, row in enumerate(report.layer_times)
        if id(row) not in known
    ]
    if not report.layer_times:
        return found
    order: dict[int, float] = {
        id(entry): entry.time_index for entry in found if entry.time is not None
    }
    # A weight without a time keeps its place behind the one before it.
    last = -1.0
    for entry in found:
        if entry.layer is not None:
            last = order.setdefault(id(entry), last + 0.5)
    return sorted(found, key=lambda entry: order[id(entry)])


def layers(report: Report) -> str:
    """Every layer before and after: the ones that count most as bars, all as a line of bars and as a table."""
    entries = _entries(report)
    if not entries:
        return ""
    from deploykit.report import plots

    timed = [entry for entry in entries if entry.slowest_s > 0]
    weighted = [entry for entry in entries if entry.layer is not None]
    pictures = []
    if timed:
        shown = sorted(timed, key=lambda entry: -entry.slowest_s)[:SLOWEST_SHOWN]
        rows = [_time_bar(entry) for entry in shown]
        told = _of("slowest", len(shown), len(timed), "layers")
        pictures.append(picture(f"Time, {told}", plots.bars(rows, "times", _listed(rows)), KEY))
        channels = [entry for entry in shown if entry.layer is not None]
    else:
        channels = sorted(weighted, key=lambda entry: -_elements(entry))[:SLOWEST_SHOWN]
        told = _of("largest", len(channels), len(weighted), "layers")
    if channels:
        rows = [_channel_bar(entry) for entry in channels]
        pictures.append(
            picture(
                "Output channels kept" + ("" if timed else f", {told}"),
                plots.bars(rows, "channels", _listed(rows), are_shares=True),
                '<span class="key">removed</span><span class="key after">kept</span>',
            )
        )
    lines = []
    if len(timed) > SLOWEST_SHOWN:
        rows = [_time_bar(entry) for entry in timed]
        unit, scale = (
            ("ms", 1e3) if max(entry.slowest_s for entry in timed) >= 1e-3 else ("µs", 1e6)
        )
        lines.append(
            picture(
                f"Time, all {len(timed)} layers in order",
                plots.skyline(rows, "all-times", "Time of each layer", unit, scale),
                KEY,
            )
        )
    if len(weighted) > SLOWEST_SHOWN:
        rows = [_channel_bar(entry) for entry in weighted]
        lines.append(
            picture(
                f"Output channels, all {len(weighted)} layers with weights in order",
                plots.skyline(
                    rows, "all-channels", "Output channels of each layer", "channels"
                ),
                KEY,
            )
        )
    grids = "".join(
        f'<div class="grid">{"".join(each)}</div>' for each in (pictures, lines) if each
    )
    listed = _layer_table(entries, has_times=bool(report.layer_times))
    whole = (
        listed if len(entries) <= OPEN_ROWS else folded(f"all {len(entries)} layers", listed)
    )
    return f"<h2>Layers</h2>{grids}{whole}"


def _of(kind: str, shown: int, total: int, what: str) -> str:
    return f"the {shown} {kind} of {total} {what}" if shown < total else f"all {total} {what}"


def _listed(rows: Sequence[Bar]) -> str:
    return "; ".join(f"{row.name}: {row.text}" for row in rows)


def _elements(entry: Entry) -> int:
    size = 1
    for each in () if entry.layer is None else entry.layer.shape_before:
        size *= each
    return size


def _time_bar(entry: Entry) -> Bar:
    from deploykit.report import plots

    before, after = _time_figures(entry)
    words = ["-" if each.value is None else time_text(each.value) for each in (before, after)]
    text = words[0] if words[0] == words[1] else " → ".join(words)
    return plots.Bar(
        entry.name, text, before.value, after.value, (before, after), (before,), (after,)
    )


def _channel_bar(entry: Entry) -> Bar:
    from deploykit.report import plots

    count = Count(None, None) if entry.layer is None else entry.layer.outputs
    before, after = both(f"layers.{entry.layer_index}.outputs", count)
    # A weight that became several has no count of its own any more, and all of its channels.
    left, told = count.after, arrow(count.before, count.after)
    form = None if entry.layer is None else entry.layer.form
    if form is not None:
        left, told = count.before, f"{count.before}, {form.partition(',')[0]}"
    return plots.Bar(
        entry.name,
        told,
        count.before,
        left,
        (before, after),
        (before,),
        (after,),
    )


def _time_figures(entry: Entry) -> tuple[Shown, Shown]:
    place = f"layer_times.{entry.time_index}"
    row = entry.time
    return (
        Shown(f"{place}.before_s", None if row is None else row.before_s),
        Shown(f"{place}.after_s", None if row is None else row.after_s),
    )


def _layer_table(entries: Sequence[Entry], *, has_times: bool) -> str:
    columns = [
        Column("layer"),
        Column("op"),
        *([Column("time before", True), Column("time after", True)] if has_times else []),
        Column("kept"),
        Column("outputs", is_number=True),
        Column("inputs", is_number=True),
        Column("zeros", is_number=True),
        Column("dead outputs", is_number=True),
    ]
    rows = []
    for entry in entries:
        row = [_name(entry), cell(entry.op_type)]
        if has_times:
            row += [
                Cell("") if entry.time is None or shown.value is None
                else cell(time_text(shown.value), shown)
                for shown in _time_figures(entry)
            ]  # fmt: skip
        rows.append([*row, *_weight_cells(entry)])
    return table(columns, rows, kind="sortable layers")


def _name(entry: Entry) -> Cell:
    weight = (
        "" if entry.layer is None or entry.layer.weight == entry.name else entry.layer.weight
    )
    return noted(entry.name, weight)


def _weight_cells(entry: Entry) -> list[Cell]:
    layer, place = entry.layer, f"layers.{entry.layer_index}"
    if layer is None:
        return [Cell("")] * 5
    share = min(1.0, layer.outputs.ratio or 0.0)
    outputs, inputs = (
        both(f"{place}.outputs", layer.outputs),
        both(f"{place}.inputs", layer.inputs),
    )
    kept = [
        cell(arrow(layer.outputs.before, layer.outputs.after), *outputs),
        cell(arrow(layer.inputs.before, layer.inputs.after), *inputs),
    ]
    if layer.form is not None:
        share = 1.0
        kept = [
            cell(
                str(layer.outputs.before),
                Shown(f"{place}.outputs.before", layer.outputs.before),
            ),
            cell(layer.form),
        ]
    return [
        Cell(f'<span class="bar"><i style="width: {100 * share:.1f}%"></i></span>'),
        *kept,
        cell(f"{100 * layer.zeros:.0f} %", Shown(f"{place}.zeros", layer.zeros)),
        cell(str(layer.zero_outputs), Shown(f"{place}.zero_outputs", layer.zero_outputs)),
    ]
