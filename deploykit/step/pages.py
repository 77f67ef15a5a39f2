"""What a CI system shows of a step, written outside of its result folder: there whatever the step comes to.

An error leaves the result folder as it was, with the documents of an earlier result in it; these say that there is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.atomic import write_whole
from deploykit.errors import DeploykitError, UsageError
from deploykit.step import junit, summary
from deploykit.step.recipe_file import read_recipe

if TYPE_CHECKING:
    from deploykit.step.records import StepResult
    from deploykit.step.runner import Request
    from deploykit.step.secrets import Secrets

__all__ = ["Pages"]


@dataclasses.dataclass(frozen=True)
class Pages:
    """Where they are written.

    Attributes:
        junit: the JUnit XML, anew; None if it is not asked for.
        summary: the Markdown summary, behind what is there; None if it is not asked for.
    """

    junit: Path | None
    summary: Path | None

    def check(self, request: Request) -> None:
        """Refuse places that cannot be written to, before any work is done for them.

        Those in the result folder are of them: it is replaced as a whole, and holds documents of its own.

        Raises:
            UsageError: one of them is such a place.
        """
        files = {"--junit": self.junit, "--summary": self.summary}
        if not any(files.values()):
            return
        for option, file in files.items():
            if file is not None:
                _check_place(option, file)
        try:
            recipe = read_recipe(request.recipe, settings=request.settings, on=request.on)
        except DeploykitError:
            return  # told by the step, in these very documents
        for option, file in files.items():
            if file is not None and file.resolve().is_relative_to(recipe.output):
                msg = (
                    f"{option} '{file}' lies in the result folder '{recipe.output}', which holds one of its own and is "
                    "replaced as a whole. Give another place."
                )
                raise UsageError(msg)

    def write(self, result: StepResult, secrets: Secrets) -> None:
        """Write what came of a step.

        Raises:
            UsageError: it cannot be written.
        """
        if self.junit is not None:
            _write(self.junit, junit.to_xml(result, secrets))
        if self.summary is not None:
            summary.append(self.summary, summary.to_markdown(result, secrets))

    @contextlib.contextmanager
    def told_of_errors(self, recipe: Path, secrets: Secrets) -> Iterator[None]:
        """Write an error that ends a step, and let it go on its way.

        Args:
            recipe: its file, by which the step is called: nobody knows whether it can be read.
            secrets: what must not be told.
        """
        began = time.perf_counter()
        try:
            yield
        except Exception as error:
            # The error that ends the step is the one to be told, not that its documents cannot be written.
            with contextlib.suppress(UsageError):
                if self.junit is not None:
                    elapsed_s = time.perf_counter() - began
                    text = junit.error_to_xml(recipe.stem, error, elapsed_s, secrets)
                    _write(self.junit, text)
            with contextlib.suppress(UsageError):
                if self.summary is not None:
                    text = summary.error_to_markdown(recipe.stem, error, secrets)
                    summary.append(self.summary, text)
            raise


def _check_place(option: str, file: Path) -> None:
    why = "permission is denied"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            why = "it is a folder"
        elif os.access(file if file.exists() else file.parent, os.W_OK):
            return
    except OSError as error:
        why = error.strerror or str(error)
    msg = f"cannot write to '{file}': {why}. Give another file with {option}."
    raise UsageError(msg)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        msg = f"cannot write the JUnit XML to '{path}': {error.strerror}. Give another file with --junit."
        raise UsageError(msg) from error
