"""Zero the channels of any ONNX model, in the ways that pruned models come with.

- rows: whole rows (output channels) of Conv, ConvTranspose, Gemm and MatMul weights, each layer
  for itself; biases and BatchNormalization stay, so that channels become constants other than 0;
- coupled: layers of the same width lose the same channels, and everything that would make such
  a channel other than 0 (bias, scale and shift of a normalization) is zeroed with it. Whatever
  is joined by a residual sum has the same width, so that the channel is dead on all sides;
- blocks: the largest weights of each layer, regrouped into dense blocks of whole input channels,
  and zeros everywhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from benchmarks.calibrate import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from benchmarks.reference import Array

__all__ = ["Kind", "ZeroRows", "row_axis", "zero", "zero_rows"]

Kind: TypeAlias = Literal["rows", "coupled", "blocks"]


class ZeroRows(NamedTuple):
    """How much of a weight is rows of zeros.

    Attributes:
        node: that reads it.
        weight: its name.
        zeros: rows of zeros.
        rows: all rows.
    """

    node: onnx.NodeProto
    weight: str
    zeros: int
    rows: int


SMALLEST = 16
"""Outputs and inputs that a layer has at least for blocks to be made of it."""


def zero(
    model: onnx.ModelProto, kind: Kind, fraction: float, *, seed: int = 0, gentle: bool = False
) -> int:
    """Zero `fraction` of the output channels of every layer, in place.

    Args:
        model: the model.
        kind: see above.
        fraction: 0 to 1; at least one channel of a layer stays.
        seed: of the choice.
        gentle: spare depthwise convolutions and leave four channels in each layer. Where a few
            channels are all there is, rows zeroed at random cut every path through the network.

    Returns:
        how many rows were zeroed; of blocks, how many layers have some.
    """
    weights = Weights(model)
    if kind == "blocks":
        return _make_blocks(model, weights, fraction, seed)
    done: set[str] = set()
    count = 0
    for position, node in enumerate(model.graph.node):
        found = row_axis(node, weights)
        if found is None or node.input[found[0]] in done:
            continue
        index, axis, groups = found
        name = node.input[index]
        done.add(name)
        weight = weights[name]
        width = weight.shape[axis] * groups
        # ConvTranspose has its output channels of one group on axis 1, one row serves all groups
        wanted = (seed, weight.shape[axis]) if kind == "coupled" else (seed, position, 1)
        if gentle and node.op_type == "Conv" and weight.shape[1] == 1 and len(weight) > 1:
            continue
        dropped = _drop(weight.shape[axis], fraction, wanted, keep=4 if gentle else 1)
        weight = np.moveaxis(weight, axis, 0).copy()
        weight[dropped] = 0
        weights[name] = np.moveaxis(weight, 0, axis)
        count += len(dropped) * groups
        bias = node.input[2] if len(node.input) > 2 and node.op_type != "MatMul" else ""
        if kind == "coupled" and bias and weights.is_floating(bias):
            _clear(
                weights,
                bias,
                np.concatenate([dropped + g * width // groups for g in range(groups)]),
            )
    if kind == "coupled":
        _clear_shifts(model, weights, fraction, (seed, 4 if gentle else 1))
    return count


def _make_blocks(model: onnx.ModelProto, weights: Weights, fraction: float, seed: int) -> int:
    """Regroup the largest weights of every layer that is large enough; how many there were."""
    from deploykit.finder.structures.regroup import regroup

    done: set[str] = set()
    count = 0
    for node in model.graph.node:
        found = row_axis(node, weights)
        if found is None or node.op_type == "ConvTranspose" or node.input[found[0]] in done:
            continue
        index, axis, groups = found
        name = node.input[index]
        done.add(name)
        weight = np.moveaxis(weights[name], axis, 0)
        if groups > 1 or weight.ndim < 2 or min(weight.shape[:2]) < SMALLEST:
            continue
        size = np.abs(weight).astype(np.float32)
        kept = size >= np.quantile(size, fraction)
        made = regroup(kept, size, blocks=4, columns="channel", method="cocluster", seed=seed)
        if made.reason is None:
            new = np.where(made.mask, weight, np.zeros((), weight.dtype))
            weights[name] = np.moveaxis(new, 0, axis)
            count += 1
    return count


def row_axis(node: onnx.NodeProto, weights: Weights) -> tuple[int, int, int] | None:
    """Where the rows of a node's weight lie.

    Returns:
        index of the input, axis, and how many groups one row serves; None if the node has no
        constant floating-point weight.
    """
    if node.domain not in {"", "ai.onnx"}:
        return None
    number = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv" and weights.is_floating(node.input[1]):
        return 1, 0, 1
    if node.op_type == "ConvTranspose" and weights.is_floating(node.input[1]):
        return 1, 1, number.get("group", 1)
    if node.op_type == "Gemm" and weights.is_floating(node.input[1]):
        return 1, 0 if number.get("transB") else 1, 1
    if node.op_type == "MatMul":
        for index, axis in ((1, 1), (0, 0)):
            name = node.input[index]
            if weights.is_floating(name) and len(weights.tensors[name].dims) == 2:
                return index, axis, 1
    return None


def zero_rows(model: onnx.ModelProto) -> Iterator[ZeroRows]:
    """Count the rows of zeros in every weight that `row_axis` knows.

    Args:
        model: the model.
    """
    weights = Weights(model)
    for node in model.graph.node:
        found = row_axis(node, weights)
        if found is not None:
            index, axis, _ = found
            name = node.input[index]
            weight = np.moveaxis(weights[name], axis, 0)
            zeros = int((weight.reshape(len(weight), -1) == 0).all(axis=1).sum())
            yield ZeroRows(node, name, zeros, len(weight))


def _drop(width: int, fraction: float, seed: tuple[int, ...], keep: int = 1) -> Array:
    """Which channels go; at least `keep` stay."""
    count = max(0, min(int(width * fraction), width - keep))
    return np.sort(np.random.default_rng(seed).permutation(width)[:count])


def _clear(weights: Weights, name: str, dropped: Array) -> None:
    """Zero some entries of a constant with one value a channel."""
    array = weights[name].copy()
    if array.size > dropped.max(initial=-1):
        array.reshape(-1)[dropped] = 0
        weights[name] = array


def _clear_shifts(
    model: onnx.ModelProto, weights: Weights, fraction: float, how: tuple[int, int]
) -> None:
    """Zero scale and shift of normalizations, added constants and embeddings at dead channels."""
    seed, keep = how
    for node in model.graph.node:
        names: list[str] = []
        if node.op_type in {
            "BatchNormalization",
            "LayerNormalization",
            "InstanceNormalization",
        }:
            names = list(node.input[1:3])
        elif node.op_type in {"Add", "Sub"}:
            names = list(node.input)
        elif node.op_type in {"Gather", "Unsqueeze"}:
            names = list(node.input[:1])
        for name in names:
            if not weights.is_floating(name):
                continue
            shape = tuple(weights.tensors[name].dims)
            width = max(shape, default=1)
            if node.op_type == "Gather":  # an embedding: rows are words
                if len(shape) == 2:
                    array = weights[name].copy()
                    array[:, _drop(shape[1], fraction, (seed, shape[1]), keep)] = 0
                    weights[name] = array
            elif width == np.prod(shape, dtype=int) and width > 1:
                _clear(weights, name, _drop(width, fraction, (seed, width), keep))
