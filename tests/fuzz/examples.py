"""Small valid files of every kind that megabase reads, and the readers that are tried on them."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Parameters
    ----------
    weight
        How often it is drawn; slow readers are drawn less.
    file
        Name of the file that is mutated.
    read
        Reads the file at its place, all of it.
    style
        How the mutations know the format: text, json, gzip, bcf, zip, store, safetensors, binary.
    beside
        Folder (of the examples) whose files lie beside it, if any.
    """

    weight: float
    file: str
    read: Callable[[Path], Any]
    style: str = "binary"
    beside: str | None = None


DRAWS = random.Random(7)


def letters(count: int) -> str:
    return "".join(DRAWS.choices("ACGT", k=count))


# ------------------------------------------------------------------------------------- the readers


def fasta(path: Path) -> None:
    from megabase.data.sources import _read_fasta
    from megabase.genome.fasta import read_fasta

    list(read_fasta(path))
    list(_read_fasta(path))


@cache
def genome(folder: Path) -> Any:
    from megabase.genome.store import Genome

    return Genome(folder / "genome.mb")


def places() -> list[Any]:
    from megabase.genome.interval import Interval

    return [Interval("chr1", 0, 400), Interval("chr2", 0, 100)]


def of(path: Path) -> Any:
    """Give the genome of the examples, which lie above every worker's folder."""
    return genome(path.parents[2] / "examples")


def bed(path: Path) -> None:
    from megabase.genome.tables import read_bed
    from megabase.report.genome_page import _bed_track

    read_bed(path)
    _bed_track(str(path), "x", of(path), places())


def gff(path: Path) -> None:
    from megabase.genome.tables import read_gff
    from megabase.report.genome_page import genes_track

    read_gff(path, attributes=("ID", "gene_id"))
    genes_track(str(path), "x", of(path), places())


def meme(path: Path) -> None:
    from megabase.inference.motifs import read_motifs

    for matrix in read_motifs(path).values():
        assert matrix.shape == (len(matrix), 4)


def vcf(path: Path) -> None:
    from megabase.genome.tables import read_vcf
    from megabase.genome.vcf import VcfRecord

    for _ in VcfRecord.read(path):
        pass
    read_vcf(path, of(path), info=("AF",))


def table(path: Path) -> None:
    from megabase.data.label_files import read_sequence_table, read_text
    from megabase.errors import MegabaseError

    try:
        read_text(path)
    except MegabaseError:
        read_sequence_table(path)


def store(path: Path) -> None:
    from megabase.genome.alphabet import decode
    from megabase.genome.store import Genome

    opened = Genome(path)
    repr(opened)
    for index, contig in enumerate(opened.contigs):
        decode(opened.view(index))
        opened.fetch_many([index], [-3], 8)
        if contig.length:
            opened.region(f"{opened.contigs[index].name}")
    opened.verify()


def weights(path: Path) -> None:
    from megabase.models.checkpoints.reader import read_weights

    read_weights(path)


def settings(path: Path) -> None:
    from megabase.models.auto import load_config
    from megabase.models.describe import describe

    load_config(path.parent)
    describe(path.parent)


def tokenizer(path: Path) -> None:
    from megabase.models.auto import load_tokenizer

    load_tokenizer(path.parent)("ACGTN")


def model(path: Path) -> None:
    from megabase.models.auto import load_model

    load_model(path.parent)


def recipe(path: Path) -> None:
    from megabase.cli.parser import _check_recipe

    _check_recipe(str(path))


def command(path: Path) -> None:
    from megabase.cli.main import main

    main(["pretrain", "--config", str(path), "--dry-run"])


def prompt(path: Path) -> None:
    from megabase.models.adapt.prompt import read_prompt

    read_prompt(path.parent)


def progress(path: Path) -> None:
    from megabase.training.checkpoint import Checkpoints

    Checkpoints.progress_of(path.parents[1])


def run(path: Path) -> None:
    from megabase.errors import MegabaseError
    from megabase.models.loading import _uses_special_tokens
    from megabase.report.run_page import _read_run
    from megabase.training.run_folder import RunData

    for read in (_read_run, lambda folder: _uses_special_tokens(folder, "hyenadna")):
        with contextlib.suppress(MegabaseError):
            read(path.parent)
    found = RunData.find(path.parent)
    if found is not None:
        _ = found.longest
        found.regions(of(path), "train")


