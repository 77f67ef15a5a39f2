"""No zero channel stays without a word, and every word is true: what a Skip refuses would have broken the model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import passes
from tests import oracle, strategies
from tests.graphs import Graph
from tests.naive import cut_everywhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes.base import PassReport

WIDTH = 8
DEAD = (1, 3, 4, 6)


def zero_rows(proto: onnx.ModelProto) -> dict[str, int]:
    """How many output channels of each layer have nothing but zero weights, by node name."""
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    found: dict[str, int] = {}
    for node in proto.graph.node:
        weight = arrays.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or weight.ndim < 2:
            continue
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "ConvTranspose":
            group = attrs.get("group", 1)
            weight = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
            rows = np.moveaxis(weight, 2, 1).reshape(group * weight.shape[2], -1)
        elif node.op_type == "Conv" or (node.op_type == "Gemm" and attrs.get("transB")):
            rows = weight.reshape(weight.shape[0], -1)
        elif node.op_type in {"Gemm", "MatMul"}:
            rows = np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1)
        else:
            continue
        count = int((rows == 0).all(axis=1).sum())
        if count:
            found[node.name] = count
    return found


def remove(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, PassReport]:
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    report = passes.RemoveChannels(carry="carrier")(model)
    return oracle.to_proto(model), report


def explanations(proto: onnx.ModelProto, node_name: str, report: PassReport) -> list[str]:
    """What the report says about a layer: under its name, its weight's, or its result's."""
    node = next(n for n in proto.graph.node if n.name == node_name)
    names = {node.name, node.input[1], node.output[0]}
    said = [s.reason for s in report.skips if any(name in s.subject for name in names)]
    carriers = [c for c in report.changes if "carrier" in c.what]
    return said + [c.what for c in carriers if any(name in c.subject for name in names)]


@hypothesis.given(strategies.cases())
def test_every_zero_channel_that_stays_is_explained(case: strategies.Case) -> None:
    rewritten, report = remove(case.proto)
    for node_name in zero_rows(rewritten):
        assert explanations(case.proto, node_name, report), (node_name, report.skips)
    for skip in report.skips:
        assert skip.subject
        assert skip.reason
        assert skip.advice


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A graph in which dead channels of the first conv must stay, at least some.

    Attributes:
        name: of the kind of reason.
        build: continues a graph after `first`; returns the outputs.
        reason: text that the Skip must hold.
        dead: the dead channels.
        clean: zero biases as well.
        symbols: of the input, where it is dynamic.
    """

    name: str
    build: Callable[[Graph, str], str]
    reason: str
    dead: tuple[int, ...] = DEAD
    clean: bool = True
    symbols: tuple[int | str, ...] = ()


def tail(g: Graph, y: str) -> str:
    """A last layer."""
    return g.conv(y, 4, 1) if len(g.shape(y)) > 2 else g.gemm(y, 4)


def residual_with_live(g: Graph, x: str) -> str:
    return tail(g, g.add("Add", [x, g.conv("x", WIDTH, 1)]))


def uneven_groups(g: Graph, x: str) -> str:
    return tail(g, g.conv(x, 6, 3, group=2))


def uneven_shuffle(g: Graph, x: str) -> str:
    y = g.add("Reshape", [x, g.ints(0, 2, 4, 6, 6)])
    y = g.add("Transpose", [y], perm=[0, 2, 1, 3, 4])
    return tail(g, g.add("Reshape", [y, g.ints(0, 8, 6, 6)]))


def padded_depthwise(g: Graph, x: str) -> str:
    y = g.conv(x, WIDTH, 3, group=WIDTH, pads=[1] * 4)
    return tail(g, g.add("Relu", [y]))


def pixels(g: Graph, x: str) -> str:
    return tail(g, g.add("DepthToSpace", [x], blocksize=2))


def runtime_gather(g: Graph, x: str) -> str:
    index = g.input("index", (5,), np.int64)
    return tail(g, g.add("Gather", [x, index], axis=1))


REFUSALS = (
    Refusal("graph output", lambda g, x: g.add("Relu", [x]), "output"),
    Refusal("live partner", residual_with_live, ""),
    Refusal("uneven groups", uneven_groups, "group", (0, 1, 2, 5)),
    Refusal("uneven shuffle", uneven_shuffle, "", (0, 1, 2, 5)),
    Refusal("last channel", tail, "", tuple(range(WIDTH)), clean=False),
    Refusal(
        "border at unknown size",
        padded_depthwise,
        "",
        clean=False,
        symbols=(1, 3, "height", "width"),
    ),
    Refusal("parts of a pixel", pixels, ""),
    Refusal("indices at run time", runtime_gather, ""),
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_what_a_skip_refuses_breaks_the_model(refusal: Refusal) -> None:
    g = Graph(seed=8)
    first = g.conv(g.input("x", (1, 3, 6, 6), symbols=refusal.symbols), WIDTH, 3, pads=[1] * 4)
    g.zero_rows(g.layers[0], refusal.dead, clean=refusal.clean)
    proto = g.model(refusal.build(g, first))
    node = next(n.name for n in proto.graph.node if n.op_type == "Conv")
    rewritten, report = remove(proto)
    inputs = oracle.make_inputs(proto, {"height": 6, "width": 6})

    assert zero_rows(rewritten).get(node, 0) >= 1
    said = explanations(proto, node, report)
    assert any(refusal.reason in text for text in said), report.skips
    oracle.assert_same_function(proto, rewritten, inputs)
    with pytest.raises(oracle.DifferenceError):
        oracle.assert_same_function(proto, cut_everywhere(proto, WIDTH, refusal.dead), inputs)
