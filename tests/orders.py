"""Random orders of channels, to hold passes against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.channels import find_channels
from passes.planners.lines import find_lines

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["draw_orders"]


def draw_orders(model: ir.Model, dice: np.random.Generator) -> dict[str, tuple[int, ...]]:
    """A random order for every line of channels that planners take for one whose order can change, by the name plans use."""
    drawn = {}
    for line in find_lines(find_channels(model))[0]:
        order, free = np.arange(line.classes.size), np.flatnonzero(~line.frozen)
        order[free] = dice.permutation(free)
        drawn[line.name] = tuple(int(at) for at in order)
    return drawn
