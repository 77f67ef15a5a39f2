"""2:4 emission and verification: seconds of CPU, and whether the result is right, against polygraphy's.

    python -m benchmarks.sparse [--networks resnet18,resnet50] [--repeats 5] [--no-polygraphy]

Times are those of the process, one thread, in memory: reading and writing files and starting up are left out for both.
`emit` is `sparse-2-4` with `force=magnitude`, which looks at every weight, alters it and looks at what is stored now again;
`verify` is the pass without force on its result, which alters nothing. For polygraphy they are what `surgeon prune` and
`inspect sparsity` do, called as a library.

A result is right if every group keeps the most magnitude of all masks that there are, found by trying all six of them. The
second table does the same for one small layer of each kind, with polygraphy beside.

Exit code 1 if a result of deploykit is wrong, or ResNet-18 takes 0.5 s or more for both, or ResNet-50 1.5 s.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

import passes
from benchmarks import nets, results
from passes import weights
from passes.analysis.fits import Candidate, find_candidates
from passes.analysis.patterns import TWO_OF_FOUR
from passes.targets import TARGETS
from tests import oracle
from tests.passes.test_sparse_2_4 import CASES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Row: TypeAlias = dict[str, Any]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LIMITS_S = {"resnet18": 0.5, "resnet50": 1.5}
"""What emission and verification may take together."""

TENSORRT = TARGETS["tensorrt"]
MASKS = np.array(
    [[at in kept for at in range(4)] for kept in itertools.combinations(range(4), 2)]
)


def stored(model: ir.Model) -> dict[str, tuple[Array, int, Array | None]]:
    """Each weight that can obey: its numbers, the axis, and its scale; by name."""
    found = {}
    for each in find_candidates(model, TWO_OF_FOUR):
        if isinstance(each, Candidate) and each.refusal is None:
            held = each.held
            array = weights.constant(held.value)
            assert array is not None
            found[held.name] = (np.array(array), held.axis, held.scale)
    return found


def best(array: Array, axis: int, scale: Array | None) -> Array:
    """The array under the best of all masks of each group; the first of equal ones."""
    real = array.astype(np.float64) * (1 if scale is None else scale.astype(np.float64))
    groups = np.moveaxis(np.abs(real), axis, -1)
    chosen = (groups.reshape(-1, 4) @ MASKS.T.astype(np.float64)).argmax(axis=1)
    mask = np.moveaxis(MASKS[chosen].reshape(groups.shape), -1, axis)
    return np.where(mask, array, np.zeros((), array.dtype))


def is_best(result: Array, array: Array, axis: int, scale: Array | None) -> bool:
    """Whether a result is the array with zeros, and keeps in every group what the best mask keeps; ties may fall otherwise."""
    if not ((result == array) | (result == 0)).all():
        return False
    factor = 1 if scale is None else scale.astype(np.float64)

    def sums(found: Array) -> Array:
        groups = np.moveaxis(np.abs(found.astype(np.float64) * factor), axis, -1)
        return groups.reshape(-1, 4).sum(axis=1)

    groups = np.moveaxis(result, axis, -1).reshape(-1, 4)
    obeys = ((groups != 0).sum(axis=1) <= 2).all()
    return bool(obeys) and np.array_equal(sums(result), sums(best(array, axis, scale)))


def kept(before: Array, after: Array) -> float:
    """Share of the magnitude that is left."""
    sums = [float(np.abs(array.astype(np.float64)).sum()) for array in (after, before)]
    return sums[0] / sums[1]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU, and what came of it."""
    began = time.process_time()
    result = run()
    return time.process_time() - began, result


def force(model: ir.Model) -> passes.PassReport:
    """What `deploykit optimize` does with `--set sparse-2-4.force=magnitude`."""
    return passes.Sparse24(force="magnitude", target=TENSORRT)(model)


def verify(model: ir.Model) -> passes.PassReport:
    """What it does without."""
    return passes.Sparse24(target=TENSORRT)(model)


def pruner(proto: onnx.ModelProto) -> Any:
    """Polygraphy's, which prunes and checks."""
    from polygraphy.tools.sparse import SparsityPruner

    return SparsityPruner(proto)