def evaluation(path: Path) -> None:
    from megabase.evaluate.results import EvaluationResult
    from megabase.report.run_page import _read_evaluation

    EvaluationResult.load(path)
    _read_evaluation(path)


def signal(path: Path) -> None:
    from megabase.report.genome_page import _signal_track

    _signal_track(str(path), "x", of(path), places())


def saturation(path: Path) -> None:
    from megabase.inference.ism import Mutagenesis

    Mutagenesis.read(path)


KINDS: dict[str, Kind] = {
    "fasta": Kind(2, "a.fa", fasta, "text"),
    "fasta.gz": Kind(1, "a.fa.gz", fasta, "gzip"),
    "fasta.bgz": Kind(1, "a.fa.bgz", fasta, "gzip"),
    "bed": Kind(2, "a.bed", bed, "text"),
    "narrowPeak": Kind(1, "a.narrowPeak", bed, "text"),
    "gff": Kind(1, "a.gff3", gff, "text"),
    "gtf": Kind(1, "a.gtf", gff, "text"),
    "meme": Kind(1, "a.meme", meme, "text"),
    "vcf": Kind(2, "a.vcf", vcf, "text"),
    "vcf.gz": Kind(1, "a.vcf.gz", vcf, "gzip"),
    "bcf": Kind(2, "a.bcf", vcf, "bcf"),
    "csv": Kind(1.5, "a.csv", table, "text"),
    "tsv": Kind(1, "a.tsv", table, "text"),
    "parquet": Kind(3, "a.parquet", table),
    "store": Kind(3, "a.mb", store, "store"),
    "ckpt": Kind(3, "a.ckpt", weights, "zip"),
    "ckpt, old": Kind(2, "old.ckpt", weights, "pickle"),
    "bin": Kind(1, "pytorch_model.bin", weights, "zip"),
    "safetensors": Kind(2, "a.safetensors", weights, "safetensors"),
    "index.json": Kind(0.5, "model.safetensors.index.json", weights, "json", "sharded"),
    "config.json": Kind(0.3, "config.json", settings, "json", "model"),
    "config.json, BERT": Kind(0.1, "config.json", settings, "json", "dnabert"),
    "model": Kind(0.02, "config.json", model, "json", "model"),
    "tokenizer_config.json": Kind(0.3, "tokenizer_config.json", tokenizer, "json", "model"),
    "special_tokens_map.json": Kind(0.1, "special_tokens_map.json", tokenizer, "json", "model"),
    "added_tokens.json": Kind(0.1, "added_tokens.json", tokenizer, "json", "model"),
    "vocab.txt": Kind(0.05, "vocab.txt", tokenizer, "text", "dnabert"),
    "tokenizer.json": Kind(0.1, "tokenizer.json", tokenizer, "json", "bigbird"),
    "recipe": Kind(1, "recipe.yaml", recipe, "text"),
    "recipe, command": Kind(0.02, "recipe.yaml", command, "text"),
    "prompt.json": Kind(0.5, "prompt.json", prompt, "json", "prompt"),
    "prompt.safetensors": Kind(0.5, "prompt.safetensors", prompt, "safetensors", "prompt"),
    "state.json": Kind(0.5, "training_state/state.json", progress, "json"),
    "config.yaml": Kind(0.3, "config.yaml", run, "text", "run"),
    "data.json": Kind(0.5, "data.json", run, "json", "run"),
    "metrics.jsonl": Kind(0.3, "metrics.jsonl", run, "text", "run"),
    "evaluation": Kind(0.5, "evaluation.json", evaluation, "json"),
    "bedgraph": Kind(1, "a.bedgraph", signal, "text"),
    "bigwig": Kind(1, "a.bw", signal),
    "npz": Kind(0.3, "a.npz", saturation, "zip"),
}


# ------------------------------------------------------------------------------------ the examples


def make(folder: Path) -> None:
    """Write the examples; run in a process of its own, since some writers start threads."""
    folder.mkdir(parents=True)
    _tables(folder)
    _weights(folder)
    _models(folder)
    _runs(folder)


