"""Consequences of variants: a truth by hand on both strands, the dialects, and bcftools csq."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.genome.made_genes import Gene, make_genes, random_variants, reverse, write_genome

from megabase.errors import InputError, LeftOutWarning, NoUsableRowError
from megabase.genome.consequences import _NAMES, SEVERITY, Annotation
from megabase.genome.store import Genome

LEAD = 6_000  # bases before the transcript: more than what counts as upstream
# In reading direction: a 5' UTR of 9 bases from index 10 on, codons, an intron after the second
# base of AAT, the last codons, a 3' UTR of 6.
MESSAGE = (
    "ttttacgcga" "GATTACACC" "ATGGCTTGGAAATGCCATAA" "gtaagtcatgcatgcttttag" "TTCAGGATGA"
    "TAACCG" "ttttttttttttt"
)  # fmt: skip
EXONS, CODING = ((10, 39), (60, 76)), ((19, 39), (60, 70))

TRUTH = """
-1995 1 A    intergenic_variant                                               -
-1900 1 A    upstream_gene_variant                                            -
9     1 C    upstream_gene_variant                                            -
10    0 C    upstream_gene_variant                                            -
76    0 C    intergenic_variant                                               -
80    1 C    intergenic_variant                                               -
10    1 A    5_prime_UTR_variant                                              -
14    0 CCC  5_prime_UTR_variant                                              -
19    0 TGT  5_prime_UTR_variant                                              -
19    1 G    start_lost                                                       p.Met1?
21    1 A    start_lost                                                       p.Met1?
18    3 -    start_lost,5_prime_UTR_variant                                   p.Met1?
19    3 -    start_lost,inframe_deletion                                      p.Met1?
20    1 -    frameshift_variant,start_lost                                    p.Met1?
22    1 T    missense_variant                                                 p.Ala2Ser
24    1 C    synonymous_variant                                               p.Ala2=
24    2 CC   missense_variant                                                 p.Trp3Arg
24    4 CAAG missense_variant                                                 p.Trp3Lys
26    1 A    stop_gained                                                      p.Trp3Ter
25    0 TAG  stop_gained,inframe_insertion                                    p.Trp3Ter
25    0 C    frameshift_variant                                               p.Trp3fs
25    1 -    frameshift_variant                                               p.Trp3fs
25    4 -    frameshift_variant                                               p.Trp3fs
25    0 GGT  inframe_insertion                                                p.Ala2_Trp3insGly
28    0 TGG  inframe_insertion                                                p.Trp3dup
26    0 CTT  inframe_insertion                                                p.Ala2_Trp3insSer
25    3 -    inframe_deletion                                                 p.Trp3del
25    6 -    inframe_deletion                                                 p.Trp3_Lys4del
26    3 -    stop_gained,inframe_deletion                                     p.Trp3Ter
33    1 A    stop_gained                                                      p.Cys5Ter
33    1 T    synonymous_variant                                               p.Cys5=
36    1 C    splice_region_variant,synonymous_variant                         p.His6=
35    1 G    missense_variant                                                 p.His6Arg
38    1 C    missense_variant,splice_region_variant                           p.Asn7Thr
60    1 A    missense_variant,splice_region_variant                           p.Asn7Lys
60    1 C    splice_region_variant,synonymous_variant                         p.Asn7=
39    0 GGA  inframe_insertion,splice_region_variant                          p.Asn7delinsLysAsp
38    1 -    frameshift_variant,splice_region_variant                         p.Asn7fs
39    1 C    splice_donor_variant                                             -
40    1 C    splice_donor_variant                                             -
40    0 A    splice_donor_variant,intron_variant                              -
37    3 -    splice_donor_variant,splice_region_variant,coding_sequence_variant -
41    1 C    splice_region_variant,intron_variant                             -
46    1 T    splice_region_variant,intron_variant                             -
47    1 T    intron_variant                                                   -
51    1 T    intron_variant                                                   -
52    1 T    splice_region_variant,intron_variant                             -
57    1 C    splice_region_variant,intron_variant                             -
58    1 C    splice_acceptor_variant                                          -
59    1 C    splice_acceptor_variant                                          -
48    2 -    intron_variant                                                   -
61    1 G    missense_variant,splice_region_variant                           p.Ser8Ala
63    1 G    synonymous_variant                                               p.Ser8=
62    2 AA   stop_gained,splice_region_variant                                p.Ser8Ter
67    1 C    stop_lost                                                        p.Ter10ArgextTer?
68    1 A    stop_retained_variant                                            p.Ter10=
67    3 -    stop_retained_variant                                            p.Ter10=
65    3 CAC  stop_lost                             p.Gly9_Ter10delinsAlaArg
67    2 -    frameshift_variant,stop_lost                                     p.Ter10fs
66    1 -    frameshift_variant                                               p.Ter10fs
68    4 -    stop_lost,3_prime_UTR_variant                                    p.Ter10extTer?
68    6 -    stop_lost,3_prime_UTR_variant                                    p.Ter10extTer?
64    3 -    inframe_deletion                                                 p.Gly9del
70    1 G    3_prime_UTR_variant                                              -
70    0 G    3_prime_UTR_variant                                              -
75    3 -    3_prime_UTR_variant                                              -
5     20 -   start_lost,5_prime_UTR_variant                                   p.Met1?
66    12 -   stop_lost,3_prime_UTR_variant                                    -
5     80 -   transcript_ablation                                              -
"""


def transcript(strand: str) -> tuple[str, Gene]:
    """The message on a strand, with bases around it, and its gene."""
    text = "".join(np.random.default_rng(5).choice(list("acgt"), LEAD)).upper() + MESSAGE.upper()
    spans = [[(LEAD + s, LEAD + e) for s, e in part] for part in (EXONS, CODING)]
    if strand == "-":
        text = reverse(text)
        spans = [[(len(text) - e, len(text) - s) for s, e in part[::-1]] for part in spans]
    return text, Gene("TOY", strand, *spans)


def as_vcf(letters: str, strand: str, at: int, size: int, bases: str) -> tuple[int, str, str]:
    """A change in reading direction as position (0-based), REF and ALT, with a base before it."""
    start = LEAD + at
    if strand == "-":
        start, bases = len(letters) - start - size, reverse(bases)
    ref = letters[start : start + size]
    if ref and bases:
        return start, ref, bases
    before = letters[start - 1]
    return start - 1, before + ref, before + bases


@pytest.mark.parametrize("strand", ["+", "-"])
def test_every_class_on_both_strands_as_by_hand(tmp_path: Path, strand: str) -> None:
    letters, gene = transcript(strand)
    fasta, gff = write_genome(tmp_path, "chr1", letters, [gene])
    store = Genome.build(fasta, tmp_path / "g.mb")
    found, seen = Annotation.read(gff, store), set[str]()
    wrong = []
    for line in TRUTH.strip().splitlines():
        at, size, bases, terms, protein = line.split()
        variant = as_vcf(letters, strand, int(at), int(size), bases.strip("-"))
        (one,) = found.consequences("chr1", *variant)
        seen |= set(one.terms)
        if (",".join(one.terms), one.protein or "-") != (terms, protein):
            wrong.append((line, re.sub("%3D", "=", str(one))))
        inside = one.terms != ("intergenic_variant",)
        assert one[1:4] == (("TOY", "TOYT", strand) if inside else ("", "", ""))
    assert not wrong, "\n".join(f"{a}\n   {b}" for a, b in wrong)
    others = {"non_coding_transcript_exon_variant", "incomplete_terminal_codon_variant",
              "start_retained_variant"}  # fmt: skip
    assert seen | others == set(SEVERITY)


SITES = {"splice_donor_variant", "splice_acceptor_variant"}
SPLICE = {*SITES, "splice_region_variant", "intron_variant"}
ENDS = {"stop_gained", "start_lost", "stop_lost", "stop_retained_variant", "start_retained_variant"}
FRAMES = {"frameshift_variant", "inframe_insertion", "inframe_deletion", "coding_sequence_variant"}
UTRS = {"5_prime_UTR_variant", "3_prime_UTR_variant"}
OTHERS = {"stop_gained", "synonymous_variant"}


def as_csq(terms: set[str]) -> set[str]:
    """What bcftools csq writes of terms: it names an intron, or a region, beside nothing else."""
    if terms & SITES:
        terms = terms - {"splice_region_variant"}
    return terms - {"intron_variant"} or terms


def explained(mine: set[str], theirs: set[str], coding: bool, lengths: tuple[int, int]) -> str:
    """Why bcftools csq may name something else; empty where it may not."""
    one, two = as_csq(mine), as_csq(theirs)
    if one == two:
        return "equal"
    if not coding and two in ({"non_coding_variant"}, set()):
        return "csq names a transcript that is not translated as a whole"
    if "coding_sequence_variant" in one:
        return "over a border, or a codon that is not whole: csq adds what the coding part would do"
    if lengths == (1, 1):
        return ""
    if not mine:
        return "an indel beside a transcript: csq counts the base before it"
    if (one | two) & ENDS and one ^ two <= FRAMES | ENDS | UTRS:
        return "at a start or stop codon: csq does not read the untranslated region"
    if lengths[0] != lengths[1] and (one ^ two) <= SPLICE | FRAMES | OTHERS:
        return "an indel at an intron: csq asks whether the letters of the site are the same"
    if lengths[0] == lengths[1] and one ^ two == {"stop_gained", "missense_variant"}:
        return "several codons: csq overlooks a stop after the first"
    return ""


@pytest.mark.skipif(shutil.which("bcftools") is None, reason="bcftools is not installed")
def test_random_variants_as_bcftools_csq(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters, genes = make_genes(rng)
    fasta, gff = write_genome(tmp_path, "chr1", letters, genes)
    ours = Annotation.read(gff, Genome.build(fasta, tmp_path / "g.mb"))
    variants = random_variants(rng, letters, genes, 2_000)
    head = f"##fileformat=VCFv4.2\n##contig=<ID=chr1,length={len(letters)}>\n"
    head += "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    rows = "".join(f"chr1\t{p + 1}\t.\t{r}\t{a}\t.\t.\t.\n" for p, r, a in variants)
    (tmp_path / "v.vcf").write_text(head + rows)
    command = ["bcftools", "csq", "--local-csq", "-f", str(fasta), "-g", str(gff)]
    done = subprocess.run([*command, str(tmp_path / "v.vcf")], capture_output=True, check=True)
    records = [r.split("\t") for r in done.stdout.decode().splitlines() if not r.startswith("#")]
    coding = {f"{gene.name}T": bool(gene.coding) for gene in genes}
    counts, wrong, acids = Counter[str](), [], 0
    for (place, ref, alt), record in zip(variants, records, strict=True):
        mine = {
            one.transcript: one
            for one in ours.consequences("chr1", place, ref, alt)
            if one.terms[0] not in ("upstream_gene_variant", "intergenic_variant")
        }
        theirs, texts = dict[str, set[str]](), dict[str, str]()
        for text in re.findall(r"(?:BCSQ=|,)([^,;]+)", record[7]):
            terms, _, name, _, _, protein, *_ = (*text.split("|"), "", "")
            name = name or next(iter(mine), "?")  # csq does not name one where it is in an intron
            names = (csq_name(term) for term in terms.strip("*").split("&"))
            theirs.setdefault(name, set()).update(names)
            texts[name] = protein
        for name in {*mine, *theirs}:
            own, other = set(mine[name].terms) if name in mine else set(), theirs.get(name, set())
            why = explained(own, other, coding.get(name, False), (len(ref), len(alt)))
            counts[why or "wrong"] += 1
            if not why:
                wrong.append((place, ref, alt, name, own, other))
            change = re.fullmatch(r"(\d+)([A-Z*])(?:>\d+([A-Z*]))?", texts.get(name, ""))
            if change and why == "equal" and "frameshift_variant" not in own:
                number, before, after = change.groups()
                text = _NAMES[after] + "extTer?" * (before == "*") if after else "="
                assert mine[name].protein == f"p.{_NAMES[before]}{number}{text}"
                acids += 1
    assert not wrong, "\n".join(map(str, wrong))
    assert counts["equal"] > 1_500
    assert acids > 100


def csq_name(term: str) -> str:
    """The name in Sequence Ontology of a term of bcftools csq."""
    whole = ("stop_gained", "stop_lost", "start_lost", "inframe_insertion", "inframe_deletion")
    utr = {"5_prime_utr": "5_prime_UTR_variant", "3_prime_utr": "3_prime_UTR_variant"}
    return utr.get(term, term if term in whole else f"{term}_variant")


@pytest.mark.filterwarnings("ignore:contig .* is taken to be")
def test_dialects_give_the_same_transcripts(tmp_path: Path) -> None:
    letters, genes = make_genes(np.random.default_rng(2))
    fasta, gff = write_genome(tmp_path, "chr1", letters, genes)
    store = Genome.build(fasta, tmp_path / "g.mb")
    ensembl = Annotation.read(gff, store).transcripts
    assert [(list(one.exons), list(one.coding)) for one in ensembl] == [
        (gene.exons, gene.coding) for gene in genes
    ]
    assert [one.phase for one in ensembl] == [gene.phase for gene in genes]
    text = gff.read_text()
    refseq = text.replace("transcript:", "rna-").replace("gene:", "gene-")
    # As GENCODE's GFF3: names in every row, bare identifiers.
    gencode = re.sub(r"(Parent|ID)=(transcript|gene):", r"\1=", text)
    gtf = "".join(f"{row}\n" for gene in genes for row in gene.gtf("1"))
    bare = "".join(f"{row}\n" for row in gtf.splitlines() if "\ttranscript\t" not in row)
    for name, rows in {"a.gff": refseq, "b.gff3": gencode, "c.gtf": gtf, "d.gtf": bare}.items():
        (tmp_path / name).write_text(rows)
        assert Annotation.read(tmp_path / name, store).transcripts == ensembl


def toy(folder: Path, contig: str, text: str, rows: str) -> tuple[Annotation, str]:
    folder = Path(tempfile.mkdtemp(dir=folder))
    (folder / "t.fa").write_text(f">{contig}\n{text}\n")
    (folder / "t.gff").write_text(rows.replace(" ", "\t"))
    return Annotation.read(folder / "t.gff", Genome(folder / "t.fa")), contig


def test_codes_selenocysteine_and_codons_that_are_not_whole(tmp_path: Path) -> None:
    def named(annotation: Annotation, contig: str, place: int, ref: str, alt: str) -> str:
        (one,) = annotation.consequences(contig, place, ref, alt)
        return f"{'&'.join(one.terms)} {one.gene} {one.protein}".strip()

    row = "{} x CDS {} {} . + {} ID=c;Parent=gene-a{}\n"
    #        M  U  K  *
    text = "CATGTGAAAATAACCCCC"
    made = toy(
        tmp_path,
        "chr1",
        text,
        "chr1 x gene 1 18 . + . ID=gene-a;Name=abc\n" + row.format("chr1", 2, 13, 0, ""),
    )
    assert named(*made, 6, "A", "C") == "missense_variant abc p.Sec2Cys"
    assert named(*made, 5, "G", "A") == "stop_gained abc p.Sec2Ter"
    assert named(*made, 7, "A", "T") == "stop_gained abc p.Lys3Ter"
    # The vertebrate mitochondrion, where TGA is Trp and ATA a start; and by what the file says.
    for contig, more in (("MT", ""), ("chr2", ";transl_table=2")):
        made = toy(tmp_path, contig, text, row.format(contig, 2, 13, 0, more))
        assert named(*made, 6, "A", "C") == "missense_variant a p.Trp2Cys"
        assert named(*made, 3, "G", "A") == "start_retained_variant a p.Met1="
    # A ribosome that slips back by a base: ATG AAA CCC, and from the last C on CGG TTT TAA.
    slips = row.format("chr1", 2, 10, 0, "") + row.format("chr1", 10, 18, 0, "")
    made = toy(tmp_path, "chr1", "CATGAAACCCGGTTTTAACC", slips)
    assert named(*made, 11, "G", "A") == "synonymous_variant a p.Arg4="
    assert named(*made, 13, "T", "C") == "missense_variant a p.Phe5Ser"
    # A coding sequence that lacks its start, and ends within a codon.
    made = toy(tmp_path, "chr1", text, row.format("chr1", 1, 12, 2, ""))
    assert named(*made, 1, "A", "C") == "coding_sequence_variant a"
    assert named(*made, 2, "T", "G") == "missense_variant a p.Cys1Gly"
    assert named(*made, 11, "A", "C") == "incomplete_terminal_codon_variant a"
    for lacks in (";partial=true;start_range=.,2", ";tag=basic;tag=cds_start_NF"):
        made = toy(tmp_path, "chr1", text, row.format("chr1", 2, 13, 0, lacks))
        assert named(*made, 3, "G", "C") == "missense_variant a p.Met1Ile"


@pytest.mark.filterwarnings("ignore:contig .* is taken to be")
def test_transcripts_are_all_named_worst_first_and_contigs_found(tmp_path: Path) -> None:
    letters, gene = transcript("+")
    fasta, gff = write_genome(tmp_path, "chr1", letters, [gene])
    # A second transcript, not translated, of another gene on the other strand.
    other = Gene("LNC", "-", [(LEAD - 50, LEAD + 50)], [])
    rows = gff.read_text() + "\n".join(other.gff("chr1"))
    gff.write_text(rows.replace("chr1\t", "1\t"))
    annotation = Annotation.read(gff, Genome.build(fasta, tmp_path / "g.mb"))
    found = annotation.consequences("chr1", LEAD + 26, "G", "A")
    assert [str(one) for one in found] == [
        "stop_gained|TOY|TOYT|+|p.Trp3Ter", "non_coding_transcript_exon_variant|LNC|LNCT|-|",
    ]  # fmt: skip
    gff.write_text(rows.replace("chr1\t", "9\t"))
    with pytest.raises(NoUsableRowError, match="UNKNOWN_CONTIG"):
        Annotation.read(gff, annotation.store)
    gff.write_text(rows + "\nchr9\tx\texon\t1\t9\t.\t+\t.\tParent=a\n")
    with pytest.warns(LeftOutWarning, match="1 UNKNOWN_CONTIG"):
        Annotation.read(gff, annotation.store)
    gff.write_text("chr1\tx\tgene\t1\t9\t.\t+\t.\tID=a\n")
    with pytest.raises(InputError, match="has no transcript"):
        Annotation.read(gff, annotation.store)


def test_many_genes_on_a_contig_are_looked_up_as_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    letters, genes = make_genes(rng, 60)
    fasta, gff = write_genome(tmp_path, "chr1", letters, genes)
    whole = Annotation.read(gff, Genome.build(fasta, tmp_path / "g.mb"))
    single = [Annotation(whole.store, [one]) for one in whole.transcripts]
    for place, ref, alt in random_variants(rng, letters, genes, 100):
        one_by_one = [one.consequences("chr1", place, ref, alt)[0] for one in single]
        inside = [one for one in one_by_one if one.transcript]
        found = whole.consequences("chr1", place, ref, alt)
        assert sorted(map(str, found)) == sorted(map(str, inside))
        ranks = [SEVERITY.index(one.terms[0]) for one in found]
        assert ranks == sorted(ranks)


def test_odd_files_end(tmp_path: Path) -> None:
    loop = "chr1 x gene 1 18 . + . ID=a;Parent=b\nchr1 x gene 1 18 . + . ID=b;Parent=a\n"
    rows = "chr1 x stop_codon 4 6 . + 0 Parent=c\nchr1 x CDS 2 13 . + 0 Parent=a;transl_table=x\n"
    made, contig = toy(tmp_path, "chr1", "CATGTGAAAATAACCCCC", loop + rows)
    assert [one.code for one in made.transcripts] == [1]
    assert made.consequences(contig, 5, "G", "A")[0].terms == ("stop_gained",)
    with pytest.warns(LeftOutWarning, match="1 transcripts on no strand"):
        toy(
            tmp_path, "chr1", "CATGTGAAAATAACCCCC", loop + rows + "chr1 x exon 1 9 . . . Parent=d\n"
        )
