"""Well-known networks as ONNX: dense, narrower, or dense with the very same channels zeroed.

Three models come of one architecture, one seed and one choice of channels (`keep`):

- `build(name)`: the dense network;
- `build(name, keep=...)`: the network as somebody would have built it at the kept counts;
- `zeroed(name, keep=...)`: the dense network in which exactly the other channels are zeroed.

The last two share every weight that matters, so that removing the zeroed channels must give
the second: same sizes, same function. Channels that meet in a residual sum, or at the two sides
of a depthwise convolution, are one group and are kept or zeroed together.

The weights are random but behave like those of a trained network: every filter is centred and
scaled over the inputs that are kept. Without this a deep random network answers nearly the same
to every input, and agreement there would prove nothing. Needs numpy and onnx_ir only.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "ARCHITECTURES",
    "NAMES",
    "SPARSITIES",
    "Keep",
    "Layer",
    "Rounding",
    "Variant",
    "build",
    "counts",
    "layers",
    "macs",
    "uniform",
    "zeroed",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Keep: TypeAlias = "Mapping[str, int] | Callable[[str, int], int]"
Rounding: TypeAlias = Literal["exact", "n8", "n16"]
Variant: TypeAlias = Literal["folded", "clean", "weights-only"]
Activation: TypeAlias = Literal["Relu", "Relu6"]

SPARSITIES = (36, 50, 58, 74, 80)
"""Shares of the weights, in percent, at which pruned networks are compared."""


def uniform(sparsity: float, rounding: Rounding = "exact") -> Callable[[str, int], int]:
    """Keep `sqrt(1 - sparsity)` of every group, so that the weights fall by about `sparsity`.

    Args:
        sparsity: share of the weights to go, 0 to 1.
        rounding: "exact" rounds to whole channels; "n8" and "n16" to the nearest
            multiple, at least one.
    """
    ratio = math.sqrt(1 - sparsity)

    def kept(group: str, dense: int) -> int:
        del group
        if rounding == "exact":
            return max(1, round(dense * ratio))
        multiple = int(rounding[1:])
        # floor(x + 1/2), not round(): half a multiple goes up, as in the published counts
        return min(dense, max(multiple, multiple * math.floor(dense * ratio / multiple + 0.5)))

    return kept


def build(
    name: str,
    *,
    keep: Keep | None = None,
    batch: int = 1,
    seed: int = 0,
    batchnorm: bool = False,
) -> ir.Model:
    """The network, dense, or at the kept counts when `keep` is given.

    Args:
        name: one of ARCHITECTURES.
        keep: kept count of a group, by name or by a function of (name, dense count).
        batch: fixed batch size.
        seed: of the weights and of which channels are kept.
        batchnorm: leave BatchNormalization nodes in; otherwise they are folded.

    Raises:
        KeyError: no such network, or `keep` lacks a group.
        ValueError: a kept count that is not between 1 and the dense count.
    """
    architecture = ARCHITECTURES[name]
    net = _Builder(name, keep, batch=batch, seed=seed, batchnorm=batchnorm, cut=True)
    return architecture(net)


def zeroed(
    name: str,
    *,
    keep: Keep,
    variant: Variant = "folded",
    batch: int = 1,
    seed: int = 0,
) -> ir.Model:
    """The dense network in which exactly the channels that `keep` does not keep are zeroed.

    Args:
        name: one of ARCHITECTURES.
        keep: as in `build`.
        variant: "folded": no BatchNormalization, weight and bias zero. "clean":
            BatchNormalization left in, its scale and shift zero as well. "weights-only":
            BatchNormalization left in and untouched, as an iterative magnitude pruning mask
            leaves it: the channel is constant, not zero.
        batch: fixed batch size.
        seed: of the weights and of which channels are kept.

    Raises:
        KeyError: no such network, or `keep` lacks a group.
        ValueError: a kept count that is not between 1 and the dense count.
    """
    architecture = ARCHITECTURES[name]
    net = _Builder(
        name,
        keep,
        batch=batch,
        seed=seed,
        batchnorm=variant != "folded",
        cut=False,
        zero_norm=variant == "clean",
    )
    return architecture(net)


def counts(name: str, keep: Keep | None = None) -> dict[str, int]:
    """Channels of each group, dense or as `keep` says."""
    net = _Builder(name, keep, batch=1, seed=0, batchnorm=False, cut=True, weightless=True)
    ARCHITECTURES[name](net)
    return {group: len(kept) for group, kept in net.kept.items()}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution, as far as its size depends on the counts of its channels.

    Attributes:
        name: of its node; its weight has it with ".weight" behind it.
        inputs: group of its input channels.
        outputs: group of its output channels.
        kernel: height and width of the filters.
        size: height and width of its output in pixels.
        is_depthwise: each filter reads one channel.
    """

    name: str
    inputs: str
    outputs: str
    kernel: int
    size: int
    is_depthwise: bool

    def weights(self, counts: Mapping[str, int]) -> int:
        """Elements of its weight at these counts."""
        inputs = 1 if self.is_depthwise else counts[self.inputs]
        return self.kernel**2 * counts[self.outputs] * inputs

    def macs(self, counts: Mapping[str, int]) -> int:
        """Multiply-accumulates for one image at these counts."""
        return self.size**2 * self.weights(counts)


