"""Intervals and tests against scipy, and against their definitions."""

import math

import pytest
import torch

from neurontune_peft.evaluation import Rate
from neurontune_peft.evaluation.statistics import Interval, bootstrap_mean, bootstrap_ratio, holm, mcnemar

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (0, 9), (3, 7), (62, 63), (80, 160), (999, 1000), (9, 9)])
def test_wilsons_interval_is_scipys(hits: int, total: int) -> None:
    expected = scipy_stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert Rate(hits, total).low == pytest.approx(expected.low, abs=2e-5)  # 1.96 stands for 1.959964
    assert Rate(hits, total).high == pytest.approx(expected.high, abs=2e-5)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 2), (2, 5), (10, 10), (30, 3)])
def test_mcnemars_test_is_the_exact_binomial_test(better: int, worse: int) -> None:
    expected = scipy_stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-9)


def test_holms_correction_is_the_step_down_method() -> None:
    # By hand: 0.01 * 4, then 0.02 * 3, then max(0.06, 0.03 * 2), then max(0.06, 0.5)
    assert holm({"c": 0.03, "a": 0.01, "d": 0.5, "b": 0.02}) == {
        "c": pytest.approx(0.06),
        "a": pytest.approx(0.04),
        "d": pytest.approx(0.5),
        "b": pytest.approx(0.06),
    }
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_a_bootstrap_interval_is_near_scipys() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(1)).tolist()
    found = bootstrap_mean(values)
    expected = scipy_stats.bootstrap(
        (values,), lambda x, axis: x.mean(axis=axis), method="percentile", n_resamples=4000, rng=0
    ).confidence_interval
    assert found.value == pytest.approx(sum(values) / 200)
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.02)


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        found = bootstrap_mean(torch.randn(60, generator=generator).tolist(), resamples=300)
        hits += found.low <= 0.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_ratio_is_one_of_totals_and_not_a_mean_of_ratios() -> None:
    assert bootstrap_ratio([1.0, 9.0], [1, 3]).value == pytest.approx(2.5)
    assert bootstrap_ratio([], []) is None
    assert bootstrap_ratio([1.0], [0]) is None
    assert bootstrap_mean([2.0]) == Interval(2.0, 2.0, 2.0)


@pytest.mark.parametrize("count", [1, 2, 7, 80, 160])
def test_a_mean_is_to_the_last_bit_the_ratio_to_as_many_ones(count: int) -> None:
    values = [math.sin(i) / 3 for i in range(count)]
    for seed in (0, 1):
        assert bootstrap_mean(values, seed=seed) == bootstrap_ratio(values, [1.0] * count, seed=seed)
    if count > 2:
        assert bootstrap_mean(values, seed=0) != bootstrap_mean(values, seed=1)
        assert bootstrap_mean(values, resamples=10) != bootstrap_mean(values, resamples=1000)
    assert bootstrap_mean([]) is None


def test_an_interval_is_repeatable_and_round_trips() -> None:
    values = [math.sin(i) for i in range(30)]
    assert bootstrap_mean(values) == bootstrap_mean(values)
    found = bootstrap_mean(values)
    assert Interval.from_dict(found.as_dict()) == found
