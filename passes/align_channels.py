"""Pad coupled channels with zero channels, up to a multiple that the runtime likes.

A zero channel has zero weights and a zero bias where it is made, copies of its neighbour's constants where it passes,
and zero weights where it is read: it adds 0 to every sum. Channels that reach an output, or a sum over channels, keep
their count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from passes import surgery
from passes.analysis.channels import find_channels
from passes.base import Option, Pass, PassReport
from passes.errors import PlanMismatch
from passes.planners.alignment import plan_alignment
from passes.plans import ChannelPlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.targets import Target

__all__ = ["AlignChannels"]


class AlignChannels(Pass):
    """Zero-pad coupled channels up to a multiple.

    Args:
        multiple: the count wanted, per group for grouped convolutions; 1 leaves all as it is.
        plan: where to put how many channels, in place of `multiple`: that of an earlier report, whole or in parts.

    Raises:
        ValueError: `multiple` is not positive.
    """

    name = "align-channels"
    exact = True
    adds_structure = True
    summary: ClassVar[str] = "zero-pad channel counts to a multiple the runtime likes"
    plan_kind = ChannelPlan

    def __init__(self, *, multiple: int = 16, plan: ChannelPlan | None = None) -> None:
        if multiple < 1:
            msg = f"cannot align channels to multiples of {multiple}: give a positive number, 8 or 16 say"
            raise ValueError(msg)
        self.multiple = multiple
        self.plan = plan

    def call(self, model: ir.Model) -> PassReport:
        """Plan and carry out.

        Raises:
            PlanMismatch: the plan puts channels where none can be put.
        """
        if self.multiple == 1 and self.plan is None:
            return PassReport(self.name, self.exact, modified=False, plan=ChannelPlan())
        if self.plan is not None and self.plan.dropped:
            msg = f"'{self.name}' cuts no channels, and its plan drops some of '{next(iter(self.plan.dropped))}'. Delete that."
            raise PlanMismatch(msg)
        channels = find_channels(model)
        alignment = plan_alignment(channels, multiple=self.multiple, plan=self.plan)
        if alignment.plan:
            surgery.operate(model, alignment.replay.edits, alignment.replay.shapes)
        return PassReport(
            self.name,
            self.exact,
            modified=bool(alignment.plan),
            changes=alignment.changes,
            skips=alignment.skips,
            plan=alignment.plan,
        )

    @classmethod
    def variants(cls, target: Target) -> tuple[Mapping[str, Option], ...]:
        """The multiples that are worth trying on the target."""
        return tuple({"multiple": multiple} for multiple in target.multiples)