def layers(name: str) -> tuple[Layer, ...]:
    """The convolutions of a network, in order; `counts` has the group "input" as well."""
    net = _Builder(name, None, batch=1, seed=0, batchnorm=False, cut=True, weightless=True)
    ARCHITECTURES[name](net)
    return tuple(net.layers)


def macs(model: ir.Model) -> int:
    """Multiply-accumulates of the convolutions and Gemms; shapes must be known.

    Raises:
        ValueError: the shape of a weight or of an output is not known.
    """
    total = 0
    for node in model.graph:
        if node.op_type not in {"Conv", "Gemm"}:
            continue
        weight, output = node.inputs[1], node.outputs[0]
        if weight is None or weight.shape is None or output.shape is None:
            msg = f"the shapes of '{node.name}' are not known; infer them first"
            raise ValueError(msg)
        # Each weight is used once for every image and position; a Gemm has no positions.
        positions = [output.shape[axis] for axis in (0, *range(2, len(output.shape)))]
        total += math.prod(int(dim) for dim in (*weight.shape, *positions))
    return total


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """An activation on its way through a builder.

    Attributes:
        value: its value in the graph, shape `(batch, channels, size, size)`.
        group: name of the group its channels belong to.
        size: height and width in pixels.
    """

    value: ir.Value
    group: str
    size: int


