"""Probabilities worked out by hand, and draws that follow them."""

import numpy as np
import pytest

from megabase.errors import InputError
from megabase.inference.generation.generate import GenerateOptions, _probabilities, _Sampler

SCORES = np.log(np.array([[0.5, 0.2, 0.2, 0.1]]))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.5, 0.2, 0.2, 0.1]),
        ({"temperature": 0.5}, [25 / 34, 4 / 34, 4 / 34, 1 / 34]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [5 / 7, 2 / 7, 0, 0]),
        ({"top_k": 9}, [0.5, 0.2, 0.2, 0.1]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.6}, [5 / 7, 2 / 7, 0, 0]),
        ({"top_p": 0.85}, [5 / 9, 2 / 9, 2 / 9, 0]),
        ({"top_p": 1}, [0.5, 0.2, 0.2, 0.1]),
        ({"min_p": 0.3}, [5 / 9, 2 / 9, 2 / 9, 0]),
        ({"min_p": 0.5}, [1, 0, 0, 0]),
        # 5/9, 2/9, 2/9 after top-k; the first two reach 0.7.
        ({"top_k": 3, "top_p": 0.7}, [5 / 7, 2 / 7, 0, 0]),
        ({"top_k": 3, "min_p": 0.45}, [1, 0, 0, 0]),
    ],
)
def test_probabilities_by_hand(options: dict[str, float], wanted: list[float]) -> None:
    found = _probabilities(SCORES, GenerateOptions(**options))  # pyright: ignore
    assert found[0] == pytest.approx(wanted)


def row(values: dict[str, float]) -> np.ndarray:
    """Scores of all 16 tokens; others than the given letters would win if they were allowed."""
    scores = np.full((1, 16), 50.0)
    scores[0, 7:12] = [values.get(letter, -20.0) for letter in "ACGTN"]
    return scores


def test_draws_follow_the_probabilities_and_never_take_a_special_token() -> None:
    sampler = _Sampler(GenerateOptions(seed=5), [0])
    scores = row(dict(zip("ACGT", SCORES[0], strict=True)))
    drawn = np.array([sampler.draw(scores)[0][0] for _ in range(20_000)])
    share = np.bincount(drawn, minlength=4) / len(drawn)
    assert share == pytest.approx([0.5, 0.2, 0.2, 0.1], abs=0.015)


def test_letters_in_any_order_and_their_log_probability() -> None:
    sampler = _Sampler(GenerateOptions(letters="TA", temperature=0), [0])
    places, log_probs = sampler.draw(row({"A": 1.0, "T": 2.0, "C": 9.0}))
    assert "TA"[places[0]] == "T"
    assert log_probs[0] == pytest.approx(-np.log1p(np.exp(-1.0)))
    assert sampler.ids.tolist() == [10, 7]


def test_a_sequence_draws_the_same_in_any_company() -> None:
    scores = np.random.default_rng(0).normal(size=(2_000, 16))

    def draws(numbers: list[int], own: int, seed: int = 3) -> list[int]:
        sampler = _Sampler(GenerateOptions(seed=seed), numbers)
        return [int(sampler.draw(np.tile(s, (len(numbers), 1)))[0][own]) for s in scores]

    alone = draws([7], 0)
    assert draws([2, 7, 9], 1) == alone
    assert draws([7, 2], 0) == alone
    assert draws([8], 0) != alone
    assert draws([7], 0, seed=4) != alone


def test_a_letter_without_probability_is_never_drawn() -> None:
    sampler = _Sampler(GenerateOptions(top_k=1), [0])
    scores = row({"T": 3.0})
    assert {int(sampler.draw(scores)[0][0]) for _ in range(3_000)} == {3}


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InputError, match=r"temperature.*top_k.*top_p.*min_p.*letters.*seed"):
        GenerateOptions(temperature=-1, top_k=0, top_p=0.0, min_p=1.5, letters="ACX", seed=-1)
    for letters in ("", "AAC", "acgt"):
        with pytest.raises(InputError, match="letters"):
            GenerateOptions(letters=letters)
