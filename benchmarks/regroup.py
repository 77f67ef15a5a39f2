"""How long regroup takes, and how much magnitude its blocks keep, on the layers of ResNet-18 and VGG-16.

    python -m benchmarks.regroup [--only 512x512x3x3,...] [--minutes 5]

The masks keep the largest of random weights with the structure that trained ones have: rows and input channels of different
scales, and a low-rank part. (Independent weights of one scale are there for comparison: no grouping keeps much of those.)
At equal area of the blocks, as large as what the mask keeps, stand beside each other

- random: rows in random groups, and the best columns for each;
- hypergraph: rows grouped by Mt-KaHyPar, in its deterministic preset, on one thread;
- co-clustering;
- balanced: groups of equally many rows and columns, by co-clustering;
- rows: whole output channels, as refill keeps them.

A row passes if both ways to group keep more than random groups, and if the better of the two, which `method="best"` takes,
is found in at most SECONDS of CPU time. Independent weights of one scale have to pass the second only. Rows go to a
state file; `--minutes` ends a run early, and one that is started again does what is missing. Exit code 1 if a row does not
pass, 3 if some are missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmarks import results
from deploykit.finder.structures.cocluster import sized
from deploykit.finder.structures.columns import Budget
from deploykit.finder.structures.refill import refill, remaining_l1
from deploykit.finder.structures.regroup import regroup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploykit.finder.structures.regroup import Columns

Row: TypeAlias = dict[str, Any]
Case: TypeAlias = tuple[str, str, float, str]

SECONDS = 20.0
INCOMPLETE = 3
LAYERS = (
    (64, 3, 7, 7), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3),
    (512, 256, 3, 3), (512, 512, 3, 3), (128, 64, 1, 1), (256, 128, 1, 1), (512, 256, 1, 1), (512, 512),
)  # fmt: skip
"""Those of ResNet-18, among which are those of VGG-16 but for its first layer, and VGG-16's hidden classifier for CIFAR."""
DENSITIES = (0.42, 0.26, 0.1)
MULTIPLE = 16
BLOCKS = 8


