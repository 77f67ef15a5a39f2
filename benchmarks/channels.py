"""How fast a network is whose zeroed channels were removed, against what it could be.

    python -m benchmarks.channels [--only model,...] [--sparsities 58] [--batches 1,8] [--quick]

For each network, share of zero weights and batch size six models run against each other in ONNX
Runtime, on one thread, interleaved, with idle threads asleep and sessions built several times:

- dense;
- built, at counts that are multiples of 16: nobody can ask for more;
- optimized: what `deploykit optimize` makes of the dense network zeroed down to these counts;
- as is: the zeroed channels removed, at the odd counts that a pruning method leaves;
- all to 16: the same, zero-padded to multiples of 16 everywhere;
- choice: what `deploykit optimize` makes of it when it may choose.

Times are ratios of thread-CPU time with 95 % intervals. `optimized` and `built` run against each
other once more, by themselves, until their ratio is known to 1 % either way: it is the precision
that ends this, not the result. A row passes if `optimized` is as fast as `built` (upper end at most
1.02), if `choice` is not proven slower than the best of dense, as is
and all to 16, and if it meets the TARGETS. Rows go to a state file; a run that is started again
does what is missing. Exit code 1 if a row does not pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

import passes
from benchmarks import nets, results
from deploykit.profile import Settings, measure
from deploykit.profile.statistics import Timings, paired_ratio, stands

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.profile import Measurement
    from deploykit.profile.statistics import Ratio

Row: TypeAlias = dict[str, Any]

TARGETS: Mapping[str, float] = {"mobilenetv2": 0.62, "resnet50": 0.53, "resnet18": 0.57}
"""Share of the dense time that `choice` may take at 58 %."""

AS_FAST = 1.02
PRECISION = 1.01
"""The ratio of `optimized` to `built` is measured until its interval is this wide, either way: half of what
it is held against."""

PATIENCE = 16
"""Measurements after which it is taken as it is."""

SIZES = {"resnet18-cifar": 32, "vgg16": 32}


def run_case(name: str, sparsity: int, batch: int, options: argparse.Namespace) -> Row:
    """Make the six models of one case and time them against each other."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        aligned = nets.uniform(sparsity / 100, "n16")
        odd = nets.uniform(sparsity / 100, "exact")
        dense = nets.build(name, batch=batch)
        built = nets.build(name, keep=aligned, batch=batch)
        flops = {"built": nets.macs(built) / nets.macs(dense)}
        flops["as is"] = nets.macs(nets.build(name, keep=odd, batch=batch)) / nets.macs(dense)
        paths = {label: folder / f"{label}.onnx" for label in ("dense", "built")}
        ir.save(dense, paths["dense"])
        ir.save(built, paths["built"])
        del dense, built
        chosen = {}
        for label, keep in (("optimized", aligned), ("choice", odd)):
            source = folder / f"{label}-zeroed.onnx"
            ir.save(nets.zeroed(name, keep=keep, batch=batch), source)
            chosen[label] = _optimize(source, folder / label, options)
            paths[label] = folder / label / "model.onnx"
            if label == "choice":
                for plain, multiple in (("as is", None), ("all to 16", 16)):
                    paths[plain] = folder / f"{plain}.onnx"
                    _remove(source, paths[plain], multiple)
        size = SIZES.get(name, 224)
        feed = np.random.default_rng(0).standard_normal(
            (batch, 3, size, size), dtype=np.float32
        )
        taken = measure(
            paths, {"input": feed}, baseline="dense", threads=1, settings=_settings(options)
        )
        pair = _measure_pair({key: paths[key] for key in ("built", "optimized")}, feed, options)
    return {
        "model": name,
        "sparsity": sparsity,
        "batch": batch,
        "chosen": chosen,
        "flops": {label: round(ratio, 4) for label, ratio in flops.items()},
        **_judge(name, sparsity, taken, pair),
    }


