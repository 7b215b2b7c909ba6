"""megabase genome build, info and verify: output, exit status, one-line errors."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megabase.cli.main import main
from megabase.genome.store import Genome

FASTA = ">chr1 first\nACGTNacgtnRy\n>chr2\nGGGG\n"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "toy.fa"
    path.write_text(FASTA)
    return path


@pytest.fixture
def store(fasta: Path) -> Path:
    path = fasta.with_name("toy.mb")
    Genome.build(fasta, path)
    return path


def test_build_says_what_it_wrote(fasta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = fasta.with_name("more.fa.gz")
    packed.write_bytes(gzip.compress(b">chr3\nUUUU\n"))
    target = fasta.with_name("g.mb")
    assert main(["genome", "build", str(fasta), str(packed), "-o", str(target)]) == 0
    out = capsys.readouterr().out
    assert Genome(target).total_length == 20
    for words in (
        "toy.fa, more.fa.gz",
        "R 1, U 4, Y 1",
        "U is RNA",
        Genome(target).checksum,
    ):
        assert words in out
    assert main(["genome", "verify", str(target)]) == 0
    assert "all 3 contigs (20 bases) have their recorded sha256" in capsys.readouterr().out


def test_name_and_overwrite(fasta: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["genome", "build", str(fasta), "-o", str(store), "--name", "mine"]
    assert main(build) == 2
    error = capsys.readouterr().err
    assert error.startswith("megabase genome: error: ")
    assert "exists already" in error
    assert error.count("\n") == 1
    assert Genome(store).name == "toy"
    assert main([*build, "--overwrite"]) == 0
    assert Genome(store).name == "mine"


def test_info_as_table_and_as_json(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genome", "info", str(store)]) == 0
    out = capsys.readouterr().out
    for words in ("chr1", "first", "12", "2 (12.50%): R 1, Y 1", "toy.fa"):
        assert words in out
    assert main(["genome", "info", str(store), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    opened = Genome(store)
    assert record["checksum"] == opened.checksum
    assert record["total_length"] == 16
    assert [row["name"] for row in record["contigs"]] == ["chr1", "chr2"]
    assert record["contigs"][0]["sha256"] == opened.contigs[0].sha256
    assert record["contigs"][0]["iupac_count"] == 2


def test_info_lists_the_first_contigs_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta, store = tmp_path / "x.fa", tmp_path / "x.mb"
    fasta.write_text("".join(f">scaffold[{i}] {'word ' * 40}\nACGT\n" for i in range(60)))
    Genome.build(fasta, store)
    assert main(["genome", "info", str(store)]) == 0
    out = capsys.readouterr().out
    assert "scaffold[49]" in out
    assert "scaffold[50]" not in out
    assert "and 10 more" in out
    assert main(["genome", "info", str(store), "--all"]) == 0
    assert "scaffold[59]" in capsys.readouterr().out


def test_verify_of_a_damaged_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = bytearray(store.read_bytes())
    raw[4096] ^= 1
    store.write_bytes(bytes(raw))
    assert main(["genome", "verify", str(store)]) == 2
    assert "'chr1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["x.fa", "is empty"]),
        ("ACGT\n", ["x.fa, line 1", "header"]),
        (">a\nAC\n>a\nGT\n", ["x.fa, line 3", "'a'", "there already"]),
        (">a\nAC\nG*\n", ["x.fa, line 3", "contig 'a'", "'*'"]),
        (gzip.compress(b">a\n" + b"ACGT" * 9999, mtime=0)[:-9], ["x.fa", "cut short"]),
    ],
)
def test_a_bad_source_ends_with_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, words: list[str]
) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert main(["genome", "build", str(path), "-o", str(tmp_path / "g.mb")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("megabase genome: error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("action", ["info", "verify"])
def test_a_bad_store_ends_with_one_line_and_status_2(
    store: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    whole = store.read_bytes()
    for content, words in [
        (whole[:-1], "cut short"),
        (whole[:8] + b"\x09\0\0\0" + whole[12:], "format version 9"),
        (b"hello", "not a genome store"),
    ]:
        store.write_bytes(content)
        assert main(["genome", action, str(store)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("argv", [["--help"], ["build", "--help"], ["info", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys\nfrom megabase.cli.main import main\n"
        f"try:\n    main(['genome', *{argv!r}])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'polars', 'numpy', 'pysam'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: megabase genome" in done.stdout


def test_termination_leaves_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.fa"
    os.mkfifo(pipe)
    code = "import sys\nfrom megabase.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "genome", "build", str(pipe), "-o", str(tmp_path / "g")]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with pipe.open("wb") as writer:
            writer.write(b">a\n" + b"ACGT" * (1 << 20))
            writer.flush()
            waited = 0
            while not list(tmp_path.glob(".*.tmp.g*")) and waited < 600:
                time.sleep(0.05)
                waited += 1
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        child.kill()
        child.wait()
    assert list(tmp_path.iterdir()) == [pipe]
