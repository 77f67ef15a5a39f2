"""The verdict on a ticket, against values from SciPy and by hand; and the efficiency of its weights."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from deploykit.errors import UsageError
from deploykit.finder.efficiency import find_efficiency
from deploykit.finder.verdict import Arm, judge, welch

DENSE = (0.900, 0.902, 0.904)


def shifted(by):
    return tuple(metric + by for metric in DENSE)


def test_welch_is_that_of_scipy():
    one, other = (0.91, 0.93, 0.9, 0.925), (0.9, 0.905, 0.87)
    found = welch(Arm("ticket", one), Arm("dense", other), 0.0)
    theirs = stats.ttest_ind(one, other, equal_var=False, alternative="greater")
    assert found.t == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.degrees == pytest.approx(theirs.df)
    # A margin moves the whole arm.
    moved = welch(Arm("ticket", one), Arm("dense", other), 0.01)
    theirs = stats.ttest_ind(
        [m + 0.01 for m in one], other, equal_var=False, alternative="greater"
    )
    assert moved.p == pytest.approx(theirs.pvalue)
    assert moved.difference == found.difference


@pytest.mark.parametrize(
    ("ticket", "reinit", "matches", "wins"),
    [
        (0.004, -0.010, True, True),
        (0.004, 0.004, True, False),
        # 0.2 points below, with a deviation of 0.2: that it is not 0.3 below, three seeds cannot prove
        (-0.002, -0.010, False, False),
        (-0.010, -0.030, False, False),
    ],
)
def test_a_ticket_wins_against_both_or_not_at_all(ticket, reinit, matches, wins):
    verdict = judge(DENSE, shifted(ticket), shifted(reinit))
    assert verdict.matches_dense.proven == matches
    assert verdict.wins == wins
    assert verdict.said.startswith("A winning ticket") == wins
    assert f"{100 * ticket:+.2f} points" in verdict.said


def test_without_new_weights_the_question_stays_open():
    verdict = judge(DENSE, shifted(0.01))
    assert verdict.matches_dense.proven
    assert not verdict.wins
    assert "is open" in verdict.said


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (-0.02, "It beats a random mask of the same structure (+2.40 points"),
        (
            0.004,
            "That it beats a random mask of the same structure is not proven (+0.00 points",
        ),
        (0.03, "It is worse than a random mask of the same structure (-2.60 points"),
    ],
)
def test_a_random_mask_that_is_as_good_is_told_of_a_winner_too(by, said):
    verdict = judge(DENSE, shifted(0.004), shifted(-0.01), shifted(by))
    assert verdict.wins
    assert verdict.said.startswith("A winning ticket. ")
    assert said in verdict.said
    p = float(verdict.said.rpartition("p = ")[2].rstrip(")."))
    assert (p < 0.05) == ("not proven" not in said)
    equal = judge((0.9,) * 3, (0.9,) * 3, None, (0.9,) * 3)
    assert "random mask of the same structure is not proven" in equal.said
    assert "random" not in judge(DENSE, shifted(0.004)).said


def test_seeds_that_make_no_difference_are_judged_by_the_means():
    verdict = judge((0.9,) * 3, (0.898,) * 3, (0.898,) * 3)
    assert verdict.matches_dense.proven
    assert not verdict.beats_reinit.proven
    assert judge((0.9,) * 3, (0.89,) * 3).matches_dense.p == 1.0


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        ((DENSE[:2], DENSE), {}, "'dense' has 2"),
        ((DENSE, (0.9, math.nan, 0.9)), {}, "Did its training diverge"),
        ((DENSE, DENSE), {"margin": -0.1}, "0 or more"),
        ((DENSE, DENSE), {"margin": math.nan}, "0 or more"),
    ],
)
def test_what_cannot_be_judged_is_told(arms, options, message):
    with pytest.raises(UsageError, match=message):
        judge(*arms, **options)


def test_efficiency_prints_its_formula():
    assert find_efficiency(0.9, 450_000).value == pytest.approx(200.0)
    assert find_efficiency(0.99, 500_000, "log").value == pytest.approx(4.0)
    assert str(find_efficiency(0.9, 450_000)) == "200 = 100 * accuracy / (weights / 1e6)"
    for accuracy, weights, mode in ((1.1, 5, "linear"), (0.5, 0, "log"), (0.5, 5, "square")):
        with pytest.raises(UsageError):
            find_efficiency(accuracy, weights, mode)
