"""Lowerings: forms in which a layer with dense blocks can be computed by stock operators.

`LOWERINGS` lists them, the simplest first. Each is a function that says why it does not fit a layer, and one that writes
it onto a `Tape`; the same function writes a model of the layer alone, for measuring, and its place in the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from passes.lowerings import convolution, linear

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.lowerings.tape import Tape
    from passes.lowerings.task import BlockedLayer

__all__ = ["DENSE", "LOWERINGS", "Lowering", "find_lowering", "fitting"]

DENSE: Final = "dense"
"""Name of the layer as it is."""


@dataclasses.dataclass(frozen=True)
class Lowering:
    """A form of a layer with blocks.

    Attributes:
        name: how reports and plans call it.
        refuse: why it does not fit a layer, in words; None if it does.
        emit: writes it: given the layer, a tape and what the layer reads, returns what the layer computes.
    """

    name: str
    refuse: Callable[[BlockedLayer], str | None]
    emit: Callable[[BlockedLayer, Tape, ir.Value], ir.Value]


LOWERINGS: Final[tuple[Lowering, ...]] = (
    Lowering("smaller", convolution.refuse_smaller, convolution.emit_smaller),
    Lowering("smaller-product", linear.refuse_smaller_product, linear.emit_smaller_product),
    Lowering("grouped", convolution.refuse_grouped, convolution.emit_grouped),
    Lowering("gathered", convolution.refuse_gathered, convolution.emit_gathered),
    Lowering("products", linear.refuse_products, linear.emit_products),
    Lowering("padded", convolution.refuse_padded, convolution.emit_padded),
    Lowering("split", convolution.refuse_split, convolution.emit_split),
    Lowering("products-of-rows", linear.refuse_product_of_rows, linear.emit_product_of_rows),
)
"""All of them, the simplest first."""


def fitting(task: BlockedLayer) -> list[Lowering]:
    """Those that fit a layer, the simplest first."""
    return [lowering for lowering in LOWERINGS if lowering.refuse(task) is None]


def find_lowering(name: str) -> Lowering:
    """The one of that name."""
    return next(lowering for lowering in LOWERINGS if lowering.name == name)
