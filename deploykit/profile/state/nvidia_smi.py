"""Reads what NVML knows of a GPU, as `nvidia-smi --query-gpu=... --format=csv` prints it.

Columns are found by name: drivers since 535 head "clocks_throttle_reasons.active" with "clocks_event_reasons.active",
and a figure that a GPU does not have is "[N/A]", "N/A", "[Not Supported]" or a sentence.

Source: `nvidia-smi --help-query-gpu`; nvml.h for the bits.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from typing import Final

__all__ = ["Gpu", "read_gpus"]

MIB = 1 << 20
REASONS: Final = {
    0x02: "the clocks that applications asked for",
    0x04: "the power limit",
    0x08: "a slowdown in hardware",
    0x10: "the boost of a group of GPUs",
    0x20: "heat",
    0x40: "heat (in hardware)",
    0x80: "the power supply's brake",
    0x100: "the clocks that a display asked for",
}
"""What holds the clock back. Bit 1 is an idle GPU. Source: nvmlClocksEventReason* in nvml.h."""

HEAT: Final = 0x20 | 0x40
POWER: Final = 0x04 | 0x80


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU at one moment; what it does not tell is None.

    Attributes:
        number: of it.
        name: as its driver calls it.
        driver: version of the driver.
        hz: clock of its multiprocessors.
        max_hz: the highest that it can have.
        memory_hz: clock of its memory.
        celsius: its temperature.
        power_w: what it draws.
        power_limit_w: what it may draw.
        default_power_limit_w: what it may draw if nobody said otherwise.
        load: share of the time that it was busy, 0 to 1.
        memory_total_bytes: its memory.
        memory_used_bytes: what of it is in use.
        reasons: bits that say what holds its clock back.
    """

    number: int
    name: str
    driver: str
    hz: float | None
    max_hz: float | None
    memory_hz: float | None
    celsius: float | None
    power_w: float | None
    power_limit_w: float | None
    default_power_limit_w: float | None
    load: float | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    reasons: int

    @property
    def held_back_by(self) -> tuple[str, ...]:
        """What holds its clock back, in words."""
        return tuple(text for bit, text in REASONS.items() if self.reasons & bit)


def read_gpus(lines: str) -> tuple[Gpu, ...]:
    """Read a table with a header, or the lines of one that is repeated; none if it is something else.

    Args:
        lines: the output, with units in the header or in the cells. Of a table that is repeated (`--loop`) each line is
            a GPU at another moment.
    """
    rows = list(csv.reader(lines.splitlines(), skipinitialspace=True))
    header: list[str] = []
    found = []
    for row in rows:
        names = [re.sub(r"\s*\[.*\]$", "", cell.strip()) for cell in row]
        if "index" in names and "name" in names:
            header = names
        elif header and len(row) == len(header):
            gpu = _gpu(dict(zip(header, row, strict=True)))
            if gpu is not None:
                found.append(gpu)
    return tuple(found)


def _gpu(cells: dict[str, str]) -> Gpu | None:
    def number(*names: str) -> float | None:
        for name in names:
            found = re.match(
                r"(-?\d+(?:\.\d+)?)\s*(?:[A-Za-z%]+)?\s*$", cells.get(name, "").strip()
            )
            if found:
                return float(found[1])
        return None

    def scaled(by: float, *names: str) -> float | None:
        found = number(*names)
        return None if found is None else found * by

    def mebibytes(name: str) -> int | None:
        found = number(name)
        return None if found is None else int(found) * MIB

    index = number("index")
    if index is None:
        return None
    bits = next(
        (text.strip() for name, text in cells.items() if name.endswith("_reasons.active")), ""
    )
    return Gpu(
        number=int(index),
        name=cells.get("name", "").strip(),
        driver=cells.get("driver_version", "").strip(),
        hz=scaled(1e6, "clocks.current.sm", "clocks.sm"),
        max_hz=scaled(1e6, "clocks.max.sm"),
        memory_hz=scaled(1e6, "clocks.current.memory", "clocks.mem"),
        celsius=number("temperature.gpu"),
        power_w=number("power.draw", "power.draw.instant"),
        power_limit_w=number("enforced.power.limit", "power.limit"),
        default_power_limit_w=number("power.default_limit"),
        load=scaled(0.01, "utilization.gpu"),
        memory_total_bytes=mebibytes("memory.total"),
        memory_used_bytes=mebibytes("memory.used"),
        reasons=int(bits, 16) if re.fullmatch(r"0x[0-9A-Fa-f]+", bits) else 0,
    )
