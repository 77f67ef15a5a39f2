"""Samples with a known truth: the arithmetic is tested here, the machine never."""

import numpy as np
import pytest

from deploykit.profile import statistics
from deploykit.profile.statistics import Ratio, Timings, adds_enough, paired_ratio, stands

BASE_S = 0.005


def simulate(dice, ratio=1.0, *, sessions=0.006, jitter=0.02, drift=0.3, rounds=15, rebuilds=3):
    """Two models: a speed for each session, jitter for each run, a machine whose speed drifts for both."""
    rebuild = np.repeat(np.arange(rebuilds), rounds)
    machine = 1 + drift * np.abs(np.sin(np.arange(rebuild.size) / 7))
    pair = []
    for factor in (1.0, ratio):
        placed = np.exp(dice.normal(0, sessions, rebuilds))[rebuild]
        cpu_s = (
            BASE_S * factor * machine * placed * np.exp(dice.normal(0, jitter, rebuild.size))
        )
        pair.append(Timings(rebuild, cpu_s * 1.005, cpu_s))
    return pair


@pytest.mark.parametrize("sessions", [0.0, 0.005, 0.012])
def test_the_interval_covers_the_truth_as_often_as_it_says(sessions):
    dice = np.random.default_rng(1)
    ratios = [
        paired_ratio(*simulate(dice, sessions=sessions / np.sqrt(2)), resamples=1000)
        for _ in range(200)
    ]
    covered = sum(ratio.lo <= 1.0 <= ratio.hi for ratio in ratios)
    assert covered >= 184
    # Nor is it bought with width: the interval stays in the order of what sessions differ by.
    assert np.median([ratio.hi - ratio.lo for ratio in ratios]) < 0.04
    # No model is proven to be worth adding to itself.
    assert not any(adds_enough(ratio) for ratio in ratios)
    assert sum(not stands(ratio) for ratio in ratios) <= 8


def test_sessions_that_differ_widen_the_interval_beyond_what_rounds_say():
    dice = np.random.default_rng(2)
    near = paired_ratio(*simulate(dice, sessions=0.0, rounds=200))
    far = paired_ratio(*simulate(dice, sessions=0.03, rounds=200))
    assert far.hi - far.lo > 2 * (near.hi - near.lo)


def test_real_differences_are_found_under_drift():
    dice = np.random.default_rng(3)
    ratios = [paired_ratio(*simulate(dice, 0.95), resamples=1000) for _ in range(50)]
    assert sum(adds_enough(ratio) for ratio in ratios) >= 45
    assert np.median([ratio.median for ratio in ratios]) == pytest.approx(0.95, abs=0.003)
    slower = [paired_ratio(*simulate(dice, 1.04), resamples=1000) for _ in range(50)]
    assert sum(not stands(ratio) for ratio in slower) >= 45


def test_a_pre_empted_candidate_is_not_called_slow():
    """Long runs lose the processor, short ones escape: wall time lies about the ratio, processor time does not."""
    dice = np.random.default_rng(4)
    base, other = simulate(dice, 0.5)
    waits = np.where(dice.random(base.cpu_s.size) < 0.8, 0.004, 0.0)
    base = Timings(base.rebuild, base.cpu_s + waits, base.cpu_s)
    other = Timings(other.rebuild, other.cpu_s + waits, other.cpu_s)
    ratio = paired_ratio(base, other)
    assert (ratio.clock, ratio.noisy) == ("cpu", True)
    assert ratio.clean_share < 0.5
    assert ratio.lo < 0.5 < ratio.hi
    assert np.median(other.wall_s / base.wall_s) > 0.6
    # With several threads processor time adds up what runs side by side: it is never used.
    assert paired_ratio(base, other, threads=2).clock == "wall"


def test_wall_time_is_used_on_a_quiet_machine_without_its_disturbed_rounds():
    dice = np.random.default_rng(5)
    base, other = simulate(dice)
    waits = np.where(np.arange(base.cpu_s.size) % 3 == 0, 0.02, 0.0)
    ratio = paired_ratio(base, Timings(other.rebuild, other.wall_s + waits, other.cpu_s))
    assert (ratio.clock, ratio.noisy) == ("wall", False)
    assert ratio.rounds == 30
    assert ratio.lo < 1.0 < ratio.hi


def test_the_shortcut_to_medians_of_resamples_agrees_with_resampling():
    dice = np.random.default_rng(6)
    group = np.random.default_rng(7).standard_t(3, 41)
    drawn = np.median(dice.choice(group, (20_000, group.size)), axis=1)
    short = statistics._resampled_medians(group, 20_000, dice)
    for q in (2.5, 25, 50, 75, 97.5):
        assert np.percentile(short, q) == pytest.approx(np.percentile(drawn, q), abs=0.02)
    assert short.std() == pytest.approx(drawn.std(), rel=0.05)


def test_only_rounds_taken_together_are_paired():
    base, other = simulate(np.random.default_rng(8))
    with pytest.raises(ValueError, match="same rounds"):
        paired_ratio(base, Timings(other.rebuild[:-1], other.wall_s[:-1], other.cpu_s[:-1]))
    with pytest.raises(ValueError, match="one wall and one processor time"):
        Timings(base.rebuild, base.wall_s[:-1], base.cpu_s)


