"""What watches passes run: timing, dumps of the graph, narration. An instrument never changes a model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploykit.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.base import PassReport

__all__ = ["Dump", "Instrument", "Memory", "Timing"]


class Instrument(Protocol):
    """Hooks around every pass of a pipeline."""

    def before(self, name: str, model: ir.Model) -> None:
        """Called before a pass runs."""

    def after(self, report: PassReport, model: ir.Model) -> None:
        """Called after it has run."""


class Timing:
    """Keeps how long each pass took.

    Attributes:
        seconds: wall time by pass, in the order they ran.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = 0.0

    def before(self, name: str, model: ir.Model) -> None:
        """Start the clock."""
        del name, model
        self._start = time.perf_counter()

    def after(self, report: PassReport, model: ir.Model) -> None:
        """Stop the clock."""
        del model
        spent = time.perf_counter() - self._start
        self.seconds[report.name] = self.seconds.get(report.name, 0.0) + spent


class Memory:
    """Keeps the last report of each pass, of forms that came to nothing as well.

    Attributes:
        reports: by pass.
    """

    def __init__(self) -> None:
        self.reports: dict[str, PassReport] = {}

    def before(self, name: str, model: ir.Model) -> None:
        """Nothing yet."""
        del name, model

    def after(self, report: PassReport, model: ir.Model) -> None:
        """Keep the report."""
        del model
        self.reports[report.name] = report


class Dump:
    """Writes the graph as text before the first pass and after each: `000_source.txt`, `010_tidy.txt`, ...

    Args:
        folder: where to; made if missing. Older dumps in it are deleted, and nothing else ever is.

    Raises:
        UsageError: the folder holds files that are no dumps.
    """

    OWN = re.compile(r"\d{3}_[a-z0-9-]+\.txt")

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files = list(folder.iterdir())
        foreign = [file.name for file in files if not self.OWN.fullmatch(file.name)]
        if foreign:
            msg = f"the dump folder '{folder}' holds other files, '{foreign[0]}' first. Choose an empty one."
            raise UsageError(msg)
        for file in files:
            file.unlink()
        self._folder = folder
        self._count = 0

    def before(self, name: str, model: ir.Model) -> None:
        """Write the source, once."""
        del name
        if self._count == 0:
            self._write("source", model)

    def after(self, report: PassReport, model: ir.Model) -> None:
        """Write what the pass made."""
        self._write(report.name, model)

    def _write(self, name: str, model: ir.Model) -> None:
        path = self._folder / f"{self._count * 10:03d}_{name}.txt"
        path.write_text(str(model), encoding="utf-8")
        self._count += 1
