"""Sizes of models: what is counted, and what is not when it is not known."""

import onnx.parser
import onnx_ir as ir

from deploykit import size
from passes.analysis.macs import count_macs


def parsed(graph):
    header = '<ir_version: 8, opset_import: ["" : 18, "custom" : 1]>'
    return ir.from_proto(onnx.parser.parse_model(f"{header} {graph}"))


def test_a_product_of_unknown_size_makes_the_total_unknown():
    model = parsed(
        """g (float[N,4] x) => (float[N,2] y) <float[4,2] w = {1,1,1,1,1,1,1,1}, float[2,2] v = {1,1,1,1}>
        { t = MatMul(x, w) u = custom.Odd(t) y = MatMul(u, v) }"""
    )
    assert count_macs(model, {"x": (3, 4)}) is None


def test_shapes_with_overwritten_elements_are_followed():
    # What removal makes of a Reshape: its computed sizes, with one of them replaced.
    model = parsed(
        """g (float[N,6] x) => (float[N,M] y) <int64[1] two = {2}, bool[3] is_set = {0,0,1}, int64[3] given = {0,0,3},
        float[3,5] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>
        { n = Shape<start = 0, end = 1>(x) s = Concat<axis = 0>(n, two, two)
          p = Where(is_set, given, s) r = Reshape(x, p) y = MatMul(r, w) }"""
    )
    nodes = [node.op_type for node in model.graph]
    assert count_macs(model, {"x": (4, 6)}) == 4 * 2 * 3 * 5
    assert [node.op_type for node in model.graph] == nodes
    assert size.longest_sum(model, {"x": (4, 6)}) == 3
    assert size.count(model, {"x": (4, 6)}).constant_bytes == 4 * 8 + 3 + 15 * 4
