"""Put channels in another order, everywhere at once: whoever writes them writes them so, whoever reads them follows.

The function stays the same up to the order of sums. What cannot follow (an output of the model, a Split between tied
channels, groups) keeps its order, with a Skip; nothing is ever put in between to restore one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from passes import surgery
from passes.analysis.channels import check_names, find_channels
from passes.analysis.tags import Conflict
from passes.base import Pass, PassReport
from passes.errors import PlanMismatch
from passes.planners.block_finding import find_all_blocks
from passes.planners.block_order import carry_out_orders, plan_block_order
from passes.plans import PermutePlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.planners.block_finding import GivenBlocks

__all__ = ["PermuteChannels"]


class PermuteChannels(Pass):
    """Put channels in the order in which dense blocks stand side by side.

    Args:
        plan: the orders wanted, in place of those; see `PermutePlan`.
        blocks: dense blocks of weights, by initializer: those of a ticket.
        keep: names of nodes and tensors whose channels stay as they are.
    """

    name = "permute-channels"
    exact = True
    summary: ClassVar[str] = "put channels in an order that suits what follows"
    plan_kind = PermutePlan

    def __init__(
        self,
        *,
        plan: PermutePlan | None = None,
        blocks: Mapping[str, GivenBlocks] | None = None,
        keep: tuple[str, ...] = (),
    ) -> None:
        self.plan = plan
        self.blocks = blocks
        self.keep = keep

    def requires(self, model: ir.Model) -> None:
        """Check that names to keep exist."""
        check_names(model, self.keep)

    def call(self, model: ir.Model) -> PassReport:
        """Plan and carry out.

        Raises:
            PlanMismatch: the plan does not fit the model, or a node cannot follow it; or a ticket's blocks do not fit.
        """
        if self.plan is not None:
            channels = find_channels(model, keep=self.keep)
            try:
                replay = carry_out_orders(channels, self.plan)
            except Conflict as conflict:
                msg = f"the plan cannot be carried out: {conflict}. Delete the orders of the channels that meet there."
                raise PlanMismatch(msg) from conflict
            surgery.operate(model, replay.edits, replay.shapes)
            return PassReport(
                self.name, self.exact, modified=bool(replay.edits), plan=self.plan
            )
        found = find_all_blocks(model, self.blocks or {}).found
        if not found:
            return PassReport(self.name, self.exact, modified=False, plan=PermutePlan())
        channels = find_channels(model, keep=self.keep)
        ordering = plan_block_order(channels, found)
        if ordering.plan:
            surgery.operate(model, ordering.replay.edits, ordering.replay.shapes)
        return PassReport(
            self.name,
            self.exact,
            modified=bool(ordering.plan),
            changes=ordering.changes,
            skips=ordering.skips,
            plan=ordering.plan,
        )
