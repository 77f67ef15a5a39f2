"""Graph knowledge: analyses, plans and passes for pruned ONNX models.

    import onnx_ir as ir
    import passes

    model = ir.load("pruned.onnx")
    for rewrite in (passes.Tidy(), passes.RemoveChannels(), passes.InferShapes()):
        print(rewrite(model))

Everything here needs numpy, scipy and onnx_ir only. A pass of your own is a subclass of `Pass`.
"""

from __future__ import annotations

from typing import Final

from passes.align_channels import AlignChannels
from passes.base import Change, Option, Pass, PassReport, Skip
from passes.errors import (
    BudgetMissed,
    CouplingConflict,
    PassError,
    PlanMismatch,
    UnsupportedGraph,
)
from passes.group_blocks import GroupBlocks
from passes.infer_shapes import InferShapes
from passes.permute_channels import PermuteChannels
from passes.plans import BlockPlan, ChannelPlan, PermutePlan, SparsePlan
from passes.prune_channels import PruneChannels
from passes.remove_channels import RemoveChannels
from passes.set_precision import SetPrecision
from passes.sparse_2_4 import Sparse24
from passes.targets import TARGETS, Target
from passes.tidy import Tidy

__all__ = [
    "BUILTIN",
    "TARGETS",
    "AlignChannels",
    "BlockPlan",
    "BudgetMissed",
    "Change",
    "ChannelPlan",
    "CouplingConflict",
    "GroupBlocks",
    "InferShapes",
    "Option",
    "Pass",
    "PassError",
    "PassReport",
    "PermuteChannels",
    "PermutePlan",
    "PlanMismatch",
    "PruneChannels",
    "RemoveChannels",
    "SetPrecision",
    "Skip",
    "Sparse24",
    "SparsePlan",
    "Target",
    "Tidy",
    "UnsupportedGraph",
]

BUILTIN: Final[tuple[type[Pass], ...]] = (
    Tidy,
    PruneChannels,
    RemoveChannels,
    PermuteChannels,
    GroupBlocks,
    AlignChannels,
    SetPrecision,
    InferShapes,
    Sparse24,
)
"""The passes there are, in the order in which they run; only exact ones run unasked."""
