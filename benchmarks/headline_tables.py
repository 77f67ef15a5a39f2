"""The rows of `benchmarks.headline` as tables and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmarks.paper import CASES
from benchmarks.saving import percent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

__all__ = ["layers_table", "plot", "table"]

Row: TypeAlias = dict[str, Any]

BY_LABEL = {case.label: case for case in CASES}

NETWORKS = (
    "network", "data", "structure", "sparsity", "reached", "batch", "dense, ms", "**time saved**", "the paper's",
    "beaten", "FLOPs saved", "by zeros", "parameters left", "equally fast dense: width", "weights left",
    "FLOPs left", "its time", "torch-pruning saves", "with round_to", "error", "form", "",
)  # fmt: skip
TICKETS = ("ticket", "sparsity", "time saved", "FLOPs saved", "parameters left", "error", "")
LAYERS = (
    "network, pattern, sparsity of the layers with blocks", "zeros", "dense, ms", "**time saved**", "target",
    "FLOPs saved", "parameters left", "error", "form", "",
)  # fmt: skip

ABOUT = (
    "- All in percent. Time saved: 1 - thread-CPU time over that of the dense network, both warmed up, one thread, in turns, "
    "with 95 % intervals. FLOPs saved: multiply-adds that the result does without. By zeros: multiply-adds with weights that are "
    "zero, all that blocks alone can save; channels that no block reads save more. Its time: of the equally fast dense network, over that of "
    "the optimized one. Weights are drawn, not trained: see `blocks.py`. Accuracy is not what this is about."
)
PEERS = (
    "- torch-pruning takes the same share of the channels of every layer, and rounds what is left down; the zeros of the "
    "channel-wise rows are at the nearest multiple. With the same share of the weights gone its first layers, which have few of "
    "them and many of the FLOPs, are in some networks a multiple narrower, and it saves more."
)
PAPER = (
    "- The paper's figures: RTX 2080 Ti, batch 64, cuDNN without workspace and not warmed up, convolutions alone, each on an "
    "input of one size whatever its place in the network. Sparsity in late layers, where most weights are, counts for more "
    "there than it does from end to end. A figure is beaten if the whole interval is above it."
)
FAN_IN = (
    "- fan-in: layers share the sparsity as the weights of an initialization do: late layers lose most of theirs, and have few "
    "of the FLOPs."
)


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in lines)])


def _share(number: float | None) -> str:
    return "" if number is None else f"{100 * number:.1f}"


def _error(row: Row) -> str:
    return "" if row["error"] is None else f"{row['error']:.0e}"


def _saved(row: Row, *, bold: bool = True) -> str:
    text = percent(row["saved"]) if "saved" in row else ""
    return f"**{text}**" if bold and text else text


def _milliseconds(row: Row) -> str:
    return f"{row['dense_ms']:.2f}" if "dense_ms" in row else ""


def _beaten(words: Mapping[str, str]) -> str:
    said = set(words.values())
    return said.pop() if len(said) == 1 else ", ".join(f"{key} {words[key]}" for key in words)


def table(rows: Sequence[Row]) -> str:
    """Networks and tickets, as Markdown."""
    peers = {(row["label"], row["batch"]): row for row in rows if row["kind"] == "peer"}
    networks = [row for row in rows if row["kind"] == "network"]
    lines = [_cells(row, peers.get((row["label"], row["batch"]), {})) for row in networks]
    parts = [_markdown(NETWORKS, lines)] if lines else []
    tickets = [
        [
            row["ticket"],
            _share(row["reached"]),
            _saved(row, bold=False),
            _share(row["flops_saved"]),
            _share(row["parameters_left"]),
            _error(row),
            "**failed**" if row["failures"] else "",
        ]
        for row in rows
        if row["kind"] == "ticket"
    ]
    if tickets:
        parts.append("\nReal tickets, at batch 1, against their own export with all zeros:\n")
        parts.append(_markdown(TICKETS, tickets))
    return "\n".join([*parts, "", *_notes(networks, peers.values())])


def _cells(row: Row, peer: Row) -> list[str]:
    case, narrow = BY_LABEL[row["label"]], row.get("narrow", {})
    return [
        case.network,
        case.data,
        case.structure + ("" if case.scale == "equal" else f", {case.scale}"),
        f"{case.sparsity:g}",
        _share(row["reached"]),
        str(row["batch"]),
        _milliseconds(row),
        _saved(row),
        ", ".join(f"{saved:g} ({key})" for key, saved in case.printed.items()),
        _beaten(row["beaten"]),
        _share(row.get("flops_saved")),
        _share(row.get("bound")),
        _share(row["parameters_left"]),
        *(_share(narrow.get(key)) for key in ("width", "weights_left", "macs_left", "time")),
        *(_saved(peer.get(key, {}), bold=False) for key in ("default", "rounded")),
        _error(row),
        row["chosen"],
        "**failed**" if row["failures"] else "passed" if case.is_target else "",
    ]


def _notes(networks: Sequence[Row], peers: Collection[Row]) -> list[str]:
    """What has to be said beside the table."""
    lines = [ABOUT, PAPER]
    if peers:
        lines.append(PEERS)
    if any(row["label"].endswith("/fan-in") for row in networks):
        lines.append(FAN_IN)
    lines += [
        _small_kernels(row)
        for row in networks
        if row["label"].startswith("resnet50") and "bound" in row and "kernels" in row
    ]
    return [*lines, *_failures(networks)]


def _small_kernels(row: Row) -> str:
    """Why blocks save less in a ResNet-50 than in others."""
    kernels = row["kernels"]
    before = sum(was for was, _ in kernels.values())
    small, left = kernels["1x1"]
    large, rest = kernels["3x3"]
    return (
        f"- {row['label']}, batch {row['batch']}: {_share(row['bound'])} % of the FLOPs are with zeros, and {_share(row['flops_saved'])} % "
        f"were saved. {small / before:.0%} of all are in 1x1 convolutions, where {left / small:.0%} are left; of those in 3x3 ones "
        f"{rest / large:.0%}. A 1x1 convolution does so little with each number that it reads that gathering channels takes back much of "
        "what blocks save; where it would take back all, the layer stays dense."
    )


def _failures(rows: Sequence[Row]) -> list[str]:
    return [f"- {' '.join(row['key'])}: {each}" for row in rows for each in row["failures"]]


def layers_table(rows: Sequence[Row]) -> str:
    """Planted blocks, as Markdown."""
    lines = [
        [
            row["label"],
            _share(row["reached"]),
            _milliseconds(row),
            _saved(row),
            _share(row["target"]),
            _share(row.get("flops_saved")),
            _share(row["parameters_left"]),
            _error(row),
            row["chosen"],
            "**failed**" if row["failures"] else "" if row["target"] is None else "passed",
        ]
        for row in rows
    ]
    return "\n".join([_markdown(LAYERS, lines), "", *_failures(rows)])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of the time saved, and marks where the FLOPs, torch-pruning and the paper's figures are."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row["kind"] == "network" and "saved" in row]
    labels = list(dict.fromkeys(row["label"] for row in shown))
    batches = sorted({row["batch"] for row in shown})
    bars = {(row["label"], row["batch"]) for row in shown}
    peers = [
        row for row in rows if row["kind"] == "peer" and (row["label"], row["batch"]) in bars
    ]
    printed = [
        (saved, index)
        for index, label in enumerate(labels)
        for saved in BY_LABEL[label].printed.values()
    ]
    # With a fixed salt the same rows give the same file.
    with mpl.rc_context({"svg.hashsalt": "headline", "font.size": 8}):
        figure, axes = plt.subplots(figsize=(8, 0.8 + 0.36 * len(labels)), layout="constrained")
        height = 0.8 / max(len(batches), 1)

        def at_bars(some: Sequence[Row]) -> list[float]:
            places = [batches.index(row["batch"]) + 0.5 for row in some]
            return [
                labels.index(row["label"]) - 0.4 + height * place
                for row, place in zip(some, places, strict=True)
            ]

        for place, batch in enumerate(batches):
            mine = [row for row in shown if row["batch"] == batch]
            at = at_bars(mine)
            saved = 100 * np.array([row["saved"] for row in mine])
            away = [saved[:, 0] - saved[:, 1], saved[:, 2] - saved[:, 0]]
            axes.barh(
                at,
                saved[:, 0],
                height,
                xerr=away,
                color=("#3465a4", "#a3bfe0")[place % 2],
                error_kw={"linewidth": 0.7},
                label=f"batch {batch}",
            )
            axes.scatter(
                [100 * row["flops_saved"] for row in mine],
                at,
                marker="|",
                color="black",
                linewidths=1,
                s=30,
                label=None if place else "FLOPs saved",
            )
        if peers:
            axes.scatter(
                [100 * row["rounded"]["saved"][0] for row in peers],
                at_bars(peers),
                marker="o",
                s=12,
                facecolor="white",
                edgecolor="#4e9a06",
                linewidths=1,
                zorder=3,
                label="torch-pruning, with round_to",
            )
        if printed:
            axes.scatter(
                [figure for figure, _ in printed],
                [index for _, index in printed],
                marker="D",
                s=14,
                color="#cc0000",
                zorder=3,
                label="printed in the paper, on a GPU",
            )
        axes.axvline(0, color="black", linewidth=0.5)
        names = [label.replace("/", "  ", 2).replace("/", " %, ") for label in labels]
        axes.set_yticks(
            range(len(labels)), [name if "%" in name else f"{name} %" for name in names]
        )
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel("time saved against the dense network, %")
        figure.legend(loc="outside upper center", ncols=5)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
