"""BED, GFF and VCF: coordinates, file order, and errors that name the line."""

import gzip
from pathlib import Path

import polars as pl
import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabase.errors import (
    ContigAliasWarning,
    InputError,
    LeftOutWarning,
    OutputError,
    UnknownContigError,
)
from megabase.genome.alphabet import decode
from megabase.genome.files import numbered_lines
from megabase.genome.interval import Interval, Strand
from megabase.genome.store import Genome
from megabase.genome.tables import read_bed, read_gff, read_vcf, write_bed

SEQUENCE = "ACGTACGTNNACCGTTacgtR" * 5  # 105 bases


def to_intervals(frame: pl.DataFrame) -> list[Interval]:
    """Intervals of the rows of a frame, with the strand where there is such a column."""
    strands = frame["strand"] if "strand" in frame.columns else [Strand.UNSTRANDED] * frame.height
    rows = zip(frame["contig"], frame["start"], frame["end"], strands, strict=True)
    return [Interval(contig, start, end, Strand(strand)) for contig, start, end, strand in rows]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    folder = tmp_path_factory.mktemp("genome")
    (folder / "x.fa").write_text(f">chr1\n{SEQUENCE}\n>chr2\n{SEQUENCE[::-1]}\n")
    return Genome.build(folder / "x.fa", folder / "x.mb", name="toy")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- BED ----------------------------------------------------------------------------------------


def test_bed3_keeps_its_coordinates_and_order(tmp_path: Path) -> None:
    frame = read_bed(write(tmp_path / "x.bed", "chr2\t5\t6\nchr1\t0\t100\nchr2\t5\t6\n"))
    assert frame.columns == ["contig", "start", "end"]
    assert frame.dtypes == [pl.String, pl.Int64, pl.Int64]
    assert frame.rows() == [("chr2", 5, 6), ("chr1", 0, 100), ("chr2", 5, 6)]


def test_bed4_with_a_split_column(tmp_path: Path) -> None:
    frame = read_bed(write(tmp_path / "x.bed", "chr1\t0\t10\ttrain\nchr1\t20\t30\ttest\n"))
    assert frame["name"].to_list() == ["train", "test"]


def test_bed6_columns_and_types(tmp_path: Path) -> None:
    text = "chr1\t1\t2\ta\t960\t+\nchr1\t3\t4\t.\t.\t-\nchr1\t3\t4\tc\t1.5\t.\n"
    frame = read_bed(write(tmp_path / "x.bed", text))
    assert frame.columns == ["contig", "start", "end", "name", "score", "strand"]
    assert frame["score"].to_list() == [960.0, None, 1.5]
    assert frame["strand"].to_list() == ["+", "-", "."]
    assert to_intervals(frame)[1] == Interval("chr1", 3, 4, Strand.REVERSE)


def test_what_is_no_row_is_passed_over(tmp_path: Path) -> None:
    text = (
        "browser position chr1:1-10\n# a comment\ntrack name=x description='y z'\n\n"
        "chrom\tchromStart\tchromEnd\r\nchr1\t1\t2\r\n#another\n\t\nchr1\t3\t4"
    )
    frame = read_bed(write(tmp_path / "x.bed", "\ufeff" + text))
    assert frame.rows() == [("chr1", 1, 2), ("chr1", 3, 4)]


def test_compressed_blank_separated_and_empty(tmp_path: Path) -> None:
    packed = write(tmp_path / "x.bed.gz", gzip.compress(b"chr1 1   2 a\nchr1 3 4  b\n"))
    assert read_bed(packed).rows() == [("chr1", 1, 2, "a"), ("chr1", 3, 4, "b")]
    empty = read_bed(write(tmp_path / "e.bed", "# nothing\n"))
    assert empty.schema == {"contig": pl.String, "start": pl.Int64, "end": pl.Int64}
    assert empty.height == 0


def test_peaks_by_file_name(tmp_path: Path) -> None:
    row = "chr1\t10\t50\tpeak\t500\t.\t12.5\t-1\t3.2\t17\n"
    narrow = read_bed(write(tmp_path / "x.narrowPeak.gz", gzip.compress(row.encode())))
    assert narrow.columns[6:] == ["signal_value", "p_value", "q_value", "summit"]
    assert narrow.row(0)[6:] == (12.5, -1.0, 3.2, 17)
    path = write(tmp_path / "x.bed", row)
    assert read_bed(path).columns[6:] == ["column_7", "column_8", "column_9", "column_10"]
    broad = write(tmp_path / "x.broadPeak", row.rsplit("\t", 1)[0] + "\n")
    assert read_bed(broad).columns[6:] == ["signal_value", "p_value", "q_value"]


