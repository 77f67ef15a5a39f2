"""No zero channel stays without a word. That the words are true is for test_refusals to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import onnx
from onnx import helper, numpy_helper

import passes
from tests import oracle, strategies

if TYPE_CHECKING:
    from passes.base import PassReport


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
