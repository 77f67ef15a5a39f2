"""From what a recipe calls a device to the place where models are measured, and how they run there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.profile.remote.devices_file import FILE
from deploykit.profile.remote.named_places import NamedPlace, find_places

if TYPE_CHECKING:
    from deploykit.profile import Place
    from deploykit.profile.remote.address import Tell
    from deploykit.step.records import StepRecipe

__all__ = ["Spot", "find", "open_spots"]


@dataclasses.dataclass(frozen=True, eq=False)
class Spot:
    """A place that is ready, and how models run there.

    Attributes:
        place: it.
        address: where that is, in words.
        threads: threads of the sessions.
        runtime: what runs the models.
    """

    place: Place
    address: str
    threads: int
    runtime: str


def find(on: str, folder: Path) -> NamedPlace:
    """The place that is meant. Nothing is connected yet.

    Args:
        on: "here", an address, or the name of a device.
        folder: where the recipe lies; a `devices.toml` there comes first.

    Raises:
        UsageError: there is no such place, or several are named at once.
    """
    from deploykit.errors import UsageError

    file = folder / FILE
    found = find_places(on, file=file if file.is_file() else None)
    if len(found) > 1:
        msg = f"'{on}' names {len(found)} devices at once. Give each a table [[devices]] of its own."
        raise UsageError(msg)
    return found[0]


@contextlib.contextmanager
def open_spots(recipe: StepRecipe, tell: Tell) -> Iterator[Mapping[str, Spot]]:
    """The devices of a recipe, connected, by name; afterwards nothing is left there.

    Args:
        recipe: the recipe.
        tell: told what is going on.

    Raises:
        RuntimeUnavailable: one of them cannot be reached, or lacks what is needed.
    """
    with contextlib.ExitStack() as opened:
        spots = {}
        for device in recipe.devices:
            named = find(device.on, recipe.folder)
            how = {
                "threads": recipe.optimize.threads,
                "runtime": recipe.optimize.runtime,
                **named.settings(),
            }
            address = "here" if named.host is None else str(named.host.address)
            place = opened.enter_context(named.open(tell))
            spots[device.name] = Spot(place, address, how["threads"], how["runtime"])
        yield spots