def test_bed12(tmp_path: Path) -> None:
    row = "chr1\t0\t90\tt\t0\t+\t10\t80\t255,0,0\t2\t10,20,\t0,70,\n"
    frame = read_bed(write(tmp_path / "x.bed", row))
    assert frame.row(0)[6:] == (10, 80, "255,0,0", 2, "10,20,", "0,70,")


def test_columns_limits_what_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.bed", "chr1\t1\t2\ta\tnot a score\nchr1\t1\t2\tb\tz\tmore\n")
    assert read_bed(path, columns=4).row(1) == ("chr1", 1, 2, "b")
    with pytest.raises(InputError, match="3 columns or more"):
        read_bed(path, columns=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "chr1\t1\t2\nchr1\tx\t5\n",
            "line 2: the start position must be a whole number, found 'x'",
        ),
        ("#\nchr1\t1\t1e3\n", "line 2: the end position must be a whole number, found '1e3'"),
        ("chr1\t1\t1,000\n", "line 1: the end position must be a whole number, found '1,000'"),
        ("chr1\t1\t.\n", r"line 1: the end position must be a whole number, found '\.'"),
        ("chr1\t1\t99999999999999999999\n", "line 1: the end position must be a whole number"),
        ("chr1\t1\t2\n\nchr1\t5\t5\n", "line 3: expected start < end .*start 5 and end 5"),
        ("chr1\t7\t5\n", "line 1: expected start < end .*start 7 and end 5"),
        ("chr1\t-1\t5\n", "line 1: the row begins before the first base of contig 'chr1'"),
        ("chr1\t1\n", "line 1: expected 3 columns or more .*found 2"),
        ("chr1\t1\t2\nchr1\t1\n", "line 2: expected 3 columns separated by tabs, found 2"),
        ("chr1\t1\t2\nchr1\t1\t2\ta\n", "line 2: expected 3 columns separated by tabs, found 4"),
        ("\t1\t2\n", "line 1: the first column, the contig, is empty"),
        ("chr1\t1\t2\ta\thigh\n", "line 1: column 'score' must be a number, found 'high'"),
        ("chr1\t1\t2\ta\t0\tplus\n", "line 1: a strand is .* found 'plus'"),
        (b"chr1\t1\t2\n\xff\xfe\n", "line 2: not text in UTF-8"),
        (gzip.compress(b"chr1\t1\t2\n" * 9999, mtime=0)[:50], "gzip file is cut short"),
    ],
)
def test_a_bad_bed_names_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path / "x.bed", content)
    with pytest.raises(InputError, match=rf"x\.bed, .*{message}|x\.bed, {message}") as caught:
        read_bed(path, strict=True)
    assert "\n" not in str(caught.value)


def test_a_bgzip_cut_between_two_blocks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bed.gz"
    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(b"".join(b"chr1\t%d\t%d\n" % (i, i + 1) for i in range(9999)))
    assert len(list(numbered_lines(path))) == 9999
    whole = path.read_bytes()
    first_block = int.from_bytes(whole[16:18], "little") + 1
    assert gzip.decompress(whole[:first_block])  # which nobody would notice otherwise
    path.write_bytes(whole[:first_block])
    with pytest.raises(InputError, match=r"x\.bed\.gz is cut short: it is a bgzip file without"):
        read_bed(path)


def test_no_file(tmp_path: Path) -> None:
    for read in (read_bed, read_gff, read_vcf):
        with pytest.raises(InputError, match="there is no file"):
            read(tmp_path / "none.bed")
        with pytest.raises(InputError, match="cannot read"):
            read(tmp_path)


