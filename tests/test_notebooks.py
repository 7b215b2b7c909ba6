"""The notebooks of the documentation run, say what they show, and are small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from tests.test_docs import same
from tools.notebooks import run

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def shown(notebook: Any) -> Iterator[tuple[str, str]]:
    """Give the text of each code cell, and what it printed or gave; pictures are not compared."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [one.get("text") or one.data["text/plain"] for one in cell.outputs]
            yield cell.source, "\n".join(texts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_what_it_shows(path: Path) -> None:
    kept = shown(nbformat.read(path, as_version=4))
    for (source, expected), (_, found) in zip(kept, shown(run(path)), strict=True):
        assert same(expected, found), f"{source}\nexpected\n{expected}\nfound\n{found}"


def test_notebooks_are_small_and_hold_outputs_but_no_paths_of_a_machine() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert all(one.execution_count for one in cells if one.cell_type == "code"), path.name
        assert path.stat().st_size < 150_000, path.name
        assert not re.search(r"/(tmp|work|home|root|usr)/", path.read_text()), path.name
