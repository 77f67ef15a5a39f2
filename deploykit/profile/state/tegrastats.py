"""Reads lines of NVIDIA's `tegrastats`, which differ between boards and releases.

Seen so far: clocks missing, plain, or in a list by GPU cluster; rails without a unit, in mW, and with a third figure;
temperatures with a second figure; a date in front of it all.

Source: "tegrastats Utility", Jetson Linux developer guides of releases 32 to 39; the texts under tests/deploykit/states.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from deploykit.profile.state.heat import COLDEST_C, FIXED

__all__ = ["Tegrastats", "read_line"]

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Tegrastats:
    """What one line says.

    Attributes:
        memory_used_bytes: memory in use; None where the line does not say so, as everywhere below.
        memory_total_bytes: memory of the board, which its GPU shares.
        swap_used_bytes: memory that was moved to swap.
        core_loads: share of the time that each core was busy, 0 to 1; None for cores that are switched off.
        core_hz: clock of each core; None where it is off, or not told.
        gpu_load: share of the time that the GPU was busy, 0 to 1.
        gpu_hz: its clock; that of the fastest cluster, if there are several.
        memory_hz: clock of the memory.
        temperatures_c: degrees Celsius by sensor.
        power_w: watts by rail.
    """

    memory_used_bytes: int | None
    memory_total_bytes: int | None
    swap_used_bytes: int | None
    core_loads: tuple[float | None, ...]
    core_hz: tuple[float | None, ...]
    gpu_load: float | None
    gpu_hz: float | None
    memory_hz: float | None
    temperatures_c: Mapping[str, float]
    power_w: Mapping[str, float]


def read_line(line: str) -> Tegrastats | None:
    """Read a line; None if it is none of tegrastats."""
    memory = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    cores = re.search(r"\bCPU \[([^\]]*)\](?:@(\d+))?", line)
    if memory is None and cores is None:
        return None
    swap = re.search(r"\bSWAP (\d+)/(\d+)MB", line)
    gpu = re.search(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?", line)
    emc = re.search(r"\bEMC_FREQ (?:(\d+)%)?(?:@(\d+))?", line)
    each = [] if cores is None else [_core(part, cores[2]) for part in cores[1].split(",")]
    return Tegrastats(
        None if memory is None else int(memory[1]) * MIB,
        None if memory is None else int(memory[2]) * MIB,
        None if swap is None else int(swap[1]) * MIB,
        tuple(load for load, _ in each),
        tuple(hertz for _, hertz in each),
        int(gpu[1]) / 100 if gpu and gpu[1] else None,
        _megahertz(gpu[2]) if gpu else None,
        _megahertz(emc[2]) if emc else None,
        {
            name: float(celsius)
            for name, celsius in re.findall(r"(\S+)@(-?\d+(?:\.\d+)?)C(?=[\s/]|$)", line)
            # A sensor that is switched off says -256.
            if float(celsius) > COLDEST_C and not name.lower().startswith(FIXED)
        },
        _rails(line),
    )


def _core(part: str, common_mhz: str | None) -> tuple[float | None, float | None]:
    """Load and clock of a core: of "12%@1420", of "12%" with one clock for all, or of "off"."""
    found = re.fullmatch(r"\s*(\d+)%(?:@(\d+))?\s*", part)
    if found is None:
        return None, None
    return int(found[1]) / 100, _megahertz(found[2] or common_mhz)


def _rails(line: str) -> dict[str, float]:
    """Watts by rail: of "VDD_IN 3056/3056", "VDD_IN 5079mW/5079mW" and "VDD_CPU_CV 3268mW/3268mW/3268mW".

    The first figure is of this moment, the second the mean since tegrastats began, the third the largest.
    """
    return {
        name: int(milliwatts) * 1e-3
        for name, milliwatts in re.findall(
            r"(?<!\S)([A-Z][A-Za-z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?:/\d+(?:mW)?)?(?!\S)", line
        )
        if name != "NC"
    }


def _megahertz(text: str | None) -> float | None:
    """Hertz; None where nothing is told, or nothing runs."""
    if not text:
        return None
    return max((float(part) for part in text.split(",") if part), default=0.0) * 1e6 or None
