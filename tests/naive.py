"""What a tool that does not ask would do: cut every constant that looks as if it held the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence


def cut_everywhere(
    proto: onnx.ModelProto, width: int, dropped: Sequence[int]
) -> onnx.ModelProto:
    """Drop channels from every initializer axis of size `width`, and correct sizes that equal it."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    kept = np.setdiff1d(np.arange(width), dropped)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int64:
            array = np.where(array == width, len(kept), array)
        else:
            for axis, size in enumerate(array.shape):
                if size == width:
                    array = np.take(array, kept, axis)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in {"group", "num_groups"} and attribute.i == width:
                attribute.i = len(kept)
    del model.graph.value_info[:]
    return model
