"""Settings: all problems at once, whole numbers in any notation, no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megabase.errors import ConfigError
from megabase.settings import DeviceConfig, ModelConfig, OptimConfig, Stage, TrainConfig
from megabase.tasks.config import DataConfig, PretrainConfig, to_yaml


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(output="", keep=0, log_every=0, steps=5, tokens=7, resume=True, overwrite=True)
    message = str(caught.value)
    for part in ("output", "keep", "log_every", "steps and tokens", "resume and overwrite"):
        assert part in message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"clip": 0.0}, "clip"),
        ({"warmup_fraction": 1.5}, "warmup_fraction"),
        ({"eps": -1}, "eps"),
        ({"schedule_steps": 1.5}, "whole number"),
    ],
)
def test_optimizer_problems(fields: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        OptimConfig(**fields)


def test_stage_needs_one_duration() -> None:
    with pytest.raises(ConfigError, match="steps and tokens"):
        Stage(length=8, steps=1, tokens=8)
    with pytest.raises(ConfigError, match="length is 0"):
        Stage(length=0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stages": ()}, "stages is empty"),
        ({"stages": (Stage(length=8), Stage(length=9)), "steps": 3}, "no duration"),
        ({"stages": (Stage(length=8),)}, "no end"),
        ({"global_batch": None, "steps": 1}, "both null"),
        ({"stages": (Stage(length=8, epochs=0),)}, "0 epochs"),
        ({"length_rule": "published", "steps": 1}, "epochs and micro_batch"),
    ],
)
def test_run_problems(fields: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig(output="run", **fields)


def test_numbers_may_be_written_with_an_exponent() -> None:
    config = TrainConfig(output="run", tokens=1e6, global_batch_tokens=65536.0)
    assert config.tokens == 1_000_000
    assert isinstance(config.tokens, int)
    assert config.global_batch is None
    with pytest.raises(ConfigError, match=r"tokens is 1\.5"):
        TrainConfig(output="run", tokens=1.5)


def test_device_problems() -> None:
    with pytest.raises(ConfigError, match="nodes"):
        DeviceConfig(nodes=0)


def test_data_and_model_problems() -> None:
    with pytest.raises(ConfigError, match="intervals"):
        DataConfig(genome="g.mb", windows="intervals")
    with pytest.raises(ConfigError, match="intervals"):
        DataConfig(genome="g.mb", intervals="x.bed")
    with pytest.raises(ConfigError, match=r"reverse_complement is 2.*eval_windows is 0"):
        DataConfig(genome="g.mb", reverse_complement=2, eval_windows=0)
    with pytest.raises(ConfigError, match="choose one"):
        ModelConfig(preset="tiny-1k", init_from="run")
    with pytest.raises(ConfigError, match=r"model\.d_model is 0"):
        ModelConfig(d_model=0)


def test_saved_settings_leave_out_what_belongs_to_one_call() -> None:
    yaml = to_yaml(
        PretrainConfig(output="run", steps=3, data=DataConfig(genome="g.mb"), overwrite=True)
    )
    assert "overwrite" not in yaml
    assert "resume" not in yaml
    assert "/g.mb" in yaml


def test_settings_import_no_torch() -> None:
    code = (
        "import sys, megabase.tasks.config, megabase.cli.verbs.train\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", [1 << 31, 1 << 63, 1 << 80])
def test_lengths_beyond_any_input_are_refused(value: int) -> None:
    with pytest.raises(ConfigError, match=r"stage length is \d+; it must be at most 2,147,483,647"):
        Stage(length=value)


def test_numbers_that_floats_cannot_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="stage steps is 9223372036854775808; it must be at most"):
        Stage(length=8, steps=1 << 63)
