"""Show that removal preserves the function of every network in the catalogue.

    python -m benchmarks.exactness --cache CACHE [--only model,...] [--sample] [--shard 0/2]
    python -m benchmarks.exactness --cache CACHE --kinds blocks --fractions 0.5,0.75

Each network is zeroed in three ways (`rows`, `rows-bn`, `coupled`, see masks.py; rows-bn is rows
with BatchNormalization left in place by the exporter) at 30, 50 and 80 %, its channels are removed
in three ways (constants carried on by carriers, by bias maps, and the first zero-padded to
multiples of 8), and the outputs are compared with those of the zeroed original, both in ONNX
Runtime with optimisation off.

With `--kinds blocks` the largest weights of each layer are regrouped into dense blocks instead,
which are computed block by block: in the form that the rules of the target choose (`rules`), and
in every form that fits, by turns (`turns`).

Verdicts:

- passed: within 1e-4 (float16: 5e-3) of the output's spread across five inputs, one of them
  constant and one the largest that stays finite, and every zero row that is left is explained;
- failed: not so, or a pass raised;
- incomplete: a row of zeros is left and neither a skip nor a carrier says why;
- collapsed: no way was found to zero the network that leaves it a spread of 1 % of its magnitude:
  nothing is proven;
- noisy: out of tolerance, but not by more than rounding does to the *original*: its outputs
  move as much when its weights change in their last bit, or when it is computed in double
  precision (a constant channel has the variance 0, and what rounding makes of it is divided by).
  Nothing is proven.

Rows go to a state file as they come; a run that is started again does what is missing, and
several shards may run side by side. Exit code 1 unless everything passed, `--lenient` lets
collapsed and noisy rows pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

import passes
from benchmarks import catalogue, masks, results
from benchmarks.calibrate import Weights, calibrate, run_in_double
from benchmarks.reference import (
    COLLAPSED,
    Agreement,
    Array,
    Feed,
    Reference,
    compare,
    draw,
    stretch,
)
from passes.planners.block_choice import Chosen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from passes.lowerings.alone import Case as LayerCase
    from passes.planners.carrying import Carry

Row: TypeAlias = dict[str, Any]

KINDS = ("rows", "rows-bn", "coupled")
FRACTIONS = (0.3, 0.5, 0.8)
BLOCKS = "blocks"
STAGES = {
    **dict.fromkeys(KINDS, ("carrier", "bias-map", "align")),
    BLOCKS: ("rules", "turns"),
}
TRIES = 4
NOISE_MARGIN = 4
TIMEOUT_S = 3600
QUANTISED = ("ddddocr-int8",)
"""Networks whose weights are integers: they may be refused, clearly, or must stay what they are."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A zeroed network with the inputs that it is judged on.

    Attributes:
        model: the zeroed original, serialised.
        feeds: five inputs.
        outputs: what the original makes of them.
        rows: how many rows were zeroed.
        spread: of the output that moves least, over its magnitude.
        noise: error of the original against itself with its weights changed in their last bit.
        tries: how often it was rebuilt.
        power: power of ten that the largest input is scaled up by.
    """

    model: bytes
    feeds: list[Feed]
    outputs: list[dict[str, Array]]
    rows: int
    spread: float
    noise: float
    tries: int
    power: int


def build_case(
    network: catalogue.Network, kind: str, fraction: float, cache: Path
) -> Case | None:
    """Zero a network so that it still tells inputs apart, as far as that is possible.

    Returns:
        the case; None if the network has no BatchNormalization and `kind` wants it.
    """
    load = network.unfolded if kind == "rows-bn" else network.load
    if load is None:
        return None
    best: Case | None = None
    for attempt in range(TRIES):
        model = load(cache)
        if kind == "rows-bn" and not any(
            node.op_type == "BatchNormalization" for node in model.graph.node
        ):
            return None
        case = _attempt(model, network, kind, fraction, attempt)
        # tell inputs apart first; then be as little at the mercy of rounding as can be
        if best is None or _worth(case) > _worth(best):
            best = case
        if case.spread >= COLLAPSED and case.noise < _tolerance(case.outputs) / NOISE_MARGIN:
            return case
    return best


def _worth(case: Case) -> tuple[float, float]:
    return min(case.spread, COLLAPSED), -case.noise


def _attempt(
    model: onnx.ModelProto, network: catalogue.Network, kind: str, fraction: float, attempt: int
) -> Case:
    """Zero and rescale once: real weights first as they are, later more and more gently."""
    mask: masks.Kind = "rows" if kind == "rows-bn" else kind  # type: ignore[assignment]
    rows = masks.zero(model, mask, fraction, seed=attempt, gentle=attempt >= 2)
    below = network.below
    if attempt or not network.trained:
        with_specs = Reference(model.SerializeToString()).inputs(network.shapes)
        calibrate(
            model, draw(with_specs, seed=10 + attempt, count=8, below=below), seed=attempt
        )
    data = model.SerializeToString()
    reference = Reference(data)
    feeds = draw(reference.inputs(network.shapes), seed=20 + attempt, below=below)
    large, power = stretch(reference, feeds[0], below=below)
    feeds.append(large)
    outputs = [reference(feed) for feed in feeds]
    _jitter(model)
    shaken = Reference(model.SerializeToString())
    found = compare(outputs, [shaken(feed) for feed in feeds])
    quiet = found.tolerance / NOISE_MARGIN
    while found.stretched > quiet and power > 0:
        # Finite, but decided by rounding (a Softmax of huge numbers that nearly tie): try less.
        large, power = stretch(reference, feeds[0], below=below, most=power - 1 - power // 4)
        feeds[-1], outputs[-1] = large, reference(large)
        found = compare(outputs, [shaken(feed) for feed in feeds])
    spread = compare(outputs, outputs).spread
    return Case(data, feeds, outputs, rows, spread, found.error, attempt, power)


def _tolerance(outputs: Sequence[Mapping[str, Array]]) -> float:
    half = any(array.dtype == np.float16 for array in outputs[0].values())
    return 5e-3 if half else 1e-4


def _jitter(model: onnx.ModelProto) -> None:
    """Change every weight, bias and other constant with several values by up to its last bit.

    Biases matter: the variance of a constant channel is all rounding, and a hand-made
    normalization divides by it.
    """
    random = np.random.default_rng(0)
    weights = Weights(model)
    for name in weights.tensors:
        if weights.is_floating(name) and weights[name].size > 1:
            array = weights[name]
            if (array == np.round(array)).all():
                continue  # scales of a Resize, on some way or other: sizes hang on them
            step = np.finfo(array.dtype).eps * random.uniform(-1, 1, array.shape)
            weights[name] = array * (1 + step)


def rounding(case: Case) -> float:
    """Error of the original itself, against the same graph computed in double precision.

    Slow: for cases where original and result disagree.
    """
    model = onnx.load_from_string(case.model)
    truth = []
    for feed, output in zip(case.feeds, case.outputs, strict=True):
        found = run_in_double(model, feed)
        truth.append({name: found[name].astype(array.dtype) for name, array in output.items()})
    return compare(truth, case.outputs).error


def rewrite(data: bytes, stage: str) -> tuple[onnx.ModelProto, list[passes.PassReport]]:
    """Remove the zero channels of a model as `stage` says.

    Raises:
        passes.PassError: the model cannot be handled.
    """
    model = ir.from_proto(onnx.load_from_string(data))
    carry: Carry = "bias-map" if stage == "bias-map" else "carrier"
    steps: list[passes.Pass] = [passes.Tidy(), passes.RemoveChannels(carry=carry)]
    if stage in STAGES[BLOCKS]:
        choose = by_turns if stage == "turns" else None
        steps += [
            passes.PermuteChannels(purpose="group-blocks"),
            passes.GroupBlocks(choose=choose),
        ]
    if stage == "align":
        steps.append(passes.AlignChannels(multiple=8))
    steps.append(passes.InferShapes())
    reports = [step(model) for step in steps]
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto, reports


def by_turns(cases: Sequence[LayerCase]) -> list[Chosen]:
    """Every form that fits a layer, one after the other."""
    return [
        Chosen(case.names[1 + index % (len(case.names) - 1)], "it is its turn")
        for index, case in enumerate(cases)
    ]


def unexplained(model: onnx.ModelProto, reports: Iterable[passes.PassReport]) -> list[str]:
    """Weights with more rows of zeros left than the skips about them account for."""
    said: dict[str, int] = {}
    for report in reports:
        for skip in report.skips:
            name, count = _skipped(skip.subject)
            said[name] = said.get(name, 0) + count
    left = []
    for node, name, zeros, rows in masks.zero_rows(model):
        accounted = max(said.get(key, 0) for key in (name, node.name, *node.output))
        if zeros > accounted:
            left.append(f"{name} ({zeros} of {rows}, {accounted} accounted for)")
    return left


def _skipped(subject: str) -> tuple[str, int]:
    """What a skip is about, and how many channels: "name: channels [1, 2, ... 40 in all]"."""
    found = re.fullmatch(r"(.*): channels? \[(.*)\]", subject, flags=re.DOTALL)
    if found is None:
        return subject, sys.maxsize  # about the whole of it
    total = re.search(r"(\d+) in all", found[2])
    return found[1], int(total[1]) if total else found[2].count(",") + 1


def judge(case: Case, stage: str) -> Row:
    """Rewrite one case and say what came of it."""
    row: Row = {
        "zeroed": case.rows,
        "spread": round(case.spread, 4),
        "noise": case.noise,
        "tries": case.tries,
        "power": case.power,
    }
    start = time.perf_counter()
    try:
        model, reports = rewrite(case.model, stage)
    except passes.PassError as error:
        return {**row, "verdict": "failed", "detail": f"{type(error).__name__}: {error}"[:300]}
    row["seconds"] = round(time.perf_counter() - start, 2)
    row["left"] = round(_parameters(model) / _parameters(onnx.load_from_string(case.model)), 4)
    try:
        session = Reference(model.SerializeToString())
        found = compare(case.outputs, [session(feed) for feed in case.feeds])
    except Exception as error:  # noqa: BLE001 - whatever the runtime raises, the model is broken
        return {**row, "verdict": "failed", "detail": f"{type(error).__name__}: {error}"[:300]}
    row["error"] = found.error
    row["output"] = found.output
    # Padding puts rows of zeros in, and blocks hold those that no removal could take; they need not explain them.
    missing = [] if stage in {"align", *STAGES[BLOCKS]} else unexplained(model, reports)
    row["unexplained"] = len(missing)
    if missing:
        row["detail"] = ", ".join(missing)[:300]
    return {**row, "verdict": _verdict(case, found, missing=bool(missing))}


def _verdict(case: Case, found: Agreement, *, missing: bool) -> str:
    if case.spread < COLLAPSED:
        return "collapsed" if found.error <= max(found.tolerance, 1.0) else "failed"
    if not found.passed:
        if found.error <= NOISE_MARGIN * case.noise or found.error <= 2 * rounding(case):
            return "noisy"
        return "failed"
    return "incomplete" if missing else "passed"


def _parameters(model: onnx.ModelProto) -> int:
    count = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            count += sum(int(np.prod(a.t.dims)) for a in node.attribute if a.name == "value")
    return count


# -- running -----------------------------------------------------------------------------------


def run_model(name: str, plan: Sequence[tuple[str, float]], state: Path, cache: Path) -> None:
    """Do the cases of one network, and append a row for each to the state file."""
    network = catalogue.load(name)
    for kind, fraction in plan:
        key = {"model": name, "kind": kind, "fraction": fraction}
        try:
            case = build_case(network, kind, fraction, cache)
        except Exception as error:  # noqa: BLE001 - one network must not end the run
            detail = f"not built: {type(error).__name__}: {error}"[:300]
            print(f"{name} {kind} {fraction:.0%}: {detail}", file=sys.stderr, flush=True)
            _append(
                state,
                [
                    {**key, "stage": s, "verdict": "failed", "detail": detail}
                    for s in STAGES[kind]
                ],
            )
            continue
        if case is None:
            _append(state, [{**key, "stage": s, "verdict": "absent"} for s in STAGES[kind]])
            continue
        rows = []
        for stage in STAGES[kind]:
            try:
                row = judge(case, stage)
            except Exception as error:  # noqa: BLE001 - a crash of ours is a row, and a failed one
                detail = f"{type(error).__name__}: {error}"[:300]
                row = {"verdict": "failed", "detail": detail}
            if name in QUANTISED and row.get("detail", "").startswith(("UnsupportedGraph",)):
                row["verdict"] = "passed"
            rows.append({**key, "stage": stage, **row})
            print(_line(rows[-1]), file=sys.stderr, flush=True)
        _append(state, rows)


def _append(state: Path, rows: Iterable[Row]) -> None:
    """Add rows in one write, so that several processes may share the file."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with state.open("a") as file:
        file.write(text)


