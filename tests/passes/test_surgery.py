"""What a plan leaves in the file: declared shapes that still fit, and names of which there is one each."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

import passes
from tests import oracle
from tests.graphs import Graph


def test_an_add_behind_a_layer_declares_the_channels_that_are_left() -> None:
    g = Graph()
    dead = g.conv(g.input("x", (1, 3, 6, 6)), 8, 3, pads=[1] * 4)
    y = g.add("Relu", [g.conv(g.add("Sigmoid", [dead]), 6, 3, pads=[1] * 4)])
    out = g.conv(y, 4, 1)
    first, second = (g.constants[layer.weight] for layer in g.layers[:2])
    first[2:5] = second[1] = 0
    original = shape_inference.infer_shapes(g.model(out))
    model = oracle.from_proto(original)
    report = passes.RemoveChannels(carry="bias-map")(model)
    assert any("bias map" in change.what for change in report.changes)
    oracle.check(model)
    oracle.assert_same_function(original, model, oracle.make_inputs(original, {}))


def test_sizes_are_patched_again_under_another_name() -> None:
    rng = np.random.default_rng(0)
    # twice the size, as exporters spell it out where the input's is open
    original = onnx.parser.parse_model("""
<ir_version: 9, opset_import: ["": 18]>
g (float[N,6,4,4] x) => (float[N,4,8,8] y)
<int64[1] zero = {0}, int64[1] two = {2}, int64[2] space = {8, 8}>
{
    h = Conv (x, w)
    s = Shape (h)
    front = Slice (s, zero, two, zero)
    sizes = Concat <axis = 0> (front, space)
    r = Resize <mode = "nearest"> (h, , , sizes)
    y = Conv (r, v)
}
""")
    w, v = rng.standard_normal((8, 6, 1, 1)), rng.standard_normal((4, 8, 1, 1))
    w[:3] = 0
    for name, array in {"w": w, "v": v}.items():
        tensor = numpy_helper.from_array(array.astype(np.float32), name)
        original.graph.initializer.append(tensor)
    model = oracle.from_proto(original)
    assert passes.RemoveChannels()(model).modified
    assert passes.AlignChannels(multiple=4)(model).modified
    proto = oracle.to_proto(model)
    names = [name for node in proto.graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert sum(name.startswith("s_resized") for name in names) == 2
    oracle.assert_same_function(original, model, oracle.make_inputs(original, {"N": 5}))
