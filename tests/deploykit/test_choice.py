"""The rule that decides what is handed out, on ratios that are given."""

from __future__ import annotations

import pytest

from deploykit.choice import ORIGINAL, Form, choose, shortlist
from deploykit.profile.statistics import Ratio

PLAIN = Form("as is")
PADDED = Form("padded", frozenset({"align"}))
WIDER = Form("wider", frozenset({"align"}))
MAPPED = Form("mapped", frozenset({"map"}))
BOTH = Form("mapped + padded", frozenset({"align", "map"}))


def ratios(times, spread=0.005):
    """A `ratio_of` from a time for each form, with intervals of that relative width to each side."""
    known = {ORIGINAL: 1.0, **times}

    def ratio_of(candidate, baseline):
        ratio = known[candidate] / known[baseline]
        low, high = ratio * (1 - spread), ratio * (1 + spread)
        return Ratio(
            ratio, low, high, "cpu", noisy=False, clean_share=1.0, rounds=30, rebuilds=3
        )

    return ratio_of


def test_removal_stands_without_a_proven_gain():
    assert choose(PLAIN, [], ratios({"as is": 1.004})).name == "as is"


def test_removal_that_is_proven_slower_is_dropped():
    choice = choose(PLAIN, [], ratios({"as is": 1.2}))
    assert choice.name == ORIGINAL
    assert "1.200" in choice.reason


@pytest.mark.parametrize(("padded", "expected"), [(0.39, "as is"), (0.38, "padded")])
def test_structure_needs_two_percent(padded, expected):
    assert choose(PLAIN, [PADDED], ratios({"as is": 0.395, "padded": padded})).name == expected


def test_an_uncertain_gain_keeps_the_simpler_form():
    assert (
        choose(PLAIN, [PADDED], ratios({"as is": 0.5, "padded": 0.45}, spread=0.2)).name
        == "as is"
    )


def test_structure_wins_back_a_removal_that_was_slower():
    assert choose(PLAIN, [PADDED], ratios({"as is": 1.5, "padded": 0.6})).name == "padded"


def test_structure_is_held_against_the_original_where_removal_was_slower():
    # 0.99 of the original is a gain on "as is", but not on what is there without any change.
    assert choose(PLAIN, [PADDED], ratios({"as is": 1.5, "padded": 0.99})).name == ORIGINAL


@pytest.mark.parametrize(("padded", "expected"), [(1.004, "padded"), (1.01, ORIGINAL)])
def test_a_removal_filled_up_again_stands_if_it_is_still_smaller(padded, expected):
    ratio_of = ratios({"as is": 1.5, "padded": padded})
    assert choose(PLAIN, [PADDED], ratio_of, {"padded"}).name == expected
    assert choose(PLAIN, [PADDED], ratio_of).name == ORIGINAL


def test_the_fastest_of_equals_in_structure_wins():
    assert (
        choose(PLAIN, [PADDED, WIDER], ratios({"as is": 0.8, "padded": 0.6, "wider": 0.5})).name
        == "wider"
    )


@pytest.mark.parametrize(
    ("wider", "spread", "expected"),
    [
        (0.597, 0.005, "padded"),  # nobody can tell them apart, and this one is smaller
        (0.58, 0.005, "wider"),  # proven faster
        (0.58, 0.1, "wider"),  # not proven, but too much to give away
    ],
)
def test_of_forms_that_are_as_fast_the_smallest_is_taken(wider, spread, expected):
    ratio_of = ratios({"as is": 0.9, "padded": 0.6, "wider": wider}, spread)
    parameters = {"as is": 80, "padded": 100, "wider": 130}
    forms = [PADDED, WIDER]
    assert choose(PLAIN, forms, ratio_of, (), parameters).name == expected


@pytest.mark.parametrize(("both", "expected"), [(0.595, "padded"), (0.5, BOTH.name)])
def test_two_additions_must_beat_one(both, expected):
    times = {"as is": 0.8, "padded": 0.6, "mapped": 0.7, BOTH.name: both}
    assert choose(PLAIN, [PADDED, MAPPED, BOTH], ratios(times)).name == expected


def test_nothing_slower_than_the_original_is_handed_out():
    def ratio_of(candidate, baseline):
        # Intervals that contradict each other, as noisy ones may: each step a gain, the sum of them none.
        values = {
            ("as is", ORIGINAL): (1.3, 0.99, 1.6),
            ("padded", "as is"): (0.9, 0.85, 0.97),
            ("padded", ORIGINAL): (1.2, 1.1, 1.3),
        }
        return Ratio(*values[candidate, baseline], "cpu", True, 0.1, 10, 3)

    assert choose(PLAIN, [PADDED], ratio_of).name == ORIGINAL


def test_shortlist_drops_what_is_proven_behind_and_keeps_every_level():
    slow = [Form(f"slow {n}", frozenset({"align"})) for n in range(4)]
    times = {"as is": 0.8, "padded": 0.6, "wider": 0.61, BOTH.name: 0.65}
    times |= {form.name: 2.0 for form in slow}
    kept = shortlist(PLAIN, [*slow, PADDED, WIDER, BOTH], ratios(times, spread=0.05))
    assert [form.name for form in kept] == ["padded", "wider", "mapped + padded"]
