"""A small network for the samples: three convolutions, a residual sum, a classifier; some channels zeroed by pruning."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
network (float[1,3,32,32] image, float[32,3,3,3] stem_w, float[32] stem_b, float[48,32,3,3] wide_w,
         float[48] wide_b, float[32,48,1,1] back_w, float[32] back_b, float[10,32] head_w, float[10] head_b)
    => (float[1,10] scores)
{
    stem = Conv<pads = [1, 1, 1, 1]>(image, stem_w, stem_b)
    a = Relu(stem)
    wide = Conv<pads = [1, 1, 1, 1]>(a, wide_w, wide_b)
    b = Relu(wide)
    back = Conv(b, back_w, back_b)
    c = Add(a, back)
    pooled = GlobalAveragePool(c)
    flat = Flatten(pooled)
    scores = Gemm<transB = 1>(flat, head_w, head_b)
}
"""


def make_network(dead: int = 21) -> ir.Model:
    """The network, with `dead` of the 48 channels of its wide layer zeroed (their biases are not)."""
    dice = np.random.default_rng(0)
    model = ir.from_onnx_text(GRAPH)
    # The text has no room for weights: they are written as inputs and become initializers here.
    for value in list(model.graph.inputs)[1:]:
        shape = value.shape.numpy()
        fan_in = max(1, int(np.prod(shape[1:])))
        array = (dice.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        if value.name == "wide_w":
            array[dice.permutation(48)[:dead]] = 0
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    return model
