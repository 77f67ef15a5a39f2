"""What a pass is: a named rewrite of a model that reports what it changed and what it refused.

A pass is *exact* (the function of the model stays the same up to the order of floating-point sums) or *lossy*.
Everything a pass has to say is in its PassReport; it prints nothing and keeps no state between calls.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from passes.errors import PassError

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.plans import Plan
    from passes.targets import Target

__all__ = ["Change", "Option", "Pass", "PassReport", "Skip"]

Option: TypeAlias = str | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class Skip:
    """Something a pass did not do, and why.

    Attributes:
        subject: name of the tensor or node, with the channels concerned where it is about some of them.
        reason: why it was left alone, in words.
        advice: what the user can do about it.
    """

    subject: str
    reason: str
    advice: str


@dataclasses.dataclass(frozen=True)
class Change:
    """Something a pass did.

    Attributes:
        subject: name of the tensor or node.
        what: what was done, in words ("output channels", "carrier for 12 channels", ...).
        before: the count before (channels, elements; the unit is in `what`).
        after: the count after.
    """

    subject: str
    what: str
    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class PassReport:
    """The result of one pass.

    Attributes:
        name: the pass's name.
        exact: whether the pass preserves the function.
        modified: whether the model was changed.
        changes: what was changed.
        skips: what was left alone, and why.
        plan: what was carried out, of passes that take a plan: given to the same pass as its option `plan`, it is done again;
            what is deleted from it is left alone.
    """

    name: str
    exact: bool
    modified: bool
    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()
    plan: Plan | None = dataclasses.field(default=None, compare=False)


class Pass(abc.ABC):
    """A rewrite of a model, in place.

    Options are keyword-only arguments of the constructor and are kept as attributes of the same name. Subclasses
    declare `name` (kebab case), `exact` and the first line of their docstring, which is the help text.

    Attributes:
        name: kebab case.
        exact: whether the function of the model stays the same; of a pass that is lossy with some options only, set by its
            constructor (see `is_exact_with`).
        adds_structure: whether it only ever adds to a model, so that nothing but a measurement can justify it.
        plan_kind: the class of its option `plan`, if it has one.
    """

    name: ClassVar[str]
    exact: bool
    adds_structure: ClassVar[bool] = False
    plan_kind: ClassVar[type[Plan] | None] = None

    def __call__(self, model: ir.Model) -> PassReport:
        """Rewrite `model` in place.

        Raises:
            PassError: the model cannot be handled, or the result is not sound. The model may then be half
                rewritten: callers that need it afterwards work on a clone.
        """
        self.requires(model)
        report = self.call(model)
        if report.name != self.name or report.exact != self.exact:
            msg = (
                f"Pass developer: the report of '{self.name}' carries another name or exactness"
            )
            raise PassError(msg)
        self.ensures(model)
        return report

    @abc.abstractmethod
    def call(self, model: ir.Model) -> PassReport:
        """Do the work."""

    def requires(self, model: ir.Model) -> None:  # noqa: B027 - optional by design
        """Check what must hold before the pass."""

    def ensures(self, model: ir.Model) -> None:  # noqa: B027 - optional by design
        """Check what must hold after the pass."""

    @classmethod
    def is_exact_with(cls, options: Mapping[str, object]) -> bool:
        """Whether the function stays the same with these options; the others have their defaults."""
        del options
        return cls.exact

    @classmethod
    def variants(cls, target: Target) -> tuple[Mapping[str, Option], ...]:
        """Sets of options whose worth only a measurement on the target tells; empty if there is one form only."""
        del target
        return ()
