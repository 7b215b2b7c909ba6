"""Growth, ratios and crossings, on times whose answer is known."""

from __future__ import annotations

import pytest
from benchmarks.speed.runtime import compare, fit_power_law, overtaking

_LENGTHS = [2**n for n in range(10, 17)]


def test_a_power_law_is_found() -> None:
    law = fit_power_law({n: 3e-9 * n**1.5 for n in _LENGTHS})
    assert law is not None
    assert law.exponent == pytest.approx(1.5)
    assert law.at(2**20) == pytest.approx(3e-9 * 2**30)
    assert law.fitted_lengths == tuple(_LENGTHS[-4:])


def test_fixed_costs_at_short_lengths_do_not_bend_the_fit() -> None:
    law = fit_power_law({n: 0.05 + 1e-8 * n**2 for n in _LENGTHS})
    assert law is not None
    assert law.exponent == pytest.approx(2.0, abs=0.05)


def test_two_points_make_no_law() -> None:
    assert fit_power_law({1024: 1.0, 2048: 2.0}) is None


def test_the_crossing_between_measured_lengths() -> None:
    linear = {n: 1e-5 * n for n in _LENGTHS}
    square = {n: 1e-9 * n**2 for n in _LENGTHS}
    found = overtaking(linear, square)
    assert found.how == "measured"
    assert found.length == pytest.approx(10_000, rel=1e-6)


def test_crossings_that_were_not_measured_say_so() -> None:
    linear = {n: 1e-2 * n for n in _LENGTHS}
    square = {n: 1e-9 * n**2 for n in _LENGTHS}
    found = overtaking(linear, square)
    assert found.how == "extrapolated"
    assert found.length == pytest.approx(1e7, rel=1e-6)
    assert overtaking(square, linear).how == "from the start"
    assert overtaking({n: 2.0 * n for n in _LENGTHS}, {n: 1.0 * n for n in _LENGTHS}).how == "never"
    assert overtaking({1024: 1.0}, {2048: 1.0}).length is None


def test_a_late_crossing_counts_not_an_early_one() -> None:
    reference = {1: 1.0, 2: 3.0, 4: 4.0}
    other = {1: 2.0, 2: 2.0, 4: 8.0}
    found = overtaking(reference, other)
    assert found.how == "measured"
    assert found.length is not None
    assert 2 < found.length < 4


def test_ratios_are_over_common_lengths() -> None:
    found = compare({1: 1.0, 2: 2.0, 4: 4.0}, {1: 3.0, 2: 8.0})
    assert found["ratios"] == {1: 3.0, 2: 4.0}
    assert (found["longest_common"], found["ratio_at_longest_common"]) == (2, 4.0)