def test_bed_against_a_store(tmp_path: Path, store: Genome) -> None:
    good = write(tmp_path / "good.bed", "chr1\t0\t105\nchr2\t104\t105\n")
    assert read_bed(good, store).equals(read_bed(good))
    long = write(tmp_path / "long.bed", "# x\nchr1\t0\t105\nchr2\t100\t106\n")
    message = (
        r"long\.bed, line 3: the row ends at 106, past the end of contig 'chr2', which has 105"
    )
    with pytest.raises(InputError, match=message):
        read_bed(long, store, strict=True)
    unknown = write(tmp_path / "u.bed", "chr1\t0\t5\nchr3\t0\t5\nchr3\t1\t5\n")
    with pytest.raises(UnknownContigError, match=r"u\.bed, line 2: .*'chr3'.*nearest names are"):
        read_bed(unknown, store, strict=True)
    alias = write(tmp_path / "alias.bed", "2\t0\t5\nchr1\t0\t5\n1\t0\t5\n")
    with pytest.warns(ContigAliasWarning):
        frame = read_bed(alias, Genome(store.path))
    assert frame["contig"].to_list() == ["chr2", "chr1", "chr1"]


names = st.text("abcXYZ019_", min_size=1, max_size=5)
rows = st.lists(
    st.tuples(names, st.integers(0, 10**9), st.integers(1, 10**6), names, st.sampled_from("+-.")),
    max_size=20,
)


@given(rows)
def test_written_bed_reads_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, int, str, str]]
) -> None:
    text, number = pl.String, pl.Int64
    frame = pl.DataFrame(
        [(contig, start, start + size, name, strand) for contig, start, size, name, strand in rows],
        {"contig": text, "start": number, "end": number, "name": text, "strand": text},
        orient="row",
    )
    path = tmp_path_factory.mktemp("bed") / "x.bed.gz"
    write_bed(frame, path)
    if rows:
        assert read_bed(path).drop("score").equals(frame)
    assert path.read_bytes().endswith(bytes.fromhex("1b0003000000000000000000"))  # bgzip


def test_write_bed_fills_and_never_overwrites(tmp_path: Path) -> None:
    frame = pl.DataFrame({"strand": ["-"], "end": [9], "start": [3], "contig": ["c"], "other": [1]})
    path = tmp_path / "x.bed"
    write_bed(frame, path)
    assert path.read_text() == "c\t3\t9\t.\t0\t-\n"
    write_bed(frame.select("contig", "start", "end"), path, overwrite=True)
    assert path.read_text() == "c\t3\t9\n"
    with pytest.raises(OutputError, match="exists already"):
        write_bed(frame, path)
    with pytest.raises(InputError, match="needs the columns contig, start, end"):
        write_bed(frame.drop("end"), tmp_path / "y.bed")
    assert list(tmp_path.iterdir()) == [path]


def test_rows_off_the_genome_are_left_out_and_counted(tmp_path: Path, store: Genome) -> None:
    text = "chr1\t0\t5\nchr9\t0\t5\nchr9\t1\t5\nchr2\t100\t106\nchr2\t-1\t6\n"
    said = (
        r"x\.bed: 4 of 5 rows are left out: 2 UNKNOWN_CONTIG \(.*first in line 2\), "
        r"2 OUTSIDE_CONTIG \(.*first in line 4\)"
    )
    with pytest.warns(LeftOutWarning, match=said):
        assert read_bed(write(tmp_path / "x.bed", text), store).rows() == [("chr1", 0, 5)]
    with pytest.raises(InputError, match=r"none of its 2 rows can be used \(2 UNKNOWN_CONTIG\)"):
        read_bed(write(tmp_path / "y.bed", "chr9\t0\t5\nchr9\t1\t5\n"), store)


def test_a_feature_over_the_origin_of_a_circular_contig_ends_there(
    tmp_path: Path, store: Genome
) -> None:
    rows = (
        "chr1\tx\tregion\t1\t105\t.\t+\t.\tID=chr1;Is_circular=true\n"
        "chr1\tx\tgene\t101\t120\t.\t+\t.\tID=a\nchr2\tx\tgene\t101\t120\t.\t+\t.\tID=b\n"
    )
    said = "1 of 3 rows are left out: 1 OUTSIDE.*1 over the origin of a circular contig ends there"
    with pytest.warns(LeftOutWarning, match=said):
        frame = read_gff(write(tmp_path / "x.gff3", rows), store)
    assert frame.select("contig", "start", "end").rows() == [("chr1", 0, 105), ("chr1", 100, 105)]


