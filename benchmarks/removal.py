"""Remove the zeroed channels of twelve networks: this project beside OpenVINO and torch-pruning.

    python -m benchmarks.removal --cache CACHE [--only model,...] [--carry carrier,bias-map]

Writes the inputs if they are not there (see zeroed.py), runs every tool on every model in a
process of its own, and prints one table; results/removal.json and .md hold it, with device and
date. A row passes if the result is exact and as small as it has to be, see LIMITS. Exit code 1
if one does not.

Exact: on five inputs (one constant, one the largest that stays finite) the outputs are, in ONNX
Runtime with optimisation off, within 1e-4 of their spread across inputs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir as ir

import passes
from benchmarks import results
from benchmarks.reference import Reference, compare, draw, stretch
from benchmarks.zeroed import MODELS, VARIANTS, parameters, read_reach, write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Row: TypeAlias = dict[str, Any]

LIMITS: Mapping[str, float] = {
    "resnet18": 0.261,
    "vgg16_bn": 0.255,
    "resnet50": 0.270,
    "mobilenet_v2": 0.348,
    "densenet121": 0.282,
    "resnext50": 0.271,
    "googlenet": 0.289,
    "yolo_like": 0.440,
    "unet": 0.251,
    "efficientnet_b0": 0.320,
    "shufflenet_v2": 0.847,
    "vit_b_16": 0.672,
}
"""Share of the parameters that may be left of a clean model: the best of the peers, or `reach`."""

ROUNDING = 0.0005  # the limits have three digits
OURS = ("carrier", "bias-map")
TIMEOUT_S = 900


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("build/benchmarks/zeroed"))
    parser.add_argument("--only", default=",".join(MODELS), help="models, comma-separated")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="clean, wonly")
    parser.add_argument("--carry", default="carrier", help="carrier, bias-map, or both")
    parser.add_argument("--no-peers", action="store_true", help="this project alone")
    parser.add_argument(
        "--child", nargs=3, metavar=("TOOL", "MODEL", "OUT"), help=argparse.SUPPRESS
    )
    options = parser.parse_args(arguments)
    if options.child:
        tool, model, out = options.child
        print(json.dumps(_TOOLS[tool](Path(model), Path(out))))
        return 0
    carries = options.carry.split(",")
    tools = [*carries, *([] if options.no_peers else ["openvino"])]
    rows: list[Row] = []
    for name in options.only.split(","):
        for variant in options.variants.split(","):
            path = write(name, variant, options.cache)
            for tool in tools:
                rows.append(_row(name, variant, tool, path))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
            if not options.no_peers:
                rows.append(_torch_pruning(name, variant, options.cache))
                print(_line(rows[-1]), file=sys.stderr, flush=True)
    _judge(rows)
    print(_table(rows))
    if options.only == ",".join(MODELS) and options.variants == ",".join(VARIANTS):
        results.save("removal", rows, "Removal of zeroed channels", _table(rows))
    ours = [row for row in rows if row["tool"] in OURS]
    failed = [row for row in ours if not row["passed"]]
    print(f"\n{len(ours) - len(failed)} of {len(ours)} passed")
    return 1 if failed else 0


def _row(name: str, variant: str, tool: str, path: Path) -> Row:
    """Run one tool on one model in a process of its own, with a time limit."""
    out = path.with_name(f"{path.stem}_{tool}.out.onnx")
    row: Row = {"model": name, "variant": variant, "tool": tool}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.removal", "--child", tool]
    try:
        done = subprocess.run(
            [*command, str(path), str(out)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {**row, "failure": f"no result in {TIMEOUT_S} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {**row, "failure": lines[-1][:200]}
    return {**row, **json.loads(done.stdout.strip().splitlines()[-1])}


def _torch_pruning(name: str, variant: str, cache: Path) -> Row:
    """What torch-pruning made of the PyTorch module, from when the inputs were written."""
    row: Row = {"model": name, "variant": variant, "tool": "torch-pruning"}
    reach = read_reach(cache)[f"{name}_{variant}"]
    if "reach" not in reach:
        return {**row, "failure": "fails on this model (1.6.1)"}
    return {
        **row,
        "left": reach["reach"],
        "magnitude_error": reach["change"],
        "seconds": reach["seconds"],
        "exact": reach["change"] < 1e-4,
    }


def _judge(rows: Sequence[Row]) -> None:
    """Say of each of our rows whether it passed."""
    clean = {
        (row["model"], row["tool"]): row
        for row in rows
        if row["variant"] == "clean" and "left" in row
    }
    for row in rows:
        if row["tool"] not in OURS:
            continue
        row["passed"] = bool(row.get("exact"))
        if row["variant"] == "clean":
            left = [row[key] for key in ("left", "left_in_openvino") if row.get(key)]
            fits = min(left, default=1) <= LIMITS[row["model"]] + ROUNDING
            row["passed"] = row["passed"] and fits
        elif (row["model"], row["tool"]) in clean and "left" in row:
            # What a mask on the weights leaves more than a clean one are constants to carry on.
            twin = clean[row["model"], row["tool"]]
            row["surplus"] = _surplus(twin["widths"], row["widths"])
            row["passed"] = row["passed"] and not row["surplus"]


def _surplus(clean: Mapping[str, Sequence[int]], masked: Mapping[str, Sequence[int]]) -> int:
    """Weights with more than one channel (one a group) above those of the clean twin.

    Args:
        clean: output channels and groups of each weight of the clean model's result.
        masked: the same of the model where only weights are zero.
    """
    return sum(
        width - clean[name][0] > groups
        for name, (width, groups) in masked.items()
        if name in clean
    )


def _remove(carry: str) -> Callable[[Path, Path], Row]:
    def run(path: Path, out: Path) -> Row:
        model = ir.load(path)
        start, start_cpu = time.perf_counter(), time.process_time()
        passes.Tidy()(model)
        report = passes.RemoveChannels(carry=carry)(model)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        passes.InferShapes()(model)
        ir.save(model, out)
        maps = [change for change in report.changes if "bias map" in change.what]
        elements = sum(change.after - change.before for change in maps)
        return {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),  # what a busy machine does not change
            # bias maps are counted apart: they are as large as images, and no filters
            "left": round((parameters(out) - elements) / parameters(path), 4),
            "left_in_openvino": None if maps else _left_in_openvino(path, out),
            "carriers": sum("carrier" in change.what for change in report.changes),
            "maps": len(maps),
            "map_elements": round(elements / parameters(path), 4),
            "skips": len(report.skips),
            "widths": _widths(model),
            **_agreement(path, lambda feeds: list(map(Reference(out), feeds))),
        }

    return run


def _widths(model: ir.Model) -> dict[str, tuple[int, int]]:
    """Output channels of each convolution's weight, and how many carriers they may hold."""
    found = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is not None and weight.shape is not None and weight.name is not None:
            found[weight.name] = (int(weight.shape[0]), _carriers_allowed(node))  # type: ignore[arg-type]
    return found


