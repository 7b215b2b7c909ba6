"""Writing scores into VCF and BCF: INFO fields with header lines, everything else as it was."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megabase.errors import InputError, OutputError
from megabase.evaluate.provenance import Provenance
from megabase.genome.contigs import contig_aliases
from megabase.genome.left_out import REASONS
from megabase.genome.vcf import VcfRecord
from megabase.inference.variants.methods import METHODS

if TYPE_CHECKING:
    from megabase.inference.variants.scorer import AlleleScore, VariantOptions

__all__ = ["VCF_SUFFIXES", "annotated_line", "header_lines", "index_vcf", "info_key", "merge_vcf",
           "require_names", "require_new_keys"]  # fmt: skip

VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")
_INFO = 7
_TBI_LIMIT = 1 << 29  # longest contig of a tabix index
# The names that VCF 4.3 allows; htslib cannot read a header with others.
_CONTIG = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")
_KEY = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")


def info_key(prefix: str, name: str) -> str:
    """INFO key of a method (or of the reason)."""
    return f"{prefix}_{name.upper()}"


def require_prefix(prefix: str) -> None:
    """Refuse a prefix that no INFO key can begin with.

    Raises
    ------
    InputError
        Naming it.
    """
    if not _KEY.fullmatch(prefix):
        raise InputError(
            f"prefix {prefix!r} cannot begin an INFO key; expected letters, digits and _"
        )


def require_new_keys(header: Sequence[str], prefix: str, path: Path) -> None:
    """Refuse a prefix that is no INFO key, or whose keys the file has already.

    Raises
    ------
    InputError
        Naming the key.
    """
    require_prefix(prefix)
    for name in (*METHODS, "reason"):
        key = info_key(prefix, name)
        if any(line.startswith(f"##INFO=<ID={key},") for line in header):
            raise InputError(
                f"{path}: has INFO field {key} already; score the original file, or choose "
                "another prefix=..."
            )


def require_names(contigs: Iterable[str], path: Path) -> None:
    """Refuse names of contigs that the header of a VCF cannot hold.

    Raises
    ------
    InputError
        Naming the contig.
    """
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
            added.append(f"{info_key(prefix, name)}={','.join(map(_number, values))}")
    if any(score.reason for score in alleles):
        reasons = ",".join(score.reason or "." for score in alleles)
        added.append(f"{info_key(prefix, 'reason')}={reasons}")
    fields = list(record.fields)
    if added:
        kept = [] if fields[_INFO] in (".", "") else [fields[_INFO]]
        fields[_INFO] = ";".join((*kept, *added))
    return "\t".join(fields)


def _number(value: float) -> str:
    return "." if math.isnan(value) else f"{value:.6g}"


def header_lines(
    header: Sequence[str],
    options: VariantOptions,
    prefix: str,
    provenance: Provenance,
    contigs: Mapping[str, int | None],
) -> list[str]:
    """Give the header with the lines for the new fields before its last line.

    Contigs that the header does not declare are declared, under the names that the records have: an
    index and BCF need them. A declaration of such a contig under its other name (20 for chr20) is
    taken out. A header of the column names alone gets the line of the format before it, without
    which nothing reads it.
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
            f'##INFO=<ID={info_key(prefix, name)},Number=A,Type=Float,Description="'
            f"{METHODS[name].description}; {strands}; window of {options.window} bases, "
            f'{options.placement}">'
        )
    reasons = "; ".join(f"{name}: {text}" for name, text in REASONS.items())
    added.append(
        f'##INFO=<ID={info_key(prefix, "reason")},Number=A,Type=String,Description="Why an allele '
        f'has no score, or lacks one. {reasons}">'
    )
    added.append(f"##megabase={provenance.to_json()}")
    return [*header[:-1], *added, header[-1]]


def merge_vcf(header: Sequence[str], parts: Sequence[Path], target: Path) -> None:
    """Write header and parts as VCF, bgzip VCF or BCF, by the ending of `target`."""
    text = "".join(f"{line}\n" for line in header).encode()
    name = target.name.lower()
    if name.endswith((".gz", ".bgz")):
        import pysam

        with pysam.BGZFile(str(target), "wb", None) as packed:
            packed.write(text)
            for part in parts:
                packed.write(part.read_bytes())
        return
    plain = target.with_name(f"{target.name}.text") if name.endswith(".bcf") else target
    with plain.open("wb") as file:
        file.write(text)
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
    if plain is not target:
        _to_bcf(plain, target)


def _to_bcf(plain: Path, target: Path) -> None:
    import pysam
    import pysam.bcftools

    # Not through VariantFile: it gives symbolic alleles an END that the header may not declare.
    arguments = ("--no-version", "--output-type", "b", "--output", str(target), str(plain))
    try:
        pysam.bcftools.view(*arguments, catch_stdout=False)  # pyright: ignore[reportAttributeAccessIssue]
    except pysam.SamtoolsError as error:
        raise OutputError(
            f"the records cannot be written as BCF ({' '.join(str(error).split())}): BCF needs a "
            "header line for every field; write .vcf.gz instead"
        ) from None
    finally:
        plain.unlink(missing_ok=True)


def index_vcf(target: Path, longest_contig: int) -> Path:
    """Write the index of a bgzip VCF (tabix; csi for contigs over 2^29) or BCF (csi).

    Parameters
    ----------
    target
        The file; its records must be in order.
    longest_contig
        Length of its longest contig.

    Returns
    -------
    pathlib.Path
        The index.
    """
    import pysam
    import pysam.bcftools

    csi = target.name.lower().endswith(".bcf") or longest_contig > _TBI_LIMIT
    pysam.bcftools.index("--force", "--csi" if csi else "--tbi", str(target), catch_stdout=False)  # pyright: ignore[reportAttributeAccessIssue]
    return target.with_name(f"{target.name}.{'csi' if csi else 'tbi'}")
