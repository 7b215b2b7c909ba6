"""Schedules against values worked out by hand, and their purity."""

from __future__ import annotations

import math
from typing import Any

import pytest

from megabase.errors import ConfigError
from megabase.settings import OptimConfig, Stage, TrainConfig
from megabase.training.schedule import LengthSchedule, lr_at


def published_schedule_steps(length: int, global_batch: int, epochs: int) -> int:
    """Length of the published run's learning-rate schedule in steps.

    The repository takes ``ceil(1e9 / length)`` for the size of an epoch instead of its 34,021
    intervals, so its cosine has hardly begun when the run ends.
    """
    return math.ceil(math.ceil(1_000_000_000 / length) / global_batch) * epochs


def layout(
    stages: list[dict[str, Any]], world: int = 1, size: int | None = None, **fields: Any
) -> LengthSchedule:
    config = TrainConfig(output="run", stages=tuple(Stage(**s) for s in stages), **fields)
    return LengthSchedule(config, world, lambda length: size)


def test_published_rate_at_the_published_run() -> None:
    config = OptimConfig(schedule="published", lr=6e-4, schedule_steps=381_500)
    total = 13_300
    assert lr_at(0, config, total) == 1e-6
    assert lr_at(1000, config, total) == pytest.approx(1.580e-4, abs=5e-8)
    assert lr_at(13_300, config, total) == pytest.approx(5.984e-4, abs=5e-8)
    # The cosine counts from step 0: as the warm-up ends it is already a little below the peak.
    assert lr_at(3_814, config, total) == pytest.approx(6e-4, rel=1e-3)
    assert lr_at(3_815, config, total) < 6e-4
    assert lr_at(381_500, config, total) == pytest.approx(6e-5)
    # Every group ends at the same absolute rate.
    assert lr_at(381_500, config, total, base_lr=1e-3) == pytest.approx(6e-5)


def test_published_length_of_the_schedule() -> None:
    assert published_schedule_steps(length=1024, global_batch=256, epochs=100) == 381_500


def test_cosine_with_warm_up() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4, min_lr_ratio=0.2)
    rates = [lr_at(step, config, 12) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[8] == pytest.approx(0.2 + 0.4)  # half way down
    assert rates[6] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))
    assert rates[12] == pytest.approx(0.2)
    assert rates[13] == pytest.approx(0.2)


def test_constant_and_fraction_of_warm_up() -> None:
    config = OptimConfig(lr=2.0, schedule="constant", warmup_fraction=0.1)
    assert [lr_at(step, config, 20) for step in (0, 1, 2, 50)] == [1.0, 2.0, 2.0, 2.0]
    assert lr_at(0, OptimConfig(lr=2.0, schedule="constant", warmup_steps=0), 20) == 2.0


def test_stages_by_steps_tokens_and_budget() -> None:
    schedule = layout(
        [
            {"length": 8, "steps": 3},
            {"length": 16, "tokens": 100, "micro_batch": 2},
            {"length": 32},
        ],
        global_batch=4,
        steps=10,
    )
    # 100 tokens at 4 x 16 make 2 steps; the rest of the budget runs at the last length.
    assert [(p.length, n) for p, n in schedule.stages()] == [(8, 3), (16, 2), (32, 5)]
    assert schedule.total_steps == 10
    assert schedule.total_tokens == 3 * 32 + 2 * 64 + 5 * 128
    point = schedule.at(4)
    assert (point.stage, point.length, point.micro_batch, point.global_batch) == (1, 16, 2, 4)
    assert point.first_index == 4
    assert schedule.at(5).first_index == 0


def test_budget_in_tokens_cuts_stages_short() -> None:
    schedule = layout([{"length": 8, "steps": 100}, {"length": 16}], global_batch=2, tokens=33)
    assert [(p.length, n) for p, n in schedule.stages()] == [(8, 3)]
    assert schedule.total_tokens == 48


def test_constant_tokens_take_fewer_long_sequences() -> None:
    schedule = layout(
        [{"length": 8, "steps": 2}, {"length": 32, "steps": 2}, {"length": 128, "steps": 1}],
        global_batch_tokens=64,
    )
    assert [p.global_batch for p, _ in schedule.stages()] == [8, 2, 1]


def test_epochs_need_windows_that_have_them() -> None:
    schedule = layout([{"length": 8, "epochs": 1.5}], size=10, global_batch=4)
    assert schedule.total_steps == 4  # 15 windows
    with pytest.raises(ConfigError, match="no epochs"):
        layout([{"length": 8, "epochs": 1}], size=None, global_batch=4)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_devices_change_neither_batch_nor_order(world: int) -> None:
    stages = [{"length": 8, "steps": 3, "micro_batch": 3}, {"length": 16, "steps": 2}]
    one, many = layout(stages, global_batch=8), layout(stages, world, global_batch=8)
    for step in range(5):
        a, b = one.at(step), many.at(step)
        assert (a.first_index, a.global_batch, a.length) == (
            b.first_index,
            b.global_batch,
            b.length,
        )
        assert b.micro_batch <= 8 // world


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not divide among 3 devices"):
        layout([{"length": 8, "steps": 1}], 3, global_batch=8)


def test_points_are_pure() -> None:
    schedule = layout([{"length": 8, "steps": 3}, {"length": 16, "steps": 4}], global_batch=2)
    forward = [schedule.at(step) for step in range(7)]
    assert [schedule.at(step) for step in reversed(range(7))] == forward[::-1]
    assert schedule.at(6) == forward[6]


def test_published_rule_ignores_the_number_of_devices() -> None:
    stages = [
        {"length": 8, "epochs": 2, "micro_batch": 3},
        {"length": 16, "epochs": 0, "micro_batch": 5},
    ]
    fields: dict[str, Any] = {"global_batch": 10, "length_rule": "published", "size": 60}
    one, two = layout(stages, 1, **fields), layout(stages, 2, **fields)
    assert [p.global_batch for p, _ in one.stages()] == [9, 10]
    assert [p.global_batch for p, _ in two.stages()] == [18, 20]
    # 20 micro-batches of 3 in 7 steps; a stage of 0 epochs runs one.
    assert [n for _, n in one.stages()] == [14, 6]


def test_published_rule_refuses_a_batch_above_the_global_one() -> None:
    with pytest.raises(ConfigError, match="0 batches"):
        layout(
            [{"length": 8, "epochs": 1, "micro_batch": 12}],
            global_batch=10,
            length_rule="published",
            size=9,
        )
