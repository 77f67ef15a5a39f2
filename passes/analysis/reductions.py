"""Which constant each layer multiplies by, and along which axis of it is summed.

From a Conv, Gemm or MatMul the way leads back through what only passes numbers on (QuantizeLinear, DequantizeLinear, Cast,
Transpose, Identity) to the initializer or Constant node that holds them; a Transpose moves the axis. This is what a pattern
of zeros lies along: TensorRT reads 2:4 along the input channels, not along the kernel and not along the outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from passes import weights
from passes.analysis.walk import label
from passes.base import Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from passes.analysis.compact import Array

__all__ = ["TIDY", "Held", "Product", "collect", "find_products", "refusals"]

STANDARD: Final = frozenset({"", "ai.onnx"})
ELSEWHERE: Final = frozenset(
    {
        *("Attention", "Einsum", "GRU", "LSTM", "RNN"),
        *("ConvInteger", "DeformConv", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
    }
)
"""Operators that multiply by weights in other ways than the three whose axis is known."""
TIDY: Final = "run 'tidy' first, which folds what makes a weight"


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """Where the numbers of a weight are stored, and which axis of that is summed over.

    Attributes:
        value: the initializer, or the output of the Constant node.
        axis: the axis of the stored tensor.
        path: the nodes in between, from the layer back to it.
        seen: the shape in which the layer reads it.
        scale: what the stored integers are multiplied with, in a shape that broadcasts to them; None for floats.
    """

    value: ir.Value
    axis: int
    path: tuple[ir.Node, ...]
    seen: tuple[int, ...]
    scale: Array | None = None

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The numbers, unread."""
        found = weights.tensor(self.value)
        assert found is not None, "it was only made for a constant"  # noqa: S101
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored tensor."""
        return tuple(int(size) for size in self.tensor.shape.numpy())


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A node that multiplies by a weight, or by something that is none.

    Attributes:
        node: the node.
        index: the input that the weight comes in by; -1 if there is none.
        held: its weight; None if there is none that can be followed.
        refusal: why there is none, and what to do; None if there is one.
    """

    node: ir.Node
    index: int
    held: Held | None
    refusal: Skip | None = None

    @property
    def name(self) -> str:
        """Name of the weight, or of the node if there is none."""
        return label(self.node) if self.held is None else self.held.name

    @property
    def precision(self) -> ir.DataType | None:
        """The type in which it is computed with the weight; None if that is not said.

        That of quantized weights where the data is quantized as well; otherwise what the layer reads.
        """
        held = self.held
        if held is None:
            return None
        if any(step.op_type == "DequantizeLinear" for step in held.path):
            data = self.node.inputs[1 - self.index]
            maker = None if data is None else data.producer()
            if maker is not None and maker.op_type == "DequantizeLinear":
                return stored_type(held)
        value = self.node.inputs[self.index]
        for step in held.path:
            if step.op_type == "Cast":
                return ir.DataType(step.attributes["to"].as_int())
            if step.op_type == "DequantizeLinear":
                scale = weights.tensor(step.inputs[1])
                return None if scale is None else scale.dtype
        return (
            held.tensor.dtype
            if not held.path
            else None
            if value is None
            else value.dtype or held.tensor.dtype
        )

    @property
    def is_convolution(self) -> bool:
        """Whether it has a kernel and groups."""
        return self.node.op_type in {"Conv", "ConvTranspose"}

    @property
    def outputs(self) -> int:
        """How many numbers each place of the output has, over all groups."""
        shape = () if self.held is None else self.held.seen
        match self.node.op_type:
            case "Conv":
                return shape[0]
            case "ConvTranspose":
                return shape[1] * self.groups
            case "Gemm":
                is_turned = (
                    self.node.attributes.get_int("transB" if self.index else "transA", 0) != 0
                )
                return shape[(self.index == 1) != is_turned]
            case _:
                return 1 if len(shape) < 2 else shape[-1 if self.index else -2]

    @property
    def inputs(self) -> int:
        """Over how many inputs each output sums, kernel aside: those of its group."""
        if self.held is None:
            return 0
        return self.held.shape[self.held.axis] // (
            self.groups if self.node.op_type == "ConvTranspose" else 1
        )

    @property
    def kernel(self) -> tuple[int, ...]:
        """Of a convolution; empty for a product."""
        return self.held.seen[2:] if self.held is not None and self.is_convolution else ()

    @property
    def groups(self) -> int:
        """Of a convolution; 1 of a product."""
        return self.node.attributes.get_int("group", 1) if self.is_convolution else 1


def find_products(model: ir.Model) -> tuple[Product, ...]:
    """Every node that multiplies by a weight, in graph order, subgraphs included; and products of activations.

    Args:
        model: the model; unchanged, and its weights are not read, apart from scales and zero points.
    """
    return tuple(product for node in model.graph.all_nodes() for product in products_of(node))


