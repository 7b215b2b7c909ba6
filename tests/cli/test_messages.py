"""What people read: usage errors, options in messages, warnings, and odd standard streams."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import megabase
from megabase.cli.main import main
from megabase.errors import ConfigError, ContigAliasWarning
from megabase.genome.format import Metadata
from megabase.genome.store import Genome
from megabase.tasks.config import DataConfig, PretrainConfig

SOURCE = Path(megabase.__file__).parent


def error_of(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "score",
            "megabase score: error: MODEL, FILE and --output are missing; megabase score --h",
        ),
        ("variants", "MODEL, VCF, GENOME and --output are missing"),
        ("ism", "MODEL, REGION, GENOME and --output are missing"),
        ("embed", "MODEL, FILE and --output are missing"),
        ("predict", "MODEL and --output are missing"),
        ("attribute", "MODEL, FILE and --output are missing"),
        ("compare", "EVALUATION is missing"),
        ("convert", "SRC and DST are missing"),
        ("genome", "name what to do: build, info, verify"),
        ("genome build", "FASTA and --output are missing; megabase genome build --help"),
        ("genome foo", "there is no 'foo'; one of build, info, verify"),
        ("pretrain", "--output and --data.genome are missing (as flags or in the recipe"),
        ("finetune default", "--output and --train are missing"),
        (  # and not that the run has no end, which the values may give
            'pretrain --data.genome g.mb -o r --sweep {"optim.lrr":[1e-3]}',
            "sweep: there is no field optim.lrr; did you mean optim.lr?",
        ),
        ("benchmark", "SUITE and --output are missing"),
        ("score default f --genome", "--genome needs a value"),
        ("score default f -o x --window q", "--window: expected a whole number, found 'q'"),
        ("generate --temperature q", "--temperature: expected a number, found 'q'"),
        ("finetune m --epochs q", "epochs: expected a number, found 'q'"),
        ("icl m --epochs q", "epochs: expected a number, found 'q'"),
        ("finetune m --patience 1.5", "patience: expected a whole number, found '1.5'"),
        ("finetune m --tokens q", "tokens: expected a number, found 'q'"),
        ("prompt m --prompt.layers q", "--prompt.layers: expected first or all, found 'q'"),
        ("finetune m --head.loss q", "--head.loss: expected mse or poisson, found 'q'"),
        (
            "finetune m --head.special-tokens q",
            "--head.special-tokens: expected auto, yes or no, found 'q'",
        ),
        ("pretrain --log q", "--log: expected a list, found 'q'"),
        ("pretrain --log [q]", "--log: expected tensorboard or wandb, found 'q'"),
        ("completion", "SHELL is missing (one of bash, zsh, fish); megabase completion --help"),
        (
            "score default f -o x --strands up",
            "--strands: there is no 'up'; one of forward, reverse",
        ),
        ("score default f -o x --windo 3", "there is no option --windo; did you mean '--window'?"),
        ("score default f g -o x", "g: one argument too many"),
        ("nothing", "megabase: error: there is no verb 'nothing'"),
    ],
)
def test_a_usage_error_is_one_line_in_the_words_that_are_typed(
    words: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(words, capsys)
    assert text in error
    assert not re.search(r"<class|typing\.", error)
    assert "Parser key" not in error


def test_a_bare_call_helps_and_both_flags_tell_the_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    assert all(f"  {verb} " in capsys.readouterr().out for verb in ["score"])
    for flag in ("-V", "--version"):
        assert main([flag]) == 0
        assert capsys.readouterr().out == f"megabase {megabase.__version__}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    (folder / "g.fa").write_text(f">chr1\n{'ACGTTGCA' * 40}\n")
    (folder / "s.fa").write_text(">a\nACGTACGT\n")
    (folder / "v.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    )
    Genome.build(folder / "g.fa", folder / "g.mb")
    (folder / "o.vcf").write_text("")
    (folder / "o.tsv").write_text("")
    return folder


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("variants default v.vcf g.mb -o o.vcf --methods llr_windo", "no method 'llr_windo'"),
        ("variants default v.vcf g.mb -o o.vcf --prefix A-B", "prefix 'A-B' cannot begin"),
        ("variants default v.vcf g.mb -o o.vcf --device gpu9", "--device gpu9: "),
        ("ism default chr1:1-9 g.mb -o o.tsv --methods x", "no method 'x'"),
        ("score default s.fa -o o.tsv --device gpu9", "--device gpu9: "),
        ("score default s.fa -o o.tsv --window 1", "a window needs 2 positions"),
        ("variants default v.vcf g.mb -o o.vcf", "another name or use --overwrite\n"),
        ("genome build g.fa -o g.mb", "another name or use --overwrite\n"),
        ("embed default s.fa --genome g.mb -o o.npy", "g.mb out (--genome), or say what it is"),
        ("embed default v.vcf -o o.npy", "name a store or a FASTA file (--genome)"),
    ],
)  # fmt: skip
def test_wrong_options_come_before_an_existing_output_and_are_written_as_flags(
    words: str, text: str, place: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    error = error_of(words, capsys)
    assert text in error
    assert "=True" not in error


@pytest.mark.parametrize(
    "words",
    [
        "score default n.bed --genome g.fa -o n.tsv", "variants default n.vcf g.fa -o n.tsv",
        "ism default chr9:1-9 g.fa -o n.tsv", "report --genome g.fa --region chr9:1-9 -o n.html",
        "evaluate default --genome g.fa --regions chr9",
    ],
)  # fmt: skip
def test_an_unknown_contig_names_the_file_that_was_given(
    words: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a store that was built of it in a folder of its own."""
    monkeypatch.chdir(place)
    (place / "n.bed").write_text("chr9\t1\t9\n")
    (place / "n.vcf").write_text((place / "v.vcf").read_text() + "chr9\t5\t.\tA\tC\t.\t.\t.\n")
    assert "genome 'g' (g.fa) has no contig 'chr9'" in error_of(words, capsys)


