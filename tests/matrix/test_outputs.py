"""Every verb that writes, in every place where writing can fail or means something special.

A cell runs the command line in this process and says what is right: one line that names the place
and the system's reason and status 2, or the output where it belongs. No cell ends in a traceback.
"""

from __future__ import annotations

import importlib
import os
import resource
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from megabase.cli.main import main
from megabase.genome.files import LOCK_NAME, Lock
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
)
from megabase.models.tokenizers.character import DNATokenizer

ROOT = os.geteuid() == 0
NOBODY = 65534
TRAINING = "--steps 2 --devices.accelerator cpu --devices.threads 1"


@dataclass(frozen=True)
class Verb:
    """A command whose output is named last."""

    call: str
    ending: str = ""
    resumes: bool = True

    @property
    def name(self) -> str:
        return f"{self.call.split()[0]}{self.ending}"

    @property
    def folder(self) -> bool:
        return not self.ending


def parts(call: str, *endings: str) -> list[Verb]:
    return [Verb(f"{call} --workers 1 --device cpu -o", ending) for ending in endings]


SCORE = parts("score lm small.fa", ".tsv", ".parquet")
VARIANTS = parts(
    "variants lm v.vcf g.mb --window 20",
    ".vcf", ".vcf.gz", ".bcf", ".tsv", ".parquet",
)  # fmt: skip
EMBED = parts("embed lm small.fa", ".parquet", ".npy", ".npz", ".zarr", ".h5ad")
PREDICT = parts("predict whole small.fa", ".tsv", ".parquet")
ATTRIBUTE = parts("attribute lm small.fa --steps 2", ".parquet", ".npz")
TRACK = parts("attribute lm places.bed --genome g.mb --steps 2", ".bw")
ISM = parts("ism lm chr1:1-20 g.mb --window 20", ".tsv", ".npz")
GENERATE = parts("generate lm --length 30 --samples 3", ".fa", ".fa.gz")
WHOLE = [
    Verb("report lm --genome g.mb --region chr1:1-100 -o", ".html", resumes=False),
    Verb("genome build g.fa -o", ".mb", resumes=False),
    Verb(
        "evaluate lm --genome g.mb --regions chr2 --no-baselines --no-context --window 64 -o",
        ".json",
        resumes=False,
    ),
]
RUNS = [
    Verb(f"finetune lm --train rows.csv {TRAINING} --output"),
    Verb(f"pretrain --config pretrain.yaml {TRAINING} --output"),
    Verb(f"prompt lm --train rows.csv {TRAINING} --output"),
    Verb("icl lm --train rows.csv --test rows.csv --devices.accelerator cpu --output"),
    Verb("benchmark table --data tables --models kmer:1 --seeds 1 --bootstrap 0 --no-page "
         "--output"),
]  # fmt: skip
CONVERT = Verb("convert lm", resumes=False)
ONE_EACH = [group[0] for group in (SCORE, VARIANTS, EMBED, PREDICT, ATTRIBUTE, ISM, GENERATE)]
FILES = [*ONE_EACH, *WHOLE]
EVERY = [*SCORE, *VARIANTS, *EMBED, *PREDICT, *ATTRIBUTE, *TRACK, *ISM, *GENERATE, *WHOLE]


