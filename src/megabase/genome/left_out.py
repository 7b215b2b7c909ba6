"""Rows that cannot be used: one set of reasons, one count and one message for every reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from megabase.errors import InputError, LeftOutWarning, MegabaseError, NoUsableRowError, warn

Reason = Literal[
    "UNKNOWN_CONTIG", "OUTSIDE_CONTIG", "REF_NOT_BASES", "REF_MISMATCH", "NO_ALT", "SYMBOLIC_ALT",
    "ALT_NOT_BASES", "ALT_IS_REF", "CONTIG_TOO_SHORT", "TOO_NEAR_END", "ALLELE_TOO_LONG",
    "NO_BASE_BEFORE", "LENGTHS_DIFFER", "NOT_CALIBRATED", "NOT_IN_TABLE",
]  # fmt: skip
REASONS: dict[Reason, str] = {
    "UNKNOWN_CONTIG": "the genome has no such contig",
    "OUTSIDE_CONTIG": "it lies outside the contig, or reaches past its end",
    "REF_NOT_BASES": "REF, or the genome there, holds letters other than A, C, G, T",
    "REF_MISMATCH": "REF differs from the genome",
    "NO_ALT": "the record has no alternative allele",
    "SYMBOLIC_ALT": "a symbolic allele, breakend or *, not a sequence",
    "ALT_NOT_BASES": "ALT holds letters other than A, C, G, T",
    "ALT_IS_REF": "ALT is REF",
    "CONTIG_TOO_SHORT": "the contig is shorter than a window around the variant",
    "TOO_NEAR_END": "the end of the contig leaves no window that holds both alleles",
    "ALLELE_TOO_LONG": "the allele does not fit into the window",
    "NO_BASE_BEFORE": "a window begins with the variant, so a method that asks what stands before "
    "it has no value",
    "LENGTHS_DIFFER": "a method that hides the allele has no value for alleles of two lengths",
    "NOT_CALIBRATED": "the calibration holds no random variants of its class, or a base nearby is "
    "not A, C, G or T",
    "NOT_IN_TABLE": "the table of scores does not hold it",
}
"""Why a row cannot be used, or an allele has no score (or lacks one)."""


class LeftOut:
    """The rows of a file that are left out; `strict` makes the first such row an error.

    `unit` is what messages count: the lines of a file, or its records.
    """

    def __init__(self, path: Path, unit: str = "line", strict: bool = False) -> None:
        self.path, self.unit, self.strict = path, unit, strict
        self.counts: dict[Reason, int] = {}
        self.note = ""
        self._first: dict[Reason, tuple[int, str]] = {}

    def add(
        self, reason: Reason, line: int, detail: Callable[[], str], *, count: int = 1,
        error: type[MegabaseError] = InputError,
    ) -> None:  # fmt: skip
        """Leave `count` rows out, the first on `line`; raise `error` about it when strict.

        What is wrong, `detail`, is only worked out for the first of a reason.
        """
        if self.strict:
            raise error(f"{self.path}, {self.unit} {line:,}: {detail()}")
        self.counts[reason] = self.counts.get(reason, 0) + count
        if reason not in self._first:
            self._first[reason] = (line, detail())

    def report(self, used: int, what: str = "rows", fate: str = "are left out") -> None:
        """Warn in one line (LeftOutWarning) of what was left out, next to the number of rows used.

        A NoUsableRowError when there are rows, and none can be used.
        """
        total = sum(self.counts.values())
        if total and not used:
            line, detail = min(self._first.values())
            kinds = ", ".join(f"{count:,} {reason}" for reason, count in self.counts.items())
            raise NoUsableRowError(
                f"{self.path}: none of its {total:,} {what} can be used ({kinds}); the first, "
                f"{self.unit} {line:,}: {detail}"
            )
        parts = [
            f"{count:,} {reason} ({REASONS[reason]}; first in {self.unit} "
            f"{self._first[reason][0]:,})"
            for reason, count in self.counts.items()
        ]
        said = [f"{total:,} of {total + used:,} {what} {fate}: {', '.join(parts)}"] if parts else []
        said += [self.note] if self.note else []
        if said:
            warn(f"{self.path}: {'; '.join(said)}", LeftOutWarning)
