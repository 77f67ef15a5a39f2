"""Which chip it is, on which board: from the device tree, NVIDIA's release file and the processor's own numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from deploykit.profile.state.seen import Seen

__all__ = ["board", "core_name", "jetson_release", "soc"]

ARM: Final = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4B: "Cortex-A78C",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
    0xD83: "Neoverse-V3AE",
    0xD84: "Neoverse-V3",
    0xD85: "Cortex-X925",
    0xD87: "Cortex-A725",
    0xD8E: "Neoverse-N3",
    0xC07: "Cortex-A7",
    0xC09: "Cortex-A9",
    0xC0F: "Cortex-A15",
    0xB76: "ARM1176",
}
NVIDIA: Final = {0x003: "Denver 2", 0x004: "Carmel"}  # codespell:ignore
"""Names of cores by "CPU part" for the implementers 0x41 and 0x4e. Source: arch/arm64/include/asm/cputype.h of Linux."""

IMPLEMENTERS: Final = {0x41: ARM, 0x4E: NVIDIA}


def board(seen: Seen) -> str | None:
    """What the board is called, by its device tree: "Raspberry Pi 5 Model B Rev 1.0"; None where there is none."""
    return _first_line(seen.text("/proc/device-tree/model"))


def soc(seen: Seen) -> str | None:
    """The chip: "tegra234", "bcm2712"; None where no device tree says it.

    A device tree lists what a board is compatible with from the most to the least particular; the last is the chip.
    """
    names = [name for name in seen.text("/proc/device-tree/compatible").splitlines() if name]
    return names[-1].rpartition(",")[2] if names else None


def jetson_release(seen: Seen) -> str | None:
    """NVIDIA's Linux for Jetson, "R36.4.3"; None elsewhere.

    Source: the first line of /etc/nv_tegra_release, "# R36 (release), REVISION: 4.3, GCID: ...".
    """
    found = re.search(
        r"R(\d+) \(release\), REVISION: ([\d.]+)", seen.text("/etc/nv_tegra_release")
    )
    return f"R{found[1]}.{found[2]}" if found else None


def core_name(implementer: str, part: str) -> str | None:
    """The kind of an Arm core by two numbers of /proc/cpuinfo, "0x41" and "0xd42"; None if it is not known."""
    try:
        return IMPLEMENTERS.get(int(implementer, 0), {}).get(int(part, 0))
    except ValueError:
        return None


def _first_line(text: str) -> str | None:
    lines = text.splitlines()
    return lines[0].strip() or None if lines else None
