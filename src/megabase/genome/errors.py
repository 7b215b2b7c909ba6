"""Named errors and warnings of the genome package."""

from megabase.errors import MegabaseError

__all__ = [
    "AlphabetError",
    "AmbiguousLettersWarning",
    "ContigAliasWarning",
    "CoordinateError",
    "FastaError",
    "InputWarning",
    "LeftOutWarning",
    "NoUsableRowError",
    "StoreError",
    "TableError",
    "UnknownContigError",
]


class AlphabetError(MegabaseError):
    """A letter or a code that stands for no base."""


class CoordinateError(MegabaseError):
    """Coordinates that describe no interval, or reach past the end of a contig."""


class FastaError(MegabaseError):
    """A FASTA file that cannot be read; the message names file, line and contig."""


class StoreError(MegabaseError):
    """A store file that cannot be written, or is no intact store."""


class UnknownContigError(MegabaseError):
    """A contig name that the genome does not have, under no alias either."""


class TableError(MegabaseError):
    """A BED, GFF or VCF file with a row that cannot be used; the message names file and line."""


class NoUsableRowError(TableError):
    """A file with rows, none of which can be used."""


class InputWarning(UserWarning):
    """Something about the input that does not stop the work; said once, in one line."""


class AmbiguousLettersWarning(InputWarning):
    """Letters that are read as N; the message counts them by kind."""


class LeftOutWarning(InputWarning):
    """Rows of a file that are left out; the message counts them by reason."""


class ContigAliasWarning(InputWarning):
    """A contig was found under another spelling: ``chr1`` for ``1``, ``chrM`` for ``MT``."""
