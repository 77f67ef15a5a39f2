"""Orders of channels for 2:4: what they keep, how long the search takes, and how much of real networks they reach.

    python -m benchmarks.permutation [--matrices] [--networks] [--cache FOLDER] [--apex CHECKOUT] [--peers PYTHON]

1. Eight matrices, one thread, seconds of its CPU: the search of `permute-channels` in a fifth of the time of a plain one
   (`benchmarks.assignment`: assignment of one column a group until it gains nothing, at most 60 s) and in the same time; the magnitude
   that 2:4 keeps, and the bound that the larger half of every row gives. With `--apex`, its search as it is, and repaired (on 64x64
   only: it takes minutes elsewhere). With `--peers`, the interpreter of an environment with nvidia-modelopt, whose mask without any
   order is held against ours.
2. Whole networks: `permute-channels`, the function held against the original in ONNX Runtime, then `sparse-2-4` by magnitude; the share of
   the magnitude of all weights that can be 2:4 before and after, and how many of them read channels in another order. With `--apex`, how
   many layers its graph analysis reaches on the same PyTorch modules.

Exit code 1 if on a matrix the search keeps less than the plain one in a fifth of its time, or not more in the same time, to five digits;
if a network's function changes by more than 1e-4 of its outputs' scale; or if apex reaches more layers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

import passes
from benchmarks import apex, assignment, catalogue, results
from benchmarks.reference import Reference, draw
from passes.analysis.fits import Candidate, find_candidates, fit
from passes.analysis.patterns import TWO_OF_FOUR, best_mask
from passes.planners.permutation_search import search_order
from passes.targets import TARGETS
from tests import oracle

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

Row: TypeAlias = dict[str, Any]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FRACTION = 5
"""The search has the time of the plain one over this."""

NETWORKS = (
    "resnet18",
    "resnet50",
    "densenet121",
    "shufflenet_v2",
    "vit_b_16",
    "vit",
    "bert",
    "ppocr-rec",
    "ppocr-det",
)
IN_TORCH = ("resnet18", "resnet50")
"""Those that are made without PyTorch, and are there as modules as well."""

SECONDS = 10.0
"""The search of a network."""

MODELOPT = """
import sys, numpy as np, torch
from modelopt.torch.sparsity.weight_sparsity.magnitude import create_asp_mask
held = torch.tensor(np.load(sys.argv[1]))
mask = create_asp_mask(held, "2:4 sparsity")
print(float((held.double().abs() * mask).sum() / held.double().abs().sum()))
"""


def matrices(cache: Path) -> dict[str, Array]:
    """Magnitudes, shape `(rows, channels)`, float32: noise, noise with heavy columns, and the largest layers of PP-OCRv4."""
    dice = np.random.default_rng(0)
    found = {
        f"Gaussian {rows}x{columns}": dice.standard_normal((rows, columns))
        for rows, columns in ((64, 64), (256, 256), (512, 2304))
    }
    found["heterogeneous 256x256"] = (
        dice.standard_t(4, (256, 256))
        * np.exp(0.7 * dice.standard_normal((1, 256)))
        * np.exp(0.3 * dice.standard_normal((256, 1)))
    )
    for kind in ("rec", "det"):
        proto = catalogue.load(f"ppocr-{kind}").load(cache)
        found |= {
            f"PP-OCRv4 {kind} {name}": array for name, array in largest_layers(proto.graph)
        }
    return {name: np.abs(array).astype(np.float32) for name, array in found.items()}


def largest_layers(graph: onnx.GraphProto) -> list[tuple[str, Array]]:
    """The two largest layers as matrices: rows are outputs, at each place of the kernel, and columns inputs."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    weights |= {
        node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"
    }
    found: list[tuple[str, Array]] = []
    for node in graph.node:
        if node.op_type not in {"Conv", "MatMul"} or node.input[1] not in weights:
            continue
        held = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        if node.op_type == "Conv" and held.shape[1] >= 32:
            turned = held.transpose(0, 2, 3, 1).reshape(-1, held.shape[1])
        elif node.op_type == "MatMul" and held.ndim == 2:
            turned = held.T
        else:
            continue
        rows, columns = turned.shape
        if columns % 4 == 0 and columns >= 96 and rows <= 9000:
            found.append((f"{node.op_type} {rows}x{columns}", turned))
    found.sort(key=lambda entry: -entry[1].size)
    first, second = found[:2]
    return [first, (f"{second[0]} (b)" if second[0] == first[0] else second[0], second[1])]


