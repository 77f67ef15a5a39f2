"""The power mode of a Jetson board, and whether its clocks are fixed: `nvpmodel` and `jetson_clocks`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

__all__ = [
    "Clock",
    "PowerMode",
    "are_fixed",
    "fastest_mode",
    "kept_mode",
    "read_clocks",
    "read_mode",
]


@dataclasses.dataclass(frozen=True)
class PowerMode:
    """How much the board may draw, which limits cores and clocks.

    Attributes:
        name: "MAXN", "MODE_15W_6CORE", "25W".
        number: what `nvpmodel -m` takes; None where it was not told.
    """

    name: str
    number: int | None

    @property
    def is_unlimited(self) -> bool:
        """Whether it is the mode without a limit: MAXN, MAXN_SUPER."""
        return self.name.upper().startswith("MAXN")


@dataclasses.dataclass(frozen=True)
class Clock:
    """What a clock may be and is, in hertz."""

    low_hz: float
    high_hz: float
    hz: float

    @property
    def is_fixed(self) -> bool:
        """Whether it may not change."""
        return self.low_hz == self.high_hz


def read_mode(text: str) -> PowerMode | None:
    """Read `nvpmodel -q`, or `nvpmodel -q --verbose`; None if it is something else.

    The name is on a line "NV Power Mode: MAXN", behind other words or alone, and the number on the next one. Old
    releases write "NV Fan Mode:quiet" before it.
    """
    found = re.search(r"NV Power Mode:\s*(\S+)[^\n]*(?:\n\s*(\d+)\s*(?:\n|$))?", text)
    if found is None:
        return None
    return PowerMode(found[1], None if found[2] is None else int(found[2]))


def kept_mode(status: str, config: str) -> PowerMode | None:
    """The mode by files that everybody may read, where `nvpmodel -q` wants rights; None where they do not say.

    Args:
        status: /var/lib/nvpmodel/status, "pmode:0002 fmode:quiet".
        config: /etc/nvpmodel.conf, which names the numbers.
    """
    found = re.search(r"pmode:\s*(\d+)", status)
    if found is None:
        return None
    number = int(found[1])
    return next((mode for mode in _modes(config) if mode.number == number), None)


def fastest_mode(config: str) -> PowerMode | None:
    """The mode without a limit that /etc/nvpmodel.conf lists; None where it lists none.

    It is number 0 on most boards, and number 2 on an Orin Nano with JetPack 6.2. Source: lines of that file such as
    "< POWER_MODEL ID=0 NAME=MAXN >".
    """
    # MAXN_SUPER is faster than MAXN.
    return max(
        (mode for mode in _modes(config) if mode.is_unlimited),
        key=lambda mode: len(mode.name),
        default=None,
    )


def _modes(config: str) -> list[PowerMode]:
    listed = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", config, re.MULTILINE
    )
    return [PowerMode(name, int(number)) for number, name in listed]


def read_clocks(text: str) -> dict[str, Clock]:
    """Read `jetson_clocks --show`: clocks of cores, "GPU" and "EMC" (memory), by name.

    Cores that are offline are left out. The oldest form writes "Gonvernor", and no "Online".
    """
    found = {}
    for name, online, low, high, now in re.findall(
        r"^\s*(cpu\d+|GPU|EMC)\b:?\s*(?:Online=(\d)\s+)?(?:Gon?vernor=\S+\s+)?MinFreq=(\d+)\s+MaxFreq=(\d+)\s+CurrentFreq=(\d+)",
        text,
        re.MULTILINE,
    ):
        # Cores are told in kilohertz, everything else in hertz.
        scale = 1e3 if name.startswith("cpu") else 1.0
        if online != "0":
            found[name] = Clock(*(float(each) * scale for each in (low, high, now)))
    return found


def are_fixed(clocks: Mapping[str, Clock]) -> bool | None:
    """Whether the clocks of cores and GPU are fixed, as `jetson_clocks` does; None where nothing is known.

    That of the memory has a floor of its own, and does not say it.
    """
    known = [clock.is_fixed for name, clock in clocks.items() if name != "EMC"]
    return all(known) if known else None
