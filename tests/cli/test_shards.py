"""Shards as a cluster runs them: at once, killed, continued, merged elsewhere, mixed up."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megabase.cli.main import main

CODE = """
import sys, time
from megabase.cli.main import main
from megabase.inference.parts import PartFolder
from megabase.inference.variants import vcf_file
vcf_file._CHUNK = 2
write = PartFolder.write
def slowly(*args):
    write(*args)
    time.sleep(float(sys.argv[1]))
PartFolder.write = slowly
sys.exit(main(sys.argv[2:]))
"""
"""megabase with small chunks, and a rest after each."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("megabase.inference.variants.vcf_file._CHUNK", 2)
    draw = np.random.default_rng(0)
    contig = "".join(draw.choice(list("ACGT"), 300))
    Path("g.fa").write_text(f">one\n{contig}\n")
    rows = [f"one\t{n}\t.\t{contig[n - 1]}\t{'G' if contig[n - 1] != 'G' else 'A'}\t.\t.\t.\n"
            for n in range(50, 250, 10)]  # fmt: skip
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    Path("v.vcf").write_text(head + "".join(rows))
    return ["variants", "default", "v.vcf", "g.fa", "--window", "32", "--device", "cpu",
            "--workers", "1", "-o"]  # fmt: skip


def start(seconds: float, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CODE, str(seconds), *words], text=True)


@pytest.mark.slow
def test_three_at_once_one_of_them_killed(
    work: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*work, "whole.vcf.gz"]) == 0
    killed = start(60, *work, "out.vcf.gz", "--shard", "2/3")
    others = [start(0, *work, "out.vcf.gz", "--shard", f"{n}/3") for n in (1, 3)]
    folders = [Path(f"out.vcf.gz.shard-{n}-of-3") for n in (1, 2, 3)]
    until = time.monotonic() + 120
    while not list(folders[1].glob("part-*")) and time.monotonic() < until:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert [killed.wait(), *(one.wait() for one in others)] == [-signal.SIGKILL, 0, 0]
    assert [len(list(folder.glob("part-*"))) for folder in folders] == [4, 1, 3]
    merge = ["merge", *map(str, folders)]
    assert main(merge) == 2
    assert f"{folders[1]} is not a finished shard; finish it with --re" in capsys.readouterr().err
    assert main([*work, "out.vcf.gz", "--shard", "2/3"]) == 2
    assert "holds 1 finished parts of an interrupted run" in capsys.readouterr().err
    assert main([*work, "out.vcf.gz", "--shard", "2/3", "--resume"]) == 0
    assert main([*work, "out.vcf.gz", "--shard", "2/3", "--resume"]) == 0  # finished: no harm
    assert main(merge) == 0
    for ending in ("", ".tbi"):
        whole, merged = (Path(f"{name}.vcf.gz{ending}") for name in ("whole", "out"))
        assert merged.read_bytes() == whole.read_bytes()


def test_what_cannot_be_merged_is_named(
    work: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*work, "whole.tsv"]) == 0
    for shard in ("1/2", "2/2"):
        assert main([*work, "out.tsv", "--shard", shard]) == 0
    one, two = "out.tsv.shard-1-of-2", "out.tsv.shard-2-of-2"
    assert main([*work, "other.tsv", "--shard", "2/2", "--methods", "llr_window"]) == 0

    def refused(*shards: str) -> str:
        capsys.readouterr()
        assert main(["merge", *shards]) == 2
        assert not Path("out.tsv").exists()
        assert not list(Path().glob("*.partial"))
        return capsys.readouterr().err

    assert "shard 2 of 2 is missing" in refused(one)
    assert f"shard 1 of 2 is given twice: {one}, {one}" in refused(one, two, one)
    text = refused(one, "other.tsv.shard-2-of-2")
    assert "other.tsv.shard-2-of-2 is of another run" in text
    assert "options.methods" in text
    assert "the shards are of a .tsv file" in refused(one, two, "-o", "out.vcf")
    assert "there is no shard nowhere" in refused("nowhere", two)
    Path(one, "command.json").unlink()  # killed before it was written: any of them has it
    shutil.copytree(two, "moved")
    assert main(["merge", one, "moved", "-o", "out.tsv"]) == 0
    assert Path("out.tsv").read_bytes() == Path("whole.tsv").read_bytes()
