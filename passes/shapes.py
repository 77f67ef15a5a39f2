"""Static sizes: the shape of every tensor, the numbers that shapes are computed from, and which of them are free.

A model may leave sizes of its inputs open (batch, height, length). They get stand-ins, the same number for the same
symbol, so that everything can be measured; a second set of stand-ins then tells which sizes depend on the first. The
stand-ins survive repeated halving and are no usual channel counts; where a model does not accept them (a batch of one
is baked in, a square is wanted) others are tried.

Inference itself is ONNX's own. It leaves open what depends on arithmetic that it does not evaluate, so it alternates
with `passes.analysis.integers` until nothing more is found. No weight is copied or serialized on the way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from passes import weights
from passes.analysis import integers
from passes.analysis.sizes import Shape, output_sizes
from passes.errors import PassError

if TYPE_CHECKING:
    from passes.analysis.compact import Array

__all__ = ["Sizes", "forget", "infer", "measure"]

STANDARD: Final = frozenset({"", "ai.onnx"})
MOST_ELEMENTS: Final = 4096
"""Integer tensors up to this size are evaluated; the arithmetic of shapes is far smaller."""
MOST_FLOATS: Final = 64
"""Float constants up to this size may take part in it (scales of Resize, factors)."""
SMALL_BYTES: Final = 1000
"""What onnx_ir serializes for inference; larger initializers it leaves out by itself."""
DATA_DEPENDENT: Final = frozenset(
    {"NonZero", "Unique", "Compress", "NonMaxSuppression", "StringSplit", "SequenceAt"}
)
"""Ops whose output sizes no stand-in can settle."""

SEQUENCES: Final = frozenset(
    {
        *("SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert"),
        *("SequenceErase", "SequenceMap"),
    }
)
"""Ops that make sequences of tensors."""

WHOLE: Final = frozenset(
    ir.DataType[name]
    for name in (
        "BOOL",
        *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    )
)

Shapes: TypeAlias = dict[ir.Value, Shape]
StandIns: TypeAlias = Mapping[str, tuple[int, int]]
"""Kind of size -> (number for the first symbol of that kind, step to the next)."""

CHOICES: Final[tuple[tuple[StandIns, tuple[StandIns, ...]], ...]] = (
    # The usual.
    (
        {"batch": (5, 6), "space": (352, 192), "length": (44, 8)},
        (
            {"batch": (2, 1), "space": (32, 32), "length": (8, 4)},
            {"batch": (7, 6), "space": (416, 192), "length": (56, 8)},
        ),
    ),
    # Lines of text, 48 high.
    (
        {"batch": (5, 6), "space": (48, 272), "length": (44, 8)},
        (
            {"batch": (2, 1), "space": (32, 32), "length": (8, 4)},
            {"batch": (2, 1), "space": (48, 48), "length": (8, 4)},
        ),
    ),
    # A batch of one is baked in.
    (
        {"batch": (1, 0), "space": (352, 192), "length": (44, 8)},
        (
            {"batch": (2, 1), "space": (32, 32), "length": (8, 4)},
            {"batch": (1, 0), "space": (32, 32), "length": (8, 4)},
            {"batch": (1, 0), "space": (416, 192), "length": (56, 8)},
        ),
    ),
    # Sampled sound, or more than five halvings.
    (
        {"batch": (1, 0), "space": (704, 384), "length": (14080, 2560)},
        (
            {"batch": (2, 1), "space": (832, 384), "length": (16640, 2560)},
            {"batch": (1, 0), "space": (832, 384), "length": (16640, 2560)},
        ),
    ),
    # Height and width have to be equal.
    (
        {"batch": (1, 0), "space": (448, 0), "length": (448, 0)},
        (
            {"batch": (2, 1), "space": (576, 0), "length": (384, 0)},
            {"batch": (1, 0), "space": (576, 0), "length": (384, 0)},
        ),
    ),
)
"""Stand-ins in the order in which they are tried, each with those that tell what depends on them.

