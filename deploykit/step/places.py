"""From what a recipe calls a device to the place where models are measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.profile import HERE

if TYPE_CHECKING:
    from deploykit.profile import Place
    from deploykit.profile.address import Tell

__all__ = ["find"]


def find(on: str, tell: Tell | None = None) -> Place:
    """The place that is meant. Nothing is connected yet: entering it does that.

    Args:
        on: "here", an address, or the name of a device.
        tell: told what is going on there.

    Raises:
        UsageError: there is no such place.
        RuntimeUnavailable: what is needed to get there is not installed.
    """
    if on == "here":
        return HERE
    from deploykit.profile.address import find_place

    return find_place(on, tell=tell)
