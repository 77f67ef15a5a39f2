"""Temperatures, and how often heat or current held clocks back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.profile.state.seen import matching

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["temperatures_c", "throttle_counts"]

# The sensors of processors; those of disks and network cards say nothing of how fast a model runs.
CHIPS = frozenset({"coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal"})
COLDEST_C, HOTTEST_C = -50.0, 200.0
FIXED = ("pmic",)
"""On Jetson boards the zone of that name is a constant: 100 or 50 degrees, whatever happens."""


def temperatures_c(files: Mapping[str, str]) -> dict[str, float]:
    """Degrees Celsius by sensor: thermal zones by their types, and the sensors of processors.

    Zones that are switched off tell -256 degrees, or nothing; they are left out.
    """
    found: dict[str, float] = {}
    for path, text in matching(files, "/sys/class/thermal/thermal_zone*/temp"):
        folder = path.rpartition("/")[0]
        kind = files.get(f"{folder}/type", "").strip() or folder.rpartition("/")[2]
        _add(found, kind, text)
    for path, text in matching(files, "/sys/class/hwmon/hwmon*/temp*_input"):
        folder, _, name = path.rpartition("/")
        chip = files.get(f"{folder}/name", "").strip()
        if chip in CHIPS:
            label = files.get(f"{folder}/{name.removesuffix('_input')}_label", "").strip()
            _add(found, f"{chip} {label}".strip(), text)
    return found


def _add(found: dict[str, float], name: str, text: str) -> None:
    try:
        celsius = int(text) / 1e3
    except ValueError:
        return
    if COLDEST_C < celsius < HOTTEST_C and not name.lower().startswith(FIXED):
        # Several zones may have one type.
        while name in found:
            name += "'"
        found[name] = celsius


def throttle_counts(files: Mapping[str, str]) -> dict[str, int]:
    """How often clocks were held back since the machine was started, by what did it.

    Cores of one package share its count, so that the largest of each kind is what happened.
    """
    found: dict[str, int] = {}
    for path, text in matching(
        files, "/sys/devices/system/cpu/*/thermal_throttle/*_throttle_count"
    ):
        name = path.rpartition("/")[2].removesuffix("_throttle_count")
        if text.isdecimal():
            found[name] = max(found.get(name, 0), int(text))
    for path, text in matching(files, "/sys/class/hwmon/hwmon*/oc*_event_cnt"):
        name = path.rpartition("/")[2].removesuffix("_event_cnt")
        if text.isdecimal():
            found[f"over-current {name}"] = int(text)
    return found
