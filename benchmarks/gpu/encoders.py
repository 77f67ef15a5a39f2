"""Layers of ViT-B and BERT-base as ONNX, with random weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TOKENS", "build", "prune"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

TOKENS = {"vit-b": 197, "bert-base": 128}
"""Tokens of a picture of 224x224 in patches of 16, and a class token; a usual sentence length."""
WIDTH, HEADS, HIDDEN, LAYERS = 768, 12, 3072, 2
"""Two layers of twelve: they are alike, and time is what is asked. Source: the papers on ViT and BERT."""
QUERY, KEY, VALUE = "query", "key", "value"


class Builder:
    """A graph that grows node by node."""

    def __init__(self, seed: int) -> None:
        self.dice = np.random.default_rng(seed)
        self.graph = ir.Graph([], [], nodes=[], name="encoder", opset_imports={"": 17})

    def constant(self, name: str, array: Array) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
        self.graph.register_initializer(value)
        return value

    def node(
        self, op: str, name: str, inputs: Sequence[ir.Value], **attributes: Any
    ) -> ir.Value:
        node = ir.node(op, list(inputs), attributes=attributes, name=name)
        node.outputs[0].name = f"{name}.out"
        self.graph.append(node)
        return node.outputs[0]

    def linear(self, name: str, x: ir.Value, inputs: int, outputs: int) -> ir.Value:
        weight = self.dice.standard_normal((inputs, outputs)) / math.sqrt(inputs)
        bias = 0.1 * self.dice.standard_normal(outputs)
        y = self.node("MatMul", name, [x, self.constant(f"{name}.weight", _float(weight))])
        return self.node("Add", f"{name}.add", [y, self.constant(f"{name}.bias", _float(bias))])

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        scale = self.constant(f"{name}.scale", np.ones(WIDTH, np.float32))
        shift = self.constant(f"{name}.shift", np.zeros(WIDTH, np.float32))
        return self.node("LayerNormalization", name, [x, scale, shift], axis=-1)


def build(name: str, *, batch: int = 1, seed: int = 0) -> ir.Model:
    """Two layers of an encoder; input "input", shape `(batch, tokens, 768)`.

    Args:
        name: one of TOKENS.
        batch: fixed batch size.
        seed: of the weights.
    """
    tokens = TOKENS[name]
    b = Builder(seed)
    shape = ir.Shape((batch, tokens, WIDTH))
    x = ir.Value(name="input", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    b.graph.inputs.append(x)
    split = b.constant("split", np.array([batch, tokens, HEADS, WIDTH // HEADS], np.int64))
    join = b.constant("join", np.array([batch, tokens, WIDTH], np.int64))
    scale = b.constant("scale", _float(1 / math.sqrt(WIDTH // HEADS)))
    half, one = b.constant("half", _float(0.5)), b.constant("one", _float(1))
    root = b.constant("root", _float(1 / math.sqrt(2)))
    for number in range(LAYERS):
        at = f"layer{number}"
        y = b.norm(f"{at}.norm1", x)
        parts = {}
        for part in (QUERY, KEY, VALUE):
            whole = b.linear(f"{at}.{part}", y, WIDTH, WIDTH)
            parted = b.node("Reshape", f"{at}.{part}.split", [whole, split])
            order = (0, 2, 3, 1) if part == KEY else (0, 2, 1, 3)
            parts[part] = b.node("Transpose", f"{at}.{part}.heads", [parted], perm=order)
        scores = b.node("MatMul", f"{at}.scores", [parts[QUERY], parts[KEY]])
        scores = b.node("Mul", f"{at}.scaled", [scores, scale])
        shares = b.node("Softmax", f"{at}.softmax", [scores], axis=-1)
        mixed = b.node("MatMul", f"{at}.mixed", [shares, parts[VALUE]])
        mixed = b.node("Transpose", f"{at}.tokens", [mixed], perm=(0, 2, 1, 3))
        mixed = b.node("Reshape", f"{at}.joined", [mixed, join])
        x = b.node("Add", f"{at}.sum1", [x, b.linear(f"{at}.out", mixed, WIDTH, WIDTH)])
        y = b.norm(f"{at}.norm2", x)
        y = b.linear(f"{at}.up", y, WIDTH, HIDDEN)
        erf = b.node("Erf", f"{at}.erf", [b.node("Mul", f"{at}.root", [y, root])])
        gelu = b.node("Mul", f"{at}.gelu", [y, b.node("Add", f"{at}.shifted", [erf, one])])
        y = b.node("Mul", f"{at}.halved", [gelu, half])
        x = b.node("Add", f"{at}.sum2", [x, b.linear(f"{at}.down", y, HIDDEN, WIDTH)])
    x.name, x.shape, x.type = "output", shape, ir.TensorType(ir.DataType.FLOAT)
    b.graph.outputs.append(x)
    return ir.Model(b.graph, ir_version=9)


def prune(model: ir.Model) -> None:
    """Zero half of the heads of each layer, and half of its hidden units, with their biases."""
    from passes.weights import constant, set_tensor

    def zero(name: str, kept: int) -> None:
        for part in ("weight", "bias"):
            value = model.graph.initializers[f"{name}.{part}"]
            array = np.array(constant(value))
            array[..., kept:] = 0
            set_tensor(value, array)

    for number in range(LAYERS):
        for part in (QUERY, KEY, VALUE):
            zero(f"layer{number}.{part}", WIDTH // 2)
        zero(f"layer{number}.up", HIDDEN // 2)


def _float(number: Any) -> Array:
    return np.asarray(number, np.float32)