# -- GFF ----------------------------------------------------------------------------------------

GFF3 = """##gff-version 3
chr1\tRefSeq\tgene\t1\t10\t.\t+\t.\tID=gene-1;Name=A%2CB;Dbxref=X:1,Y:2
chr1\tRefSeq\tCDS\t4\t9\t0.5\t-\t2\tID=cds-1; Parent=gene-1;note=Name=inner

chr2\tRefSeq\tregion\t105\t105\t.\t?\t.\t.
##FASTA
>chr1
ACGT
"""

GTF = (
    'chr1\tx\texon\t3\t5\t.\t+\t.\tgene_id "G1"; transcript_id "T;1"; exon_number 2;\n'
    'chr1\tx\tgene\t1\t5\t.\t+\t.\tgene_id "G2";\n'
)


def test_gff3_counts_from_one(tmp_path: Path, store: Genome) -> None:
    path = write(tmp_path / "x.gff3", GFF3)
    frame = read_gff(path, store, attributes=("ID", "Name", "Parent", "missing"))
    assert frame.columns == [
        "contig", "start", "end", "source", "type", "score", "strand", "phase", "attributes",
        "ID", "Name", "Parent", "missing",
    ]  # fmt: skip
    assert frame.select("contig", "start", "end").rows() == [
        ("chr1", 0, 10), ("chr1", 3, 9), ("chr2", 104, 105)
    ]  # fmt: skip
    assert frame["ID"].to_list() == ["gene-1", "cds-1", None]
    assert frame["Name"].to_list() == ["A,B", None, None]
    assert frame["Parent"].to_list() == [None, "gene-1", None]
    assert frame["phase"].to_list() == [None, 2, None]
    assert frame["strand"].to_list() == ["+", "-", "."]
    assert frame["missing"].null_count() == 3
    assert read_gff(path, types=["CDS"]).height == 1


def test_gtf_attributes(tmp_path: Path) -> None:
    packed = write(tmp_path / "x.gtf.gz", gzip.compress(GTF.encode()))
    frame = read_gff(packed, attributes=("gene_id", "transcript_id", "exon_number"))
    assert frame["gene_id"].to_list() == ["G1", "G2"]
    assert frame["transcript_id"].to_list() == ["T;1", None]
    assert frame["exon_number"].to_list() == ["2", None]


def test_gff_start_codon_is_the_three_bases(tmp_path: Path, store: Genome) -> None:
    path = write(tmp_path / "x.gff", "chr1\tx\tcodon\t2\t4\t.\t-\t0\tID=a\n")
    interval = to_intervals(read_gff(path, store))[0]
    assert str(interval) == "chr1:2-4(-)"
    assert decode(store.fetch(interval)) == "ACG"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "chr1\tx\tgene\t0\t9\t.\t+\t.\tID=a",
            "line 2: the row begins before the first base of contig 'chr1'",
        ),
        ("chr1\tx\tgene\t9\t8\t.\t+\t.\tID=a", "line 2: expected start <= end .*start 9 and end 8"),
        ("chr1\tx\tgene\tone\t8\t.\t+\t.\tID=a", "line 2: the start position must be .* 'one'"),
        ("chr1\tx\tgene\t1\t8\thigh\t+\t.\tID=a", "line 2: column 'score' must be .* 'high'"),
        ("chr1\tx\tgene\t1\t8\t.\t*\t.\tID=a", "line 2: a strand is"),
        ("chr1\tx\tgene\t1\t8\t.\t+\t.", "line 2: expected 9 columns separated by tabs, found 8"),
        ("chr1\tx\tgene\t1\t106\t.\t+\t.\tID=a", "line 2: the row ends at 106, past the end"),
    ],
)
def test_a_bad_gff_names_file_and_line(
    tmp_path: Path, store: Genome, row: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"x\.gff, {message}"):
        read_gff(write(tmp_path / "x.gff", f"##gff-version 3\n{row}\n"), store, strict=True)


# -- VCF ----------------------------------------------------------------------------------------

HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n##contig=<ID=chr2>\n"
SAMPLES = (
    '##INFO=<ID=AF,Number=A,Type=Float,Description="x">\n'
    '##INFO=<ID=DB,Number=0,Type=Flag,Description="x">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n'
    '##FILTER=<ID=q10,Description="x">\n'
)
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"


