"""Feeds broken models to the command line: `python -m tests.fuzz --minutes 30 --seed N [--folder build/fuzz]`.

Small sound models are changed at random, as bytes (flipped, cut, doubled, spliced) and as protobufs (nodes, attributes,
shapes, types, versions, names and weights), and given to `inspect` and to `optimize --no-profile`, each case in a child
process of its own with little memory and time. A finding is a run that hangs, that ends in an exit code which is not
documented, with a traceback, without a message or with two of them, that leaves something behind, touches the source,
or calls outputs different. Where a library crashes, the case is run again as a program, which has to tell it.
Findings are kept in the folder, one of each kind.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.deploykit.conftest import make_network

MEMORY_BYTES = 6 << 30
LIMIT_S = 60
RUN_S = 5.0
ROUNDING = 1e-3
CODES = {0, 1, 2, 3, 4}
BUG = 70

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    5,
    7,
    8,
    64,
    255,
    1000,
    2**31 - 1,
    -(2**31),
    2**31,
    2**40,
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
NAMES = (
    "",
    "x",
    "a\nb",
    "\x1b[31mred",
    "<b>bold</b>",
    "[/red]",
    "..",
    "n" * 5000,
    "\u202e",
    "w1",
    "é",
)
OPERATORS = (
    "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Equal", "Expand", "Flatten", "Gather",
    "Gemm", "GlobalAveragePool", "GroupNormalization", "Identity", "If", "InstanceNormalization", "LayerNormalization",
    "Loop", "MatMul", "MaxPool", "Mod", "Mul", "NonZero", "OneHot", "Pad", "Pow", "QuantizeLinear", "Range", "ReduceMean",
    "Relu", "Reshape", "Resize", "ScatterND", "Shape", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Sum", "Tile",
    "TopK", "Transpose", "Unsqueeze", "Where", "Nonsense",
)  # fmt: skip
ATTRIBUTES = (
    "axis", "axes", "group", "perm", "pads", "strides", "dilations", "kernel_shape", "transA", "transB", "alpha", "beta",
    "to", "mode", "auto_pad", "equation", "epsilon", "keepdims", "blocksize", "num_outputs", "split", "value", "num_groups",
)  # fmt: skip
TEXTS = (
    # a subgraph that reads from outside, a loop, a function, and shapes that are computed
    """g (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w = {0,0,0,0,1,2,3,4,0,0,0,0,5,6,7,8}> {
        [m] h = MatMul (x, w)
        [i] y = If (c) <then_branch = t () => (float[N,4] a) { a = Relu (h) }, else_branch = e () => (float[N,4] b) { b = Neg (h) }>
    }""",
    """g (float[2,4] x) => (float[2,4] y) <int64 m = {3}, bool c = {1}, float[4,4] w = {0,0,0,0,1,2,3,4,0,0,0,0,5,6,7,8}> {
        [l] y = Loop (m, c, x) <body = b (int64 i, bool k, float[2,4] v) => (bool k2, float[2,4] v2) {
            k2 = Identity (k) v2 = MatMul (v, w) }>
    }""",
    """g (float[1,4,H,W] x) => (float[] y) <float[4,4,1,1] w = {0,0,0,0,1,2,3,4,0,0,0,0,5,6,7,8}, int64[2] cut = {1,-1}> {
        [c] h = Conv (x, w) s = Shape (h) one = Constant <value_ints = [1]> () n = Gather (s, one)
        l = Constant <value_ints = [-1]> () t = Concat <axis = 0> (one, n, l) y = Reshape (h, t)
    }""",
)  # fmt: skip
FUNCTION = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
    g (float[1,4] x) => (float[1,4] y) <float[4,4] w = {0,0,0,0,1,2,3,4,0,0,0,0,5,6,7,8}> { h = MatMul (x, w) y = mine.f (h) }
    <domain: "mine", opset_import: ["" : 17]> f (a) => (b) { c = Relu (a) b = Add (c, c) }"""


def corpus(seed: int, count: int) -> list[onnx.ModelProto]:
    """Sound models to start from: some written here, `count` random ones."""
    import hypothesis

    from tests import strategies

    models = [make_network(hidden=8, dead=4, features=6)]
    models += [
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {body}')
        for body in TEXTS
    ]
    models.append(onnx.parser.parse_model(FUNCTION))

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
        database=None,
    )
    @hypothesis.seed(seed)
    @hypothesis.given(strategies.cases())
    def gather(case: strategies.Case) -> None:
        # Sizes are what the case was made for: at the 224 x 224 that are assumed else, its means round too much to compare.
        for value in case.proto.graph.input:
            for size in value.type.tensor_type.shape.dim[1:]:
                if size.dim_param:
                    size.dim_value = case.sizes.get(size.dim_param, 8)
        models.append(case.proto)

    gather()
    return models


