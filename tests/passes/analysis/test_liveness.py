"""What is claimed not to be needed is changed, and nothing happens; what is claimed to be needed does something."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from passes.analysis.constants import find_constants
from passes.analysis.liveness import RULES, find_needed
from tests.oracle import open_session
from tests.passes.analysis.operator_cases import (
    CASES,
    Case,
    build,
    f32,
    i64,
    load,
    normal,
    sizes_of,
    thinned,
)

SAMPLED = 30
ATTEMPTS = 100
# Larger changes get through a maximum, smaller ones past a threshold.
SCALES = (2, 20, 0.5)


def find(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """What is needed of each tensor, by name."""
    model = load(proto)
    sizes = sizes_of(model, shapes)
    found = find_needed(model, sizes, find_constants(model, sizes))
    return {str(value.name): needed for value, needed in found.items()}


def partly_read(case: Case, axis: int) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """The case's graph, of whose result only some entries along `axis` are read; and the shapes of both."""
    plain = build(case.nodes(), {"y": case.shape}, case.constants, ("z",), case.opset)
    (result,) = open_session(plain).run(None, {"y": normal(*case.shape)})
    kept = np.flatnonzero(np.isin(np.arange(result.shape[axis]) % 4, (0, 3)))
    node = onnx.parser.parse_node(f"out = Gather <axis={axis % result.ndim}> (z, kept)")
    proto = build(
        [*case.nodes(), node],
        {"y": case.shape},
        {**case.constants, "kept": kept},
        ("out",),
        case.opset,
    )
    return proto, {"z": result.shape, "out": result.take(kept, axis).shape}


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("name", CASES)
def test_only_what_is_needed_has_an_effect(name: str, axis: int) -> None:
    case = CASES[name]
    proto, shapes = partly_read(case, axis)
    needed = find(proto, shapes)["y"]
    assert all(size in {1, full} for size, full in zip(needed.shape, case.shape, strict=True))
    needed = np.broadcast_to(needed, case.shape)
    session = open_session(proto)
    rng = np.random.default_rng(0)
    # In space nothing finer than "all of it" is claimed of windows, so that completeness is asked of channels.
    idle = list(map(tuple, rng.permutation(np.argwhere(needed))[:SAMPLED]))
    idle = idle if case.needed and axis == 1 else []
    for attempt in range(ATTEMPTS):
        if attempt > 3 and not idle:
            break
        scale = np.float32(SCALES[attempt % len(SCALES)])
        base = 2 * rng.normal(size=case.shape).astype(np.float32)
        other = scale * rng.normal(size=case.shape).astype(np.float32)
        (before,) = session.run(None, {"y": base})
        (after,) = session.run(None, {"y": np.where(needed, base, other)})
        np.testing.assert_array_equal(after, before)
        for position in list(idle):
            changed = base.copy()
            changed[position] = other[position]
            (after,) = session.run(None, {"y": changed})
            if not np.array_equal(after, before, equal_nan=True):
                idle.remove(position)
    assert not idle


def test_every_rule_has_a_case() -> None:
    covered = set().union(*(case.op_types for case in CASES.values()))
    assert set(RULES) <= covered


def nodes(text: str) -> list[onnx.NodeProto]:
    return [onnx.parser.parse_node(line) for line in text.splitlines()]


def test_need_stops_at_columns_that_are_zero_in_every_row_read() -> None:
    proto = build(
        nodes(
            "a = Conv(x, u)\nb = Relu(a)\nc = Conv <pads=[1,1,1,1]> (b, v)\nz = Slice(c, s, e, s)"
        ),
        {"x": (1, 3, 4, 4)},
        {"u": normal(4, 3, 1, 1), "v": thinned(8, 4, 3, 3), "s": i64(1), "e": i64(2)},
        ("z",),
    )
    found = find(proto)
    assert found["c"].ravel().tolist() == [False, True] + [False] * 6
    # Row 1 of `v` reads inputs 0 and 2.
    for name in ("a", "b"):
        assert found[name].ravel().tolist() == [True, False, True, False]


def test_a_constant_needs_nothing() -> None:
    proto = build(
        nodes("a = Conv(x, u, b)\ny = Relu(a)\nz = Conv(y, v)"),
        {"x": (1, 3, 4, 4)},
        {
            "u": normal(4, 3, 1, 1) * f32(1, 0, 1, 0).reshape(4, 1, 1, 1),
            "b": normal(4),
            "v": normal(2, 4, 1, 1),
        },
        ("z",),
    )
    found = find(proto)
    assert found["y"].all()
    assert found["a"].ravel().tolist() == [True, False, True, False]


def test_what_a_subgraph_captures_is_needed() -> None:
    body = onnx.helper.make_graph(
        nodes("r = Mul(y, g)"), "body", [], [onnx.helper.make_empty_tensor_value_info("r")]
    )
    bare = onnx.helper.make_graph(
        nodes("q = Identity(t)"), "bare", [], [onnx.helper.make_empty_tensor_value_info("q")]
    )
    inner = onnx.helper.make_node("If", ["c"], ["q"], then_branch=body, else_branch=bare)
    outer = onnx.helper.make_graph(
        [inner], "outer", [], [onnx.helper.make_empty_tensor_value_info("q")]
    )
    branch = onnx.helper.make_node("If", ["c"], ["z"], then_branch=outer, else_branch=bare)
    proto = build(
        [*nodes("y = Relu(x)\nt = Neg(x)\ns = Exp(x)"), branch],
        {"x": (1, 3)},
        {"c": np.array(True), "g": f32(0, 0, 1)},
        ("z",),
    )
    found = find(proto)
    assert found["y"].all()
    assert found["t"].all()
    assert not found["s"].any()


def test_need_is_uniform_along_a_size_that_is_not_known() -> None:
    proto = build(
        nodes("z = Slice(x, s, e, a)"),
        {"x": ("n", 4, "w")},
        {"s": i64(0, 1), "e": i64(2, 3), "a": i64(2, 1)},
        ("z",),
    )
    found = find(proto)["x"]
    assert found.shape == (1, 4, 1)
    assert found.ravel().tolist() == [False, True, True, False]
