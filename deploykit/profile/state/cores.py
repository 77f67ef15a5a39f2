"""The cores of a processor, each with its kind, clock and governor."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from deploykit.profile.state.soc import core_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.profile.state.seen import Seen

__all__ = ["Core", "kinds_text", "read_cores"]

FOLDER = "/sys/devices/system/cpu/"


@dataclasses.dataclass(frozen=True)
class Core:
    """A core, as the operating system counts them.

    Attributes:
        number: of it.
        kind: what it is, "Cortex-A78AE"; None where only the whole processor has a name.
        is_online: whether it runs at all.
        hz: its clock at the moment; None where it is unknown.
        low_hz: the lowest clock that it may have now.
        high_hz: the highest clock that it may have now.
        max_hz: the highest clock that it can have.
        governor: how its clock is chosen; None where nothing chooses.
    """

    number: int
    kind: str | None
    is_online: bool
    hz: float | None
    low_hz: float | None
    high_hz: float | None
    max_hz: float | None
    governor: str | None

    @property
    def is_fixed(self) -> bool | None:
        """Whether its clock may not change; None where that is unknown."""
        if self.low_hz is None or self.high_hz is None:
            return None
        return self.low_hz == self.high_hz


def read_cores(seen: Seen) -> tuple[Core, ...]:
    """The cores that a machine lists; none where it lists none."""
    numbers: set[int] = set()
    for path in seen.files:
        found = re.match(rf"{FOLDER}cpu(\d+)/", path)
        if found:
            numbers.add(int(found[1]))
    kinds = _kinds(seen.text("/proc/cpuinfo"))
    return tuple(_core(seen, number, kinds) for number in sorted(numbers | kinds.keys()))


def _core(seen: Seen, number: int, kinds: Mapping[int, str]) -> Core:
    clock = f"{FOLDER}cpu{number}/cpufreq/"

    def hertz(name: str) -> float | None:
        text = seen.text(clock + name)
        return float(text) * 1e3 if text.isdecimal() else None

    return Core(
        number,
        kinds.get(number),
        # The first core of many machines cannot be switched off, and has no such file.
        seen.text(f"{FOLDER}cpu{number}/online") != "0",
        hertz("scaling_cur_freq"),
        hertz("scaling_min_freq"),
        hertz("scaling_max_freq"),
        hertz("cpuinfo_max_freq"),
        seen.text(clock + "scaling_governor") or None,
    )


def _kinds(cpuinfo: str) -> dict[int, str]:
    """Kinds of Arm cores, by number."""
    found = {}
    for block in re.split(r"\n\s*\n", cpuinfo):
        keys = dict(re.findall(r"^([^:\t]+?)\s*:\s*(.*)$", block, re.MULTILINE))
        if "CPU part" in keys and keys.get("processor", "").isdecimal():
            kind = core_name(keys.get("CPU implementer", ""), keys["CPU part"])
            if kind is not None:
                found[int(keys["processor"])] = kind
    return found


def kinds_text(cores: Sequence[Core]) -> tuple[str, ...]:
    """Kinds of cores in words, "4 x Cortex-A55 up to 1.80 GHz", the fastest last.

    None where cores are all alike and have no name of their own.
    """
    groups: dict[tuple[float, str], int] = {}
    for core in cores:
        key = (core.max_hz or 0.0, core.kind or "")
        groups[key] = groups.get(key, 0) + 1
    if all(not kind for _, kind in groups) and len(groups) < 2:
        return ()
    return tuple(
        f"{count} x {kind or 'core'}{f' up to {hz / 1e9:.2f} GHz' if hz else ''}"
        for (hz, kind), count in sorted(groups.items())
    )
