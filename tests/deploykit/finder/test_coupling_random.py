"""Coupled refill on random graphs: what it drops, removal takes out, and the function is that of the masked graph."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

import passes
from deploykit.finder.coupling import find_coupling
from deploykit.finder.structures.refill import refill_coupled
from passes.weights import constant, set_tensor
from tests import oracle, strategies


def removed(model):
    """A copy without its dead channels, and what was removed."""
    small = oracle.from_proto(oracle.to_proto(model))
    passes.Tidy()(small)
    return small, passes.RemoveChannels()(small)


def change(model, name, make):
    array = constant(model.graph.initializers[name])
    set_tensor(model.graph.initializers[name], make(array).astype(array.dtype))


def dropped_classes(coupling, kept):
    """Classes of which no row is left in any weight that makes or passes them on."""
    gone = np.zeros(coupling.channels.roots.size, dtype=bool)
    for group in coupling.groups:
        lost = np.ones(group.held.size, dtype=bool)
        for member in group.members:
            if member.role == "reads":
                continue
            for item in range(group.held.size):
                chosen = np.arange(group.held.size) == item
                if kept[member.weight][member.select(chosen)].any():
                    lost[item] = False
        gone[group.classes] = lost[group.items]
    return gone


@hypothesis.given(
    strategies.cases(),
    st.integers(0, 2**16),
    st.sampled_from((0.7, 0.3)),
    st.sampled_from(({}, {"match": "weights"}, {"multiple": 2, "extra": 0.2})),
)
def test_what_is_dropped_is_removed(case, seed, density, options):
    dice = np.random.default_rng(seed)
    model = oracle.from_proto(case.proto)
    names = [
        name
        for name, value in model.graph.initializers.items()
        if value.const_value.dtype.is_floating_point() and len(value.const_value.shape) > 1
    ]
    for name in names:
        change(model, name, lambda array: dice.standard_normal(array.shape) / 2)
    _, report = removed(model)
    # where a channel is dead already, which of several dead ones stays is for the removal to say
    hypothesis.assume(names and not report.plan.dropped and not report.skips)

    coupling = find_coupling(model, names)
    masks = {name: dice.random(coupling.shapes[name]) < density for name in names}
    sizes = {
        member.weight: coupling.shapes[member.weight][0]
        if member.axis == 0
        else int(member.channels.max()) + 1
        for group in coupling.groups
        for member in group.members
        if member.role != "reads"
    }
    scores = {name: dice.random(size) for name, size in sizes.items()}
    kept = refill_coupled(masks, scores, coupling, **options)
    for name, mask in kept.items():
        change(model, name, lambda array, mask=mask: array * mask)

    small, report = removed(model)
    gone = dropped_classes(coupling, kept)
    for node, made in coupling.channels.trace.sources.items():
        positions = set(np.flatnonzero(gone[coupling.channels.roots[made.ravel()]]).tolist())
        assert positions <= set(report.plan.dropped.get(node.outputs[0].name, ()))
    # of the last, which is huge, a dropped channel may become infinite, and that times zero is no number
    inputs = oracle.make_inputs(case.proto, case.sizes)[:-1]
    oracle.assert_same_function(oracle.to_proto(model), small, inputs)
