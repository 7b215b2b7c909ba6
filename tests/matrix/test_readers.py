"""Every reader with every kind of odd file: what is right, by name, and never another exception.

A reader is what verbs read with: ``sequences`` is that of score, embed, predict, attribute and
generate; ``sites`` is that of report; ``survey`` that of variants; ``labels`` and ``intervals``
those of finetune; ``features`` those of report and finetune; ``places`` is that of predict
--regions; ``build`` that of every verb that takes a genome.
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pysam
import pytest

from megabase.data.genome_labels import read_interval_text
from megabase.data.label_files import read_text
from megabase.data.labeled import label_splits
from megabase.data.regions import Regions
from megabase.data.sources import SequenceInput
from megabase.errors import AmbiguousLettersWarning, LeftOutWarning, MegabaseError
from megabase.genome.alphabet import decode
from megabase.genome.store import Genome
from megabase.genome.tables import read_bed, read_gff, read_vcf
from megabase.inference.variants.vcf_file import _survey

CONTIG = "ACGTTGCAAC" * 10
VCF_HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=c>\n"
    '##INFO=<ID=L,Number=1,Type=String,Description="x">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
)
CLEAN = {
    "x.fa": f">one a\n{CONTIG}\n>two b\n{CONTIG[:50]}\n",
    "x.csv": f"name,sequence,label\none,{CONTIG},a\ntwo,{CONTIG[:50]},b\n",
    "x.bed": "c\t0\t10\ta\nc\t20\t30\tb\n",
    "x.gff3": "c\tx\tgene\t1\t10\t.\t+\t.\tID=a\nc\tx\tCDS\t21\t30\t.\t+\t.\tID=b\n",
    "x.vcf": VCF_HEADER + "c\t1\t.\tA\tC\t.\t.\tL=a\nc\t12\t.\tC\tG\t.\t.\tL=b\n",
}
ODD_ROWS = {
    "unknown contig": {
        "x.bed": "no\t0\t10\tc\n",
        "x.gff3": "no\tx\tgene\t1\t10\t.\t+\t.\tID=c\n",
        "x.vcf": "no\t1\t.\tA\tC\t.\t.\tL=c\n",
    },
    "before the first base": {
        "x.bed": "c\t-1\t10\tc\n",
        "x.gff3": "c\tx\tgene\t0\t10\t.\t+\t.\tID=c\n",
        "x.vcf": "c\t0\t.\tN\tC\t.\t.\tL=c\n",
    },
    "after the last base": {
        "x.bed": "c\t95\t101\tc\n",
        "x.gff3": "c\tx\tgene\t95\t101\t.\t+\t.\tID=c\n",
        "x.vcf": "c\t101\t.\tN\tC\t.\t.\tL=c\n",
    },
    "another REF": {"x.vcf": "c\t3\t.\tA\tC\t.\t.\tL=c\n"},
    "star": {"x.vcf": "c\t3\t.\tG\t*\t.\t.\tL=c\n"},
    "breakend": {"x.vcf": "c\t3\t.\tG\t.C\t.\t.\tL=c\n"},
    "symbol": {"x.vcf": "c\t3\t.\tG\t<DEL>\t.\t.\tL=c\n"},
}
REASON = {
    "unknown contig": "UNKNOWN_CONTIG", "before the first base": "OUTSIDE_CONTIG",
    "after the last base": "OUTSIDE_CONTIG", "another REF": "REF_MISMATCH",
    "star": "SYMBOLIC_ALT", "breakend": "SYMBOLIC_ALT", "symbol": "SYMBOLIC_ALT",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    folder = tmp_path_factory.mktemp("genome")
    (folder / "g.fa").write_text(f">c\n{CONTIG}\n")
    return Genome.build(folder / "g.fa", folder / "g.mb")


def sequences(path: Path, store: Genome) -> Any:
    placed = path.name.startswith(("x.bed", "x.vcf"))
    source = SequenceInput(str(path), str(store.path) if placed else None, window=20)
    return [(one.name, decode(one.codes)) for one in source.read()]


def build(path: Path, _: Genome) -> Any:
    built = Genome.build(path, path.with_suffix(".mb"), overwrite=True)
    return [(contig.name, decode(built.view(contig.name))) for contig in built.contigs]


def labels(path: Path, _: Genome) -> Any:
    rows = label_splits({"train": read_text(path)})["train"]
    return rows.codes.tolist(), rows.labels.tolist()


def intervals(path: Path, store: Genome) -> Any:
    label = {"x.vcf": "L"}.get(path.name.removesuffix(".gz"))
    text = read_interval_text(path, store, label=label)
    return text.sequences, text.labels


def places(path: Path, store: Genome) -> Any:
    found = Regions.read(store, [path], strict=False)
    return found.start.tolist(), found.end.tolist()


def sites(path: Path, store: Genome) -> Any:
    return read_vcf(path, store, info=["L"]).rows()


def features(path: Path, store: Genome) -> Any:
    read = read_gff if path.name.startswith("x.gff3") else read_bed
    return read(path, store).rows()


def variants(path: Path, store: Genome) -> Any:
    return _survey(path, store).records


READERS: dict[str, tuple[Callable[[Path, Genome], Any], tuple[str, ...]]] = {
    "sequences": (sequences, ("x.fa", "x.csv", "x.bed", "x.vcf")),
    "build": (build, ("x.fa",)),
    "labels": (labels, ("x.fa", "x.csv")),
    "intervals": (intervals, ("x.bed", "x.gff3", "x.vcf")),
    "places": (places, ("x.bed",)),
    "sites": (sites, ("x.vcf",)),
    "features": (features, ("x.bed", "x.gff3")),
    "variants": (variants, ("x.vcf",)),
}
CELLS = [(reader, name) for reader, (_, names) in READERS.items() for name in names]
every_cell = pytest.mark.parametrize(("reader", "name"), CELLS)


def read(reader: str, path: Path, store: Genome) -> tuple[Any, list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return READERS[reader][0](path, store), caught


def refused(reader: str, path: Path, store: Genome) -> str:
    with pytest.raises(MegabaseError) as caught:
        read(reader, path, store)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.fixture
def clean(tmp_path: Path, store: Genome) -> Callable[[str, str], Any]:
    def give(reader: str, name: str) -> Any:
        (tmp_path / name).write_text(CLEAN[name])
        found, said = read(reader, tmp_path / name, store)
        assert not said
        return found

    return give


@every_cell
@pytest.mark.parametrize("kind", ["CRLF", "BOM", "no line end", "gzip", "bgzip"])
def test_the_same_rows_in_another_dress(
    tmp_path: Path, store: Genome, clean: Any, reader: str, name: str, kind: str
) -> None:
    text = CLEAN[name].encode()
    path = tmp_path / (f"{name}.gz" if "gzip" in kind else name)
    expected = clean(reader, name)
    if kind == "bgzip":
        with pysam.BGZFile(str(path), "wb", None) as file:
            file.write(text)
    else:
        path.write_bytes({
            "CRLF": text.replace(b"\n", b"\r\n"), "BOM": b"\xef\xbb\xbf" + text,
            "no line end": text.rstrip(b"\n"), "gzip": gzip.compress(text),
        }[kind])  # fmt: skip
    assert read(reader, path, store)[0] == expected


@every_cell
def test_latin_1_is_refused_with_its_line(
    tmp_path: Path, store: Genome, reader: str, name: str
) -> None:
    path = tmp_path / name
    row = f">caf\xe9\n{CONTIG}\n" if name == "x.fa" else CLEAN[name].splitlines()[-1] + "caf\xe9\n"
    path.write_bytes(CLEAN[name].encode() + row.encode("latin-1"))
    line = CLEAN[name].count("\n") + 1
    said = refused(reader, path, store)
    assert f"line {line}" in said
    assert "UTF-8" in said


@pytest.mark.parametrize(("reader", "name"), [c for c in CELLS if c[1] in ("x.fa", "x.csv")])
def test_rna_is_counted(tmp_path: Path, store: Genome, reader: str, name: str) -> None:
    path = tmp_path / name
    path.write_text(CLEAN[name].replace("GTT", "GUu"))
    found, said = read(reader, path, store)
    assert found
    text = "30 letters read as N: U 30; U is RNA: write T for U to keep those bases"
    if reader == "build":
        assert Genome(path.with_suffix(".mb")).metadata.iupac_letters == {"U": 30}
    else:
        assert [str(one.message) for one in said] == [f"{path}: {text}"]
        assert said[0].category is AmbiguousLettersWarning


@pytest.mark.parametrize(
    ("reader", "name", "kind"),
    [(*cell, kind) for cell in CELLS for kind, rows in ODD_ROWS.items() if cell[1] in rows],
)
def test_an_odd_row_is_left_out_and_counted(
    tmp_path: Path, store: Genome, clean: Any, reader: str, name: str, kind: str
) -> None:
    expected = clean(reader, name)
    path = tmp_path / name
    path.write_text(CLEAN[name] + ODD_ROWS[kind][name])
    found, said = read(reader, path, store)
    kept = REASON[kind] == "SYMBOLIC_ALT" and reader in ("sites", "intervals")
    if kept:  # the place can be shown and read; the table of sites says what the allele is
        assert not said
        assert len(found) == 2 if reader == "intervals" else found[-1][-2] == "SYMBOLIC_ALT"
        return
    assert found == (3 if reader == "variants" else expected)
    assert [one.category for one in said] == [LeftOutWarning]
    assert f" 1 {REASON[kind]} (" in str(said[0].message)
    path.write_text(CLEAN[name].split("c\t")[0] + ODD_ROWS[kind][name])  # and nothing else
    if name == "x.vcf":
        path.write_text(VCF_HEADER + ODD_ROWS[kind][name])
    assert f"can be used (1 {REASON[kind]})" in refused(reader, path, store)


@every_cell
def test_an_empty_file(tmp_path: Path, store: Genome, reader: str, name: str) -> None:
    path = tmp_path / name
    path.write_text("")
    nothing_is_fine = {"places", "features"} | ({"sequences"} if name == "x.bed" else set())
    if reader in nothing_is_fine:  # the verb says that there is nothing to do
        assert not any(read(reader, path, store)[0])
    else:
        said = refused(reader, path, store)
        assert any(word in said for word in ("is empty", "holds no", "is not VCF"))


@every_cell
@pytest.mark.parametrize("kind", ["plain", "gzip", "bgzip"])
def test_a_file_that_is_cut_short(
    tmp_path: Path, store: Genome, clean: Any, reader: str, name: str, kind: str
) -> None:
    text = CLEAN[name].encode()
    path = tmp_path / (name if kind == "plain" else f"{name}.gz")
    if kind == "plain":
        last = text.rindex(b"\n", 0, -1) + 1
        path.write_bytes(text[: last + 3])
        if name == "x.fa":  # nothing tells a shorter sequence from a cut one
            assert len(read(reader, path, store)[0]) == len(clean(reader, name))
        else:
            assert "line " in refused(reader, path, store)
        return
    if kind == "bgzip":
        with pysam.BGZFile(str(path), "wb", None) as file:
            file.write(text)
    else:
        path.write_bytes(gzip.compress(text))
    path.write_bytes(path.read_bytes()[: -28 if kind == "bgzip" else -9])
    assert "cut short" in refused(reader, path, store)


@pytest.mark.parametrize("name", ["x.fa", "x.fastq", "x.fq.gz", "x.txt"])
def test_fastq_is_named(tmp_path: Path, store: Genome, name: str) -> None:
    path = tmp_path / name
    text = b"@read\nACGT\n+\nIIII\n"
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    for reader in ("sequences", "build"):
        assert "FASTQ" in refused(reader, path, store)
    if name != "x.txt":
        assert "FASTQ" in refused("labels", path, store)


def test_rows_of_csv_that_no_reader_should_guess_at(tmp_path: Path, store: Genome) -> None:
    path = tmp_path / "x.csv"
    for rows, said in (
        ("a,C,x\nb,C\n", r"line 3 (row 2): expected 3 cells, as the header has, found 2: 'b,C'"),
        ("a,C,x,y\n", "line 2 (row 1): expected 3 cells, as the header has, found 4"),
        ("# a note\n", "found 1: '# a note'; lines of comments are not read"),
    ):
        path.write_text("name,sequence,label\n" + rows)
        for reader in ("sequences", "labels"):
            assert said in refused(reader, path, store)
    path.write_text("sequence,label,label\nACGT,a,b\n")
    assert "line 1: the column 'label' is there twice" in refused("labels", path, store)


@pytest.mark.parametrize("cell", ["inf", "-inf", "1e400", "1e39"])
def test_labels_that_are_not_finite_are_refused(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"sequence,label\nACGT,0.5\nACGA,nan\nACGC,{cell}\n")
    with pytest.raises(MegabaseError, match=rf"x\.csv, row 3: the label label is '{cell}'; exp"):
        label_splits({"train": read_text(path)})
    path.write_text("sequence,label\nACGT,0.5\nACGA,nan\n")
    assert label_splits({"train": read_text(path)})["train"].unknown == 1
