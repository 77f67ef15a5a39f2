"""What commands advise in terms of their options, in terms of recipes: `--shape` is `optimize.shape` there.

A step does what `optimize` and `profile` do, whose warnings and errors name options that `deploykit run` does not have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from deploykit.errors import DeploykitError

if TYPE_CHECKING:
    from deploykit.report.profile_records import ProfileReport
    from deploykit.report.records import Report

    Warned = TypeVar("Warned", Report, ProfileReport)

__all__ = ["OPTIONS", "in_words_of_recipes", "reworded", "warnings_of", "without_options"]

OPTIONS: Mapping[str, str] = {
    **{
        f"--{key.replace('_', '-')}": f"optimize.{key}"
        for key in (
            *("shape", "threads", "runtime", "target", "tolerance", "keep", "choose", "engine"),
            *("passes", "compute_capability"),
        )
    },
    **{f"--{key}": f"inputs.{key}" for key in ("ticket", "masks", "plan")},
    "--inputs": "inputs.examples",
    **{f"--{key}": f"measure.{key}" for key in ("duration", "warmup", "rebuilds")},
    "--no-profile": "optimize.profile = false",
}
"""Options of other commands, and the keys of a recipe that do the same; `--set` takes the latter, too."""

NO_KEY = re.compile(r",? or --batch\b")
OPTION = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, OPTIONS))})(?![\w-])")
SIZES = re.compile(r"\bfigures are for .*")


def in_words_of_recipes(text: str) -> str:
    """A text with keys of a recipe where options were."""
    return OPTION.sub(lambda found: OPTIONS[found[0]], NO_KEY.sub("", text))


def reworded(report: Warned) -> Warned:
    """A report with warnings for who writes a recipe."""
    warnings = tuple(map(in_words_of_recipes, report.warnings))
    return dataclasses.replace(report, warnings=warnings)


@contextlib.contextmanager
def without_options() -> Iterator[None]:
    """Put keys of a recipe into what is told of an error."""
    try:
        yield
    except DeploykitError as error:
        error.args = tuple(
            in_words_of_recipes(part) if isinstance(part, str) else part for part in error.args
        )
        raise


def warnings_of(report: Report, profiles: Mapping[str, ProfileReport]) -> Sequence[str]:
    """What both say, each with its device, and once: of the same sizes both say that they were assumed."""
    told = {found[0] for each in report.warnings if (found := SIZES.search(each))}
    return [
        *report.warnings,
        *(
            f"{name}: {warning}"
            for name, profile in profiles.items()
            for warning in profile.warnings
            if not ((found := SIZES.search(warning)) and found[0] in told)
        ),
    ]
