"""What README and documentation say is so: code runs; verbs, fields and recipes exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import megabase
from megabase.cli.main import VERBS
from megabase.cli.parser import _field_names, settings_of

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((Path(megabase.__file__).parent / "recipes").glob("*.yaml"))

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_VERB = re.compile(r"^(?:srun |torchrun .*|\$ )?megabase ([a-z][\w-]*)", re.MULTILINE)

_HELP = """
import contextlib, io, json, sys
from megabase.cli.main import VERBS, main

failed = {}
for words in [["--help"], *([verb, "--help"] for verb in VERBS)]:
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            status = main(words)
    except SystemExit as stop:
        status = stop.code or 0
    except ImportError as error:
        status = repr(error)
    if status != 0 or "usage" not in output.getvalue():
        failed[" ".join(words)] = str(status)
heavy = [name for name in ("torch", "transformers", "matplotlib", "polars") if name in sys.modules]
print(json.dumps({"failed": failed, "heavy": heavy}))
"""


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in _BLOCK.findall(page.read_text()) if name == language]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that cannot reach the Hub."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def parse_recipe(file: Path) -> Any:
    """Read a recipe as the verb that it is for does."""
    from megabase.cli.parser import build_parser
    from megabase.tasks.config import PretrainConfig

    parser, _ = build_parser("pretrain", "megabase.cli.verbs.train")
    return settings_of(
        PretrainConfig, parser.instantiate(parser.parse_args(["--config", str(file)]))
    )


def test_python_of_the_readme_runs_offline(tmp_path: Path) -> None:
    code = blocks(README, "python")
    assert code, "the README shows no Python"
    (tmp_path / "genome.fa").write_text(">chr1 made up\n" + "ACGTTGCAAC" * 300 + "\n")
    (tmp_path / "genes.fa").write_text(">one\n" + "ACGTTGCAAC" * 30 + "\n")

    result = python("\n".join(code), tmp_path)

    assert result.returncode == 0, result.stderr
    perplexity = float(re.findall(r"perplexity ([\d.]+)", result.stdout)[0])
    assert 1.0 <= perplexity < 16.0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_verbs_exist(page: Path) -> None:
    text = page.read_text()
    shell = [block for name in ("bash", "console", "text") for block in blocks(page, name)]
    inline = re.findall(r"`(megabase [^`]*)`", _BLOCK.sub("", text))
    named = {verb for part in [*shell, *inline] for verb in _VERB.findall(part)}
    assert named <= {*VERBS, "help"}, f"{page.name} names {sorted(named - set(VERBS))}"


def test_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_parse(file: Path) -> None:
    if "data" not in yaml.safe_load(file.read_text()):
        pytest.skip("a recipe of another verb")
    config = parse_recipe(file)
    assert config.output
    assert config.stages


def test_recipes_of_the_documentation_parse(tmp_path: Path) -> None:
    recipes = blocks(ROOT / "docs" / "pretraining.md", "yaml")
    assert len(recipes) == 2
    for number, text in enumerate(recipes):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        assert parse_recipe(file).data.genome


def test_every_field_of_a_recipe_is_documented() -> None:
    from megabase.tasks.config import PretrainConfig

    text = (ROOT / "docs" / "pretraining.md").read_text()
    groups = {"data", "devices", "model", "objective", "optim", "stages"}
    missing = [
        name
        for name in _field_names(PretrainConfig)
        if name not in groups and f"`{name}`" not in text
    ]
    assert missing == []


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    result = python(_HELP, tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == {"failed": {}, "heavy": []}
