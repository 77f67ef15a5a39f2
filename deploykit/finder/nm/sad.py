"""SAD: how many elements of the masks changed from one step to the next, and that as a part of the weights under masks.

A mask that keeps changing trains no network for long. SR-STE lowers it.

Source: Zhou et al. (2021), section 3.2, "sparse architecture divergence", of consecutive steps.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit.finder.training import Epoch

if TYPE_CHECKING:
    from deploykit.finder.metrics import Row

__all__ = ["as_csv", "as_picture", "per_weight", "summarize"]


def per_weight(epoch: Epoch, weights: int) -> float:
    """The mean over the steps of an epoch of the part of the weights whose mask changed.

    Args:
        epoch: one with flips.
        weights: under masks.
    """
    return math.fsum(epoch.flips) / (len(epoch.flips) * weights)


def summarize(epochs: Sequence[Epoch], weights: int) -> dict[str, Any] | None:
    """SAD of a training, in JSON's types; None where masks stayed.

    Args:
        epochs: one by one.
        weights: under masks.
    """
    moved = [each for each in epochs if each.flips]
    if not moved:
        return None
    steps = sum(len(each.flips) for each in moved)
    total = sum(sum(each.flips) for each in moved)
    return {
        "weights": weights,
        "steps": steps,
        "total": total,
        "per_weight_first_epoch": per_weight(moved[0], weights),
        "per_weight_last_epoch": per_weight(moved[-1], weights),
        "per_weight": total / (steps * weights),
    }


def as_csv(rows: Sequence[Row]) -> bytes:
    """One line a step."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["round", "structure", "epoch", "step", "sad", "sad_per_weight"])
    for row in rows:
        step = 0
        for epoch in row.epochs:
            for flips in epoch.flips:
                step += 1
                writer.writerow(
                    [row.round, row.form, epoch.epoch, step, flips, flips / row.masked]
                )
    return file.getvalue().encode()


def as_picture(rows: Sequence[Row], title: str) -> bytes:
    """A PNG: the part of the weights whose mask changed, at each step, and its mean over each epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row in rows:
        moved = [each for each in row.epochs if each.flips]
        if not moved:
            continue
        steps = [100 * flips / row.masked for epoch in moved for flips in epoch.flips]
        (line,) = axes.plot(range(1, len(steps) + 1), steps, linewidth=0.5, alpha=0.4)
        ends, end = [], 0
        for epoch in moved:
            end += len(epoch.flips)
            ends.append(end - len(epoch.flips) / 2)
        means = [100 * per_weight(epoch, row.masked) for epoch in moved]
        axes.plot(
            ends,
            means,
            color=line.get_color(),
            marker="o",
            label=f"{row.form}, mean of an epoch",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("weights whose mask changed, %")
    axes.set_ylim(bottom=0)
    axes.set_title(title, parse_math=False)
    axes.grid(color="0.9")
    axes.legend()
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()
