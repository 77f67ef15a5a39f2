"""TensorRT and TensorRT-RTX: two packages with one Python API, and what sets them and their versions apart."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from deploykit.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["FAMILY", "FULL", "RTX", "Api", "Family", "load", "version"]


@dataclasses.dataclass(frozen=True)
class Family:
    """One of the packages.

    Attributes:
        name: of the runtime, as `--runtime` takes it.
        package: what is imported.
        title: what it is called.
        install: how it gets here.
        majors: the major versions that this code is written for.
        has_timing_cache: whether builds are faster with what an earlier one timed. TensorRT-RTX times nothing when it builds.
    """

    name: str
    package: str
    title: str
    install: str
    majors: tuple[int, ...]
    has_timing_cache: bool


FULL = Family(
    "tensorrt",
    "tensorrt",
    "TensorRT",
    "pip install 'tensorrt>=10,<12' (it comes from NVIDIA's own package index)",
    (10, 11),
    has_timing_cache=True,
)
RTX = Family(
    "tensorrt-rtx",
    "tensorrt_rtx",
    "TensorRT-RTX",
    "pip install tensorrt-rtx",
    (1,),
    has_timing_cache=False,
)
FAMILY = {family.name: family for family in (FULL, RTX)}


@dataclasses.dataclass(frozen=True)
class Api:
    """An imported package.

    Attributes:
        family: which it is.
        module: it.
        version: its version.
    """

    family: Family
    module: Any
    version: str

    @property
    def about(self) -> str:
        """Name and version."""
        return f"{self.family.name} {self.version}"

    @property
    def network_flags(self) -> int:
        """What a network has to be created with to be strongly typed: types are those of the model.

        Version 10 has to be told; later ones, and TensorRT-RTX, know nothing else.
        """
        if self.family is FULL and major(self.version) < 11:
            return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return 0


def load(family: Family) -> Api:
    """Import a package.

    Raises:
        RuntimeUnavailable: it is not there, its libraries are not, or it is a version that this code is not written for.
    """
    try:
        module: ModuleType = importlib.import_module(family.package)
    except (ImportError, OSError) as error:
        # A package without its libraries is an ImportError as well, or an OSError.
        said = " ".join(str(error).split())
        msg = f"{family.title} cannot be imported: {said}. Install it with {family.install}."
        raise RuntimeUnavailable(msg) from error
    found = str(module.__version__)
    if major(found) not in family.majors:
        known = " and ".join(str(number) for number in family.majors)
        msg = f"{family.title} {found} is none of the versions that deploykit knows ({known}): {family.install}."
        raise RuntimeUnavailable(msg)
    return Api(family, module, found)


def version(family: Family) -> str | None:
    """The installed version, without importing it; None if it is not installed."""
    try:
        return importlib.metadata.version(family.package)
    except importlib.metadata.PackageNotFoundError:
        return None


def major(text: str) -> int:
    """The major version: 11 of "11.4.0.106"; -1 of what is no version."""
    head = text.split(".", 1)[0]
    return int(head) if head.isdecimal() else -1