class _Builder:
    """Draws dense weights layer by layer and puts them into the graph, cut or zeroed."""

    def __init__(
        self,
        name: str,
        keep: Keep | None,
        *,
        batch: int,
        seed: int,
        batchnorm: bool,
        cut: bool,
        zero_norm: bool = False,
        weightless: bool = False,
    ) -> None:
        self.name = name
        self.keep = keep
        self.batch = batch
        self.seed = seed
        self.batchnorm = batchnorm
        self.cut = cut
        self.zero_norm = zero_norm
        self.weightless = weightless
        self.dense: dict[str, int] = {}
        self.kept: dict[str, Array] = {}
        self.layers: list[Layer] = []
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": 17})

    # -- channels ------------------------------------------------------------

    def channels(self, group: str, dense: int) -> Array:
        """Which channels of `group` are kept, ascending; drawn when the group is first seen."""
        if group not in self.kept:
            keep = self.keep
            count = dense
            if keep is not None:
                count = keep(group, dense) if callable(keep) else keep[group]
            if not 1 <= count <= dense:
                msg = f"'{group}' of {self.name} has {dense} channels; {count} cannot be kept"
                raise ValueError(msg)
            self.dense[group] = dense
            self.kept[group] = np.sort(self.random("keep", group).permutation(dense)[:count])
        return self.kept[group]

    def random(self, *what: str) -> np.random.Generator:
        """A generator that depends on the seed and `what`, not on what was drawn before."""
        return np.random.default_rng([self.seed, zlib.crc32("/".join(what).encode())])

    # -- graph ------------------------------------------------------------

    def start(self, size: int) -> _Tensor:
        """The network's input: three planes of `size` x `size`."""
        self.dense["input"] = 3
        self.kept["input"] = np.arange(3)
        value = self.typed("input", (self.batch, 3, size, size))
        self.graph.inputs.append(value)
        return _Tensor(value, "input", size)

    def finish(self, value: ir.Value) -> ir.Model:
        """The model with `value` as its output."""
        value.name = "output"
        self.graph.outputs.append(value)
        return ir.Model(self.graph, ir_version=8, producer_name="benchmarks")

    def typed(self, name: str, shape: Iterable[int]) -> ir.Value:
        """A float value of fixed shape."""
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    def constant(self, name: str, array: Array) -> ir.Value:
        """An initializer holding `array`."""
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(array.copy(), name=name),
        )
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        name: str,
        inputs: list[ir.Value],
        shape: Iterable[int],
        **attributes: float | list[int],
    ) -> ir.Value:
        """Append a node and give back its one output, of `shape`."""
        output = self.typed(f"{name}.out", shape)
        self.graph.append(
            ir.node(op, inputs, attributes=attributes, outputs=[output], name=name)
        )
        return output

    def shape(self, group: str, size: int) -> tuple[int, int, int, int]:
        """Shape of an activation of `group`, as wide as the graph has it."""
        width = len(self.kept[group]) if self.cut else self.dense[group]
        return (self.batch, width, size, size)

    # -- layers ------------------------------------------------------------

    def conv(
        self,
        name: str,
        x: _Tensor,
        group: str,
        dense: int,
        kernel: int,
        *,
        stride: int = 1,
        activation: Activation | None = None,
        gain: float | None = None,
    ) -> _Tensor:
        """Convolution, BatchNormalization, activation; "same" padding.

        Args:
            name: prefix of the names of nodes and weights.
            x: input.
            group: name of the output's channels.
            dense: dense count of them.
            kernel: height and width of the filters.
            stride: in both directions.
            activation: what follows.
            gain: variance of the output for inputs of unit second moment; default 2 before
                an activation (half of the values die), else 1.
        """
        kept_in, kept_out = self.kept[x.group], self.channels(group, dense)
        shape = (dense, self.dense[x.group], kernel, kernel)
        gain = gain if gain is not None else (2.0 if activation else 1.0)
        if self.weightless:
            weight = np.broadcast_to(np.float32(0), shape)
        else:
            weight = self.random("weight", name).standard_normal(shape, dtype=np.float32)
            live = weight[:, kept_in]
            if kernel * kernel * len(kept_in) >= 8:  # fewer values have no mean worth the name
                weight -= live.mean(axis=(1, 2, 3), keepdims=True)
                live = weight[:, kept_in]
            weight *= np.sqrt(gain / np.square(live).sum(axis=(1, 2, 3), keepdims=True))
        size = (x.size - 1) // stride + 1
        return self.weighted(
            name,
            x,
            weight,
            kept=(kept_out, kept_in),
            group=group,
            size=size,
            stride=stride,
            groups=1,
            activation=activation,
        )

    def depthwise(
        self, name: str, x: _Tensor, *, stride: int = 1, activation: Activation = "Relu6"
    ) -> _Tensor:
        """Depthwise 3x3 convolution, BatchNormalization, activation; keeps the channels of `x`."""
        kept = self.kept[x.group]
        weight = self.random("weight", name).standard_normal(
            (self.dense[x.group], 1, 3, 3), dtype=np.float32
        )
        weight *= np.sqrt(2 / np.square(weight).sum(axis=(1, 2, 3), keepdims=True))
        size = (x.size - 1) // stride + 1
        groups = self.shape(x.group, 1)[1]
        return self.weighted(
            name,
            x,
            weight,
            kept=(kept, np.arange(1)),
            group=x.group,
            size=size,
            stride=stride,
            groups=groups,
            activation=activation,
        )

    def weighted(
        self,
        name: str,
        x: _Tensor,
        weight: Array,
        *,
        kept: tuple[Array, Array],
        group: str,
        size: int,
        stride: int,
        groups: int,
        activation: Activation | None,
    ) -> _Tensor:
        """Put a dense `weight` into the graph, cut or zeroed, with what follows it."""
        kernel = weight.shape[2]
        self.layers.append(Layer(name, x.group, group, kernel, size, is_depthwise=groups > 1))
        dense = len(weight)
        bias = self.random("bias", name).normal(0, 0.2, dense).astype(np.float32)
        inputs = [x.value, self.constant(f"{name}.weight", self.reduce(weight, *kept))]
        if not self.batchnorm:
            inputs.append(self.constant(f"{name}.bias", self.reduce(bias, kept[0])))
        half = (kernel - 1) // 2
        value = self.node(
            "Conv",
            name,
            inputs,
            self.shape(group, size),
            kernel_shape=list(weight.shape[2:]),
            strides=[stride, stride],
            pads=[half] * 4,
            group=groups,
        )
        if self.batchnorm:
            value = self.normalise(f"{name}.norm", value, bias, kept[0])
        if activation == "Relu":
            value = self.node("Relu", f"{name}.relu", [value], self.shape(group, size))
        elif activation == "Relu6":
            bounds = [self.bound("zero", 0), self.bound("six", 6)]
            value = self.node("Clip", f"{name}.clip", [value, *bounds], self.shape(group, size))
        return _Tensor(value, group, size)

    def normalise(self, name: str, value: ir.Value, shift: Array, kept: Array) -> ir.Value:
        """BatchNormalization with statistics like those of a trained network."""
        random = self.random("norm", name)
        dense = len(shift)
        mean = random.normal(0, 0.2, dense).astype(np.float32)
        variance = random.uniform(0.5, 1.5, dense).astype(np.float32)
        scale = (np.sqrt(variance) * random.uniform(0.8, 1.2, dense)).astype(np.float32)
        zero = self.cut or self.zero_norm
        inputs = [
            value,
            self.constant(f"{name}.scale", self.reduce(scale, kept, zero=zero)),
            self.constant(f"{name}.shift", self.reduce(shift, kept, zero=zero)),
            self.constant(f"{name}.mean", self.reduce(mean, kept, zero=False)),
            self.constant(f"{name}.variance", self.reduce(variance, kept, zero=False)),
        ]
        assert value.shape is not None
        return self.node("BatchNormalization", name, inputs, value.shape.numpy(), epsilon=1e-5)

    def reduce(
        self, weight: Array, kept: Array, kept_in: Array | None = None, *, zero: bool = True
    ) -> Array:
        """Cut `weight` to the kept rows (and columns), or zero its other rows if `zero`."""
        if self.cut:
            return weight[kept] if kept_in is None else weight[kept][:, kept_in]
        if not zero:
            return weight
        dropped = np.ones(len(weight), bool)
        dropped[kept] = False
        weight = weight.copy()
        weight[dropped] = 0
        return weight

    def bound(self, name: str, number: float) -> ir.Value:
        """A scalar constant, shared by all who ask for `name`."""
        if name not in self.graph.initializers:
            self.constant(name, np.array(number, np.float32))
        return self.graph.initializers[name]

    def add(
        self, name: str, a: _Tensor, b: _Tensor, activation: Activation | None = None
    ) -> _Tensor:
        """Residual sum of two activations of one group."""
        assert a.group == b.group, "a residual sum joins one group"
        shape = self.shape(a.group, a.size)
        value = self.node("Add", name, [a.value, b.value], shape)
        if activation is not None:
            value = self.node(activation, f"{name}.relu", [value], shape)
        return _Tensor(value, a.group, a.size)

    def pool(self, name: str, x: _Tensor, *, kernel: int, stride: int, pad: int = 0) -> _Tensor:
        """Max pooling."""
        size = (x.size + 2 * pad - kernel) // stride + 1
        value = self.node(
            "MaxPool",
            name,
            [x.value],
            self.shape(x.group, size),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
        )
        return _Tensor(value, x.group, size)

    def classify(self, x: _Tensor, classes: int) -> ir.Model:
        """Global average, Flatten, Gemm; the end of every network here."""
        kept = self.kept[x.group]
        pooled = self.node("GlobalAveragePool", "average", [x.value], self.shape(x.group, 1))
        width = self.shape(x.group, 1)[1]
        flat = self.node("Flatten", "flatten", [pooled], (self.batch, width), axis=1)
        weight = self.random("weight", "classifier").standard_normal(
            (classes, self.dense[x.group]), dtype=np.float32
        )
        weight -= weight[:, kept].mean(axis=1, keepdims=True)
        # The average over positions differs little from input to input: scaled up.
        weight *= 4 / np.sqrt(len(kept))
        bias = self.random("bias", "classifier").normal(0, 0.2, classes).astype(np.float32)
        return self.finish(
            self.node(
                "Gemm",
                "classifier",
                [
                    flat,
                    self.constant("classifier.weight", weight[:, kept] if self.cut else weight),
                    self.constant("classifier.bias", bias),
                ],
                (self.batch, classes),
                transB=1,
            )
        )


