"""What pruning has to equal: the model as it is, with the dropped channels set to zero wherever they appear.

Nothing of the surgery is used. A node that zeroes them is put behind every tensor of the original that carries one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import oracle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from passes.analysis.channels import ChannelMap


def dropped_classes(channels: ChannelMap, plan: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Which classes a plan drops: bool, shape `(tags,)`, by class."""
    gone = np.zeros(channels.roots.size, dtype=bool)
    for node, made in channels.trace.sources.items():
        positions = list(plan.get(node.outputs[0].name or "", ()))
        gone[channels.roots[made.ravel()[positions]]] = True
    # a head is gone when all of its dimensions are
    for _ in channels.trace.tags.covers:
        for cover in channels.trace.tags.covers:
            if gone[channels.roots[cover.fine]].all():
                gone[channels.roots[cover.coarse]] = True
    gone[0] = False
    return gone


def masked(
    model: ir.Model, channels: ChannelMap, plan: Mapping[str, Sequence[int]]
) -> onnx.ModelProto:
    """The model with the channels of a plan set to zero.

    Args:
        model: the model; unchanged.
        channels: its channel map.
        plan: positions of the channels, by the tensor that the weight making them writes.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(oracle.to_proto(model))
    gone = dropped_classes(channels, plan)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(proto).graph.value_info
    }
    masks = {
        value.name or "": ~gone[channels.roots[tags]]
        for value, tags in channels.trace.tags.of.items()
        if gone[channels.roots[tags]].any()
    }
    interface = {output.name for output in proto.graph.output}
    assert not masks.keys() & interface, "a channel of the interface was dropped"
    renamed: dict[str, str] = {}
    nodes = []
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        nodes.append(node)
        for name in node.output:
            if name in masks:
                nodes += zeroing(proto, name, masks[name], kinds[name])
                renamed[name] = f"{name}_masked"
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def zeroing(
    proto: onnx.ModelProto, name: str, keep: np.ndarray, kind: int
) -> list[onnx.NodeProto]:
    """Nodes that write `name` with zeros where `keep` is False to `name_masked`."""

    def constant(what: str, array: np.ndarray) -> str:
        proto.graph.initializer.append(numpy_helper.from_array(array, f"{name}_{what}"))
        return f"{name}_{what}"

    out = f"{name}_masked"
    if kind == TensorProto.BOOL:
        return [helper.make_node("And", [name, constant("keep", keep)], [out])]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if kind == TensorProto.FLOAT16:
        return [helper.make_node("Mul", [name, constant("keep", keep.astype(dtype))], [out])]
    # not a product: what a dropped channel computes may be infinite
    names = [constant("keep", keep), name, constant("zero", np.zeros((), dtype=dtype))]
    return [helper.make_node("Where", names, [out])]
