"""A run goes on only with the inputs that it began with."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from megabase.cli.main import main
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.tokenizers.character import DNATokenizer

RUN = "--steps 2 --devices.accelerator cpu --devices.threads 1 --output run"


def make_table(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows = ["".join(draw.choice(list("ACGT"), 16)) for _ in range(12)]
    text = "".join(f"{row},{'ab'[n % 2]}\n" for n, row in enumerate(rows))
    Path("rows.csv").write_text("sequence,label\n" + text)


def make_genome(seed: int) -> None:
    draw = np.random.default_rng(seed)
    text = "".join(draw.choice(list("ACGT"), 400))
    Path("g.fa").write_text(f">chr1\n{text}\n>chr2\n{text[::2]}\n")
    assert main(["genome", "build", "g.fa", "-o", "g.mb", "--overwrite"]) == 0


def make_places(first: int) -> None:
    Path("places.bed").write_text(f"chr1\t{first}\t{first + 50}\n")


def make_model(seed: int) -> None:
    torch.manual_seed(seed)
    shape = {"d_model": 8, "n_layer": 1, "max_seq_len": 66, "filter_order": 8}
    HyenaDNAForCausalLM(HyenaDNAConfig(**shape)).save_pretrained("lm")
    DNATokenizer(model_max_length=66).save_pretrained("lm")


MAKE = {"genome": make_genome, "table": make_table, "places": make_places, "model": make_model}


@pytest.mark.parametrize(
    ("call", "changed", "named"),
    [
        (f"pretrain --config pretrain.yaml {RUN}", "genome", "genome.sha256"),
        (f"pretrain --config pretrain.yaml {RUN}", "places", "splits.train.sha256"),
        (f"pretrain --config start.yaml {RUN}", "model", "start.sha256"),
        (f"finetune lm --train rows.csv {RUN}", "table", "train.sha256"),
        (f"finetune lm --train rows.csv --test rows.csv {RUN}", "table", "test.sha256"),
        (f"finetune lm --train rows.csv {RUN}", "model", "start.sha256"),
        (f"finetune lm --train rows.csv --sweep {{\"seed\":[1]}} {RUN}", "table", "train.sha256"),
        (f"prompt lm --train rows.csv {RUN}", "table", "train.sha256"),
        (f"prompt lm --train rows.csv {RUN}", "model", "start.sha256"),
        ("icl lm --train rows.csv --test rows.csv --devices.accelerator cpu --output run",
         "table", "test.sha256"),
    ],
)  # fmt: skip
def test_a_changed_input_is_refused(
    call: str, changed: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for make in MAKE.values():
        make(1)
    common = (
        "data: {genome: g.mb, exclude: [places.bed], validation: ['chr2:1-100']}\n"
        "stages: [{length: 32, micro_batch: 2}]\nglobal_batch: 2\noutput: run\n"
    )
    shape = "model: {d_model: 8, n_layer: 1, overrides: {filter_order: 8}}\n"
    Path("pretrain.yaml").write_text(common + shape)
    Path("start.yaml").write_text(f"{common}model: {{init_from: lm}}\n")
    assert main(call.split()) == 0
    kept = {path: path.read_bytes() for path in Path("run").rglob("*.json")}
    assert main([*call.split(), "--resume"]) == 0  # the same inputs
    MAKE[changed](2)
    capsys.readouterr()
    assert main([*call.split(), "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        rf"{re.escape(named)}: sha256 (\w{{12}}) then, sha256 (?!\1)\w{{12}} now", error
    )
    assert "was made from other inputs" in error
    assert not list(Path("run").rglob(".lock"))
    MAKE[changed](1)
    assert main([*call.split(), "--resume"]) == 0
    assert kept.keys() <= set(Path("run").rglob("*.json"))