Of the latter the first that settles the model counts. They begin with sets that change every size, since what stays
equal is taken as fixed, and with small ones, since these show that a size cut off at a constant (the first 100 of a
sequence) can vary.
"""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is known of the values of a model's main graph.

    Attributes:
        shape: sizes; a value that is missing could not be measured.
        symbolic: for each axis of `shape`, whether its size depends on an open size of an input.
        integers: the contents of integer and bool tensors that constants and shapes determine, and of small float
            tensors that take part in their arithmetic.
        integers_symbolic: bool arrays of the shapes of `integers`; True where the element depends on an open size.
    """

    shape: dict[ir.Value, Shape]
    symbolic: dict[ir.Value, tuple[bool, ...]]
    integers: dict[ir.Value, Array]
    integers_symbolic: dict[ir.Value, Array]


def measure(model: ir.Model) -> Sizes:
    """Sizes of all values of the main graph, its inputs and initializers included. The model is not changed.

    Raises:
        PassError: ONNX's shape inference refuses the model.
    """
    bench = Bench(model)
    chosen, shapes = bench.best([first for first, _ in CHOICES], wanted=None)
    others = shapes
    if bench.open_sizes:
        _, others = bench.best(CHOICES[chosen][1], wanted=set(shapes))
    shape: dict[ir.Value, Shape] = {}
    symbolic: dict[ir.Value, tuple[bool, ...]] = {}
    for value in main_values(model.graph):
        name = value.name or ""
        if name not in shapes:
            continue
        shape[value] = shapes[name]
        again = others.get(name)
        if again is None or len(again) != len(shapes[name]):
            # Not measurable with the second set: nothing says that it is fixed.
            symbolic[value] = (True,) * len(shapes[name])
        else:
            free = bench.axes.get(name, {})
            pairs = zip(shapes[name], again, strict=True)
            symbolic[value] = tuple(a != b or axis in free for axis, (a, b) in enumerate(pairs))
    found, flags = compute(model.graph, shape, symbolic)
    return Sizes(shape, symbolic, found, flags)


def forget(model: ir.Model) -> None:
    """Drop the shapes of intermediate values of the main graph, so that inference cannot meet stale ones.

    Kept is what inference cannot find again: inputs and initializers, outputs of the graph (its interface), and of
    custom ops and of nodes with subgraphs.
    """
    for node in model.graph:
        if not keeps_declared(node):
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None


def infer(model: ir.Model, *, strict: bool = True) -> None:
    """Run ONNX's shape inference in place.

    Args:
        model: the model; weights are not touched.
        strict: refuse what does not fit together; otherwise such values stay without a shape.

    Raises:
        PassError: inference failed. onnx_ir by itself only logs that, and goes on.
    """
    makers = [
        node
        for node in model.graph.all_nodes()
        if node.op_type in SEQUENCES and node.domain in STANDARD
    ]
    # onnx_ir takes over the element type alone, which would make a tensor of a sequence that was not declared
    undeclared = [value for node in makers for value in node.outputs if value.type is None]
    names = symbols(model.graph) if makers else set()
    with recorded("onnx_ir.passes.common.shape_inference") as failures:
        ShapeInferencePass(check_type=strict, strict_mode=strict, data_prop=True)(model)
    for value in undeclared:
        value.type = value.shape = None
    if makers:
        forget_symbols(model.graph, symbols(model.graph) - names)
    for failure in failures:
        msg = f"shape inference refuses the model: {str(failure).strip()}. Is it valid? Check it before optimizing."
        raise PassError(msg) from failure


def symbols(graph: ir.Graph) -> set[str]:
    """Names of the open sizes of a graph's values."""
    return {
        size.value
        for value in main_values(graph)
        for size in value.shape or ()
        if isinstance(size, ir.SymbolicDim) and size.value is not None
    }


def forget_symbols(graph: ir.Graph, names: Collection[str]) -> None:
    """Take names of open sizes back.

    Inference gives all elements of a sequence one name for a size in which they differ, and a runtime that believes it
    lets them share memory.
    """
    for value in main_values(graph):
        if value.shape is not None and any(
            isinstance(size, ir.SymbolicDim) and size.value in names for size in value.shape
        ):
            value.shape = ir.Shape(
                [
                    None if isinstance(size, ir.SymbolicDim) and size.value in names else size
                    for size in value.shape
                ]
            )


