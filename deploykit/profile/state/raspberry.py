"""Why a Raspberry Pi holds its clock back: `vcgencmd get_throttled`."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["read_throttled"]

NOW: Final = {
    0: "under-voltage",
    1: "a cap on its clock",
    2: "throttling",
    3: "its soft temperature limit",
}
"""Bits of what is the case; 16 bits higher stands what was since it was started.

Source: Raspberry Pi documentation, "vcgencmd", get_throttled.
"""


def read_throttled(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is the case now, and what was since the start, in words; of "throttled=0x50005".

    Without such a figure both are empty.
    """
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", text)
    bits = int(found[1], 16) if found else 0
    return (
        tuple(what for bit, what in NOW.items() if bits >> bit & 1),
        tuple(what for bit, what in NOW.items() if bits >> (bit + 16) & 1),
    )