def _tables(folder: Path) -> None:
    import numpy as np
    import polars as pl
    import pysam
    import pysam.bcftools

    from megabase.genome.store import Genome
    from megabase.inference.parts import Run, write_bigwig

    chromosomes = {"chr1": letters(600), "chr2": letters(200)}
    lines = "".join(f">{name} x\n{text[:80]}\n{text[80:]}\n" for name, text in chromosomes.items())
    (folder / "a.fa").write_text(lines + ">chr3\nACGTNNRYacgtn\n")
    Genome.build(folder / "a.fa", folder / "genome.mb")
    shutil.copy(folder / "genome.mb", folder / "a.mb")
    (folder / "a.bed").write_text(
        "track name=x\n" + "".join(f"chr1\t{i}\t{i + 20}\tn{i}\t{i}\t+\n" for i in range(0, 90, 9))
    )
    (folder / "a.narrowPeak").write_text(
        "".join(f"chr1\t{i}\t{i + 20}\tp{i}\t5\t.\t1.5\t2.5\t-1\t10\n" for i in range(0, 90, 9))
    )
    rows = "".join(
        f"chr1\tx\t{what}\t{10 + i}\t{90 + i}\t.\t+\t0\tID={what}{i};Parent=gene0;Name=a%20b\n"
        for i in range(3) for what in ("gene", "mRNA", "exon", "CDS")
    )  # fmt: skip
    (folder / "a.gff3").write_text(f"##gff-version 3\n{rows}")
    matrix = "letter-probability matrix: alength= 4 w= 2\n 0.9 0.1 0 0\n1e-1 0.2 .3 0.4\n"
    motifs = "".join(f"MOTIF MA{k}.1 X::Y{k}\n{matrix}\nURL x\n\n" for k in range(3))
    (folder / "a.meme").write_text(f"MEME version 4\n\nALPHABET= ACGT\n\n{motifs}")
    (folder / "a.gtf").write_text(
        "".join(
            f'chr1\tx\t{what}\t10\t90\t.\t-\t.\tgene_id "g{i}"; transcript_id "t{i}";\n'
            for i in range(3)
            for what in ("gene", "transcript", "exon")
        )
    )
    sites = "".join(
        f"chr1\t{i + 1}\trs{i}\t{chromosomes['chr1'][i]}\t{'ACGT'[i % 4]}N,<DEL>\t5.5\tPASS\t"
        f"AF=0.5,0.1;DB\tGT\t0/1\n" for i in range(12)
    )  # fmt: skip
    head = (
        "##fileformat=VCFv4.2\n##FILTER=<ID=PASS,Description=\"ok\">\n"
        "##contig=<ID=chr1,length=600>\n##ALT=<ID=DEL,Description=\"d\">\n"
        '##INFO=<ID=AF,Number=A,Type=Float,Description="f">\n'
        '##INFO=<ID=DB,Number=0,Type=Flag,Description="d">\n'
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="g">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\n"
    )  # fmt: skip
    (folder / "a.vcf").write_text(head + sites)
    pysam.tabix_compress(str(folder / "a.vcf"), str(folder / "a.vcf.gz"), force=True)
    pysam.bcftools.view(
        "-Ob", "-o", str(folder / "a.bcf"), str(folder / "a.vcf"), catch_stdout=False
    )
    (folder / "a.fa.gz").write_bytes(gzip.compress((folder / "a.fa").read_bytes()))
    pysam.tabix_compress(str(folder / "a.fa"), str(folder / "a.fa.bgz"), force=True)
    frame = pl.DataFrame(
        {"name": [f"r{i}" for i in range(20)], "sequence": [letters(30) for _ in range(20)],
         "label": [str(i % 3) for i in range(20)]}
    )  # fmt: skip
    frame.write_csv(folder / "a.csv")
    frame.write_csv(folder / "a.tsv", separator="\t")
    frame.write_parquet(folder / "a.parquet")
    for packing in ("snappy", "uncompressed", "gzip", "lz4"):
        frame.with_columns(x=pl.int_range(20)).write_parquet(
            folder / f"a.parquet.{packing}", compression=packing
        )
    (folder / "a.bedgraph").write_text(
        "track type=bedGraph\n"
        + "".join(f"chr1\t{i}\t{i + 9}\t{i / 7:.3f}\n" for i in range(0, 99, 9))
    )
    write_bigwig(
        folder / "a.bw", {"chr1": 600, "chr2": 200},
        [Run("chr1", 0, np.arange(500, dtype=np.float32))],
    )  # fmt: skip
    np.savez(folder / "a.npz", ref="ACGT", contig="chr1", start=5, site=np.zeros((4, 4), "f4"))


