"""Put channels in another order, everywhere at once: whoever writes them writes them so, whoever reads them follows.

What order is for what follows to say: for `sparse-2-4` one in which the pattern keeps the most magnitude, for `group-blocks` one in
which dense blocks stand side by side.

The function stays the same up to the order of sums. What cannot follow (an output of the model, a Split between tied
channels, groups) keeps its order, with a Skip; nothing is ever put in between to restore one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from passes import surgery
from passes.analysis.channels import check_names, find_channels
from passes.analysis.patterns import Pattern
from passes.analysis.tags import Conflict
from passes.base import Pass, PassReport
from passes.errors import PlanMismatch
from passes.planners.block_finding import find_all_blocks
from passes.planners.block_order import plan_block_order
from passes.planners.lines import carry_out_orders
from passes.planners.sparse_order import plan_sparse_order
from passes.plans import PermutePlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.planners.block_finding import GivenBlocks
    from passes.planners.lines import Ordering

__all__ = ["PermuteChannels"]

PURPOSES: Final = ("sparse-2-4", "group-blocks")


class PermuteChannels(Pass):
    """Put channels in the order that suits what follows.

    Args:
        purpose: the pass that follows.
        plan: the orders wanted, in place of those that suit it; see `PermutePlan`.
        blocks: for `group-blocks`: dense blocks of weights, by initializer: those of a ticket.
        pattern: for `sparse-2-4`: of each M elements along the inputs at most N are to be left, as N:M.
        seconds: for `sparse-2-4`: how long to search. Counted in operations, so that the same seed finds the same orders everywhere.
        seed: for `sparse-2-4`: of what is random in the search.
        keep: names of nodes and tensors whose channels stay as they are.
        tell: called from time to time with the share of the search that is done.

    Raises:
        ValueError: there is no such purpose, pattern or seed, or no time.
    """

    name = "permute-channels"
    exact = True
    summary: ClassVar[str] = "put channels in an order that suits what follows"
    plan_kind = PermutePlan

    def __init__(
        self,
        *,
        purpose: Literal["sparse-2-4", "group-blocks"] = "sparse-2-4",
        plan: PermutePlan | None = None,
        blocks: Mapping[str, GivenBlocks] | None = None,
        pattern: str = "2:4",
        seconds: float = 30.0,
        seed: int = 0,
        keep: tuple[str, ...] = (),
        tell: Callable[[float], None] | None = None,
    ) -> None:
        if purpose not in PURPOSES:
            msg = f"channels are ordered for {' or '.join(PURPOSES)}, not for '{purpose}'"
            raise ValueError(msg)
        if not 0 < seconds < math.inf:
            msg = f"'seconds' is a time to search for, above 0, not {seconds:g}"
            raise ValueError(msg)
        if seed < 0:
            msg = f"'seed' is 0 or more, not {seed}"
            raise ValueError(msg)
        self.purpose = purpose
        self.plan = plan
        self.blocks = blocks
        self.pattern = pattern
        self.seconds = seconds
        self.seed = seed
        self.keep = keep
        self.tell = tell
        self._pattern = Pattern.parse(pattern)

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
        ordering = self._ordering(model)
        if ordering is None:
            return PassReport(self.name, self.exact, modified=False, plan=PermutePlan())
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

    def _ordering(self, model: ir.Model) -> Ordering | None:
        """Plan orders for the purpose; None where nothing asks for any."""
        if self.purpose == "group-blocks":
            found = find_all_blocks(model, self.blocks or {}).found
            return (
                plan_block_order(find_channels(model, keep=self.keep), found) if found else None
            )
        return plan_sparse_order(
            find_channels(model, keep=self.keep),
            self._pattern,
            seconds=self.seconds,
            seed=self.seed,
            tell=self.tell,
        )
