"""No verb writes a number that a broken model gave: the error names the model and the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megabase.cli.main import main
from megabase.errors import NotFiniteError
from megabase.genome.store import Genome
from megabase.inference.embedding import embed
from megabase.inference.generation.generate import GenerateOptions, generate
from megabase.inference.scoring import score
from megabase.models.auto import load_model
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.hyenadna import (
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
)
from megabase.models.loading import load

SNV = 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., None]) -> Path:
    """Models, a genome, and inputs of every kind."""
    folder = tmp_path_factory.mktemp("finite")
    wanted = {
        "causal": (HyenaDNAForCausalLM, {}),
        "labels": (HyenaDNAForSequenceClassification, {"num_labels": 2}),
        "bases": (HyenaDNAForTokenClassification, {"num_labels": 2}),
    }
    save_tiny(folder, wanted, 120)
    torch.manual_seed(0)
    CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=1)).save_pretrained(folder / "masked")
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 600))
    (folder / "g.fa").write_text(f">chr1\n{letters}\n")
    Genome.build(folder / "g.fa", folder / "g.mb")
    alt = "ACGT"[("ACGT".index(letters[SNV - 1]) + 1) % 4]
    (folder / "v.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        f"chr1\t{SNV}\t.\t{letters[SNV - 1]}\t{alt}\t.\t.\t.\n"
    )
    (folder / "s.fa").write_text(f">first\n{letters[:60]}\n>second\n{letters[60:160]}\n")
    return folder


def broken(folder: Path, name: str, value: float, to: Path, *, every: bool = False) -> Path:
    """Copy a model with one weight set to a value, or the scale of its last norm."""
    to.mkdir()
    for file in (folder / name).iterdir():
        if file.suffix != ".safetensors":
            (to / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / name / "model.safetensors")
    if every:
        for key in tensors:
            if key.endswith(("ln_f.weight", "norm_f.weight", "norm_f.submodule.weight")):
                tensors[key].fill_(value)
    else:
        next(t for k, t in tensors.items() if k.endswith("out_proj.weight")).view(-1)[3] = value
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


CASES = {
    "score": ("causal", "score {m} {d}/s.fa -o {o}.tsv"),
    "score masked": ("masked", "score {m} {d}/s.fa -o {o}.tsv"),
    "variants": (
        "causal",
        "variants {m} {d}/v.vcf {d}/g.mb --window 64 -o {o}.tsv",
    ),
    "variants plain": (
        "causal",
        "variants {m} {d}/v.vcf {d}/g.mb --methods cosine --window 64 -o {o}.vcf",
    ),
    "variants masked": (
        "masked",
        "variants {m} {d}/v.vcf {d}/g.mb --window 64 -o {o}.tsv",
    ),
    "ism": (
        "causal",
        "ism {m} chr1:299-301 {d}/g.mb --window 64 -o {o}.tsv",
    ),
    "embed": ("causal", "embed {m} {d}/s.fa -o {o}.npz"),
    "embed bases": ("causal", "embed {m} {d}/s.fa --pooling none -o {o}.npz"),
    "predict": ("labels", "predict {m} {d}/s.fa -o {o}.tsv"),
    "predict bases": ("bases", "predict {m} --genome {d}/g.mb --regions chr1:1-100 -o {o}.bw"),
    "attribute": ("labels", "attribute {m} {d}/s.fa --target 0 --steps 2 -o {o}.npz"),
    "generate": ("causal", "generate {m} --length 20 -o {o}.fa"),
    "evaluate": (
        "causal",
        "evaluate {m} --genome {d}/g.mb --regions chr1 --no-baselines --no-context -o {o}.json",
    ),
    "report": ("causal", "report {m} --genome {d}/g.mb --region chr1:250-350 -o {o}.html"),
}
RECORD = {
    # Batches begin with the longest sequence.
    "score": "for second", "score masked": "for second", "embed": "sequence first",
    "embed bases": "sequence first", "predict": "sequence second", "attribute": "for first",
    "variants": "for chr1:300:", "variants plain": "for chr1:300:",
    "variants masked": "for chr1:300:", "ism": "for chr1:299:",
    "generate": "generated sequence 0", "predict bases": "for chr1, bases 1 to 120",
    "evaluate": "for chr1:2-121", "report": "for chr1:",
}  # fmt: skip


def run(case: str, model: Path, place: Path, tmp_path: Path) -> tuple[int, list[Path]]:
    call = CASES[case][1].format(d=place, m=model, o=tmp_path / "out").split()
    if call[0] not in ("evaluate", "report"):
        call += ["--workers", "1"]
    status = main(call)
    return status, sorted(file for file in tmp_path.iterdir() if file.name.startswith("out."))


@pytest.mark.parametrize("case", CASES)
def test_a_weight_that_is_not_finite_is_an_error_at_loading(
    case: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = [np.nan, np.inf, -np.inf][len(case) % 3]
    model = broken(place, CASES[case][0], value, tmp_path / "model")
    status, files = run(case, model, place, tmp_path)
    error = capsys.readouterr().err.strip()
    assert status == 2
    assert len(error.splitlines()) == 1
    assert str(model) in error
    assert "1 of " in error
    assert "out_proj.weight are not finite (NaN or infinite), the first at [0, 3]" in error
    assert [file.name for file in files if file.suffix != ".partial"] == []


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
def test_an_overflow_behind_finite_weights_names_model_and_record(
    case: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = broken(place, CASES[case][0], 3e38, tmp_path / "model", every=True)
    status, files = run(case, model, place, tmp_path)
    error = capsys.readouterr().err.strip()
    assert status == 2
    assert len(error.splitlines()) == 1
    assert "not finite" in error
    assert "model gave" in error
    assert RECORD[case] in error
    assert [file.name for file in files if file.suffix != ".partial"] == []


def test_training_verbs_and_python_refuse_such_a_model_too(place: Path, tmp_path: Path) -> None:
    folder = broken(place, "causal", np.nan, tmp_path / "model")
    for load_it in (
        lambda: load_model(folder),  # finetune, prompt, icl, pretrain begin here
        lambda: load_model(folder, "sequence-classification", new_head=True, num_labels=2),
        lambda: load(folder, head="none"),
    ):
        with pytest.raises(NotFiniteError, match=r"out_proj.weight"):
            load_it()
    model = load_model(place / "causal")
    with torch.no_grad():
        next(b for name, b in model.named_buffers() if name.endswith(".t")).view(-1)[0] = np.inf
    for ask in (
        lambda s, m: score(m, s),
        lambda s, m: list(generate(m, s, GenerateOptions(2))),
        lambda s, m: embed(m, s),
    ):
        with pytest.raises(
            NotFiniteError, match=r"HyenaDNAForCausalLM: .* of the tensor .*\.t are"
        ):
            ask(["ACGTACGT"], model)
