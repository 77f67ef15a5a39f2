"""The time that a pruned network saves, from end to end, at the sparsities of the paper that this project sets out from.

    python -m benchmarks.headline [--only NETWORK[/STRUCTURE[/SPARSITY]],...] [--batches 1,8] [--minutes 60] [--quick]
    python -m benchmarks.headline --peers .venv-bench/bin/python        torch-pruning as well
    python -m benchmarks.headline --tickets build/benchmarks/tickets    and tickets that benchmarks.tickets found
    python -m benchmarks.headline --layers                              planted blocks, and nothing else

For each network and sparsity of the paper's tables (`paper.py`), and for 1 and 8 pictures at a time:

- channel-wise (refill): whole coupled channels are zero, at counts that are multiples of what the machine likes;
- group-wise (regroup): all weights outside of four blocks a layer are zero; `blocks.py` says how they are drawn.

`deploykit optimize` gets the zeroed network, with all of its default passes, and what it hands out is timed against the dense
network: in ONNX Runtime, on one thread, warmed up, in turns, sessions built several times; ratios of thread-CPU time with 95 %
intervals. Beside that stand

- the figure that the paper prints, of other machinery: it is beaten if our whole interval is above it;
- the multiply-adds saved, and those with weights outside of blocks, which is all that blocks alone can save;
- an equally fast dense network: equally narrow everywhere, at the width where it takes the time that the optimized one takes.
  It is what one would get by training a smaller network in the first place;
- torch-pruning at the same channel-wise sparsity, as it comes and with `round_to`, for one picture at a time.

A row fails if its outputs differ, or if it is one of the targets and the printed figure is not beaten: group-wise, ResNet-18 at
78 % and VGG-16 at 80 %; channel-wise, ResNet-50 at 74 %, against the figure of the group-wise one. `--layers`: see `planted.py`.

Rows go to a state file; started again, it does what is missing. Exit code 1 if a row fails, 3 if rows are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from benchmarks import blocks, headline_tables, nets, planted, results
from benchmarks.paper import CASES
from benchmarks.saving import Bench, Row, feed, percent, saved, time_ratio, write
from deploykit.profile import measure
from passes import targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx_ir as ir

    from benchmarks.paper import Case

Key: TypeAlias = tuple[str, ...]
Make: TypeAlias = "Callable[[], Row]"

INCOMPLETE = 3
BATCHES = "1,8"

AS_FAST = 0.03
PROBES = 6
"""Networks that are timed to find one that is equally fast."""


def run_case(case: Case, batch: int, options: argparse.Namespace) -> Row:
    """Zero, optimize and time one network."""
    dense = nets.build(case.network, batch=batch)
    zeroed, about = _zeroed(case, batch, options.form, nets.macs(dense) // batch)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        row = {"kind": "network", "label": case.label, "batch": batch, **about}
        row |= options.bench.run(dense, zeroed, folder)
        if "saved" in row:
            wanted = 1 - row["saved"][0]
            row["narrow"] = _equally_fast(case.network, batch, wanted, folder, options.bench)
    row["beaten"] = {
        key: _beaten(row.get("saved"), figure) for key, figure in case.printed.items()
    }
    row["failures"] = _failures(case, row)
    return row


def _zeroed(case: Case, batch: int, form: blocks.Form, macs: int) -> tuple[ir.Model, Row]:
    """The network with zeros, and what is in it; `macs` are those of the dense one, for one picture."""
    if case.structure == "channel-wise":
        multiple = targets.detect().rounding
        keep = blocks.aligned_counts(case.network, case.sparsity / 100, multiple)
        reached = blocks.sparsity_of(case.network, keep)
        return nets.zeroed(case.network, keep=keep, batch=batch), {"reached": round(reached, 4)}
    make = blocks.group_wise(case.network, case.sparsity / 100, form=form, scale=case.scale)
    made = make(batch)
    about = {
        "reached": round(made.sparsity, 4),
        "blocked": [made.blocked, made.layers],
        "kept": round(made.kept, 4),
        "unread": round(made.unread, 4),
        "bound": round(1 - made.macs / macs, 4),
    }
    return made.model, about


def _beaten(interval: Sequence[float] | None, printed: float) -> str:
    """Whether more is saved than is printed: by the whole interval, by none of it, or in between."""
    if interval is None or 100 * interval[2] <= printed:
        return "no"
    return "yes" if 100 * interval[1] > printed else "not proven"


def _failures(case: Case, row: Row) -> list[str]:
    if "saved" not in row:
        return [f"the outputs differ: error {row['error']}"]
    missed = {key: case.printed[key] for key, word in row["beaten"].items() if word != "yes"}
    if not case.is_target or not missed:
        return []
    figures = ", ".join(f"{figure} % ({key})" for key, figure in missed.items())
    return [f"saves {percent(row['saved'])} %, and has to beat {figures}"]


def _equally_fast(name: str, batch: int, wanted: float, folder: Path, bench: Bench) -> Row:
    """The uniformly narrow network that takes the time of the optimized one, within 3 % if counts allow.

    Time grows with the width, but not in proportion: each network that is timed says which one to try next.

    Args:
        name: of the network.
        batch: pictures at a time.
        wanted: time of the optimized network over that of the dense one.
        folder: with out/model.onnx, the optimized network.
        bench: how long models are timed.
    """
    layers, dense = nets.layers(name), nets.counts(name)
    found = blocks.widths(name, targets.detect().rounding)
    macs = [sum(layer.macs(counts) for layer in layers) for counts in found]
    channels = [sum(counts.values()) - counts["input"] for counts in (*found, dense)]
    lo, hi, goal = 0, len(found) - 1, wanted * macs[-1]
    best: Row = {}
    for _ in range(PROBES):
        index = min(range(lo, hi + 1), key=lambda each: abs(macs[each] - goal))
        model = nets.build(name, keep=found[index], batch=batch)
        path = write(model, folder / "narrow.onnx")
        ratio = time_ratio(path, folder / "out" / "model.onnx", feed(model), bench.probing)
        if not best or abs(math.log(ratio)) < abs(math.log(best["time"])):
            best = {
                "time": round(ratio, 4),
                "width": round(channels[index] / channels[-1], 4),
                "weights_left": round(1 - blocks.sparsity_of(name, found[index]), 4),
                "macs_left": round(macs[index] / macs[-1], 4),
            }
        if abs(ratio - 1) <= AS_FAST:
            break
        lo, hi = (index + 1, hi) if ratio < 1 else (lo, index - 1)
        if lo > hi:
            break
        goal = macs[index] / ratio
    return best


def run_peer(case: Case, batch: int, options: argparse.Namespace) -> Row:
    """Time what torch-pruning makes of the dense network at the same sparsity.

    Raises:
        RuntimeError: it failed.
    """
    multiple = targets.detect().rounding
    row: Row = {"kind": "peer", "label": case.label, "batch": batch, "round_to": multiple}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        dense = nets.build(case.network, batch=batch)
        paths = {"dense": write(dense, Path(folder) / "dense.onnx")}
        for label, extra in (("default", []), ("rounded", ["--round-to", str(multiple)])):
            paths[label] = Path(folder) / f"{label}.onnx"
            command = [options.peers, "-W", "ignore", "-m", "benchmarks.peer", case.network]
            command += [str(case.sparsity / 100), paths[label], "--batch", str(batch), *extra]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                msg = f"{command} ended with {done.returncode}: {done.stderr[-500:]}"
                raise RuntimeError(msg)
            row[label] = json.loads(done.stdout.strip().splitlines()[-1])
        settings = options.bench.settings
        taken = measure(paths, feed(dense), baseline="dense", threads=1, settings=settings)
    for label in ("default", "rounded"):
        row[label]["saved"] = saved(taken, label)
    return {**row, "failures": []}


TICKETS = ("fashion-resnet8", "fashion-vgg32")
ARMS = ("refill", "regroup-channel")


def find_tickets(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Tickets of the first seed that are there: network, structure, density of the mask."""
    from benchmarks import tickets

    for name in TICKETS:
        for arm in ARMS:
            for density in tickets.DENSITIES:
                if _ticket(folder, name, arm, density).exists():
                    yield name, arm, density