def _measure_pair(
    paths: Mapping[str, Path], feed: np.ndarray[Any, Any], options: argparse.Namespace
) -> Ratio:
    """Time of `optimized` over that of `built`, known to `PRECISION` unless the patience ends."""
    parts: list[Mapping[str, Timings]] = []
    settings = _settings(options)
    for part in range(1 if options.quick else PATIENCE):
        again = dataclasses.replace(settings, seed=part)
        taken = measure(paths, {"input": feed}, baseline="built", threads=1, settings=again)
        parts.append(taken.samples)
        built, optimized = (pooled([each[key] for each in parts]) for key in paths)
        ratio = paired_ratio(built, optimized, threads=1, clock="cpu")
        if ratio.hi / ratio.lo <= PRECISION**2:
            break
    return ratio


def pooled(parts: Sequence[Timings]) -> Timings:
    """Samples of several measurements as those of one, whose builds follow each other."""
    counts = [int(part.rebuild.max()) + 1 for part in parts]
    starts = np.cumsum([0, *counts[:-1]])
    return Timings(
        np.concatenate([part.rebuild + s for part, s in zip(parts, starts, strict=True)]),
        np.concatenate([part.wall_s for part in parts]),
        np.concatenate([part.cpu_s for part in parts]),
    )


def _settings(options: argparse.Namespace) -> Settings:
    if options.quick:
        return Settings(warmup_s=0.05, duration_s=0.3, min_rounds=6, rebuilds=2)
    return Settings(duration_s=options.duration, min_rounds=20, rebuilds=options.rebuilds)


