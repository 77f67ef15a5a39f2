"""The sizes of a model's values for inputs of given sizes, where the model leaves them open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from passes.analysis.macs import PRODUCTS, sized
from passes.analysis.walk import label
from passes.errors import PassError

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.shapes import Sizes

__all__ = ["fixed_sizes"]


def fixed_sizes(
    model: ir.Model, sizes: Sizes, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Sizes of values by name, with inputs of these shapes; empty where the model leaves none of its sizes open.

    Args:
        model: the model.
        sizes: its sizes, with stand-ins where they are open.
        shapes: of its inputs, by name.

    Raises:
        PassError: the model does not take such inputs.
    """
    is_open = any(
        value.name in shapes
        and value.shape is not None
        and not all(isinstance(size, int) for size in value.shape)
        for value in model.graph.inputs
    )
    if not is_open:
        return {}
    _, found = sized(model, shapes)
    known = (
        {}
        if found is None
        else {value.name: shape for value, shape in found.shape.items() if value.name}
    )
    # What has a size at other sizes of the inputs, and none at these, is made of parts that do not fit together.
    lost = [
        node
        for node in model.graph
        if node.op_type in PRODUCTS
        and node.outputs[0] in sizes.shape
        and node.outputs[0].name not in known
    ]
    if found is None or lost:
        given = ", ".join(f"'{name}' {list(shape)}" for name, shape in shapes.items())
        at = f" in front of '{label(lost[0])}'" if lost else ""
        msg = (
            f"the model does not take inputs of the sizes given, {given}: sizes do not fit together{at}. "
            "Give sizes that it was made for; detectors often want multiples of 32."
        )
        raise PassError(msg)
    return known
