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
from passes.planners.alignment import plan_alignment

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.targets import Target

__all__ = ["AlignChannels"]


class AlignChannels(Pass):
    """Zero-pad coupled channels up to a multiple.

    Args:
        multiple: the count wanted, per group for grouped convolutions; 1 leaves all as it is.

    Raises:
        ValueError: `multiple` is not positive.
    """

    name = "align-channels"
    exact = True
    adds_structure = True
    summary: ClassVar[str] = "zero-pad channel counts to a multiple the runtime likes"

    def __init__(self, *, multiple: int = 16) -> None:
        if multiple < 1:
            msg = f"cannot align channels to multiples of {multiple}: give a positive number, 8 or 16 say"
            raise ValueError(msg)
        self.multiple = multiple

    def call(self, model: ir.Model) -> PassReport:
        """Plan and carry out."""
        if self.multiple == 1:
            return PassReport(self.name, self.exact, modified=False)
        channels = find_channels(model)
        alignment = plan_alignment(channels, multiple=self.multiple)
        if alignment.plan:
            surgery.operate(model, alignment.replay.edits, alignment.replay.shapes)
        return PassReport(
            self.name,
            self.exact,
            modified=bool(alignment.plan),
            changes=alignment.changes,
            skips=alignment.skips,
        )

    @classmethod
    def variants(cls, target: Target) -> tuple[Mapping[str, Option], ...]:
        """The multiples that are worth trying on the target."""
        return tuple({"multiple": multiple} for multiple in target.multiples)
