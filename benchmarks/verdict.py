"""Whether a verdict of the profiler can be trusted while another process loads one core.

    python -m benchmarks.verdict [--trials 30] [--minutes 5] [--quick]

A network of 20 identical blocks is timed, again and again,

- against itself (`same`): whoever claims a difference of 3 % or more is wrong;
- against itself less one block (`shorter`, about 0.95 of the time): whoever claims no gain misses it;

by `deploykit.profile.measure` with its default settings, and, beside it, in the usual way: open a session with default
options, run it a few times, take the median of 20 runs, then do the same with the other model. That way claims what its
medians say.

Passes if the profiler makes no false claim of 3 % or more and tells the shorter network apart in all trials but one in
15 (28 of 30). Trials go to a state file; `--minutes` ends a run early, and one that is started again does what is
missing. The process that loads a core is a child of this one. Exit code 1 if it does not pass, 3 if trials are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from benchmarks import results
from deploykit.profile import Settings, measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Row: TypeAlias = dict[str, Any]

BLOCKS = 20
CHANNELS = 32
SIZE = 28
TRIALS = 30
FALSE = 0.03
"""A claim of so much or more, of a model against itself, is a failure."""

MISSES = 15
"""One trial in so many may miss the block that is gone."""

PAIRS = ("same", "shorter")
PROTOCOLS = ("profiler", "usual")
USUAL_RUNS = 20
USUAL_WARMUP = 3
INCOMPLETE = 3


def network(blocks: int) -> ir.Model:
    """Residual blocks of two convolutions each; the same weights wherever a block has the same number."""
    dice = np.random.default_rng(0)
    shape = ir.Shape((1, CHANNELS, SIZE, SIZE))
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=shape, type=kind)
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes, name=f"{op}{len(nodes)}")
        node.outputs[0].name = f"v{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    def weight(*sizes: int) -> ir.Value:
        array = dice.standard_normal(sizes) * math.sqrt(0.5 / math.prod(sizes[1:]))
        tensor = ir.tensor(array.astype(np.float32), name=f"w{len(weights)}")
        weights.append(
            ir.Value(name=tensor.name, shape=tensor.shape, type=kind, const_value=tensor)
        )
        return weights[-1]

    h = x
    for _ in range(blocks):
        kept = h
        for _ in range(2):
            h = add("Conv", h, weight(CHANNELS, CHANNELS, 3, 3), pads=[1, 1, 1, 1])
            h = add("Relu", h)
        h = add("Add", h, kept)
    h.shape, h.type = shape, kind
    graph = ir.Graph(
        [x], [h], nodes=nodes, initializers=weights, opset_imports={"": 17}, name="blocks"
    )
    return ir.Model(graph, ir_version=8)


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Load one core with a process that does nothing else, for as long as this lasts."""
    # It ends with its parent's pipe, so that none is left behind however this one ends.
    code = (
        "import os, sys, threading\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\n"
        "n = 0\n"
        "while True: n += 1\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        try:
            time.sleep(0.5)
            yield
        finally:
            child.kill()


def profiler_trial(
    paths: tuple[Path, Path], feed: np.ndarray[Any, Any], seed: int, options: argparse.Namespace
) -> Row:
    """What `deploykit profile` would say."""
    settings = (
        Settings(warmup_s=0.05, duration_s=0.3, min_rounds=6, rebuilds=2, seed=seed)
        if options.quick
        else Settings(seed=seed)
    )
    models = dict(zip(("first", "second"), paths, strict=True))
    taken = measure(models, {"x": feed}, baseline="first", threads=1, settings=settings)
    ratio = taken.ratios["second"]
    return {
        "ratio": round(ratio.median, 5),
        "ci95": [round(ratio.lo, 5), round(ratio.hi, 5)],
        "claims": not ratio.lo <= 1.0 <= ratio.hi,
        "clock": ratio.clock,
        "clean_share": round(taken.clean_share, 3),
        "rounds": ratio.rounds,
        "seconds": round(taken.elapsed_s, 2),
    }


def usual_trial(paths: tuple[Path, Path], feed: np.ndarray[Any, Any]) -> Row:
    """What most scripts do: one model after the other, default options, medians of wall time."""
    import onnxruntime

    began = time.perf_counter()
    medians = []
    for path in paths:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for _ in range(USUAL_WARMUP):
            session.run(None, {"x": feed})
        taken = []
        for _ in range(USUAL_RUNS):
            start = time.perf_counter()
            session.run(None, {"x": feed})
            taken.append(time.perf_counter() - start)
        medians.append(float(np.median(taken)))
        del session
    ratio = medians[1] / medians[0]
    # It has no interval: whatever the medians say is what is believed.
    return {
        "ratio": round(ratio, 5),
        "ci95": None,
        "claims": ratio != 1.0,
        "seconds": round(time.perf_counter() - began, 2),
    }


def run_trial(case: tuple[str, str, int], folder: Path, options: argparse.Namespace) -> Row:
    """One trial of one protocol on one pair of models."""
    protocol, pair, trial = case
    second = {"same": "copy", "shorter": "shorter"}[pair]
    paths = (folder / "whole.onnx", folder / f"{second}.onnx")
    feed = np.random.default_rng(trial).standard_normal((1, CHANNELS, SIZE, SIZE))
    feed = feed.astype(np.float32)
    found = (
        profiler_trial(paths, feed, trial, options)
        if protocol == "profiler"
        else usual_trial(paths, feed)
    )
    return {
        "protocol": protocol,
        "pair": pair,
        "trial": trial,
        **found,
        "load": round(os.getloadavg()[0], 2),
        "cores": len(os.sched_getaffinity(0)),
    }


def is_false(row: Row) -> bool:
    """Whether a model was called faster or slower than itself by as much as counts."""
    return bool(row["claims"]) and abs(row["ratio"] - 1) >= FALSE


def is_told_apart(row: Row) -> bool:
    """Whether the shorter network was called faster; without an interval, by as much as counts."""
    if row["ci95"] is None:
        return bool(row["ratio"] <= 1 - FALSE)
    return bool(row["ci95"][1] < 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials that are missing; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS, help="of each kind")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after that")
    parser.add_argument("--quick", action="store_true", help="too short to prove anything")
    parser.add_argument("--state", type=Path, default=Path("build/benchmarks/verdict.jsonl"))
    parser.add_argument("--fresh", action="store_true", help="forget earlier trials")
    options = parser.parse_args(arguments)
    if options.fresh:
        options.state.unlink(missing_ok=True)
    options.state.parent.mkdir(parents=True, exist_ok=True)
    rows = _read(options.state, quick=options.quick)
    # All kinds take turns, so that they see the same machine.
    cases = [
        (protocol, pair, trial)
        for trial in range(options.trials)
        for pair in PAIRS
        for protocol in PROTOCOLS
    ]
    missing = [case for case in cases if case not in rows]
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, blocks in (("whole", BLOCKS), ("copy", BLOCKS), ("shorter", BLOCKS - 1)):
            ir.save(network(blocks), folder / f"{name}.onnx")
        if missing:
            with busy_core():
                for case in missing:
                    if time.monotonic() > end:
                        break
                    row = {**run_trial(case, folder, options), "quick": options.quick}
                    with options.state.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    rows[case] = row
                    print(_line(row), file=sys.stderr, flush=True)
    wanted = [rows[case] for case in cases if case in rows]
    table = _table(wanted)
    print(table)
    if len(wanted) < len(cases):
        print(
            f"{len(cases) - len(wanted)} trials are missing: start it again.", file=sys.stderr
        )
        return INCOMPLETE
    if not options.quick and options.trials >= TRIALS:
        results.save("verdict", wanted, "Verdicts beside a process that loads one core", table)
    return 0 if _passes(wanted) else 1


def _read(state: Path, *, quick: bool) -> dict[tuple[str, str, int], Row]:
    """The latest row of each trial; quick rows count for quick runs only."""
    lines = state.read_text().splitlines() if state.exists() else []
    rows = [row for row in map(json.loads, lines) if row["quick"] == quick]
    return {(row["protocol"], row["pair"], row["trial"]): row for row in rows}


def _select(rows: Sequence[Row], protocol: str, pair: str) -> list[Row]:
    return [row for row in rows if (row["protocol"], row["pair"]) == (protocol, pair)]


def _passes(rows: Sequence[Row]) -> bool:
    same = _select(rows, "profiler", "same")
    shorter = _select(rows, "profiler", "shorter")
    missed = sum(not is_told_apart(row) for row in shorter)
    return not any(map(is_false, same)) and missed <= len(shorter) // MISSES


def _line(row: Row) -> str:
    interval = "" if row["ci95"] is None else f" [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]"
    wrong = is_false(row) if row["pair"] == "same" else not is_told_apart(row)
    return (
        f"{row['trial']:3d} {row['pair']:8s} {row['protocol']:9s} {row['ratio']:.3f}{interval}"
        f"{' WRONG' if wrong else ''}"
    )


def _table(rows: Sequence[Row]) -> str:
    """One Markdown table: how often each protocol is right."""
    columns = (
        "protocol", "trials, same", f"false claims of {FALSE:.0%} or more", "worst", "sd of the ratio",
        "claims of any size", "trials, shorter", "told apart", "median ratio", "seconds a trial",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for protocol in PROTOCOLS:
        same = _select(rows, protocol, "same")
        shorter = _select(rows, protocol, "shorter")
        if not same or not shorter:
            continue
        off = [abs(row["ratio"] - 1) for row in same]
        cells = (
            protocol,
            str(len(same)),
            str(sum(map(is_false, same))),
            f"{max(off):.1%}",
            f"{np.std([row['ratio'] for row in same]):.2%}",
            "-" if same[0]["ci95"] is None else str(sum(row["claims"] for row in same)),
            str(len(shorter)),
            str(sum(map(is_told_apart, shorter))),
            f"{np.median([row['ratio'] for row in shorter]):.3f}",
            f"{np.median([row['seconds'] for row in (*same, *shorter)]):.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    clean = [row["clean_share"] for row in rows if "clean_share" in row]
    cores = ", ".join(map(str, sorted({row["cores"] for row in rows})))
    conditions = f"Cores that could be used: {cores}, one of them loaded by a child process."
    if clean:
        conditions += f" Runs in which the thread was hardly kept waiting: {np.median(clean):.0%} (median of the trials)."
    verdict = (
        f"{'Passed' if _passes(rows) else '**Failed**'}: the profiler must make no false claim of {FALSE:.0%} or more, and "
        f"miss one shorter network in {MISSES} at most. The usual way has no interval: it counts as telling the shorter "
        f"network apart where its medians differ by {FALSE:.0%} or more."
    )
    lines += ["", conditions, "", verdict]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
