"""Which of several forms of a model is handed out: a rule over measured ratios, and nothing else.

1. The *plain* form (exact removal) stands unless it is proven slower than the original. If it is, a form that fills its
   counts up again, but has fewer parameters than the original all the same, stands on the same terms: it is a removal
   that leaves a few dead channels in place.
2. A form that *adds* structure (padding, bias maps, ...) must be proven at least 2 % faster than the best form that is
   there without it; forms that add one thing are decided before forms that add two. Of those that are as fast as the fastest
   one, as far as can be told, the one with the fewest parameters is taken.
3. What was chosen must not be proven slower than the original.

When the rule cannot decide, the simpler form stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from deploykit.profile.statistics import WORTH, Ratio, adds_enough, stands

__all__ = ["ORIGINAL", "Choice", "Form", "choose", "shortlist"]

ORIGINAL = "original"
"""Name of the model as it came."""

ALIKE = 1.01
"""Forms whose medians differ by less, and neither of which is proven slower, are as fast as each other."""

RatioOf: TypeAlias = Callable[[str, str], Ratio]
"""`ratio_of(candidate, baseline)`: time of the one over that of the other."""


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of the model.

    Attributes:
        name: its name; no two have the same.
        added: what it adds to the plain form, one word each; empty for the plain form.
    """

    name: str
    added: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was decided.

    Attributes:
        name: the chosen form, or `ORIGINAL`.
        reason: why, in a sentence.
    """

    name: str
    reason: str


def choose(
    plain: Form,
    forms: Sequence[Form],
    ratio_of: RatioOf,
    smaller: Collection[str] = frozenset(),
    parameters: Mapping[str, int] | None = None,
) -> Choice:
    """Choose among the original, the plain form and forms that add structure.

    Args:
        plain: exact removal, nothing added.
        forms: the others that were measured.
        ratio_of: measured ratios between any two of them, and `ORIGINAL`.
        smaller: names of the forms that have fewer parameters than the original.
        parameters: how many each form has; None: that decides nothing.
    """
    against_original = ratio_of(plain.name, ORIGINAL)
    if stands(against_original):
        current = Choice(
            plain.name,
            f"'{plain.name}' stands: {_said(against_original)} of the original's time",
        )
    else:
        current = Choice(
            ORIGINAL,
            f"'{plain.name}' is slower than the original: {_said(against_original)} of its time",
        )
        partly = [
            form
            for form in forms
            if form.name in smaller and stands(ratio_of(form.name, ORIGINAL))
        ]
        if partly:
            best = min(
                partly, key=lambda form: (len(form.added), ratio_of(form.name, ORIGINAL).median)
            )
            ratio = ratio_of(best.name, ORIGINAL)
            current = Choice(
                best.name,
                f"'{best.name}' is smaller than the original and stands: {_said(ratio)} of its time, where"
                f" '{plain.name}' is slower",
            )
    for level in _levels(forms):
        worth = [form for form in level if adds_enough(ratio_of(form.name, current.name))]
        if worth:
            best = _best(worth, ratio_of, parameters or {})
            ratio = ratio_of(best.name, current.name)
            current = Choice(
                best.name, f"'{best.name}' takes {_said(ratio)} of the time of '{current.name}'"
            )
    # Each step was a gain on the one before, yet their intervals add up; the promise is about the original.
    if current.name not in {ORIGINAL, plain.name} and not stands(
        ratio_of(current.name, ORIGINAL)
    ):
        ratio = ratio_of(current.name, ORIGINAL)
        return Choice(
            ORIGINAL,
            f"'{current.name}' is slower than the original: {_said(ratio)} of its time",
        )
    return current


def shortlist(
    plain: Form, forms: Sequence[Form], ratio_of: RatioOf, *, most: int = 3
) -> list[Form]:
    """The forms worth a long measurement, judged by a short one that proves little.

    Kept are those that may still turn out to be worth their structure, the fastest first, and of every level the
    fastest, because a form that adds two things has to beat those that add one.
    """
    is_plain_fine = stands(ratio_of(plain.name, ORIGINAL))
    reference, limit = (plain.name, WORTH) if is_plain_fine else (ORIGINAL, 1.0)
    hopeful = [form for form in forms if ratio_of(form.name, reference).lo < limit]
    hopeful.sort(key=lambda form: ratio_of(form.name, ORIGINAL).median)
    leaders: list[Form] = []
    for form in hopeful:
        if not any(len(form.added) == len(leader.added) for leader in leaders):
            leaders.append(form)
    rest = [form for form in hopeful if form not in leaders]
    kept: Collection[Form] = (leaders + rest)[: max(most, len(leaders))]
    return [form for form in forms if form in kept]


def _best(forms: Sequence[Form], ratio_of: RatioOf, parameters: Mapping[str, int]) -> Form:
    """The fastest form, or the smallest of those that are as fast."""
    fastest = min(forms, key=lambda form: ratio_of(form.name, ORIGINAL).median)
    equal = [
        form
        for form in forms
        if form is fastest
        or (
            stands(ratio_of(form.name, fastest.name))
            and ratio_of(form.name, fastest.name).median <= ALIKE
        )
    ]
    return min(
        equal,
        key=lambda form: (
            parameters.get(form.name, 0),
            ratio_of(form.name, ORIGINAL).median,
        ),
    )


def _levels(forms: Sequence[Form]) -> list[list[Form]]:
    counts = sorted({len(form.added) for form in forms})
    return [[form for form in forms if len(form.added) == count] for count in counts]


def _said(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} [{ratio.lo:.3f}, {ratio.hi:.3f}]"