def vcf(*records: str, header: str = HEADER) -> str:
    return header + COLUMNS + "\n" + "".join(record + "\n" for record in records)


def copy_vcf(source: Path, target: Path, mode: str) -> None:
    with (
        pysam.VariantFile(str(source)) as read,
        pysam.VariantFile(str(target), mode, header=read.header) as written,
    ):
        for record in read:
            written.write(record)


RECORDS = (
    "chr1\t5\trs1\tA\tG,tt\t50\tPASS\tAF=0.1,0.2;DB",
    "chr1\t2\t.\tcg\tC\t.\tq10\tDB;XAF=9",
    "chr2\t1\t.\tN\t.\t1e2\t.\t.",
    "chr1\t105\t.\tA\t<DEL>,*\t.\t.\tAF=.",
)


def test_vcf_is_zero_based_and_keeps_its_order(tmp_path: Path, store: Genome) -> None:
    frame = read_vcf(write(tmp_path / "x.vcf", vcf(*RECORDS)), store, info=("AF", "DB"))
    assert frame.select("contig", "start", "end", "ref", "alt", "record", "allele").rows() == [
        ("chr1", 4, 5, "A", "G", 0, 0),
        ("chr1", 4, 5, "A", "TT", 0, 1),
        ("chr1", 1, 3, "CG", "C", 1, 0),
        ("chr2", 0, 1, "N", None, 2, 0),
        ("chr1", 104, 105, "A", "<DEL>", 3, 0),
        ("chr1", 104, 105, "A", "*", 3, 1),
    ]
    assert frame["id"].to_list() == ["rs1", "rs1", None, None, None, None]
    assert frame["qual"].to_list() == [50.0, 50.0, None, 100.0, None, None]
    assert frame["filter"].to_list() == ["PASS", "PASS", "q10", None, None, None]
    assert frame["AF"].to_list() == ["0.1,0.2", "0.1,0.2", None, None, ".", "."]
    assert frame["DB"].to_list() == ["", "", "", None, None, None]


def test_vcf_start_is_where_pysam_says(tmp_path: Path) -> None:
    path = write(tmp_path / "x.vcf", vcf(*RECORDS, header=HEADER + SAMPLES))
    frame = read_vcf(path).unique("record", keep="first", maintain_order=True)
    with pysam.VariantFile(str(path)) as file:
        found = [(record.chrom, record.start, record.ref.upper()) for record in file]
    assert frame.select("contig", "start", "ref").rows() == found


@pytest.mark.parametrize("mode", ["w", "wz", "wb", "wb0"])
def test_bgzip_and_bcf_give_the_same_frame(tmp_path: Path, mode: str) -> None:
    samples = COLUMNS + "\tFORMAT\ts1\ts2\n"
    header = HEADER + SAMPLES
    records = [f"{record}\tGT\t0/1\t1|1\n" for record in (*RECORDS[:1], RECORDS[2])]
    text = write(tmp_path / "x.vcf", header + samples + "".join(records))
    other = tmp_path / "y.vcf"
    copy_vcf(text, other, mode)
    columns = ["contig", "start", "end", "ref", "alt", "id", "record", "allele", "DB"]
    frames = [read_vcf(path, info=("AF", "DB")).select(columns) for path in (text, other)]
    assert frames[0].equals(frames[1])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("chr1\tx\t.\tA\tG\t.\t.\t.", "line 5: POS must be a whole number, found 'x'"),
        ("chr1\t0\t.\tA\tG\t.\t.\t.", "line 5: POS must be 1 or more, found 0"),
        ("chr1\t-4\t.\tA\tG\t.\t.\t.", "line 5: POS must be 1 or more, found -4"),
        ("chr1\t1\t.\tA\tG\tgood\t.\t.", "line 5: column 'qual' must be a number, found 'good'"),
        ("chr1\t1\t.\t.\tG\t.\t.\t.", r"line 5: REF must be one base or more, found '\.'"),
        ("chr1\t1\t.\tA1\tG\t.\t.\t.", "line 5: REF must be one base or more, found 'A1'"),
        ("chr1\t1\t.\tA", "line 5: expected 8 columns or more separated by tabs, found 4"),
        ("chr1\t105\t.\tRA\tG\t.\t.\t.", "line 5: the row ends at 106, past the end of contig"),
        (
            "chr1\t2\t.\tG\tA\t.\t.\t.",
            "line 5: REF is 'G', and genome 'toy' has 'C' at chr1:2; is the file made for this",
        ),
        ("chr1\t1\t.\tACGG\tA\t.\t.\t.", "line 5: REF is 'ACGG', and genome 'toy' has 'ACGT'"),
    ],
)
def test_a_bad_vcf_names_file_and_line(
    tmp_path: Path, store: Genome, record: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"x\.vcf, {message}"):
        read_vcf(write(tmp_path / "x.vcf", vcf(record)), store, strict=True)