def test_the_ratio_turns_around_with_its_two_sides():
    base, other = simulate(np.random.default_rng(9), 0.8)
    there, back = paired_ratio(base, other), paired_ratio(other, base)
    assert there.median == pytest.approx(1 / back.median)
    assert there.lo == pytest.approx(1 / back.hi, rel=0.002)


@pytest.mark.parametrize(
    ("lo", "hi", "keeps_removal", "keeps_structure"),
    [
        (0.90, 0.97, True, True),
        (0.90, 0.98, True, False),
        (0.95, 1.05, True, False),
        (1.00, 1.05, True, False),
        (1.001, 1.05, False, False),
    ],
)
def test_the_burden_of_proof_lies_on_added_structure(lo, hi, keeps_removal, keeps_structure):
    ratio = Ratio(
        (lo + hi) / 2, lo, hi, "cpu", noisy=False, clean_share=1.0, rounds=30, rebuilds=3
    )
    assert stands(ratio) is keeps_removal
    assert adds_enough(ratio) is keeps_structure


def test_outliers_are_counted_by_the_median_and_not_by_themselves():
    samples = np.r_[np.random.default_rng(10).normal(1.0, 0.01, 95), np.full(5, 3.0)]
    assert statistics.outlier_share(samples) == pytest.approx(0.05, abs=0.011)
    assert statistics.outlier_share(np.r_[np.ones(9), 2.0]) == pytest.approx(0.1)
    assert statistics.outlier_share(np.ones(9)) == 0.0


def test_percentiles_are_those_of_all_samples():
    wall_s = np.arange(1.0, 102.0)
    timings = Timings(np.zeros(101, np.int64), wall_s, wall_s / 2)
    latency = statistics.summarize(timings, "wall")
    assert (latency.p50_s, latency.p90_s, latency.p95_s, latency.p99_s) == (
        51.0,
        91.0,
        96.0,
        100.0,
    )
    assert latency.samples == 101
    assert statistics.summarize(timings, "cpu").p50_s == 25.5


def test_measurements_of_two_occasions_are_compared_by_what_each_varies():
    dice = np.random.default_rng(11)
    ratios = []
    for _ in range(100):
        base, _ = simulate(dice, sessions=0.004, drift=0.0)
        _, other = simulate(dice, 1.2, sessions=0.004, drift=0.0)
        ratios.append(statistics.unpaired_ratio(base, other, resamples=1000))
    assert sum(ratio.lo <= 1.2 <= ratio.hi for ratio in ratios) >= 88
    assert all(ratio.lo > 1.1 for ratio in ratios)
    assert np.median([ratio.hi - ratio.lo for ratio in ratios]) < 0.06
    # Other numbers of rounds and builds on the two sides are nothing special.
    short, _ = simulate(dice, rounds=4, rebuilds=2)
    assert statistics.unpaired_ratio(short, other).rounds == 8


def outlying(extra_wall_s=0.0, extra_cpu_s=0.0, *, at=50, switches=0, faults=0):
    """100 runs of 10 ms, one of which is special."""
    dice = np.random.default_rng(12)
    cpu_s = 0.010 * np.exp(dice.normal(0, 0.001, 100))
    wall_s = cpu_s + 1e-6
    cpu_s[at] += extra_cpu_s
    wall_s[at] += extra_wall_s + extra_cpu_s
    counted = [np.zeros(100, np.int64) for _ in range(2)]
    counted[0][at], counted[1][at] = switches, faults
    rebuild = np.repeat(np.arange(2), 50)
    return statistics.find_outliers(Timings(rebuild, wall_s, cpu_s, *counted))


@pytest.mark.parametrize(
    ("sample", "source"),
    [
        ({"extra_wall_s": 0.005, "switches": 2}, statistics.WAITED),
        ({"extra_wall_s": 0.005}, statistics.ASLEEP),
        ({"extra_cpu_s": 0.005, "faults": 900}, statistics.FAULTED),
        ({"extra_cpu_s": 0.005, "at": 51}, statistics.FIRST),
        ({"extra_cpu_s": 0.005, "at": 80}, statistics.BUSY_CORE),
        ({"extra_cpu_s": -0.005}, statistics.FAST),
        # Most of it was waiting, whatever else there was.
        (
            {"extra_wall_s": 0.005, "extra_cpu_s": 0.001, "switches": 1, "faults": 50},
            statistics.WAITED,
        ),
    ],
)
def test_outliers_are_named_by_what_explains_most_of_them(sample, source):
    found = {each.source: each.count for each in outlying(**sample)}
    assert found.pop(source) >= 1
    assert not set(found) - {statistics.FAST, statistics.BUSY_CORE, statistics.FIRST}
    plain = {each.source: each.count for each in outlying()}
    assert sum(plain.values()) <= 2


def test_a_machine_that_grows_slower_is_noticed():
    dice = np.random.default_rng(13)
    steady, _ = simulate(dice, drift=0.0, rounds=40)
    assert statistics.slowdown([steady]) == pytest.approx(1.0, abs=0.02)
    heat = np.linspace(1.0, 1.3, steady.cpu_s.size)
    warm = Timings(steady.rebuild, steady.wall_s * heat, steady.cpu_s * heat)
    assert statistics.slowdown([warm, warm]) == pytest.approx(1.25 / 1.05, abs=0.04)
    few = Timings(steady.rebuild[:9], steady.wall_s[:9], steady.cpu_s[:9])
    assert statistics.slowdown([few]) == 1.0
