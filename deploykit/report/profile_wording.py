"""How ratios of times are put into words, the same on a terminal and in a document."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deploykit.report.profile_records import OutlierRow

__all__ = ["labels", "outliers_text", "seconds_text", "speed_text"]


def speed_text(ratio: float, lo: float, hi: float) -> str:
    """A ratio of times as people say it: "1.42 ± 0.03 times faster", "1.10 ± 0.02 times slower".

    Where the interval reaches 1 nothing is claimed, and the figures stand for themselves.

    Args:
        ratio: time over that of the baseline.
        lo: lower end of its interval.
        hi: upper end of its interval.
    """
    if lo <= 1.0 <= hi:
        return f"no difference proven: {ratio:.2f} [{lo:.2f}, {hi:.2f}]"
    is_faster = hi < 1.0
    factor, low, high = (1 / ratio, 1 / hi, 1 / lo) if is_faster else (ratio, lo, hi)
    half = (high - low) / 2
    digits = 2
    # A difference that is proven must not be rounded away, nor its precision.
    while digits < 5 and (round(factor, digits) == 1.0 or round(half, digits) == 0.0):
        digits += 1
    word = "faster" if is_faster else "slower"
    return f"{factor:.{digits}f} ± {half:.{digits}f} times {word}"


def seconds_text(seconds: float | None) -> str:
    """Seconds in the unit that suits them, with three digits."""
    if seconds is None:
        return "-"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds * 1e6)} us"


def _three_digits(number: float) -> str:
    decimals = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{decimals}f}"


def outliers_text(rows: Sequence[OutlierRow], samples: int) -> str:
    """How many samples lie far out, and why."""
    count = sum(row.count for row in rows)
    if not count:
        return ""
    parts = "; ".join(f"{row.count} {row.source}" for row in rows)
    return f"{count} of {samples} runs lie far out: {parts}"


def labels(paths: Sequence[Path]) -> tuple[str, ...]:
    """Short names for paths: as many of their last parts as tell them apart; a path given twice gets a number."""
    whole = [Path(os.path.abspath(path)).parts for path in paths]  # noqa: PTH100 - links stay what the user calls them
    distinct = set(whole)
    short = {}
    for parts in distinct:
        rest = distinct - {parts}
        count = next(
            (
                count
                for count in range(1, len(parts))
                if all(other[-count:] != parts[-count:] for other in rest)
            ),
            len(parts),
        )
        short[parts] = str(Path(*parts[-count:]))
    seen: dict[str, int] = {}
    found = []
    for parts in whole:
        name = short[parts]
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)