# -- architectures ------------------------------------------------------------


def _stages(net: _Builder, x: _Tensor, widths: Iterable[int], blocks: int) -> _Tensor:
    """Residual blocks of two 3x3 convolutions; `x` has the channels of the first stage."""
    for stage, width in enumerate(widths, 1):
        for block in range(blocks):
            at, stride = f"stage{stage}.block{block}", 2 if stage > 1 and block == 0 else 1
            y = net.conv(
                f"{at}.conv1", x, f"{at}.middle", width, 3, stride=stride, activation="Relu"
            )
            y = net.conv(f"{at}.conv2", y, f"stage{stage}", width, 3, gain=0.5)
            if stride == 2:
                x = net.conv(f"{at}.project", x, f"stage{stage}", width, 1, stride=2)
            x = net.add(f"{at}.add", y, x, "Relu")
    return x


def _resnet18(net: _Builder, *, size: int, classes: int) -> ir.Model:
    x = net.start(size)
    # The first stage has no projection: its sums join the stem's channels.
    if size == 32:
        x = net.conv("stem", x, "stage1", 64, 3, activation="Relu")
    else:
        x = net.conv("stem", x, "stage1", 64, 7, stride=2, activation="Relu")
        x = net.pool("stem.pool", x, kernel=3, stride=2, pad=1)
    return net.classify(_stages(net, x, (64, 128, 256, 512), 2), classes)


