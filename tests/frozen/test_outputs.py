"""Outputs of every verb on small inputs stay what they are.

``MEGABASE_RECORD=1`` writes ``expected/`` anew: in a commit that says which output changed and why.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
from pathlib import Path

import pytest
import torch
from frozen_outputs import CASES, Case, difference, make_inputs, render

from megabase.cli.main import main
from megabase.models.auto import load_tokenizer
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM

EXPECTED = Path(__file__).parent / "expected"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("frozen")
    make_inputs(found)
    assert main(["genome", "build", str(found / "genome.fa"), "-o", str(found / "genome.mb")]) == 0
    torch.manual_seed(0)
    config = CaduceusConfig(d_model=16, n_layer=2, rcps=True)
    CaduceusForMaskedLM(config).save_pretrained(found / "masked")
    load_tokenizer().save_pretrained(found / "masked")
    return found


def words(case: Case, folder: Path, *more: str) -> list[str]:
    return [*shlex.split(case.command.replace("@", str(folder))), *more]


# What is left out is said by a warning, which the suite would turn into an error.
@pytest.mark.filterwarnings("ignore::megabase.errors.LeftOutWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_output_is_what_it_was(case: Case, folder: Path) -> None:
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    assert main(words(case, folder)) == 0
    for output in case.outputs:
        found = render(folder / output).replace(str(folder), "@")
        kept = EXPECTED / f"{case.name}.{output.replace('/', '.')}.txt"
        if os.environ.get("MEGABASE_RECORD"):
            kept.write_text(found + "\n")
        what = difference(found, kept.read_text().removesuffix("\n"))
        assert what is None, f"{output}: {what}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::megabase.errors.LeftOutWarning")
@pytest.mark.parametrize("case", [c for c in CASES if c.processes], ids=lambda case: case.name)
def test_two_processes_write_the_same_bytes(case: Case, folder: Path) -> None:
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    if "@/tuned" in case.command and not (folder / "tuned").exists():
        assert main(words(next(c for c in CASES if c.name == "finetune"), folder)) == 0
    written = []
    for count in ("1", "2"):
        assert main(words(case, folder, "--workers", count, "--overwrite")) == 0
        written.append([(folder / output).read_bytes() for output in case.outputs])
    assert written[0] == written[1]
