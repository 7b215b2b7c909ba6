"""megabase evaluate and megabase report: a real run measured, and one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megabase.cli.main import main
from megabase.genome.store import Genome


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of eight channels after six steps on a genome of 6,000 bases."""
    folder = tmp_path_factory.mktemp("evaluate")
    letters = np.random.default_rng(4).choice(list("ACGTacgt"), size=6_000)
    (folder / "toy.fa").write_text(f">chr1\n{''.join(letters)}\n>chr2\n{'ACGGT' * 300}\n")
    store = Genome.build(folder / "toy.fa", folder / "toy.mb", name="toy")
    recipe = f"""
data: {{genome: {store.path}, validation: ["chr2:1-500"], test: ["chr2:501-1,500"]}}
model: {{d_model: 8, n_layer: 1, overrides: {{filter_order: 8}}}}
stages: [{{length: 32, steps: 3}}, {{length: 64}}]
global_batch: 4
steps: 6
eval_every: 2
log_every: 1
devices: {{accelerator: cpu, devices: 1, threads: 1}}
output: {folder / "run"}
"""
    (folder / "recipe.yaml").write_text(recipe)
    assert main(["pretrain", "--config", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


def test_causal_and_masked_models_meet_in_one_table(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Caduceus reads any length: its windows are those it was trained with."""
    recipe = (run.parent / "recipe.yaml").read_text()
    model = "model: {d_model: 8, n_layer: 1, family: caduceus, overrides: {rcps: true}}\n"
    lines = [
        model + "objective: {name: masked_lm}" if line.startswith("model:") else line
        for line in recipe.replace(str(run), str(tmp_path / "masked")).splitlines()
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    assert main(["pretrain", "--config", str(tmp_path / "recipe.yaml")]) == 0
    jsons = []
    for number, folder in enumerate((run, tmp_path / "masked")):
        jsons.append(str(tmp_path / f"{number}.json"))
        options = ["--no-context", "--no-baselines", "-o", jsons[-1]]
        assert main(["evaluate", str(folder), *options]) == 0
    windows = [json.loads(Path(file).read_text())["window"] for file in jsons]
    assert windows == [64, 64]
    capsys.readouterr()
    assert main(["compare", *jsons]) == 0
    table = capsys.readouterr().out
    assert "| pseudo-perplexity | bases on both sides | up to 63 |" in table
    assert "1,000 bases of toy" in table
    assert main(["evaluate", str(tmp_path / "masked" / "best"), "--no-context", "--no-baselines",
                 "-o", str(tmp_path / "best.json")]) == 0  # fmt: skip


def test_run_is_measured_on_its_test_regions_with_its_baselines(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", str(run), "-o", str(out), "--max-order", "3"]) == 0
    shown = capsys.readouterr().out
    for text in ("chr2:501-1,500", "Markov order 3", "rates fitted", "model", "best baseline:",
                 "bases of context", "toy (sha256"):  # fmt: skip
        assert text in shown
    assert "NOT HELD OUT" not in shown
    assert sorted(p.name for p in out.iterdir()) == [
        "evaluation-baselines.svg", "evaluation-context.svg", "evaluation.json",
    ]  # fmt: skip
    record = json.loads((out / "evaluation.json").read_text())
    assert record["overall"]["targets"] == 1_000
    assert record["train_overlap"] == 0
    assert record["baseline_bases"] == 6_000
    assert len(record["baselines"]) == 1 + 2 * 4
    assert [point["context"] for point in record["context"]] == [64]


def test_result_goes_to_the_run_and_is_not_overwritten_unasked(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = ["evaluate", str(run), "--no-baselines", "--no-context", "--max-windows", "3"]
    assert main(brief) == 0
    assert (run / "evaluation.json").is_file()
    capsys.readouterr()
    assert main(brief) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "evaluation.json exists" in error
    assert main([*brief, "--overwrite"]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "HyenaDNA on toy" in page
    assert main(["report", str(run)]) == 2
    again = ["pretrain", "--config", str(run.parent / "recipe.yaml"), "--overwrite"]
    assert main(again) == 0
    assert not (run / "report.html").exists()
    assert not (run / "evaluation.json").exists()


def test_training_regions_are_pointed_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--regions", "chr1:1-200", "chr2:501-600", "-o", str(tmp_path / "x.json")]
    assert main(["evaluate", str(run / "best"), *place, "--no-context", "--max-order", "1"]) == 0
    assert "NOT HELD OUT: 200 of 300 bases" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_checkpoint_outside_a_run_needs_genome_and_regions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(run / "best", model)
    genome = str(run.parent / "toy.mb")
    assert main(["evaluate", str(model)]) == 2
    assert "--genome is missing" in capsys.readouterr().err
    assert main(["evaluate", str(model), "--genome", genome]) == 2
    assert "--regions is missing" in capsys.readouterr().err
    request = ["evaluate", str(model), "--genome", genome, "--regions", "chr2", "--no-context"]
    assert main(request) == 0
    assert "no Markov baselines" in capsys.readouterr().out
    assert main([*request, "--train-regions", "chr1", "--max-order", "2"]) == 0
    assert "Markov order 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regions", "chr9"], "no contig 'chr9'"),
        (["--regions", "chr2:900-100"], "ends before it starts"),
        (["--regions", "chr2:1-9,000"], "past the end of contig"),
        (["--window", "100"], "does not fit the model, whose longest input is 66"),
        (["--context-lengths", "8"], "shorter than a target block"),
        (["--genome", "missing.mb"], "missing.mb"),
        (["--max-order", "20"], "between 0 and 14"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_bad_requests_end_with_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    out = tmp_path / "x.json"
    assert main(["evaluate", str(run), "-o", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_use_of_long_context_is_a_table_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the test regions of the run; the rows of a file are those of the terminal."""
    out = tmp_path / "long.tsv"
    asked = ["evaluate", str(run), "--long-context", "--segment", "10", "--count", "9",
             "--distances", "20", "50", "--distractors", "1"]  # fmt: skip
    assert main([*asked, "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    for text in ("9 segments of 10 bases, forward strand", "needle of 2", "toy (sha256"):
        assert text in shown
    first, *rows = out.read_text().splitlines()
    about = json.loads(first.removeprefix("#megabase: "))
    assert about["options"]["distances"] == [20, 50]
    assert rows[0].split("\t")[:6] == ["test", "distance", "copies", "n", "advantage", "low"]
    assert len(rows) == 1 + 2 * 5
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["distance"] for row in found] == [20, 50] * 5
    assert main([*asked, "-o", str(out)]) == 2
    assert "long.tsv exists" in capsys.readouterr().err
    assert main([*asked, "-o", str(tmp_path / "long.json")]) == 2
    assert "expected one of .parquet, .tsv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--long-context", "--stride", "9"], "--stride is not for --long-context"),
        (["--long-context"], "two copies of 64 bases do not fit an input of 66 positions; take "
         "shorter ones (--segment)"),
        (["--distances", "64", "--seed", "1"], "--distances, --seed are for --long-context"),
    ],
)  # fmt: skip
def test_options_of_one_measure_are_refused_by_the_other(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["evaluate", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("which", ["two-sided", "k-mers"])
def test_models_without_probabilities_of_bases_are_refused(
    which: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from megabase.models.dnabert import DNABERTConfig, DNABERTForMaskedLM
    from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

    if which == "two-sided":
        shape = {"d_model": 8, "n_layer": 1, "max_seq_len": 66, "filter_order": 8}
        model = HyenaDNAForCausalLM(HyenaDNAConfig(**shape, bidirectional="two_sided"))
        message = "is bidirectional"
    else:
        model = DNABERTForMaskedLM(
            DNABERTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                          intermediate_size=16, vocab_size=69, k=3)
        )  # fmt: skip
        message = "longer than a base"
    model.save_pretrained(tmp_path / "model")
    genome = ["--genome", str(run.parent / "toy.mb"), "--regions", "chr2", "--no-baselines"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "model"), "--window", "32", *genome]) == 2
    assert message in capsys.readouterr().err


def test_a_masked_model_is_asked_as_one(run: Path) -> None:
    from megabase.data.regions import Regions
    from megabase.evaluate.perplexity import evaluate
    from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
    from megabase.options import EvaluateOptions

    store = Genome(run.parent / "toy.mb")
    model = CaduceusForMaskedLM(CaduceusConfig(d_model=8, n_layer=1))
    found = evaluate(
        model,
        store,
        Regions.read(store, ["chr2:1-200"]),
        EvaluateOptions(window=32, context_lengths=[], baselines=False),
    )
    assert found.objective == "masked"


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_help_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys; from megabase.cli.main import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "usage: megabase" in shown
    assert shown.splitlines()[-1] == "[]"


def test_report_of_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
