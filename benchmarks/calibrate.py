"""Rescale the weights of an ONNX model so that its outputs differ between inputs.

A deep network with random weights, all the more one with most of its rows zeroed, answers nearly
the same to every input: any rewrite of it would seem to preserve its function. `calibrate` walks
through the graph node by node, and gives every output channel of a Conv, ConvTranspose, Gemm or
MatMul, and the statistics of every BatchNormalization, the scale and mean that they would have
after training. Zeros stay zero, and a channel that is constant keeps its constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.reference import Array, Feed, Reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Weights", "calibrate", "run_in_double"]


MOST = 0.3
"""A filter is never scaled up further than independent inputs would make it vary, over this."""

FEW = 64
"""With fewer values a channel, all channels of a layer are scaled alike."""


class Weights:
    """The constants of a graph: initializers and Constant nodes, to read and to replace."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors: dict[str, onnx.TensorProto] = {t.name: t for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.tensors[node.output[0]] = node.attribute[0].t
        self.uses: dict[str, int] = {}
        for node in model.graph.node:
            for name in node.input:
                self.uses[name] = self.uses.get(name, 0) + 1

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def is_floating(self, name: str) -> bool:
        """Whether there is such a constant and it is float16, float32 or float64."""
        kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        return name in self.tensors and self.tensors[name].data_type in kinds

    def __getitem__(self, name: str) -> Array:
        array: Array = numpy_helper.to_array(self.tensors[name])
        return array

    def __setitem__(self, name: str, array: Array) -> None:
        old = self.tensors[name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(old.data_type)
        self.tensors[name].CopyFrom(numpy_helper.from_array(array.astype(dtype), old.name))


def calibrate(model: onnx.ModelProto, feeds: Sequence[Feed], *, seed: int = 0) -> None:
    """Rescale `model` in place for the distribution that `feeds` (three or more) come from.

    Raises:
        onnxruntime.capi.onnxruntime_pybind11_state.Fail: ONNX Runtime cannot run some node.
    """
    random = np.random.default_rng(seed)
    weights = Weights(model)
    waiting: dict[str, int] = {}
    for node in model.graph.node:
        for name in _reads(node):
            waiting[name] = waiting.get(name, 0) + 1
    runs: list[dict[str, Array]] = [dict(feed) for feed in feeds]
    shared: dict[str, Array] = {}  # what does not depend on the input
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in weights:
            continue
        _tune_statistics(node, weights, runs, random)
        names = [name for name in _reads(node) if name]
        known = {
            n: weights[n] if n in weights else shared[n]
            for n in names
            if n in weights or n in shared
        }
        if len(known) == len(names):
            shared.update(_run_node(model, node, [known])[0])
        else:
            varying = [n for n in names if n not in known]
            inputs = [{**known, **{n: run[n] for n in varying}} for run in runs]
            outputs = _run_node(model, node, inputs)
            _tune_filters(node, weights, inputs, outputs, random)
            for run, output in zip(runs, outputs, strict=True):
                run.update(output)
        for name in names:
            waiting[name] -= 1
            if not waiting[name]:
                for run in runs:
                    run.pop(name, None)
                shared.pop(name, None)


def run_in_double(model: onnx.ModelProto, feed: Feed) -> dict[str, Array]:
    """Run a model node by node in double precision, where ONNX Runtime has the operator in it.

    Returns:
        every value of the graph, by name; floats are float64.
    """
    weights = Weights(model)
    values = {name: _as(array, np.float32, np.float64) for name, array in feed.items()}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in weights:
            continue
        for name in _reads(node):
            if name not in values:
                values[name] = _as(weights[name], np.float32, np.float64)
        inputs = {name: values[name] for name in _reads(node)}
        try:
            outputs = _run_node(model, node, [inputs])[0]
        except Exception:  # noqa: BLE001 - whatever the runtime raises: it lacks the operator
            narrow = {
                name: _as(array, np.float64, np.float32) for name, array in inputs.items()
            }
            outputs = _run_node(model, node, [narrow])[0]
        values |= {name: _as(a, np.float32, np.float64) for name, a in outputs.items()}
    return values


def _as(array: Array, old: type, new: type) -> Array:
    return array.astype(new) if array.dtype == old else array


def _reads(node: onnx.NodeProto) -> list[str]:
    """Names a node reads, those that its subgraphs capture from outside included."""
    names = list(dict.fromkeys(name for name in node.input if name))
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            graph = attribute.g
            made = {t.name for t in graph.initializer} | {i.name for i in graph.input}
            made |= {name for inner in graph.node for name in inner.output}
            names += [n for inner in graph.node for n in _reads(inner) if n not in made]
            names += [o.name for o in graph.output if o.name not in made]
    return list(dict.fromkeys(names))


def _run_node(
    model: onnx.ModelProto, node: onnx.NodeProto, inputs: Sequence[Feed]
) -> list[dict[str, Array]]:
    """Run one node on several inputs."""
    outputs = [name for name in node.output if name]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None
            )
            for name, array in inputs[0].items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    single = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4)
    )
    single.functions.extend(model.functions)
    run = Reference(single.SerializeToString())
    return [run(feed) for feed in inputs]


