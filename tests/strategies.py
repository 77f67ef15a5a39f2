"""Random ONNX models with random zeros, for hypothesis.

A model is a chain of blocks that mostly read what was made last and sometimes anything made before; what nobody read
in the end becomes an output, behind a head or bare. Each block is one function of MAPS (tensors `(n, c, *space)`),
TOKENS (`(n, t, c)`) or ROWS (`(n, c)`), simple ones first: a failing case shrinks towards few, plain convolutions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.graphs import Graph, Layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Zeros: TypeAlias = Literal["rows", "scales", "coupled", "columns", "heads", "mixed", "blocks"]
ZEROS: tuple[Zeros, ...] = ("coupled", "rows", "scales", "columns", "heads", "mixed")
WIDTHS = (4, 2, 8, 6, 3, 5, 12, 16)
SMOOTH = (
    "Relu",
    "Sigmoid",
    "HardSwish",
    "LeakyRelu",
    "Tanh",
    "Softplus",
    "Elu",
    "Abs",
    "Neg",
    "Erf",
)


MOST_TEXT = 20_000
"""Characters of a model in the message about a failing example."""


@dataclasses.dataclass(frozen=True, repr=False)
class Case:
    """A drawn model.

    Attributes:
        proto: the checked model, zeros included.
        sizes: stand-ins of its symbolic axes.
        zeros: the kind of zeros, for the failure message.
        graph: what it was built from.
    """

    proto: onnx.ModelProto
    sizes: dict[str, int]
    zeros: str
    graph: Graph

    def __repr__(self) -> str:
        """Few words: weights are long."""
        return f"{len(self.proto.graph.node)} nodes, zeros: {self.zeros}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The model as text: what a failing example prints."""
        # What is longer hypothesis takes for a mistake.
        text = onnx.printer.to_text(self.proto)[:MOST_TEXT]
        printer.text(f"zeros: {self.zeros}, sizes: {self.sizes}\n{text}")


@dataclasses.dataclass
class Draft:
    """A model that is being drawn.

    Attributes:
        draw: of hypothesis.
        g: the graph so far.
        dynamic_batch: axis 0 is symbolic.
        dynamic_space: all axes behind the channels are symbolic.
        alive: tensors that a block may read, oldest first.
        unread: those that nobody has read.
        static: tensors with no symbolic size behind the batch, in a model with dynamic space.
        maps: tensors whose axis 1 holds channels and whose later axes are space.
    """

    draw: st.DrawFn
    g: Graph
    dynamic_batch: bool
    dynamic_space: bool
    alive: list[str] = dataclasses.field(default_factory=list)
    unread: set[str] = dataclasses.field(default_factory=set)
    static: set[str] = dataclasses.field(default_factory=set)
    maps: set[str] = dataclasses.field(default_factory=set)

    def pick(self, options: Sequence[Any]) -> Any:
        """One of `options`; shrinks to the first."""
        return self.draw(st.sampled_from(list(options)))

    def flip(self) -> bool:
        """True or False; shrinks to False."""
        return self.draw(st.booleans())

    def width(self, x: str) -> int:
        """Channels of a map."""
        return self.g.shape(x)[1]

    def space(self, x: str) -> tuple[int, ...]:
        """Sizes behind the channels of a map."""
        return self.g.shape(x)[2:]

    def is_static(self, x: str) -> bool:
        """Whether all sizes behind the batch are known."""
        return not self.dynamic_space or x in self.static

    def divisor(self, n: int) -> int | None:
        """A divisor of `n` other than 1 and `n`, if there is one."""
        found = [d for d in range(2, n) if n % d == 0]
        return self.pick(found) if found else None

    def partner(self, x: str, fits: Callable[[str], bool]) -> str | None:
        """An older tensor of the rank of `x` that fits."""
        rank = len(self.g.shape(x))
        found = [t for t in self.alive if t != x and len(self.g.shape(t)) == rank and fits(t)]
        return self.pick(found[::-1]) if found else None

    def reshape(self, x: str, *sizes: int) -> str:
        """Reshape to `sizes`, of which the first is the batch; -1 stands for what is symbolic."""
        batch = 0 if self.dynamic_batch or self.flip() else self.g.shape(x)[0]
        return self.g.add("Reshape", [x, self.g.ints(batch, *sizes)])

    def mark(self, x: str, like: str) -> str:
        """Carry over that `like` has no symbolic size behind the batch."""
        if like in self.static:
            self.static.add(x)
        return x


# ------------------------------------------------------------------------ maps