def measure(name: str, magnitudes: Array, options: argparse.Namespace) -> Row:
    """One row of the first table."""
    total = float(magnitudes.sum(dtype=np.float64))
    columns = np.ascontiguousarray(magnitudes.T)
    began = time.thread_time()
    plain = assignment.search(magnitudes)
    plain_s = time.thread_time() - began
    half = np.sort(magnitudes, 1)[:, magnitudes.shape[1] // 2 :]
    row: Row = {
        "matrix": name,
        "as is": assignment.kept(magnitudes) / total,
        "bound": float(half.sum(dtype=np.float64)) / total,
        "plain": assignment.kept(magnitudes[:, plain]) / total,
        "plain_s": plain_s,
    }
    # The search counts operations: a first run says what a second of its budget takes here and now.
    began = time.thread_time()
    search_order(columns, TWO_OF_FOUR, seconds=plain_s / 20, seed=1)
    pace = max(0.5, (time.thread_time() - began) / (plain_s / 20))
    for label, share in (("fifth", 1 / FRACTION), ("same", 1.0)):
        budget = 0.9 * share * plain_s / pace
        for _ in range(4):
            began = time.thread_time()
            found = search_order(columns, TWO_OF_FOUR, seconds=budget)
            spent = time.thread_time() - began
            if spent <= share * plain_s:
                break
            # The machine was slower meanwhile: with less, until it fits.
            budget *= 0.8
        row[f"{label}_s"] = spent
        row[label] = assignment.kept(magnitudes[:, found.order]) / total
        row[f"{label}_rounds"] = found.rounds
    if options.apex is not None and magnitudes.shape[1] == 64:
        row["apex as it is"] = apex.search(magnitudes, repaired=False).get("error", "runs")
        repaired = apex.search(magnitudes, repaired=True)
        row["apex_s"] = repaired["seconds"]
        row["apex"] = assignment.kept(magnitudes[:, repaired["order"]]) / total
    if options.peers is not None:
        row["modelopt as is"] = modelopt(magnitudes, options.peers)
        mask = best_mask(magnitudes, 1, TWO_OF_FOUR)
        row["mask as is"] = float((magnitudes * mask).sum(dtype=np.float64)) / total
    return row


def modelopt(magnitudes: Array, python: str) -> float | str:
    """Share of the magnitude that modelopt's mask keeps; an error if it has none."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "held.npy"
        np.save(path, magnitudes)
        done = subprocess.run(
            [python, "-c", MODELOPT, str(path)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    return float(done.stdout.split()[-1])


def problems_of(row: Row) -> list[str]:
    """What is missed."""
    found = []
    if (
        round(row["fifth"], 5) < round(row["plain"], 5)
        or row["fifth_s"] > row["plain_s"] / FRACTION
    ):
        found.append(f"{row['matrix']}: less than the plain search in a fifth of its time")
    if round(row["same"], 5) <= round(row["plain"], 5) or row["same_s"] > row["plain_s"]:
        found.append(f"{row['matrix']}: not more than the plain search in its time")
    return found


def fits(model: ir.Model) -> dict[str, tuple[float, float]]:
    """By weight: the share that 2:4 keeps, and the magnitude."""
    found = {}
    for each in find_candidates(model, TWO_OF_FOUR):
        if isinstance(each, Candidate) and each.refusal is None:
            how = fit(each.held, TWO_OF_FOUR)
            if how is not None:
                size = np.abs(each.array.astype(np.float32))
                scale = each.held.scale
                size = size if scale is None else size * scale
                found[each.name] = (how.kept, float(size.sum(dtype=np.float64)))
    return found


def permute(name: str, options: argparse.Namespace) -> Row:
    """One row of the second table."""
    network = catalogue.load(name)
    proto = network.load(options.cache)
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    before = fits(model)
    began = time.process_time()
    report = passes.PermuteChannels(seconds=SECONDS)(model)
    spent = time.process_time() - began
    after = fits(model)
    whole = sum(size for _, size in before.values())
    emitted = passes.Sparse24(force="magnitude", target=TARGETS["tensorrt"])
    row: Row = {
        "network": name,
        "weights": len(before),
        "permuted": sum(
            abs(after[weight][0] - kept) > 1e-9 for weight, (kept, _) in before.items()
        ),
        "before": sum(kept * size for kept, size in before.values()) / whole,
        "after": sum(kept * size for kept, size in after.values()) / whole,
        "seconds": spent,
        "skips": sorted({skip.reason for skip in report.skips}),
        "error": error_of(proto, model, network),
    }
    emitted(model)
    row["emitted"] = sum(kept == 1 for kept, _ in fits(model).values())
    if options.apex is not None and (network.make is not None or name in IN_TORCH):
        try:
            module = module_of(name, network)
        except (ImportError, OSError) as error:
            row["apex"] = {"error": f"the module cannot be made here: {type(error).__name__}"}
        else:
            row["apex"] = apex.permuted_layers(module)
    return row


def module_of(name: str, network: catalogue.Network) -> Any:
    """The PyTorch module of a network."""
    if network.make is not None:
        return network.make()[0]
    from benchmarks import zoo

    return zoo.build(name)[0]


def error_of(proto: onnx.ModelProto, model: ir.Model, network: catalogue.Network) -> float:
    """The largest difference of outputs, over their scale."""
    original = Reference(proto.SerializeToString())
    permuted = Reference(oracle.to_proto(model).SerializeToString())
    # Over all inputs: on noise alone a network that looks for text answers next to nothing.
    scale: dict[str, float] = {}
    worst: dict[str, float] = {}
    for feed in draw(original.inputs(network.shapes), seed=3, below=network.below):
        other = permuted(feed)
        for name, one in original(feed).items():
            scale[name] = max(scale.get(name, 0.0), float(np.abs(one).max()))
            worst[name] = max(worst.get(name, 0.0), float(np.abs(one - other[name]).max()))
    return max(error / (scale[name] or 1.0) for name, error in worst.items())


def matrix_table(rows: Sequence[Row]) -> str:
    """The first table."""
    lines = [
        "| matrix (rows x channels) | as is | bound | plain search | s | a fifth of its time | s | the same time | s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['matrix']} | {row['as is']:.5f} | {row['bound']:.5f} | {row['plain']:.5f} | {row['plain_s']:.2f} "
        f"| {row['fifth']:.5f} | {row['fifth_s']:.2f} | {row['same']:.5f} | {row['same_s']:.2f} |"
        for row in rows
    ]
    for row in rows:
        if "apex" in row:
            lines += [
                "",
                f"apex on {row['matrix']}: as it is, {row['apex as it is']}; repaired, {row['apex']:.5f} in {row['apex_s']:.0f} s.",
            ]
    shared = [row for row in rows if "modelopt as is" in row]
    if shared:
        agree = sum(
            isinstance(row["modelopt as is"], float)
            and abs(row["modelopt as is"] - row["mask as is"]) < 1e-6
            for row in shared
        )
        lines += [
            "",
            f"modelopt's mask keeps as much as ours on {agree} of {len(shared)} matrices as they are.",
        ]
    return "\n".join(lines)


def network_table(rows: Sequence[Row]) -> str:
    """The second table."""
    lines = [
        f"2:4 after a search of {SECONDS:.0f} s of budget; shares of the magnitude of all weights that can be 2:4.",
        "",
        "| network | kept as is | after permuting | weights | in another order | apex | error | CPU s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        peer = row.get("apex", {})
        told = peer.get("error") or (
            f"{peer['permuted']} of {peer['prunable']}" if peer else "-"
        )
        lines.append(
            f"| {row['network']} | {row['before']:.4f} | {row['after']:.4f} | {row['weights']} | {row['permuted']} "
            f"| {told} | {row['error']:.1e} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def misses(rows: Sequence[Row]) -> list[str]:
    """What is missed in the second table."""
    found = []
    for row in rows:
        if row["error"] > 1e-4:
            found.append(f"{row['network']}: its outputs changed by {row['error']:.1e}")
        if row["emitted"] < row["weights"]:
            found.append(f"{row['network']}: not all weights are 2:4 afterwards")
        if row.get("apex", {}).get("permuted", 0) > row["permuted"]:
            found.append(f"{row['network']}: apex permutes more layers")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and save; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--matrices", action="store_true", help="only these")
    parser.add_argument("--networks", action="store_true", help="only these")
    parser.add_argument("--cache", type=Path, default=Path("build/benchmarks/exactness"))
    parser.add_argument("--apex", type=Path, help="a checkout of apex")
    parser.add_argument("--peers", help="an interpreter that has nvidia-modelopt")
    options = parser.parse_args(arguments)
    if options.apex is not None:
        apex.open_checkout(options.apex)
    missed: list[str] = []
    if options.matrices or not options.networks:
        rows = []
        for name, magnitudes in matrices(options.cache).items():
            rows.append(measure(name, magnitudes, options))
            print(rows[-1], file=sys.stderr, flush=True)
        table = matrix_table(rows)
        results.save("permutation", rows, "Orders of channels for 2:4: the search", table)
        print(table)
        missed += [problem for row in rows for problem in problems_of(row)]
    if options.networks or not options.matrices:
        rows = []
        for name in NETWORKS:
            rows.append(permute(name, options))
            print(rows[-1], file=sys.stderr, flush=True)
        table = network_table(rows)
        results.save(
            "permutation-networks", rows, "Orders of channels for 2:4: whole networks", table
        )
        print(table)
        missed += misses(rows)
    for problem in missed:
        print(f"MISSED: {problem}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
