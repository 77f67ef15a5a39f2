"""How much memory there is, is free, and was moved to swap."""

from __future__ import annotations

import dataclasses
import re

__all__ = ["Memory", "read_memory"]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory at one moment, in bytes; None where the system does not tell.

    Attributes:
        total_bytes: all of it.
        available_bytes: what a process could have without anything being swapped.
        swap_total_bytes: room for what is moved out.
        swap_used_bytes: what was moved out.
        zram_used_bytes: what of that lies compressed in memory, and not on a disk.
    """

    total_bytes: int | None
    available_bytes: int | None
    swap_total_bytes: int | None
    swap_used_bytes: int | None
    zram_used_bytes: int | None


def read_memory(meminfo: str, swaps: str = "") -> Memory:
    """Read /proc/meminfo and /proc/swaps."""
    known = {
        name: int(kilobytes) * 1024
        for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)
    }
    total, free = known.get("SwapTotal"), known.get("SwapFree")
    zram = re.findall(r"^/dev/zram\d+\s+\S+\s+\d+\s+(\d+)", swaps, re.MULTILINE)
    return Memory(
        known.get("MemTotal"),
        known.get("MemAvailable"),
        total,
        None if total is None or free is None else total - free,
        sum(map(int, zram)) * 1024 if swaps else None,
    )
