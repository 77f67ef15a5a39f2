"""What is claimed to be constant is compared with what stays the same in ONNX Runtime from input to input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from passes.analysis.constants import RULES, find_constants
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

RUNS = 24
# Channels 1 and 3 of `y` do not depend on `x`.
GATE, OFFSET = f32(1, 0, 2, 0), f32(0.1, 0.7, 0, -1.3)


def prelude(rank: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    lines = ("y0 = Mul(x, gate)", "y = Add(y0, offset)")
    shape = (4,) + (1,) * (rank - 2)
    constants = {"gate": GATE.reshape(shape), "offset": OFFSET.reshape(shape)}
    return [onnx.parser.parse_node(line) for line in lines], constants


def observe(
    proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]
) -> list[list[np.ndarray]]:
    """Every output for every feed."""
    session = open_session(proto)
    return [session.run(None, feed) for feed in feeds]


def claims(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mask and value of each tensor of which something is claimed, by name."""
    model = load(proto)
    found = find_constants(model, sizes_of(model, shapes))
    return {str(value.name): (known.mask, known.value) for value, known in found.items()}


def check_values(
    mask: np.ndarray, value: np.ndarray, seen: list[np.ndarray], tolerance: float = 1e-5
) -> None:
    """Every claimed element has the claimed value in every run."""
    mask, value = (np.broadcast_to(x, seen[0].shape) for x in (mask, value))
    for run in seen:
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(run[mask], value[mask], rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", CASES)
def test_claims_hold_and_nothing_constant_is_missed(name: str) -> None:
    case: Case = CASES[name]
    nodes, constants = prelude(len(case.shape))
    proto = build(
        nodes + case.nodes(),
        {"x": case.shape},
        {**constants, **case.constants},
        ("z",),
        case.opset,
    )
    rng = np.random.default_rng(0)
    feeds = [{"x": 2 * rng.normal(size=case.shape).astype(np.float32)} for _ in range(RUNS)]
    seen = [outputs[0] for outputs in observe(proto, feeds)]
    mask, value = claims(proto, {"z": seen[0].shape}).get(
        "z", (np.zeros((1,) * seen[0].ndim, bool), np.zeros((1,) * seen[0].ndim))
    )
    for array in (mask, value):
        assert all(
            size in {1, full} for size, full in zip(array.shape, seen[0].shape, strict=True)
        )
    check_values(mask, value, seen, case.tolerance)
    if case.known:
        alike = [np.isclose(run, seen[0], rtol=1e-6, atol=0) for run in seen]
        steady = np.logical_and.reduce(alike) & np.isfinite(seen[0])
        np.testing.assert_array_equal(np.broadcast_to(mask, steady.shape), steady)


def test_every_rule_has_a_case() -> None:
    covered = set().union(*(case.op_types for case in CASES.values()))
    assert set(RULES) <= covered


DYNAMIC: dict[str, tuple[str, dict[str, np.ndarray], int]] = {
    # Nodes, constants, and how many channels of `z` are constant at every size.
    "unpadded": ("z = Conv(y, w)", {"w": thinned(8, 4, 3, 3)}, 4),
    "padded": ("z = Conv <pads=[1,1,1,1]> (y, w)", {"w": thinned(8, 4, 3, 3)}, 2),
    "padded after zero": ("t = Relu(y)\nu = Sub(t, c)\nz = Conv <pads=[1,1,1,1]> (u, w)", {"w": thinned(8, 4, 3, 3), "c": f32(0, 0.7, 0, 0).reshape(4, 1, 1)}, 4),
    # The last row is read whole at even heights, where the padding at the end is never reached.
    "strided, padded": ("z = Conv <pads=[0,0,1,0], strides=[2,1], kernel_shape=[3,1]> (y, w)", {"w": thinned(8, 4, 3, 1)}, 2),
    "same": ('z = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (y, w)', {"w": thinned(8, 4, 3, 3)}, 2),
    # Nothing is padded at even sizes.
    "same, of even windows": (
        'z = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (y, w)',
        {"w": thinned(8, 4, 2, 2)},
        2,
    ),
    "transposed, blocks": ("z = ConvTranspose <strides=[2,2]> (y, w)", {"w": np.ones((4, 1, 2, 2), np.float32) * f32(0, 1, 0, 1).reshape(4, 1, 1, 1)}, 1),
    "transposed, pattern": ("z = ConvTranspose <strides=[2,2]> (y, w)", {"w": normal(4, 1, 2, 2) * f32(0, 1, 0, 1).reshape(4, 1, 1, 1)}, 0),
    "counted pads": ("z = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (y)", {}, 0),
    "uncounted pads": ("z = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (y)", {}, 2),
    "sum": ("z = ReduceSum(y, a)", {"a": i64(2, 3)}, 0),
    "mean": ("z = ReduceMean(y, a)", {"a": i64(2, 3)}, 2),
    "softmax": ("z = Softmax <axis=3> (y)", {}, 0),
    "resize": ('z = Resize <mode="linear"> (y, , s)', {"s": f32(1, 1, 2, 2)}, 2),
    "padding": ("z = Pad(y, p)", {"p": i64(0, 0, 0, 1, 0, 0, 0, 0)}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", DYNAMIC)
def test_claims_hold_at_every_size(name: str) -> None:
    lines, constants, channels = DYNAMIC[name]
    nodes, gates = prelude(4)
    nodes += [onnx.parser.parse_node(line) for line in lines.splitlines()]
    proto = build(nodes, {"x": ("n", 4, "h", "w")}, {**gates, **constants}, ("z",))
    found = claims(proto).get("z")
    assert (
        0 if found is None else np.broadcast_to(found[0], (1, found[0].shape[1], 1, 1)).sum()
    ) == channels
    if found is not None:
        rng = np.random.default_rng(1)
        sizes = ((1, 4, 3, 4), (3, 4, 6, 5), (2, 4, 7, 8), (1, 4, 8, 9))
        feeds = [{"x": rng.normal(size=size).astype(np.float32)} for size in sizes]
        for outputs in observe(proto, feeds):
            check_values(*found, outputs)


def test_an_overflow_is_not_known() -> None:
    proto = build(
        [
            onnx.parser.parse_node(line)
            for line in ("t = Mul(x, c)", "u = Add(t, d)", "z = Exp(u)")
        ],
        {"x": (1, 2)},
        {"c": f32(0, 0), "d": f32(1, 1000)},
        ("z",),
    )
    assert claims(proto)["z"][0].tolist() == [[True, False]]


def test_an_operator_of_another_domain_has_no_rule() -> None:
    node = onnx.helper.make_node("Relu", ["y"], ["z"], domain="elsewhere")
    nodes, constants = prelude(4)
    proto = build([*nodes, node], {"x": (1, 4, 2, 2)}, constants, ("z",))
    proto.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    found = claims(proto)
    assert "y" in found
    assert "z" not in found


def test_a_window_over_more_channels_than_there_are_takes_no_longer() -> None:
    """LRN with the largest size there is: whoever steps through its window never ends."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] z) '
        "<float[1, 2, 1, 1] gate = {0, 1}> "
        f"{{ y = Mul(x, gate) z = LRN <size={2**63 - 1}> (y) }}"
    )
    mask, value = claims(proto)["z"]
    assert mask[0, 0].all()
    assert not mask[0, 1].any()
    assert not value[0, 0].any()
