"""Runs models: one module a runtime, its heavy import inside.

A runtime says what it can do here, each claim with its reason, because "installed", "reads the model" and "runs it on
this machine" are different things. One that is asked to run where it cannot is an error with that reason, and never a
silent step back to another one.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from deploykit.errors import RuntimeUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.report.sparse_records import SparseTime, SparseVerdict

__all__ = [
    "DEFAULT",
    "ENGINES",
    "RUNTIMES",
    "Array",
    "Capabilities",
    "Claim",
    "DeviceSession",
    "Dim",
    "LayerSeconds",
    "Runner",
    "TensorSpec",
    "capabilities",
    "check_name",
    "require",
    "start",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

DEFAULT = "onnxruntime"

RUNTIMES: tuple[str, ...] = (DEFAULT, "tensorrt", "tensorrt-rtx", "trtexec", "torch")
"""Names that `--runtime` takes."""

ENGINES: tuple[str, ...] = ("tensorrt", "tensorrt-rtx")
"""Names that `--engine` takes: those that build a file which runs without them having seen the model."""

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


@dataclasses.dataclass(frozen=True)
class LayerSeconds:
    """What the layers that a runtime made of a model take in one run.

    Attributes:
        seconds: of each, by the runtime's name for it.
        ran_as: what ran it, in words; the name itself where that says it.
        whole_s: of the whole, without a profiler.
        runs: how many profiled runs the figures are from.
    """

    seconds: Mapping[str, float]
    ran_as: Mapping[str, str]
    whole_s: float
    runs: int


class DeviceSession(Protocol):
    """A model that is ready to run on a device with a clock of its own."""

    def run(self, names: None, feeds: Mapping[str, Array]) -> list[Array]:
        """Run it once, from host memory to host memory; the outputs in the model's order."""

    def device_s(self, feeds: Mapping[str, Array]) -> float:
        """Run it once; seconds by the device's clock, with inputs and outputs in its own memory."""

    def get_providers(self) -> list[str]:
        """The device it runs on, in the words of its driver."""

    def close(self) -> None:
        """Give the memory back."""


class Runner(Protocol):
    """Runs models for measuring, in another runtime than ONNX Runtime."""

    @property
    def about(self) -> str:
        """Name and version of the runtime, and what of a model it runs."""

    def open(self, path: Path, feeds: Mapping[str, Array]) -> DeviceSession:
        """Make a model ready to run on inputs of these shapes.

        Raises:
            ModelError: the runtime refuses the model, or these shapes.
        """

    def profile_layers(
        self, path: Path, feeds: Mapping[str, Array], *, duration_s: float
    ) -> LayerSeconds:
        """Time the layers that it makes of a model.

        Raises:
            ModelError: the runtime refuses the model, or these shapes.
        """

    def sparse_verdict(self, path: Path, feeds: Mapping[str, Array]) -> SparseVerdict | None:
        """What is known of sparse kernels in the model; None if the runtime chooses none by itself."""

    def sparse_times(self, path: Path, feeds: Mapping[str, Array]) -> tuple[SparseTime, ...]:
        """Layers timed dense and in their sparse form, if the runtime can be told which to take."""


def check_name(name: str) -> None:
    """Refuse what is no runtime.

    Raises:
        UsageError: the message names those there are.
    """
    if name not in RUNTIMES:
        msg = f"there is no runtime '{name}'. There are: {', '.join(RUNTIMES)}."
        raise UsageError(msg)


def capabilities(name: str) -> Capabilities:
    """Say what a runtime can do on this machine; never raises for a name of `RUNTIMES`.

    What may crash is tried in a process of its own, which takes up to some seconds.
    """
    check_name(name)
    found: Capabilities = _module(name).capabilities()
    return found


def require(name: str) -> None:
    """Refuse to go on where a runtime does not run models.

    Raises:
        UsageError: there is no such runtime.
        RuntimeUnavailable: it does not run here; the message says why, and what to do.
    """
    if name == DEFAULT:
        # It is always there; if not, the first session says so.
        return
    found = capabilities(name)
    if not found.can_run:
        others = "; 'deploykit runtimes' says what each runtime can do here"
        msg = f"{name} cannot run models on this machine: {found.can_run.reason.rstrip('.')}{others}."
        raise RuntimeUnavailable(msg)


def start(name: str) -> Runner | None:
    """What runs models in that runtime; None for ONNX Runtime, which needs nothing of the kind.

    Raises:
        UsageError: there is no such runtime.
        RuntimeUnavailable: it does not run here.
    """
    require(name)
    if name == DEFAULT:
        return None
    runner: Runner = _module(name).start()
    return runner


def _module(name: str) -> Any:  # noqa: ANN401 - a module
    return importlib.import_module(f"deploykit.runtimes.{name.replace('-', '_')}")
