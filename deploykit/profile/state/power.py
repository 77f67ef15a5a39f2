"""What a machine draws: INA3221 rails of Jetson boards, and the energy counters of processors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from deploykit.profile.state.seen import matching

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["energy_j", "rails_w", "total_w", "wraps_at_j"]

WHOLE: Final = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that feed the whole board."""
PARTS: Final = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that together feed the board, where none does alone: AGX Orin, AGX Xavier.

Source: NVIDIA's Jetson Linux developer guides, "Power and performance", rails of each module.
"""


def rails_w(files: Mapping[str, str]) -> dict[str, float]:
    """Watts by rail, from the sensors of the kind INA3221: those of Linux's own driver, and of JetPack 4's."""
    found: dict[str, float] = {}
    for path, rail in matching(files, "/sys/class/hwmon/hwmon*/in*_label"):
        folder, _, name = path.rpartition("/")
        if files.get(f"{folder}/name", "").strip() != "ina3221":
            continue
        number = re.sub(r"\D", "", name)
        # Millivolts and milliamperes; the sum of the shunts is no rail.
        volts, amperes = (
            _thousandths(files.get(f"{folder}/{kind}{number}_input")) for kind in ("in", "curr")
        )
        if volts is not None and amperes is not None and _is_rail(rail):
            found[rail] = volts * amperes
    for path, rail in matching(
        files, "/sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"
    ):
        folder, _, name = path.rpartition("/")
        watts = _thousandths(
            files.get(f"{folder}/in_power{name.removeprefix('rail_name_')}_input")
        )
        if watts is not None and _is_rail(rail):
            found[rail] = watts
    return found


def energy_j(files: Mapping[str, str]) -> dict[str, float]:
    """Joules by domain of the processor, counted from some moment on: Intel's and AMD's RAPL.

    Since 2020 Linux shows them to the administrator only, so that there often are none.
    """
    return {
        _domain(files, path): int(text) * 1e-6
        for path, text in matching(files, "/sys/class/powercap/intel-rapl:*/energy_uj")
        if text.isdecimal()
    }


def wraps_at_j(files: Mapping[str, str]) -> dict[str, float]:
    """Joules at which the counter of a domain begins again at zero."""
    return {
        _domain(files, path): int(text) * 1e-6
        for path, text in matching(
            files, "/sys/class/powercap/intel-rapl:*/max_energy_range_uj"
        )
        if text.isdecimal()
    }


def total_w(watts: Mapping[str, float]) -> tuple[str, float] | None:
    """What the whole machine draws, as far as its rails tell: their names and watts; None where they do not tell."""
    for rail in WHOLE:
        if rail in watts:
            return rail, watts[rail]
    for rails in PARTS:
        if all(rail in watts for rail in rails):
            return " + ".join(rails), sum(watts[rail] for rail in rails)
    # Other domains of a processor are parts of its packages, and a GPU has its own supply.
    packages = [name for name in watts if re.match(r"(package-\d+|GPU \d+)$", name)]
    if packages:
        return " + ".join(packages), sum(watts[name] for name in packages)
    return None


def _domain(files: Mapping[str, str], path: str) -> str:
    folder = path.rpartition("/")[0]
    zone = folder.rpartition(":")[0]
    name = files.get(f"{folder}/name", "").strip()
    # Domains within a package have the same names in each.
    within = files.get(f"{zone}/name", "").strip() if zone.count(":") else ""
    return f"{within} {name}".strip() or folder.rpartition("/")[2]


def _is_rail(name: str) -> bool:
    return bool(name) and name != "NC" and "sum of" not in name


def _thousandths(text: str | None) -> float | None:
    try:
        return None if text is None else int(text) * 1e-3
    except ValueError:
        return None
