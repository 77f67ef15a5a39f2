"""Runs models: one module a runtime, its heavy import inside.

A runtime says what it can do here, each claim with its reason, because "installed", "reads the model" and "runs it on
this machine" are different things.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

__all__ = ["RUNTIMES", "Capabilities", "Claim", "Dim", "TensorSpec"]

RUNTIMES: tuple[str, ...] = ("onnxruntime",)
"""Names that `--runtime` takes."""

Dim: TypeAlias = int | str | None
"""A size; a symbol where it is dynamic and named; None where it is dynamic and nameless."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One thing that a runtime can or cannot do here.

    Attributes:
        holds: whether it can.
        reason: how that is known, or what is missing.
    """

    holds: bool
    reason: str

    def __bool__(self) -> bool:
        """Whether it can."""
        return self.holds


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a runtime can do on this machine.

    Attributes:
        runtime: its name, one of `RUNTIMES`.
        version: its version; None where it is not installed.
        importable: whether its Python package can be imported.
        can_parse: whether it reads ONNX models.
        can_build: whether it builds something executable from them.
        can_run: whether it runs that here.
        reports_sparsity: whether it says which layers run in a sparse form.
        providers: the devices it can run on here, in its own words.
    """

    runtime: str
    version: str | None
    importable: Claim
    can_parse: Claim
    can_build: Claim
    can_run: Claim
    reports_sparsity: Claim
    providers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model, as the runtime sees it.

    Attributes:
        name: its name.
        dtype: numpy's name of its element type ("float32", "int64", "bool", "bfloat16", "str").
        shape: its sizes.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether any size is only known at run time."""
        return not all(isinstance(size, int) for size in self.shape)
