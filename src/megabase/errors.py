"""Every error and warning of megabase, one class for each thing that a caller can do about it.

A message says what was expected, what was found, where (file, line, contig, position), and what
to do. The command line prints an error as one line and exits with status 2.
"""

import importlib
import sys
import warnings
from types import ModuleType


class MegabaseError(ValueError):
    """Something the user gave is not usable; the message says what, where and what to do."""


class OutputError(MegabaseError):
    """An output exists already, cannot be written, or belongs to a run with other options."""


class ResumableError(OutputError):
    """The work stopped part way (a full disk, a lost process); what is finished is kept."""


class InUseError(OutputError):
    """Another process that is alive writes this output."""


class ConfigError(MegabaseError):
    """Settings or options that are unknown, out of range, or do not fit one another."""


class InputError(MegabaseError):
    """Data that cannot be used as given: a file, a row, a sequence, a region, a batch."""


class NoUsableRowError(InputError):
    """A file with rows, none of which can be used."""


class GenomeError(MegabaseError):
    """A FASTA file, a genome store, a letter or a coordinate that cannot be used."""


class UnknownContigError(GenomeError):
    """A contig name that the genome does not have, under no alias either."""


class ModelError(MegabaseError):
    """A model, a tokenizer or a prompt that is not found, or cannot do what is asked of it."""


class CheckpointError(ModelError):
    """A file of weights that is damaged, unsafe to read, or of another model."""


class NotFiniteError(MegabaseError):
    """A weight, a loss, a gradient or an output that is NaN or infinite."""


class OperatorError(MegabaseError):
    """An operator was called with what it does not take, or on a backend that lacks it."""


class RunError(ConfigError):
    """The folder, the log or the state of a run cannot be used as asked."""


class ReportError(MegabaseError):
    """There is nothing to show, or it cannot be drawn."""


class MissingDependencyError(MegabaseError):
    """An optional dependency, which an extra of megabase brings, is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'megabase[{extra}]'"
        )

    @classmethod
    def load(cls, module: str, extra: str, purpose: str, package: str = "") -> ModuleType:
        """Import a module of a package (named like the module unless that is given), or raise."""
        try:
            return importlib.import_module(module)
        except ImportError:
            raise cls(package or module.partition(".")[0], extra, purpose) from None


def sequence_too_long(length: int, longest: int, setting: str) -> InputError:
    """Make the error for an input of ``length`` positions, past the ``longest`` of a setting."""
    return InputError(
        f"the input has {length:,} positions, but the model takes at most {longest:,} "
        f"({setting}); cut the input into windows of at most {longest:,}, or use a model "
        f"with a larger {setting} (it is part of the weights: it cannot be raised afterwards)"
    )


class InputWarning(UserWarning):
    """Something about the input that does not stop the work; reported once, in one line."""


class AmbiguousLettersWarning(InputWarning):
    """Letters that are read as N; the message counts them by kind."""


class LeftOutWarning(InputWarning):
    """Rows of a file that are left out; the message counts them by reason."""


class ContigAliasWarning(InputWarning):
    """A contig was found under another name of it."""


class TruncationWarning(InputWarning):
    """Sequences that are longer than the model takes, and are cut."""


class IntervalWarning(InputWarning):
    """Intervals that reach past the end of a contig, or hold letters that are read as N."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line outside megabase that led here, so that Python shows the user's own line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("megabase"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
