"""Channels in the order in which an N:M mask keeps the most: the network computes the same, and its weights lie elsewhere.

    weights -> exported as it is written -> passes.PermuteChannels -> the same initializers, permuted -> weights, by name

Shapes stay, and no node is put in, so that the permuted state dict is one of the same module. That is checked: the module
computes the same from both on the task's example inputs, or the order is left as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import nn

from deploykit.errors import DeploykitError
from deploykit.export import Origin, export_for_analysis, fold_transposes
from deploykit.finder.nm.pattern import Pattern
from deploykit.finder.ranking import Array
from deploykit.finder.task import Task, asking
from deploykit.finder.training import Weights, load_weights
from deploykit.ticket import Ticket
from passes.errors import PassError
from passes.permute_channels import PermuteChannels
from passes.plans import PermutePlan
from passes.tidy import Tidy
from passes.weights import constant, set_tensor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Ordered", "order_channels", "reorder"]

TOLERANCE = 1e-4
"""How far outputs may move, as a part of the largest: sums are taken in another order."""

LEAST_S, MOST_S, S_PER_WEIGHT = 0.2, 30.0, 1e-4
"""A search gets longer with the network: little is found after that."""

SCORED = "scored/"


@dataclasses.dataclass(frozen=True, eq=False)
class Ordered:
    """Weights in another order, or as they were.

    Attributes:
        weights: the state dict to start from.
        scored: the state dict that masks are chosen by, in the same order.
        changed: channels that another one took the place of, by tensor.
        notes: what could not be done, and why, in words.
    """

    weights: Weights
    scored: Weights
    changed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_ticket(self) -> Ticket:
        """To be saved."""
        arrays = {**self.weights, **{SCORED + name: a for name, a in self.scored.items()}}
        return Ticket(
            {}, arrays, {}, {"changed": dict(self.changed), "notes": list(self.notes)}
        )

    @classmethod
    def from_ticket(cls, ticket: Ticket) -> Self:
        """What `as_ticket` made."""
        weights, scored = {}, {}
        for name, array in ticket.weights.items():
            if name.startswith(SCORED):
                scored[name.removeprefix(SCORED)] = array
            else:
                weights[name] = array
        held = ticket.provenance
        return cls(weights, scored, dict(held["changed"]), tuple(held["notes"]))


class _NotOrderedError(Exception):
    """Why the order has to stay; never leaves this module."""


def order_channels(  # noqa: PLR0917 - two state dicts, and what they are of
    task: Task,
    model: nn.Module,
    start: Weights,
    scored: Weights,
    pattern: Pattern,
    names: Sequence[str],
) -> Ordered:
    """Put channels in the order in which an N:M mask of some weights keeps the most magnitude.

    Args:
        task: for its example inputs.
        model: the network; its weights do not count, and change.
        start: the state dict that is to be put in order.
        scored: the state dict that the order is found by.
        pattern: N:M.
        names: the weights that masks are for.

    Raises:
        UsageError: the task failed.
    """
    with asking(task, "example_inputs()"):
        inputs = tuple(task.example_inputs())
    # What is not masked is not to count: however its channels stand, as much of it is kept.
    counted = {
        name: array if name in names or array.ndim < 2 else np.ones_like(array)
        for name, array in scored.items()
    }
    planner = PermuteChannels(
        purpose="sparse-2-4",
        pattern=f"{pattern.kept}:{pattern.group}",
        seconds=_budget_s(sum(scored[name].size for name in names)),
    )
    try:
        graph = _Graph.of(model, inputs)
        report = planner(graph.filled(counted))
    except (PassError, DeploykitError) as error:
        return Ordered(start, scored, notes=(_told(str(error)),))
    assert isinstance(report.plan, PermutePlan)  # noqa: S101 - that pass makes no other
    ordered = _reorder(graph, model, inputs, (start, scored), report.plan)
    notes = [
        f"'{each.subject}': {each.reason}" for each in report.skips if each.subject in names
    ]
    return dataclasses.replace(ordered, notes=(*ordered.notes, *notes))


def _budget_s(weights: int) -> float:
    """How long to search, in seconds of the machine that the search counts its operations for."""
    return min(MOST_S, max(LEAST_S, S_PER_WEIGHT * weights))


def reorder(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    start: Weights,
    scored: Weights,
    plan: PermutePlan,
) -> Ordered:
    """Carry a plan out on state dicts of a module.

    Args:
        model: the network; its weights do not count, and change.
        inputs: what its `forward` is called with.
        start: one state dict.
        scored: another one.
        plan: orders, by tensors of the module's export.
    """
    try:
        graph = _Graph.of(model, inputs)
    except (PassError, DeploykitError) as error:
        return Ordered(start, scored, notes=(_told(str(error)),))
    return _reorder(graph, model, inputs, (start, scored), plan)


def _reorder(
    graph: _Graph,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    both: tuple[Weights, Weights],
    plan: PermutePlan,
) -> Ordered:
    """See `reorder`."""
    if not plan:
        return Ordered(*both)
    try:
        found = [graph.permuted(weights, plan) for weights in both]
        for before, after in zip(both, found, strict=True):
            _check_same(model, inputs, before, after)
    except (_NotOrderedError, PassError, DeploykitError) as error:
        return Ordered(*both, notes=(_told(str(error)),))
    changed = {
        name: int(np.count_nonzero(np.asarray(order) != np.arange(len(order))))
        for name, order in plan.orders.items()
    }
    return Ordered(found[0], found[1], changed)


def _told(reason: str) -> str:
    return f"channels keep their order, in which the mask loses more: {reason.rstrip('.')}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Graph:
    """The export of a module, whose initializers are its weights.

    Attributes:
        model: the graph.
        origins: the weight of the state dict that an initializer is, or is the transpose of: Linear layers read those.
    """

    model: ir.Model
    origins: Mapping[str, Origin]

    @classmethod
    def of(cls, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Self:
        """Export a module."""
        model = export_for_analysis(module.eval(), inputs)
        state = [name for name in module.state_dict() if name in model.graph.initializers]
        origins = {name: Origin(name, is_transposed=False) for name in state}
        origins |= fold_transposes(model.graph, state)
        # The exporter computes the biases that convolutions do not have, and nobody could tell those from weights.
        Tidy()(model)
        return cls(model, origins)

    def filled(self, weights: Weights) -> ir.Model:
        """The graph with a state dict in it."""
        model = self.model.clone()
        for name, origin in self.origins.items():
            if name in model.graph.initializers:
                array = weights[origin.name]
                value = model.graph.initializers[name]
                set_tensor(value, np.array(array.T if origin.is_transposed else array))
        return model

    def permuted(self, weights: Weights, plan: PermutePlan) -> dict[str, Array]:
        """A state dict as a plan leaves it.

        Raises:
            _NotOrderedError: what the plan makes is no state dict of the module.
            PassError: the plan cannot be carried out.
        """
        model = self.filled(weights)
        held = {name: np.array(constant(each)) for name, each in _stored(model).items()}
        nodes = len(model.graph)
        PermuteChannels(plan=plan)(model)
        if len(model.graph) != nodes or set(_stored(model)) != set(held):
            msg = "the order takes operations that the module does not have"
            raise _NotOrderedError(msg)
        found = dict(weights)
        seen: set[str] = set()
        for name, value in _stored(model).items():
            array = np.array(constant(value))
            origin = self.origins.get(name)
            if array.shape != held[name].shape or (
                origin is None and not np.array_equal(array, held[name])
            ):
                msg = f"the constant '{name}' would have to change, and is no weight of the module"
                raise _NotOrderedError(msg)
            if origin is None:
                continue
            array = np.ascontiguousarray(array.T) if origin.is_transposed else array
            if origin.name in seen and not np.array_equal(array, found[origin.name]):
                msg = f"layers that share '{origin.name}' would need it in two orders"
                raise _NotOrderedError(msg)
            seen.add(origin.name)
            found[origin.name] = array
        return found


def _stored(model: ir.Model) -> dict[str, ir.Value]:
    return {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


@torch.no_grad()
def _check_same(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], before: Weights, after: Weights
) -> None:
    """Hold what the module computes from two state dicts against each other.

    Raises:
        _NotOrderedError: they differ.
    """
    outputs = []
    for weights in (before, after):
        load_weights(model, weights)
        leaves, _ = torch.utils._pytree.tree_flatten(model.eval()(*inputs))  # noqa: SLF001 - as the exporter sees them
        outputs.append([each for each in leaves if torch.is_tensor(each)])
    for old, new in zip(*outputs, strict=True):
        scale = max(float(old.abs().max()), torch.finfo(torch.float32).tiny)
        error = float((old - new).abs().max()) / scale
        if not error <= TOLERANCE:
            msg = f"the module computes something else in that order: {error:.2g} of its largest output"
            raise _NotOrderedError(msg)