def _read(state: Path) -> list[Row]:
    """The latest row of each case."""
    lines = state.read_text().splitlines() if state.exists() else []
    rows = {_key(row): row for row in map(json.loads, lines)}
    return list(rows.values())


def _key(row: Row) -> tuple[str, str, float, str]:
    return row["model"], row["kind"], row["fraction"], row["stage"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("build/benchmarks/exactness"))
    parser.add_argument(
        "--state", type=Path, help="file of rows, default CACHE/exactness.jsonl"
    )
    parser.add_argument("--only", help="networks, comma-separated")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument("--sample", action="store_true", help="a few networks at 50 %%")
    parser.add_argument("--shard", default="0/1", help="which part of how many")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--retry", action="store_true", help="redo rows that did not pass")
    parser.add_argument("--lenient", action="store_true", help="collapsed and noisy rows pass")
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    state = options.state or options.cache / "exactness.jsonl"
    if options.sample:
        options.only = options.only or ",".join(catalogue.SAMPLE)
        options.fractions = "0.5"
    every = options.only.split(",") if options.only else list(catalogue.names())
    plan = [
        (kind, float(f))
        for kind in options.kinds.split(",")
        for f in options.fractions.split(",")
    ]
    if options.fresh and not options.child:
        state.unlink(missing_ok=True)
    rows = _read(state)
    # Old rows count only for what is asked for, and not at all if they are to be retried.
    kept = {
        _key(row) for row in rows if not options.retry or row["verdict"] in {"passed", "absent"}
    }
    if options.child:
        todo = [
            (kind, f)
            for kind, f in plan
            if any((options.child, kind, f, stage) not in kept for stage in STAGES[kind])
        ]
        run_model(options.child, todo, state, options.cache)
        return 0
    part, parts = map(int, options.shard.split("/"))
    for name in every[part::parts]:
        missing = [
            (k, f) for k, f in plan if any((name, k, f, s) not in kept for s in STAGES[k])
        ]
        if missing:
            _spawn(name, missing, options, state)
    wanted = {
        (name, k, f, s) for name in every[part::parts] for k, f in plan for s in STAGES[k]
    }
    rows = [row for row in _read(state) if _key(row) in wanted]
    table = _table(rows)
    print(table)
    if not options.only and parts == 1 and not options.sample:
        if options.kinds == BLOCKS:
            results.save("block_exactness", rows, "Exactness of block lowering", table)
        else:
            results.save("exactness", rows, "Exactness of channel removal", table)
    return 0 if _succeeded(rows, wanted, lenient=options.lenient) else 1


