"""megabase pretrain: quick help, one-line errors, a run that its own recipe re-creates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from megabase.cli.main import main
from megabase.genome.store import Genome


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genome")
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    draw = np.random.default_rng(3)
    with (folder / "toy.fa").open("w") as file:
        for name, length in (("chr1", 6000), ("chr2", 2000)):
            text = letters[draw.integers(4, size=length)].tobytes().decode()
            file.write(f">{name}\n{text[:700]}{'N' * 200}{text[900:]}\n")
    Genome.build([folder / "toy.fa"], folder / "toy.mb", name="toy")
    return folder / "toy.mb"


@pytest.fixture
def recipe(genome: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "data": {
                    "genome": str(genome),
                    "validation": ["chr2:1-1,000"],
                    "test": ["chr2:1,001-2,000"],
                },
                "model": {"d_model": 8, "n_layer": 1, "overrides": {"filter_order": 8}},
                "stages": [
                    {"length": 32, "micro_batch": 4, "steps": 4},
                    {"length": 64, "micro_batch": 2},
                ],
                "global_batch": 8,
                "steps": 10,
                "eval_every": 5,
                "checkpoint_every": 3,
                "log_every": 1,
                "devices": {"accelerator": "cpu", "devices": 1, "threads": 1},
                "output": str(tmp_path / "run"),
            }
        )
    )
    return path


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\nfrom megabase.cli.main import main\n"
        "try:\n    main(['pretrain', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert "Sequences per optimizer step" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.lrr", "1"], r"no option --optim\.lrr; did you mean '--optim\.lr'\?"),
        (["--stages", "[{length: 8, stps: 3}]"], r"no field 'stages\.stps'.*'stages\.steps'"),
        (["--model.preset", "tiny-1"], r"tiny-1"),
        (["--model.overrides", "{d_modle: 3}"], r"d_modle"),
        (["--model.max-length", "40"], r"stages\[1\]\.length is 64, above .* 40"),
        (["--optim.lr", "-1", "--optim.clip", "0"], r"lr is -1.*clip is 0"),
        (["--data.genome", "nowhere.mb"], r"nowhere\.mb"),
        (["--data.validation", "[chr9]"], r"chr9.*chr1"),
        (["--data.validation", "['chr2:1-3000']"], r"chr2.*3,?000"),
        (["--data.include", "['chr1:1-40']"], r"window of 65 bases"),
        (["--data.eval-length", "4000", "--model.max-length", "5000"], r"no window of 4,000"),
        (["--data.windows", "tiled", "--stages", "[{length: 9000, steps: 1}]"], r"9,00[01]"),
        (["--resume"], r"no run to resume in .*run"),
        (["--config", "none.yaml"], r"none\.yaml"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    import re

    assert main(["pretrain", "--config", str(recipe), *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert err.startswith("megabase pretrain: error: ")
    assert re.search(message, err), err
    assert not (recipe.parent / "run").exists()
    assert "Traceback" not in out


def test_misspelled_field_in_the_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text().replace("global_batch:", "global_bach:"))
    assert main(["pretrain", "--config", str(recipe)]) == 2
    err = capsys.readouterr().err
    assert "no field 'global_bach'; did you mean 'global_batch'?" in err
    assert err.count("\n") == 1


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--config", str(recipe), "--dry-run"]) == 0
    captured = capsys.readouterr()
    text = captured.out + captured.err
    for part in ("parameters", "stage 0", "4 steps of 8 x 32 = 256 tokens", "10 steps", "memory"):
        assert part in text
    assert not (recipe.parent / "run").exists()


def test_a_run_that_cannot_fit_stops_before_its_first_step(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = ["--stages", "[{length: 64, steps: 1}]", "--global-batch", "400000000"]
    assert main(["pretrain", "--config", str(recipe), "--dry-run", *huge]) == 2
    assert "GB are available" in capsys.readouterr().err
    assert main(["pretrain", "--config", str(recipe), "--dry-run", "--force", *huge]) == 0


def test_a_run_and_what_becomes_of_it(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", "--config", str(recipe)]) == 0
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "result.json",
        "checkpoints",
        "best",
        "last",
    }
    data = json.loads((run / "data.json").read_text())
    assert data["genome"]["name"] == "toy"
    assert len(data["genome"]["sha256"]) == 64
    assert data["splits"]["train"]["bases"] == 6000
    assert data["splits"]["test"]["regions"] == ["chr2:1,001-2,000"]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert len(losses(run)) == 10

    # The checkpoint is a folder of transformers.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import megabase.models  # noqa: F401 (registers the families)

    model = AutoModelForCausalLM.from_pretrained(run / "best")
    tokenizer = AutoTokenizer.from_pretrained(run / "best")
    logits = model(**tokenizer("ACGTN", return_tensors="pt")).logits
    assert logits.shape[-1] == 16

    # A second run there is refused; resuming a finished one does nothing.
    capsys.readouterr()
    assert main(["pretrain", "--config", str(recipe)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["pretrain", "--config", str(run / "config.yaml"), "--resume"]) == 0

    # The saved recipe re-creates the run, to the last bit.
    again = ["--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")]
    assert main(["pretrain", *again]) == 0
    assert losses(tmp_path / "again") == losses(run)
    one, two = (folder / "last/model.safetensors" for folder in (run, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()

    # Other data cannot be slipped in on resume.
    capsys.readouterr()
    status = main(["pretrain", "--config", str(recipe), "--resume", "--seed", "5"])
    assert status == 2
    assert "seed: 0 then, 5 now" in capsys.readouterr().err


def test_printed_config_is_the_resolved_recipe(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--config", str(recipe), "--optim.lr", "0.5", "--print-config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optim"]["lr"] == 0.5
    assert printed["model"]["d_model"] == 8
    assert printed["stages"][0]["length"] == 32


def test_other_windows_and_objectives_run(recipe: Path, tmp_path: Path) -> None:
    bed = tmp_path / "rows.bed"
    bed.write_text("chr1\t100\t400\ttrain\nchr1\t3000\t3010\ttrain\nchr2\t0\t900\tvalid\n")
    common = ["pretrain", "--config", str(recipe), "--steps", "2", "--overwrite"]
    published = [
        *("--data.windows", "intervals", "--data.intervals", str(bed), "--data.validation", "[]"),
        *("--objective.special-tokens", "published", "--objective.count-n-and-padding"),
        *("--length-rule", "published", "--optim.schedule", "published", "--global-batch", "2"),
        *("--stages", "[{length: 31, epochs: 2, micro_batch: 2}]"),
    ]
    assert main([*common, *published]) == 0
    plain = ["--model.overrides", "{}"]
    gpt = ["--model.family", "gpt", "--model.overrides", "{num_heads: 2}"]
    assert main([*common, "--data.windows", "tiled", *gpt]) == 0
    for family, objective in (("mamba", "causal_lm"), ("caduceus", "masked_lm")):
        extra = ["--model.family", family, "--objective.name", objective]
        assert main([*common, *extra, *plain]) == 0


def test_a_model_and_an_objective_that_do_not_fit(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["pretrain", "--config", str(recipe), "--dry-run"]
    assert main([*common, "--objective.name", "masked_lm"]) == 2
    assert "reads one side only" in capsys.readouterr().err
    both = ["--model.family", "caduceus", "--model.overrides", "{}"]
    assert main([*common, *both]) == 2
    assert "set objective.name to masked_lm" in capsys.readouterr().err


def test_other_precision_and_checkpointing_run(recipe: Path) -> None:
    common = ["pretrain", "--config", str(recipe), "--steps", "2", "--overwrite"]
    assert main([*common, "--precision", "bf16-mixed", "--activation-checkpointing"]) == 0
    assert main([*common, "--activation-checkpointing", "--checkpointing-stretch", "2"]) == 0


def test_stretches_need_checkpointing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--config", str(recipe), "--checkpointing-stretch", "2"]) != 0
    assert "checkpointing_stretch needs activation_checkpointing" in capsys.readouterr().err


def test_sigterm_ends_with_143(recipe: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "megabase.cli.main", "pretrain", "--config", str(recipe)),
        *("--steps", "100000", "--eval-every", "100000", "--checkpoint-every", "100000"),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 143, out
    assert "continue with --resume" in out
    assert (tmp_path / "run/last/config.json").is_file()
