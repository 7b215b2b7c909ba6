"""Small inputs, a command for every verb, and its outputs as text that two machines share.

Numbers are compared within a tolerance, since processors round differently; everything else,
headers and names included, has to be the same.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?:[eE][-+]?\d+)?|(?<![\w.])[-+]?\d+[eE][-+]?\d+")
VOLATILE = re.compile(
    r"seconds|time|date|host|python|platform|processor|packages|threads|memory|git|cpus|version|"
    r"tokens_per|per_second|command|environment|pid",
)
"""Keys of JSON files that another run or another machine may change."""
RELATIVE, ABSOLUTE = 2e-3, 2e-4


@dataclass(frozen=True)
class Case:
    """A command and the files whose content is kept; ``@`` is the folder of inputs and outputs."""

    name: str
    command: str
    outputs: tuple[str, ...]
    needs: str | None = None
    processes: bool = False
    """Whether the work can be shared by processes."""


CASES = (
    Case("store", "genome build @/genome.fa -o @/built.mb", ("built.info",)),
    Case("score", "score default @/seqs.fa -o @/score.tsv", ("score.tsv",), processes=True),
    Case(
        "score_bed",
        "score default @/regions.bed --genome @/genome.fa -o @/bed.parquet --strands both "
        "--per-base --context 20",
        ("bed.parquet",),
    ),
    Case(
        "variants",
        "variants default @/variants.vcf @/genome.fa -o @/scored.vcf --window 128 --methods "
        "llr_window llr_after llr_site l2 cosine",
        ("scored.vcf",),
        processes=True,
    ),
    Case(
        "variants_grid",
        "variants default @/variants.vcf @/genome.fa -o @/grid.tsv --window 128 --placement grid",
        ("grid.tsv",),
    ),
    Case(
        "variants_masked",
        "variants @/masked @/variants.vcf @/genome.fa -o @/masked.tsv --window 64",
        ("masked.tsv",),
    ),
    Case(
        "ism",
        "ism default chr2:101-110 @/genome.fa -o @/map.parquet --window 64 --bigwig @/map",
        ("map.parquet", "map.llr_window.bw"),
        needs="pybigtools",
        processes=True,
    ),
    Case("embed", "embed default @/seqs.fa -o @/embed.npy", ("embed.npy",), processes=True),
    Case(
        "embed_bed",
        "embed default @/regions.bed --genome @/genome.fa -o @/embed.parquet --pooling last "
        "--strands both",
        ("embed.parquet",),
    ),
    Case(
        "embed_anndata",
        "embed default @/seqs.fa -o @/embed.h5ad --layer 1",
        ("embed.h5ad",),
        needs="anndata",
    ),
    Case(
        "generate",
        "generate default -o @/made.fa --length 40 --samples 3 --prompt ACGTTGCA --temperature 0.2",
        ("made.fa",),
        processes=True,
    ),
    Case(
        "evaluate",
        "evaluate default --genome @/genome.mb --regions chr1 --train-regions chr2 --max-order 3 "
        "--window 256 --context-lengths 32 64 --context-blocks 4 -o @/evaluation",
        ("evaluation/evaluation.json",),
    ),
    Case(
        "long_context",
        "evaluate default --long-context --genome @/genome.mb --regions chr1 --segment 16 --count "
        "6 --distances 16 400 -o @/long.tsv",
        ("long.tsv",),
    ),
    Case(
        "finetune",
        # AdamW: Muon rounds to bfloat16, and processors round to it differently.
        "finetune default --train @/train.csv --test @/test.csv --steps 3 --global-batch 8 "
        "--optim.name adamw --optim.lr 6e-4 --optim.warmup-fraction 0.01 "
        "--head.reverse-complement 0 --devices.accelerator cpu --output @/tuned",
        ("tuned/result.json",),
    ),
    Case(
        "predict",
        "predict @/tuned @/seqs.fa -o @/predicted.tsv",
        ("predicted.tsv",),
        processes=True,
    ),
    Case(
        "predict_track",
        "predict @/tuned --genome @/genome.fa --regions chr2:1-200 --window 64 -o @/track.bw",
        ("track.bw",),
        needs="pybigtools",
    ),
    Case(
        "attribute",
        "attribute @/tuned @/seqs.fa -o @/attributed.parquet --target yes --steps 4",
        ("attributed.parquet",),
        needs="captum",
        processes=True,
    ),
    Case(
        "prompt",
        "prompt default --train @/train.csv --test @/test.csv --steps 2 --prompt.length 4 "
        "--head.no-strand-average --devices.accelerator cpu --output @/prompted",
        ("prompted/result.json",),
    ),
    Case(
        "icl",
        "icl default --train @/train.csv --test @/test.csv --shots 2 --devices.accelerator cpu "
        "--output @/icl",
        ("icl/result.json",),
    ),
    Case(
        "pretrain",
        "pretrain --data.genome @/genome.mb --data.validation '[\"chr2:1-200\"]' --data.test "
        "'[\"chr2:201-400\"]' --model.d-model 8 --model.n-layer 1 --model.overrides "
        "'{filter_order: 8}' --stages '[{length: 32, micro_batch: 4}]' --global-batch 4 --steps 4 "
        "--eval-every 2 --log-every 1 --devices.accelerator cpu --devices.devices 1 "
        "--devices.threads 1 --output @/pretrained",
        ("pretrained/metrics.jsonl",),
    ),
    Case(
        "benchmark",
        "benchmark table --data @/sets --models kmer:2 --seeds [1] --output @/benchmark",
        ("benchmark/results.md",),
        needs="sklearn",
    ),
    Case(
        "report",
        "report --genome @/genome.fa --region chr2:1-200 --vcf @/scored.vcf --window 64 "
        "-o @/page.html",
        ("page.html",),
    ),
)


def make_inputs(folder: Path) -> None:
    """Write a genome of two contigs, regions, variants, sequences and labeled tables."""
    rng = np.random.default_rng(20_261_129)

    def dna(length: int) -> str:
        return "".join(rng.choice(list("ACGT"), size=length))

    first, second = dna(700), dna(400)
    first = first[:300] + "N" * 5 + first[305:310].lower() + first[310:]
    (folder / "genome.fa").write_text(f">chr1\n{first}\n>chr2\n{second}\n")
    (folder / "regions.bed").write_text(
        "chr1\t10\t80\tone\t0\t+\nchr2\t100\t190\ttwo\t0\t-\nchr1\t280\t340\tthree\t0\t+\n"
    )
    other = {"A": "G", "C": "T", "G": "A", "T": "C"}
    rows = [
        ("chr1", 50, first[49], other[first[49]]),
        ("chr1", 60, first[59:62], first[59]),
        ("chr1", 120, first[119], first[119] + "GG"),
        ("chr1", 200, first[199], "<DEL>"),
        ("chr2", 1, second[0], other[second[0]]),
        ("chr2", 150, second[149], f"{other[second[149]]},*"),
        ("chr2", 400, second[399], other[second[399]]),
    ]
    header = (
        "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=700>\n##contig=<ID=chr2,length=400>\n"
        '##ALT=<ID=DEL,Description="Deletion">\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n'
    )
    (folder / "variants.vcf").write_text(
        header + "".join(f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\t.\n" for c, p, r, a in rows)
    )
    (folder / "seqs.fa").write_text(
        "".join(f">s{i} text\n{dna(30 + 17 * i)}\n" for i in range(5)) + ">n\nACGTNNNACGT\n"
    )
    (folder / "sets" / "mine").mkdir(parents=True)
    for name, count in (("train", 24), ("test", 12)):
        text = "sequence,label\n" + "".join(
            f"{dna(20)}{'TATAAA' if i % 2 else 'GCGCGC'}{dna(14)},{'yes' if i % 2 else 'no'}\n"
            for i in range(count)
        )
        (folder / f"{name}.csv").write_text(text)
        (folder / "sets" / "mine" / f"{name}.csv").write_text(text)


def render(path: Path) -> str:
    """Give the content of an output as text, numbers in full."""
    suffix = path.suffix
    if suffix == ".info":
        from megabase.genome.store import Genome

        store = Genome(path.with_suffix(".mb"))
        contigs = [f"{contig.name} {contig.length}" for contig in store.contigs]
        return "\n".join([str(store.checksum), *contigs])
    if suffix == ".parquet":
        import polars as pl

        frame = pl.read_parquet(path)
        lines = [f"{name}: {kind}" for name, kind in frame.schema.items()]
        return "\n".join(lines + [json.dumps(row, default=str) for row in frame.rows()])
    if suffix == ".npy":
        return _array(np.load(path))
    if suffix == ".h5ad":
        import anndata

        data = anndata.read_h5ad(path)
        return f"{data.obs.to_csv()}\n{list(data.var_names)[:3]}\n{_array(np.asarray(data.X))}"
    if suffix == ".bw":
        import pybigtools

        with pybigtools.open(str(path)) as track:
            return "\n".join(
                f"{name} {size} {[list(row) for row in track.records(name)]}"
                for name, size in track.chroms().items()
            )
    # Weights that were drawn or trained here end in other bits on another processor.
    made = r'((?:tuned/step-\d+|masked)","model_sha256":")\w+'
    text = re.sub(made, r"\1trained here", path.read_text())
    if suffix == ".json":
        return json.dumps(_steady(json.loads(text)), indent=1, sort_keys=True)
    if suffix == ".jsonl":
        rows = [json.dumps(_steady(json.loads(line)), sort_keys=True) for line in text.splitlines()]
        return "\n".join(rows)
    if suffix == ".html":
        shown = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
        found = re.findall(r">([^<>]{2,80})<", shown.split("<body", 1)[-1])
        return "\n".join(line.strip() for line in found if line.strip())
    return text


def _array(values: np.ndarray) -> str:
    kept = values.astype(np.float64).reshape(-1)
    return f"{values.dtype} {values.shape} sum {kept.sum():.6f}\n{kept[:64].round(6).tolist()}"


def _steady(value: Any) -> Any:
    """Leave out what another run may change."""
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if not VOLATILE.search(str(k))}
    return [_steady(item) for item in value] if isinstance(value, list) else value


def difference(found: str, kept: str) -> str | None:
    """Say where two texts differ: the first line, or the first number that is too far off."""
    ours, theirs = found.splitlines(), kept.splitlines()
    for number, (one, two) in enumerate(zip(ours, theirs, strict=False), 1):
        if NUMBER.sub("#", one) != NUMBER.sub("#", two):
            return f"line {number}: found {one[:300]!r}, kept {two[:300]!r}"
        for a, b in zip(NUMBER.findall(one), NUMBER.findall(two), strict=True):
            if not np.isclose(float(a), float(b), rtol=RELATIVE, atol=ABSOLUTE):
                return f"line {number}: found {a}, kept {b}, in {one[:300]!r}"
    if len(ours) != len(theirs):
        return f"{len(ours)} lines, kept {len(theirs)}"
    return None