def _spawn(
    name: str, plan: Sequence[tuple[str, float]], options: argparse.Namespace, state: Path
) -> None:
    """Do one network in a process of its own, whose memory and crashes are its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.exactness", "--child", name]
    command += ["--cache", str(options.cache), "--state", str(state)]
    command += ["--kinds", options.kinds, "--fractions", options.fractions]
    command += ["--retry"] if options.retry else []
    try:
        code = subprocess.run(command, timeout=TIMEOUT_S, check=False).returncode
        detail = f"the process ended with code {code}"
    except subprocess.TimeoutExpired:
        code, detail = 1, f"not done in {TIMEOUT_S} s"
    if code:
        done = {_key(row) for row in _read(state)}
        _append(
            state,
            [
                {
                    "model": name,
                    "kind": k,
                    "fraction": f,
                    "stage": s,
                    "verdict": "failed",
                    "detail": detail,
                }
                for k, f in plan
                for s in STAGES[k]
                if (name, k, f, s) not in done
            ],
        )


def _succeeded(rows: Sequence[Row], wanted: Iterable[Any], *, lenient: bool) -> bool:
    """Whether every case that was wanted has a row, and every row passed."""
    fine = {"passed", "absent", *(("collapsed", "noisy") if lenient else ())}
    return {_key(row) for row in rows} == set(wanted) and all(
        r["verdict"] in fine for r in rows
    )


def _line(row: Row) -> str:
    error = f"{row['error']:.1e}" if "error" in row else "-"
    return (
        f"{row['model']} {row['kind']} {row['fraction']:.0%} {row['stage']}: {row['verdict']}, "
        f"error {error}, spread {row.get('spread', 0):.2g}, noise {row.get('noise', 0):.0e}, "
        f"{row.get('left', 1):.3f} left {row.get('detail', '')}"
    )


def _table(rows: Sequence[Row]) -> str:
    """Worst error of each network and way of zeroing, and how the verdicts fell."""
    there = {row["kind"] for row in rows}
    kinds = [kind for kind in STAGES if kind in there]
    lines = [
        "| network | " + " | ".join(kinds) + " | passed | |",
        "|---" * (len(kinds) + 3) + "|",
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name and row["verdict"] != "absent"]
        cells = []
        for kind in kinds:
            errors = [r["error"] for r in mine if r["kind"] == kind and "error" in r]
            cells.append(f"{max(errors):.1e}" if errors else "")
        passed = sum(row["verdict"] == "passed" for row in mine)
        others = sorted({row["verdict"] for row in mine} - {"passed"})
        loud = ", ".join(f"**{sum(r['verdict'] == v for r in mine)} {v}**" for v in others)
        lines.append(f"| {name} | {' | '.join(cells)} | {passed} of {len(mine)} | {loud} |")
    counts = {
        v: sum(row["verdict"] == v for row in rows) for v in {row["verdict"] for row in rows}
    }
    lines += [
        "",
        "Cases: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())),
    ]
    for row in rows:
        if row["verdict"] not in {"passed", "absent"}:
            lines.append(f"- {_line(row)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
