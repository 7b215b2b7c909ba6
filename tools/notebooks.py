"""Run the notebooks of the documentation anew and write their outputs into them.

``make notebooks`` runs all; ``python tools/notebooks.py docs/notebooks/labels.ipynb`` runs one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
SECONDS = 1_800
"""A cell may take: several times what the slowest takes on a busy machine."""


def run(path: Path) -> Any:
    """Run a notebook in an empty folder; give it and its outputs, without warnings and versions."""
    notebook: Any = nbformat.read(path, as_version=4)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=SECONDS, resources=where, record_timing=False).execute()
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("text/html", None)  # the same as in text/plain, longer
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(run(path), path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
