"""Growth and ratios, on times whose answer is known."""

from __future__ import annotations

import pytest
from benchmarks.runtime import compare, fit_power_law

_LENGTHS = [2**n for n in range(10, 17)]


def test_a_power_law_is_found() -> None:
    law = fit_power_law({n: 3e-9 * n**1.5 for n in _LENGTHS})
    assert law is not None
    assert law.exponent == pytest.approx(1.5)
    assert law.at(2**20) == pytest.approx(3e-9 * 2**30)


def test_fixed_costs_at_short_lengths_do_not_bend_the_fit() -> None:
    law = fit_power_law({n: 0.05 + 1e-8 * n**2 for n in _LENGTHS})
    assert law is not None
    assert law.exponent == pytest.approx(2.0, abs=0.05)


def test_two_points_make_no_law() -> None:
    assert fit_power_law({1024: 1.0, 2048: 2.0}) is None


def test_the_reference_is_faster_from_where_it_stays_faster() -> None:
    reference = {1: 1.0, 2: 3.0, 4: 4.0, 8: 5.0}
    other = {1: 2.0, 2: 2.0, 4: 8.0, 8: 20.0}
    assert compare(reference, other)["reference_faster_from"] == 4
    assert compare(reference, {n: 2 * s for n, s in reference.items()})[
        "reference_faster_from"
    ] == 1  # fmt: skip
    assert compare(other, reference)["reference_faster_from"] is None


def test_ratios_are_over_common_lengths() -> None:
    found = compare({1: 1.0, 2: 2.0, 4: 4.0}, {1: 3.0, 2: 8.0})
    assert found["ratios"] == {1: 3.0, 2: 4.0}
    assert found["longest_common"] == 2