def _carriers_allowed(node: ir.Node) -> int:
    """One for each group of the convolutions that read a tensor: they see only their own group."""
    most, seen, waiting = 1, {node}, list(node.outputs[0].consumers())
    while waiting:
        reader = waiting.pop()
        if reader in seen:
            continue
        seen.add(reader)
        if reader.op_type in {"Gemm", "MatMul", "ConvTranspose"}:
            continue
        if reader.op_type == "Conv":
            groups = reader.attributes.get_int("group", 1)
            weight = reader.inputs[1]
            depthwise = weight is not None and weight.shape is not None and weight.shape[1] == 1
            if not depthwise or groups == 1:
                most = max(most, groups)
                continue
        waiting += [after for output in reader.outputs for after in output.consumers()]
    return most


def _constants(model: Any) -> int:
    """Elements of the constants of an OpenVINO model."""
    return sum(
        math.prod(op.get_output_shape(0))
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
    )


def _left_in_openvino(path: Path, out: Path) -> float | None:
    """Share of the parameters left by OpenVINO's way of counting, which its figures are by.

    It reads a BatchNormalization as two constants, not four; where many are left this matters.
    """
    if importlib.util.find_spec("openvino") is None:
        return None
    import openvino as ov
    from openvino._offline_transformations import apply_moc_transformations

    core = ov.Core()
    model = core.read_model(out)
    apply_moc_transformations(model, False, False)
    return round(_constants(model) / _constants(core.read_model(path)), 4)


