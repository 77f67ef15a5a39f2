"""What came of each round, as a table of epochs (CSV) and as a picture; both are made from the rounds and hold no more."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from deploykit.finder.nm.sad import per_weight, summarize
from deploykit.finder.training import Epoch

__all__ = ["Row", "as_csv", "as_picture", "as_record"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One network that was trained.

    Attributes:
        round: 0 is the dense network.
        structure: `none`, or what its mask was made into.
        kept: prunable weights that are left.
        total: prunable weights.
        validation: metric of the validation examples.
        test: metric of the test examples.
        epochs: its training, epoch by epoch.
        file: where it lies in the result folder.
        notes: what is to be said of it: layers without weights, or without blocks.
        masked: weights whose masks were chosen anew at every step; 0 where masks stayed.
    """

    round: int
    structure: str
    kept: int
    total: int
    validation: float
    test: float
    epochs: tuple[Epoch, ...]
    file: str
    notes: tuple[str, ...] = ()
    masked: int = 0

    @property
    def form(self) -> str:
        """What the network is, in a word: "dense", "scattered", or the structure."""
        if not self.round:
            return "dense"
        return "scattered" if self.structure == "none" else self.structure

    @property
    def remaining(self) -> float:
        """Part of the prunable weights that is left."""
        return self.kept / self.total

    @property
    def sparsity(self) -> float:
        """Part of the prunable weights that is dropped."""
        return 1.0 - self.remaining

    @property
    def sad(self) -> dict[str, Any] | None:
        """How much its masks changed while it was trained; None where they stayed."""
        return summarize(self.epochs, self.masked)


def as_record(row: Row) -> dict[str, Any]:
    """A row in JSON's types, without its epochs, which the CSV has."""
    return {
        "round": row.round,
        "structure": row.structure,
        "kept": row.kept,
        "total": row.total,
        "sparsity": row.sparsity,
        "validation": row.validation,
        "test": row.test,
        "file": row.file,
        "notes": list(row.notes),
        **({} if row.sad is None else {"sad": row.sad}),
    }


def as_csv(rows: Sequence[Row]) -> bytes:
    """One line an epoch; the test metric is told after the last one.

    SAD is there where masks changed: how many of their elements did in the epoch, and how many of a weight in a step.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    moves = any(row.masked for row in rows)
    writer.writerow(
        [
            *("round", "structure", "kept", "total", "remaining", "sparsity"),
            *("epoch", "loss", "validation", "test"),
            *(("sad", "sad_per_weight") if moves else ()),
        ]
    )
    for row in rows:
        head = [row.round, row.form, row.kept, row.total, row.remaining, row.sparsity]
        for epoch in row.epochs:
            test = row.test if epoch is row.epochs[-1] else ""
            sad: tuple[object, ...] = ("", "") if moves else ()
            if epoch.flips:
                sad = (sum(epoch.flips), per_weight(epoch, row.masked))
            writer.writerow([*head, epoch.epoch, epoch.loss, epoch.metric, test, *sad])
    return file.getvalue().encode()


def as_picture(rows: Sequence[Row], title: str) -> bytes:
    """A PNG: the test metric against the weights that are left, one line for each structure, and the dense network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    pruned = [row for row in rows if row.round]
    for form in dict.fromkeys(row.form for row in pruned):
        line = [row for row in pruned if row.form == form]
        axes.plot(
            [100 * row.remaining for row in line],
            [row.test for row in line],
            marker="o",
            label=form,
        )
    for row in rows:
        if not row.round:
            axes.axhline(row.test, color="0.5", linestyle="--", label="dense")
            break
    axes.set_xscale("log")
    axes.invert_xaxis()
    shown = sorted({round(100 * row.remaining, 1) for row in pruned}, reverse=True)
    # Ticks where there are rounds; of many, every other or third.
    axes.set_xticks(shown[:: -(-len(shown) // 8) or 1])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("weights that are left")
    axes.set_ylabel("test metric")
    axes.set_title(title, parse_math=False)
    axes.grid(color="0.9")
    if rows:
        axes.legend()
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()
