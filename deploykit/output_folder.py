"""A result folder that appears whole or not at all, and never takes anything of the user's with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["OWN_FILES", "OutputFolder"]

OWN_FILES = frozenset(
    {"model.onnx", "model.onnx.data", "report.json", "report.html", "recipe.toml"}
)
"""What a result folder holds; only such files are ever replaced."""


class OutputFolder:
    """A folder beside the destination, which takes its place when all is well.

    Used as a context manager: what is written under `path` is thrown away unless `commit` is called.

    Args:
        destination: where the result is to appear.
        force: whether results of an earlier run may be replaced.
        sources: files that must stay as they are.

    Raises:
        UsageError: the destination is a file, holds something that would be lost, or holds a source.
    """

    def __init__(
        self, destination: Path, *, force: bool = False, sources: Sequence[Path] = ()
    ) -> None:
        self.destination = destination.resolve()
        self._check(force=force, sources=sources)

    def __enter__(self) -> Self:
        parent = self.destination.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            # Beside the destination, so that moving it there is one rename on one file system.
            self._holder = Path(
                tempfile.mkdtemp(prefix=f".{self.destination.name}.", dir=parent)
            )
        except OSError as error:
            blocker = next((each for each in self.destination.parents if each.is_file()), None)
            why = f"'{blocker}' is a file" if blocker else error.strerror
            msg = f"cannot write to '{self.destination}': {why}. Choose another place."
            raise UsageError(msg) from error
        self.path = self._holder / "result"
        self.path.mkdir()
        self.work = self._holder / "work"
        self.work.mkdir()
        return self

    def commit(self) -> None:
        """Put the folder in its place."""
        old = self._holder / "old"
        if self.destination.exists():
            self.destination.rename(old)
        try:
            self.path.rename(self.destination)
        except OSError:
            if old.exists():
                old.rename(self.destination)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._holder, ignore_errors=True)

    def _check(self, *, force: bool, sources: Sequence[Path]) -> None:
        place = self.destination
        if not place.exists():
            return
        if not place.is_dir():
            msg = f"cannot write the result to '{place}': it is a file. Give a folder."
            raise UsageError(msg)
        held = sorted(file.name for file in place.iterdir())
        for source in sources:
            if source.resolve().parent == place:
                msg = f"the result cannot go to '{place}': the model '{source.name}' lies there. Give another folder."
                raise UsageError(msg)
        foreign = [name for name in held if name not in OWN_FILES]
        if foreign:
            msg = f"'{place}' holds '{foreign[0]}', which is no result of deploykit. Give an empty or a new folder."
            raise UsageError(msg)
        if held and not force:
            msg = f"'{place}' already holds a result ('{held[0]}'). Give --force to replace it, or another folder."
            raise UsageError(msg)
