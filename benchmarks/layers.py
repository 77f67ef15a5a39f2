"""Whether the layers of a model add up to the model, under the user's names, on every network of the catalogue.

    python -m benchmarks.layers [--only NETWORK,...] [--minutes 5] [--cache FOLDER]

Each network is profiled once as exporters write it and once with BatchNormalization left in place, where it has any.
It passes if the times of its layers sum to within 10 % of the whole model's time, which is measured without the
profiler, and if at least 95 % of the time is mapped to nodes of the model. Beside it stands a check of the names that
does not depend on them: the share of the time of the runtime's convolutions and matrix products that was given to a
node of the user's that is one. (A BatchNormalization that the runtime turned into a convolution is none.)

Rows go to a state file; `--minutes` ends a run early, and one that is started again does what is missing. Exit code 1
if a network does not pass, 3 if some are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from benchmarks import catalogue, results
from deploykit.profile.layer_times import profile_layers
from deploykit.runtimes.onnxruntime import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

Row: TypeAlias = dict[str, Any]

SUM = 0.10
MAPPED = 0.95
INCOMPLETE = 3
PRODUCTS = {
    "Conv": {"Conv", "ConvInteger", "QLinearConv"},
    "ConvTranspose": {"ConvTranspose"},
    "MatMul": {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "Einsum"},
    "Gemm": {"MatMul", "Gemm", "Conv"},
}


def profile(name: str, *, folded: bool, cache: Path, duration_s: float) -> Row:
    """Time the layers of one network."""
    network = catalogue.load(name)
    make = network.load if folded else network.unfolded
    assert make is not None
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(make(cache), path)
        found = profile_layers(path, _feeds(path, network), duration_s=duration_s)
    products_s = kept_s = 0.0
    for layer in found.layers:
        kernels = [op.removeprefix("Fused") for op in layer.runtime_ops if op[0] != "("]
        kinds = [PRODUCTS[op] for op in kernels if op in PRODUCTS]
        if kinds:
            products_s += layer.seconds
            kept_s += layer.seconds * any(layer.op_type in kind for kind in kinds)
    return {
        "network": name,
        "folded": folded,
        "sum": round(found.total_s / found.whole_s, 4),
        "mapped": round(found.mapped_share, 4),
        "products": round(kept_s / products_s, 4) if products_s else 1.0,
        "whole_ms": round(1e3 * found.whole_s, 3),
        "profiler": round(found.overhead_s / found.whole_s, 4),
        "layers": len(found.layers),
        "runs": found.runs,
        "clock": found.clock,
    }


def _feeds(path: Path, network: catalogue.Network) -> dict[str, np.ndarray[Any, Any]]:
    dice = np.random.default_rng(0)
    feeds = {}
    with Session(path) as session:
        for spec in session.inputs:
            shape = network.shapes.get(spec.name) or tuple(
                size if isinstance(size, int) else 1 for size in spec.shape
            )
            drawn = (
                dice.standard_normal(shape)
                if spec.dtype.startswith("float")
                else dice.integers(0, network.below, shape)
            )
            feeds[spec.name] = drawn.astype(spec.dtype)
    return feeds


def passes(row: Row) -> bool:
    """Whether a row meets both bounds."""
    return abs(row["sum"] - 1) <= SUM and row["mapped"] >= MAPPED


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile the networks that are missing; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(catalogue.names()), help="networks")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after that")
    parser.add_argument("--duration", type=float, default=1.0, help="seconds for each")
    parser.add_argument("--cache", type=Path, default=Path("build/benchmarks/exactness"))
    parser.add_argument("--state", type=Path, default=Path("build/benchmarks/layers.jsonl"))
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    options = parser.parse_args(arguments)
    if options.fresh:
        options.state.unlink(missing_ok=True)
    options.state.parent.mkdir(parents=True, exist_ok=True)
    lines = options.state.read_text().splitlines() if options.state.exists() else []
    rows = {(row["network"], row["folded"]): row for row in map(json.loads, lines)}
    cases = [
        (name, folded)
        for name in options.only.split(",")
        for folded in (True, False)
        if folded or _differs(name)
    ]
    end = time.monotonic() + 60 * options.minutes
    for name, folded in cases:
        if (name, folded) in rows:
            continue
        if time.monotonic() > end:
            break
        row = profile(name, folded=folded, cache=options.cache, duration_s=options.duration)
        with options.state.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows[name, folded] = row
        print(json.dumps(row), file=sys.stderr, flush=True)
    wanted = [rows[case] for case in cases if case in rows]
    table = _table(wanted)
    print(table)
    if len(wanted) < len(cases):
        print(f"{len(cases) - len(wanted)} are missing: start it again.", file=sys.stderr)
        return INCOMPLETE
    if options.only == ",".join(catalogue.names()):
        results.save("layers", wanted, "Times of layers, under the user's names", table)
    return 0 if all(map(passes, wanted)) else 1


def _differs(name: str) -> bool:
    network = catalogue.load(name)
    return network.unfolded is not None and network.unfolded is not network.load


def _table(rows: Sequence[Row]) -> str:
    columns = (
        "network", "BatchNormalization", "model, ms", "clock", "layers", "layers / model", "mapped",
        "products to products", "profiler's own time / model", "",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (
            row["network"],
            "folded" if row["folded"] else "left",
            f"{row['whole_ms']:.2f}",
            row["clock"],
            str(row["layers"]),
            f"{row['sum']:.3f}",
            f"{row['mapped']:.1%}",
            f"{row['products']:.1%}",
            f"{row['profiler']:.3f}",
            "passed" if passes(row) else "**failed**",
        )
        lines.append(f"| {' | '.join(cells)} |")
    passed = sum(map(passes, rows))
    lines += ["", f"{passed} of {len(rows)} passed."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
