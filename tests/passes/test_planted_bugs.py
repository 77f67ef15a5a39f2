"""Bugs planted into the engine on purpose: the property on random graphs must fail on each of them.

A property that no bug makes fail proves nothing. Each bug is one that naive tools have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import passes
from passes.analysis import matrices, walk
from passes.analysis.axis_rules import elementwise, movement
from passes.lowerings import LOWERINGS
from passes.lowerings.task import BlockedLayer
from passes.planners import carrying
from tests import blocked, oracle, strategies
from tests.orders import draw_orders

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Bug:
    """A bug and where to look for it.

    Attributes:
        name: what goes wrong.
        plant: puts it in.
        blocks: of which random graphs are made, so that few are needed.
        kinds: of zeros.
    """

    name: str
    plant: Callable[[pytest.MonkeyPatch], None]
    blocks: tuple[Any, ...]
    kinds: tuple[strategies.Zeros, ...] = ("coupled", "rows")


def is_broken(case: strategies.Case) -> bool:
    """Whether removal fails on a model: it raises, or makes a broken graph, or another function."""
    model = oracle.from_proto(case.proto)
    try:
        passes.Tidy()(model)
        passes.RemoveChannels(carry="carrier")(model)
        oracle.check(model)
        inputs = oracle.make_inputs(case.proto, case.sizes)
        oracle.assert_same_function(case.proto, model, inputs)
    except Exception:  # noqa: BLE001 - a crash shows a bug as well as a wrong number does
        return True
    return False


def find(bug: Bug) -> strategies.Case:
    """A random graph on which removal fails.

    Raises:
        hypothesis.errors.NoSuchExample: there is none among 400.
    """
    return hypothesis.find(
        strategies.cases(blocks=4, allowed=bug.blocks, kinds=bug.kinds, half=False),
        is_broken,
        settings=hypothesis.settings(
            max_examples=400, phases=[hypothesis.Phase.generate], database=None
        ),
        random=random.Random(7),  # noqa: S311 - no secret
    )


def wrong_concat_offset(patch: pytest.MonkeyPatch) -> None:
    """What follows a Concat takes its channels to start one place further."""
    replay = movement.Concat.replay

    def shifted(self: movement.Concat, node: Any, r: Any) -> None:
        replay(self, node, r)
        out = node.outputs[0]
        if r.is_changed(out):
            tags = r.tags[out]
            r.tags[out] = np.roll(tags, 1, int(np.argmax(tags.shape)))

    patch.setattr(movement.Concat, "replay", shifted)


def stale_group_count(patch: pytest.MonkeyPatch) -> None:
    """A grouped Conv loses groups, and its attribute says otherwise."""
    edit = walk.Replay.edit

    def forgetful(self: walk.Replay, change: Any) -> None:
        if getattr(change, "name", None) != "group":
            edit(self, change)

    patch.setattr(walk.Replay, "edit", forgetful)


def stale_reshape_constant(patch: pytest.MonkeyPatch) -> None:
    """A Reshape keeps the sizes it spelled out."""
    patch.setattr(movement.Reshape, "resize", lambda *_: None)


def unified_broadcast_axis(patch: pytest.MonkeyPatch) -> None:
    """An operand of size 1 is taken for the first of the channels it is broadcast over, and the result for it."""
    combine = elementwise.combine

    def unified(node: Any, t: Any, one: Any, other: Any) -> Any:
        small, large = sorted((one[0], other[0]), key=lambda tags: tags.size)
        if small.size == 1 < large.size:
            first = large.reshape(-1)[:1].reshape(small.shape)
            t.unite(node, small, first)
            return small
        return combine(node, t, one, other)

    patch.setattr(elementwise, "combine", unified)


def naive_bias_fold(patch: pytest.MonkeyPatch) -> None:
    """What a constant adds far from the border is folded into the bias of a convolution that pads."""
    convolved = carrying.convolved

    def inner(*arguments: Any) -> Any:
        amount = convolved(*arguments)
        if amount is None:
            return None
        middle = tuple(slice(size // 2, size // 2 + 1) for size in amount.shape[2:])
        return amount[(slice(None), slice(None), *middle)]

    patch.setattr(carrying, "convolved", inner)
    patch.setattr(carrying.Carrying, "foldable", lambda _, reader: reader.uniform)


BUGS = (
    Bug("a wrong concat offset", wrong_concat_offset, (strategies.conv, strategies.concat)),
    Bug("a group count not updated", stale_group_count, (strategies.conv,)),
    Bug(
        "a stale Reshape constant",
        stale_reshape_constant,
        (strategies.shuffle, strategies.to_rows),
    ),
    Bug("a broadcast axis unified", unified_broadcast_axis, (strategies.spatial_gate,)),
    Bug(
        "a bias folded under padding",
        naive_bias_fold,
        (strategies.conv, strategies.residual),
        ("rows",),
    ),
)


# ------------------------------------------------------------------------ blocks


def is_broken_in_blocks(pair: tuple[strategies.Case, Any]) -> bool:
    """Whether a form of a layer with blocks is another function, or none."""
    case, target = pair
    for form in (each.name for each in LOWERINGS):
        model = oracle.from_proto(case.proto)
        try:
            if passes.GroupBlocks(lowering=form, target=target)(model).modified:
                oracle.check(model)
                inputs = oracle.make_inputs(case.proto, case.sizes)
                oracle.assert_same_function(case.proto, model, inputs)
        except Exception:  # noqa: BLE001 - as above
            return True
    return False


def is_broken_in_order(pair: tuple[strategies.Case, Any]) -> bool:
    """Whether an order of channels that a plan asks for is another function, or none."""
    case, seed = pair
    model = oracle.from_proto(case.proto)
    passes.Tidy()(model)
    try:
        for name, order in draw_orders(model, np.random.default_rng(seed)).items():
            copy = oracle.from_proto(oracle.to_proto(model))
            with contextlib.suppress(passes.PlanMismatch):
                passes.PermuteChannels(plan=passes.PermutePlan({name: order}))(copy)
            oracle.check(copy)
            inputs = oracle.make_inputs(case.proto, case.sizes)
            oracle.assert_same_function(case.proto, copy, inputs)
    except Exception:  # noqa: BLE001 - as above
        return True
    return False


def rows_put_where_they_came_from(patch: pytest.MonkeyPatch) -> None:
    """Rows that were computed in another order are put in order by the order, not by its inverse."""
    restore = BlockedLayer.restore

    def inverse(self: BlockedLayer, rows: Any) -> Any:
        rows = list(rows)
        found = restore(self, rows)
        return None if found is None else np.concatenate(rows) % self.layer.rows

    patch.setattr(BlockedLayer, "restore", inverse)


def bias_in_old_order(patch: pytest.MonkeyPatch) -> None:
    """Rows are put in another order, and their biases are not."""

    def first(self: BlockedLayer, rows: Any) -> Any:
        return None if self.bias is None else np.resize(self.bias, rows.size)

    patch.setattr(BlockedLayer, "bias_of", first)


def column_of_a_neighbour(patch: pytest.MonkeyPatch) -> None:
    """The weights of a block are those of the columns beside."""
    take = matrices.Layer.take

    def beside(self: matrices.Layer, rows: Any, columns: Any) -> Any:
        return take(self, rows, np.roll(columns, 1))

    patch.setattr(matrices.Layer, "take", beside)


def stale_padding(patch: pytest.MonkeyPatch) -> None:
    """A kernel is cropped, and the padding is as before."""
    convolution = BlockedLayer.convolution

    def stale(self: BlockedLayer, groups: int) -> Any:
        pads = self.layer.node.attributes.get("pads")
        made = [each for each in convolution(self, groups) if each.name != "pads"]
        return made if pads is None else [*made, pads]

    patch.setattr(BlockedLayer, "convolution", stale)


def forgotten_followers(patch: pytest.MonkeyPatch) -> None:
    """Channels are put in another order, and what is added to them, or multiplied, is not."""
    edit = walk.Replay.edit

    def forgetful(self: walk.Replay, change: Any) -> None:
        if self.ranks is None or getattr(change, "index", None) != 2:
            edit(self, change)

    patch.setattr(walk.Replay, "edit", forgetful)


CROPPED = st.tuples(
    blocked.blocked(layers=[blocked.cropped_layer], half=False),
    st.sampled_from(blocked.TARGETS),
)
LAYERS = st.tuples(blocked.blocked(half=False), st.sampled_from(blocked.TARGETS))
ORDERS = st.tuples(strategies.cases(half=False), st.integers(0, 2**16))

BLOCK_BUGS: tuple[tuple[str, Any, Any, Any], ...] = (
    ("rows in the wrong order", rows_put_where_they_came_from, LAYERS, is_broken_in_blocks),
    ("biases of other rows", bias_in_old_order, LAYERS, is_broken_in_blocks),
    ("columns of a neighbour", column_of_a_neighbour, LAYERS, is_broken_in_blocks),
    # One in two hundred of all layers would show it.
    ("padding of the whole kernel", stale_padding, CROPPED, is_broken_in_blocks),
    ("biases that do not follow", forgotten_followers, ORDERS, is_broken_in_order),
)


@pytest.mark.parametrize(
    ("plant", "graphs", "fails"),
    [bug[1:] for bug in BLOCK_BUGS],
    ids=[bug[0] for bug in BLOCK_BUGS],
)
def test_the_properties_of_blocks_see_a_planted_bug(
    plant: Any, graphs: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = hypothesis.find(
        graphs,
        fails,
        settings=hypothesis.settings(
            max_examples=400, phases=[hypothesis.Phase.generate], database=None
        ),
        random=random.Random(7),  # noqa: S311 - no secret
    )
    monkeypatch.undo()
    assert not fails(found), "the case fails without the bug as well"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_property_sees_a_planted_bug(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    case = find(bug)
    monkeypatch.undo()
    assert not is_broken(case), "the case fails without the bug as well"
