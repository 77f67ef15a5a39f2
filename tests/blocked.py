"""Random layers with dense blocks, for hypothesis: a layer whose weight is zero outside of blocks, and what stands around it.

What a block structure may look like is drawn first (`Structure`), for a matrix of outputs by inputs. A model has one layer
with it, of any kind and with any attributes, and neighbours that the forms of blocks have to leave alone.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from passes import targets
from tests.graphs import Graph
from tests.strategies import Case

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

TARGETS = tuple(
    dataclasses.replace(
        targets.TARGETS["generic"], name=f"multiple-{multiple}", group_multiple=multiple
    )
    for multiple in (1, 4, 8, 16)
)
"""Targets that differ in what channels of groups are padded to."""

OPSETS = (21, 7, 9, 11, 13, 18)
STRUCTURES = ("diagonal", "overlapping", "unequal", "remainder", "one")


@dataclasses.dataclass(frozen=True)
class Structure:
    """Blocks of a matrix.

    Attributes:
        kind: one of STRUCTURES.
        parts: rows and columns of each; rows that are in none are empty.
        shape: of the matrix.
    """

    kind: str
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    shape: tuple[int, int]

    @property
    def mask(self) -> np.ndarray:
        """Bool, `shape`: True in blocks."""
        found = np.zeros(self.shape, dtype=bool)
        for rows, columns in self.parts:
            found[np.ix_(rows, columns)] = True
        return found


@st.composite
def structures(
    draw: st.DrawFn,
    shape: tuple[int, int] | None = None,
    kinds: Sequence[str] = STRUCTURES,
) -> Structure:
    """Blocks of a matrix.

    Args:
        draw: of hypothesis.
        shape: of the matrix; drawn if it is None.
        kinds: of blocks, of STRUCTURES: equal ones that share nothing, equal ones that share inputs, ones of different sizes,
            one that reads everything among others, and a single one.
    """
    kind = draw(st.sampled_from(list(kinds)))
    count = 1 if kind == "one" else draw(st.sampled_from([2, 4, 3, 6]))
    if shape is None:
        height, width = (draw(st.sampled_from([4, 8, 5, 16])) for _ in range(2))
        rows, columns = count * height, count * width
        if kind == "one":
            columns *= 2
    else:
        rows, columns = shape
        count = max(1, min(count, rows, columns))
    dice = np.random.default_rng(draw(st.integers(0, 2**16)))
    is_mixed = draw(st.booleans())
    lines = dice.permutation(rows) if is_mixed else np.arange(rows)
    inputs = dice.permutation(columns) if is_mixed else np.arange(columns)
    if kind == "one":
        kept = inputs[: max(1, columns // 2)]
        parts = [(lines, kept)]
    elif kind in {"unequal", "remainder"}:
        places = (
            np.sort(dice.choice(np.arange(1, rows), count - 1, replace=False))
            if count > 1
            else []
        )
        parts = [
            (each, dice.permutation(columns)[: dice.integers(1, max(2, columns // 2))])
            for each in np.split(lines, places)
        ]
        if kind == "remainder":
            parts[0] = (parts[0][0], inputs)
    else:
        width = max(1, columns // count)
        if kind == "overlapping":
            width = max(1, min(columns, width * 3 // 2))
        parts = [
            (
                each,
                inputs[index * (columns // count) :][:width]
                if kind == "diagonal"
                else dice.permutation(columns)[:width],
            )
            for index, each in enumerate(np.array_split(lines, count))
        ]
    if draw(st.integers(0, 3)) == 3 and rows > 2:
        gone = dice.choice(rows, max(1, rows // 6), replace=False)
        parts = [(np.setdiff1d(held, gone), read) for held, read in parts]
    parts = [(held, read) for held, read in parts if held.size and read.size]
    return Structure(kind, tuple((np.sort(a), np.sort(b)) for a, b in parts), (rows, columns))


def fill(
    g: Graph, weight: str, mask: np.ndarray, dice: np.random.Generator, *, holes: bool
) -> None:
    """Zero a weight outside of a mask of its shape, with a few zeros more by chance, and scale what is left to unit variance."""
    array = g.constants[weight] * mask
    if holes:
        array = array * (dice.random(array.shape) > 0.03)
    g.constants[weight] = array.astype(g.dtype)


@dataclasses.dataclass
class Draft:
    """A model that is being drawn around one layer.

    Attributes:
        draw: of hypothesis.
        g: the graph.
        weight: of the layer.
        structure: its blocks.
    """

    draw: st.DrawFn
    g: Graph
    weight: str = ""
    structure: Structure | None = None

    def pick(self, options: Sequence[Any]) -> Any:
        """One of `options`; shrinks to the first."""
        return self.draw(st.sampled_from(list(options)))

    def flip(self) -> bool:
        """True or False; shrinks to False."""
        return self.draw(st.booleans())

    def dice(self) -> np.random.Generator:
        """Random numbers of a drawn seed."""
        return np.random.default_rng(self.draw(st.integers(0, 2**16)))


NUMBERED = ("even", "uneven", "NOTSET")
"""Forms of padding that say it in numbers."""


def padding(
    d: Draft, rank: int, kernel: Sequence[int], *, in_numbers: bool = False
) -> dict[str, Any]:
    """Attributes that pad a convolution, said in numbers or not."""
    forms = ["none", "even", "uneven", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]
    form = d.pick([form for form in forms if not in_numbers or form in NUMBERED])
    if form == "none":
        return {}
    if form == "even":
        return {"pads": [size // 2 for size in kernel] * 2}
    pads = [d.pick([1, 0, 2]) for _ in range(2 * rank)]
    if form == "uneven":
        return {"pads": pads}
    if form == "NOTSET":
        return {"auto_pad": form, "pads": pads}
    return {"auto_pad": form}


def cropped_layer(d: Draft, kinds: Sequence[str]) -> str:
    """A padded convolution with blocks, whose filters are zero in the same places."""
    return conv_layer(d, kinds, is_cropped=True)


def conv_layer(d: Draft, kinds: Sequence[str], *, is_cropped: bool = False) -> str:
    """A convolution with blocks of whole input channels, behind the input of the graph; what it computes."""
    g = d.g
    rank, groups = d.pick([2, 1, 3]), d.pick([1, 1, 1, 2, 4])
    kernel = [d.pick([3, 2] if is_cropped else [1, 3, 2]) for _ in range(rank)]
    shapes = [d.draw(structures(kinds=kinds))]
    for _ in range(groups - 1):
        shapes.append(d.draw(structures(shapes[0].shape, kinds=kinds)))
    rows, columns = shapes[0].shape
    if groups > 1:
        parts = tuple(
            (held + at * rows, read + at * columns)
            for at, shape in enumerate(shapes)
            for held, read in shape.parts
        )
        d.structure = Structure("grouped", parts, (groups * rows, groups * columns))
    else:
        d.structure = shapes[0]
    attrs: dict[str, Any] = padding(d, rank, kernel, in_numbers=is_cropped)
    if d.flip():
        attrs["strides"] = [d.pick([2, 1, 3]) for _ in range(rank)]
    if d.flip() and not str(attrs.get("auto_pad", "")).startswith("SAME"):
        attrs["dilations"] = [d.pick([2, 1]) for _ in range(rank)]
    if d.flip():
        attrs["kernel_shape"] = kernel
    batch = d.pick([1, 2])
    space = [d.pick([6, 5, 7]) for _ in range(rank)]
    symbols = ("batch" if d.flip() else batch, groups * columns, *space)
    x = g.input("x", (batch, groups * columns, *space), symbols=symbols)
    x = before_conv(d, x)
    fan_in = max(1, columns // len(shapes[0].parts)) * int(np.prod(kernel))
    d.weight = g.normal(groups * rows, columns, *kernel, scale=fan_in**-0.5)
    dice = d.dice()
    mask = np.concatenate([shape.mask for shape in shapes])
    mask = np.broadcast_to(
        mask.reshape(mask.shape + (1,) * rank), g.constants[d.weight].shape
    ).copy()
    if is_cropped or d.flip():
        # Filters that are zero in the same places: a smaller window will do.
        axis = dice.integers(rank) + 2
        line = [slice(None)] * mask.ndim
        line[axis] = d.pick([0, -1])
        if mask.shape[axis] > 1:
            mask[tuple(line)] = False
    fill(g, d.weight, mask, dice, holes=d.flip())
    inputs = [x, d.weight]
    form = d.pick(["constant", "absent", "given", "computed"])
    if form == "given":
        inputs.append(g.input("b", [groups * rows]))
    elif form != "absent":
        held = g.normal(groups * rows, scale=0.4, hint="b")
        inputs.append(held if form == "constant" else g.add("Neg", [held]))
    y = g.add("Conv", inputs, group=groups, **attrs)
    if d.pick([0, 0, 1]):
        # Another reader of the same weight, of the same data or of others.
        other = x if d.flip() else g.add("Relu", [x])
        y = g.add("Add", [y, g.add("Conv", [other, d.weight], group=groups, **attrs)])
    return after_conv(d, y)


def before_conv(d: Draft, x: str) -> str:
    """Something that makes what the layer reads, or nothing."""
    g, form = d.g, d.pick(["nothing", "relu", "conv", "norm"])
    if form == "relu":
        return g.add("Relu", [x])
    if form == "conv":
        y = g.conv(x, g.shape(x)[1], 1)
        return g.add("Relu", [g.batch_norm(y)])
    return g.batch_norm(x) if form == "norm" else x


def after_conv(d: Draft, y: str) -> str:  # noqa: PLR0911 - a list of neighbours
    """Something that reads what the layer computes, or nothing."""
    g = d.g
    rows, rank = g.shape(y)[1], len(g.shape(y)) - 2
    form = d.pick(
        [
            "nothing",
            "norm",
            "residual",
            "concat",
            "depthwise",
            "split",
            "gate",
            "conv",
            "output",
        ]
    )
    if form == "norm":
        return g.add("Relu", [g.batch_norm(y)])
    if form == "residual":
        z = g.add("Relu", [y])
        return g.add("Add", [g.conv(z, rows, 1), y])
    if form == "concat":
        return g.add("Concat", [g.add("Relu", [y]), y], axis=1)
    if form == "depthwise":
        return g.conv(y, rows, group=rows, weight=g.normal(rows, 1, *[1] * rank))
    if form == "split" and rows > 1:
        cut = rows // 2
        if g.opset >= 13:
            parts = g.add("Split", [y, g.ints(cut, rows - cut)], n=2, axis=1)
        else:
            parts = g.add("Split", [y], n=2, axis=1, split=[cut, rows - cut])
        return g.add("Concat", [parts[1], g.add("Relu", [parts[0]])], axis=1)
    if form == "gate":
        return g.add("Mul", [y, g.add("Sigmoid", [g.add("GlobalAveragePool", [y])])])
    if form == "conv":
        return g.conv(g.add("Relu", [y]), 4, 1)
    if form == "output":
        g.outputs.append(y)
        return g.add("Relu", [y])
    return y


def linear_layer(d: Draft, kinds: Sequence[str]) -> str:
    """A Gemm or MatMul with blocks; what it computes."""
    g = d.g
    is_gemm = d.pick([True, False])
    d.structure = d.draw(structures(kinds=kinds))
    rows, columns = d.structure.shape
    batch = d.pick([2, 1, 5])
    lead: tuple[int, ...] = (batch,)
    if not is_gemm:
        lead = (batch, *d.pick([(), (3,), (2, 3)]))
    symbols = ("batch" if d.flip() else batch, *lead[1:], columns)
    x = g.input("x", (*lead, columns), symbols=symbols)
    if d.flip():
        x = g.add("Relu", [x])
    turned = is_gemm and d.flip()
    fan_in = max(1, columns // max(1, len(d.structure.parts)))
    d.weight = g.normal(*((rows, columns) if turned else (columns, rows)), scale=fan_in**-0.5)
    mask = d.structure.mask
    fill(g, d.weight, mask if turned else mask.T, d.dice(), holes=d.flip())
    if is_gemm:
        inputs = [x, d.weight, *addend(d, batch, rows, is_fixed=symbols[0] != "batch")]
        attrs: dict[str, Any] = {"transB": 1} if turned else {}
        if d.flip():
            attrs |= {"alpha": 0.8, "beta": 1.5}
        y = g.add("Gemm", inputs, **attrs)
    else:
        y = g.add("MatMul", [x, d.weight])
        if d.flip():
            y = g.add("Add", [y, g.normal(rows, hint="b")])
    if d.pick([0, 0, 1]):
        y = g.add("Add", [y, g.add("MatMul", [x, g.normal(columns, rows)])])
    form = d.pick(["nothing", "relu", "residual", "softmax", "output"])
    if form == "residual":
        return g.add("Add", [y, g.add("MatMul", [g.add("Relu", [y]), g.normal(rows, rows)])])
    if form == "output":
        g.outputs.append(y)
    return (
        y
        if form == "nothing"
        else g.add(
            "Softmax" if form == "softmax" else "Relu",
            [y],
            **({"axis": len(lead)} if form == "softmax" else {}),
        )
    )


def addend(d: Draft, batch: int, rows: int, *, is_fixed: bool) -> list[str]:
    """What a Gemm adds, in any shape that broadcasts, perhaps nothing; perhaps computed."""
    g = d.g
    shapes: list[tuple[int, ...]] = [(rows,), (1, rows), (1,), (), (1, 1)]
    if is_fixed:
        shapes += [(batch, rows), (batch, 1)]
    form = d.pick(["constant", "absent", "given", "computed"])
    if form == "absent" and g.opset >= 11:
        return []
    shape = d.pick(shapes)
    if form == "given":
        return [g.input("c", shape or (1,))]
    held = g.normal(*shape, hint="b")
    return [g.add("Neg", [held])] if form == "computed" else [held]


@st.composite
def blocked(
    draw: st.DrawFn,
    *,
    layers: Sequence[Any] = (conv_layer, linear_layer),
    kinds: Sequence[str] = STRUCTURES,
    opsets: Sequence[int] = OPSETS,
    half: bool = True,
) -> Case:
    """A model with a layer that has dense blocks.

    Args:
        draw: of hypothesis.
        layers: of which kind the layer may be.
        kinds: of blocks.
        opsets: of the model.
        half: whether a model may be float16.
    """
    dtype = np.float16 if half and draw(st.integers(0, 9)) == 9 else np.float32
    d = Draft(
        draw, Graph(draw(st.integers(0, 2**16)), dtype, draw(st.sampled_from(list(opsets))))
    )
    y = draw(st.sampled_from(list(layers)))(d, kinds)
    g = d.g
    store = draw(st.sampled_from(["initializer", "initializer", "constant", "output"]))
    if store == "constant":
        g.storage[d.weight] = "constant"
    if store == "output":
        g.outputs.append(d.weight)
    sizes = {"batch": g.shape("x")[0]} if "batch" in g.inputs["x"] else {}
    return Case(g.model(y), sizes, d.structure.kind if d.structure else "", g)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """A network with blocks along the diagonal of every layer, under permutations that fit together.

    Attributes:
        proto: the model.
        layers: how many layers have blocks.
    """

    proto: onnx.ModelProto
    layers: int


@st.composite
def hidden(draw: st.DrawFn, *, linear: bool = False) -> Hidden:
    """A residual network whose layers all have blocks, in some order of its channels.

    Channels of the stream, and of what lies inside of each branch, belong to groups: 2, or 4 that lie in those. A layer reads of
    a channel's own group only. Where each channel stands is drawn, once for all layers that share it.

    Args:
        draw: of hypothesis.
        linear: products with matrices in place of convolutions.
    """
    g = Graph(draw(st.integers(0, 2**16)))
    dice = np.random.default_rng(draw(st.integers(0, 2**16)))
    width = 16

    def reading(outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Which of the inputs each output reads, given where the channels of both stand."""
        groups = draw(st.sampled_from([4, 2]))
        of_output, of_input = (
            np.arange(line.size) * groups // line.size for line in (outputs, inputs)
        )
        return of_output[outputs][:, None] == of_input[inputs][None, :]

    def layer(x: str, outputs: np.ndarray, inputs: np.ndarray) -> str:
        mask = reading(outputs, inputs)
        y = g.dense(x, outputs.size) if linear else g.conv(x, outputs.size, 3, pads=[1] * 4)
        weight = g.layers[-1].weight
        g.constants[weight] *= mask.T if linear else mask[:, :, None, None]
        return y

    if linear:
        y = g.dense(g.input("x", (2, 3, 8)), width)
    else:
        y = g.batch_norm(g.conv(g.input("x", (1, 3, 6, 6)), width, 3))
    stream = dice.permutation(width)
    branches = draw(st.integers(1, 4))
    for _ in range(branches):
        inside = dice.permutation(draw(st.sampled_from([16, 24, 32])))
        z = g.add("Relu", [layer(y, inside, stream)])
        if not linear and draw(st.booleans()):
            # Depthwise, so that its channels stand as they came.
            z = g.conv(g.batch_norm(z), inside.size, 3, group=inside.size, pads=[1] * 4)
        y = g.add("Add", [y, layer(z, stream, inside)])
        if draw(st.booleans()):
            y = g.add("Relu", [y])
    y = (
        g.dense(y, 3)
        if linear
        else g.gemm(g.add("Flatten", [g.add("GlobalAveragePool", [y])]), 3)
    )
    return Hidden(g.model(y), 2 * branches)
