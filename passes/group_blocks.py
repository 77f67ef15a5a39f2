"""Compute layers with dense blocks block by block, in stock operators.

A weight whose rows fall into groups that read the same inputs is a few small dense matrices with zeros around them. What
is left of the layer when those are computed alone is one of the forms of `passes.lowerings`; which one, or none, is a matter
of the device: `choose` measures, and without it the rules of the target decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from passes import shapes, targets
from passes.analysis.channels import check_names
from passes.analysis.fixed_sizes import fixed_sizes
from passes.base import Change, Option, Pass, PassReport, Skip
from passes.errors import PlanMismatch
from passes.lowerings import DENSE, LOWERINGS, fitting
from passes.lowerings.alone import Case
from passes.lowerings.tape import Tape
from passes.lowerings.task import BlockedLayer
from passes.planners.block_choice import Chosen, choose_by_rules
from passes.planners.block_finding import find_all_blocks
from passes.plans import BlockPlan

if TYPE_CHECKING:
    from passes.planners.block_finding import GivenBlocks
    from passes.targets import Target

__all__ = ["GroupBlocks"]


class GroupBlocks(Pass):
    """Compute layers with dense blocks block by block.

    Args:
        lowering: "best", or the name of the only form that is to be used, where it fits.
        plan: the form of each layer, in place of a choice.
        blocks: dense blocks of weights, by initializer: those of a ticket.
        keep: names of nodes and weights that stay as they are.
        shapes: sizes of the inputs, by name, that forms are chosen for; the model's own where it leaves none open.
        target: what the model is made for; ONNX Runtime on this CPU by default.
        choose: decides for a layer, by measuring; None: the rules of the target do.
    """

    name = "group-blocks"
    exact = True
    adds_structure = True
    summary: ClassVar[str] = "compute layers with dense blocks block by block"

    def __init__(
        self,
        *,
        lowering: str = "best",
        plan: BlockPlan | None = None,
        blocks: Mapping[str, GivenBlocks] | None = None,
        keep: tuple[str, ...] = (),
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        target: Target | None = None,
        choose: Callable[[Case], Chosen] | None = None,
    ) -> None:
        known = ["best", DENSE, *(each.name for each in LOWERINGS)]
        if lowering not in known:
            msg = f"there is no lowering '{lowering}'. There are: {', '.join(known)}."
            raise ValueError(msg)
        self.lowering = lowering
        self.plan = plan
        self.blocks = blocks
        self.keep = keep
        self.shapes = shapes
        self.target = target
        self.choose = choose

    def requires(self, model: ir.Model) -> None:
        """Check that names to keep exist."""
        check_names(model, self.keep)

    def call(self, model: ir.Model) -> PassReport:
        """Find, choose and carry out.

        Raises:
            PlanMismatch: the plan names a layer without blocks, or a form that does not fit it.
        """
        target = self.target or targets.detect()
        layers = find_all_blocks(model, self.blocks or {})
        changes: list[Change] = []
        skips = list(layers.skips)
        if not layers.found:
            return PassReport(self.name, self.exact, modified=False, skips=tuple(skips))
        self._check_plan({layer.name for layer, _ in layers.found})
        sizes = shapes.measure(model)
        fixed = fixed_sizes(model, sizes, self.shapes or {})
        gathers: dict[tuple[ir.Value, int, bytes], ir.Value] = {}
        for layer, blocks in layers.found:
            size = fixed.get(layer.data.name or "") or sizes.shape.get(layer.data)
            if layer.name in self.keep or layer.node.name in self.keep:
                skips.append(Skip(layer.name, "you asked to keep it", "drop --keep"))
                continue
            if size is None:
                skips.append(
                    Skip(
                        layer.name,
                        f"it has blocks ({blocks}), and the size of what it reads is not known",
                        "give the sizes of the model's inputs with --shape",
                    )
                )
                continue
            task = BlockedLayer(layer, blocks, target.group_multiple, len(size))
            case = Case(task, tuple(size), target)
            chosen = self._choose(case)
            if chosen.name == DENSE:
                skips.append(
                    Skip(
                        layer.name,
                        f"it stays dense, with blocks of {blocks} ({blocks.area:.0%} of it): {chosen.reason}",
                        chosen.advice,
                    )
                )
                continue
            emit = next(each.emit for each in LOWERINGS if each.name == chosen.name)
            graph = layer.node.graph
            assert isinstance(graph, ir.Graph), "layers are read from the main graph"  # noqa: S101
            tape = Tape(graph, layer.node.name or layer.name, layer.node, gathers)
            constants = [value for value in layer.node.inputs[1:] if value is not None]
            replace(graph, layer.node, emit(task, tape, layer.data))
            drop_unread(graph, constants)
            changes.append(
                Change(
                    layer.name,
                    f"weights, as {chosen.name} ({blocks}): {chosen.reason}",
                    layer.array.size,
                    round(blocks.area * layer.rows * layer.columns)
                    * (layer.array[0, 0].size if layer.kernel else 1),
                )
            )
        return PassReport(
            self.name,
            self.exact,
            modified=bool(changes),
            changes=tuple(changes),
            skips=tuple(skips),
        )

    def _choose(self, case: Case) -> Chosen:
        """The form of one layer."""
        names = [each.name for each in fitting(case.task)]
        if self.plan is not None:
            wanted = self.plan.lowerings.get(case.task.layer.name, DENSE)
            if wanted != DENSE and wanted not in names:
                refusal = next(
                    (each.refuse(case.task) for each in LOWERINGS if each.name == wanted),
                    "there is no such form",
                )
                msg = (
                    f"the plan computes '{case.task.layer.name}' as '{wanted}', which does not fit: {refusal}. "
                    f"There are: {', '.join([DENSE, *names])}."
                )
                raise PlanMismatch(msg)
            return Chosen(wanted, "the plan says so", "change the plan")
        if self.lowering != "best":
            if self.lowering in names:
                return Chosen(self.lowering, "it was asked for", "")
            reason = next(
                (each.refuse(case.task) for each in LOWERINGS if each.name == self.lowering),
                None,
            )
            return Chosen(
                DENSE,
                reason or "so it was asked for",
                "ask for another lowering, or for 'best'",
            )
        if not names:
            return Chosen(DENSE, "no form fits its blocks", "make blocks of equal sizes")
        return choose_by_rules(case) if self.choose is None else self.choose(case)

    def _check_plan(self, names: set[str]) -> None:
        for name in self.plan.lowerings if self.plan is not None else ():
            if name not in names:
                msg = f"the plan names '{name}', and the model has no layer with blocks of that name. Correct or delete it."
                raise PlanMismatch(msg)

    @classmethod
    def variants(cls, target: Target) -> tuple[Mapping[str, Option], ...]:
        """The best forms, whose worth a measurement of the whole model tells."""
        del target
        return ({"lowering": "best"},)


def replace(graph: ir.Graph, node: ir.Node, made: ir.Value) -> None:
    """Let a value stand for the output of a node, name and all, and remove the node."""
    old = node.outputs[0]
    name = old.name
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name = None
    made.name = name
    if old.shape is not None:
        made.shape = old.shape.copy()


def drop_unread(graph: ir.Graph, values: list[ir.Value]) -> None:
    """Remove initializers that nobody reads any more."""
    for value in values:
        name = value.name or ""
        if (
            not value.uses()
            and not value.is_graph_output()
            and graph.initializers.get(name) is value
        ):
            del graph.initializers[name]
