"""Each fusion that ONNX Runtime does, on a small graph: whose work is a kernel, by the user's names?"""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from deploykit.profile.layer_names import match, tag

DICE = np.random.default_rng(0)


def weight(*shape):
    return (DICE.standard_normal(shape) * 0.1).astype(np.float32)


def norm(channels):
    return [
        DICE.uniform(0.5, 1.5, channels).astype(np.float32),
        weight(channels),
        weight(channels),
        DICE.uniform(0.5, 1.5, channels).astype(np.float32),
    ]


class Graph:
    """A graph by its nodes, each named after its operator and place unless it gets another name."""

    def __init__(self, shape, dtype=ir.DataType.FLOAT):
        self.x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.nodes = []
        self.initializers = []

    def constant(self, array):
        name = f"w{len(self.initializers)}"
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name,
            shape=tensor.shape,
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.initializers.append(value)
        return value

    def add(self, op, *inputs, name=None, outputs=1, **attributes):
        values = [
            one if one is None or isinstance(one, ir.Value) else self.constant(one)
            for one in inputs
        ]
        node = ir.node(op, values, attributes=attributes, num_outputs=outputs)
        node.name = f"{op.lower()}{len(self.nodes)}" if name is None else name
        for index, value in enumerate(node.outputs):
            value.name = f"{op}.{len(self.nodes)}.{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def conv(self, x, inputs, outputs, kernel=3, **attributes):
        attributes.setdefault("pads", [kernel // 2] * 4)
        per_group = inputs // attributes.get("group", 1)
        return self.add(
            "Conv", x, weight(outputs, per_group, kernel, kernel), weight(outputs), **attributes
        )

    def model(self, *outputs, opset=17):
        for value in outputs:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [self.x],
            outputs,
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": opset},
            name="g",
        )
        return ir.Model(graph, ir_version=8)


@pytest.fixture
def matched(tmp_path):
    """What ONNX Runtime makes of a model: (operator of the kernel, user's node, inserted?, covered), in order."""

    def run(model):
        nodes = tag(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        optimized = ir.load(tmp_path / "optimized.onnx")
        return [
            (
                node.op_type,
                None if found.node is None else nodes.names[found.node],
                found.inserted,
                {nodes.names[part] for part in found.covers},
            )
            for node, found in zip(optimized.graph, match(nodes, optimized), strict=True)
        ]

    return run


def kernels(rows):
    """Those that the runtime did not insert: {(operator, user's node): covered}."""
    return {(op, name): covered for op, name, inserted, covered in rows if not inserted}


def test_convolution_normalization_and_activation_are_one(matched):
    g = Graph((1, 16, 8, 8))
    h = g.conv(g.x, 16, 16)
    h = g.add("BatchNormalization", h, *norm(16))
    h = g.add("Relu", h)
    h = g.conv(h, 16, 16)
    rows = matched(g.model(h))
    assert kernels(rows) == {
        ("Conv", "conv0"): {"batchnormalization1", "relu2"},
        ("Conv", "conv3"): set(),
    }
    # The layout is changed before the first convolution and after the last one, for their sake.
    served = {(op, name) for op, name, inserted, _ in rows if inserted}
    assert served == {("ReorderInput", "conv0"), ("ReorderOutput", "conv3")}


@pytest.mark.parametrize("channels", [16, 6])
def test_a_residual_sum_belongs_to_the_convolution_that_does_it(matched, channels):
    """16 channels run in blocks, where no name tells of the sum; 6 as `FusedConv`, which has the name of the end."""
    g = Graph((1, channels, 8, 8))
    first = g.add("Relu", g.conv(g.x, channels, channels))
    h = g.add("Relu", g.conv(first, channels, channels))
    h = g.add("BatchNormalization", g.conv(h, channels, channels), *norm(channels))
    h = g.add("Relu", g.add("Add", h, first))
    h = g.conv(h, channels, channels)
    found = kernels(matched(g.model(h)))
    by_name = {name: covered for (_, name), covered in found.items()}
    assert by_name == {
        "conv0": {"relu1"},
        "conv2": {"relu3"},
        "conv4": {"batchnormalization5", "add6", "relu7"},
        "conv8": set(),
    }
    assert {op for op, _ in found} <= {"Conv", "FusedConv"}


def test_a_normalization_that_becomes_a_convolution_stays_a_normalization(matched):
    g = Graph((1, 16, 8, 8))
    h = g.conv(g.x, 16, 16)
    both = g.add("Relu", g.add("BatchNormalization", h, *norm(16)))
    out = g.add("Concat", h, g.conv(both, 16, 16), axis=1)
    found = kernels(matched(g.model(out)))
    assert found[("Conv", "batchnormalization1")] == {"relu2"}
    assert ("Conv", "conv0") in found
    assert ("Conv", "conv3") in found


def test_layer_normalization_and_gelu_spelled_out(matched):
    g = Graph((2, 5, 32))
    axes = {"axes": [-1], "keepdims": 1}
    centred = g.add("Sub", g.x, g.add("ReduceMean", g.x, **axes, name="mean"), name="centre")
    square = g.add("Pow", centred, np.float32(2), name="square")
    variance = g.add("ReduceMean", square, **axes, name="variance")
    deviation = g.add("Sqrt", g.add("Add", variance, np.float32(1e-5), name="eps"), name="root")
    h = g.add("Mul", g.add("Div", centred, deviation, name="div"), weight(32), name="scale")
    h = g.add("Add", h, weight(32), name="shift")
    h = g.add("MatMul", h, weight(32, 64), name="up")
    h = g.add("Add", h, weight(64), name="bias")
    erf = g.add("Erf", g.add("Div", h, np.float32(np.sqrt(2)), name="g1"), name="g2")
    h = g.add("Mul", h, g.add("Add", erf, np.float32(1), name="g3"), name="g4")
    h = g.add("Mul", h, np.float32(0.5), name="g5")
    h = g.add("MatMul", h, weight(64, 32), name="down")
    found = kernels(matched(g.model(h)))
    norms = [key for key in found if key[0] == "LayerNormalization"]
    assert norms == [("LayerNormalization", "shift")]
    parts = {"mean", "centre", "square", "variance", "eps", "root", "div", "scale"}
    assert found[norms[0]] == parts
    owners = [name for _, name in found]
    assert owners.index("up") < owners.index("down")
    # The bias went into the product or into the Gelu, the five nodes of which are one kernel.
    gelu = [key for key in found if "Gelu" in key[0]]
    assert len(gelu) == 1
    assert {"g1", "g2", "g3", "g4"} <= found[gelu[0]] | {gelu[0][1]}
    assert all(name is not None for name in owners)


def test_attention_is_known_by_its_parts(matched):
    g = Graph((1, 8, 16))
    heads = []
    for which in "qkv":
        h = g.add("Add", g.add("MatMul", g.x, weight(16, 16), name=which), weight(16))
        h = g.add("Reshape", h, np.array([1, 8, 2, 8]), name=f"{which}.heads")
        perm = [0, 2, 3, 1] if which == "k" else [0, 2, 1, 3]
        heads.append(g.add("Transpose", h, perm=perm, name=f"{which}.turn"))
    scores = g.add("MatMul", heads[0], heads[1], name="scores")
    scores = g.add("Softmax", g.add("Div", scores, np.float32(2.83)), axis=-1, name="softmax")
    h = g.add("MatMul", scores, heads[2], name="context")
    h = g.add("Transpose", h, perm=[0, 2, 1, 3], name="back")
    h = g.add("Reshape", h, np.array([1, 8, 16]), name="merge")
    h = g.add("MatMul", h, weight(16, 16), name="out")
    rows = matched(g.model(h))
    owners = [name for _, name, _, _ in rows]
    assert {"q", "k", "v", "scores", "context", "out"} <= set(owners) | {
        part for *_, covered in rows for part in covered
    }
    products = [(op, name) for op, name, *_ in rows if "MatMul" in op or op == "Gemm"]
    assert {name for _, name in products} <= {"q", "k", "v", "scores", "context", "out"}
    assert None not in owners


def test_what_is_folded_takes_no_time_and_owns_none(matched):
    g = Graph((1, 4))
    size = g.add("Mul", np.array([2], np.int64), np.array([3], np.int64), name="folded")
    zero = g.add("ConstantOfShape", size, name="zeros")
    h = g.add("Add", g.x, g.add("ReduceSum", zero, name="sum"), name="add")
    h = g.add("Relu", g.add("Identity", h, name="nothing"), name="relu")
    rows = matched(g.model(g.add("Sigmoid", h, name="last")))
    owners = {name for _, name, _, _ in rows}
    covered = {part for *_, parts in rows for part in parts}
    assert owners == {"add", "relu", "last"}
    assert not {"folded", "zeros", "sum"} & covered


def test_shapes_computed_for_a_reshape_go_with_it(matched):
    g = Graph(("n", 6, 4))
    rows = g.add("Gather", g.add("Shape", g.x, name="shape"), np.array(0), axis=0, name="pick")
    whole = g.add("Unsqueeze", rows, np.array([0]), name="unsqueeze")
    target = g.add("Concat", whole, np.array([24], np.int64), axis=0, name="target")
    h = g.add("Reshape", g.add("Relu", g.x, name="relu"), target, name="flatten")
    found = kernels(matched(g.model(g.add("MatMul", h, weight(24, 3), name="product"))))
    owners = {name for _, name in found}
    assert {"relu", "flatten", "product"} <= owners
    assert owners <= {"relu", "flatten", "product", "shape", "pick", "unsqueeze", "target"}


def test_quantized_layers_are_known_by_their_operator(matched):
    g = Graph((1, 4, 8, 8))
    scale, zero = np.float32(0.05), np.uint8(128)

    def quantize(value, name):
        q = g.add("QuantizeLinear", value, scale, zero, name=f"{name}.q")
        return g.add("DequantizeLinear", q, scale, zero, name=f"{name}.dq")

    kernel = g.add(
        "DequantizeLinear",
        DICE.integers(-90, 90, (4, 4, 3, 3)).astype(np.int8),
        np.float32(0.01),
        np.int8(0),
        name="w.dq",
    )
    h = g.add("Conv", quantize(g.x, "in"), kernel, name="conv", pads=[1, 1, 1, 1])
    h = g.add("MaxPool", quantize(h, "mid"), name="pool", kernel_shape=[2, 2], strides=[2, 2])
    h = g.add("Sigmoid", quantize(h, "end"), name="last")
    found = kernels(matched(g.model(h)))
    owners = dict(found.keys())
    assert owners["QLinearConv"] == "conv"
    assert owners["Sigmoid"] == "last"
    assert {name for op, name in found if op.endswith("MaxPool")} == {"pool"}
    assert ("QuantizeLinear", "in.q") in found
    # What lies between the two kernels is done by one of them.
    assert {"in.dq", "mid.q", "mid.dq"} <= set().union(*found.values())


def test_transposes_that_were_moved_serve_whom_they_were_moved_past(matched):
    g = Graph((1, 8, 8, 4))
    h = g.add("Transpose", g.x, perm=[0, 3, 1, 2], name="turn")
    h = g.add("Relu", h, name="relu")
    h = g.add("Sigmoid", h, name="sigmoid")
    h = g.add("Transpose", h, perm=[0, 2, 3, 1], name="back")
    h = g.add("Softmax", h, axis=-1, name="softmax")
    rows = matched(g.model(h))
    assert {name for op, name, *_ in rows if op in {"Relu", "Sigmoid", "Softmax"}} == {
        "relu",
        "sigmoid",
        "softmax",
    }
    assert all(name is not None for _, name, *_ in rows)


def test_functions_of_the_model_are_known_by_their_call(matched):
    x = ir.Value(name="a")
    inner = [ir.node("Sigmoid", [x], name="inner1")]
    inner.append(ir.node("Mul", [x, inner[0].outputs[0]], name="inner2"))
    body = ir.Graph(
        [x], [inner[1].outputs[0]], nodes=inner, opset_imports={"": 17}, name="body"
    )
    g = Graph((2, 4))
    h = g.add("MatMul", g.x, weight(4, 4), name="before")
    call = ir.node("Swish", [h], domain="my", name="call")
    call.outputs[0].name = "called"
    g.nodes.append(call)
    h = g.add("MatMul", call.outputs[0], weight(4, 4), name="after")
    model = g.model(h)
    model.graph.opset_imports["my"] = 1
    function = ir.Function("my", "Swish", "", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    rows = matched(model)
    owners = [name for _, name, *_ in rows]
    assert (owners[0], owners[-1]) == ("before", "after")
    middle = {name for op, name, *_ in rows if op not in {"MatMul", "Gemm"}}
    assert middle == {"call"}


def test_nodes_without_a_name_are_known_by_what_they_make(matched):
    g = Graph((1, 4))
    h = g.add("Relu", g.x, name="")
    h.name = "hidden"
    h = g.add("MatMul", h, weight(4, 4), name="")
    h.name = "y"
    model = g.model(h)
    names = tag(model.clone()).names
    assert names == ("hidden", "y")
    assert [name for _, name, *_ in matched(model)] == ["hidden", "y"]


def test_a_name_like_a_tag_is_no_tag(matched):
    g = Graph((1, 4))
    h = g.add("Relu", g.x, name="tag.n1.")
    h.name = "tag.r1.0"
    h = g.add("MatMul", h, weight(4, 4), name="tag.n0.")
    found = matched(g.model(h))
    assert [name for _, name, *_ in found] == ["tag.n1.", "tag.n0."]


def test_subgraphs_go_on_reading_what_was_renamed(matched):
    g = Graph((1, 4))
    h = g.add("Relu", g.x, name="relu")
    branches = []
    for op in ("Sigmoid", "Tanh"):
        node = ir.node(op, [h])
        node.outputs[0].name = op
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        branches.append(
            ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 17}, name=op)
        )
    condition = g.add(
        "Less", g.add("ReduceSum", g.x, keepdims=0, name="sum"), np.float32(0), name="less"
    )
    chosen = g.add("If", condition, then_branch=branches[0], else_branch=branches[1], name="if")
    rows = matched(g.model(chosen))
    assert {name for _, name, *_ in rows} == {"relu", "sum", "less", "if"}


def test_the_numbers_of_a_profile_are_told_apart(tmp_path):
    """A name holds the mark and both kinds of tags at once: the last result in the graph counts."""
    g = Graph((1, 4))
    model = g.model(g.add("Relu", g.add("Relu", g.x)))
    nodes = tag(model)
    text = f"fused {nodes.mark}n0. {nodes.mark}r1.0_nchwc_token_3"
    assert nodes.tags(text) == [("node", 0), ("result", 1)]
    assert json.dumps(nodes.tags("relu1")) == "[]"