def _optimize(source: Path, out: Path, options: argparse.Namespace) -> str:
    """Run the command as a user would; give the name of the form that it chose.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "deploykit", "optimize", str(source), "-o", str(out)]
    command += ["--threads", "1", "--json"]
    command += ["--duration", "0.2" if options.quick else str(options.duration)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}"
        raise RuntimeError(msg)
    report = json.loads(done.stdout)
    names = [entry["name"] for entry in report["candidates"] if entry["chosen"]]
    return names[0] if names else "original"


def _remove(source: Path, path: Path, multiple: int | None) -> None:
    model = ir.load(source)
    passes.Tidy()(model)
    passes.RemoveChannels()(model)
    if multiple is not None:
        passes.AlignChannels(multiple=multiple)(model)
    passes.InferShapes()(model)
    ir.save(model, path)


def _judge(name: str, sparsity: int, taken: Measurement, pair: Ratio) -> Row:
    def ratio(label: str, baseline: str = "dense") -> list[float]:
        found = paired_ratio(
            taken.samples[baseline], taken.samples[label], threads=1, clock="cpu"
        )
        return [round(number, 4) for number in (found.median, found.lo, found.hi)]

    ratios = {label: ratio(label) for label in taken.samples if label != "dense"}
    rivals = {"dense": 1.0, **{key: ratios[key][0] for key in ("as is", "all to 16")}}
    best = min(rivals, key=lambda key: rivals[key])
    against_best = paired_ratio(
        taken.samples[best], taken.samples["choice"], threads=1, clock="cpu"
    )
    against_built = [round(number, 4) for number in (pair.median, pair.lo, pair.hi)]
    target = TARGETS.get(name) if sparsity == 58 else None
    failures = []
    if against_built[2] > AS_FAST:
        failures.append(f"optimized is not proven as fast as built: {against_built}")
    if not stands(against_best):
        failures.append(f"choice is slower than {best}")
    if target is not None and ratios["choice"][0] > target:
        failures.append(f"choice takes {ratios['choice'][0]} of dense, more than {target}")
    return {
        "dense_ms": round(1000 * float(np.median(taken.samples["dense"].cpu_s)), 3),
        "ratios": ratios,
        "optimized_to_built": against_built,
        "optimized_to_built_builds": pair.rebuilds,
        "best": best,
        "choice_to_best": [
            round(number, 4)
            for number in (against_best.median, against_best.lo, against_best.hi)
        ],
        "target": target,
        "rounds": int(taken.samples["dense"].rebuild.size),
        "load": round(os.getloadavg()[0], 2),
        "failures": failures,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(nets.NAMES), help="networks")
    parser.add_argument("--sparsities", default=",".join(map(str, nets.SPARSITIES)))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--quick", action="store_true", help="too short to prove anything")
    parser.add_argument("--duration", type=float, default=3.0, help="seconds for each model")
    parser.add_argument("--rebuilds", type=int, default=5, help="of the sessions")
    parser.add_argument("--state", type=Path, default=Path("build/benchmarks/channels.jsonl"))
    parser.add_argument("--scratch", type=Path, help="where the models go for a while")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    options = parser.parse_args(arguments)
    if options.fresh:
        options.state.unlink(missing_ok=True)
    options.state.parent.mkdir(parents=True, exist_ok=True)
    rows = _read(options.state, quick=options.quick)
    cases = [
        (name, int(sparsity), int(batch))
        for name in options.only.split(",")
        for batch in options.batches.split(",")
        for sparsity in options.sparsities.split(",")
    ]
    for case in cases:
        if case in rows:
            continue
        row = {**run_case(*case, options), "quick": options.quick}
        with options.state.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows[case] = row
        print(_line(row), file=sys.stderr, flush=True)
    wanted = [rows[case] for case in cases]
    table = _table(wanted)
    print(table)
    whole = len(nets.NAMES) * len(nets.SPARSITIES) * 2
    if not options.quick and len(cases) == whole:
        results.save("channels", wanted, "Speed after channel removal", table)
    return 1 if any(row["failures"] for row in wanted) else 0


def _read(state: Path, *, quick: bool) -> dict[tuple[str, int, int], Row]:
    """The latest row of each case; quick rows count for quick runs only."""
    lines = state.read_text().splitlines() if state.exists() else []
    rows = [row for row in map(json.loads, lines) if row["quick"] == quick]
    return {(row["model"], row["sparsity"], row["batch"]): row for row in rows}


def _said(ratio: Sequence[float]) -> str:
    return f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"


def _line(row: Row) -> str:
    failures = f" FAILED: {'; '.join(row['failures'])}" if row["failures"] else ""
    return (
        f"{row['model']} {row['sparsity']} % batch {row['batch']}: optimized to built "
        f"{_said(row['optimized_to_built'])}, choice {_said(row['ratios']['choice'])} "
        f"({row['chosen']['choice']}){failures}"
    )


def _table(rows: Sequence[Row]) -> str:
    """One Markdown table a network and batch size; ratios are to the dense network."""
    columns = (
        "zeros, %", "FLOPs, n16", "built, n16", "optimized, n16", "optimized / built",
        "time / FLOPs", "FLOPs, odd", "as is, odd", "all to 16", "choice", "of", "choice / best",
        "",
    )  # fmt: skip
    lines = []
    for name, batch in dict.fromkeys((row["model"], row["batch"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["batch"]) == (name, batch)]
        dense = float(np.median([row["dense_ms"] for row in mine]))
        lines += [f"### {name}, batch {batch}: dense {dense:.2f} ms CPU", ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in mine:
            ratios, flops = row["ratios"], row["flops"]
            cells = (
                str(row["sparsity"]),
                f"{flops['built']:.3f}",
                f"{ratios['built'][0]:.3f}",
                _said(ratios["optimized"]),
                _said(row["optimized_to_built"]),
                f"{ratios['optimized'][0] / flops['built']:.2f}",
                f"{flops['as is']:.3f}",
                f"{ratios['as is'][0]:.3f}",
                f"{ratios['all to 16'][0]:.3f}",
                _said(ratios["choice"]),
                row["chosen"]["choice"],
                f"{_said(row['choice_to_best'])} of {row['best']}",
                "**failed**" if row["failures"] else "passed",
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += [f"- {_line(row)}" for row in rows if row["failures"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