def by_name(verbs: list[Verb]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("verb", verbs, ids=[verb.name for verb in verbs])


@pytest.fixture(scope="module")
def world() -> Iterator[Path]:
    """Tiny models and inputs, which other users may read."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        before = Path.cwd()
        os.chdir(folder)
        make_world(folder)
        yield folder
        os.chdir(before)


def make_world(folder: Path) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 8, "n_layer": 1, "max_seq_len": 258, "filter_order": 8}
    for name, family in (("lm", HyenaDNAForCausalLM), ("whole", HyenaDNAForSequenceClassification)):
        family(HyenaDNAConfig(**shape, id2label={0: "no", 1: "yes"})).save_pretrained(folder / name)
        DNATokenizer(model_max_length=258).save_pretrained(folder / name)
    draw = np.random.default_rng(0)

    def dna(length: int) -> str:
        return "".join(draw.choice(list("ACGT"), length))

    contigs = {"chr1": dna(400), "chr2": dna(200)}
    (folder / "g.fa").write_text("".join(f">{n}\n{t}\n" for n, t in contigs.items()))
    (folder / "small.fa").write_text("".join(f">s{n}\n{dna(30)}\n" for n in range(40)))
    (folder / "places.bed").write_text("chr1\t10\t90\tp\n")
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    bases = {n: contigs["chr1"][n - 1] for n in range(30, 60, 3)}
    rows = [f"chr1\t{n}\t.\t{ref}\t{alt}\t.\t.\t.\n"
            for n, ref in bases.items() for alt in "ACGT" if alt != ref]  # fmt: skip
    (folder / "v.vcf").write_text(head + "".join(rows))
    table = "sequence,label\n" + "".join(f"{dna(16)},{'ab'[n % 2]}\n" for n in range(12))
    (folder / "tables").mkdir()
    for place in ("rows.csv", "tables/train.csv", "tables/test.csv"):
        (folder / place).write_text(table)
    (folder / "pretrain.yaml").write_text(
        "data: {genome: g.mb, validation: ['chr2:1-100'], test: ['chr2:101-200']}\n"
        "model: {d_model: 8, n_layer: 1, overrides: {filter_order: 8}}\n"
        "stages: [{length: 32, micro_batch: 2}]\nglobal_batch: 2\noutput: unused\n"
    )
    assert main(["genome", "build", "g.fa", "-o", "g.mb"]) == 0
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors keeps its files to the user


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def run(world: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def one(verb: Verb, target: Path, *more: str) -> Outcome:
        capsys.readouterr()
        status = main([*verb.call.split(), str(target), *more])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Outcome(status, shown.out, shown.err)

    return one


def refused(outcome: Outcome, *words: str) -> None:
    """Check for one line of error that has these words."""
    assert outcome.status == 2, outcome
    errors = [line for line in outcome.err.splitlines() if ": error: " in line]
    assert len(errors) == 1, outcome.err
    assert outcome.err.rstrip().endswith(errors[0]), outcome.err
    for word in words:
        assert word in errors[0], (word, errors[0])


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Put a file system of its own on a folder, where this process may."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"this process may not mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Have the rights of a user that owns nothing."""
    if not ROOT:
        yield
        return
    # Nobody reads no module in the home of root, and writes nothing there, as captum does.
    for name in ("encodings.utf_8_sig", "captum.attr"):
        with suppress(ImportError):
            importlib.import_module(name)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def nothing_left(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == []


# A folder that cannot be written to.


@by_name([*FILES, *RUNS, CONVERT])
def test_a_read_only_place_is_one_line(
    verb: Verb, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    with mounted(tmp_path / "fixed", "ro") as folder:
        target = folder / f"o{verb.ending}"
        refused(run(verb, target), f"cannot write {target}", "Read-only file system")


@by_name([*FILES, *RUNS, CONVERT])
def test_no_permission_is_one_line(verb: Verb, run: Callable[..., Outcome], world: Path) -> None:
    folder = world / "closed"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    target = folder / f"o{verb.ending}"
    with as_nobody():
        refused(run(verb, target), f"cannot write {target}", "Permission denied")
    nothing_left(folder)


@by_name(ONE_EACH)
def test_an_input_without_permission_is_one_line(
    verb: Verb, run: Callable[..., Outcome], world: Path, tmp_path: Path
) -> None:
    name = next((word for word in verb.call.split() if word in ("small.fa", "v.vcf")), "g.mb")
    if name not in verb.call:
        pytest.skip("reads no file")
    place = world / "open"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    (world / name).chmod(0)
    try:
        with as_nobody():
            refused(run(verb, place / f"o{verb.ending}"), name, "Permission denied")
    finally:
        (world / name).chmod(0o644)
    nothing_left(place)


# No room.


@by_name([*EVERY, *RUNS, CONVERT])
def test_a_full_disk_is_one_line(verb: Verb, run: Callable[..., Outcome], tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=8k") as folder:
        target = folder / f"o{verb.ending}"
        if not verb.resumes:
            (folder / "other").write_bytes(bytes(8192))
        outcome = run(verb, target)
        refused(outcome, "cannot write", f"{target}", "No space left on device")
        assert not target.is_file()
        if verb.resumes and verb.ending:
            assert "continue with --resume" in outcome.err


@by_name(EMBED)
@pytest.mark.parametrize("size", [20, 24, 28, 32])
def test_a_disk_that_fills_while_parts_are_merged(
    verb: Verb, size: int, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    with mounted(tmp_path / "full", f"size={size}k") as folder:
        target = folder / f"o{verb.ending}"
        outcome = run(verb, target)
        if outcome.status == 0:
            return
        refused(outcome, f"cannot write {target}", "No space left on device", "--resume")
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        assert run(verb, target, "--resume").status == 0
        assert [path.name for path in folder.iterdir()] == [target.name]


@by_name([*EVERY, *RUNS, CONVERT])
def test_a_limit_on_the_size_of_files_is_one_line(
    verb: Verb, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    target = tmp_path / f"o{verb.ending}"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        outcome = run(verb, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(outcome, "cannot write", str(target), "File too large")
    assert not target.is_file()


@by_name([*FILES, *RUNS, CONVERT])
def test_closed_standard_output_is_one_line(
    verb: Verb, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)  # as Python has it after >&-
        status = main([*verb.call.split(), str(tmp_path / f"o{verb.ending}")])
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert "standard output is closed" in error
    nothing_left(tmp_path)


# Names that lead elsewhere.


@by_name(FILES)
def test_a_link_stays_and_what_it_names_is_replaced(
    verb: Verb, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    real, link = tmp_path / "data" / f"real{verb.ending}", tmp_path / f"link{verb.ending}"
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(Path("data") / real.name)
    refused(run(verb, link), f"{link} exists already")
    assert real.read_text() == "old"
    number = real.stat().st_ino
    assert run(verb, link, "--overwrite").status == 0
    assert link.is_symlink()
    assert real.stat().st_ino != number
    assert real.read_bytes()[:3] != b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", link.name]
    assert [path.name for path in real.parent.iterdir()] == [real.name]


@by_name(FILES)
def test_what_a_dangling_link_names_is_made(
    verb: Verb, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    real, link = tmp_path / f"real{verb.ending}", tmp_path / f"link{verb.ending}"
    link.symlink_to(real)
    assert run(verb, link).status == 0
    assert link.is_symlink()
    assert real.is_file()
    assert not real.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [link.name, real.name]


STREAMED = (".tsv", ".vcf", ".fa", ".html", ".json")


def node(path: Path, kind: int, device: int) -> None:
    try:
        os.mknod(path, kind | 0o666, device)
        if kind == stat.S_IFCHR:
            with path.open("wb"):
                pass
    except OSError as error:
        pytest.skip(f"no device nodes here: {error}")


@by_name(FILES)
def test_a_device_is_written_to_or_refused_and_never_replaced(
    verb: Verb, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    null, disk = tmp_path / f"null{verb.ending}", tmp_path / f"disk{verb.ending}"
    node(null, stat.S_IFCHR, os.makedev(1, 3))
    outcome = run(verb, null)
    if verb.ending in STREAMED:
        assert outcome.status == 0, outcome.err
    else:
        refused(outcome, f"cannot write {null}", "it is a pipe or a device")
    assert stat.S_ISCHR(null.lstat().st_mode)
    node(disk, stat.S_IFBLK, os.makedev(7, 99))
    refused(run(verb, disk, "--overwrite"), f"cannot write {disk}", "it is a block device")
    assert stat.S_ISBLK(disk.lstat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == [disk.name, null.name]


@by_name([verb for verb in EVERY if verb.ending in (*STREAMED, ".vcf.gz", ".fa.gz", ".bcf")])
def test_a_pipe_gets_the_bytes_of_the_file(
    verb: Verb, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    pipe, file = tmp_path / f"o{verb.ending}", tmp_path / "files" / f"o{verb.ending}"
    file.parent.mkdir()
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert run(verb, pipe).status == 0
    reader.join(20)
    assert pipe.is_fifo()
    assert run(verb, file).status == 0
    if verb.ending == ".json":  # has the seconds that it took
        assert len(got[0]) > 100
    else:
        assert got[0] == file.read_bytes()


@by_name(FILES)
def test_a_folder_is_no_file(verb: Verb, run: Callable[..., Outcome], tmp_path: Path) -> None:
    target = tmp_path / f"o{verb.ending}"
    target.mkdir()
    refused(run(verb, target, "--overwrite"), f"cannot write {target}", "it is a folder")
    if verb.ending in (".html", ".mb", ".fa"):  # evaluate (.json) takes folders too
        for name in (".", "..", "/"):
            refused(run(verb, Path(name), "--overwrite"), "it is a folder")


# Stopped, and two at once.


@by_name([*FILES, *RUNS])
def test_sigterm_is_one_line_that_says_how_to_go_on(
    verb: Verb, run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, calls = tmp_path / f"o{verb.ending}", []
    draw = secrets.token_hex

    def when_writing(size: int) -> str:  # every file that is written gets such a name
        calls.append(size)
        if len(calls) == (2 if verb.resumes else 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(size)

    monkeypatch.setattr(secrets, "token_hex", when_writing)
    outcome = run(verb, target)
    assert outcome.status == 143, outcome
    assert "stopped by SIGTERM" in outcome.err
    assert not target.is_file()
    if not verb.resumes:
        nothing_left(tmp_path)
        return
    assert "--resume" in outcome.err
    monkeypatch.undo()
    if verb.ending:
        assert f"{target}.partial" in outcome.err
        assert run(verb, target, "--resume").status == 0
        assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_kill_after_the_last_step_leaves_nothing_for_good(
    run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, target = EMBED[0], tmp_path / "o.parquet"
    with monkeypatch.context() as patch:  # all that follows the last rename
        patch.setattr("megabase.inference.parts.PartFolder.discard", lambda _: None)
        assert run(verb, target).status == 0
    work = tmp_path / "o.parquet.partial"
    assert list(work.glob("part-*"))
    refused(run(verb, target), "exists already")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_folder_of_parts_that_holds_other_files_is_not_emptied(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    verb, target = EMBED[0], tmp_path / "o.parquet"
    work = tmp_path / "o.parquet.partial"
    work.mkdir()
    (work / "thesis.tex").write_text("years of work")
    refused(run(verb, target, "--overwrite"), "thesis.tex")
    assert [path.name for path in work.iterdir()] == ["thesis.tex"]


@by_name([*ONE_EACH, *RUNS])
def test_an_output_in_use_is_refused(
    verb: Verb, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    target = tmp_path / f"o{verb.ending}"
    work = target if verb.folder else target.with_name(f"{target.name}.partial")
    work.mkdir()
    lock = Lock(work / LOCK_NAME, target)
    lock.acquire()
    for more in ([], ["--overwrite"], ["--resume"]):
        outcome = run(verb, target, *more)
        refused(outcome, f"{target} is in use by process {os.getpid()} on ", " since 2")
        assert "interrupted" not in outcome.err
    lock.release()
    outcome = run(verb, target)
    assert outcome.status == 0, outcome.err
    assert not (work / LOCK_NAME).exists()


@pytest.mark.slow
@by_name([RUNS[0], EMBED[0]])
def test_two_processes_on_one_output(verb: Verb, world: Path, tmp_path: Path) -> None:
    target = tmp_path / f"o{verb.ending}"
    call = verb.call.replace("--steps 2", "--steps 40")
    command = [sys.executable, "-m", "megabase", *call.split(), str(target)]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [job.communicate()[1] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 2], said
    lost = next(text for job, text in zip(jobs, said, strict=True) if job.returncode)
    assert "in use by process" in lost or "exists" in lost
    assert "interrupted" not in lost
    assert "Traceback" not in "".join(said)


def test_of_many_at_once_one_is_the_owner(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from megabase.genome.files import Lock\n"
        "from megabase.errors import InUseError\n"
        "lock = Lock(Path(sys.argv[1]), Path('out'))\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "try: lock.acquire()\n"
        "except InUseError as error: print(error); sys.exit(2)\n"
        "time.sleep(3)\n"
    )
    import time

    lock = tmp_path / "lock"
    lock.write_text('{"pid": 999999999, "host": "elsewhere"}')  # a stale one
    arguments = [sys.executable, "-c", code, str(lock), str(time.time() + 4)]
    jobs = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [job.communicate()[0] for job in jobs]
    status = sorted(job.returncode for job in jobs)
    assert status == [0, 2, 2, 2]
    owner = next(job.pid for job in jobs if job.returncode == 0)
    for text, job in zip(said, jobs, strict=True):
        if job.returncode == 2:
            assert f"out is in use by process {owner} on " in text
