"""Prune channels that are in use: the least important ones, until a ratio or a budget is met. Lossy.

Conv(x, W[kept]); Conv(., V[:, kept]) computes what the model computes when the dropped channels are zero wherever they
appear: after biases, normalisations and activations. Nothing is carried on in their place, and what their weights,
biases and normalisation constants were goes with them. Train the result on, or prune little.

Refuses, with a Skip each:
1. channels that reach a graph output, a subgraph, a normalisation over channels or an op without a rule: as `remove-channels`;
2. channels that are tied to such ones, or surplus in their group or head: tensors must stay regular;
3. what would leave a count that is no multiple of what the target likes, or less than a share of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from passes import surgery, targets
from passes.analysis.channels import check_names, find_channels
from passes.analysis.fixed_sizes import fixed_sizes
from passes.base import Pass, PassReport
from passes.planners.pruning import Pruner, Rules
from passes.plans import ChannelPlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.planners.importance import Norm
    from passes.planners.pruning import Scope
    from passes.targets import Target

__all__ = ["PruneChannels"]


class PruneChannels(Pass):
    """Cut the least important channels out of the model; its outputs change.

    Args:
        ratio: share of the channels to cut, above 0 and below 1.
        macs: share of the multiply-accumulates to come down to, above 0 and below 1; this or `ratio`.
        counts: how many output channels to keep, by weight; this or `ratio` or `macs`. They are taken as they are, without
            rounding or a largest share; weights that are not named keep theirs unless they are tied to one that is.
        scope: whether channels compete with those of all layers ("global"), or the same share goes everywhere ("layer").
        multiple: what counts are rounded to, per group for grouped convolutions; None: what the target likes.
        max_ratio: the largest share of a layer's channels that may go.
        whole: whether groups of convolutions and attention heads go whole, not as many channels of each; None: where they are small.
        importance: size of a channel's weights, in all layers that share it: sum of squares ("l2") or of magnitudes ("l1").
        keep: names of nodes and tensors whose channels stay.
        shapes: sizes of inputs that leave some open, by name, for the multiply-accumulates; others are assumed.
        target: what it is for; None is this machine.
        plan: prune what it lists, and nothing else, whatever the other options say.

    Raises:
        ValueError: an option is out of its range, or not just one of `ratio`, `macs` and `counts` is given.
    """

    name = "prune-channels"
    exact = False
    summary: ClassVar[str] = "cut the least important channels, to a ratio or a budget"
    plan_kind = ChannelPlan

    def __init__(
        self,
        *,
        ratio: float | None = None,
        macs: float | None = None,
        counts: Mapping[str, int] | None = None,
        scope: Scope = "global",
        multiple: int | None = None,
        max_ratio: float = 0.9,
        whole: bool | None = None,
        importance: Norm = "l2",
        keep: tuple[str, ...] = (),
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        target: Target | None = None,
        plan: ChannelPlan | None = None,
    ) -> None:
        given = [each for each in (ratio, macs, counts) if each is not None]
        if plan is None and len(given) != 1:
            msg = (
                "how much? Give either 'ratio' (a share of the channels to cut), 'macs' (a share of the multiply-accumulates "
                "to keep), or 'counts' (the channels to keep of each weight)"
            )
            raise ValueError(msg)
        for word, share in (("ratio", ratio), ("macs", macs)):
            if share is not None and not 0 < share < 1:
                msg = f"'{word}' is a share above 0 and below 1, not {share}"
                raise ValueError(msg)
        if not 0 < max_ratio <= 1:
            msg = f"'max_ratio' is a share above 0 and up to 1, not {max_ratio}"
            raise ValueError(msg)
        if multiple is not None and multiple < 1:
            msg = f"cannot round to multiples of {multiple}: give a positive number, 1 for any count"
            raise ValueError(msg)
        self.ratio = ratio
        self.macs = macs
        self.counts = counts
        self.scope = scope
        self.multiple = multiple
        self.max_ratio = max_ratio
        self.whole = whole
        self.importance = importance
        self.keep = keep
        self.shapes = shapes
        self.target = target
        self.plan = plan

    def requires(self, model: ir.Model) -> None:
        """Check that names to keep exist."""
        check_names(model, self.keep)

    def call(self, model: ir.Model) -> PassReport:
        """Plan and carry out.

        Raises:
            BudgetMissed: `macs` cannot be reached.
            PlanMismatch: the plan lists a channel that cannot go, or the counts are not of this model.
        """
        multiple = self.multiple or (self.target or targets.detect()).rounding
        if self.counts is not None:
            multiple = 1
        rules = Rules(self.scope, self.importance, multiple, self.max_ratio, self.whole)
        channels = find_channels(model, keep=self.keep)
        pruner = Pruner(channels, rules, fixed_sizes(model, channels.sizes, self.shapes or {}))
        if self.plan is not None:
            pruning = pruner.at_plan(self.plan, self.macs)
        elif self.counts is not None:
            pruning = pruner.at_counts(self.counts)
        elif self.macs is not None:
            pruning = pruner.at_macs(self.macs)
        else:
            pruning = pruner.at_ratio(self.ratio or 0.0)
        if pruning.plan:
            surgery.operate(model, pruning.replay.edits, pruning.replay.shapes)
        return PassReport(
            self.name,
            self.exact,
            modified=bool(pruning.plan),
            changes=pruning.changes,
            skips=pruning.skips,
            plan=pruning.plan,
        )