@contextlib.contextmanager
def recorded(logger_name: str) -> Iterator[list[BaseException]]:
    """Collect the exceptions that a logger reports, in place of printing them."""
    failures: list[BaseException] = []

    class Recorder(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.exc_info and record.exc_info[1] is not None:
                failures.append(record.exc_info[1])
                return False
            return True

    logger, recorder = logging.getLogger(logger_name), Recorder()
    level = logger.level
    logger.addFilter(recorder)
    logger.setLevel(logging.WARNING)
    try:
        yield failures
    finally:
        logger.setLevel(level)
        logger.removeFilter(recorder)


def keeps_declared(node: ir.Node) -> bool:
    """Whether what the model says about the node's outputs is all there is to know."""
    inner = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    return node.domain not in STANDARD or any(a.type in inner for a in node.attributes.values())


def main_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value of the graph itself, once: inputs, initializers, outputs of nodes."""
    yield from graph.inputs
    for value in graph.initializers.values():
        if not value.is_graph_input():
            yield value
    for node in graph:
        for value in node.outputs:
            if value.name:
                yield value


class Bench:
    """A copy of a model, without its weights, on which stand-ins are tried.

    Attributes:
        open_sizes: number of different open sizes of the inputs.
        axes: name of an input -> axis -> its kind and number among the open sizes of that kind.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model.clone()
        self.graph = self.model.graph
        lighten(self.model)
        self.declared = {
            value: value.shape
            for node in self.graph
            if keeps_declared(node)
            for value in node.outputs
            if value.shape is not None
        }
        # what inference finds inside of subgraphs, and for their nodes, holds for one set of stand-ins only
        self.found_inside = [
            (value, value.shape)
            for node in self.graph
            if keeps_declared(node)
            for value in node.outputs
            if value.shape is None
        ] + [
            (value, value.shape)
            for inner in self.graph.subgraphs()
            for node in inner
            for value in node.outputs
        ]
        self.inputs = [
            (value, value.shape)
            for value in self.graph.inputs
            if value.shape is not None and isinstance(value.type, ir.TensorType)
        ]
        self.symbols: dict[str, tuple[str, int]] = {}
        self.axes: dict[str, dict[int, tuple[str, int]]] = {}
        self.fixed: dict[tuple[str, int], int] = {}
        for value, shape in self.inputs:
            self.find_open(value, shape)
        self.open_sizes = sum(len(axes) for axes in self.axes.values())

    def find_open(self, value: ir.Value, shape: ir.Shape) -> None:
        """Name the open sizes of one input."""
        name = value.name or ""
        for axis, size in enumerate(shape):
            if not is_open(size):
                continue
            channels = read_channels(value) if axis == 1 else None
            if channels is not None:
                self.fixed[name, axis] = channels  # the weight that reads it leaves no choice
                continue
            kind = "batch" if axis == 0 else "space" if len(shape) >= 4 else "length"
            symbol = symbol_of(size, f"{name}:{axis}")
            taken = sum(known == kind for known, _ in self.symbols.values())
            self.axes.setdefault(name, {})[axis] = self.symbols.setdefault(
                symbol, (kind, taken)
            )

    def best(
        self, choices: Sequence[StandIns], wanted: set[str] | None
    ) -> tuple[int, dict[str, Shape]]:
        """The first choice that settles everything, else the one that settles most.

        Args:
            choices: stand-ins to try.
            wanted: names that must be settled; None: all that sizes of inputs can settle.

        Returns:
            its position, and shapes by name.

        Raises:
            PassError: inference refuses the model under every choice.
        """
        best: Shapes = {}
        chosen = 0
        failure = PassError("shape inference finds nothing. Is the graph empty?")
        standings = [self.standing(choice) for choice in choices]
        for position, standing in enumerate(standings):
            if standing in standings[:position]:
                continue
            try:
                found = self.settle(dict(standing))
            except PassError as error:
                failure = error
                continue
            if len(found) > len(best):
                best, chosen = found, position
            names = {value.name for value in found}
            if not self.contradicts(found) if wanted is None else wanted <= names:
                break
        if not best:
            raise failure
        return chosen, {value.name or "": shape for value, shape in best.items()}

    def standing(self, choice: StandIns) -> tuple[tuple[str, int], ...]:
        """The number for each symbol under `choice`."""
        return tuple(
            (symbol, choice[kind][0] + number * choice[kind][1])
            for symbol, (kind, number) in self.symbols.items()
        )

    def settle(self, numbers: Mapping[str, int]) -> Shapes:
        """Shapes of the copy's values when the open sizes are those `numbers`.

        Raises:
            PassError: inference refuses the model.
        """
        forget(self.model)
        for value in self.graph.outputs:
            if value.producer() is not None:
                value.shape = None
        for value, declared in self.found_inside:
            value.shape = declared
        for value, shape in self.inputs:
            value.shape = self.replaced(value, shape, numbers)
        for value, shape in self.declared.items():
            value.shape = self.replaced(value, shape, numbers)
        settled = -1
        while True:
            infer(self.model, strict=False)
            known = {
                value: sizes
                for value in main_values(self.graph)
                if (sizes := static(value)) is not None
            }
            before = set(known)
            compute(self.graph, known, {})
            # Counted after both: what one finds, the other may have given up in the meantime.
            stuck = len(known) <= settled or len(known) == len(before)
            if stuck or not self.contradicts(known):
                return known
            settled = len(known)
            for value in known.keys() - before:
                value.shape = ir.Shape(known[value])
                node = value.producer()
                source = node.inputs[0] if node is not None and node.inputs else None
                if value.type is None and source is not None:
                    # inference knows no type of what it cannot infer, and would forget the shape
                    value.type = source.type

    def replaced(
        self, value: ir.Value, shape: ir.Shape, numbers: Mapping[str, int]
    ) -> ir.Shape:
        """`shape` with numbers in place of its symbols."""
        name = value.name or ""
        return ir.Shape(
            [
                self.fixed.get((name, axis), numbers.get(symbol_of(size, f"{name}:{axis}")))
                if is_open(size)
                else size
                for axis, size in enumerate(shape)
            ]
        )

    def contradicts(self, known: Shapes) -> bool:
        """Whether inference stops at a node that has everything it needs: the sizes do not fit together."""
        return any(
            not keeps_declared(node)
            and node.op_type not in DATA_DEPENDENT
            and all(value is None or value in known for value in node.inputs)
            and any(value.name and value not in known for value in node.outputs)
            for node in self.graph
        )


def is_open(size: int | ir.SymbolicDim) -> bool:
    """Whether a declared size is no number; some exporters write -1."""
    return not isinstance(size, int) or size < 0


def symbol_of(size: int | ir.SymbolicDim, otherwise: str) -> str:
    """The name that a size goes by; `?` is what some exporters call every size they do not know."""
    name = None if isinstance(size, int) else size.value
    return otherwise if name in {None, "", "?"} else str(name)


def read_channels(value: ir.Value) -> int | None:
    """The channels that the Conv nodes reading `value` have weights for."""
    for node, index in value.uses():
        weight = (
            weights.tensor(node.inputs[1]) if node.op_type == "Conv" and index == 0 else None
        )
        if weight is not None and isinstance(size := weight.shape[1], int):
            return size * node.attributes.get_int("group", 1)
    return None


def lighten(model: ir.Model) -> None:
    """Put all big constants where onnx_ir leaves them out of what it hands to inference: the main initializers."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        # Inference reads small tensors, but only those that are in memory.
        if isinstance(value.const_value, ir.ExternalTensor) and not is_big(value.const_value):
            if value.is_graph_input():
                graph.initializers.pop(value.name or "")
            else:
                weights.set_tensor(value, value.const_value.numpy())
    for node in list(graph.all_nodes()):
        held = weights.tensor(node.outputs[0]) if node.op_type == "Constant" else None
        if held is not None and is_big(held) and not node.outputs[0].is_graph_output():
            weights.lift(node, graph)
    for inner in graph.subgraphs():
        for value in list(inner.initializers.values()):
            held = weights.tensor(value)
            if held is not None and is_big(held) and not value.is_graph_output():
                weights.rehome(value, graph)


def is_big(held: ir.TensorProtocol) -> bool:
    """Whether onnx_ir keeps it out of inference by itself."""
    return held.nbytes > SMALL_BYTES


def static(value: ir.Value) -> Shape | None:
    """The shape of a tensor if all of it is known, and possible."""
    if value.shape is None or not isinstance(value.type, ir.TensorType | None):
        return None
    sizes: Shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return sizes if possible(sizes) else None


def possible(sizes: Shape) -> bool:
    """Whether a tensor may have these sizes.

    An empty one of rank 3 or more is a map that shrank to nothing, because its stand-in is too small.
    """
    return all(size > 0 or (size == 0 and len(sizes) < 3) for size in sizes)


def compute(
    graph: ir.Graph, shape: Shapes, symbolic: Mapping[ir.Value, tuple[bool, ...]]
) -> tuple[dict[ir.Value, Array], dict[ir.Value, Array]]:
    """Evaluate what constants and shapes determine, and find shapes that this determines in turn.

    Args:
        graph: the main graph, in topological order.
        shape: known shapes; what is found is added.
        symbolic: which sizes depend on open ones; none where missing.

    Returns:
        contents of tensors, and which of their elements depend on open sizes.
    """
    found: dict[ir.Value, Array] = {}
    flags: dict[ir.Value, Array] = {}
    for value in graph.initializers.values():
        read(value, found)
    for node in graph:
        outputs = node.outputs
        if node.domain not in STANDARD:
            continue
        if node.op_type == "Constant":
            read(outputs[0], found)
            continue
        if node.op_type in {"Shape", "Size"}:
            measured = shape_read(node, shape, symbolic)
            if measured is not None:
                found[outputs[0]], flags[outputs[0]] = measured
        elif node.op_type in integers.RULES and all(
            value is None or value in found or is_small(value) for value in node.inputs
        ):
            evaluate(node, found, flags)
        for value in outputs:
            if value in found:
                shape.setdefault(value, found[value].shape)
        if any(value.name and value not in shape for value in outputs):
            known = [None if value is None else shape.get(value) for value in node.inputs]
            data = [contents(value, found) for value in node.inputs]
            for value, sizes in zip(outputs, output_sizes(node, known, data), strict=False):
                if possible(sizes):
                    shape.setdefault(value, sizes)
    none = {value: np.zeros(array.shape, dtype=bool) for value, array in found.items()}
    return found, {**none, **flags}


def evaluate(node: ir.Node, found: dict[ir.Value, Array], flags: dict[ir.Value, Array]) -> None:
    """Evaluate one node, if the result is small, into `found` and `flags`."""
    inputs = [contents(value, found) for value in node.inputs]
    if integers.evaluated_size(node, inputs) > MOST_ELEMENTS:
        return
    results = integers.evaluate(node, inputs)
    if results is None or len(results) < len(node.outputs):
        return
    if any(r.dtype.kind not in "iub" and r.size > MOST_FLOATS for r in results):
        return
    marks: list[Array | None] = []
    for value, data in zip(node.inputs, inputs, strict=True):
        if value is None or data is None:
            marks.append(None)
            continue
        found.setdefault(value, data)
        marks.append(flags.get(value, np.zeros(data.shape, dtype=bool)))
    tainted = integers.taint(node, inputs, marks, results)
    for value, result, mark in zip(node.outputs, results, tainted, strict=False):
        found[value], flags[value] = result, mark


def is_small(value: ir.Value) -> bool:
    """Whether `value` is a constant that may take part in the arithmetic of sizes."""
    held = weights.tensor(value)
    return held is not None and held.size <= MOST_FLOATS


def contents(value: ir.Value | None, found: Mapping[ir.Value, Array]) -> Array | None:
    """What `value` holds, if that is known or a small constant."""
    if value is None or value in found:
        return None if value is None else found[value]
    return weights.constant(value) if is_small(value) else None


def read(value: ir.Value, found: dict[ir.Value, Array]) -> None:
    """Put a constant of whole numbers into `found`, if it has at most that many elements."""
    held = weights.tensor(value)
    if held is not None and held.size <= MOST_ELEMENTS and held.dtype in WHOLE:
        found[value] = held.numpy()


def shape_read(
    node: ir.Node,
    shape: Mapping[ir.Value, Shape],
    symbolic: Mapping[ir.Value, tuple[bool, ...]],
) -> tuple[Array, Array] | None:
    """What a Shape or Size node gives, and which of it depends on open sizes."""
    source = node.inputs[0]
    if source is None or source not in shape:
        return None
    sizes = shape[source]
    free = symbolic.get(source, (False,) * len(sizes))
    if node.op_type == "Size":
        return np.asarray(math.prod(sizes), dtype=np.int64), np.asarray(any(free))
    part = slice(
        node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
    )
    return np.asarray(sizes[part], dtype=np.int64), np.asarray(free[part], dtype=bool)
