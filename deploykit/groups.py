"""Which layers share their channels: they can only be pruned, cut and padded together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deploykit.report.records import Group

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.tags import Pin

__all__ = ["find_groups"]


def find_groups(model: ir.Model) -> tuple[Group, ...]:
    """The groups of a model; those whose last layer comes first are first.

    Raises:
        PassError: the model cannot be analysed.
    """
    from passes.analysis.channels import find_channels
    from passes.analysis.walk import label
    from passes.tidy import Tidy

    plain = model.clone()
    Tidy()(plain)
    channels = find_channels(plain)
    groups: list[tuple[list[str], set[int]]] = []
    for node in plain.graph:
        if node not in channels.trace.sources:
            continue
        # Class 0 stands for what has no channels of its own.
        classes = set(
            np.unique(channels.roots[channels.trace.get(node.outputs[0])]).tolist()
        ) - {0}
        names = [label(node)]
        apart = []
        for group in groups:
            if group[1] & classes:
                names, classes = group[0] + names, group[1] | classes
            else:
                apart.append(group)
        groups = [*apart, (names, classes)] if classes else groups
    return tuple(_group(names, classes, channels.pinned) for names, classes in groups)


def _group(names: list[str], classes: set[int], pinned: Mapping[int, Pin]) -> Group:
    held = sorted(classes & set(pinned))
    reasons = dict.fromkeys(pinned[each].reason for each in held)
    return Group(tuple(names), len(classes), len(held), "; ".join(reasons))