@contextlib.contextmanager
def silenced():
    """Polygraphy prints, and compares fp16 with the largest double; returns what it printed."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield said


def measure(name: str, repeats: int, *, with_polygraphy: bool) -> Row:
    """Time a network; the least of several times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(nets.build(name), path)
        before = stored(ir.load(path))
        emits, verifies = [], []
        for _ in range(repeats):
            model = ir.load(path)
            seconds, report = timed(lambda model=model: force(model))
            emits.append(seconds)
            seconds, again = timed(lambda model=model: verify(model))
            verifies.append(seconds)
        after = stored(model)
        is_right = all(
            np.array_equal(after[key][0], best(*found)) for key, found in before.items()
        )
        is_right &= len(report.changes) == len(again.changes) == len(before)
        row: Row = {
            "network": name,
            "weights": sum(found[0].size for found in before.values()),
            "layers": len(before),
            "emit_s": min(emits),
            "verify_s": min(verifies),
            "right": is_right,
            "kept": kept(
                np.concatenate([found[0].ravel() for found in before.values()]),
                np.concatenate([found[0].ravel() for found in after.values()]),
            ),
        }
        if with_polygraphy:
            row |= beside(onnx.load(path), ir.serde.serialize_model(model), before)
    return row


def beside(proto: onnx.ModelProto, ours: onnx.ModelProto, before: Mapping[str, Any]) -> Row:
    """Polygraphy on the same network: its times, whether its result is right, and what it says of ours."""
    with silenced():
        seconds, pruned = timed(lambda: pruner(proto).prune())
    theirs = stored(ir.serde.deserialize_model(pruned))
    with silenced() as said:
        checking, _ = timed(lambda: pruner(ours).check())
    lines = said.getvalue().splitlines()
    return {
        "polygraphy_emit_s": seconds,
        "polygraphy_verify_s": checking,
        "polygraphy_right": all(
            is_best(theirs[key][0], *found) for key, found in before.items()
        ),
        "polygraphy_says_sparse": sum("Found sparse tensor" in line for line in lines),
        "polygraphy_says_dense": sum("Found non-sparse tensor" in line for line in lines),
    }


def judge(name: str, *, with_polygraphy: bool) -> Row:
    """One small layer of a kind: whether each tool finds the best mask, along the axis that is summed over."""
    proto, axis = CASES[name]
    ((key, found),) = stored(oracle.from_proto(proto)).items()
    model = oracle.from_proto(proto)
    force(model)
    row: Row = {
        "case": name,
        "axis": axis,
        "right": np.array_equal(stored(model)[key][0], best(*found)),
    }
    if with_polygraphy:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        try:
            with silenced():
                pruned = pruner(copy).prune()
            after = stored(ir.serde.deserialize_model(pruned))[key][0]
        except Exception as error:  # noqa: BLE001 - whatever it fails with is the result
            row["polygraphy"] = f"fails: {type(error).__name__}"
        else:
            is_left = np.array_equal(after, found[0])
            row["polygraphy"] = (
                "right" if is_best(after, *found) else "left dense" if is_left else "wrong"
            )
    return row


def table(rows: Sequence[Row], cases: Sequence[Row]) -> str:
    """Both tables."""
    lines = [
        "| | weights | kept | emit, s | verify, s | best mask | polygraphy prune, s | check, s | best mask | says of ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs = ["", "", "", ""]
        if "polygraphy_emit_s" in row:
            theirs = [
                f"{row['polygraphy_emit_s']:.1f}",
                f"{row['polygraphy_verify_s']:.1f}",
                "yes" if row["polygraphy_right"] else "no",
                f"{row['polygraphy_says_sparse']} sparse, {row['polygraphy_says_dense']} not",
            ]
        ours = [
            row["network"],
            f"{row['weights']:,}",
            f"{row['kept']:.4f}",
            f"{row['emit_s']:.3f}",
            f"{row['verify_s']:.3f}",
            "yes, all groups" if row["right"] else "**no**",
        ]
        lines.append("| " + " | ".join([*ours, *theirs]) + " |")
    lines += ["", "| a layer of each kind | deploykit | polygraphy |", "|---|---|---|"]
    lines += [
        f"| {row['case']} | {'right' if row['right'] else '**wrong**'} | {row.get('polygraphy', '')} |"
        for row in cases
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", default="resnet18,resnet50")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-polygraphy", action="store_true")
    given = parser.parse_args()
    with_polygraphy = not given.no_polygraphy
    cases = [judge(name, with_polygraphy=with_polygraphy) for name in CASES]
    rows = [
        measure(name, given.repeats, with_polygraphy=with_polygraphy)
        for name in given.networks.split(",")
    ]
    text = table(rows, cases)
    print(text)
    results.save("sparse", [*rows, *cases], "2:4 emission and verification", text)
    slow = [
        row["network"]
        for row in rows
        if row["emit_s"] + row["verify_s"] >= LIMITS_S.get(row["network"], np.inf)
    ]
    wrong = [row.get("case", row.get("network")) for row in (*rows, *cases) if not row["right"]]
    if slow or wrong:
        print(f"too slow: {slow}; wrong: {wrong}", file=sys.stderr)
    return 1 if slow or wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