# --- Mutations of bytes -------------------------------------------------------------------------------------------


def mutate_bytes(content: bytes, other: bytes, dice: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        at = dice.randrange(len(data) or 1)
        size = min(dice.choice((1, 2, 4, 16, 64, 1000)), len(data) - at)
        match dice.randrange(7):
            case 0 if data:
                data[at] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at] = dice.choice((0, 1, 127, 128, 255))
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * dice.choice((1, 2, 50))
            case 4:
                begin = dice.randrange(len(other))
                data[at : at + size] = other[begin : begin + size]
            case 5:
                data[at:at] = dice.randbytes(size)
            case 6 if dice.random() < 0.2:
                del data[at:]
    return bytes(data)


# --- Mutations of protobufs ---------------------------------------------------------------------------------------


def graphs_of(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    found, waiting = [], [model.graph]
    while waiting:
        graph = waiting.pop()
        found.append(graph)
        waiting += [
            each.g for node in graph.node for each in node.attribute if each.HasField("g")
        ]
    return found


def mutate_proto(model: onnx.ModelProto, dice: random.Random) -> None:
    graph = dice.choice(graphs_of(model))
    nodes = list(model.graph.node if dice.random() < 0.5 else graph.node)
    names = [name for node in graph.node for name in (*node.input, *node.output)] or ["x"]
    kinds = (node_edit, input_edit, attribute_edit, weight_edit, shape_edit, model_edit)
    kind = dice.choices(kinds, (4, 4, 6, 6, 3, 2))[0]
    if kind in {node_edit, input_edit, attribute_edit} and not nodes:
        return
    if kind is node_edit:
        node_edit(graph, dice)
    elif kind is input_edit:
        input_edit(dice.choice(nodes), names, dice)
    elif kind is attribute_edit:
        attribute_edit(dice.choice(nodes), dice)
    elif kind is weight_edit:
        weight_edit(graph, dice)
    elif kind is shape_edit:
        shape_edit(graph, dice)
    else:
        model_edit(model, dice)


def node_edit(graph: onnx.GraphProto, dice: random.Random) -> None:
    if not graph.node:
        return
    index, other = dice.randrange(len(graph.node)), dice.randrange(len(graph.node))
    node = graph.node[index]
    match dice.randrange(7):
        case 0:
            del graph.node[index]
        case 1:
            graph.node.append(node)
        case 2:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            node.CopyFrom(graph.node[other])
            graph.node[other].CopyFrom(copy)
        case 3:
            node.op_type = dice.choice(OPERATORS)
        case 4:
            node.domain = dice.choice(("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "acme"))
        case 5:
            node.name = dice.choice(NAMES)
        case 6:
            graph.node.append(
                helper.make_node(
                    dice.choice(OPERATORS), list(node.input), [f"new{dice.random()}"]
                )
            )


def input_edit(node: onnx.NodeProto, names: list[str], dice: random.Random) -> None:
    side = node.input if dice.random() < 0.7 else node.output
    match dice.randrange(5):
        case 0 if side:
            side[dice.randrange(len(side))] = dice.choice(names)
        case 1 if side:
            side[dice.randrange(len(side))] = dice.choice(NAMES)
        case 2 if side:
            del side[dice.randrange(len(side))]
        case 3:
            side.append(dice.choice((*names, "")))
        case 4 if len(side) > 1:
            turned = list(side)[::-1]
            del side[:]
            side.extend(turned)


def attribute_edit(  # noqa: PLR0912 - a list of edits
    node: onnx.NodeProto, dice: random.Random
) -> None:
    if not node.attribute or dice.random() < 0.2:
        values = (
            dice.choice(INTEGERS),
            [dice.choice(INTEGERS) for _ in range(dice.randrange(5))],
            dice.choice(FLOATS),
            "text",
        )
        value = dice.choice(values)
        if value != []:
            node.attribute.append(helper.make_attribute(dice.choice(ATTRIBUTES), value))
        return
    index = dice.randrange(len(node.attribute))
    each = node.attribute[index]
    match dice.randrange(8):
        case 0:
            del node.attribute[index]
        case 1:
            node.attribute.append(each)
        case 2:
            each.type = dice.choice((0, 1, 2, 3, 4, 6, 7, 8))
        case 3:
            each.name = dice.choice(ATTRIBUTES)
        case 4 if each.ints:
            each.ints.append(dice.choice(INTEGERS))
        case _:
            if each.ints:
                each.ints[dice.randrange(len(each.ints))] = dice.choice(INTEGERS)
            elif each.HasField("i"):
                each.i = dice.choice(INTEGERS)
            elif each.HasField("f"):
                each.f = dice.choice(FLOATS)
            elif each.HasField("s"):
                each.s = dice.choice(
                    (b"", b"SAME_UPPER", b"ij,jk->ik", b"linear", b"\xff", each.s[:-1])
                )
            elif each.HasField("t"):
                tensor_edit(each.t, dice)


def weight_edit(graph: onnx.GraphProto, dice: random.Random) -> None:
    if not graph.initializer:
        return
    index = dice.randrange(len(graph.initializer))
    match dice.randrange(8):
        case 0:
            del graph.initializer[index]
        case 1:
            graph.initializer.append(graph.initializer[index])
        case 2:
            graph.initializer[index].name = dice.choice((*NAMES, graph.initializer[0].name))
        case _:
            tensor_edit(graph.initializer[index], dice)


def tensor_edit(tensor: onnx.TensorProto, dice: random.Random) -> None:
    match dice.randrange(8):
        case 0 if tensor.dims:
            tensor.dims[dice.randrange(len(tensor.dims))] = dice.choice(INTEGERS)
        case 1:
            tensor.dims.append(dice.choice((0, 1, 2)))
        case 2 if tensor.dims:
            tensor.dims.pop()
        case 3:
            tensor.data_type = dice.randrange(28)
        case 4:
            tensor.raw_data = tensor.raw_data[: dice.randrange(len(tensor.raw_data) + 1)]
        case _:
            with contextlib.suppress(ValueError, TypeError):
                values_edit(tensor, dice)


def values_edit(tensor: onnx.TensorProto, dice: random.Random) -> None:
    """Other numbers, in the same shape."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return  # its numbers are not in this file
    array = numpy_helper.to_array(tensor).copy()
    if not array.size:
        return
    pool = FLOATS if array.dtype.kind == "f" else INTEGERS
    with np.errstate(all="ignore"):
        numbers = np.asarray(dice.choices(pool, k=3)).astype(array.dtype)
    spots = [dice.randrange(array.size) for _ in numbers]
    if dice.random() < 0.3 and array.ndim > 1:
        array[dice.randrange(array.shape[0])] = numbers[0]
    else:
        array.reshape(-1)[spots] = numbers
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def shape_edit(graph: onnx.GraphProto, dice: random.Random) -> None:
    sides = [side for side in (graph.input, graph.output, graph.value_info) if side]
    if not sides:
        return
    side = dice.choice(sides)
    value = dice.choice(side)
    kind = value.type.tensor_type
    match dice.randrange(6):
        case 0 if kind.shape.dim:
            dice.choice(kind.shape.dim).dim_value = dice.choice(INTEGERS)
        case 1 if kind.shape.dim:
            dice.choice(kind.shape.dim).dim_param = dice.choice(NAMES)
        case 2:
            kind.elem_type = dice.randrange(28)
        case 3:
            value.name = dice.choice(NAMES)
        case 4:
            side.remove(value)
        case 5:
            kind.ClearField("shape")


def model_edit(model: onnx.ModelProto, dice: random.Random) -> None:
    match dice.randrange(5):
        case 0:
            model.ir_version = dice.choice((0, 1, 3, 4, 7, 10, 13, 14, 99, -1))
        case 1:
            dice.choice(model.opset_import).version = dice.choice(
                (0, 1, 6, 7, 9, 11, 12, 13, 18, 23, 26, 99, -1)
            )
        case 2:
            model.opset_import.append(
                helper.make_opsetid(dice.choice(("", "acme")), dice.choice((1, 13)))
            )
        case 3 if model.functions:
            input_edit(dice.choice(model.functions[0].node), ["a", "b"], dice)
        case 4:
            tensor = model.graph.initializer.add(
                name="far", data_type=TensorProto.FLOAT, dims=[4]
            )
            tensor.data_location = TensorProto.EXTERNAL
            for key, pool in (
                ("location", ("w.bin", "../w.bin", "m.onnx", "")),
                ("offset", ("0", "-1", "9" * 30, "x")),
            ):
                tensor.external_data.add(key=key, value=dice.choice(pool))


def make_case(models: list[onnx.ModelProto], dice: random.Random) -> bytes:
    model, other = dice.choice(models), dice.choice(models)
    content = model.SerializeToString()
    if dice.random() < 0.25:
        return mutate_bytes(content, other.SerializeToString(), dice)
    copy = onnx.ModelProto.FromString(content)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        # Some changes are none that protobuf takes, a name that is no text for one.
        with contextlib.suppress(ValueError, TypeError, IndexError):
            mutate_proto(copy, dice)
    return copy.SerializeToString()


# --- Runs ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        code: exit code; negative: the signal that ended it; None: it did not end.
        text: what it wrote to stderr.
        verdict: of report.json; empty without one.
    """

    code: int | None
    text: str
    verdict: str = ""


def run_here(arguments: list[str], log: pathlib.Path) -> Outcome:
    """Run a command in a fork of this process, which has imported everything already."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        _be_child(arguments, log)
    os.close(done)
    ended = select.select([ready], [], [], LIMIT_S)[0]
    os.close(ready)
    if not ended:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return Outcome(code if ended else None, text)


def _be_child(arguments: list[str], log: pathlib.Path) -> None:
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = (
            os.fdopen(1, "w", closefd=False),
            os.fdopen(2, "w", closefd=False),
        )
        sys.argv = ["deploykit", *arguments]
        from deploykit.cli import main
        from deploykit.runtimes import onnxruntime

        onnxruntime.RUN_LIMIT_S = RUN_S
        main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - nothing may get past the command line
        sys.stderr.write(f"Traceback of what main() let through: {error!r}\n")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def problem(outcome: Outcome) -> str | None:  # noqa: PLR0911 - a list of problems
    """What is wrong with how a run ended, in words that are alike for findings of one kind."""
    if outcome.code is None:
        return "hangs"
    if outcome.code not in CODES:
        return f"exit code {outcome.code}"
    if "Traceback" in outcome.text:
        return "traceback"
    lines = [line for line in outcome.text.splitlines() if line.startswith("Error: ")]
    if outcome.code in {2, 3, 4} and (
        len(lines) != 1 or outcome.text.strip() != lines[0].strip()
    ):
        return f"not one message: {outcome.text[:120]!r}"
    if outcome.code in {0, 1} and lines:
        return "a message, and no error"
    if outcome.verdict == "differs":
        return "differs"
    return None


def try_case(
    content: bytes, place: pathlib.Path
) -> tuple[str | None, str, collections.Counter[str]]:
    """Run both commands on one case.

    Returns:
        what is wrong (None: nothing), the text that tells more, and counts for the summary.
    """
    source = place / "source"
    shutil.rmtree(place, ignore_errors=True)
    source.mkdir(parents=True)
    path, out = source / "m.onnx", place / "out"
    path.write_bytes(content)
    counts: collections.Counter[str] = collections.Counter()
    for command in (
        ["inspect", str(path)],
        ["optimize", str(path), "--no-profile", "-o", str(out)],
    ):
        outcome = run_here(command, place / "log")
        if outcome.code is not None and outcome.code < 0:
            counts[
                f"{command[0]}: a library crashed ({signal.Signals(-outcome.code).name})"
            ] += 1
            shutil.rmtree(out.with_name(".out.deploykit"), ignore_errors=True)
            outcome = run_as_program(command)
            shutil.rmtree(out.with_name(".out.deploykit"), ignore_errors=True)
        report = out / "report.json"
        if report.exists():
            document = json.loads(report.read_text(encoding="utf-8"))
            verdict = document["verdict"]
            if verdict == "differs" and any(
                "returns NaN" in each for each in document["warnings"]
            ):
                # What zeros meet inside of such a model is no number either, and no zero cancels it.
                verdict = "is not finite"
            elif verdict == "differs" and (
                (document["validation"]["max_abs_error"] or np.inf) < ROUNDING
            ):
                # Means of large maps round more than the comparison allows; `tests.hunt` looks for small errors.
                verdict = "differs in rounding"
            outcome = dataclasses.replace(outcome, verdict=verdict)
        counts[f"{command[0]}: exit code {outcome.code} {outcome.verdict}".strip()] += 1
        wrong = problem(outcome)
        if outcome.code == BUG:
            loud = run_here([*command, "-vv"], place / "log")
            found = re.findall(r'File "(.*)", line (\d+), in \w+', loud.text) or [("?", "0")]
            ours = [
                (name, line) for name, line in found if "site-packages" not in name
            ] or found
            name, line = ours[-1]
            kind = re.findall(r"Error: (\w+)", loud.text)[-1:]
            wrong = f"bug: {kind} at {pathlib.Path(name).name}:{line}"
            outcome = loud
        left = {each.name for each in place.iterdir()} - {"source", "log"}
        if wrong is None and left != ({"out"} if report.exists() else set()):
            wrong = f"leaves {sorted(left)}"
        if wrong is None and (path.read_bytes() != content or len(list(source.iterdir())) > 1):
            wrong = "touches the source"
        if wrong is not None:
            return f"{command[0]} {wrong}", outcome.text, counts
    return None, "", counts


def warm_up(model: onnx.ModelProto, place: pathlib.Path) -> None:
    """Import whatever a run imports, so that forks need not."""
    from deploykit.cli import main

    place.mkdir(parents=True)
    (place / "m.onnx").write_bytes(model.SerializeToString())
    command = [
        "optimize",
        str(place / "m.onnx"),
        "--no-profile",
        "-q",
        "-o",
        str(place / "out"),
    ]
    with contextlib.redirect_stdout(None):
        main(command, standalone_mode=False)


def run_as_program(command: list[str]) -> Outcome:
    """Run a command as a user does, where it has a parent that tells of crashes."""
    try:
        done = subprocess.run(  # noqa: S603 - ours
            [sys.executable, "-m", "deploykit", *command],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, "")
    return Outcome(done.returncode, done.stderr)


def fuzz(*, seed: int, folder: pathlib.Path, minutes: float, cases: int | None) -> int:
    """Run until time or cases are used up; returns how many kinds of findings there were."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = corpus(seed, 40)
    found: dict[str, int] = {}
    counts: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + 60 * minutes
    place = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
    warm_up(models[0], place / "warm")
    number = 0
    while time.monotonic() < end and (cases is None or number < cases):
        content = make_case(models, dice)
        wrong, more, told = try_case(content, place / "case")
        counts.update(told)
        number += 1
        if wrong is not None:
            if wrong not in found:
                folder.mkdir(parents=True, exist_ok=True)
                stem = folder / f"seed{seed}-{number:06d}"
                stem.with_suffix(".onnx").write_bytes(content)
                stem.with_suffix(".txt").write_text(f"{wrong}\n{more}", encoding="utf-8")
                print(f"finding {stem}.onnx: {wrong}", flush=True)  # noqa: T201 - a script
            found[wrong] = found.get(wrong, 0) + 1
    shutil.rmtree(place, ignore_errors=True)
    for name, times in sorted(counts.items()):
        print(f"{times:7d}  {name}")  # noqa: T201
    print(f"{number} cases, {sum(found.values())} findings of {len(found)} kinds")  # noqa: T201
    return len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--cases", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("build/fuzz"))
    given = parser.parse_args()
    return int(
        fuzz(seed=given.seed, folder=given.folder, minutes=given.minutes, cases=given.cases) > 0
    )


if __name__ == "__main__":
    sys.exit(main())
