"""docs/extending.md works as written, from a package that is installed beside megabase."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import megabase
from megabase.errors import ConfigError, MegabaseError
from megabase.genome.store import Genome
from megabase.models import load_model
from megabase.models.adapt.build import build_language_model
from megabase.models.decoder import MIXERS, register_mixer
from megabase.models.families import FAMILIES, Family, register_family
from megabase.models.hyenadna import HyenaDNAConfig
from megabase.objectives.base import OBJECTIVES, register_objective
from megabase.registry import Registry
from megabase.tasks.config import ModelConfig

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SEQUENCE = "ACGTTGCAAGCTTCGATGCATGCCGATATCGGCTAAGCTTAGCCGATTACGGC" * 40


def blocks(language: str) -> list[str]:
    """The examples of the page in one language."""
    return [text for kind, text in BLOCK.findall(PAGE.read_text()) if kind == language]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's modules and the metadata that pip writes for its entry points."""
    folder = tmp_path_factory.mktemp("site")
    for text in blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", text):
            (folder / name.group(1)).write_text(text)
    project = tomllib.loads(blocks("toml")[0])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(header)
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a genome and sequences."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "genome.fa").write_text(f">chr1\n{SEQUENCE}\n")
    (folder / "sequences.fa").write_text(f">a\n{SEQUENCE[:90]}\n>b\n{SEQUENCE[30:70]}\n")
    Genome.build([folder / "genome.fa"], folder / "genome.mb", name="toy")
    return folder


def run(site: Path, work: Path, *command: str) -> str:
    """Run a command of the page in a process that has the package."""
    source = str(Path(megabase.__file__).parents[1])
    path = os.pathsep.join([str(site), source])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=work, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def verb(site: Path, work: Path, text: str) -> str:
    """Run a bash block of the page, which is one megabase command."""
    name, *arguments = shlex.split(text.replace("\\\n", " "))
    assert name == "megabase"
    return run(site, work, "-m", "megabase", *arguments)


def test_a_mixer_is_pretrained_and_its_folder_scores(site: Path, work: Path) -> None:
    train = next(text for text in blocks("bash") if "mixers" in text)
    verb(site, work, train)
    log = (work / "run-mixer/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line["kind"] == "train" for line in lines)
    (config,) = {path.read_text() for path in (work / "run-mixer").glob("last/config.json")}
    assert json.loads(config)["mixers"] == ["moving_average", "hyena"]
    verb(site, work, "megabase score run-mixer sequences.fa -o mixer.tsv")
    assert len((work / "mixer.tsv").read_text().splitlines()) >= 3


def test_a_family_is_loaded_and_scored(site: Path, work: Path) -> None:
    script = next(text for text in blocks("python") if "save_pretrained" in text)
    run(site, work, "-c", script)
    # A process that never imports the family's module knows it by its entry point.
    verb(site, work, next(text for text in blocks("bash") if " score " in text))
    assert len((work / "scores.tsv").read_text().splitlines()) >= 3


def test_an_objective_is_pretrained(site: Path, work: Path) -> None:
    verb(site, work, next(text for text in blocks("bash") if "smoothed" in text))
    assert (work / "run-objective/last/config.json").is_file()


def test_the_package_holds_the_modules_that_its_entry_points_name() -> None:
    project = tomllib.loads(blocks("toml")[0])
    assert project["build-system"]["build-backend"].startswith("setuptools")
    modules = set(project["tool"]["setuptools"]["py-modules"])
    assert modules == {n[1] for text in blocks("python") if (n := re.match(r"# (\w+)\.py\n", text))}
    groups = project["project"]["entry-points"].values()
    assert modules == {value.split(":")[0] for points in groups for value in points.values()}
    assert any("pip install" in text for text in blocks("bash"))


def test_what_is_not_known_says_how_it_becomes_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard"}')
    for asked, group in (
        (lambda: MIXERS["unheard"], "mixers"),
        (lambda: HyenaDNAConfig(n_layer=2, mixers=["unheard", "hyena"]), "mixers"),
        (lambda: OBJECTIVES["unheard"], "objectives"),
        (lambda: FAMILIES["unheard"], "families"),
        (lambda: load_model(tmp_path), "families"),
        (lambda: build_language_model(ModelConfig(family="unheard"), 64), "families"),
    ):
        with pytest.raises(MegabaseError, match=rf"an entry point of megabase\.{group} \(docs/ext"):
            asked()


def test_unknown_and_taken_names_are_refused() -> None:
    assert {"attention", "hyena"} <= set(MIXERS)
    assert {"causal_lm", "masked_lm"} <= set(OBJECTIVES)
    with pytest.raises(ConfigError, match="did you mean 'hyena'"):
        MIXERS["hyenna"]
    with pytest.raises(ConfigError, match="another mixer named 'hyena'"):
        register_mixer("hyena", lambda config, layer: None)
    with pytest.raises(ConfigError, match="another objective named 'causal_lm'"):
        register_objective("causal_lm", object)
    with pytest.raises(ConfigError, match="another family named 'gpt'"):
        register_family(Family("gpt", module="megabase.models.hyenadna"))
    register_family(FAMILIES["gpt"])  # the same one again is fine


def test_a_registry_adds_once() -> None:
    added: list[int] = []
    registry = Registry[int]("number", "megabase.tests.nothing", added.append)
    registry.register("one", 1)
    registry.register("one", 1)
    assert added == [1]
    assert list(registry) == ["one"]
    assert "two" not in registry
