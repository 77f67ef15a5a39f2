"""Exceptions of the application, each with the exit code of the command that it ends.

DeploykitError                      70  if it ever escapes unclassified
├─ UsageError                        2  a bad option, recipe or input file
├─ ModelError                        3  the model can't be handled; nothing was written
│   ├─ UnsupportedModel                 e.g. a sparse initializer, a missing data file
│   └─ PassFailed                       wraps a pass's error with the steps that were done before it
├─ RuntimeUnavailable                4  says which package to install, or which device was not found
└─ GateFailed                        1  the answer is "no": a budget of accuracy or latency was missed

Every message says what (the subject's name and numbers), why, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DeploykitError",
    "GateFailed",
    "ModelError",
    "PassFailed",
    "RuntimeUnavailable",
    "UnsupportedModel",
    "UsageError",
]


class DeploykitError(Exception):
    """Something went wrong; base of all errors that deploykit raises on purpose.

    Attributes:
        exit_code: what the process exits with when this error ends it.
    """

    exit_code: ClassVar[int] = 70


class UsageError(DeploykitError):
    """What was asked for makes no sense: an option, a recipe, an input file."""

    exit_code = 2


class ModelError(DeploykitError):
    """The model cannot be handled; nothing was written."""

    exit_code = 3


class UnsupportedModel(ModelError):
    """The model holds something that deploykit refuses, with the reason."""


class PassFailed(ModelError):
    """A pass could not do its work.

    Args:
        name: the pass that failed.
        reason: its message.
        done: names of the passes that had already run, in order.
    """

    def __init__(self, name: str, reason: str, *, done: Sequence[str] = ()) -> None:
        after = f" (after {', '.join(done)})" if done else ""
        super().__init__(f"pass '{name}' failed{after}: {reason}")
        self.name = name
        self.reason = reason
        self.done = tuple(done)


class RuntimeUnavailable(DeploykitError):
    """A runtime, one of its providers or a device is not there."""

    exit_code = 4


class GateFailed(DeploykitError):
    """The answer is "no": the result misses a budget that was set for it."""

    exit_code = 1