def _wrn32(net: _Builder) -> ir.Model:
    # ResNet-32 for CIFAR at double width, 1.86 million parameters: what the literature on tickets calls WRN-32-2. (A wide
    # ResNet of Zagoruyko and Komodakis has 6 n + 4 layers, not 32.)
    x = net.conv("stem", net.start(32), "stage1", 32, 3, activation="Relu")
    return net.classify(_stages(net, x, (32, 64, 128), 5), 10)


def _resnet50(net: _Builder, *, size: int, classes: int) -> ir.Model:
    x = net.start(size)
    if size == 64:  # as for Tiny-ImageNet: nothing is lost before the first block
        x = net.conv("stem", x, "stem", 64, 3, activation="Relu")
    else:
        x = net.conv("stem", x, "stem", 64, 7, stride=2, activation="Relu")
        x = net.pool("stem.pool", x, kernel=3, stride=2, pad=1)
    for stage, (width, blocks) in enumerate(
        zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1
    ):
        for block in range(blocks):
            at, stride = f"stage{stage}.block{block}", 2 if stage > 1 and block == 0 else 1
            y = net.conv(f"{at}.conv1", x, f"{at}.narrow1", width, 1, activation="Relu")
            y = net.conv(
                f"{at}.conv2", y, f"{at}.narrow2", width, 3, stride=stride, activation="Relu"
            )
            y = net.conv(f"{at}.conv3", y, f"stage{stage}", 4 * width, 1, gain=0.5)
            if block == 0:
                x = net.conv(f"{at}.project", x, f"stage{stage}", 4 * width, 1, stride=stride)
            x = net.add(f"{at}.add", y, x, "Relu")
    return net.classify(x, classes)