def products_of(node: ir.Node) -> Iterator[Product]:
    """The weights of one node."""
    if node.domain not in STANDARD:
        return
    if node.op_type in ELSEWHERE:
        reason = f"{node.op_type} is none of the operators whose weights are followed: Conv, Gemm and MatMul"
        yield Product(node, -1, None, Skip(label(node), reason, "write it as one of these"))
        return
    places = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1, 0), "MatMul": (1, 0)}.get(
        node.op_type, ()
    )
    found = [product for index in places if (product := product_of(node, index)) is not None]
    followed = [product for product in found if product.held is not None]
    if len(followed) == 1 or (found and not followed):
        yield (followed or found)[0]
    elif followed:
        reason = "both of its inputs are constants, so that it is one itself"
        yield Product(node, -1, None, Skip(label(node), reason, TIDY))
    elif places:
        what = (
            "its weight is computed while the model runs"
            if len(places) == 1
            else "it multiplies two activations"
        )
        yield Product(
            node,
            -1,
            None,
            Skip(
                label(node),
                f"{what}, and no constant is multiplied",
                "nothing can be done: sparse kernels read constants",
            ),
        )


def product_of(node: ir.Node, index: int) -> Product | None:
    """The weight that comes in by one input; None if what comes in does not lead back to a constant."""
    value = node.inputs[index] if index < len(node.inputs) else None
    path: list[ir.Node] = []
    while value is not None and not weights.is_constant(value):
        step = value.producer()
        if step is None or step.domain not in STANDARD or step.op_type not in PASSED:
            return (
                None
                if step is None or not leads_to_constant(step)
                else Product(
                    node,
                    index,
                    None,
                    Skip(
                        label(node),
                        f"its weight is made by '{label(step)}' ({step.op_type}), which is not followed",
                        TIDY,
                    ),
                )
            )
        path.append(step)
        value = step.inputs[0]
    found = weights.tensor(value)
    if value is None or found is None:
        # What is read is no constant, or there is nothing to read.
        return None
    rank = len(found.shape)
    axis = reduced_axis(node, index, rank)
    if axis is None:
        reason = (
            f"its weight '{value.name}' has {rank} axes, and a {node.op_type} reads none such"
        )
        return Product(node, index, None, Skip(label(node), reason, "repair the model"))
    seen = tuple(int(size) for size in found.shape.numpy())
    turns = turns_of(path, rank)
    for turn in reversed(turns):
        seen = tuple(seen[at] for at in turn)
    for turn in turns:
        axis = turn[axis]
    try:
        scale = stored_scale(path, found)
    except Unfit as unfit:
        return Product(node, index, None, Skip(label(node), str(unfit), unfit.advice))
    return Product(node, index, Held(value, axis, tuple(path), seen, scale))


