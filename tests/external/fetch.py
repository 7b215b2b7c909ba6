"""Fetch the common tests of the installed transformers from the package index.

They are in the source archive of its release only. ``python tests/external/fetch.py`` prints the
folder to put on the path; ``import transformers_tests.test_modeling_common`` then works.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "transformers-tests"

# What the common tests import of other test folders, which the archive leaves out.
_MISSING = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        '    "return_dict": False, "output_hidden_states": True, "chunk_size_feed_forward": 5,\n'
        '    "architectures": ["BertModel"], "id2label": {0: "label"}, "label2id": {"label": 0},\n'
        '    "problem_type": "regression", "dtype": "float16",\n'
        "}\n"
    ),
}


class FetchError(Exception):
    """The archive cannot be had."""


def fetch() -> Path:
    """Give the folder that holds the package ``transformers_tests``; fetch it when it is not there.

    Raises
    ------
    FetchError
        When the package index does not answer or lacks the archive.
    """
    release = version("transformers")
    folder = CACHE / release
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
            "transformers", "--no-build-isolation", f"transformers=={release}", "--dest", work,
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(work).glob("*.tar.gz"))
        if not archives:
            raise FetchError(f"no source archive of transformers {release}: {run.stderr[-500:]}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(work, filter="data")
        tests = next(Path(work).glob("transformers-*/tests"))
        for name, text in _MISSING.items():
            path = tests / name
            path.parent.mkdir(exist_ok=True)
            (path.parent / "__init__.py").touch()
            if not path.exists():
                path.write_text(text)
        (tests / "__init__.py").touch()
        package = Path(work) / "done" / "transformers_tests"
        package.parent.mkdir()
        tests.rename(package)
        if not folder.exists():
            package.parent.rename(folder)
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"{fetch()}\n")
