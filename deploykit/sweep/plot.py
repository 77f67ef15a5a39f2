"""The picture of a sweep: what a model costs against how good it is, a point a cell."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.atomic import write_whole
from deploykit.sweep.records import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_plot"]

# Told apart by people who see fewer colours, too.
# Source: M. Okabe and K. Ito, Color Universal Design, 2008.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX*<>"
MOST_DEVICES = 6


def write_plot(rows: Sequence[Row], path: Path, title: str) -> bool:
    """Draw latency against error and size, a row of pictures a device; colours are recipes, and forms are models.

    Returns:
        whether there was anything to draw: a row that was measured.
    """
    measured = [row for row in rows if row.p50_s is not None]
    if not measured:
        return False
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    devices = list(dict.fromkeys(row.device for row in measured))[:MOST_DEVICES]
    goods = _goods(measured)
    size = (4.6 * len(goods) + 1.8, 3.6 * len(devices))
    # The same rows make the same bytes.
    with mpl.rc_context({"svg.hashsalt": "deploykit", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(len(devices), len(goods), squeeze=False)
        for line, device in zip(grid, devices, strict=True):
            for axes, (label, good) in zip(line, goods, strict=True):
                _draw(axes, [row for row in measured if row.device == device], measured, good)
                axes.set(xlabel=f"latency p50 on {device}, ms", ylabel=label)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize="small")
        figure.suptitle(title)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    write_whole(path, written.getvalue())
    return True


def _goods(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], float | None]]]:
    """What is drawn upwards: the user's metric or else the error of the outputs, and the size."""
    found: list[tuple[str, Callable[[Row], float | None]]] = []
    if any(row.accuracy is not None for row in rows):
        worse = any(row.higher_is_better is False for row in rows)
        name = "metric (lower is better)" if worse else "accuracy (higher is better)"
        found.append((name, lambda row: row.accuracy))
    else:
        found.append(("largest error of an output", lambda row: row.max_error))
    found.append(("size, MB", lambda row: None if row.bytes is None else row.bytes / 1e6))
    return found


def _draw(
    axes: Axes,
    rows: Sequence[Row],
    all_rows: Sequence[Row],
    good: Callable[[Row], float | None],
) -> None:
    recipes = list(dict.fromkeys(row.recipe for row in all_rows))
    models = list(dict.fromkeys(row.model for row in all_rows))
    for row in rows:
        up = good(row)
        if row.p50_s is None or up is None:
            continue
        axes.plot(
            [1e3 * row.p50_s],
            [up],
            MARKERS[models.index(row.model) % len(MARKERS)],
            color=COLOURS[recipes.index(row.recipe) % len(COLOURS)],
            # Hollow: it missed a gate.
            fillstyle="full" if row.state == "passed" else "none",
            label=f"{row.recipe}, {row.model}"
            if row.state == "passed"
            else f"{row.recipe}, {row.model} (failed)",
        )
    axes.set_xlim(left=0)
    axes.grid(visible=True, alpha=0.3)