PASSED: Final = frozenset(
    {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"}
)
"""What a weight is followed through."""


def leads_to_constant(node: ir.Node) -> bool:
    """Whether a node computes something of constants alone, as far as one step shows."""
    return bool(node.inputs) and all(
        value is None or weights.is_constant(value) for value in node.inputs
    )


def reduced_axis(node: ir.Node, index: int, rank: int) -> int | None:
    """The axis, of the tensor that the node reads, that it sums over; None if the tensor has too few."""
    if node.op_type == "Conv":
        return 1 if rank >= 3 else None
    if node.op_type == "ConvTranspose":
        return 0 if rank >= 3 else None
    if node.op_type == "Gemm":
        is_turned = node.attributes.get_int("transB" if index == 1 else "transA", 0) != 0
        return None if rank != 2 else int((index == 1) == is_turned)
    # A vector is summed over as it is; of matrices, B (..., K, N) along K and A (..., M, K) too.
    if rank < 2:
        return 0 if rank == 1 else None
    return rank - 2 if index == 1 else rank - 1


class Unfit(Exception):
    """A quantized weight whose zeros are not stored as zeros; says what to do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


def stored_scale(path: list[ir.Node], stored: ir.TensorProtocol) -> Array | None:
    """What stored integers are multiplied with; None where floats are stored.

    Raises:
        Unfit: a zero that is stored does not come out as a zero.
    """
    quantizers = [
        step for step in path if step.op_type in {"DequantizeLinear", "QuantizeLinear"}
    ]
    for step in quantizers:
        zero_point = step.inputs[2] if len(step.inputs) > 2 else None
        points = weights.constant(zero_point)
        if zero_point is not None and points is None:
            reason = f"the zero point of '{label(step)}' is computed while the model runs, so that nobody knows what is a zero"
            raise Unfit(reason, SYMMETRIC)
        if points is not None and points.any():
            reason = f"'{label(step)}' has a zero point that is not 0, so that a zero that is stored is none when it is read"
            raise Unfit(reason, SYMMETRIC)
    if stored.dtype.is_floating_point() or not quantizers:
        return None
    step = quantizers[-1]
    scale = weights.constant(step.inputs[1])
    if scale is None:
        reason = f"the scale of '{label(step)}' is computed while the model runs"
        raise Unfit(reason, "export the model with constant scales")
    return as_stored(step, scale, path[path.index(step) + 1 :], stored)


SYMMETRIC: Final = "quantize weights symmetrically: int8 with a zero point of 0"


def stored_type(held: Held) -> ir.DataType | None:
    """The type that a quantized weight is read in, whether it is stored so or made so by a QuantizeLinear."""
    if not held.tensor.dtype.is_floating_point():
        return held.tensor.dtype
    for step in held.path:
        if step.op_type == "QuantizeLinear":
            points = weights.tensor(step.inputs[2]) if len(step.inputs) > 2 else None
            said = step.attributes.get_int("output_dtype", 0)
            if points is not None:
                return points.dtype
            return ir.DataType(said) if said else ir.DataType.UINT8
    return held.tensor.dtype


def turns_of(path: Sequence[ir.Node], rank: int) -> list[tuple[int, ...]]:
    """The orders of axes of the Transposes on the way back to a tensor: position -> axis of what is read."""
    orders = [step.attributes.get("perm") for step in path if step.op_type == "Transpose"]
    return [
        tuple(range(rank))[::-1] if order is None else tuple(order.as_ints())
        for order in orders
    ]


def as_stored(
    step: ir.Node, scale: Array, behind: list[ir.Node], stored: ir.TensorProtocol
) -> Array:
    """The scale of a DequantizeLinear in a shape that broadcasts to the stored tensor, which it reads through `behind`."""
    shape = tuple(int(size) for size in stored.shape.numpy())
    rank = len(shape)
    if scale.size == 1:
        return scale.reshape((1,) * rank)
    turns = turns_of(behind, rank)
    for turn in reversed(turns):
        shape = tuple(shape[axis] for axis in turn)
    axis = step.attributes.get_int("axis", 1) % rank
    if scale.ndim == rank:
        # In blocks: one scale for so many elements along the axis.
        size = step.attributes.get_int("block_size", 0)
        wide = scale.repeat(size, axis).take(range(shape[axis]), axis) if size else scale
    else:
        wide = scale.reshape([-1 if at == axis else 1 for at in range(rank)])
    for turn in turns:
        wide = wide.transpose(np.argsort(turn))
    return wide


def collect(products: tuple[Product, ...]) -> Mapping[ir.Value, tuple[Product, ...]]:
    """The products of each stored tensor."""
    found: dict[ir.Value, list[Product]] = {}
    for product in products:
        if product.held is not None:
            found.setdefault(product.held.value, []).append(product)
    return {value: tuple(users) for value, users in found.items()}


def refusals(users: Mapping[ir.Value, tuple[Product, ...]]) -> dict[ir.Value, Skip]:
    """Which stored tensors no pattern can be put into, because not all who read them want it along one axis."""
    found: dict[ir.Value, Skip] = {}
    for value, products in users.items():
        axes = {product.held.axis: product for product in products if product.held is not None}
        name = value.name or ""
        if len(axes) > 1:
            (first, one), (second, other) = list(axes.items())[:2]
            found[value] = Skip(
                name,
                f"'{label(one.node)}' sums over its axis {first} and '{label(other.node)}' over axis {second}: a pattern "
                "along the one is none along the other",
                "give each of them a copy of its own",
            )
            continue
        stranger = other_reader(products)
        if stranger is not None:
            found[value] = Skip(
                name,
                f"{stranger}, and zeros would change that, too",
                "give the product a copy of its own",
            )
    return found


def other_reader(products: tuple[Product, ...]) -> str | None:
    """Who reads a stored tensor, or what is made of it on the way, besides the products; in words."""
    known: set[tuple[ir.Node, int]] = set()
    passed: dict[ir.Value, None] = {}
    for product in products:
        if product.held is None:
            continue
        reader, at = product.node, product.index
        for step in (*product.held.path, None):
            value = reader.inputs[at]
            assert value is not None, "it was followed to a constant"  # noqa: S101
            known.add((reader, at))
            passed[value] = None
            if step is not None:
                reader, at = step, 0
    for value in passed:
        if value.is_graph_output():
            return f"it is the output '{value.name}' of the model"
        for use in value.uses():
            if (use.node, use.idx) not in known:
                return f"'{label(use.node)}' ({use.node.op_type}) reads it"
    return None
