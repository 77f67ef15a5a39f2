"""Whether a ticket is a winning one: against the dense network, and against the same mask on other weights.

A sparse network that is as good as the dense one proves nothing by itself: any network of its size may be. It is a
winning ticket if it also beats its own mask after a random re-initialisation, with both comparisons made on a dense network
that was trained well (a learning rate and a number of epochs at which it does its best), over several seeds.

Two one-sided tests of Welch, which ask for no equal variances:

* *matches dense*: the ticket is less than `margin` below the dense network (a test for non-inferiority: what is tested
  and rejected is that it is that far below, or farther);
* *beats re-initialisation*: it is above its mask on new weights.

Beside the verdict it is told how the ticket stands to a random mask of the same structure: that a winner is no better is
worth knowing. With three seeds such tests prove little that is small, and "not proven" is an answer. Source: X. Ma et al., "Sanity Checks
for Lottery Tickets: Does Your Winning Ticket Really Win the Jackpot?", NeurIPS 2021, section 3, for the definition; B. L.
Welch, Biometrika 34 (1947), for the test.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from deploykit.errors import UsageError

__all__ = ["ALPHA", "FEWEST_SEEDS", "MARGIN", "Arm", "Comparison", "Verdict", "judge", "welch"]

MARGIN = 0.003
"""How far below the dense network a ticket may be: 0.3 points of an accuracy from 0 to 1."""

ALPHA = 0.05
FEWEST_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of making a network, tried with several seeds.

    Attributes:
        name: "dense", "ticket", "re-initialised" or "random mask".
        metrics: the metric of each seed, higher is better.
    """

    name: str
    metrics: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return math.fsum(self.metrics) / len(self.metrics)

    @property
    def std(self) -> float:
        """Standard deviation over the seeds, of the sample."""
        return float(np.std(self.metrics, ddof=1)) if len(self.metrics) > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A one-sided test of Welch: that the ticket is above another arm, less a margin.

    Attributes:
        against: the other arm.
        difference: mean of the ticket less that of the other arm.
        margin: how far below the ticket may be.
        t: the statistic.
        degrees: degrees of freedom.
        p: the probability of such a statistic if the ticket were exactly `margin` below.
        proven: whether that is below `ALPHA`.
    """

    against: str
    difference: float
    margin: float
    t: float
    degrees: float
    p: float
    proven: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the comparisons amount to.

    Attributes:
        arms: what was compared, the dense network first and the ticket second.
        matches_dense: the test against the dense network.
        beats_reinit: the test against the same mask on new weights; None if that was not tried.
        beats_random: the same against a random mask of the same structure.
    """

    arms: tuple[Arm, ...]
    matches_dense: Comparison
    beats_reinit: Comparison | None
    beats_random: Comparison | None

    @property
    def wins(self) -> bool:
        """Whether it is a winning ticket: it matches the dense network and beats re-initialisation."""
        return (
            self.matches_dense.proven
            and self.beats_reinit is not None
            and self.beats_reinit.proven
        )

    @property
    def said(self) -> str:
        """The verdict in a sentence, and how the ticket stands to a random mask in another."""
        return " ".join(filter(None, (self._said_of_winning(), self._said_of_random())))

    def _said_of_random(self) -> str:
        found = self.beats_random
        if found is None:
            return ""
        if found.proven:
            return f"It beats a random mask of the same structure ({_figures(found)})."
        turned = dataclasses.replace(found, t=-found.t, p=1.0 - found.p)
        # Without any spread the test says 1 of what is equal, too.
        if turned.p < ALPHA and found.difference < 0:
            return f"It is worse than a random mask of the same structure ({_figures(turned)})."
        return f"That it beats a random mask of the same structure is not proven ({_figures(found)})."

    def _said_of_winning(self) -> str:
        points = f"{100 * self.matches_dense.margin:g} points"
        if not self.matches_dense.proven:
            return (
                f"No winning ticket: that it is less than {points} below the dense network is not proven "
                f"({_figures(self.matches_dense)})."
            )
        text = f"It matches the dense network to {points} ({_figures(self.matches_dense)})"
        if self.beats_reinit is None:
            return f"{text}; whether it wins is open, as its mask was not tried on new weights."
        if not self.beats_reinit.proven:
            return (
                f"{text}, and is no winning ticket: that it beats its own mask on new weights is not proven "
                f"({_figures(self.beats_reinit)})."
            )
        return f"A winning ticket. {text}, and beats its own mask on new weights ({_figures(self.beats_reinit)})."


def judge(
    dense: Sequence[float],
    ticket: Sequence[float],
    reinit: Sequence[float] | None = None,
    random: Sequence[float] | None = None,
    *,
    margin: float = MARGIN,
) -> Verdict:
    """Judge a ticket by metrics from several seeds.

    Args:
        dense: metric of the dense network, trained well, for each seed; higher is better.
        ticket: that of the ticket.
        reinit: that of its mask on newly drawn weights.
        random: that of a random mask of the same structure.
        margin: how far below the dense network the ticket may be, in units of the metric.

    Raises:
        UsageError: fewer than three seeds, a metric that is no number, or a negative margin.
    """
    arms = [Arm("dense", tuple(dense)), Arm("ticket", tuple(ticket))]
    arms += [
        Arm(name, tuple(metrics))
        for name, metrics in (("re-initialised", reinit), ("random mask", random))
        if metrics is not None
    ]
    for arm in arms:
        if len(arm.metrics) < FEWEST_SEEDS:
            msg = f"a verdict takes at least {FEWEST_SEEDS} seeds, and '{arm.name}' has {len(arm.metrics)}. Run more."
            raise UsageError(msg)
        if not all(math.isfinite(each) for each in arm.metrics):
            msg = f"a metric of '{arm.name}' is no number: {list(arm.metrics)}. Did its training diverge?"
            raise UsageError(msg)
    if not margin >= 0:
        msg = f"the margin is how far below the dense network a ticket may be, 0 or more, not {margin}."
        raise UsageError(msg)
    by_name = {arm.name: arm for arm in arms}

    def against(name: str, below: float) -> Comparison | None:
        return welch(by_name["ticket"], by_name[name], below) if name in by_name else None

    return Verdict(
        tuple(arms),
        welch(by_name["ticket"], by_name["dense"], margin),
        against("re-initialised", 0.0),
        against("random mask", 0.0),
    )


def welch(ticket: Arm, other: Arm, margin: float) -> Comparison:
    """Test whether the mean of one arm is above that of another, less a margin."""
    from scipy import stats

    difference = ticket.mean - other.mean
    errors = [arm.std**2 / len(arm.metrics) for arm in (ticket, other)]
    error = math.fsum(errors)
    if error == 0.0:
        # No seed made a difference: then there is nothing to be unsure of.
        above = difference + margin > 0
        t = math.inf if above else -math.inf
        return Comparison(other.name, difference, margin, t, math.inf, float(not above), above)
    t = (difference + margin) / math.sqrt(error)
    degrees = error**2 / math.fsum(
        part**2 / (len(arm.metrics) - 1)
        for part, arm in zip(errors, (ticket, other), strict=True)
    )
    p = float(stats.t.sf(t, degrees))
    return Comparison(other.name, difference, margin, t, degrees, p, p < ALPHA)


def _figures(found: Comparison) -> str:
    return (
        f"{100 * found.difference:+.2f} points, one-sided Welch test: t = {found.t:.2f}, "
        f"{found.degrees:.1f} degrees of freedom, p = {found.p:.2g}"
    )
