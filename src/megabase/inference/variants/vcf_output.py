"""Scores in VCF and BCF: INFO fields with header lines, everything else as it was."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from megabase.errors import InputError, OutputError
from megabase.evaluate.provenance import Provenance
from megabase.genome.interval import contig_aliases
from megabase.genome.left_out import REASONS
from megabase.genome.vcf import VcfRecord
from megabase.inference.variants.scorer import METHODS, AlleleScore, VariantOptions

__all__ = ["VCF_SUFFIXES", "annotated_line", "header_lines", "index_vcf", "merge_vcf",
           "require_names", "require_new_keys", "require_prefix"]  # fmt: skip

VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")
"""Endings that bcftools knows too."""
_INFO = 7  # the eighth column of a VCF
_TBI_LIMIT = 1 << 29
"""Longest contig of a tabix index, by its format; csi takes longer ones."""
_CONTIG = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")
"""The names that VCF 4.3 allows; htslib cannot read a header with others."""
_KEY = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")
"""The INFO keys that VCF 4.3 allows."""


def _info_key(prefix: str, name: str) -> str:
    """Give the INFO key of a method, or of the reason."""
    return f"{prefix}_{name.upper()}"


def require_prefix(prefix: str) -> None:
    """Refuse a prefix that cannot begin an INFO key, with an InputError."""
    if not _KEY.fullmatch(prefix):
        raise InputError(
            f"prefix {prefix!r} cannot begin an INFO key; expected letters, digits and _"
        )


def require_new_keys(header: Sequence[str], prefix: str, path: Path) -> None:
    """Refuse a prefix whose keys the header of a file has already, with an InputError."""
    for name in (*METHODS, "reason"):
        key = _info_key(prefix, name)
        if any(line.startswith(f"##INFO=<ID={key},") for line in header):
            raise InputError(
                f"{path}: has INFO field {key} already; score the original file, or choose "
                "another prefix=..."
            )


def require_names(contigs: Iterable[str], path: Path) -> None:
    """Refuse names of contigs that the header of a VCF cannot hold, with an InputError."""
    for name in contigs:
        if not _CONTIG.fullmatch(name):
            raise InputError(
                f"{path}: the header of a VCF cannot hold the contig name {name!r} (commas, "
                "brackets, quotes and blanks are not allowed in it); write a table (.tsv, "
                ".parquet), or give the contig another name"
            )


def annotated_line(
    record: VcfRecord, alleles: Sequence[AlleleScore], methods: Sequence[str], prefix: str
) -> str:
    """Give a record's line with its scores at the end of INFO; all other columns as they were."""
    added = []
    for number, name in enumerate(methods):
        values = [score.values[number] for score in alleles]
        if not all(math.isnan(value) for value in values):
            texts = ("." if math.isnan(value) else f"{value:.6g}" for value in values)
            added.append(f"{_info_key(prefix, name)}={','.join(texts)}")
    if any(score.reason for score in alleles):
        reasons = ",".join(score.reason or "." for score in alleles)
        added.append(f"{_info_key(prefix, 'reason')}={reasons}")
    fields = list(record.fields)
    if added:
        kept = [] if fields[_INFO] in (".", "") else [fields[_INFO]]
        fields[_INFO] = ";".join((*kept, *added))
    return "\t".join(fields)


def header_lines(
    header: Sequence[str],
    options: VariantOptions,
    prefix: str,
    provenance: Provenance,
    contigs: Mapping[str, int | None],
) -> list[str]:
    """Give a header with the lines for the new fields before its last line.

    A header of the column names alone gets the line of the format, without which nothing reads it.

    Parameters
    ----------
    header
        As :func:`megabase.genome.vcf.read_vcf_header` gives it.
    options, prefix, provenance
        What was computed, and the beginning of the INFO keys.
    contigs
        Contigs of the records, under the names that these have, with their lengths in bases where
        known. Those that the header lacks are declared: an index and BCF need them. A declaration
        under another name of such a contig (20 for chr20) is taken out.
    """
    if not header[0].startswith("##fileformat="):
        header = ["##fileformat=VCFv4.2", *header]
    declared = {
        match[1]: line
        for line in header
        if (match := re.match(r"##contig=<(?:.*,)?ID=([^,>]+)", line))
    }
    added = []
    for name, length in contigs.items():
        if name not in declared:
            added.append(f"##contig=<ID={name}{'' if length is None else f',length={length}'}>")
            others = [other for other in contig_aliases(name) if other not in contigs]
            replaced = {declared[other] for other in others if other in declared}
            header = [line for line in header if line not in replaced]
    strands = "mean of both strands" if options.strands == "both" else f"{options.strands} strand"
    for name in options.methods or ():
        added.append(
            f'##INFO=<ID={_info_key(prefix, name)},Number=A,Type=Float,Description="'
            f"{METHODS[name].description}; {strands}; window of {options.window} bases, "
            f'{options.placement}">'
        )
    reasons = "; ".join(f"{name}: {text}" for name, text in REASONS.items())
    added.append(
        f'##INFO=<ID={_info_key(prefix, "reason")},Number=A,Type=String,Description="Why an allele '
        f'has no score, or lacks one. {reasons}">'
    )
    added.append(f"##megabase={provenance.to_json()}")
    return [*header[:-1], *added, header[-1]]


def merge_vcf(header: Sequence[str], parts: Sequence[Path], target: Path) -> None:
    """Write header and parts as VCF, bgzip VCF or BCF, by the ending of `target`.

    Raises
    ------
    OutputError
        When the records cannot be written as BCF.
    """
    import pysam
    import pysam.bcftools

    name = target.name.lower()
    packed = name.endswith((".gz", ".bgz"))
    text = target.with_name(f"{target.name}.text") if name.endswith(".bcf") else target
    with pysam.BGZFile(str(text), "wb", None) if packed else text.open("wb") as file:
        file.write("".join(f"{line}\n" for line in header).encode())
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
    if text is target:
        return
    # Not through VariantFile: it gives symbolic alleles an END that the header may not declare.
    arguments = ("--no-version", "--output-type", "b", "--output", str(target), str(text))
    try:
        pysam.bcftools.view(*arguments, catch_stdout=False)  # pyright: ignore[reportAttributeAccessIssue]
    except pysam.SamtoolsError as error:
        raise OutputError(
            f"the records cannot be written as BCF ({' '.join(str(error).split())}): BCF needs a "
            "header line for every field; write .vcf.gz instead"
        ) from None
    finally:
        text.unlink(missing_ok=True)


def index_vcf(target: Path, longest_contig: int) -> Path:
    """Write the index of a bgzip VCF (tabix; csi for contigs over 2^29) or BCF (csi).

    Parameters
    ----------
    target
        The file; its records must be in order.
    longest_contig
        Length of its longest contig in bases.
    """
    import pysam
    import pysam.bcftools

    csi = target.name.lower().endswith(".bcf") or longest_contig > _TBI_LIMIT
    pysam.bcftools.index("--force", "--csi" if csi else "--tbi", str(target), catch_stdout=False)  # pyright: ignore[reportAttributeAccessIssue]
    return target.with_name(f"{target.name}.{'csi' if csi else 'tbi'}")