def _openvino(path: Path, out: Path) -> Row:
    import openvino as ov
    from openvino._offline_transformations import (
        apply_moc_transformations,
        apply_pruning_transformation,
    )

    del out  # it writes no ONNX
    core = ov.Core()
    model = core.read_model(path)
    before = _constants(model)
    apply_moc_transformations(model, False, False)  # without them it finds nothing
    start = time.perf_counter()
    apply_pruning_transformation(model)
    seconds = time.perf_counter() - start
    after = _constants(model)
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = core.compile_model(model, "CPU", config)
    reference = Reference(path)

    def run(feeds: Any) -> list[dict[str, Any]]:
        outputs = []
        for feed in feeds:
            got = compiled(list(feed.values()))
            outputs.append({name: got[index] for index, name in enumerate(reference.names)})
        return outputs

    return {
        "seconds": round(seconds, 3),
        "left": round(after / before, 4),
        **_agreement(path, run),
    }


def _agreement(path: Path, run: Callable[[Any], Any]) -> Row:
    reference = Reference(path)
    feeds = draw(reference.inputs({}), seed=2)
    feeds.append(stretch(reference, feeds[0])[0])
    found = compare([reference(feed) for feed in feeds], run(feeds))
    return {
        "error": found.error,
        "magnitude_error": found.magnitude_error,
        "spread": round(found.spread, 4),
        "collapsed": found.collapsed,
        "exact": found.passed and not found.collapsed,
    }


_TOOLS: Mapping[str, Callable[[Path, Path], Row]] = {
    "carrier": _remove("carrier"),
    "bias-map": _remove("bias-map"),
    "openvino": _openvino,
}


def _line(row: Row) -> str:
    if "failure" in row:
        return f"{row['model']} {row['variant']} {row['tool']}: {row['failure']}"
    return (
        f"{row['model']} {row['variant']} {row['tool']}: {row['left']:.3f} left, "
        f"error {row.get('error', row['magnitude_error']):.1e}, {row['seconds']:.2f} s"
    )


def _maps(row: Row) -> str:
    if not row.get("maps"):
        return str(row.get("maps", ""))
    return f"{row['maps']} (+ {row['map_elements']:.3f})"


def _table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    names = {"carrier": "deploykit", "bias-map": "deploykit, bias maps"}
    columns = (
        "model", "zeros", "tool", "parameters left", "carriers", "bias maps",
        "error / spread", "error / largest", "exact", "seconds", "",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        tool = names.get(row["tool"], row["tool"])
        start = f"| {row['model']} | {row['variant']} | {tool} "
        verdict = {True: "passed", False: "**failed**", None: ""}[row.get("passed")]
        if "failure" in row:
            lines.append(f"{start}| {row['failure']} | | | | | no | | {verdict} |")
            continue
        error = f"{row['error']:.1e}" if "error" in row else ""
        lines.append(
            f"{start}| {row['left']:.3f} | {row.get('carriers', '')} | {_maps(row)} "
            f"| {error} | {row['magnitude_error']:.1e} | {'yes' if row['exact'] else 'no'} "
            f"| {row['seconds']:.2f} | {verdict} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
