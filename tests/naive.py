"""What a tool that does not ask would do: cut every constant that looks as if it held the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def cut_everywhere(
    proto: onnx.ModelProto,
    width: int,
    dropped: Sequence[int],
    sizes: Mapping[int, int] | None = None,
) -> onnx.ModelProto:
    """Drop channels from every initializer axis of size `width`, and correct sizes that equal it.

    Args:
        proto: the model; not changed.
        width: number of channels.
        dropped: which of them go.
        sizes: other numbers in shapes that have to follow, and what becomes of them.
    """
    kept = np.setdiff1d(np.arange(width), dropped)
    axes = {
        tensor.name: {axis: dropped for axis, size in enumerate(tensor.dims) if size == width}
        for tensor in proto.graph.initializer
        if tensor.data_type != onnx.TensorProto.INT64
    }
    return cut(proto, axes, {width: len(kept), **(sizes or {})})


def cut(
    proto: onnx.ModelProto,
    axes: Mapping[str, Mapping[int, Sequence[int]]],
    sizes: Mapping[int, int] | None = None,
) -> onnx.ModelProto:
    """Drop elements of constants, and correct sizes.

    Args:
        proto: the model; not changed.
        axes: name of a constant -> axis -> indices that go.
        sizes: numbers in integer constants and group counts, and what becomes of them.
    """
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    renamed = sizes or {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int64:
            array = np.vectorize(lambda n: renamed.get(int(n), int(n)), otypes=[np.int64])(
                array
            )
        for axis, dropped in axes.get(tensor.name, {}).items():
            array = np.delete(array, list(dropped), axis)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in {"group", "num_groups"}:
                attribute.i = renamed.get(attribute.i, attribute.i)
    del model.graph.value_info[:]
    return model


def fold(
    proto: onnx.ModelProto,
    weight: np.ndarray,
    bias: str,
    constants: np.ndarray,
) -> onnx.ModelProto:
    """Add what constant channels are worth in the middle of a convolution to its bias, as if there were no border.

    Args:
        proto: the model; not changed.
        weight: of the convolution that reads the channels, `(outputs, channels, *kernel)`.
        bias: name of its bias.
        constants: what each channel is worth; 0 for those that stay.
    """
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    tensor = next(t for t in model.graph.initializer if t.name == bias)
    amount = weight.reshape(*weight.shape[:2], -1).sum(-1) @ constants
    array = (numpy_helper.to_array(tensor) + amount).astype(weight.dtype)
    tensor.CopyFrom(numpy_helper.from_array(array, bias))
    return model
