"""Outputs of every verb on small inputs stay what they are.

``MEGABASE_RECORD=1`` writes ``expected/`` anew: in a commit that says which output changed and why.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
from pathlib import Path

import pytest
import torch
from frozen_outputs import CASES, Case, difference, make_inputs, render

from megabase.cli.main import main
from megabase.models.auto import load_tokenizer
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM

EXPECTED = Path(__file__).parent / "expected"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("frozen")
    make_inputs(found)
    assert main(["genome", "build", str(found / "genome.fa"), "-o", str(found / "genome.mb")]) == 0
    torch.manual_seed(0)
    config = CaduceusConfig(d_model=16, n_layer=2, rcps=True)
    CaduceusForMaskedLM(config).save_pretrained(found / "masked")
    load_tokenizer().save_pretrained(found / "masked")
    return found


def words(case: Case, folder: Path, *more: str) -> list[str]:
    return [*shlex.split(case.command.replace("@", str(folder))), *more]


# What is left out is said by a warning, which the suite would turn into an error.
@pytest.mark.filterwarnings("ignore::megabase.errors.LeftOutWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_output_is_what_it_was(case: Case, folder: Path) -> None:
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    assert main(words(case, folder)) == 0
    for output in case.outputs:
        found = render(folder / output).replace(str(folder), "@")
        kept = EXPECTED / f"{case.name}.{output.replace('/', '.')}.txt"
        if os.environ.get("MEGABASE_RECORD"):
            kept.write_text(found + "\n")
        what = difference(found, kept.read_text().removesuffix("\n"))
        assert what is None, f"{output}: {what}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::megabase.errors.LeftOutWarning")
@pytest.mark.parametrize("case", [c for c in CASES if c.processes], ids=lambda case: case.name)
def test_two_processes_write_the_same_bytes(case: Case, folder: Path) -> None:
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    if "@/tuned" in case.command and not (folder / "tuned").exists():
        assert main(words(next(c for c in CASES if c.name == "finetune"), folder)) == 0
    written = []
    for count in ("1", "2"):
        assert main(words(case, folder, "--workers", count, "--overwrite")) == 0
        written.append([(folder / output).read_bytes() for output in case.outputs])
    assert written[0] == written[1]


SMALL_CHUNKS = {
    "inference.variants.vcf_file._CHUNK": 2,
    "inference.ism._CHUNK": 4,
    "inference.prediction._BLOCK": 300,
    "inference.variants.every_snv._BLOCK": 100,
    "inference.variants.random_variants._CHUNK": 3,
    "data.sources._CHUNK_SEQUENCES": 2,
}
"""So that small inputs have chunks for every shard."""
FORMATS = {
    "score": ("tsv", "parquet"),
    "variants": ("vcf", "vcf.gz", "bcf", "tsv", "parquet"),
    "every_snv": ("tsv.gz",),
    "calibrate": ("npz",),
    "ism": ("parquet", "npz", "tsv"),
    "embed": ("npy", "npz", "parquet", "h5ad", "zarr"),
    "generate": ("fa", "fa.gz"),
    "predict": ("tsv", "parquet"),
    "predict_calls": ("bw",),
    "predict_bed": ("bed",),
    "attribute": ("parquet", "npz"),
}
"""Case -> endings of its output."""
MORE = (
    Case("every_snv", "variants default --all @/genome.fa --window 64 --bigwig OUT", ()),
    Case("calibrate", "variants default --calibrate @/genome.fa --window 64 --count 20 --others 2 "
         "--methods llr_site", ()),
    Case("predict_bed", "predict @/tuned --genome @/genome.fa --window 64", ()),
    Case("predict_calls", "predict @/tuned --genome @/genome.fa --window 64 --calls OUT.bed", (),
         needs="pybigtools"),
)  # fmt: skip
"""Outputs that are not frozen."""
OF_VERBS = [
    pytest.param(case, ending, id=f"{case.name}-{ending}", marks=[pytest.mark.slow] if more else [])
    for case in (*CASES, *MORE)
    for more, ending in enumerate(FORMATS.get(case.name, ()))
]


@pytest.mark.filterwarnings("ignore::megabase.errors.LeftOutWarning")
@pytest.mark.parametrize(("case", "ending"), OF_VERBS)
def test_shards_are_merged_into_what_one_run_writes(
    case: Case, ending: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ending in ("h5ad", "zarr") and importlib.util.find_spec("anndata") is None:
        pytest.skip("anndata is not installed")
    for name, size in SMALL_CHUNKS.items():
        monkeypatch.setattr(f"megabase.{name}", size)
    if "@/tuned" in case.command and not (folder / "tuned").exists():
        assert main(words(next(c for c in CASES if c.name == "finetune"), folder)) == 0
    command = words(case, folder, "--workers", "1")
    if "--bigwig" in command:
        at = command.index("--bigwig")
        command[at : at + 2] = [] if ending == "tsv" else ["--bigwig", "OUT"]
    if case.name == "generate":
        command += ["--batch-size", "1"]
    whole, merged = tmp_path / f"whole.{ending}", tmp_path / f"merged.{ending}"

    def made(output: Path) -> list[str]:  # other files beside the output have names like its own
        place = str(output).removesuffix(f".{ending}")
        return [*(word.replace("OUT", place) for word in command), "-o", str(output)]

    assert main(made(whole)) == 0
    for shard in ("1/3", "2/3", "3/3"):
        assert main([*made(merged), "--shard", shard]) == 0
        assert not merged.exists()
    shards = sorted(map(str, tmp_path.glob("merged.*.shard-*")))
    assert all(list(Path(shard).glob("part-*")) for shard in shards), "a shard without work"
    with monkeypatch.context() as patch:  # a merge computes nothing
        patch.delattr("megabase.inference.parts.PartFolder.write")
        assert main(["merge", *shards]) == 0
    if ending == "zarr":
        pairs = [(path, merged / path.relative_to(whole)) for path in whole.rglob("*.*")]
    else:
        pairs = [(path, tmp_path / path.name.replace("whole", "merged"))
                 for path in tmp_path.glob("whole.*")]  # fmt: skip
    for one, other in pairs:
        if ending == "h5ad":  # holds times
            assert difference(render(one), render(other)) is None
        elif one.is_file():
            assert one.read_bytes() == other.read_bytes(), one.name
