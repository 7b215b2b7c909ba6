"""The workflows call the command line as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megabase.cli.parser import build_parser

ROOT = Path(__file__).parents[2] / "workflows"


def slurm(folder: Path, *words: str, task: str = "2") -> list[str]:
    """Run the job script with a stand-in for megabase; give the words it was called with."""
    (folder / "bin").mkdir(exist_ok=True)
    stand_in = folder / "bin" / "megabase"
    stand_in.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    job = {"PATH": path, "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MAX": "3"}
    command = ["bash", str(ROOT / "slurm" / "variants.sh"), *words]
    done = subprocess.run(command, cwd=folder, env=job, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_job_array_scores_resumes_and_ends(tmp_path: Path) -> None:
    words = ("default", "my in.vcf", "genome.mb", "out.vcf.gz", "--window", "256")
    found = slurm(tmp_path, *words)
    args = build_parser("variants", "megabase.cli.verbs.score")[0].parse_args(found[1:])
    assert (found[0], args.shard, args.output) == ("variants", "2/3", "out.vcf.gz")
    assert (args.variants, args.window, args.workers, args.resume) == ("my in.vcf", 256, 1, False)
    shard = tmp_path / "out.vcf.gz.shard-2-of-3"
    shard.mkdir()
    (shard / "manifest.json").touch()
    assert "--resume" in slurm(tmp_path, *words)
    (shard / "command.json").touch()
    assert slurm(tmp_path, *words) == ["out.vcf.gz.shard-2-of-3 is finished"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("snakemake") is None, reason="snakemake is not installed")
def test_snakemake_makes_a_scored_file_and_a_page(tmp_path: Path) -> None:
    (tmp_path / "genome.fa").write_text(">one\n" + "ACGTTGCATTAC" * 60 + "\n")
    (tmp_path / "variants.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "one\t300\t.\tC\tA\t.\t.\t.\n"
    )
    (tmp_path / "my.yaml").write_text("shards: 2\noptions: '--window 64'\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["snakemake", "--snakefile", str(ROOT / "snakemake" / "Snakefile"), "--configfile",
         "my.yaml", "--cores", "2"],
        cwd=tmp_path, env={**os.environ, "PATH": path}, check=True,
    )  # fmt: skip
    made = {file.name for file in (tmp_path / "scored").iterdir()}
    assert {"scored.vcf.gz", "scored.vcf.gz.tbi", "variants.html"} <= made