def _tune_statistics(
    node: onnx.NodeProto,
    weights: Weights,
    runs: Sequence[dict[str, Array]],
    random: np.random.Generator,
) -> None:
    """Set the mean and variance of a BatchNormalization to those of its input."""
    if node.op_type != "BatchNormalization" or node.input[0] not in runs[0]:
        return
    mean_name, variance_name = node.input[3:5]
    if not all(n in weights and weights.uses[n] == 1 for n in (mean_name, variance_name)):
        return
    mean, deviation, live = _moments([run[node.input[0]] for run in runs], 1)
    old_mean, old_variance = weights[mean_name], weights[variance_name]
    jitter = random.uniform(0.8, 1.25, len(mean))
    weights[mean_name] = np.where(live, mean, old_mean)
    scale = np.maximum(deviation, 0.1 * np.abs(mean))
    weights[variance_name] = np.where(live, np.square(scale) * jitter, old_variance)


def _tune_filters(
    node: onnx.NodeProto,
    weights: Weights,
    inputs: Sequence[Feed],
    outputs: Sequence[dict[str, Array]],
    random: np.random.Generator,
) -> None:
    """Scale the filters of a node, and shift its bias, and change its `outputs` accordingly."""
    place = _weight_of(node, weights)
    if place is None:
        return
    index, channel_axis = place
    name = node.input[index]
    if weights.uses[name] != 1:
        return  # shared: scaled for one of its uses it would be wrong for the others
    values = [output[node.output[0]] for output in outputs]
    axis = channel_axis % values[0].ndim
    mean, deviation, live = _moments(values, axis)
    if values[0].size * len(values) < FEW * len(mean):
        # a deviation of a handful of values says nothing about other inputs: take that of all
        deviation = np.full(
            len(mean), np.sqrt(np.square(deviation[live]).mean() if live.any() else 1)
        )
    # A channel that varies little for what it sums up would be blown up with its rounding errors.
    data = [feed[node.input[1 - index]] for feed in inputs]
    power = np.sqrt(np.mean([np.square(array, dtype=np.float64).mean() for array in data]))
    scale = np.maximum(deviation, MOST * power * _norms(node, index, weights[name]))
    factor = np.where(live, random.uniform(0.7, 1.3, len(mean)) / np.where(live, scale, 1), 1)
    shift = np.zeros(len(mean))
    bias = node.input[2] if len(node.input) > 2 and node.op_type != "MatMul" else ""
    if bias and bias in weights and weights.uses[bias] == 1 and weights[bias].size == len(mean):
        # alpha and beta of a Gemm are 1 in all we meet; where not, the scale is merely another
        target = random.normal(0, 0.3, len(mean))
        shift = np.where(live, target - mean * factor, 0)
        old = weights[bias]
        weights[bias] = (old.reshape(-1) * factor + shift).reshape(old.shape)
    weights[name] = _scale_filters(node, index, weights[name], factor)
    along = [1] * values[0].ndim
    along[axis] = len(mean)
    for output, value in zip(outputs, values, strict=True):
        tuned = value.astype(np.float64) * factor.reshape(along) + shift.reshape(along)
        output[node.output[0]] = tuned.astype(value.dtype)


def _weight_of(node: onnx.NodeProto, weights: Weights) -> tuple[int, int] | None:
    """Which input of a node is its weight, and on which axis of the output its channels lie."""
    if node.domain not in {"", "ai.onnx"}:
        return None
    if node.op_type in {"Conv", "ConvTranspose"} and weights.is_floating(node.input[1]):
        return 1, 1
    if node.op_type == "Gemm" and weights.is_floating(node.input[1]):
        return 1, 1
    if node.op_type == "MatMul":
        for index, axis in ((1, -1), (0, -2)):
            name = node.input[index]
            if weights.is_floating(name) and len(weights.tensors[name].dims) == 2:
                return index, axis
    return None


def _scale_filters(node: onnx.NodeProto, index: int, weight: Array, factor: Array) -> Array:
    """Multiply each output channel of a weight by its factor, shape `(channels,)`."""
    number = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
    if node.op_type == "Conv" or (node.op_type == "Gemm" and number.get("transB")):
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if node.op_type == "ConvTranspose":
        # (in, out / group, ...): the output channels of group g are in the rows of group g
        groups = number.get("group", 1)
        rows = np.repeat(factor.reshape(groups, -1), len(weight) // groups, axis=0)
        return weight * rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
    if node.op_type == "MatMul" and index == 0:
        return weight * factor[:, None]
    return weight * factor


def _norms(node: onnx.NodeProto, index: int, weight: Array) -> Array:
    """Euclidean norm of each output channel's filter, shape `(channels,)`."""
    number = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
    square = np.square(weight, dtype=np.float64)
    if node.op_type == "ConvTranspose":
        groups = number.get("group", 1)
        square = square.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return np.sqrt(square.sum(axis=(1, 3))).reshape(-1)
    rows = (
        node.op_type == "Conv"
        or (node.op_type == "Gemm" and number.get("transB"))
        or (node.op_type == "MatMul" and index == 0)
    )
    return np.sqrt(square.sum(axis=tuple(range(1, weight.ndim)) if rows else 0))


def _moments(values: Iterable[Array], axis: int) -> tuple[Array, Array, Array]:
    """Mean and standard deviation of each channel over inputs and positions, and whether it varies."""
    stack = np.stack([np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for v in values], 1)
    stack = stack.reshape(len(stack), -1).astype(np.float64)
    mean, deviation = stack.mean(axis=1), stack.std(axis=1)
    # float sums of a constant are not exactly constant
    live = deviation > 1e-5 * np.maximum(np.abs(mean), 1e-12) + 1e-20
    return mean, deviation, live