def conv(d: Draft, x: str) -> str:
    """Convolution, perhaps strided, padded unevenly, dilated or grouped, with BatchNorm and activation."""
    g, c, space = d.g, d.width(x), d.space(x)
    kernel = d.pick([1, 3, 2])
    attrs: dict[str, Any] = {}
    rank = len(space)
    if kernel > 1:
        attrs["pads"] = (
            [d.pick([1, 0, 2]) for _ in range(2 * rank)]
            if d.flip()
            else [kernel // 2] * (2 * rank)
        )
        if min(space) > 3:
            attrs["dilations"] = [d.pick([1, 1, 2])] * rank
    span = (kernel - 1) * attrs.get("dilations", [1])[0] + 1
    pads = attrs.get("pads", [0] * 2 * rank)
    if any(s + pads[i] + pads[i + rank] < span for i, s in enumerate(space)):
        kernel, attrs = 1, {}
    if min(space) > 3:
        attrs["strides"] = [d.pick([1, 1, 2])] * rank
    group, width = 1, d.pick(WIDTHS)
    shape = d.pick(["dense", "dense", "depthwise", "grouped", "multiplier"])
    if shape == "depthwise":
        group, width = c, c
    elif shape == "multiplier":
        group, width = c, 2 * c if c <= 8 else c
    elif shape == "grouped" and (divisor := d.divisor(c)):
        group, width = divisor, divisor * d.pick([2, 1, 3])
    y = g.conv(x, width, kernel, group=group, bias=d.pick([True, False]), **attrs)
    if d.flip():
        y = g.batch_norm(y)
    if d.flip():
        y = g.add(d.pick(SMOOTH), [y])
    return d.mark(y, x)


def residual(d: Draft, x: str) -> str:
    """A branch of one or two convolutions that joins its input again."""
    g, c = d.g, d.width(x)
    y = g.conv(x, d.pick(WIDTHS), 3, pads=[1] * 2 * len(d.space(x)))
    if d.flip():
        y = g.batch_norm(y)
    y = g.conv(g.add("Relu", [y]), c, 1, bias=d.flip())
    if d.flip():
        y = g.batch_norm(y)
    return d.mark(g.add(d.pick(["Add", "Sum", "Sub", "Max", "Min", "Mean", "Mul"]), [y, x]), x)


def join(d: Draft, x: str) -> str:
    """An elementwise operation of two tensors of one shape, or a conv in front to make it so."""
    g = d.g
    y = d.partner(x, lambda t: d.space(t) == d.space(x) and d.is_static(t) == d.is_static(x))
    if y is None:
        return residual(d, x)
    d.unread.discard(y)
    if d.width(y) != d.width(x):
        y = g.conv(y, d.width(x), 1)
    op = d.pick(["Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean", "Div", "Where"])
    if op == "Div":
        y = g.add("Add", [g.add("Sigmoid", [y]), g.const(np.full((), 0.5))])
    if op == "Where":
        return d.mark(
            g.add("Where", [g.add("Greater", [x, g.const(np.full((), 0.371))]), x, y]), x
        )
    return d.mark(g.add(op, [x, y]), x)


def concat(d: Draft, x: str) -> str:
    """Concatenation with another tensor, or with a branch of its own, along channels."""
    g = d.g
    y = d.partner(
        x,
        lambda t: (
            d.space(t) == d.space(x)
            and d.is_static(t) == d.is_static(x)
            and d.width(t) + d.width(x) <= 24
        ),
    )
    if y is None or d.flip():
        y = g.conv(x, d.pick(WIDTHS), 1)
    d.unread.discard(y)
    return d.mark(
        g.add("Concat", [y, x] if d.flip() else [x, y], axis=d.pick([1, -len(g.shape(x)) + 1])),
        x,
    )


def concat_space(d: Draft, x: str) -> str:
    """Concatenation along space, which ties the channels."""
    y = d.g.conv(x, d.width(x), 1)
    return d.g.add("Concat", [x, y], axis=2)


def split(d: Draft, x: str) -> str:
    """Split into two or three parts; some are worked on, some joined again, some left as outputs."""
    g, c = d.g, d.width(x)
    if c < 4:
        return conv(d, x)
    if d.flip() or c % 2:
        first = d.pick(range(1, c))
        parts = g.add("Split", [x, g.ints(first, c - first)], n=2, axis=1)
    elif d.g.opset >= 18:
        parts = g.add("Split", [x], n=2, axis=1, num_outputs=2)
    else:
        parts = g.add("Split", [x], n=2, axis=1)
    for part in parts:
        d.mark(part, x)
    kind = d.pick(["concat", "keep", "gate"])
    if kind == "gate" and d.width(parts[0]) == d.width(parts[1]):
        return d.mark(g.add("Mul", [parts[0], g.add("Sigmoid", [parts[1]])]), x)
    if kind == "keep":
        d.alive.append(parts[0])
        d.unread.add(parts[0])
        d.maps.add(parts[0])
        return parts[1]
    worked = g.conv(parts[1], d.pick(WIDTHS), 1)
    return d.mark(g.add("Concat", [worked, parts[0]], axis=1), x)


def cut(d: Draft, x: str) -> str:
    """Slice or Gather channels: a range, a step, a permutation, a subset, with repetition."""
    g, c = d.g, d.width(x)
    form = d.pick(["slice", "step", "reverse", "permute", "subset", "repeat"])
    if form == "slice":
        stop = d.pick(range(c, 0, -1))
        start = d.pick(range(stop))
        return d.mark(g.add("Slice", [x, g.ints(start), g.ints(stop), g.ints(1)]), x)
    if form == "step":
        return d.mark(g.add("Slice", [x, g.ints(0), g.ints(c), g.ints(1), g.ints(2)]), x)
    if form == "reverse":
        return d.mark(g.add("Slice", [x, g.ints(-1), g.ints(-c - 1), g.ints(1), g.ints(-1)]), x)
    kept = g.rng.permutation(c)
    if form == "subset":
        kept = kept[: max(1, c // 2)]
    if form == "repeat":
        kept = g.rng.integers(0, c, c)
    return d.mark(g.add("Gather", [x, g.const(kept.astype(np.int64), "index")], axis=1), x)


def shuffle(d: Draft, x: str) -> str:
    """Channel shuffle; sizes of symbolic axes are read with Shape, as exporters do."""
    g, c, space = d.g, d.width(x), d.space(x)
    group = d.divisor(c)
    if group is None:
        return conv(d, x)
    order = [0, 2, 1, *range(3, 3 + len(space))]
    if d.is_static(x):
        y = g.add("Transpose", [d.reshape(x, group, c // group, *space)], perm=order)
        return d.mark(d.reshape(y, c, *space), x)
    sizes = g.add("Shape", [x])
    batch = g.add("Slice", [sizes, g.ints(0), g.ints(1)])
    rest = g.add("Slice", [sizes, g.ints(2), g.ints(2 + len(space))])
    if d.flip():
        # The group width computed from the shape: a size that a cut would change.
        channels = g.add("Slice", [sizes, g.ints(1), g.ints(2)])
        inner = g.add("Div", [channels, g.ints(group)])
    else:
        channels, inner = g.ints(c), g.ints(c // group)

    def reshape(v: str, *parts: str, to: tuple[int, ...]) -> str:
        return g.add("Reshape", [v, g.add("Concat", list(parts), axis=0)], like=(x, to))

    n = g.shape(x)[0]
    wide = reshape(x, batch, g.ints(group), inner, rest, to=(n, group, c // group, *space))
    return reshape(
        g.add("Transpose", [wide], perm=order), batch, channels, rest, to=(n, c, *space)
    )


def pixel(d: Draft, x: str) -> str:
    """DepthToSpace or SpaceToDepth, in both modes."""
    g, c, space = d.g, d.width(x), d.space(x)
    if len(space) != 2:
        return conv(d, x)
    if c % 4 == 0 and max(space) <= 6:
        return d.mark(g.add("DepthToSpace", [x], blocksize=2, mode=d.pick(["DCR", "CRD"])), x)
    if c <= 6 and all(s % 2 == 0 for s in space) and not d.dynamic_space:
        return d.mark(g.add("SpaceToDepth", [x], blocksize=2), x)
    return conv(d, x)


def constant_binary(d: Draft, x: str) -> str:
    """A per-channel, scalar, spatial or full constant operand."""
    g, c, rank = d.g, d.width(x), len(d.g.shape(x))
    form = d.pick(["channel", "scalar", "swapped", "full"])
    shape: tuple[int, ...] = (c, *[1] * (rank - 2))
    if form == "scalar":
        shape = ()
    if form == "full" and d.is_static(x):
        shape = g.shape(x)[1:]
    constant = g.const(g.rng.uniform(0.5, 1.5, shape))
    pair = [constant, x] if form == "swapped" else [x, constant]
    return d.mark(g.add(d.pick(["Mul", "Add", "Sub", "Max"]), pair), x)


def excite(d: Draft, x: str) -> str:
    """Squeeze-and-excite: a `(n, c, 1, 1)` factor made from the tensor itself."""
    g, c = d.g, d.width(x)
    if d.flip():
        y = g.add("GlobalAveragePool", [x])
    else:
        y = reduce(d, x, "ReduceMean", list(range(2, len(g.shape(x)))), keep=True)
    y = g.add("Relu", [g.conv(y, d.pick([2, 4]), 1)])
    return d.mark(
        g.add("Mul", [x, g.add(d.pick(["Sigmoid", "HardSigmoid"]), [g.conv(y, c, 1)])]), x
    )


def spatial_gate(d: Draft, x: str) -> str:
    """A `(n, 1, h, w)` factor: broadcast over channels, which it must not tie."""
    g = d.g
    y = g.conv(x, 1, 1)
    return d.mark(g.add("Mul", [x, g.add("Sigmoid", [y])] if d.flip() else [y, x]), x)


def reduce(d: Draft, x: str, op: str, axes: list[int], *, keep: bool) -> str:
    """Reduce with the axes as the opset has them."""
    if d.g.opset >= 18 or op == "ReduceSum":
        return d.g.add(op, [x, d.g.ints(*axes)], keepdims=int(keep))
    return d.g.add(op, [x], axes=axes, keepdims=int(keep))


def normalize(d: Draft, x: str) -> str:
    """A normalisation: over space, over channel groups, across channels, or none."""
    g, c = d.g, d.width(x)
    kind = d.pick(["batch", "instance", "group", "lrn", "layer"])
    if kind == "batch":
        return d.mark(g.batch_norm(x), x)
    if kind == "instance" and math.prod(d.space(x)) > 1:
        return d.mark(
            g.add(
                "InstanceNormalization",
                [x, g.const(g.rng.uniform(0.6, 1.4, c)), g.normal(c, scale=0.3)],
                epsilon=1e-3,
            ),
            x,
        )
    if kind == "group" and g.opset >= 21:
        group = d.divisor(c) or 1
        return d.mark(
            g.add(
                "GroupNormalization",
                [x, g.const(g.rng.uniform(0.6, 1.4, c)), g.normal(c, scale=0.3)],
                num_groups=group,
                epsilon=1e-3,
                like=(x, g.shape(x)),  # a function operator: onnx does not infer it
            ),
            x,
        )
    if kind == "lrn" and len(g.shape(x)) == 4:  # ONNX Runtime knows no other
        return d.mark(g.add("LRN", [x], size=3, alpha=0.1), x)
    # Channels last, as ConvNeXt does.
    rank = len(g.shape(x))
    last = g.add("Transpose", [x], perm=[0, *range(2, rank), 1])
    y = g.add(
        "LayerNormalization",
        [last, g.const(g.rng.uniform(0.6, 1.4, c)), g.normal(c, scale=0.3)],
        axis=-1,
        epsilon=1e-3,
    )
    return d.mark(g.add("Transpose", [y], perm=[0, rank - 1, *range(1, rank - 1)]), x)


def activation(d: Draft, x: str) -> str:  # noqa: PLR0911
    """Elementwise operations with parameters."""
    g, c, rank = d.g, d.width(x), len(d.g.shape(x))
    kind = d.pick(
        ["PRelu", "Clip", "Gelu", "Cast", "Identity", "Dropout", "Pow", "Sqrt", *SMOOTH]
    )
    if kind == "PRelu":
        shape = (c, *[1] * (rank - 2)) if d.flip() else (1,)
        return d.mark(g.add("PRelu", [x, g.const(g.rng.uniform(0.1, 0.4, shape))]), x)
    if kind == "Clip":
        return d.mark(
            g.add("Clip", [x, g.const(np.full((), -0.5)), g.const(np.full((), 2.0))]), x
        )
    if kind == "Gelu" and g.opset < 20:
        half = g.add("Mul", [x, g.const(np.full((), 0.5))])
        return d.mark(g.add("Mul", [half, g.add("Erf", [x])]), x)
    if kind == "Cast":
        wide = g.add("Cast", [x], to=onnx.TensorProto.DOUBLE)
        return d.mark(g.add("CastLike", [wide, x]), x)
    if kind == "Pow":
        return d.mark(g.add("Pow", [x, g.const(np.full((), 2.0))]), x)
    if kind == "Sqrt":
        return d.mark(
            g.add("Sqrt", [g.add("Add", [g.add("Abs", [x]), g.const(np.full((), 0.1))])]), x
        )
    return d.mark(g.add(kind, [x]), x)


def pool(d: Draft, x: str) -> str:
    """Max or average pooling, with and without counting the padding."""
    rank = len(d.space(x))
    if min(d.space(x)) < 3:
        return conv(d, x)
    attrs: dict[str, Any] = {
        "kernel_shape": [d.pick([2, 3])] * rank,
        "strides": [d.pick([1, 2])] * rank,
        "pads": [d.pick([0, 1]) for _ in range(2 * rank)],
    }
    if d.flip():
        return d.mark(d.g.add("MaxPool", [x], **attrs), x)
    return d.mark(d.g.add("AveragePool", [x], count_include_pad=d.pick([0, 1]), **attrs), x)


def resample(d: Draft, x: str) -> str:
    """Nearest Resize by scales, or Pad in its modes."""
    g, rank = d.g, len(d.space(x))
    form = d.pick(["constant", "Resize", "edge", "reflect", "value"])
    if form == "Resize":
        if max(d.space(x)) > 6:
            return conv(d, x)
        scales = np.asarray([1.0, 1.0, *[2.0] * rank], np.float32)
        name = g.const(scales, "scales")
        # Scales are float32 in a model of any dtype.
        g.constants[name], g.types[name] = (
            scales,
            helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, scales.shape),
        )
        y = g.add(
            "Resize",
            [x, "", name],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return d.mark(y, x)
    if form == "reflect" and min(d.space(x)) < 2:
        form = "edge"
    pads = [0, 0, *[1] * rank, 0, 0, *[d.pick([0, 1]) for _ in range(rank)]]
    inputs = [x, g.ints(*pads)]
    if form == "value":
        inputs.append(g.const(np.full((), 0.7)))
    return d.mark(g.add("Pad", inputs, mode="constant" if form == "value" else form), x)


def pad_channels(d: Draft, x: str) -> str:
    """Zero channels added in the graph, as a parameter-free shortcut does."""
    rank, more = len(d.g.shape(x)), d.pick([1, 2, 4])
    if d.width(x) > 12:
        return conv(d, x)
    return d.mark(d.g.add("Pad", [x, d.g.ints(*[0] * rank, 0, more, *[0] * (rank - 2))]), x)


def channels_last(d: Draft, x: str) -> str:
    """Work done with the channels on the last axis: MatMul, or a vector added."""
    g, rank = d.g, len(d.g.shape(x))
    y = g.add("Transpose", [x], perm=[0, *range(2, rank), 1])
    if d.flip():
        y = g.add("Mul", [y, g.const(g.rng.uniform(0.5, 1.5, d.width(x)))])
    else:
        y = g.dense(y, d.pick(WIDTHS), bias=d.flip())
    return d.mark(g.add("Transpose", [y], perm=[0, rank - 1, *range(1, rank - 1)]), x)


def einsum(d: Draft, x: str) -> str:
    """A pointwise convolution as Einsum."""
    g, letters = d.g, "xyz"[: len(d.space(x))]
    weight = g.normal(d.width(x), d.pick(WIDTHS), scale=d.width(x) ** -0.5)
    return d.mark(g.add("Einsum", [x, weight], equation=f"nc{letters},co->no{letters}"), x)


def deconv(d: Draft, x: str) -> str:
    """Transposed convolution: strided, padded, grouped."""
    rank = len(d.space(x))
    group = (d.divisor(d.width(x)) or 1) if d.flip() else 1
    stride = 2 if max(d.space(x)) <= 5 and d.flip() else 1
    kernel = d.pick([2, 3])
    pads = [d.pick([0, 1]) if min(d.space(x)) > 2 else 0 for _ in range(2 * rank)]
    return d.mark(
        d.g.conv_transpose(
            x,
            group * d.pick([2, 1, 4]),
            kernel,
            group=group,
            bias=d.flip(),
            strides=[stride] * rank,
            pads=pads,
        ),
        x,
    )


def tied(d: Draft, x: str) -> str:
    """One weight used by two convolutions in sequence."""
    g, c, pads = d.g, d.width(x), [1] * 2 * len(d.space(x))
    y = g.conv(x, c, 3, pads=pads)
    layer = g.layers[-1]
    y = g.add(d.pick(SMOOTH), [y])
    y = g.conv(y, c, 3, pads=pads, weight=layer.weight, bias=d.flip())
    return d.mark(g.add("Add", [x, y]) if d.flip() else y, x)


def branch(d: Draft, x: str) -> str:
    """An If whose branches read the tensor, and perhaps a weight, from outside."""
    g = d.g
    y = g.conv(x, d.width(x), 1)
    weight = g.layers[-1].weight
    total = g.add("ReduceSum", [y], keepdims=0)
    condition = g.add("Greater", [total, g.const(np.full((), 0.4371))])
    out = g.types[y].tensor_type.elem_type

    def body(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(node.output[0], out, None)
        return helper.make_graph([node], name, [], [value])

    taken, other, result = g.fresh("then"), g.fresh("else"), g.fresh("If")
    first = (
        helper.make_node("Conv", [y, weight], [taken])
        if d.flip()
        else helper.make_node("Relu", [y], [taken])
    )
    node = helper.make_node(
        "If",
        [condition],
        [result],
        name=f"{result}_node",
        then_branch=body("then", first),
        else_branch=body("else", helper.make_node("Neg", [y], [other])),
    )
    g.nodes.append(node)
    g.types[result] = g.types[y]
    return d.mark(result, x)


def across_channels(d: Draft, x: str) -> str:
    """What mixes channels in a way no cut survives: softmax or statistics over them."""
    g = d.g
    if d.flip():
        return d.mark(g.add("Softmax", [x], axis=1), x)
    op = d.pick(["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"])
    return d.mark(g.add(d.pick(["Sub", "Add"]), [x, reduce(d, x, op, [1], keep=True)]), x)


def extra_axis(d: Draft, x: str) -> str:
    """An axis of size 1 added, something done, and the axis taken away again."""
    g, axis = d.g, d.pick([1, 2, 0])
    y = g.add("Unsqueeze", [x, g.ints(axis)])
    y = g.add("Mul", [y, g.const(np.full((), 1.3))])
    if d.flip():
        y = g.add("Tile", [y, g.ints(*[1] * axis, 1, *[1] * (len(g.shape(y)) - axis - 1))])
    return d.mark(g.add("Squeeze", [y, g.ints(axis)]), x)


def expand(d: Draft, x: str) -> str:
    """Means over space, expanded or tiled back over it."""
    g, space = d.g, d.space(x)
    if not d.is_static(x) or d.dynamic_batch:
        return excite(d, x)
    mean = g.add("GlobalAveragePool", [x])
    if d.flip():
        wide = g.add("Tile", [mean, g.ints(1, 1, *space)])
    else:
        wide = g.add("Expand", [mean, g.ints(1, d.width(x), *space)])
    return d.mark(g.add("Sub", [x, wide]), x)


def quantized(d: Draft, x: str) -> str:
    """A convolution whose int8 weight passes DequantizeLinear with a scale per row."""
    g = d.g
    y = g.conv(x, d.pick(WIDTHS), 1)
    if g.dtype == np.float16 and g.opset < 19:
        return d.mark(y, x)  # scales are float32 there
    layer, node = g.layers.pop(), g.nodes.pop()
    weight = g.constants[layer.weight].astype(np.float32)
    scale = np.abs(weight).max(axis=tuple(range(1, weight.ndim))) / 100
    stored = np.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    layer.weight = g.const(stored.astype(np.int8), "wq")
    g.layers.append(layer)
    node.input[1] = g.add("DequantizeLinear", [layer.weight, g.const(scale)], axis=0)
    g.nodes.append(node)
    return d.mark(y, x)


def to_rows(d: Draft, x: str) -> str:
    """From a map to rows: global pooling or all of space flattened, and a Gemm."""
    g = d.g
    if d.is_static(x) and d.flip() and math.prod(g.shape(x)[1:]) <= 400:
        y = x
    elif d.flip():
        y = g.add("GlobalMaxPool", [x])
    else:
        y = g.add("GlobalAveragePool", [x])
    form = d.pick(["Flatten", "Reshape"])
    if form == "Flatten":
        y = g.add("Flatten", [y], axis=1)
    else:
        y = d.reshape(y, math.prod(g.shape(y)[1:]))
    return gemm(d, y)


def to_tokens(d: Draft, x: str) -> str:
    """From a map to tokens: space flattened and channels last."""
    g = d.g
    y = d.reshape(x, d.width(x), -1)
    return d.mark(g.add("Transpose", [y], perm=[0, 2, 1]), x)


MAPS = (
    conv, residual, join, concat, constant_binary, activation, normalize, pool, excite, split, cut,
    shuffle, spatial_gate, deconv, resample, channels_last, tied, pixel, concat_space, extra_axis,
    einsum, pad_channels, expand, across_channels, branch, quantized, to_rows, to_tokens,
)  # fmt: skip


# -------------------------------------------------------------------- tokens, rows


def dense(d: Draft, x: str) -> str:
    """A linear layer and an activation."""
    y = d.g.dense(x, d.pick(WIDTHS), bias=not d.flip())
    return d.mark(d.g.add(d.pick(SMOOTH), [y]) if d.flip() else y, x)


def mlp(d: Draft, x: str) -> str:
    """A block of two linear layers around which the input is added again."""
    g, width = d.g, d.g.shape(x)[-1]
    y = layer_norm(d, x) if d.flip() else x
    y = g.add(d.pick(SMOOTH), [g.dense(y, d.pick([8, 16, 4]))])
    return d.mark(g.add("Add", [x, g.dense(y, width)]), x)


def layer_norm(d: Draft, x: str) -> str:
    """LayerNormalization, or RMSNormalization where the opset has it."""
    g, width = d.g, d.g.shape(x)[-1]
    scale = g.const(g.rng.uniform(0.6, 1.4, width))
    if g.opset >= 23 and d.flip():
        y = g.add("RMSNormalization", [x, scale], axis=-1, epsilon=1e-3, like=(x, g.shape(x)))
        return d.mark(y, x)
    return d.mark(
        g.add(
            "LayerNormalization", [x, scale, g.normal(width, scale=0.3)], axis=-1, epsilon=1e-3
        ),
        x,
    )


def attention(d: Draft, x: str) -> str:
    """Multi-head attention: separate projections, or one that is split in three."""
    g, (_, _, width) = d.g, d.g.shape(x)
    heads, dim = d.pick([2, 1, 3, 4]), d.pick([2, 1, 3])
    inner = heads * dim
    form = d.pick(["separate", "split", "gathered"])
    if form == "gathered":
        qkv = d.reshape(g.dense(x, 3 * inner, heads=3 * heads), -1, 3, heads, dim)
        qkv = g.add("Transpose", [qkv], perm=[2, 0, 3, 1, 4])
        q, k, v = (g.add("Gather", [qkv, g.const(np.asarray(i))], axis=0) for i in range(3))
        k = g.add("Transpose", [k], perm=[0, 1, 3, 2])
    else:
        if form == "split":
            parts = g.add(
                "Split",
                [g.dense(x, 3 * inner, heads=3 * heads), g.ints(inner, inner, inner)],
                n=3,
                axis=-1,
            )
        else:
            parts = [g.dense(x, inner, heads=heads) for _ in range(3)]
        wide = [d.reshape(p, -1, heads, dim) for p in parts]
        orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        q, k, v = (g.add("Transpose", [w], perm=o) for w, o in zip(wide, orders, strict=True))
    scores = g.add("Mul", [g.add("MatMul", [q, k]), g.const(np.full((), dim**-0.5))])
    y = g.add("MatMul", [g.add("Softmax", [scores], axis=-1), v])
    y = d.reshape(g.add("Transpose", [y], perm=[0, 2, 1, 3]), -1, inner)
    y = g.dense(y, width)
    return d.mark(g.add("Add", [x, y]) if d.flip() else y, x)


def batched(d: Draft, x: str) -> str:
    """A MatMul with a constant of batch dimensions: one matrix for each sample or token group."""
    g, (n, _, width) = d.g, d.g.shape(x)
    shape = (1, width, d.pick(WIDTHS))
    if not d.dynamic_batch and d.flip():
        shape = (n, *shape[1:])
    return d.mark(g.add("MatMul", [x, g.normal(*shape, scale=width**-0.5)]), x)


def mix_tokens(d: Draft, x: str) -> str:
    """A constant on the left: tokens are mixed, channels stay (as in MLP-Mixer)."""
    g, (_, tokens, _) = d.g, d.g.shape(x)
    if not d.is_static(x):
        return dense(d, x)
    y = g.add("MatMul", [g.normal(tokens, tokens, scale=tokens**-0.5), x])
    return d.mark(g.add("Add", [x, y]), x)


def vector(d: Draft, x: str) -> str:
    """A per-channel constant on the last axis."""
    g = d.g
    constant = g.const(g.rng.uniform(0.5, 1.5, g.shape(x)[-1]))
    return d.mark(g.add(d.pick(["Mul", "Add"]), [x, constant]), x)


def mean_tokens(d: Draft, x: str) -> str:
    """The mean over tokens, or the first token."""
    if d.flip():
        return reduce(d, x, "ReduceMean", [1], keep=False)
    return d.g.add("Gather", [x, d.g.const(np.asarray(0))], axis=1)


def back_to_map(d: Draft, x: str) -> str:
    """Tokens as a one-dimensional map."""
    return d.mark(d.g.add("Transpose", [x], perm=[0, 2, 1]), x)


TOKENS = (
    dense,
    mlp,
    attention,
    layer_norm,
    vector,
    batched,
    mix_tokens,
    mean_tokens,
    back_to_map,
)


def gemm(d: Draft, x: str) -> str:
    """Gemm in its forms: transposed operands, alpha, beta."""
    g, attrs = d.g, {}
    if d.flip():
        attrs = {"alpha": 0.8, "beta": 1.5}
    width = d.pick(WIDTHS)
    if d.flip():
        turned = g.add("Transpose", [x], perm=[1, 0])
        return g.gemm(turned, width, transA=1, trans_b=d.flip(), **attrs)
    return g.gemm(x, width, trans_b=not d.flip(), bias=not d.flip(), **attrs)


def left_constant(d: Draft, x: str) -> str:
    """Rows as columns: the weight is the left operand of MatMul."""
    g, k = d.g, d.g.shape(x)[1]
    y = g.add(
        "MatMul",
        [g.normal(d.pick(WIDTHS), k, scale=k**-0.5), g.add("Transpose", [x], perm=[1, 0])],
    )
    return g.add("Transpose", [y], perm=[1, 0])


def row_norm(d: Draft, x: str) -> str:
    """BatchNormalization of rows."""
    return d.g.batch_norm(x)


def row_residual(d: Draft, x: str) -> str:
    """Two layers and a sum."""
    g = d.g
    y = g.add("Relu", [g.gemm(x, d.pick(WIDTHS))])
    return g.add("Add", [x, g.gemm(y, g.shape(x)[1])])


def row_concat(d: Draft, x: str) -> str:
    """Rows beside other rows."""
    y = d.partner(x, lambda t: d.g.shape(t)[0] == d.g.shape(x)[0] and d.g.shape(t)[1] <= 16)
    if y is None:
        return row_residual(d, x)
    d.unread.discard(y)
    return d.g.add("Concat", [x, y], axis=-1)


def rows_to_map(d: Draft, x: str) -> str:
    """Rows reshaped to a map, as a generator does."""
    width = d.pick([2, 4, 3])
    y = d.reshape(d.g.gemm(x, width * 4), width, 2, 2)
    d.static.add(y)
    return y


ROWS = (
    gemm,
    row_residual,
    left_constant,
    row_norm,
    vector,
    row_concat,
    layer_norm,
    rows_to_map,
)


# ------------------------------------------------------------------------ models


def zero(g: Graph, kind: Zeros, fraction: float) -> None:
    """Zero about `fraction` of the channels of each layer.

    Layers of one width lose the same channels where the kind is "coupled": then residual sums stay dead as well. Where it is
    "blocks", no channel is lost; a layer's outputs fall into two to four groups, each of which reads a `fraction` less.
    """
    shared: dict[int, np.ndarray] = {}
    for layer in g.layers:
        if kind == "blocks":
            block(g, layer, fraction)
            continue
        mine = kind if kind != "mixed" else str(g.rng.choice(ZEROS[:-1]))
        dead = g.rng.random(layer.rows) < fraction
        if mine == "heads" and layer.heads > 1:
            dead = np.repeat(g.rng.random(layer.heads) < fraction, layer.rows // layer.heads)
        if mine == "coupled":
            dead = shared.setdefault(layer.rows, dead)
        if dead.all() and g.rng.random() < 0.9:
            dead = dead.copy()
            dead[0] = False
        dropped = np.flatnonzero(dead).tolist()
        if mine == "columns":
            if layer.in_axis is not None:
                width = g.constants[layer.weight].shape[layer.in_axis]
                unread = shared.setdefault(-width, g.rng.random(width) < fraction)
                if not unread.all():
                    g.zero_columns(layer, np.flatnonzero(unread).tolist())
        else:
            g.zero_rows(layer, dropped, clean=mine == "coupled", scales=mine == "scales")


def block(g: Graph, layer: Layer, fraction: float) -> None:
    """Let groups of a layer's outputs read different inputs."""
    if layer.in_axis is None or layer.out_axis < 0:
        return
    array = g.constants[layer.weight]
    width = array.shape[layer.in_axis]
    group = g.rng.permutation(np.arange(layer.rows) * int(g.rng.integers(2, 5)) // layer.rows)
    read = g.rng.random((int(group.max()) + 1, width)) > fraction
    read[np.arange(len(read)), g.rng.integers(0, width, len(read))] = True
    mask = np.moveaxis(np.ones_like(array), (layer.out_axis, layer.in_axis), (0, 1))
    mask[~read[group]] = 0
    g.constants[layer.weight] = array * np.moveaxis(
        mask, (0, 1), (layer.out_axis, layer.in_axis)
    )


def store(d: Draft) -> None:
    """Move some constants into Constant nodes, and make some biases a ConstantOfShape."""
    g = d.g
    for layer in g.layers:
        form = d.pick(["initializer", "initializer", "initializer", "constant", "fill"])
        if form == "constant":
            g.storage[layer.weight] = "constant"
        elif form == "fill" and layer.bias is not None:
            g.constants[layer.bias][:] = 0.3
            g.storage[layer.bias] = "fill"


def finish(d: Draft, x: str) -> str:
    """A head for a tensor that nobody read, or the tensor itself."""
    shape = d.g.shape(x)
    form = d.pick(["linear", "bare", "pooled"])
    if form == "bare":
        return d.g.add("Identity", [x]) if x in d.g.inputs else x
    if len(shape) == 2:
        return d.g.gemm(x, 3)
    if form == "pooled" and x in d.maps:
        return d.g.gemm(d.g.add("Flatten", [d.g.add("GlobalAveragePool", [x])]), 3)
    return d.g.conv(x, 3, 1) if x in d.maps else d.g.dense(x, 3)


def enter(d: Draft) -> dict[str, int]:
    """Draw the input and the first layer; return the stand-ins of the symbolic axes."""
    draw, g, dynamic_space = d.draw, d.g, d.dynamic_space
    rank = draw(st.sampled_from([2, 2, 1]))
    space = [draw(st.sampled_from([4, 6, 5, 9])) for _ in range(rank)]
    batch = draw(st.sampled_from([1, 2]))
    names = ["height", "width"][:rank]
    symbols = ["batch" if d.dynamic_batch else batch]
    sizes: dict[str, int] = {"batch": batch} if d.dynamic_batch else {}
    entry = draw(st.sampled_from(["map", "map", "map", "tokens", "rows"]))
    if entry == "map":
        if dynamic_space:
            sizes |= dict(zip(names, space, strict=True))
        width = draw(st.sampled_from([3, 4]))
        x = g.input(
            "x",
            (batch, width, *space),
            symbols=(*symbols, width, *(names if dynamic_space else space)),
        )
        d.maps.add(x)
        first = g.conv(x, draw(st.sampled_from(WIDTHS)), 3, pads=[1] * 2 * rank)
        d.maps.add(first)
        if draw(st.booleans()):
            first = g.add("Relu", [g.batch_norm(first)])
            d.maps.add(first)
    elif entry == "tokens":
        tokens = draw(st.sampled_from([3, 5]))
        if dynamic_space:
            sizes["tokens"] = tokens
        x = g.input(
            "x",
            (batch, tokens, 6),
            symbols=(*symbols, "tokens" if dynamic_space else tokens, 6),
        )
        first = g.dense(x, draw(st.sampled_from(WIDTHS)))
    else:
        x = g.input("x", (batch, 6), symbols=(*symbols, 6))
        first = g.gemm(x, draw(st.sampled_from(WIDTHS)))
    d.alive.append(first)
    d.unread.add(first)
    return sizes


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    blocks: int = 7,
    kinds: Sequence[Zeros] = ZEROS,
    half: bool = True,
    allowed: Sequence[Callable[[Draft, str], str]] | None = None,
) -> Case:
    """A random model with zeros in it.

    Args:
        draw: of hypothesis.
        blocks: the most blocks of a model.
        kinds: of zeros.
        half: whether a model may be float16.
        allowed: the blocks to choose from; default all.
    """
    dtype = np.float16 if half and draw(st.integers(0, 9)) == 9 else np.float32
    opset = draw(st.sampled_from([21, 17, 23]))
    g = Graph(draw(st.integers(0, 2**16)), dtype, opset)
    dynamic_batch, dynamic_space = draw(st.booleans()), draw(st.integers(0, 3)) == 3
    d = Draft(draw, g, dynamic_batch, dynamic_space)
    sizes = enter(d)
    for _ in range(draw(st.integers(1, blocks))):
        source = d.alive[-1] if draw(st.integers(0, 3)) < 3 else d.pick(d.alive)
        table = table_of(d, source)
        if allowed is not None:
            table = tuple(b for b in table if b in allowed) or table[:1]
        block = d.pick(table)
        d.unread.discard(source)
        made = block(d, source)
        if math.prod(g.shape(made)) > 4000:
            made = g.add("GlobalAveragePool", [made]) if len(g.shape(made)) > 3 else made
        if made != source:
            is_map = source in d.maps and block not in (to_rows, to_tokens)
            if is_map or block in (rows_to_map, back_to_map):
                d.maps.add(made)
        d.alive.append(made)
        d.unread.add(made)
    ends = [t for t in d.alive if t in d.unread]
    outputs = list(dict.fromkeys(finish(d, t) for t in ends))
    kind = draw(st.sampled_from(list(kinds)))
    zero(g, kind, draw(st.sampled_from([0.5, 0.3, 0.8])))
    store(d)
    return Case(g.model(*outputs), sizes, kind, g)


def table_of(d: Draft, x: str) -> Sequence[Callable[[Draft, str], str]]:
    """The blocks that can read a tensor."""
    if x in d.maps:
        return MAPS
    return ROWS if len(d.g.shape(x)) == 2 else TOKENS
