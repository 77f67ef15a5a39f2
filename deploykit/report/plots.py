"""The pictures of a report, drawn by matplotlib: SVG whose text stays text and whose colours are the page's own.

Every picture is 380 units wide, which is a small phone's width: it is scaled up on larger screens and never much down,
so that what it says can be read on both. What is drawn from a figure of the report carries that figure's place in
`report.json` and its exact value, as `data-key` and `data-value`, and a title that browsers show on hovering.

matplotlib's objects are used without pyplot: there is no state that outlives a picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator
from matplotlib.transforms import ScaledTranslation

from deploykit.report.markup import Shown, attributes
from deploykit.report.wording import P99_SAMPLES, latency_text, marks_of, time_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from deploykit.report.records import Staircase
    from deploykit.report.what_if_records import RooflineRecord, TableRow

__all__ = [
    "Bar",
    "Drawing",
    "Mark",
    "bars",
    "gains",
    "histogram",
    "intervals",
    "roofline",
    "settings",
    "skyline",
    "staircase",
    "stairs",
]

WIDTH = 380.0
SIZE = 11.0
SMALL = 10.0

# Stand-ins: no picture uses these colours, and the page's own are put in their place.
INK, SOFT, LINE, BEFORE, AFTER, GOOD, BAD, PAPER = (
    f"#0000{index:02x}" for index in range(1, 9)
)
VARIABLES = {
    INK: "--fg",
    SOFT: "--soft",
    LINE: "--line",
    BEFORE: "--before",
    AFTER: "--after",
    GOOD: "--good",
    BAD: "--bad",
    PAPER: "--bg",
}

# Names of settings are a type of their own in some versions of matplotlib.
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "deploykit",
    "text.parse_math": False,
    "font.size": SIZE,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": SMALL,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
}
MARK_COLOURS = {"before": BEFORE, "as_is": BAD, "after": GOOD}
STYLE_COLOUR = re.compile("|".join(VARIABLES))
REFERENCE = re.compile(r"(?:url\(|^)#([\w-]+)")
FONT = re.compile(r"font-family:[^;]*;?")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

MOST_BINS = 56
EDGE_PERCENTILE = 99.0
"""Where the axis of a histogram ends: a few slow runs would squeeze all others into a corner."""

LOG_SPAN = 8.0
"""Two models further apart than this have no linear axis in common on which both have a shape."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a drawn shape says: the figures that it shows, and a text for those who point at it."""

    title: str
    figures: tuple[Shown, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bar:
    """Something before and after, as one row of a picture.

    Attributes:
        name: what it is.
        text: both values, in words.
        before: length of the bar behind; None for none.
        after: length of the bar in front; None for none.
        figures: the figures that `text` shows.
        before_figures: the figures that the bar behind stands for.
        after_figures: the figures that the bar in front stands for.
        interval: ends of the interval of `after`.
        label: text at the end of the bar in front.
    """

    name: str
    text: str
    before: float | None
    after: float | None
    figures: tuple[Shown, ...] = ()
    before_figures: tuple[Shown, ...] = ()
    after_figures: tuple[Shown, ...] = ()
    interval: tuple[float, float] | None = None
    label: str = ""


class Drawing:
    """A picture in the making, in units of about a pixel, from the top left corner.

    Args:
        height: in units.
        name: no two pictures of a page have the same.
    """

    def __init__(self, height: float, name: str) -> None:
        self.figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasSVG(self.figure)
        self.height = height
        self.name = name
        self.marks: dict[str, Mark] = {}

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes within these margins."""
        return self.figure.add_axes(
            (
                left / WIDTH,
                bottom / self.height,
                1 - (left + right) / WIDTH,
                1 - (top + bottom) / self.height,
            )
        )

    def canvas(self) -> Axes:
        """Axes over everything, in the picture's own units, y downwards, without anything of their own."""
        axes = self.axes(0, 0, 0, 0)
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(self.height, 0)
        return axes

    def mark(self, artist: Artist, title: str, *figures: Shown) -> None:
        """Say what a shape stands for."""
        name = f"mark{len(self.marks)}"
        artist.set_gid(name)
        self.marks[name] = Mark(title, figures)

    def svg(self, label: str) -> str:
        """The picture as an element of a page; `label` says what it shows to those who cannot see it."""
        written = io.StringIO()
        self.figure.savefig(
            written,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
        root = ET.fromstring(written.getvalue())  # noqa: S314 - written a line above
        return _serialise(_clean(root, self), label)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """What matplotlib is told while pictures are drawn; all of it is undone afterwards."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with mpl.rc_context(SETTINGS), warnings.catch_warnings():
            # The page's font draws the text, whatever the one it is laid out with has no signs for.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            yield
    finally:
        log.setLevel(level)


def gains(rows: Sequence[Bar], label: str) -> str:
    """What is left of the original, a row for each of its figures; lengths are relative to it."""
    pitch, height = 41.0, 13.0
    drawing = Drawing(pitch * len(rows), "gains")
    axes = drawing.canvas()
    longest = max(
        [1.0, *(value for row in rows for value in (row.after, *(row.interval or ())) if value)]
    )
    scale = WIDTH / longest
    for index, row in enumerate(rows):
        top = pitch * index + 18
        axes.text(0, top - 5, row.name, color=INK, fontsize=SIZE)
        _value(drawing, axes, row, top - 5)
        _bar(axes, (0, top, scale, height), LINE)
        if row.after is None:
            continue
        bar = _bar(
            axes,
            (0, top, row.after * scale, height),
            GOOD if row.interval and row.interval[1] < 1 else AFTER,
        )
        drawing.mark(bar, f"{row.name}: {row.label} of the original", *row.after_figures)
        begin = end = row.after * scale
        if row.interval is not None:
            lo, hi = (value * scale for value in row.interval)
            _whisker(axes, lo, hi, top + height / 2, INK)
            begin, end = min(begin, lo), max(end, hi)
        is_inside = end > WIDTH - 50
        axes.text(
            begin - 6 if is_inside else end + 5,
            top + height / 2,
            row.label,
            color=PAPER if is_inside else INK,
            fontsize=SMALL,
            ha="right" if is_inside else "left",
            va="center_baseline",
        )
    return drawing.svg(label)


def bars(rows: Sequence[Bar], name: str, label: str, *, are_shares: bool = False) -> str:
    """Rows of two bars each, before behind after.

    Args:
        rows: the rows; lengths are in any unit that they share.
        name: of the picture.
        label: what it shows, in words.
        are_shares: whether each row is relative to its own length before, which then is the whole width.
    """
    pitch, height = 34.0, 10.0
    drawing = Drawing(pitch * len(rows) + 2, name)
    axes = drawing.canvas()
    longest = max(
        (value for row in rows for value in (row.before, row.after) if value), default=1.0
    )
    for index, row in enumerate(rows):
        whole = max(row.before or 0.0, row.after or 0.0) if are_shares else longest
        scale = WIDTH / (whole or 1.0)
        top = pitch * index + 16
        _value(drawing, axes, row, top - 5)
        room = int((WIDTH - 6.3 * len(row.text)) / 6.6)
        axes.text(0, top - 5, shorten(row.name, room), color=INK, fontsize=SIZE)
        if row.before is not None:
            bar = _bar(axes, (0, top, row.before * scale, height), BEFORE)
            drawing.mark(bar, f"{row.name}: {row.text}", *row.before_figures)
        if row.after is not None:
            inset = 0.0 if are_shares else 2.0
            bar = _bar(axes, (0, top + inset, row.after * scale, height - 2 * inset), AFTER)
            drawing.mark(bar, f"{row.name}: {row.text}", *row.after_figures)
    return drawing.svg(label)


def intervals(rows: Sequence[Bar], label: str, chosen: Sequence[bool]) -> str:
    """Ratios with their intervals, around the line of the original at 1."""
    pitch = 36.0
    drawing = Drawing(pitch * len(rows) + 34, "candidates")
    axes = drawing.axes(4, 2, 8, 32)
    ends = [end for row in rows for end in (*(row.interval or ()), row.after or 1.0)]
    lo, hi = min(1.0, *ends), max(1.0, *ends)
    pad = 0.06 * max(hi - lo, 0.1)
    axes.set_xlim(lo - pad, hi + pad)
    axes.set_ylim(pitch * len(rows), 0)
    axes.axvline(1.0, color=SOFT, linewidth=1.0, linestyle=(0, (3, 3)))
    left = lo - pad
    for index, (row, is_chosen) in enumerate(zip(rows, chosen, strict=True)):
        y = pitch * index + 24
        colour = GOOD if is_chosen else AFTER
        texts = axes.text(
            1.0,
            y - 12,
            row.text,
            color=INK,
            fontsize=SIZE,
            ha="right",
            transform=axes.get_yaxis_transform(),
            bbox=_halo(),
        )
        drawing.mark(texts, row.name, *row.figures)
        room = int((WIDTH - 6.3 * len(row.text)) / 6.6)
        axes.text(
            left,
            y - 12,
            shorten(row.name, room),
            color=INK,
            fontsize=SIZE,
            bbox=_halo(),
            fontweight="bold" if is_chosen else "normal",
        )
        if row.after is None:
            continue
        if row.interval is not None:
            _whisker(axes, *row.interval, y, colour)
        (point,) = axes.plot([row.after], [y], "o", color=colour, markersize=6)
        drawing.mark(point, f"{row.name}: {row.text}", *row.after_figures)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("time / time of the original")
    return drawing.svg(label)


def histogram(
    models: Sequence[tuple[str, Sequence[float], Shown]], label: str
) -> tuple[str, int, float]:
    """Latencies of one or two models, as shares of their runs.

    Args:
        models: name, all samples in seconds, and the median as the report has it; the original first.
        label: what it shows, in words.

    Returns:
        the picture, how many samples are slower than its axis is long, and where that ends, in seconds.
    """
    drawing = Drawing(190, "latencies")
    axes = drawing.axes(6, 34, 8, 32)
    samples = [np.asarray(values, dtype=np.float64) for _, values, _ in models]
    lo = min(float(values.min()) for values in samples)
    fewest = min(values.size for values in samples)
    edge = EDGE_PERCENTILE if fewest >= P99_SAMPLES else 100.0
    hi = max(float(np.percentile(values, edge)) for values in samples)
    hi = max(hi, 1.02 * lo)
    is_log = hi / lo > LOG_SPAN
    bins = max(8, min(MOST_BINS, round(3 * math.sqrt(fewest))))
    edges = np.geomspace(lo, hi, bins + 1) if is_log else np.linspace(lo, hi, bins + 1)
    colours = [BEFORE, AFTER] if len(models) > 1 else [AFTER]
    tallest = 0.0
    for values, colour in zip(samples, colours, strict=True):
        share = np.histogram(values, edges)[0] / values.size
        tallest = max(tallest, float(share.max()))
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
        axes.stairs(share, edges, color=colour, linewidth=1.4)
    axes.set_xlim(lo, hi)
    axes.set_ylim(0, 1.05 * tallest)
    if is_log:
        axes.set_xscale("log")
    for index, ((name, _, median), colour) in enumerate(zip(models, colours, strict=True)):
        middle = median.value or 0.0
        line = axes.axvline(middle, color=colour, linewidth=2.0)
        drawing.mark(line, f"{name}: median {latency_text(middle)}", median)
        is_left = _share_of_axis(axes, middle) < 0.5
        words = axes.text(
            middle,
            1.0,
            f"{name}: median {latency_text(middle)}",
            color=INK,
            fontsize=SIZE,
            ha="left" if is_left else "right",
            transform=axes.get_xaxis_transform() + _offset(drawing, 0, 5 + 15 * index),
        )
        drawing.mark(words, name, median)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 1e3:.3g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.set_xlabel("time of a run in ms; height: share of the runs")
    beyond = sum(int((values > hi).sum()) for values in samples)
    return drawing.svg(label), beyond, hi


def skyline(rows: Sequence[Bar], name: str, label: str, unit: str, scale: float = 1.0) -> str:
    """Many things in order, without room for their names: before behind after.

    Args:
        rows: the things.
        name: of the picture.
        label: what it shows, in words.
        unit: of the vertical axis.
        scale: what values are multiplied with to be in that unit.
    """
    drawing = Drawing(150, name)
    axes = drawing.axes(40, 20, 2, 8)
    for values, colour, width, figures in (
        ([row.before for row in rows], BEFORE, 0.96, [row.before_figures for row in rows]),
        ([row.after for row in rows], AFTER, 0.6, [row.after_figures for row in rows]),
    ):
        for index, value in enumerate(values):
            if value is not None:
                bar = _bar(axes, (index - width / 2, 0, width, value * scale), colour)
                drawing.mark(bar, f"{rows[index].name}: {rows[index].text}", *figures[index])
    tallest = max(
        (value for row in rows for value in (row.before, row.after) if value), default=1
    )
    axes.set_ylim(0, 1.04 * scale * tallest)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_xticks([])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.text(
        0,
        1,
        unit,
        color=SOFT,
        fontsize=SMALL,
        transform=axes.transAxes + _offset(drawing, -36, 8),
    )
    return drawing.svg(label)


def staircase(stair: Staircase, place: str, label: str) -> str:
    """Time against channel count, with the counts that matter.

    Args:
        stair: the sweep.
        place: where it stands in `report.json`.
        label: what it shows, in words.
    """
    drawing = Drawing(240, place.replace(".", "-"))
    axes = drawing.axes(40, 50, 8, 34)
    unit, scale = ("ms", 1e3) if max(stair.seconds) >= 1e-3 else ("µs", 1e6)
    counts = np.asarray(stair.counts)
    times = np.asarray(stair.seconds) * scale
    axes.set_ylim(0, 1.04 * scale * max(stair.hi_s))
    pad = 0.03 * (counts[-1] - counts[0])
    axes.set_xlim(counts[0] - pad, counts[-1] + pad)
    fine = min(stair.multiples, default=1)
    for index, count in enumerate(stair.counts):
        figures = [Shown(f"{place}.{key}.{index}", value) for key, value in (
            ("counts", count), ("seconds", stair.seconds[index]),
        )]  # fmt: skip
        ends = [
            Shown(f"{place}.{key}.{index}", getattr(stair, key)[index])
            for key in ("lo_s", "hi_s")
        ]
        lo, hi = (scale * (each.value or 0.0) for each in ends)
        (line,) = axes.plot([count, count], [lo, hi], color=AFTER, linewidth=1.2)
        title = f"{count} channels: {time_text(stair.seconds[index])}"
        drawing.mark(line, title, *ends)
        is_multiple = count % fine == 0
        (point,) = axes.plot(
            [count], [times[index]], "o" if is_multiple else "D", markersize=5.5 if is_multiple else 4.5,
            markerfacecolor=AFTER if is_multiple else PAPER, markeredgecolor=AFTER if is_multiple else BAD,
        )  # fmt: skip
        drawing.mark(point, title, *figures)
    _ticks(axes, stair)
    named = marks_of(stair)

    def row_order(key: str) -> tuple[bool, int]:
        # Words stand inwards of their lines, so that outer lines go up to higher words and cross none.
        count = int(getattr(stair, key))
        is_left = _share_of_axis(axes, count) < 0.5
        return is_left, count if is_left else -count

    for row, key in enumerate(sorted(named, key=row_order)):
        word, colour = named[key], MARK_COLOURS[key]
        count = getattr(stair, key)
        rise = 4 + 15 * (len(named) - 1 - row)
        # The line goes on up to its words.
        top = 1 + (rise + 10) / (drawing.height * axes.get_position().height)
        line = axes.axvline(
            count, ymax=top, color=colour, linewidth=1.3, clip_on=False, zorder=0.9
        )
        is_left = _share_of_axis(axes, count) < 0.5
        text = axes.text(
            count, 1.0, f"{word}: {count}", color=INK, fontsize=SIZE,
            ha="left" if is_left else "right",
            transform=axes.get_xaxis_transform() + _offset(drawing, 4 if is_left else -4, rise),
        )  # fmt: skip
        for artist in (line, text):
            drawing.mark(artist, f"{word}: {count}", Shown(f"{place}.{key}", count))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(stair.axis)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.text(
        0, 1, unit, color=SOFT, fontsize=SMALL,
        transform=axes.transAxes + _offset(drawing, -36, 8),
    )  # fmt: skip
    return drawing.svg(label)


def roofline(record: RooflineRecord) -> str:
    """Speed over intensity, both on logarithmic axes: layers as points under what the device gives."""
    drawing = Drawing(270, "roofline")
    axes = drawing.axes(44, 20, 10, 38)
    axes.set_xscale("log")
    axes.set_yscale("log")
    rows = [row for row in record.layers if row.macs and row.bytes and row.seconds > 0]
    points = [(row.macs / row.bytes, row.macs / row.seconds / 1e9) for row in rows]
    peak = record.peak_macs_s / 1e9
    roofs = (
        (record.memory_bytes_s / 1e9, BEFORE, "memory"),
        (record.cache_bytes_s / 1e9, AFTER, "caches"),
    )
    low = min([0.5, *(0.6 * x for x, _ in points)])
    high = max([2 * peak / roofs[0][0], *(1.6 * x for x, _ in points)])
    axes.set_xlim(low, high)
    axes.set_ylim(min([0.5 * low * roofs[0][0], *(0.6 * y for _, y in points)]), 2.5 * peak)
    keys = ("memory_bytes_s", "cache_bytes_s")
    for (rate, colour, word), key in zip(roofs, keys, strict=True):
        ridge = peak / rate
        (line,) = axes.plot(
            [low, min(ridge, high)],
            [low * rate, min(peak, high * rate)],
            color=colour,
            linewidth=1.4,
        )
        value = getattr(record, key)
        drawing.mark(line, f"{word}: {rate:.3g} GB/s", Shown(f"roofline.{key}", value))
        along = np.geomspace(low, high, 60)
        lines = [
            (x, min(peak, x * other)) for other, *_ in roofs if other != rate for x in along
        ]
        lines += [(x, peak) for x in along]
        _name_roof(axes, word, (low, min(ridge, high)), rate, points, lines=lines)
    (line,) = axes.plot(
        [min(peak / roofs[1][0], high), high], [peak, peak], color=INK, linewidth=1.4
    )
    drawing.mark(
        line,
        f"{peak:.4g} G multiply-accumulates/s",
        Shown("roofline.peak_macs_s", record.peak_macs_s),
    )
    axes.annotate(
        f"{peak:.3g} G/s", (high, peak), textcoords="offset points", xytext=(0, 7), ha="right",
        color=INK, fontsize=SMALL,
    )  # fmt: skip
    longest = max((row.seconds for row in rows), default=1.0)
    places = {row.name: at for at, row in enumerate(record.layers)}
    colours = {"compute": GOOD, "memory": BAD, "overhead": SOFT}
    for row, (x, y) in zip(rows, points, strict=True):
        size = 3.5 + 6.5 * math.sqrt(row.seconds / longest)
        (point,) = axes.plot(
            [x],
            [y],
            "o",
            markersize=size,
            markerfacecolor=colours[row.limit],
            markeredgecolor=PAPER,
        )
        place = f"roofline.layers.{places[row.name]}"
        drawing.mark(
            point,
            f"{row.name}: {time_text(row.seconds)}, {100 * row.share:.0f} % of what is attainable",
            Shown(f"{place}.macs", row.macs),
            Shown(f"{place}.bytes", row.bytes),
            Shown(f"{place}.seconds", row.seconds),
        )
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    # A scale is read off two numbers at least, and an axis may span less than a power of ten.
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(plain)
    axes.minorticks_off()
    axes.set_xlabel("multiply-accumulates a byte")
    axes.text(
        0, 1, "G multiply-accumulates/s", color=SOFT, fontsize=SMALL,
        transform=axes.transAxes + _offset(drawing, -40, 9),
    )  # fmt: skip
    return drawing.svg(
        f"Roofline: peak {peak:.4g} G multiply-accumulates a second, {len(rows)} layers"
    )


def _name_roof(
    axes: Axes,
    word: str,
    ends: tuple[float, float],
    rate: float,
    points: Sequence[tuple[float, float]],
    *,
    lines: Sequence[tuple[float, float]] = (),
) -> None:
    """Write what a sloping roof is called beside it, inside, where it covers the fewest points, and no point of other lines."""
    scale = 72 / axes.figure.dpi
    spots = scale * axes.transData.transform([*points, *lines] or np.empty((0, 2)))
    gaps = [6.0] * len(points) + [1.0] * len(lines)
    frame = axes.get_window_extent()
    tall, wide = SMALL, 0.62 * SMALL * len(word)
    found: list[tuple[float, int, float, bool, float]] = []
    for share in np.linspace(0.95, 0.05, 19):
        at = ends[0] ** (1 - share) * ends[1] ** share
        x, y = scale * axes.transData.transform((at, at * rate))
        for right, up in ((False, 5.0), (True, -5.0 - tall)):
            left, low = (x + 4 if right else x - 4 - wide), y + up
            is_out = (
                left < scale * frame.x0 + 2
                or left + wide > scale * frame.x1
                or low < scale * frame.y0 + 2
                or low + tall > scale * frame.y1
            )
            covered = sum(
                left - gap < px < left + wide + gap and low - gap < py < low + tall + gap
                for (px, py), gap in zip(spots, gaps, strict=True)
            )
            found.append((100 * is_out + covered, len(found), at, right, up))
    _, _, at, right, up = min(found)
    axes.annotate(
        word, (at, at * rate), textcoords="offset points", xytext=(4 if right else -4, up),
        ha="left" if right else "right", color=INK, fontsize=SMALL,
    )  # fmt: skip


def stairs(row: TableRow, place: str) -> str:
    """Time of one kind of layer over its outputs, a line for each number of inputs."""
    drawing = Drawing(210, place.replace(".", "-"))
    axes = drawing.axes(40, 24, 44, 34)
    longest = max(max(line) for line in row.seconds)
    unit, scale = ("ms", 1e3) if longest >= 1e-3 else ("µs", 1e6)
    for at, (inputs, line) in enumerate(zip(row.inputs, row.seconds, strict=True)):
        axes.plot(row.outputs, [scale * each for each in line], color=LINE, linewidth=1.2)
        for index, (count, seconds) in enumerate(zip(row.outputs, line, strict=True)):
            (point,) = axes.plot(
                [count],
                [scale * seconds],
                "o",
                markersize=4.5,
                markerfacecolor=AFTER,
                markeredgecolor=AFTER,
            )
            drawing.mark(
                point,
                f"{inputs} inputs, {count} outputs: {time_text(seconds)}",
                Shown(f"{place}.inputs.{at}", inputs),
                Shown(f"{place}.outputs.{index}", count),
                Shown(f"{place}.seconds.{at}.{index}", seconds),
            )
        axes.annotate(
            f"{inputs} in", (row.outputs[-1], scale * line[-1]), textcoords="offset points", xytext=(6, -3),
            color=SOFT, fontsize=SMALL,
        )  # fmt: skip
    axes.set_ylim(0, 1.05 * scale * longest)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("output channels")
    axes.text(
        0, 1, unit, color=SOFT, fontsize=SMALL,
        transform=axes.transAxes + _offset(drawing, -36, 8),
    )  # fmt: skip
    return drawing.svg(
        f"{row.layer}: time over output channels, for {len(row.inputs)} counts of inputs"
    )


def shorten(name: str, room: int) -> str:
    """A name in at most `room` characters: what is in its middle goes, because its end says most."""
    plain = UNPRINTABLE.sub("·", name)
    if len(plain) <= room:
        return plain
    head = max(1, room // 3)
    return f"{plain[:head]}…{plain[len(plain) - max(1, room - head - 1) :]}"


def _value(drawing: Drawing, axes: Axes, row: Bar, y: float) -> None:
    text = axes.text(WIDTH, y, row.text, color=INK, fontsize=SIZE, ha="right")
    drawing.mark(text, row.name, *row.figures)


def _bar(axes: Axes, box: tuple[float, float, float, float], colour: str) -> Rectangle:
    """A rectangle (x, y, width, height) that the axes' limits take no note of, which saves most of its time."""
    bar = Rectangle(box[:2], box[2], box[3], facecolor=colour, linewidth=0)
    axes.add_artist(bar)
    return bar


def _whisker(axes: Axes, lo: float, hi: float, y: float, colour: str) -> None:
    axes.errorbar(
        [(lo + hi) / 2], [y], xerr=[[(hi - lo) / 2], [(hi - lo) / 2]], fmt="none",
        ecolor=colour, elinewidth=1.5, capsize=3.5, capthick=1.5,
    )  # fmt: skip


def _ticks(axes: Axes, stair: Staircase) -> None:
    """Labels and lines at multiples of the target's largest multiple, as far as there is room for them."""
    span = stair.counts[-1] - stair.counts[0]
    base = max(stair.multiples, default=8)
    step = base * 2 ** max(0, math.ceil(math.log2(max(1.0, span / base / 7))))
    axes.xaxis.set_major_locator(MultipleLocator(step))
    if span / base <= 28:
        axes.xaxis.set_minor_locator(MultipleLocator(base))
    axes.tick_params(axis="x", which="minor", length=0)
    axes.grid(axis="x", which="both")
    axes.grid(axis="y")


def _share_of_axis(axes: Axes, x: float) -> float:
    """How far along the axis a value lies, 0 to 1."""
    inside = axes.transAxes.inverted().transform(axes.transData.transform((x, 0.0)))
    return float(inside[0])


def _offset(drawing: Drawing, right: float, up: float) -> ScaledTranslation:
    """A shift by so many units."""
    return ScaledTranslation(right / 72, up / 72, drawing.figure.dpi_scale_trans)


def _clean(root: ET.Element, drawing: Drawing) -> ET.Element:
    """Take away what only a file of its own needs, and put the page's colours and the marks in."""
    for parent in list(root.iter()):
        for child in list(parent):
            if _tag(child) in {"metadata", "style"}:
                parent.remove(child)
    used = {
        found
        for each in root.iter()
        for value in each.attrib.values()
        for found in REFERENCE.findall(value)
    }
    for each in root.iter():
        mark = drawing.marks.get(each.get("id", ""))
        own = each.attrib.pop("id", None)
        if own in used:
            each.set("id", f"{drawing.name}-{own}")
        for key, value in list(each.attrib.items()):
            text = REFERENCE.sub(
                lambda found: found[0].replace(found[1], f"{drawing.name}-{found[1]}"), value
            )
            if key == "style":
                text = STYLE_COLOUR.sub(lambda found: f"var({VARIABLES[found[0]]})", text)
                text = FONT.sub("", text)
            each.attrib[key] = text
        if mark is not None:
            each.attrib.update(attributes(mark.figures))
            title = ET.Element("title")
            title.text = UNPRINTABLE.sub("·", mark.title)
            each.insert(0, title)
    return root


def _serialise(root: ET.Element, label: str) -> str:
    """The element as HTML has it: without namespaces, and as large as the page lets it be."""
    view = root.get("viewBox", "")
    inside = "".join(_written(child) for child in root)
    return (
        f'<svg class="plot" viewBox="{escape(view)}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg>"
    )


def _written(element: ET.Element) -> str:
    tag = _tag(element)
    named = "".join(
        f' {_local(key)}="{escape(" ".join(value.split()))}"'
        for key, value in element.attrib.items()
    )
    text = (element.text or "").strip()
    inside = escape(text) + "".join(_written(child) for child in element)
    return f"<{tag}{named}>{inside}</{tag}>"


def _tag(element: ET.Element) -> str:
    return _local(element.tag)


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _halo() -> dict[str, object]:
    return {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}
