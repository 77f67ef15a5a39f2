"""What has to be changed in a graph, as frozen data: analysis writes these down, a pass carries them out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeAlias

from passes.analysis.compact import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Accumulate",
    "Edit",
    "Merge",
    "Patch",
    "Select",
    "SetAttribute",
    "SetInput",
    "SplitBySizes",
]


@dataclasses.dataclass(frozen=True)
class Select:
    """Take elements of a constant input, for this use of it only.

    Attributes:
        node: the node that reads the constant, itself or through a DequantizeLinear of constants.
        index: which of its inputs.
        picks: one integer array an axis of the constant, broadcastable against one another: the element at position p
            of the result is the one at `(picks[0][p], picks[1][p], ...)`. None stands for all of an axis, in order,
            and is only used where the other picks are 1-D in effect.
        zero: bool, broadcastable to the result: True where a padded channel needs a zero. None: nowhere.
    """

    node: ir.Node
    index: int
    picks: tuple[Array | None, ...]
    zero: Array | None = None


@dataclasses.dataclass(frozen=True)
class Merge:
    """Let one input channel of a weight take over the work of others, which are then never read.

    Attributes:
        node: the node.
        index: which of its inputs is the weight.
        axes: the axes of the weight that hold the input channels.
        into: multi-index, one number an axis, of the channel that takes over, or None where nobody does.
        sources: multi-indices of the channels that are relieved, one array of shape `(n,)` an axis.
        factors: float, shape `(n,)`: what each source's weights are multiplied by before they are added.
        rows: (axis, start, stop): only these rows of the weight (the outputs of one conv group); None: all.
    """

    node: ir.Node
    index: int
    axes: tuple[int, ...]
    into: tuple[int, ...] | None
    sources: tuple[Array, ...]
    factors: Array
    rows: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Accumulate:
    """Add a constant to what a node computes.

    Attributes:
        node: the node.
        amount: float64, broadcastable to the node's first output as the plan leaves it.
        into: index of the bias input that can hold it, or None: an Add node is put behind.
    """

    node: ir.Node
    amount: Array
    into: int | None


@dataclasses.dataclass(frozen=True)
class SetInput:
    """Give one use of a constant input other numbers (sizes, starts, indices)."""

    node: ir.Node
    index: int
    array: Array


@dataclasses.dataclass(frozen=True)
class Patch:
    """Overwrite elements of a 1-D integer vector that is only known at run time.

    Attributes:
        node: the node.
        index: which of its inputs, or None for its first output, for all who read it.
        positions: which elements.
        values: their new numbers.
        length: of the vector.
    """

    node: ir.Node
    index: int | None
    positions: tuple[int, ...]
    values: tuple[int, ...]
    length: int


@dataclasses.dataclass(frozen=True)
class SetAttribute:
    """Set an attribute of a node to an integer or integers."""

    node: ir.Node
    name: str
    value: int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SplitBySizes:
    """Say the part sizes of a Split, by attribute or input as its opset wants."""

    node: ir.Node
    sizes: tuple[int, ...]


Edit: TypeAlias = Select | Merge | Accumulate | SetInput | Patch | SetAttribute | SplitBySizes