def test_reference_is_compared_across_lengths_and_ambiguity(tmp_path: Path, store: Genome) -> None:
    records = (
        "chr1\t17\t.\tA\tG\t.\t.\t.",
        "chr1\t9\t.\tAN\tG\t.\t.\t.",
        "chr1\t21\t.\tR\tG\t.\t.\t.",
    )
    assert read_vcf(write(tmp_path / "x.vcf", vcf(*records)), store).height == 3
    wrong = (*records, "chr2\t2\t.\tCCC\tG\t.\t.\t.", "chr1\t1\t.\tG\tT\t.\t.\t.")
    with pytest.raises(InputError, match=r"line 8: REF is 'CCC'"):
        read_vcf(write(tmp_path / "y.vcf", vcf(*wrong)), store, strict=True)
    with pytest.raises(InputError, match=r"REF differs .* in 2 of 3 records; is the file made for"):
        read_vcf(tmp_path / "y.vcf", store)


def test_odd_records_are_left_out_and_counted(tmp_path: Path, store: Genome) -> None:
    records = (
        *(f"chr1\t{4 * i + 1}\t.\tA\tG\t.\t.\t." for i in (0, 1)),
        "chr1\t2\t.\tC\tG,*,<DEL>,C[chr2:5[,.C,T.,R\t.\t.\t.",
        "chr1\t0\t.\tN\tA\t.\t.\t.",
        "chr1\t106\t.\tN\tA\t.\t.\t.",
        "chrX\t1\t.\tA\tC\t.\t.\t.",
        "chr1\t3\t.\tT\tC\t.\t.\t.",
    )
    said = (
        r"4 of 13 alleles are left out: 2 OUTSIDE_CONTIG \(.*first in line 8\), 1 UNKNOWN_CONTIG "
        r"\(.*first in line 10\), 1 REF_MISMATCH \(.*first in line 11\)"
    )
    with pytest.warns(LeftOutWarning, match=said):
        frame = read_vcf(write(tmp_path / "x.vcf", vcf(*records)), store)
    assert frame["record"].to_list() == [0, 1, *[2] * 7]
    assert frame["reason"].to_list() == [None] * 3 + ["SYMBOLIC_ALT"] * 5 + ["ALT_NOT_BASES"]


def test_not_a_vcf(tmp_path: Path) -> None:
    for content in ("", "chr1\t1\t.\tA\tG\t.\t.\t.\n", "# a comment\nchr1 1\n"):
        with pytest.raises(InputError, match="is not VCF"):
            read_vcf(write(tmp_path / "x.vcf", content))
    assert read_vcf(write(tmp_path / "x.vcf", vcf())).height == 0


def test_a_bcf_cut_short(tmp_path: Path) -> None:
    header = HEADER + SAMPLES
    text = write(tmp_path / "x.vcf", vcf(*(RECORDS[:1] * 5000), header=header))
    whole = tmp_path / "x.bcf"
    copy_vcf(text, whole, "wb")
    cut = write(tmp_path / "cut.bcf", whole.read_bytes()[:-600])
    with pytest.raises(InputError, match="cut short or damaged"):
        read_vcf(cut)


def test_a_line_that_does_not_end_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Genome
) -> None:
    monkeypatch.setattr("megabase.genome.files._LONGEST_LINE", 50)
    path = tmp_path / "x.bed.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"chr1\t0\t5\n" + b"chr1\t0\t5\t" + b"x" * 60)
    with pytest.raises(InputError, match=r"x\.bed\.gz, line 2: longer than 50 bytes"):
        read_bed(path, store)
