"""Remove the channels that are dead: constant, or read by nobody.

Conv(x, W[kept]); Conv(., V[:, kept]) computes what the model with the dropped channels computed, because a dropped
channel added nothing, or a constant that is carried on: in the consumer's bias, by one channel that stays for all
(`carry="carrier"`), or by an Add of a pattern over space (`carry="bias-map"`).

Refuses, with a Skip each:
1. channels that reach a graph output, a subgraph or an op without a rule: the interface would change, or a guess be made;
2. channels that are tied to others that are in use, or surplus in their group: tensors must stay regular;
3. the last channel of a tensor: a tensor cannot be empty;
4. constants that nothing can carry: patterns over space at sizes that are not static, quantized weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from passes import surgery, weights
from passes.analysis.channels import find_channels
from passes.base import Change, Option, Pass, PassReport
from passes.errors import CouplingConflict, PlanMismatch
from passes.planners.dead_channels import plan_removal

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.compact import Array
    from passes.planners.carrying import Carry
    from passes.planners.dead_channels import Removal
    from passes.targets import Target

__all__ = ["RemoveChannels"]


class RemoveChannels(Pass):
    """Cut every channel that is provably constant or unread out of the model.

    Args:
        carry: how constants that no bias can hold are carried on: "carrier" or "bias-map".
        keep: names of nodes and tensors whose channels stay.
        masks: weight name -> bool or 0/1 mask of the weight's shape, True keeps; applied before anything is analysed.
    """

    name = "remove-channels"
    exact = True
    summary: ClassVar[str] = "cut channels that are constant or that nobody reads"

    def __init__(
        self,
        *,
        carry: Carry = "carrier",
        keep: tuple[str, ...] = (),
        masks: Mapping[str, Array] | None = None,
    ) -> None:
        self.carry = carry
        self.keep = keep
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
        names = {
            value.name
            for node in model.graph
            for value in (*node.inputs, *node.outputs)
            if value is not None
        }
        names |= {node.name for node in model.graph}
        for name in self.keep:
            if name not in names:
                msg = f"cannot keep '{name}': the model has no node or tensor of that name. See 'deploykit inspect'."
                raise PlanMismatch(msg)

    def call(self, model: ir.Model) -> PassReport:
        """Plan and carry out."""
        masked = self.apply_masks(model)
        changes: list[Change] = []
        removal = self.remove(model, changes)
        while removal.plan and removal.unsure:
            removal = self.remove(model, changes)
        return PassReport(
            self.name,
            self.exact,
            modified=bool(changes) or masked,
            changes=tuple(changes),
            skips=removal.skips,
        )

    def remove(self, model: ir.Model, changes: list[Change]) -> Removal:
        """Plan and carry out once."""
        removal = plan_removal(find_channels(model, keep=self.keep), carry=self.carry)
        if removal.plan:
            surgery.operate(model, removal.edits, removal.replay.shapes)
            changes += removal.changes
        return removal

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
