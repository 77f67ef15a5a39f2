"""Which weights can obey an N:M pattern, and why the others stay dense."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from deploykit.errors import UsageError
from deploykit.finder.nm.pattern import Pattern
from passes.base import Skip

__all__ = ["Eligible", "find_eligible"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Eligible:
    """Weights that an N:M mask is for.

    Attributes:
        names: in the order of the network.
        skips: a line for each that stays dense.
    """

    names: tuple[str, ...]
    skips: tuple[Skip, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """The skips in words."""
        return tuple(f"'{skip.subject}' stays dense: {skip.reason}" for skip in self.skips)


def find_eligible(
    model: nn.Module, names: Sequence[str], pattern: Pattern, *, task: str = "model"
) -> Eligible:
    """The weights of convolutions and linear layers whose channels come in whole groups.

    Args:
        model: the network.
        names: weights that may be pruned.
        pattern: N:M.
        task: what a message calls the network.

    Raises:
        UsageError: there is none.
    """
    modules = dict(model.named_modules())
    found, skips = [], []
    for name in names:
        owner, _, leaf = name.rpartition(".")
        skip = _why_not(name, modules.get(owner) if leaf == "weight" else None, pattern)
        if skip is None:
            found.append(name)
        else:
            skips.append(skip)
    if not found:
        reasons = "; ".join(f"'{each.subject}': {each.reason}" for each in skips[:MOST_NAMED])
        more = "; ..." if len(skips) > MOST_NAMED else ""
        msg = (
            f"no weight of the model of the task '{task}' can be {pattern}: {reasons}{more}. Take a pattern that divides its "
            "channels, or another width."
        )
        raise UsageError(msg)
    return Eligible(tuple(found), tuple(skips))


def _why_not(name: str, module: nn.Module | None, pattern: Pattern) -> Skip | None:
    """Why a weight stays dense; None if it need not."""
    size = pattern.group
    if isinstance(module, CONVOLUTIONS):
        groups = module.groups
        inputs, outputs = module.in_channels // groups, module.out_channels // groups
        if inputs == 1 and groups > 1:
            reason = (
                "it is depthwise: each output reads one channel, of which no group can be made"
            )
            return Skip(name, reason, "nothing is to be done: it has few weights")
    elif isinstance(module, nn.Linear):
        groups, inputs, outputs = 1, module.in_features, module.out_features
    else:
        reason = "it is no weight of a convolution or a linear layer"
        return Skip(name, reason, "leave it out of what is to be pruned")
    of_each = " in each of its groups" if groups > 1 else ""
    if inputs % size:
        reason = f"it reads {inputs:,} channels{of_each}, no multiple of {size}"
        return Skip(name, reason, f"make them a multiple of {size}")
    if pattern.transposable and outputs % size:
        reason = f"it makes {outputs:,} channels{of_each}, no multiple of {size}, which a transposable pattern needs"
        return Skip(
            name, reason, f"make them a multiple of {size}, or leave --transposable out"
        )
    return None
