"""Type a model of fp32: what computes, computes in fp16 or bfloat16, and says so. Lossy.

Strongly typed runtimes (TensorRT from version 11 on) take the types of the model as they are, and lower nothing by
themselves. Weights become 16 bits wide in place; where a node that stays in fp32 meets one that does not, a Cast stands between
them, one for each value and direction. Inputs and outputs of the model stay fp32 unless they are asked to follow.

Left in fp32, with a Skip each: see `passes.planners.precision`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Literal

import onnx_ir as ir

from passes import shapes, weights
from passes.analysis.channels import check_names
from passes.base import Change, Pass, PassReport
from passes.planners.precision import plan_typing, typed_inputs, typed_outputs

if TYPE_CHECKING:
    from passes.analysis.compact import Array

__all__ = ["SetPrecision"]

KINDS: Final = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


class SetPrecision(Pass):
    """Type a model of fp32 to 16-bit floats, but for nodes that cannot be or are asked to stay.

    Args:
        dtype: "fp16", or "bf16", which has the range of fp32 and three digits less than it.
        keep: names of nodes and tensors that stay in fp32.
        io: whether inputs and outputs of the model stay "fp32", or are "typed" as well.

    Raises:
        ValueError: there is no such type.
    """

    name = "set-precision"
    exact = False
    summary: ClassVar[str] = "type a model to fp16 or bf16"

    def __init__(
        self,
        *,
        dtype: Literal["fp16", "bf16"] = "fp16",
        keep: tuple[str, ...] = (),
        io: Literal["fp32", "typed"] = "fp32",
    ) -> None:
        if dtype not in KINDS:
            msg = f"models are typed to {' or '.join(KINDS)}, not to '{dtype}'"
            raise ValueError(msg)
        if io not in {"fp32", "typed"}:
            msg = f"inputs and outputs are 'fp32' or 'typed', not '{io}'"
            raise ValueError(msg)
        self.dtype = dtype
        self.keep = keep
        self.io = io

    def requires(self, model: ir.Model) -> None:
        """Check that names to keep exist."""
        check_names(model, self.keep)

    def call(self, model: ir.Model) -> PassReport:
        """Decide, and carry out.

        Raises:
            PassError: types cannot be inferred.
        """
        graph, kind = model.graph, KINDS[self.dtype]
        if any(value.dtype is None for node in graph for value in node.outputs if value.name):
            shapes.infer(model)
        typing = plan_typing(model, kind, self.keep)
        work = _Retyping(graph, kind)
        if typing.typed:
            work.carry_out(typing.typed, is_io_typed=self.io == "typed")
        counts = (
            ("nodes in fp32, now in 16 bits", len(typing.typed), 0),
            ("constants of 32 bits, now of 16", work.constants, 0),
            ("Casts between the two", 0, work.casts),
        )
        return PassReport(
            self.name,
            self.exact,
            modified=bool(typing.typed),
            changes=tuple(
                Change(graph.name or "graph", what, before, after)
                for what, before, after in counts
                if before != after
            ),
            skips=typing.skips,
        )


class _Retyping:
    """Carries a typing out.

    Attributes:
        constants: how many constants have another type now.
        casts: how many Casts were put in.
    """

    def __init__(self, graph: ir.Graph, kind: ir.DataType) -> None:
        self.graph = graph
        self.kind = kind
        self.constants = 0
        self.casts = 0
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def carry_out(self, typed: dict[ir.Node, None], *, is_io_typed: bool) -> None:
        """Retype the nodes, and put Casts at their borders."""
        # Who reads what is settled before anything changes.
        wanted: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for node in typed:
            for index in typed_inputs(node):
                value = node.inputs[index]
                if value is not None:
                    wanted.setdefault(value, []).append((node, index))
        narrowed = {value: None for node in typed for value in typed_outputs(node)}
        if is_io_typed:
            narrowed.update(
                {
                    value: None
                    for value in self.graph.inputs
                    if value.dtype == ir.DataType.FLOAT and not value.is_initializer()
                }
            )
        for value, places in wanted.items():
            if value not in narrowed:
                self._narrow_for(value, places)
        for value in narrowed:
            self._narrow(value, wanted.get(value, []), is_io_typed=is_io_typed)
        if is_io_typed:
            self._narrow_outputs(narrowed)

    def _narrow_for(self, value: ir.Value, places: list[tuple[ir.Node, int]]) -> None:
        """Give 16 bits of a value that stays in fp32 to those who want them."""
        if weights.is_constant(value):
            value = self._own_constant(value, places)
            if value.dtype == self.kind:
                return
        narrow = self._cast(value, self.kind)
        for node, index in places:
            node.replace_input_with(index, narrow)

    def _own_constant(self, value: ir.Value, places: list[tuple[ir.Node, int]]) -> ir.Value:
        """Retype a constant, or a copy of it where others read it in fp32; returns what is read now."""
        self.constants += 1
        is_shared = value.is_graph_output() or {
            (use.node, use.idx) for use in value.uses()
        } != set(places)
        node = value.producer()
        dtype = self.kind.numpy()
        if is_shared or (value.graph is not None and value.graph is not self.graph):
            array = weights.constant(value)
            assert array is not None, "it is a constant"  # noqa: S101
            copy = weights.new_initializer(
                self.graph, f"{value.name}_{self.kind.name.lower()}", array.astype(dtype)
            )
            for user, index in places:
                user.replace_input_with(index, copy)
            return copy
        if node is not None:
            value = weights.lift(node, self.graph)

        def derive(array: Array, rows: slice) -> Array:
            found: Array = (array[rows] if array.ndim else array).astype(dtype)
            return found

        held = weights.tensor(value)
        assert held is not None, "it is a constant"  # noqa: S101
        shape = tuple(int(size) for size in held.shape.numpy())
        weights.set_derived(value, derive, shape, dtype=self.kind)
        return value

    def _narrow(
        self, value: ir.Value, places: list[tuple[ir.Node, int]], *, is_io_typed: bool
    ) -> None:
        """Make a value 16 bits wide, and give fp32 to those who do not want that."""
        value.type = ir.TensorType(self.kind)
        others = [
            (use.node, use.idx) for use in value.uses() if (use.node, use.idx) not in places
        ]
        is_output = value.is_graph_output() and not is_io_typed
        if not others and not is_output:
            return
        wide = self._cast(value, ir.DataType.FLOAT)
        for node, index in others:
            node.replace_input_with(index, wide)
        if is_output:
            # The interface keeps its name.
            name = value.name or "output"
            value.name = weights.free_name(self.graph, f"{name}_{self.kind.name.lower()}")
            wide.name = name
            for at, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[at] = wide

    def _narrow_outputs(self, narrowed: dict[ir.Value, None]) -> None:
        """Type those outputs of the model that nodes in fp32 make."""
        for at, value in enumerate(self.graph.outputs):
            if value in narrowed or value.dtype != ir.DataType.FLOAT:
                continue
            narrow = self._cast(value, self.kind)
            if value.producer() is not None:
                name = value.name or "output"
                value.name = weights.free_name(self.graph, f"{name}_float")
                narrow.name = name
                self.graph.outputs[at] = narrow

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """The value in another type, made once."""
        found = self._made.get((value, kind))
        if found is not None:
            return found
        self.casts += 1
        node = ir.node(
            "Cast", [value], {"to": kind.value}, name=f"{value.name}_to_{kind.name.lower()}"
        )
        made = node.outputs[0]
        made.name = weights.free_name(self.graph, f"{value.name}_to_{kind.name.lower()}")
        made.type = ir.TensorType(kind)
        made.shape = value.shape
        maker = value.producer()
        if maker is not None and maker.graph is self.graph:
            self.graph.insert_after(maker, node)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], node)
        self._made[value, kind] = made
        return made
