"""Compute layers with dense blocks block by block, in stock operators.

A weight whose rows fall into groups that read the same inputs is a few small dense matrices with zeros around them. What
is left of the layer when those are computed alone is one of the forms of `passes.lowerings`; which one, or none, is a matter
of the device: `choose` measures, and without it the rules of the target decide.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from passes import shapes, targets, weights
from passes.analysis.blemishes import find_blemish
from passes.analysis.channels import check_names
from passes.analysis.fixed_sizes import fixed_sizes
from passes.base import Change, Option, Pass, PassReport, Skip
from passes.errors import PlanMismatch
from passes.lowerings import DENSE, LOWERINGS, find_lowering
from passes.lowerings.alone import Case
from passes.lowerings.tape import Tape
from passes.lowerings.task import BlockedLayer
from passes.planners.block_choice import Chosen, choose_by_rules
from passes.planners.block_finding import find_all_blocks
from passes.plans import BlockPlan

if TYPE_CHECKING:
    from passes.analysis.matrices import Layer
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
        choose: decides for layers, by measuring; None: the rules of the target do.
    """

    name = "group-blocks"
    exact = True
    adds_structure = True
    summary: ClassVar[str] = "compute layers with dense blocks block by block"
    plan_kind = BlockPlan

    def __init__(
        self,
        *,
        lowering: str = "best",
        plan: BlockPlan | None = None,
        blocks: Mapping[str, GivenBlocks] | None = None,
        keep: tuple[str, ...] = (),
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        target: Target | None = None,
        choose: Callable[[Sequence[Case]], Sequence[Chosen]] | None = None,
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
            return PassReport(
                self.name, self.exact, modified=False, skips=tuple(skips), plan=BlockPlan()
            )
        blemish = find_blemish(model)
        if blemish is not None:
            if self.plan:
                msg = f"the plan computes layers by blocks, and none can be: {blemish.reason}. {blemish.advice}."
                raise PlanMismatch(msg)
            return PassReport(
                self.name, self.exact, modified=False, skips=(blemish,), plan=BlockPlan()
            )
        names = _names_of([layer for layer, _ in layers.found])
        self._check_plan({*names.values(), *(layer.name for layer, _ in layers.found)})
        sizes = shapes.measure(model)
        fixed = fixed_sizes(model, sizes, self.shapes or {})
        gathers: dict[tuple[ir.Value, int, bytes], ir.Value] = {}
        cases: list[Case] = []
        for layer, blocks in layers.found:
            size = fixed.get(layer.data.name or "") or sizes.shape.get(layer.data)
            if layer.name in self.keep or layer.node.name in self.keep:
                skips.append(Skip(layer.name, "you asked to keep it", "drop --keep"))
            elif size is None:
                skips.append(
                    Skip(
                        layer.name,
                        f"it has blocks ({blocks}), and the size of what it reads is not known",
                        "give the sizes of the model's inputs with --shape",
                    )
                )
            else:
                task = BlockedLayer(layer, blocks, target.group_multiple, len(size))
                cases.append(Case(task, tuple(size), target))
        forms: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for case, chosen in zip(cases, self._choose_all(cases, names), strict=True):
            layer, blocks = case.task.layer, case.task.blocks
            if chosen.name == DENSE:
                skips.append(
                    Skip(
                        layer.name,
                        f"it stays dense, with blocks of {blocks} ({blocks.area:.0%} of it): {chosen.reason}",
                        chosen.advice,
                    )
                )
                continue
            changes.append(
                Change(
                    layer.name,
                    f"weights, as {chosen.name} ({blocks}): {chosen.reason}",
                    layer.array.size,
                    sum(part.area for part in blocks.parts)
                    * math.prod(stop - first for first, stop in layer.window),
                )
            )
            forms[names[layer.node]] = chosen.name
            reasons[names[layer.node]] = f"{blocks}: {chosen.reason}"
            carry_out(case, chosen.name, gathers)
        return PassReport(
            self.name,
            self.exact,
            modified=bool(changes),
            changes=tuple(changes),
            skips=tuple(skips),
            plan=BlockPlan(forms, reasons),
        )

    def _choose_all(self, cases: Sequence[Case], names: Mapping[ir.Node, str]) -> list[Chosen]:
        """The form of each layer.

        Args:
            cases: the layers.
            names: how plans call them.
        """
        settled = [self._settle(case, names[case.task.layer.node]) for case in cases]
        open_cases = [
            case for case, chosen in zip(cases, settled, strict=True) if chosen is None
        ]
        if self.choose is None:
            found = [choose_by_rules(case) for case in open_cases]
        else:
            found = list(self.choose(open_cases)) if open_cases else []
        rest = iter(found)
        return [next(rest) if chosen is None else chosen for chosen in settled]

    def _settle(self, case: Case, name: str) -> Chosen | None:
        """The form of a layer that needs no choice; None where there is one.

        Args:
            case: the layer.
            name: how plans call it.

        Raises:
            PlanMismatch: the plan wants a form that does not fit.
        """
        names = case.names[1:]
        refusals = {each.name: each.refuse(case.task) for each in LOWERINGS}
        if self.plan is not None:
            weight = case.task.layer.name
            wanted = self.plan.lowerings.get(name, self.plan.lowerings.get(weight, DENSE))
            if wanted not in case.names:
                msg = (
                    f"the plan computes '{name}' as '{wanted}', which does not fit: "
                    f"{refusals.get(wanted, 'there is no such form')}. There are: {', '.join(case.names)}."
                )
                raise PlanMismatch(msg)
            return Chosen(wanted, "the plan says so", "change the plan")
        if self.lowering == "best":
            return None if names else Chosen(DENSE, "no form fits its blocks", "change them")
        if self.lowering in names:
            return Chosen(self.lowering, "it was asked for")
        reason = refusals.get(self.lowering) or "so it was asked for"
        return Chosen(DENSE, reason, "ask for another lowering, or for 'best'")

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


def _names_of(layers: Sequence[Layer]) -> dict[ir.Node, str]:
    """How plans call layers: as their weight, or, if several share it, as what they compute."""
    counts = collections.Counter(layer.name for layer in layers)
    return {
        layer.node: layer.name
        if counts[layer.name] == 1
        else layer.node.outputs[0].name or layer.name
        for layer in layers
    }


def carry_out(
    case: Case, name: str, gathers: dict[tuple[ir.Value, int, bytes], ir.Value]
) -> None:
    """Put a form in the place of a layer."""
    layer = case.task.layer
    graph = layer.node.graph
    assert isinstance(graph, ir.Graph), "layers are read from the main graph"  # noqa: S101
    # Not `layer.data`: a layer before may have been replaced, and its output with it.
    data = layer.node.inputs[0]
    assert data is not None, "a layer is only made where there is one"  # noqa: S101
    constants = [value for value in layer.node.inputs[1:] if value is not None]
    label = layer.node.name or layer.name
    # What does its work takes its name: those who time or name layers find it again.
    layer.node.name = None
    tape = Tape(graph, label, layer.dtype, layer.node, gathers)
    replace(graph, layer.node, find_lowering(name).emit(case.task, tape, data))
    drop_unread(graph, constants)


def replace(graph: ir.Graph, node: ir.Node, made: ir.Value) -> None:
    """Let a value stand for the output of a node, name and all, and remove the node."""
    old = node.outputs[0]
    name = old.name
    ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    old.name = None
    made.name = name
    # An output of the graph has a type even where those of the values before it are not written down.
    if old.type is not None:
        made.type = old.type
    if old.shape is not None:
        made.shape = old.shape.copy()


def drop_unread(graph: ir.Graph, values: list[ir.Value]) -> None:
    """Remove constants that nobody reads any more."""
    for value in values:
        name, maker = value.name or "", value.producer()
        if value.uses() or value.is_graph_output():
            continue
        if graph.initializers.get(name) is value:
            del graph.initializers[name]
        elif maker is not None and weights.is_constant(value):
            graph.remove(maker, safe=True)
