"""How much a channel matters: the size of all weights that go when it goes.

For a class c of coupled channels, over all layers that make or read it,

    I(c) = sum over layers of sum |w|^p,  w in the output rows that make c, and the input columns that read c

with p = 2 ("l2": the square of the norm of the whole group) or p = 1 ("l1"), and the scales of normalisations that treat
every channel by itself among the weights. Depthwise weights, which make and read the same channels, count once.

Source: G. Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3.3 (group-level importance), with
p = 2; the single-layer form is H. Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, with p = 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from passes.analysis import operands
from passes.analysis.axis_rules.contraction import Weighted
from passes.analysis.axis_rules.convolution import CONVOLUTIONS, is_depthwise
from passes.analysis.axis_rules.row import attribute_int, input_at

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array

__all__ = ["Norm", "find_importance"]

Norm: TypeAlias = Literal["l2", "l1"]

SCALED = frozenset({"BatchNormalization", "InstanceNormalization"})


def find_importance(channels: ChannelMap, norm: Norm = "l2") -> Array:
    """The importance of every class of channels.

    Args:
        channels: the channel map.
        norm: what is summed up: squares or magnitudes.

    Returns:
        float64, shape `(tags,)`, by class; not finite where a weight is not, or cannot be read.
    """
    roots, trace = channels.roots, channels.trace
    total = np.zeros(roots.size)

    def add(tags: Array, amounts: Array) -> None:
        np.add.at(total, roots[tags.ravel()], amounts.ravel())

    for node, noted in trace.notes.items():
        if node.op_type in CONVOLUTIONS:
            incoming, outgoing = noted
            sizes = magnitudes(input_at(node, 1), norm)
            if sizes is None:
                add(np.concatenate([incoming, outgoing]), np.asarray(np.nan))
                continue
            made, read = of_convolution(node, sizes, incoming.size, outgoing.size)
            add(outgoing, made)
            if not is_depthwise(node, incoming.size, outgoing.size):
                add(incoming, read)
        elif isinstance(noted, Weighted):
            sizes = magnitudes(input_at(node, noted.weight), norm)
            mine, lines = noted.names.operands[noted.weight], noted.batch + noted.contracted
            add(noted.incoming, summed_to(sizes, mine, lines))
            if noted.outgoing is not None:
                free = noted.batch + noted.names.free(noted.weight)
                add(noted.outgoing, summed_to(sizes, mine, free))
    for node in channels.model.graph:
        if node.op_type in SCALED and node.outputs[0] in trace.tags.of:
            tags, sizes = trace.get(node.outputs[0]), magnitudes(input_at(node, 1), norm)
            if sizes is not None and sizes.size == tags.size:
                add(tags, sizes)
    total[0] = 0.0
    return total


def magnitudes(value: ir.Value | None, norm: Norm) -> Array | None:
    """Squares or magnitudes of a weight's numbers, float64; None if it cannot be read."""
    try:
        numbers = operands.read(value)
    except ValueError:
        return None
    if numbers is None:
        return None
    wide = numbers.astype(np.float64)
    return np.square(wide, out=wide) if norm == "l2" else np.abs(wide, out=wide)


def of_convolution(
    node: ir.Node, sizes: Array, inputs: int, outputs: int
) -> tuple[Array, Array]:
    """What the weight of a convolution adds up to for each output channel, and for each input channel."""
    groups = attribute_int(node, "group", 1)
    table = sizes.reshape(*sizes.shape[:2], -1).sum(2)
    # (groups, of axis 0 in each group, of axis 1)
    table = table.reshape(groups, -1, table.shape[1])
    along_first, along_second = table.sum(2).reshape(-1), table.sum(1).reshape(-1)
    made, read = (
        (along_first, along_second) if node.op_type == "Conv" else (along_second, along_first)
    )
    return made.reshape(outputs), read.reshape(inputs)


def summed_to(sizes: Array | None, axes: str, wanted: str) -> Array:
    """Sums over all axes but the wanted ones, in their order; no number where there are no sizes."""
    if sizes is None:
        return np.asarray(np.nan)
    total: Array = np.einsum(f"{axes}->{wanted}", sizes)
    return total
