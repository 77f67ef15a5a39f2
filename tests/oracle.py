"""Judges whether two models compute the same function: ONNX Runtime, optimisation off, one thread.

Errors are measured against the *spread* of an output: how far it moves from input to input (root mean square over its
elements). Measured against the magnitude, a network whose outputs hardly depend on the input would pass with any
error in the part that does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

Feeds: TypeAlias = Mapping[str, np.ndarray]
Model: TypeAlias = "onnx.ModelProto | ir.Model"

INPUT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
MINIMAL_SPREAD = 0.01
STILL = 0.1
FORGIVEN = 4.0
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float16): 5e-3, np.dtype(np.float64): 1e-9}


class DifferenceError(AssertionError):
    """Two models that should agree do not."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        error: the largest error of an output, as a fraction of its spread.
        collapsed: no output moves by 1 % of its magnitude between inputs; the comparison proves little.
    """

    error: float
    collapsed: bool


def to_proto(model: Model) -> onnx.ModelProto:
    """The model as protobuf."""
    return ir.serde.serialize_model(model) if isinstance(model, ir.Model) else model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """The model in memory; shares nothing with `proto` that a pass could change."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return ir.serde.deserialize_model(copy)


def check(model: Model) -> None:
    """Run the full checker of onnx, with shape inference."""
    onnx.checker.check_model(to_proto(model), full_check=True)


def open_session(model: Model) -> ort.InferenceSession:
    """A session that computes just what the graph says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return ort.InferenceSession(
        to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session: ort.InferenceSession, feeds: Feeds) -> list[np.ndarray]:
    """All outputs for one input, floats as float64."""
    outputs: list[Any] = session.run(None, dict(feeds))
    return [o.astype(np.float64) if o.dtype.kind == "f" else o for o in outputs]


def is_finite(outputs: Sequence[np.ndarray]) -> bool:
    """Whether every number is."""
    return all(bool(np.isfinite(o).all()) for o in outputs)


def make_inputs(
    model: Model, sizes: Mapping[str, int], seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Five inputs: three normal, one constant, and the largest on which the outputs stay finite.

    Args:
        model: whose inputs are to be fed.
        sizes: of the symbolic axes, by name.
        seed: of the normal inputs.
    """
    session, rng = open_session(model), np.random.default_rng(seed)

    def feeds(make: Any) -> dict[str, np.ndarray]:
        return {
            i.name: np.asarray(
                make([sizes[d] if isinstance(d, str) else d for d in i.shape])
            ).astype(INPUT_TYPES[i.type])
            for i in session.get_inputs()
        }

    normal = [feeds(rng.standard_normal) for _ in range(3)]
    base, factor = feeds(rng.standard_normal), 1.0
    floats = {name for name, array in base.items() if array.dtype.kind == "f"}
    top = max((float(np.finfo(base[n].dtype).max) for n in floats), default=1.0)

    def scaled(by: float) -> dict[str, np.ndarray]:
        # What overflows is infinite, and so are outputs then: the scale before is taken.
        with np.errstate(over="ignore"):
            return {
                n: (a.astype(np.float64) * by).astype(a.dtype) if n in floats else a
                for n, a in base.items()
            }

    # Coarse steps: one below the last finite scale, intermediate tensors are finite as well with some margin.
    step = 4.0 if top < 1e5 else 1e3
    while factor * step**2 < top and is_finite(run(session, scaled(factor * step**2))):
        factor *= step
    return [*normal, feeds(np.ones), scaled(factor)]


def widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 model computed in float32: what it would answer without its own rounding."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT

    def widen_tensor(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == half:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def widen(graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.output, *graph.value_info]:
            if value.type.tensor_type.elem_type == half:
                value.type.tensor_type.elem_type = single
        for tensor in graph.initializer:
            widen_tensor(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == half:
                    attribute.i = single
                if attribute.type == onnx.AttributeProto.TENSOR:
                    widen_tensor(attribute.t)
                if attribute.type == onnx.AttributeProto.GRAPH:
                    widen(attribute.g)

    widen(model.graph)
    return model


def rounding(
    original: Model, inputs: Sequence[Feeds], expected: Sequence[Sequence[np.ndarray]]
) -> list[list[float]]:
    """How far a float16 model is from its own answer in float32, by input and output; 0 for others."""
    proto = to_proto(original)
    if not any(
        i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for i in proto.graph.input
    ):
        return [[0.0] * len(outputs) for outputs in expected]
    session = open_session(widened(proto))
    found = []
    for feeds, outputs in zip(inputs, expected, strict=True):
        wide = {
            n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in feeds.items()
        }
        errors = [
            np.abs(a.astype(np.float64) - b)[np.isfinite(a) & np.isfinite(b)]
            for a, b in zip(run(session, wide), outputs, strict=True)
        ]
        found.append([float(error.max(initial=0.0)) for error in errors])
    return found


def nudged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An array of floats moved up or down by about one unit in the last place."""
    if array.dtype.kind != "f":
        return array
    factor = 1 + np.finfo(array.dtype).eps * rng.choice([-1.0, 1.0], array.shape)
    return (array.astype(np.float64) * factor).astype(array.dtype)


def sensitivity(original: Model, feeds: Feeds, outputs: Sequence[np.ndarray]) -> list[float]:
    """How far the outputs move when inputs and weights move in the last place: what rounding alone can do."""
    rng = np.random.default_rng(0)
    model = onnx.ModelProto()
    model.CopyFrom(to_proto(original))
    # a scale a little below 4 makes another size of it, and other pixels
    exact = {
        name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]
    }
    for tensor in model.graph.initializer:
        if tensor.name not in exact:
            array = nudged(numpy_helper.to_array(tensor), rng)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    moved = {name: nudged(array, rng) for name, array in feeds.items()}
    return [
        float(
            np.abs(a.astype(np.float64) - b)[np.isfinite(a) & np.isfinite(b)].max(initial=0.0)
        )
        for a, b in zip(run(open_session(model), moved), outputs, strict=True)
    ]


def assert_same_function(  # noqa: PLR0912 - a list of what must agree
    original: Model,
    rewritten: Model,
    inputs: Sequence[Feeds],
    tolerance: float | None = None,
) -> Agreement:
    """Compare two models on inputs of `make_inputs`.

    The last input may be huge: it is judged on its own scale, so that it can't hide an error on the others. Float16
    rounds to 1e-3 at every step, often more than a small spread allows: an error is also forgiven where the original
    is as far from its own answer in float32, or where it is a few units in the last place. What the original's outputs
    do when its inputs and weights move in the last place is forgiven in any format.

    Args:
        original: the reference.
        rewritten: what a pass made of it.
        inputs: of equal shapes; the last is the large one.
        tolerance: largest error as a fraction of an output's spread; default by dtype of the output.

    Raises:
        DifferenceError: an output differs by more, in shape, or in where it is finite.
    """
    before = open_session(original)
    try:
        after = open_session(rewritten)
        actual = [run(after, feeds) for feeds in inputs]
    except (
        Exception
    ) as error:  # ONNX Runtime raises many kinds, all of which mean a broken graph
        raise DifferenceError(f"the rewritten model does not run: {error}") from error
    for what in ("get_inputs", "get_outputs"):
        mine, theirs = (
            [(v.name, v.type, len(v.shape)) for v in getattr(s, what)()]
            for s in (before, after)
        )
        if mine != theirs:
            raise DifferenceError(f"the interface changed: {mine} became {theirs}")
    kinds = [np.dtype(INPUT_TYPES.get(o.type, np.float32)) for o in before.get_outputs()]
    names = [o.name for o in before.get_outputs()]
    expected = [run(before, feeds) for feeds in inputs]
    noise = rounding(original, inputs, expected)
    worst, collapsed = 0.0, True
    for k, name in enumerate(names):
        want, have = [e[k] for e in expected], [a[k] for a in actual]
        for i, (w, h) in enumerate(zip(want, have, strict=True)):
            if w.shape != h.shape:
                raise DifferenceError(
                    f"'{name}' has shape {h.shape}, not {w.shape}, on input {i}"
                )
            if not np.array_equal(np.isfinite(w), np.isfinite(h)):
                raise DifferenceError(f"'{name}' is finite elsewhere than it was, on input {i}")
        if kinds[k].kind != "f":
            if any((w != h).any() for w, h in zip(want, have, strict=True)):
                raise DifferenceError(f"'{name}' has other integers")
            continue
        stack = np.nan_to_num(np.stack(want[:-1]), posinf=0.0, neginf=0.0)
        magnitude = float(np.abs(stack).max(initial=0.0))
        spread = float(np.sqrt(stack.var(axis=0).mean())) if stack.size else 0.0
        collapsed &= spread < MINIMAL_SPREAD * magnitude or magnitude == 0.0
        # An output that hardly moves is compared with a tenth of its magnitude: rounding alone would show otherwise.
        if spread <= MINIMAL_SPREAD * magnitude:
            spread = max(STILL * magnitude, 1e-6)
        scales = [spread] * (len(want) - 1)
        large = np.abs(want[-1])[np.isfinite(want[-1])]
        scales.append(max(float(large.max(initial=0.0)), scales[0]))
        limit = TOLERANCE[kinds[k]] if tolerance is None else tolerance
        step = float(np.finfo(kinds[k]).eps)
        for i, (w, h, scale) in enumerate(zip(want, have, scales, strict=True)):
            finite = np.isfinite(w)
            error = float(np.abs(w[finite] - h[finite]).max(initial=0.0))
            worst = max(worst, error / scale)
            last_place = step * float(np.abs(w[finite]).max(initial=0.0))
            rounded = max(row[k] for row in (noise[-1:] if i == len(want) - 1 else noise[:-1]))
            allowed = max(limit * scale, FORGIVEN * rounded, FORGIVEN * last_place)
            if error > allowed:
                # Differences of large numbers are noise in the original as well.
                allowed = max(
                    allowed, FORGIVEN * sensitivity(original, inputs[i], expected[i])[k]
                )
            if error > allowed:
                raise DifferenceError(
                    f"'{name}' is off by {error:.3g}, {error / scale:.3g} of its spread, on input {i}"
                )
    return Agreement(worst, collapsed)
