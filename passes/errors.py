"""Exceptions of the passes.

PassError(onnx_ir.passes.PassError)
├─ PlanMismatch      a plan that was made for another model
├─ BudgetMissed      what was asked for cannot be reached: the best that can, and why
├─ CouplingConflict  two masks disagree on one group: names both, and the node where they meet
└─ UnsupportedGraph  a node or tensor that cannot be handled at all: subject and reason

Every message says what (the subject's name and numbers), why, and what to do.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["BudgetMissed", "CouplingConflict", "PassError", "PlanMismatch", "UnsupportedGraph"]


class PassError(ir.passes.PassError):
    """A pass could not do its work; the model it was given is not to be used."""


class PlanMismatch(PassError):
    """The plan names tensors or sizes that the model does not have."""


class BudgetMissed(PassError):
    """A budget that cannot be reached; the message says what can, and why not more."""


class CouplingConflict(PassError):
    """Two masks disagree on channels that only exist together."""


class UnsupportedGraph(PassError):
    """The graph holds something that no analysis here understands.

    Args:
        subject: name of the node or tensor.
        reason: why it cannot be handled, and what to do.
    """

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"'{subject}': {reason}")
        self.subject = subject
        self.reason = reason