def _weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = {f"layer.{i}.weight": torch.randn(3, 4) for i in range(4)}
    state["half"] = torch.ones(3, dtype=torch.bfloat16)
    content = {
        "state_dict": state, "epoch": 3, "hyper_parameters": {"model": {"d_model": 4, "x": [1, 2]}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        "rng": __import__("numpy").arange(6), "size": torch.Size([1, 2]), "names": {"a", "b"},
    }  # fmt: skip
    torch.save(content, folder / "a.ckpt")
    torch.save(content, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "old.ckpt.bare").write_bytes(pickle.dumps({"a": [1, (2, "x")]}, 4))
    save_file(state, folder / "a.safetensors", {"format": "pt"})
    sharded = folder / "sharded"
    sharded.mkdir()
    save_file(state, sharded / "part.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(state, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _models(folder: Path) -> None:
    import torch

    from megabase.models.adapt.prompt import PromptedModel, PromptSpec, save_prompt
    from megabase.models.families import family_of
    from megabase.models.hyenadna import HyenaDNAConfig
    from megabase.models.tokenizers.bpe import train_bpe
    from megabase.models.tokenizers.character import DNATokenizer
    from megabase.models.tokenizers.kmer import DNABERTTokenizer

    def save(name: str, model_type: str, tokenizer: Any, **fields: Any) -> Any:
        family = family_of(model_type)
        assert family is not None
        made = next(iter(family.classes().values()))(family.config_class()(**fields))
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        return made

    small = dict(HyenaDNAConfig(d_model=8, n_layer=1, filter_order=8, max_seq_len=66).to_dict())
    small.pop("model_type")
    save("model", "hyenadna", DNATokenizer(model_max_length=64), **small)
    bert = {"vocab_size": 69, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "max_position_embeddings": 16}  # fmt: skip
    save("dnabert", "dnabert", DNABERTTokenizer(k=3), **bert)
    bpe = train_bpe([letters(200)], vocab_size=30)
    save("bigbird", "genomic-bigbird", bpe, **{**bert, "vocab_size": 30, "block_size": 4})
    special = {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]", "lstrip": False}}
    (folder / "model" / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "model" / "added_tokens.json").write_text(json.dumps({"[NEW]": 12}))
    from megabase.models.auto import load_model

    spec = PromptSpec(length=3, classes=("no", "yes"), answer="head")
    with torch.no_grad():
        prompted = PromptedModel(load_model(folder / "model", "base"), spec)
    save_prompt(prompted, folder / "prompt", model=str(folder / "model"))


def _runs(folder: Path) -> None:
    from megabase.genome.store import Genome
    from megabase.training.checkpoint import Progress

    place = ROOT / "tests" / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("records", place)
    assert spec is not None
    assert spec.loader is not None
    records = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(records)
    run = folder / "run"
    (run / "best").mkdir(parents=True)
    for file in (folder / "model").iterdir():
        shutil.copy(file, run / "best" / file.name)
    lines = (json.dumps(record) + "\n" for record in records.metrics_records(((64, 10),)))
    (run / "metrics.jsonl").write_text("".join(lines))
    (run / "environment.json").write_text('{"megabase": "1"}')
    store = Genome(folder / "genome.mb")
    part = {"regions": ["chr1:1-300"], "number_of_regions": 1, "bases": 300}
    data = {
        "genome": {"path": str(folder / "genome.mb"), "sha256": store.checksum},
        "splits": dict.fromkeys(("train", "validation", "test"), part),
    }
    (run / "data.json").write_text(json.dumps(data))
    recipe = (
        f"data: {{genome: {folder / 'genome.mb'}, include: &a [chr1], test: ['chr1:1-100']}}\n"
        "model: {d_model: 8, n_layer: 1, overrides: {filter_order: 8}}\n"
        "stages:\n  - {length: 32, micro_batch: 4, steps: 4}\n  - {length: 64, micro_batch: 2}\n"
        "head: {special_tokens: auto}\nsteps: 10\n"
    )
    (run / "config.yaml").write_text(recipe)
    (folder / "recipe.yaml").write_text(recipe.replace("head: {special_tokens: auto}\n", "")
                                        + f"output: {folder / 'out'}\n")  # fmt: skip
    done = vars(Progress(step=3, best_loss=1.5))
    state = {"format": 1, "progress": done, "aliases": {"a": "b"},
             "optimizer": {"param_groups": [{"betas": [0.9, 0.9]}], "plain": {}}}  # fmt: skip
    (folder / "training_state").mkdir()
    (folder / "training_state" / "state.json").write_text(json.dumps(state))
    (folder / "evaluation.json").write_text(json.dumps(records.evaluation_record()))
