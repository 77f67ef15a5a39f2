"""Whether predictions of networks that nobody has trained hold: `python -m benchmarks.what_if [--only CASE,...] [--quick]`.

Three kinds of rows:

- predictions: for a network and a share of its channels, the ratio that `deploykit profile --what-if channels=SHARE` tells of the
  dense network; and that of the network which is then made in another way: the dense one with random channels zeroed, at the
  counts that the share comes to, through `deploykit optimize`, timed against the dense one. A row passes if the two differ by
  at most 10 %.
- allocations: the counts that `deploykit profile --allocate weights=0.42` finds, carried out by `prune-channels` in
  `deploykit optimize`, timed against the dense network and against the same share of channels everywhere. ResNet-18 has to save
  60.23 % of the time, MobileNetV2 more than the uniform one.

All times are processor time of one thread, in turns, as ratios with 95 % intervals. Rows go to a state file; a run that is
started again does what is missing. Exit code 1 if a row does not pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from benchmarks import nets, results
from benchmarks.channels import pooled
from deploykit.profile import Settings, measure
from deploykit.profile.statistics import paired_ratio
from passes import targets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.profile.statistics import Timings

Row: TypeAlias = dict[str, Any]

NETWORKS = ("resnet18", "resnet50", "vgg16", "mobilenetv2")
SHARES = (0.75, 0.5, 0.3)
SIZES = {"vgg16": 32}
ALLOCATIONS: Mapping[str, float | None] = {"resnet18": 0.6023, "mobilenetv2": None}
"""Share of the time that has to be saved; None: more than with the same share of channels everywhere."""

LEFT = 0.42
"""Share of the weights that an allocation leaves: 58 % are pruned."""

WITHIN = 0.10
PRECISION = 1.04
"""What is measured is measured until its interval is this wide, either way: it is the precision that ends this, not the result."""

PATIENCE = 8
"""Measurements after which it is taken as it is."""


def cases() -> list[str]:
    """All of them: a prediction of three shares for each network, and the allocations."""
    return [f"what-if/{name}" for name in NETWORKS] + [
        f"allocate/{name}" for name in ALLOCATIONS
    ]


def run_case(case: str, options: argparse.Namespace) -> list[Row]:
    """The rows of a case."""
    kind, _, name = case.partition("/")
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        dense = folder / f"{name}.onnx"
        ir.save(nets.build(name), dense)
        if kind == "what-if":
            return _predictions(name, dense, folder, options)
        return [_allocation(name, dense, folder, options)]


def _predictions(
    name: str, dense: Path, folder: Path, options: argparse.Namespace
) -> list[Row]:
    asks = [part for share in SHARES for part in ("--what-if", f"channels={share}")]
    report = _deploykit("profile", dense, *asks, *_times(options), "--json")
    rows = []
    for share, told in zip(SHARES, report["what_if"]["predictions"], strict=True):
        zeroed = folder / f"{share}.onnx"
        ir.save(nets.zeroed(name, keep=counts_at(share)), zeroed)
        optimized = _deploykit(
            *("optimize", zeroed, "-o", folder / f"{share}", *_duration(options), "--json")
        )
        found = _ratio(name, dense, folder / f"{share}" / "model.onnx", options)
        error = told["ratio"] / found[0] - 1
        rows.append(
            {
                "kind": "what-if",
                "model": name,
                "share": share,
                "parameters": [
                    told["parameters"][1],
                    optimized["size"]["parameters"]["after"],
                ],
                "form": told["form"],
                "predicted": [
                    round(told["ratio"], 4),
                    *(round(end, 4) for end in told["ci95"]),
                ],
                "measured": found,
                "error": round(error, 4),
                "load": round(os.getloadavg()[0], 2),
                "failures": []
                if abs(error) <= WITHIN
                else [f"the prediction is off by {100 * error:.1f} %"],
            }
        )
    return rows


def _allocation(name: str, dense: Path, folder: Path, options: argparse.Namespace) -> Row:
    file = folder / "counts.json"
    asked = ("--allocate", f"weights={LEFT}", "--save-plan", file)
    report = _deploykit("profile", dense, *asked, *_times(options), "--json")
    found = report["what_if"]["allocation"]
    told = {row["name"]: row["ratio"] for row in report["what_if"]["predictions"]}
    intervals = {row["name"]: row["ci95"] for row in report["what_if"]["predictions"]}
    passes = ("--passes", "+prune-channels", "--set", f"prune-channels.counts={file}")
    _deploykit("optimize", dense, "-o", folder / "out", *passes, *_duration(options), "--json")
    measured = _ratio(name, dense, folder / "out" / "model.onnx", options)
    wanted = ALLOCATIONS[name]
    failures = []
    if wanted is not None and 1 - measured[0] < wanted:
        failures.append(
            f"saves {100 * (1 - measured[0]):.2f} %, and has to save {100 * wanted:.2f} %"
        )
    if wanted is None and not (
        found["chosen"] == "allocated" and intervals["allocated"][1] < intervals["uniform"][0]
    ):
        failures.append(f"is not proven faster than uniform pruning: {told}")
    return {
        "kind": "allocate",
        "model": name,
        "left": round(found["left"], 4),
        "uniform_left": round(found["uniform_left"], 4),
        "expected": {key: round(value, 4) for key, value in found["expected"].items()},
        "predicted": {key: round(value, 4) for key, value in told.items()},
        "intervals": {key: [round(end, 4) for end in ends] for key, ends in intervals.items()},
        "measured": measured,
        "kept": {row["weights"][0]: [row["keep"], row["size"]] for row in found["groups"]},
        "load": round(os.getloadavg()[0], 2),
        "failures": failures,
    }


def counts_at(share: float) -> Callable[[str, int], int]:
    """Channels of a group at a share: the nearest multiple of what this machine likes, the larger of two."""
    step = targets.detect().rounding

    def kept(group: str, dense: int) -> int:
        del group
        nearest = step * math.floor(share * dense / step + 0.5)
        return min(dense, max(step, nearest))

    return kept


def _ratio(name: str, dense: Path, other: Path, options: argparse.Namespace) -> list[float]:
    """Time of a model over that of the dense one, with its interval, which is narrowed to `PRECISION` unless the patience ends."""
    size = SIZES.get(name, 224)
    feed = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    settings = (
        Settings(warmup_s=0.05, duration_s=0.3, min_rounds=6, rebuilds=2)
        if options.quick
        else Settings(duration_s=options.duration, min_rounds=20, rebuilds=4)
    )
    paths = {"dense": dense, "other": other}
    parts: list[Mapping[str, Timings]] = []
    for part in range(1 if options.quick else PATIENCE):
        again = dataclasses.replace(settings, seed=part)
        taken = measure(paths, {"input": feed}, baseline="dense", threads=1, settings=again)
        parts.append(taken.samples)
        first, second = (pooled([each[key] for each in parts]) for key in paths)
        ratio = paired_ratio(first, second, threads=1, clock="cpu")
        if ratio.hi / ratio.lo <= PRECISION**2:
            break
    return [round(number, 4) for number in (ratio.median, ratio.lo, ratio.hi)]


def _times(options: argparse.Namespace) -> tuple[str, ...]:
    return (*_duration(options), *(("--rebuilds", "2") if options.quick else ()))


def _duration(options: argparse.Namespace) -> tuple[str, ...]:
    return ("--duration", "0.2" if options.quick else str(options.duration), "--threads", "1")


def _deploykit(*arguments: object) -> dict[str, Any]:
    """Run the command as a user would; its document.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "deploykit", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}"
        raise RuntimeError(msg)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(cases()), help="cases")
    parser.add_argument("--quick", action="store_true", help="too short to prove anything")
    parser.add_argument("--duration", type=float, default=2.0, help="seconds for each model")
    parser.add_argument("--state", type=Path, default=Path("build/benchmarks/what_if.jsonl"))
    parser.add_argument("--scratch", type=Path, help="where the models go for a while")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    options = parser.parse_args(arguments)
    if options.fresh:
        options.state.unlink(missing_ok=True)
    options.state.parent.mkdir(parents=True, exist_ok=True)
    known = _read(options.state, quick=options.quick)
    wanted = options.only.split(",")
    for case in wanted:
        if case in known:
            continue
        known[case] = run_case(case, options)
        with options.state.open("a") as file:
            document = {"case": case, "quick": options.quick, "rows": known[case]}
            file.write(json.dumps(document) + "\n")
        for row in known[case]:
            print(_line(row), file=sys.stderr, flush=True)
    rows = [row for case in wanted for row in known[case]]
    table = _table(rows)
    print(table)
    if not options.quick and wanted == cases():
        results.save("what_if", rows, "Predictions, and what was then measured", table)
    return 1 if any(row["failures"] for row in rows) else 0


