"""A small builder of ONNX models for tests: nodes by name, shapes inferred as the graph grows.

Weights stay numpy arrays until `Graph.model()`, so that a test can zero rows of a layer after the graph is drawn.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

if TYPE_CHECKING:
    from collections.abc import Sequence

Storage = Literal["initializer", "constant", "fill"]

ELEMENT_TYPES = {
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
}


@dataclasses.dataclass
class Layer:
    """A weight whose rows (output channels) and columns (input channels) a test may zero.

    Attributes:
        weight: name of the constant.
        out_axis: axis of the output channels; -1 for ConvTranspose, whose rows are (group, axis 1).
        in_axis: axis of the input channels; None where a group hides it.
        rows: number of output channels.
        groups: the node's `group`.
        bias: name of the per-row bias, if the layer has one.
        shifts: names of later per-row constants (a BatchNorm's beta and mean) that feed on this layer alone.
        scales: names of later per-row factors (a BatchNorm's gamma).
        heads: number of attention heads the rows are made of; 1 for all else.
    """

    weight: str
    out_axis: int
    in_axis: int | None
    rows: int
    groups: int = 1
    bias: str | None = None
    shifts: list[str] = dataclasses.field(default_factory=list)
    scales: list[str] = dataclasses.field(default_factory=list)
    heads: int = 1


class Graph:
    """A growing ONNX graph.

    Args:
        seed: of the weights.
        dtype: of the floating-point tensors.
        opset: of the default domain.
    """

    def __init__(self, seed: int = 0, dtype: Any = np.float32, opset: int = 21) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.storage: dict[str, Storage] = {}
        self.types: dict[str, onnx.TypeProto] = {}
        self.inputs: dict[str, tuple[int | str, ...]] = {}
        self.outputs: list[str] = []
        self.layers: list[Layer] = []
        self.domains: dict[str, int] = {"": opset}
        self._count = 0

    # ------------------------------------------------------------------ values

    def fresh(self, hint: str) -> str:
        """A new name."""
        self._count += 1
        return f"{hint}_{self._count}"

    def input(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any = None,
        symbols: Sequence[int | str] = (),
    ) -> str:
        """Declare a graph input.

        Args:
            name: of the input.
            shape: concrete sizes, the ones the shapes of the graph are inferred with.
            dtype: default: the graph's.
            symbols: what the model declares instead of `shape`: a string for a dynamic axis.
        """
        self.types[name] = helper.make_tensor_type_proto(
            ELEMENT_TYPES[np.dtype(dtype or self.dtype)], tuple(shape)
        )
        self.inputs[name] = tuple(symbols) or tuple(shape)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a value."""
        return tuple(d.dim_value for d in self.types[name].tensor_type.shape.dim)

    def const(self, array: Any, hint: str = "c", storage: Storage = "initializer") -> str:
        """Add a constant; floats take the graph's dtype."""
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(self.dtype)
        name = self.fresh(hint)
        self.constants[name] = array
        self.storage[name] = storage
        self.types[name] = helper.make_tensor_type_proto(
            ELEMENT_TYPES[array.dtype], array.shape
        )
        return name

    def ints(self, *values: int) -> str:
        """Add a one-dimensional int64 constant."""
        return self.const(np.asarray(values, np.int64), "i")

    def normal(
        self, *shape: int, scale: float = 1.0, shift: float = 0.0, hint: str = "w"
    ) -> str:
        """Add a normally distributed constant."""
        return self.const(shift + scale * self.rng.standard_normal(shape), hint)

    # ------------------------------------------------------------------- nodes

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        /,
        *,
        n: int = 1,
        domain: str = "",
        like: tuple[str, Sequence[int]] | None = None,
        **attrs: Any,
    ) -> Any:
        """Add a node; its output name, or a list of them for `n` > 1.

        `like` (a value of the same element type, and a shape) stands in for inference where the shape is computed.
        """
        node_name = self.fresh(op)
        names = [f"{node_name}:{i}" for i in range(n)]
        node = helper.make_node(op, inputs, names, name=node_name, domain=domain, **attrs)
        if like is None:
            self.append(node)
        else:
            self.nodes.append(node)
            elem_type = self.types[like[0]].tensor_type.elem_type
            self.types[names[0]] = helper.make_tensor_type_proto(elem_type, list(like[1]))
        return names[0] if n == 1 else names

    def append(self, node: onnx.NodeProto) -> None:
        """Add a finished node and infer the shapes of what it makes."""
        self.nodes.append(node)
        if node.domain and not onnx.defs.has(node.op_type, node.domain):
            return
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        read = {name for name in node.input if name}
        subgraphs = any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)
        known = {name: array for name, array in self.constants.items() if name in read}
        made = shape_inference.infer_node_outputs(
            schema,
            node,
            # A subgraph may read anything from outside.
            {k: v for k, v in self.types.items() if subgraphs or k in read},
            {k: numpy_helper.from_array(v, k) for k, v in known.items()},
            opset_imports=[helper.make_opsetid(d, v) for d, v in self.domains.items()],
            ir_version=10,
        )
        for name, inferred in made.items():
            dims = inferred.tensor_type.shape.dim
            if not inferred.tensor_type.HasField("shape") or not all(
                d.HasField("dim_value") for d in dims
            ):
                msg = f"the shape of {name} can't be inferred: {inferred} from {node}"
                raise ValueError(msg)
        self.types.update(made)

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 1,
        *,
        group: int = 1,
        bias: bool = True,
        weight: str | None = None,
        **attrs: Any,
    ) -> str:
        """Add a Conv of any rank with variance-preserving weights; `weight` ties it to another."""
        width, rank = self.shape(x)[1], len(self.shape(x)) - 2
        if weight is None:
            fan_in = width // group * kernel**rank
            weight = self.normal(
                channels, width // group, *([kernel] * rank), scale=fan_in**-0.5
            )
        inputs = [x, weight]
        if bias:
            inputs.append(self.normal(channels, scale=0.4, hint="b"))
        self.layers.append(
            Layer(
                weight,
                0,
                1 if group == 1 else None,
                channels,
                group,
                inputs[2] if bias else None,
            )
        )
        return self.add("Conv", inputs, group=group, **attrs)

    def conv_transpose(
        self,
        x: str,
        channels: int,
        kernel: int = 2,
        *,
        group: int = 1,
        bias: bool = True,
        **attrs: Any,
    ) -> str:
        """Add a ConvTranspose of any rank."""
        width, rank = self.shape(x)[1], len(self.shape(x)) - 2
        weight = self.normal(
            width,
            channels // group,
            *([kernel] * rank),
            scale=(width // group * max(1, kernel**rank // 2)) ** -0.5,
        )
        inputs = [x, weight]
        if bias:
            inputs.append(self.normal(channels, scale=0.4, hint="b"))
        self.layers.append(Layer(weight, -1, 0, channels, group, inputs[2] if bias else None))
        return self.add("ConvTranspose", inputs, group=group, **attrs)

    def batch_norm(self, x: str) -> str:
        """Add a BatchNormalization with a non-trivial mean and shift."""
        c = self.shape(x)[1]
        gamma = self.const(self.rng.uniform(0.6, 1.4, c), "gamma")
        beta, mean = (
            self.normal(c, scale=0.3, hint="beta"),
            self.normal(c, scale=0.3, hint="mean"),
        )
        variance = self.const(self.rng.uniform(0.5, 1.5, c), "var")
        if self.layers and self.layers[-1].rows == c and self.nodes[-1].output[0] == x:
            self.layers[-1].scales.append(gamma)
            self.layers[-1].shifts += [beta, mean]
        return self.add("BatchNormalization", [x, gamma, beta, mean, variance])

    def dense(self, x: str, width: int, *, bias: bool = True, heads: int = 1) -> str:
        """Add a MatMul with a constant right operand, and an Add for the bias."""
        k = self.shape(x)[-1]
        weight = self.normal(k, width, scale=k**-0.5)
        layer = Layer(weight, 1, 0, width, heads=heads)
        self.layers.append(layer)
        y = self.add("MatMul", [x, weight])
        if bias:
            layer.bias = self.normal(width, scale=0.4, hint="b")
            y = self.add("Add", [y, layer.bias])
        return y

    def gemm(
        self, x: str, width: int, *, bias: bool = True, trans_b: bool = True, **attrs: Any
    ) -> str:
        """Add a Gemm; with `transA=1` in `attrs`, `x` is read transposed."""
        k = self.shape(x)[0 if attrs.get("transA") else 1]
        weight = self.normal(*((width, k) if trans_b else (k, width)), scale=k**-0.5)
        inputs = [x, weight]
        if bias:
            inputs.append(self.normal(width, scale=0.4, hint="b"))
        self.layers.append(
            Layer(
                weight,
                0 if trans_b else 1,
                1 if trans_b else 0,
                width,
                bias=inputs[2] if bias else None,
            )
        )
        return self.add("Gemm", inputs, transB=int(trans_b), **attrs)

    # ------------------------------------------------------------------- zeros

    def zero_rows(
        self, layer: Layer, dropped: Sequence[int], *, clean: bool = False, scales: bool = False
    ) -> None:
        """Zero output channels of a layer.

        Args:
            layer: one of `layers`.
            dropped: indices of output channels.
            clean: zero bias and BatchNorm shift as well, so that the channel is 0 and not merely constant.
            scales: zero the BatchNorm scale in place of the weight, as BN-gamma pruning does.
        """
        for name in layer.scales if scales else ():
            self.constants[name][list(dropped)] = 0
        if not (scales and layer.scales):
            array = self.constants[layer.weight]
            for row in dropped:
                if layer.out_axis == -1:
                    per_group, width = array.shape[1], array.shape[0] // layer.groups
                    g = row // per_group
                    array[g * width : (g + 1) * width, row % per_group] = 0
                else:
                    array[(slice(None),) * layer.out_axis + (row,)] = 0
        if clean:
            for name in [layer.bias, *layer.shifts]:
                if name is not None and self.storage[name] != "fill":
                    self.constants[name][list(dropped)] = 0

    def zero_columns(self, layer: Layer, dropped: Sequence[int]) -> None:
        """Zero input channels of a layer, so that it no longer reads them."""
        if layer.in_axis is not None:
            array = self.constants[layer.weight]
            array[(slice(None),) * layer.in_axis + (list(dropped),)] = 0

    # ------------------------------------------------------------------- model

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The checked model; `outputs` are added to those already declared."""
        nodes: list[onnx.NodeProto] = []
        initializers = []
        for name, array in self.constants.items():
            tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
            if self.storage[name] == "initializer":
                initializers.append(tensor)
            elif self.storage[name] == "constant":
                nodes.append(
                    helper.make_node("Constant", [], [name], f"make_{name}", value=tensor)
                )
            else:
                fill = numpy_helper.from_array(array.reshape(-1)[:1])
                sizes = numpy_helper.from_array(
                    np.asarray(array.shape, np.int64), f"{name}_sizes"
                )
                initializers.append(sizes)
                nodes.append(
                    helper.make_node(
                        "ConstantOfShape", [sizes.name], [name], f"make_{name}", value=fill
                    )
                )

        def declare(name: str, sizes: Sequence[int | str] | None) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(
                name, self.types[name].tensor_type.elem_type if name in self.types else 1, sizes
            )

        dynamic = any(isinstance(d, str) for sizes in self.inputs.values() for d in sizes)
        graph = helper.make_graph(
            nodes + self.nodes,
            "test",
            [declare(name, sizes) for name, sizes in self.inputs.items()],
            [
                # A dynamic model declares only the rank of its outputs; inference finds the rest.
                declare(name, [None] * len(self.shape(name)) if dynamic else self.shape(name))
                if name in self.types
                else declare(name, None)
                for name in [*self.outputs, *outputs]
            ],
            initializers,
        )
        opsets = [helper.make_opsetid(d, v) for d, v in self.domains.items()]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        if all(onnx.defs.has(n.op_type, n.domain) for n in proto.graph.node):
            onnx.checker.check_model(proto, full_check=True)
        return proto