def test_python_is_told_python_options(place: Path) -> None:
    with pytest.raises(ValueError, match=r"use overwrite=True$"):
        Genome.build(place / "g.fa", place / "g.mb")


def test_no_error_outside_the_command_line_names_a_flag() -> None:
    """Flags are made of Python's options in one place; commands may be named in full."""
    found = []
    for path in SOURCE.rglob("*.py"):
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise):
                continue
            for part in ast.walk(node):
                text = part.value if isinstance(part, ast.Constant) else None
                if not isinstance(text, str) or re.search("megabase |torchrun ", text):
                    continue
                if re.search(r"(?<![\w-])--[a-z]", text):
                    found.append(f"{path.name}:{part.lineno}: {text}")
    assert found == []


def test_a_warning_shows_the_line_of_the_caller(place: Path) -> None:
    store = Genome(place / "g.mb")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store.region("1:1-9")
        store.region("1:1-9")
    (one,) = caught
    assert issubclass(one.category, ContigAliasWarning)
    assert one.filename == __file__
    assert "contig '1' is taken to be 'chr1' of genome 'g'" in str(one.message)


# -- streams ------------------------------------------------------------------------------------


def shell(command: str, folder: Path, **environment: str) -> tuple[int, str, str]:
    words = command.replace("megabase", f"{sys.executable} -m megabase", 1)
    done = subprocess.run(
        ["sh", "-c", words], cwd=folder, capture_output=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode()


@pytest.mark.parametrize("verb", ["genome info g.mb", "info --list", "score --help", "--version"])
def test_standard_output_that_is_closed_or_full_ends_with_one_line(verb: str, place: Path) -> None:
    status, _, error = shell(f"megabase {verb} >&-", place)
    assert (status, error.count("\n")) == (2, 1)
    assert "standard output is closed" in error
    if Path("/dev/full").exists():
        status, _, error = shell(f"megabase {verb} >/dev/full", place)
        assert (status, error.count("\n")) == (2, 1)
        assert "cannot write to standard output: No space left on device" in error


def test_names_that_a_terminal_cannot_show_get_other_letters(place: Path) -> None:
    (place / "u.fa").write_text(">chr\u00e9\u4e2d\nACGT\n", encoding="utf-8")
    Genome.build(place / "u.fa", place / "u.mb", overwrite=True)
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    status, output, error = shell("megabase genome info u.mb", place, **ascii_only)
    assert (status, error) == (0, "")
    assert "chr??" in output
    status, _, error = shell("megabase genome info \u4e2d.mb 2>&1 >/dev/null", place, **ascii_only)
    assert "Traceback" not in error
    status, _, error = shell("megabase genome info g.mb 2>&- | head -1", place)
    assert (status, error) == (0, "")


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (MemoryError(), "out of memory; take smaller batches"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError(13, "Permission denied", "x.fa"), "cannot open x.fa: Permission denied"),
    ],
)
def test_what_the_machine_does_not_give_is_one_line_with_a_way_to_see_more(
    raised: Exception, text: str, place: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(Metadata, "read", fail)
    error = error_of("genome info g.mb", capsys)
    assert text in error
    assert "MEGABASE_DEBUG=1" in error or isinstance(raised, OSError)
    monkeypatch.setenv("MEGABASE_DEBUG", "1")
    assert main(["genome", "info", "g.mb"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Metadata, "read", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["genome", "info", "g.mb"])


# -- settings from Python -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"stages": None}, r"stages is None; expected a list of Stage\(length=\.\.\.\)"),
        ({"stages": [{"length": 8}]}, r"stages is \[\{'length': 8\}\]; expected a list of Stage"),
        ({"optim": None}, r"optim is None; expected OptimConfig"),
        ({"data": None}, r"data is None; expected DataConfig"),
    ],
)
def test_settings_of_another_type_are_named(settings: dict[str, object], text: str) -> None:
    given: dict[str, object] = {
        "output": "x", "data": DataConfig(genome="g.mb"), **settings
    }  # fmt: skip
    make: Callable[..., object] = PretrainConfig
    with pytest.raises(ConfigError, match=text):
        make(**given)
