"""Recipes that are not what they should be end with one short line that quotes little of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megabase.cli.main import main
from megabase.errors import ConfigError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
RECIPES: dict[str, tuple[bytes, str]] = {
    "aliases": (LAUGHS.encode() + b"data: {include: *g}\n", "aliases written out"),
    "an alias of itself": (b"a: &a [*a]\n", "contains itself"),
    "deep": (b"a: " + b"[" * 50_000 + b"]" * 50_000, "32 levels"),
    "deeper by lines": (b"".join(b" " * i + b"a:\n" for i in range(1_000)), "32 levels"),
    "large": (b"a: b\n" * 300_000, "more than 1,048,576 bytes"),
    "Latin-1": (b"output: caf\xe9\n", "line 1: not text in UTF-8"),
    "another recipe": (b"config: /etc/passwd\n", "no field 'config'"),
    "a page": (b"<!DOCTYPE html><html>\n", "is an HTML page"),
    "a pointer": (POINTER.encode(), "git lfs pull"),
    "a list": (b"- 1\n", "holds one list"),
    "a text": (b"secret words\n", "holds one str"),
    "a tag": (b'!!python/object/apply:os.system ["touch ran"]\n', "constructor"),
    "binary": (bytes(range(1, 128)), "cannot be read"),
    "cut": (b"steps: [1\n", "cannot be read"),
    "long value": (b"steps: " + b"x" * 100_000 + b"\n", "steps"),
    "long name": (b"x" * 1_000 + b": 1\n", "no field"),
}


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
@pytest.mark.parametrize("name", RECIPES)
def test_an_odd_recipe_is_one_short_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    content, says = RECIPES[name]
    Path("recipe.yaml").write_bytes(content)
    assert main([verb, "--config", "recipe.yaml", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert len(error) < 1_500
    assert "root:" not in error
    assert "secret" not in error
    assert not Path("ran").exists()


def test_aliases_that_stay_small_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text("data: {include: &a [chr1], exclude: *a}\nsteps: few\n")
    assert main(["pretrain", "--config", str(tmp_path / "r.yaml"), "--dry-run"]) == 2
    assert "steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"filter_order": (1 << 63) - 1}, "filter_order is 9223372036854775807; expected at most"),
        ({"filter_order": 1 << 30}, "more than the"),
        ({"d_inner": 1 << 30}, "more than the"),
        ({None: 8}, "overrides has None"),
    ],
)
def test_models_that_no_machine_holds_are_refused(settings: dict[str, int], said: str) -> None:
    from megabase.models.adapt.build import build_language_model
    from megabase.settings import ModelConfig

    with pytest.raises(ConfigError, match=said):
        build_language_model(
            ModelConfig(d_model=128, n_layer=1, overrides=settings), 64, "causal_lm"
        )
