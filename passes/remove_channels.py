"""Remove the channels that are dead: constant, or read by nobody.

Conv(x, W[kept]); Conv(., V[:, kept]) computes what the model with the dropped channels computed, because a dropped
channel added nothing, or a constant that is carried on: in the consumer's bias, by one channel that stays for all
(`carry="carrier"`), or by an Add of a pattern over space (`carry="bias-map"`).

Refuses, with a Skip each:
1. channels that reach a graph output, a subgraph or an op without a rule: the interface would change, or a guess be made;
2. channels that are tied to others that are in use, or surplus in their group: tensors must stay regular;
3. the last channel of a tensor: a tensor cannot be empty;
4. constants that nothing can carry: patterns over space at sizes that are not static, quantized weights;
5. all channels of a model with NaN in a weight, or an infinity that is multiplied: no zero cancels them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from passes import surgery, weights
from passes.analysis.blemishes import find_blemish
from passes.analysis.channels import check_names, find_channels
from passes.base import Change, Option, Pass, PassReport
from passes.errors import CouplingConflict, PlanMismatch
from passes.planners.dead_channels import listed, plan_removal
from passes.planners.listing import check_fit
from passes.plans import ChannelPlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.planners.carrying import Carry
    from passes.planners.dead_channels import Removal
    from passes.targets import Target

__all__ = ["RemoveChannels"]


class Rounds:
    """What several rounds of removal did, told in positions of the model before the first.

    Args:
        only: positions of the channels that may go, by tensor; None: all.

    Attributes:
        dropped: positions of the channels that are gone, by tensor.
        changes: what was done, in words.
        last: the latest round.
    """

    last: Removal

    def __init__(self, only: Mapping[str, Sequence[int]] | None) -> None:
        self.dropped: dict[str, list[int]] = {}
        self.changes: list[Change] = []
        self._only = only
        self._left: dict[str, Array] = {}
        self._sizes: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._channels: ChannelMap | None = None

    def listed(self) -> dict[str, list[int]] | None:
        """The channels that may go, where they are now; None: all."""
        if self._only is None:
            return None
        found: dict[str, list[int]] = {}
        for name, positions in self._only.items():
            left = self._left.get(name)
            found[name] = (
                list(positions)
                if left is None
                else [int(at) for at in np.flatnonzero(np.isin(left, list(positions)))]
            )
        return found

    def add(self, channels: ChannelMap, removal: Removal) -> None:
        """Note what a round does, before it is done."""
        self._channels, self.last = channels, removal
        self.changes += removal.changes
        for node, made in channels.trace.sources.items():
            name = node.outputs[0].name or ""
            left = self._left.setdefault(name, np.arange(made.size))
            self._sizes.setdefault(name, made.size)
            gone = list(removal.plan.dropped.get(name, ()))
            if gone:
                self.dropped.setdefault(name, []).extend(int(at) for at in left[gone])
                self._left[name] = np.delete(left, gone)
        for name, reason in removal.plan.reasons.items():
            self._reasons.setdefault(name, reason)

    def plan(self) -> ChannelPlan:
        """All of it as one plan."""
        return ChannelPlan(
            {name: tuple(sorted(gone)) for name, gone in self.dropped.items()},
            sizes={name: self._sizes[name] for name in self.dropped},
            reasons=self._reasons,
        )

    def why(self, name: str, position: int) -> str:
        """Why a channel is still there."""
        if self._channels is None:
            return "nothing was looked at"
        for node, made in self._channels.trace.sources.items():
            if node.outputs[0].name == name:
                at = int(np.flatnonzero(self._left[name] == position)[0])
                pin = self.last.reasons.get(int(self._channels.roots[made.ravel()[at]]))
                return "they are in use" if pin is None else pin.reason
        return "they are in use"


class RemoveChannels(Pass):
    """Cut every channel that is provably constant or unread out of the model.

    Args:
        carry: how constants that no bias can hold are carried on: "carrier" or "bias-map".
        keep: names of nodes and tensors whose channels stay.
        plan: what to remove, of all that could be: that of an earlier report, whole or in parts; None: everything.
        masks: weight name -> bool or 0/1 mask of the weight's shape, True keeps; applied before anything is analysed.
    """

    name = "remove-channels"
    exact = True
    summary: ClassVar[str] = "cut channels that are constant or that nobody reads"
    plan_kind = ChannelPlan

    def __init__(
        self,
        *,
        carry: Carry = "carrier",
        keep: tuple[str, ...] = (),
        plan: ChannelPlan | None = None,
        masks: Mapping[str, Array] | None = None,
    ) -> None:
        self.carry = carry
        self.keep = keep
        self.plan = plan
        self.masks = masks

    def requires(self, model: ir.Model) -> None:
        """Check that masks fit and that names to keep exist."""
        for name, mask in (self.masks or {}).items():
            value = model.graph.initializers.get(name)
            if value is None:
                msg = f"mask '{name}': the model has no weight of that name. Name it as the ONNX file does."
                raise PlanMismatch(msg)
            shape = tuple(value.const_value.shape) if value.const_value is not None else ()
            if tuple(mask.shape) != shape:
                msg = f"mask '{name}' has shape {tuple(mask.shape)}, its weight {shape}. Give a mask of the weight's shape."
                raise PlanMismatch(msg)
            if not np.isin(mask, (0, 1)).all():
                msg = (
                    f"mask '{name}' holds numbers other than 0 and 1. Give a bool or 0/1 mask."
                )
                raise CouplingConflict(msg)
        check_names(model, self.keep)

    def call(self, model: ir.Model) -> PassReport:
        """Plan and carry out.

        Raises:
            PlanMismatch: the plan lists a channel that cannot go.
        """
        masked = self.apply_masks(model)
        blemish = find_blemish(model)
        if blemish is not None:
            if self.plan:
                msg = f"the plan drops channels, and none can go: {blemish.reason}. {blemish.advice}."
                raise PlanMismatch(msg)
            return PassReport(
                self.name, self.exact, modified=masked, skips=(blemish,), plan=ChannelPlan()
            )
        if self.plan is not None:
            self.check_plan(model, self.plan)
        done = Rounds(None if self.plan is None else self.plan.dropped)
        while self.remove(model, done):
            pass
        return PassReport(
            self.name,
            self.exact,
            modified=bool(done.changes) or masked,
            changes=tuple(done.changes),
            skips=done.last.skips,
            plan=done.plan(),
        )

    def remove(self, model: ir.Model, done: Rounds) -> bool:
        """Plan and carry out once; whether another look could find more."""
        channels = find_channels(model, keep=self.keep)
        only = done.listed()
        removal = plan_removal(channels, carry=self.carry, only=only)
        done.add(channels, removal)
        if removal.plan:
            surgery.operate(model, removal.edits, removal.replay.shapes)
        return bool(removal.plan) and removal.unsure

    def check_plan(self, model: ir.Model, plan: ChannelPlan) -> None:
        """Check that every channel of a plan could go if nothing else stayed.

        Raises:
            PlanMismatch: one is not there, or cannot go.
        """
        trial = model.clone()
        check_fit(find_channels(trial), plan)
        if plan.padded:
            msg = f"'{self.name}' adds no channels, and its plan pads '{next(iter(plan.padded))}'. Delete that."
            raise PlanMismatch(msg)
        done = Rounds(None)
        while self.remove(trial, done):
            pass
        for name, positions in plan.dropped.items():
            live = sorted(set(positions) - set(done.dropped.get(name, ())))
            if live:
                msg = (
                    f"the plan drops the channels {listed(live)} of '{name}', which cannot go: "
                    f"{done.why(name, live[0])}. Delete them from the plan."
                )
                raise PlanMismatch(msg)

    def apply_masks(self, model: ir.Model) -> bool:
        """Zero what the masks leave out; whether that changed anything."""
        changed = False
        for name, mask in (self.masks or {}).items():
            value = model.graph.initializers[name]
            old = weights.constant(value)
            if old is not None and (old[~mask.astype(bool)] != 0).any():
                weights.set_tensor(
                    value, np.where(mask.astype(bool), old, np.zeros((), dtype=old.dtype))
                )
                changed = True
        return changed

    @classmethod
    def variants(cls, target: Target) -> tuple[Mapping[str, Option], ...]:
        """Both forms of carrying constants."""
        del target
        return ({"carry": "carrier"}, {"carry": "bias-map"})