def _vgg16(net: _Builder) -> ir.Model:
    x = net.start(32)
    for block, (width, layers) in enumerate(
        ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1
    ):
        for layer in range(1, layers + 1):
            name = f"conv{block}_{layer}"
            x = net.conv(name, x, name, width, 3, activation="Relu")
        x = net.pool(f"pool{block}", x, kernel=2, stride=2)
    return net.classify(x, 10)


def _mobilenetv1(net: _Builder) -> ir.Model:
    x = net.conv("stem", net.start(32), "stem", 32, 3, activation="Relu")
    # Source: Howard et al., MobileNets, table 1, with strides for 32x32 pixels: four steps in place of five.
    strided = {2: 128, 4: 256, 6: 512, 12: 1024}
    width = 64
    for block in range(1, 14):
        width, stride = strided.get(block, width), 2 if block in strided else 1
        x = net.depthwise(f"block{block}.depthwise", x, stride=stride, activation="Relu")
        name = f"block{block}"
        x = net.conv(f"{name}.pointwise", x, name, width, 1, activation="Relu")
    return net.classify(x, 10)


def _mobilenetv2(net: _Builder) -> ir.Model:
    x = net.conv("stem", net.start(224), "stem", 32, 3, stride=2, activation="Relu6")
    # Source: Sandler et al., MobileNetV2, table 2: expansion, channels, repeats, first stride.
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    before = 32
    for stage, (expansion, width, repeats, first) in enumerate(stages, 1):
        for block in range(repeats):
            at, stride = f"stage{stage}.block{block}", first if block == 0 else 1
            y = x
            if expansion > 1:
                wide = before * expansion
                y = net.conv(f"{at}.expand", x, f"{at}.wide", wide, 1, activation="Relu6")
            y = net.depthwise(f"{at}.depthwise", y, stride=stride)
            y = net.conv(f"{at}.project", y, f"stage{stage}", width, 1)
            x = net.add(f"{at}.add", y, x) if block else y
            before = width
    x = net.conv("head", x, "head", 1280, 1, activation="Relu6")
    return net.classify(x, 1000)


ARCHITECTURES: Mapping[str, Callable[[_Builder], ir.Model]] = {
    "resnet18-cifar": lambda net: _resnet18(net, size=32, classes=10),
    "resnet18": lambda net: _resnet18(net, size=224, classes=1000),
    "resnet50": lambda net: _resnet50(net, size=224, classes=1000),
    "resnet50-64": lambda net: _resnet50(net, size=64, classes=200),
    "vgg16": _vgg16,
    "wrn32-2": _wrn32,
    "mobilenetv1": _mobilenetv1,
    "mobilenetv2": _mobilenetv2,
}
"""The networks there are: resnet18-cifar, vgg16, wrn32-2 and mobilenetv1 read 32x32 pixels, resnet50-64 reads 64x64, the
others read 224x224."""

NAMES = ("resnet18-cifar", "resnet18", "resnet50", "vgg16", "mobilenetv2")
"""Those that removal is shown on."""