def _read(state: Path, *, quick: bool) -> dict[str, list[Row]]:
    """The latest rows of each case; quick ones count for quick runs only."""
    lines = state.read_text().splitlines() if state.exists() else []
    found = [row for row in map(json.loads, lines) if row["quick"] == quick]
    return {row["case"]: row["rows"] for row in found}


def _said(ratio: Sequence[float]) -> str:
    return f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"


def _line(row: Row) -> str:
    failed = f" FAILED: {'; '.join(row['failures'])}" if row["failures"] else ""
    if row["kind"] == "what-if":
        return (
            f"{row['model']} channels={row['share']}: predicted {_said(row['predicted'])}, measured {_said(row['measured'])}, "
            f"{100 * row['error']:+.1f} %{failed}"
        )
    return f"{row['model']} allocated: {row['predicted']}, measured {_said(row['measured'])}{failed}"


def _table(rows: Sequence[Row]) -> str:
    lines = [
        "Ratios to the dense network's time, with 95 % intervals.",
        "",
        "| network | channels kept | predicted | measured | difference | |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['share']:g} | {_said(row['predicted'])} | {_said(row['measured'])} | "
        f"{100 * row['error']:+.1f} % | {'**failed**' if row['failures'] else 'passed'} |"
        for row in rows
        if row["kind"] == "what-if"
    ]
    allocations = [row for row in rows if row["kind"] == "allocate"]
    if allocations:
        lines += [
            "",
            f"Channels allocated so that {100 * LEFT:g} % of the weights are left:",
            "",
            "| network | weights left | expected of the table | predicted | measured | saved | uniform (weights left) | |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for row in allocations:
        even = row["predicted"].get("uniform")
        uniform = (
            "the same" if even is None else f"{even:.3f} ({100 * row['uniform_left']:.1f} %)"
        )
        lines.append(
            f"| {row['model']} | {100 * row['left']:.1f} % | {row['expected']['allocated']:.3f} | "
            f"{row['predicted']['allocated']:.3f} | {_said(row['measured'])} | {100 * (1 - row['measured'][0]):.1f} % | "
            f"{uniform} | {'**failed**' if row['failures'] else 'passed'} |"
        )
    lines += ["", *(f"- {_line(row)}" for row in rows if row["failures"])]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    sys.exit(main())
