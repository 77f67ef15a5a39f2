"""A small convolutional network with a residual sum, for tests of what it would be with other channels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["make_residual"]


def make_residual(*, width=64, size=16, batch="batch", zeroed=0, seed=0):
    """Two convolutions that meet in a sum, one behind it, and a head.

    Args:
        width: channels of the convolutions that meet.
        size: of the pictures.
        batch: size of the batch axis.
        zeroed: how many channels, drawn at random, are zero: of the tied ones, of "inner" and of "last" alike.
        seed: of the weights, and of which channels are zero.
    """
    dice = np.random.default_rng(seed)
    sizes = {
        "first": (width, 16, 3, 3),
        "inner": (width, width, 3, 3),
        "outer": (width, width, 3, 3),
        "last": (width, width, 1, 1),
        "head": (10, width),
    }
    arrays = {}
    for name, shape in sizes.items():
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        arrays[f"{name}.weight"] = (scale * dice.standard_normal(shape)).astype(np.float32)
        arrays[f"{name}.bias"] = dice.standard_normal(shape[0]).astype(np.float32)
    for names in (("first", "outer"), ("inner",), ("last",)):
        dead = dice.permutation(width)[:zeroed]
        for name in names:
            arrays[f"{name}.weight"][dead] = 0
            arrays[f"{name}.bias"][dead] = 0

    def conv(name, read):
        pads = [1, 1, 1, 1] if sizes[name][2] == 3 else [0, 0, 0, 0]
        inputs = [read, f"{name}.weight", f"{name}.bias"]
        return helper.make_node("Conv", inputs, [f"{name}_out"], name, pads=pads)

    nodes = [
        conv("first", "x"),
        helper.make_node("Relu", ["first_out"], ["a"], "relu1"),
        conv("inner", "a"),
        helper.make_node("Relu", ["inner_out"], ["b"], "relu2"),
        conv("outer", "b"),
        helper.make_node("Add", ["outer_out", "a"], ["sum"], "sum"),
        conv("last", "sum"),
        helper.make_node("Relu", ["last_out"], ["c"], "relu3"),
        helper.make_node("GlobalAveragePool", ["c"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["y"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 16, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return model
