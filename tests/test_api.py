"""The public API: every job in a few lines, from memory and into files; a cheap import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import megabase as mb

CONTIG = "".join(np.random.default_rng(0).choice(list("ACGT"), 6000).tolist())
SMALL = {"d_model": 16, "n_layer": 1}


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text(f">chr1\n{CONTIG}\n>chr2\n{CONTIG[::-1]}\n")
    return path


@pytest.fixture(scope="module")
def model() -> mb.Model:
    return mb.load(device="cpu")


def labeled(folder: Path, name: str, seed: int, rows: int) -> Path:
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("ACGT"), 40).tolist()) for _ in range(rows)]
    table = pl.DataFrame({"sequence": texts, "label": ["yes" if t < "G" else "no" for t in texts]})
    table.write_csv(folder / name)
    return folder / name


def test_score(model: mb.Model, fasta: Path, tmp_path: Path) -> None:
    scores = model.score(["ACGTACGTACGT", CONTIG])
    assert 2 < scores.perplexity < 6
    assert scores.table["length"].to_list() == [12, 6000]
    assert model.score(fasta).table["name"].to_list() == ["chr1", "chr2"]
    out = model.score(fasta, out=tmp_path / "scores.tsv", workers=1)
    assert pl.read_csv(out, separator="\t", comment_prefix="#").height == 2
    (tmp_path / "x.bed").write_text("chr1\t10\t50\n")
    genome = mb.Genome(fasta)
    found = model.score(tmp_path / "x.bed", genome, strands="both")
    assert found.table["length"].to_list() == [40]


def test_variants_and_mutagenesis(model: mb.Model, fasta: Path, tmp_path: Path) -> None:
    genome = mb.Genome(fasta)
    ref = CONTIG[1000]
    alt = "A" if ref != "A" else "C"
    frame = model.score_variants([f"chr1:1001:{ref}>{alt}"], genome, window=64).table
    assert np.isfinite(frame["llr_window"].to_list()).all()
    vcf = tmp_path / "in.vcf"
    vcf.write_text(f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
                   f"chr1\t1001\t.\t{ref}\t{alt}\t.\t.\t.\n")  # fmt: skip
    out = model.score_variants(vcf, genome, out=tmp_path / "out.vcf", window=64, workers=1)
    assert "MB_LLR_WINDOW=" in out.read_text().upper().splitlines()[-1]
    found = model.ism("chr1:1,001-1,010", genome, window=64)
    assert found.ref == CONTIG[1000:1010]


def test_embed_and_attribute(model: mb.Model, fasta: Path, tmp_path: Path) -> None:
    found = model.embed(["ACGT" * 10, "TTTT" * 10], layer=-1, pooling="mean")
    assert found.vectors.shape[0] == 2
    out = model.embed(fasta, out=tmp_path / "e.npy", long="chunks", workers=1)
    assert np.load(out).shape == (2, found.vectors.shape[1])


def test_generate_and_evaluate(model: mb.Model, fasta: Path, tmp_path: Path) -> None:
    (made,) = model.generate("ACGT", length=30, top_k=4, temperature=0.9, seed=0)
    assert len(made.sequence) == 30
    out = model.generate("ACGT", length=30, seed=0, samples=2, out=tmp_path / "made.fa")
    assert out.read_text().count(">") == 2
    options = mb.EvaluateOptions(window=256, max_windows=4, context_lengths=[])
    found = model.evaluate(fasta, regions=["chr2"], options=options)
    assert found.overall.perplexity_acgt > 1


def test_finetune_predict_attribute(tmp_path: Path) -> None:
    train, test = labeled(tmp_path, "train.csv", 0, 40), labeled(tmp_path, "test.csv", 1, 20)
    run = mb.finetune(mb.FinetuneConfig(
        family="hyenadna", overrides=SMALL, train=str(train), test=str(test), epochs=1,
        output=str(tmp_path / "tuned"), eval_batch=8, devices=mb.DeviceConfig(accelerator="cpu"),
    ))  # fmt: skip
    assert 0 <= run.metrics["accuracy"] <= 1
    found = run.model.predict(["ACGT" * 10])
    assert found.classes == ("no", "yes")
    (explained,) = run.model.attribute(["ACGT" * 10], target="yes", steps=4)
    assert explained.values.shape == (40,)


def test_pretrain_from_settings_and_from_a_recipe(fasta: Path, tmp_path: Path) -> None:
    genome = mb.Genome(fasta)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path / 'run'}\nsteps: 2\nglobal_batch: 2\nstages: [{{length: 64}}]\n"
        f"data: {{genome: {genome.path}, validation: [chr2]}}\nmodel: {{overrides: {SMALL}}}\n"
        "devices: {accelerator: cpu}\n".replace("'", "")
    )
    run = mb.pretrain(recipe)
    assert run.model.score(["ACGTACGT"]).perplexity > 1
    assert 1 < run.metrics["perplexity"] < 20  # of the validation at the end
    options = mb.EvaluateOptions(context_lengths=[], baselines=False)
    found = run.model.evaluate(options=options, regions=["chr2"])
    assert found.overall.targets > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outptu: x\n", "there is no field outptu; did you mean output"),
        ("output: x\n", "expected data, which the recipe does not give"),
        ("output: x\ndata: {genome: g.mb}\nsteps: many\n", "steps cannot be 'many'"),
        ("output: x\ndata: [g.mb]\n", "expected fields of DataConfig"),
        ("- x\n", "expected fields of PretrainConfig"),
    ],
)
def test_a_recipe_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(mb.MegabaseError, match=rf"recipe.yaml.*{message}"):
        mb.pretrain(recipe)


def test_the_model_of_a_prompt(tmp_path: Path) -> None:
    train, test = labeled(tmp_path, "train.csv", 0, 40), labeled(tmp_path, "test.csv", 1, 20)
    run = mb.prompt(mb.PromptConfig(
        model="default", train=str(train), test=str(test), epochs=1, output=str(tmp_path / "p"),
        eval_batch=8, devices=mb.DeviceConfig(accelerator="cpu"),
    ))  # fmt: skip
    assert run.model.predict(["ACGT" * 10]).classes == ("no", "yes")


def test_benchmark(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "task"
    folder.mkdir(parents=True)
    labeled(folder, "train.csv", 0, 60)
    labeled(folder, "test.csv", 1, 30)
    table = mb.benchmark(mb.BenchmarkConfig(
        suite="table", data=str(tmp_path / "data"), models="kmer:2", seeds=1, bootstrap=0,
        output=str(tmp_path / "sweep"),
    ))  # fmt: skip
    assert table["model"].to_list() == ["kmer:2"]
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text(
        f"suite: table\noutput: {tmp_path / 'two'}\ndata: {tmp_path / 'data'}\n"
        "models: [overlap, {name: words, start: 'kmer:2'}]\nbootstrap: 0\n"
    )
    assert mb.benchmark(recipe)["model"].to_list() == ["overlap", "words"]


def test_options_of_files_need_a_file(model: mb.Model) -> None:
    with pytest.raises(mb.MegabaseError, match="workers: for work on a file; name it with out="):
        model.score(["ACGT"], workers=2)
    with pytest.raises(mb.MegabaseError, match="out= needs the sequences as a file"):
        model.score(["ACGT"], out="x.tsv")
    with pytest.raises(mb.MegabaseError, match="prefix: for work on a file"):
        model.score_variants(["chr1:1:A>C"], "g.fa", prefix="X")


def test_names_of_files_and_sequences_are_told_apart(model: mb.Model, tmp_path: Path) -> None:
    assert model.score(CONTIG).table["length"].to_list() == [6000]  # too long for a name
    with pytest.raises(mb.MegabaseError, match=r"there is no file .*none\.fa"):
        model.score(str(tmp_path / "none.fa"))
    (tmp_path / "prompts.fa").write_text(">p\nACGT\n>q\nTTTT\n")
    made = model.generate(str(tmp_path / "prompts.fa"), length=5)
    assert [one.name for one in made] == ["p", "q"]


def test_misspelled_options_are_refused(model: mb.Model, fasta: Path, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"overwrit": True}
    with pytest.raises(mb.MegabaseError, match="no option overwrit; did you mean overwrite"):
        model.score(fasta, out=tmp_path / "x.tsv", **wrong)
    wrong = {"batch_token": 1}
    with pytest.raises(mb.MegabaseError, match="no option batch_token; did you mean batch_tokens"):
        model.score_variants(["chr1:1:A>C"], fasta, **wrong)
    wrong = {"strnads": "both"}
    with pytest.raises(mb.MegabaseError, match="no option strnads; did you mean strands"):
        model.score(["ACGT"], **wrong)


def test_an_evaluation_needs_regions(model: mb.Model, fasta: Path) -> None:
    with pytest.raises(mb.MegabaseError, match=r"regions=\.\.\. is missing"):
        model.evaluate(fasta)
    with pytest.raises(mb.MegabaseError, match=r"genome=\.\.\. is missing"):
        model.evaluate()


def test_the_model_is_one_of_transformers(model: mb.Model) -> None:
    import transformers

    assert isinstance(model.hf, transformers.PreTrainedModel)
    assert model.tokenizer("ACGT")["input_ids"]
    said = "Model('megabase default', HyenaDNAForCausalLM, 1,877,120 parameters, cpu)"
    assert repr(model) == said


def test_importing_is_cheap_and_names_are_there() -> None:
    code = (
        "import sys, json, megabase; heavy = {'torch', 'transformers', 'polars', 'numpy'};"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout) == []
    assert all(hasattr(mb, name) for name in mb.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        mb.nonsense  # noqa: B018


def test_a_missing_fasta_is_no_store_to_be_made() -> None:
    with pytest.raises(mb.MegabaseError, match=r"there is no FASTA file .*none\.fa\.gz$"):
        mb.Genome("none.fa.gz")
    with pytest.raises(mb.MegabaseError, match=r"make one with: megabase genome build"):
        mb.Genome("none.mb")