def name_of(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def cases() -> Iterator[Case]:
    """Weights, shape, density, columns."""
    for shape in LAYERS:
        for density in DENSITIES:
            for columns in ("element", "channel"):
                # three channels are all taken or none
                if columns == "element" or shape[1] > 2 * MULTIPLE:
                    yield "structured", name_of(shape), density, columns
    for density in DENSITIES:
        yield "independent", name_of((512, 512, 3, 3)), density, "element"


def weights(kind: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Magnitudes of a layer."""
    dice = np.random.default_rng((seed, *shape))
    flat = dice.standard_normal((shape[0], math.prod(shape[1:])))
    if kind == "structured":
        rank = 8
        left, right = (
            dice.standard_normal((shape[0], rank)),
            dice.standard_normal((rank, flat.shape[1])),
        )
        flat += 0.5 * left @ right
        flat *= np.exp(0.5 * dice.standard_normal((shape[0], 1)))
        channels = np.exp(0.5 * dice.standard_normal((1, shape[1])))
        flat *= np.repeat(channels, flat.shape[1] // shape[1], axis=1)
    return np.abs(flat).reshape(shape)


def random_groups(mask: np.ndarray, scores: np.ndarray, columns: Columns, area: float) -> float:
    """Share of the magnitude that random groups of rows keep with the best columns, at an area."""
    table = np.where(mask, scores, 0.0).reshape(*mask.shape[:2], -1)
    table = table.reshape(len(mask), -1) if columns == "element" else table.sum(2)
    count = min(BLOCKS, len(mask) // MULTIPLE)
    labels = np.random.default_rng(1).permutation(np.arange(len(mask)) % count)
    step = 1 if columns == "element" else MULTIPLE
    budget = Budget(area * table.size, step, MULTIPLE)
    found = sized(table, labels, np.bincount(labels), budget)
    return found.kept / float(table.sum())


def measure(kind: str, layer: str, density: float, columns: Columns) -> Row:
    """One row."""
    shape = tuple(map(int, layer.split("x")))
    scores = weights(kind, shape)
    mask = scores > np.quantile(scores, 1 - density)
    row: Row = {"weights": kind, "layer": layer, "density": density, "columns": columns}
    for method in ("hypergraph", "cocluster", "best"):
        start = time.process_time()
        found = regroup(mask, scores, columns=columns, method=method)
        row[method] = {
            "seconds": time.process_time() - start,
            "kept": found.kept,
            "density": found.density,
            "blocks": [[block.rows.size, block.columns.size] for block in found.blocks],
        }
    balanced = regroup(mask, scores, columns=columns, method="cocluster", balanced=True)
    row["balanced"] = {
        "kept": balanced.kept,
        "density": balanced.density,
        "blocks": [[block.rows.size, block.columns.size] for block in balanced.blocks],
    }
    area = row["best"]["density"]
    row["random"] = {"kept": random_groups(mask, scores, columns, area)}
    rows = refill(mask, remaining_l1(scores, mask))
    row["rows"] = {
        "kept": float(scores[mask & rows].sum() / scores[mask].sum()),
        "density": float(rows.mean()),
    }
    return row


def passes(row: Row) -> bool:
    """See above."""
    kept = row["random"]["kept"]
    is_better = all(row[method]["kept"] > kept for method in ("hypergraph", "cocluster"))
    is_best = row["best"]["kept"] >= max(row["hypergraph"]["kept"], row["cocluster"]["kept"])
    return (
        (is_better or row["weights"] == "independent")
        and is_best
        and row["best"]["seconds"] <= SECONDS
    )


def main() -> int:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="layers, as 512x512x3x3,...; default: all")
    parser.add_argument("--minutes", type=float, default=10.0, help="end after so long")
    parser.add_argument("--state", type=Path, default=Path("build/regroup.jsonl"))
    options = parser.parse_args()
    options.state.parent.mkdir(parents=True, exist_ok=True)
    lines = options.state.read_text().splitlines() if options.state.exists() else []
    rows = {_case(row): row for row in map(json.loads, lines)}
    only = set(filter(None, options.only.split(",")))
    wanted = [case for case in cases() if not only or case[1] in only]
    end = time.monotonic() + 60 * options.minutes
    for case in wanted:
        if case in rows:
            continue
        if time.monotonic() > end:
            break
        rows[case] = row = measure(*case)
        with options.state.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(_cells(row), file=sys.stderr, flush=True)
    done = [rows[case] for case in wanted if case in rows]
    table = _table(done)
    print(table)
    if len(done) < len(wanted):
        print(f"{len(wanted) - len(done)} are missing: start it again.", file=sys.stderr)
        return INCOMPLETE
    if not only:
        results.save("regroup", done, "Magnitude that blocks keep, at equal area", table)
    return 0 if all(map(passes, done)) else 1


def _case(row: Row) -> Case:
    return row["weights"], row["layer"], row["density"], row["columns"]


def _cells(row: Row) -> list[str]:
    def seconds(method: str) -> str:
        return f"{row[method]['seconds']:.2f}"

    def kept(method: str) -> str:
        return f"{row[method]['kept']:.3f}"

    return [
        row["layer"] + ("" if row["weights"] == "structured" else " independent"),
        f"{row['density']:.2f}",
        row["columns"],
        f"{row['best']['density']:.3f}",
        kept("random"),
        kept("hypergraph"),
        kept("cocluster"),
        f"{kept('balanced')} at {row['balanced']['density']:.3f}",
        f"{kept('rows')} at {row['rows']['density']:.3f}",
        seconds("hypergraph"),
        seconds("cocluster"),
        seconds("best"),
        "passed" if passes(row) else "**failed**",
    ]


def _table(rows: Sequence[Row]) -> str:
    columns = (
        "layer", "mask keeps", "columns", "blocks take", "kept: random", "hypergraph", "co-clustering", "balanced",
        "rows", "CPU seconds: hypergraph", "co-clustering", "best", "",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    structured = [row for row in rows if row["weights"] == "structured"]
    more = sum(row["cocluster"]["kept"] > row["hypergraph"]["kept"] for row in structured)
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("mtkahypar", "scipy")
    )
    verdict = (
        f"{sum(map(passes, rows))} of {len(rows)} passed. Of {len(structured)} structured rows co-clustering keeps more than "
        f"the hypergraph in {more}. Kept is the share of the magnitude that the mask keeps. {versions}; times on one core."
    )
    lines += ["", verdict]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