def _ticket(folder: Path, name: str, arm: str, density: float) -> Path:
    return folder / name / "seed0" / f"{arm}-{density}.safetensors"


def run_ticket(name: str, arm: str, density: float, options: argparse.Namespace) -> Row:
    """Export, optimize and time a ticket."""
    from benchmarks import tickets
    from deploykit.ticket import Ticket

    masks = Ticket.load(_ticket(options.tickets, name, arm, density)).masks
    kept = np.concatenate([mask.ravel() for mask in masks.values()])
    found = tickets.time_saved(name, 0, arm, density, options.tickets)
    lo, hi = found["ci95"]
    return {
        "kind": "ticket",
        "ticket": f"{name} {arm} {density:g}",
        "reached": round(1 - float(kept.mean()), 4),
        "saved": [round(1 - number, 4) for number in (found["ratio"], hi, lo)],
        "flops_saved": round(1 - found["macs"], 4),
        "parameters_left": found["parameters"],
        "verdict": found["verdict"],
        "error": found["error"],
        "failures": ["the outputs differ"] if found["verdict"] == "differs" else [],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; return the exit code."""
    options = _options(arguments)
    state: Path = options.state
    if options.fresh:
        state.unlink(missing_ok=True)
    state.parent.mkdir(parents=True, exist_ok=True)
    lines = state.read_text().splitlines() if state.exists() else []
    rows: dict[Key, Row] = {
        tuple(row["key"]): row
        for row in map(json.loads, lines)
        if row["quick"] == options.quick
    }
    wanted = dict(_wanted(options))
    end = time.monotonic() + 60 * options.minutes
    for key, make in wanted.items():
        if key in rows:
            continue
        if time.monotonic() > end:
            break
        rows[key] = {"key": key, "quick": options.quick, **make()}
        with state.open("a") as file:
            file.write(json.dumps(rows[key]) + "\n")
        print(_line(rows[key]), file=sys.stderr, flush=True)
    done = [rows[key] for key in wanted if key in rows]
    text = (headline_tables.layers_table if options.layers else headline_tables.table)(done)
    print(text)
    if options.plot is not None and not options.layers:
        headline_tables.plot(done, options.plot)
    missing = len(wanted) - len(done)
    if missing:
        print(f"{missing} rows are missing: start it again.", file=sys.stderr)
    if done and not (options.quick or options.only) and options.form == blocks.FORM:
        lacking = (
            f"{missing} of {len(wanted)} rows were not measured yet.\n\n" if missing else ""
        )
        _save(done, lacking + text, options)
    if any(row["failures"] for row in done):
        return 1
    return INCOMPLETE if missing else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="rows, as resnet18-cifar/group-wise/78")
    parser.add_argument("--batches", default=BATCHES)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so long")
    parser.add_argument("--quick", action="store_true", help="too short to prove anything")
    parser.add_argument("--layers", action="store_true", help="planted blocks")
    parser.add_argument("--form", default=blocks.FORM, choices=("free", "balanced", "disjoint"))
    parser.add_argument("--peers", help="Python of an environment with torch-pruning")
    parser.add_argument("--tickets", type=Path, help="folder of benchmarks.tickets")
    parser.add_argument("--duration", type=float, default=3.0, help="seconds for each model")
    parser.add_argument("--rebuilds", type=int, default=5, help="of the sessions")
    parser.add_argument("--plot", type=Path, help="a picture of the rows that are there")
    parser.add_argument("--state", type=Path, default=Path("build/benchmarks/headline.jsonl"))
    parser.add_argument("--scratch", type=Path, help="where the models go for a while")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    options = parser.parse_args(arguments)
    options.bench = Bench(options.duration, options.rebuilds, options.quick)
    return options


def _wanted(options: argparse.Namespace) -> Iterator[tuple[Key, Make]]:
    """What there is to do: the key of each row, and what makes it."""
    asked = [token.split("/") for token in options.only.split(",") if token]
    work = _layers(options) if options.layers else _networks(options)
    for label, key, make in work:
        parts = label.split("/")
        if not asked or any(parts[: len(token)] == token for token in asked):
            yield key, make


def _layers(options: argparse.Namespace) -> Iterator[tuple[str, Key, Make]]:
    for case in planted.cases():

        def make(case: planted.Planted = case) -> Row:
            row = planted.run(case, options.bench, options.scratch)
            return {"kind": "layers", "label": case.label, **row}

        yield case.label, ("layers", case.label), make


def _networks(options: argparse.Namespace) -> Iterator[tuple[str, Key, Make]]:
    for case in CASES:
        for batch in map(int, options.batches.split(",")):

            def make(case: Case = case, batch: int = batch) -> Row:
                return run_case(case, batch, options)

            def make_peer(case: Case = case, batch: int = batch) -> Row:
                return run_peer(case, batch, options)

            yield case.label, ("network", case.label, str(batch), options.form), make
            if options.peers is not None and case.structure == "channel-wise" and batch == 1:
                yield case.label, ("peer", case.label, str(batch)), make_peer
    for ticket in find_tickets(options.tickets) if options.tickets is not None else ():

        def make_ticket(ticket: tuple[str, str, float] = ticket) -> Row:
            return run_ticket(*ticket, options)

        key = tuple(map(str, ticket))
        yield "/".join(key), ("ticket", *key), make_ticket


def _line(row: Row) -> str:
    parts = [row, *(row.get(key, {}) for key in ("default", "rounded"))]
    said = ", ".join(f"saves {percent(part['saved'])} %" for part in parts if "saved" in part)
    failures = f" FAILED: {'; '.join(row['failures'])}" if row["failures"] else ""
    return f"{' '.join(row['key'])}: {said}{failures}"


def _save(rows: Sequence[Row], text: str, options: argparse.Namespace) -> None:
    if options.layers:
        results.save("headline-layers", rows, "Planted blocks, lowered", text)
    elif options.batches == BATCHES:
        headline_tables.plot(rows, results.FOLDER / "headline.svg")
        text = f"![time saved, in percent](headline.svg)\n\n{text}"
        results.save("headline", rows, "Time saved by pruned networks, from end to end", text)


if __name__ == "__main__":
    sys.exit(main())
