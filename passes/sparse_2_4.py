"""Dense weights with the zeros that sparse tensor cores want: of each four inputs of an output, two at most.

W stays a dense tensor of its shape and type; what obeys is the axis that is summed over (see `passes.analysis.reductions`).
*Exact*: weights that obey already are recorded, and nothing is altered. *Lossy* on request: the smallest of every four become
zero, or those that given masks drop.

Refuses, with a Skip each:
1. a weight that does not obey, unless it may be altered: by how much, and what to do;
2. a weight that layers read along different axes, or that something else reads as well: one pattern cannot serve both;
3. inputs that are no multiple of four, depthwise and transposed convolutions: no kernel reads a pattern there;
4. quantized weights whose zero point is not 0: a zero would be stored, and none be read;
5. NaN and infinities: what is largest is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from passes import targets, weights
from passes.analysis.channels import check_names
from passes.analysis.fits import Candidate, find_candidates, fit, is_obeyed
from passes.analysis.patterns import Pattern, obeys, sparsify
from passes.analysis.reductions import TIDY
from passes.base import Change, Pass, PassReport, Skip
from passes.errors import PassError, PlanMismatch
from passes.plans import SparsePlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.compact import Array
    from passes.analysis.patterns import Fit
    from passes.targets import Target

__all__ = ["Sparse24"]


class Sparse24(Pass):
    """Record which weights obey 2:4; with `force` or masks, make them obey, which changes the outputs.

    Args:
        force: None leaves weights as they are; "magnitude" keeps the largest of every group.
        pattern: of each M elements along the inputs at most N are not zero, as N:M.
        masks: bool arrays by the name of the weight; True keeps. What they leave has to obey.
        keep: names of nodes and tensors whose weights stay as they are.
        target: what it is for; None is this machine. One without sparse kernels is told of all weights at once.
        plan: the weights it is about, and no others.

    Raises:
        ValueError: there is no such pattern.
    """

    name = "sparse-2-4"
    exact = True
    summary: ClassVar[str] = "record or make weights with two zeros in each four"
    plan_kind = SparsePlan

    def __init__(
        self,
        *,
        force: Literal["magnitude"] | None = None,
        pattern: str = "2:4",
        masks: Mapping[str, Array] | None = None,
        keep: tuple[str, ...] = (),
        target: Target | None = None,
        plan: SparsePlan | None = None,
    ) -> None:
        if force not in {None, "magnitude"}:
            msg = f"weights can be forced by 'magnitude', not by '{force}'"
            raise ValueError(msg)
        self.force = force
        self.pattern = pattern
        self.masks = masks
        self.keep = keep
        self.target = target
        self.plan = plan
        self.exact = self.is_exact_with({"force": force, "masks": masks})
        self._pattern = Pattern.parse(pattern)

    @classmethod
    def is_exact_with(cls, options: Mapping[str, object]) -> bool:
        """Whether nothing is forced."""
        return options.get("force") is None and not options.get("masks")

    def requires(self, model: ir.Model) -> None:
        """Check that names to keep exist, and that plan and masks are for this model."""
        check_names(model, self.keep)

    def call(self, model: ir.Model) -> PassReport:
        """Look at every weight, and alter those that may be.

        Raises:
            PlanMismatch: the plan or the masks name a weight that there is not, or that cannot obey.
        """
        found = list(find_candidates(model, self._pattern))
        candidates = {each.name: each for each in found if isinstance(each, Candidate)}
        self._check_names(candidates)
        target = self.target or targets.detect()
        # Who asked for nothing, and has a runtime that would gain nothing, is not told of each weight.
        is_brief = self.exact and self.plan is None and target.sparse is None
        work = _Work(self._pattern, {}, [], [])
        for function in model.functions.values():
            reason = "what the model's functions compute with is not looked at before they are inlined"
            work.skips.append(Skip(function.name, reason, TIDY))
        unfit: list[str] = []
        for each in found:
            if not isinstance(each, Candidate):
                work.skips += [] if is_brief or each.refusal is None else [each.refusal]
            elif is_brief:
                self._record(each, work, unfit)
            else:
                self._look_at(model, each, work)
        if unfit:
            some = f"{len(unfit)} weights" if len(unfit) > 1 else unfit[0]
            work.skips.append(
                Skip(
                    some,
                    f"no {self.pattern} pattern there, and the target '{target.name}' would gain nothing by one",
                    "for TensorRT: 'deploykit inspect --sparse' says of each layer what 2:4 could do",
                )
            )
        plan = SparsePlan(
            {name: candidates[name].held.axis for name in work.reasons},
            dict.fromkeys(work.reasons, self.pattern),
            work.reasons,
        )
        is_modified = any(change.before != change.after for change in work.changes)
        return PassReport(
            self.name,
            self.exact,
            modified=is_modified,
            changes=tuple(work.changes),
            skips=tuple(work.skips),
            plan=plan,
        )

    def _check_names(self, candidates: Mapping[str, Candidate]) -> None:
        """Refuse a plan or masks that speak of what is not there, or cannot be."""
        axes = {} if self.plan is None else self.plan.axes
        for what, names in (("plan", axes), ("masks", self.masks or {})):
            for name in names:
                candidate = candidates.get(name)
                if candidate is None:
                    there = ", ".join(f"'{each}'" for each in list(candidates)[:5]) or "none"
                    msg = f"the {what} speak{'s' if what == 'plan' else ''} of '{name}', and no layer multiplies by such a weight. There are: {there}. Correct the name, or delete the entry."
                    raise PlanMismatch(msg)
                if candidate.refusal is not None:
                    msg = f"the {what} cannot be carried out at '{name}': {candidate.refusal.reason}. {candidate.refusal.advice}, or delete the entry."
                    raise PlanMismatch(msg)
        if self.plan is None:
            return
        for name, axis in axes.items():
            held, wanted = candidates[name].held, self.plan.patterns.get(name, self.pattern)
            if axis != held.axis or wanted != self.pattern:
                msg = f"the plan wants {wanted} along axis {axis} of '{name}', and it is {self.pattern} along axis {held.axis}. Make a new plan."
                raise PlanMismatch(msg)

    def _record(self, candidate: Candidate, work: _Work, unfit: list[str]) -> None:
        """Record a weight that obeys, and do no more than needed to see that others do not."""
        if candidate.refusal is not None:
            return
        # Infinities obey as well as others; nothing is altered here.
        if is_obeyed(candidate.held, self._pattern):
            work.obeyed(candidate, candidate.held.tensor.size // self._pattern.group)
        else:
            unfit.append(candidate.name)

    def _look_at(self, model: ir.Model, candidate: Candidate, work: _Work) -> None:
        """Record, alter or skip one weight."""
        name = candidate.name
        if self.plan is not None and name not in self.plan.axes:
            if candidate.refusal is None:
                work.skips.append(Skip(name, "the plan does not list it", "add it to the plan"))
            return
        if candidate.refusal is not None:
            work.skips.append(candidate.refusal)
            return
        if name in self.keep or any(
            product.node.name in self.keep for product in candidate.products
        ):
            work.skips.append(Skip(name, "you asked to keep it", "drop --keep"))
            return
        found = fit(candidate.held, self._pattern)
        if found is None:
            reason = (
                "it holds NaN or an infinity, so that what is largest in a group is not known"
            )
            work.skips.append(
                Skip(name, reason, "repair the weight; training may have diverged")
            )
            return
        mask = None if self.masks is None else self.masks.get(name)
        if mask is not None:
            self._apply(model, candidate, mask, found, work)
        elif found.obeying == found.groups:
            work.obeyed(candidate, found.groups)
        elif self.force is not None:
            self._force(model, candidate, found, work)
        elif self.plan is not None:
            msg = f"the plan wants '{name}' to obey {self.pattern}, and {found.groups - found.obeying} of its {found.groups} groups do not. Set 'force', or delete the entry."
            raise PlanMismatch(msg)
        else:
            work.skips.append(
                Skip(
                    name,
                    f"{_percent(1 - found.share)} of its groups have more than {self.pattern} allows; the best mask "
                    f"would keep {_percent(found.kept)} of its magnitude",
                    "train it with the pattern ('deploykit find'), or force it, which changes the outputs: "
                    "--set sparse-2-4.force=magnitude",
                )
            )

    def _force(self, model: ir.Model, candidate: Candidate, found: Fit, work: _Work) -> None:
        """Zero the smallest of every group."""
        held, pattern = candidate.held, self._pattern

        def derive(array: Array, rows: slice) -> Array:
            scale = held.scale
            if held.axis != 0:
                part = None if scale is None else scale[rows] if scale.shape[0] > 1 else scale
                return sparsify(array[rows], held.axis, pattern, scale=part)
            # Groups that a slice cuts through are looked at whole.
            start, stop, _ = rows.indices(array.shape[0])
            first, last = (
                start // pattern.group * pattern.group,
                -(-stop // pattern.group) * pattern.group,
            )
            part = None if scale is None else scale[first:last] if scale.shape[0] > 1 else scale
            return sparsify(array[first:last], 0, pattern, scale=part)[
                start - first : stop - first
            ]

        value = _writable(model, held.value)
        weights.set_derived(value, derive, held.shape)
        work.altered(
            value,
            candidate,
            found,
            f"the largest {pattern.kept} of each {pattern.group} stay, {_percent(found.kept)} of the magnitude",
        )

    def _apply(
        self, model: ir.Model, candidate: Candidate, mask: Array, found: Fit, work: _Work
    ) -> None:
        """Zero what a mask drops."""
        held, array = candidate.held, candidate.array
        if mask.shape != array.shape:
            msg = f"the mask of '{held.name}' has shape {list(mask.shape)}, its weight {list(array.shape)}. Make masks for this model."
            raise PlanMismatch(msg)
        masked = np.where(mask, array, np.zeros((), array.dtype))
        if not obeys(masked, held.axis, self._pattern):
            msg = f"what the mask leaves of '{held.name}' does not obey {self.pattern} along axis {held.axis}. Make the mask along that axis, or leave it out."
            raise PlanMismatch(msg)
        if np.array_equal(masked, array):
            work.obeyed(candidate, found.groups)
            return
        value = _writable(model, held.value)
        weights.set_tensor(value, masked)
        work.altered(value, candidate, found, "as the mask says")


class _Work:
    """What came of the weights so far."""

    def __init__(
        self,
        pattern: Pattern,
        reasons: dict[str, str],
        changes: list[Change],
        skips: list[Skip],
    ) -> None:
        self.pattern = pattern
        self.reasons = reasons
        self.changes = changes
        self.skips = skips

    def obeyed(self, candidate: Candidate, groups: int) -> None:
        """A weight obeys as it came."""
        what = f"groups along axis {candidate.held.axis} that obey {self.pattern}, as it came"
        self.changes.append(Change(candidate.name, what, groups, groups))
        self.reasons[candidate.name] = "it obeys as it came"

    def altered(self, value: ir.Value, candidate: Candidate, found: Fit, how: str) -> None:
        """A weight was altered; what is stored now is looked at again.

        Raises:
            PassError: it does not obey.
        """
        held = candidate.held
        array = weights.constant(value)
        if array is None or not obeys(array, held.axis, self.pattern):
            msg = f"Pass developer: '{held.name}' was made to obey {self.pattern}, and does not"
            raise PassError(msg)
        what = f"groups along axis {held.axis} that obey {self.pattern}: {how}"
        self.changes.append(Change(held.name, what, found.obeying, found.groups))
        self.reasons[held.name] = how


def _writable(model: ir.Model, value: ir.Value) -> ir.Value:
    """The initializer that holds a weight; a Constant node becomes one."""
    node = value.producer()
    return value if node is None else weights.lift(node, model.graph)


def _percent(share: float) -> str:
    """A share in whole percent; what is not all is not 100, and what is not nothing not 0."""
    percent = 100 * share
    if 0 < percent < 1:
        return "less than 1 %"
    return f"{int(percent) if percent > 99 else round(percent)} %"
