"""What a row of the table of axis rules is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from passes.errors import UnsupportedGraph

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.compact import Array
    from passes.analysis.walk import Replay, Trace

__all__ = [
    "Pins",
    "Row",
    "attribute_int",
    "attribute_ints",
    "channels_of",
    "data",
    "input_at",
    "normalized",
    "spread",
]


class Row(Protocol):
    """How the channels of an op's inputs and outputs are tied.

    A row is only asked about nodes whose inputs, and first output, have known sizes.
    """

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Give the outputs their tags and write down what the node ties."""

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Give the outputs their tags under a plan, and write down what has to be edited."""


class Pins:
    """The row of an op that has none, or whose case no rule covers: all channels that reach it stay.

    Args:
        reason: why, in words; `{op}` stands for the op type.
    """

    def __init__(self, reason: str = "no rule says how '{op}' treats channels") -> None:
        self.reason = reason

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pin every input's channels; the outputs have none."""
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for value in node.inputs:
            if value is not None and t.known(value):
                t.pin(
                    t.get(value),
                    node,
                    self.reason.format(op=name),
                    f"keep the channels that reach '{name}', or export the model without it",
                )

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Nothing that reaches it has changed."""


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def attribute_ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """A list-of-integers attribute, or None."""
    found = node.attributes.get(name)
    return None if found is None else tuple(found.as_ints())


def data(node: ir.Node, index: int = 0) -> ir.Value:
    """An input that the op cannot do without.

    Args:
        node: the node.
        index: which of its inputs.

    Raises:
        UnsupportedGraph: the node lacks it.
    """
    value = input_at(node, index)
    if value is None:
        raise UnsupportedGraph(
            node.name or node.op_type, f"its input {index} is missing. Check the model."
        )
    return value


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An optional input."""
    return node.inputs[index] if index < len(node.inputs) else None


def normalized(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def channels_of(tags: Array) -> Array:
    """The tags along axis 1, at the first index of the others."""
    return tags[(0, slice(None)) + (0,) * (tags.ndim - 2)]


def spread(line: Array, rank: int) -> Array:
    """A 1-D array of tags as a compact array of `rank` axes, along axis 1."""
    return line.reshape([1, -1] + [1] * (rank - 2))
