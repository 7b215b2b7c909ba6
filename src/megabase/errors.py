"""The root of every error that is the user's to mend.

Each package derives its own named errors from :class:`MegabaseError`. A message says what was
expected, what was found, where (file, line, contig, position), and what to do. The command line
prints such an error as one line and exits with status 2.
"""

import sys
import warnings

__all__ = [
    "InUseError",
    "MegabaseError",
    "MissingDependencyError",
    "OutputError",
    "ResumableError",
    "warn",
]


class MegabaseError(ValueError):
    """Something the user gave is not usable; the message says what, where and what to do."""


class OutputError(MegabaseError):
    """An output exists already, cannot be written, or belongs to a run with other options."""


class ResumableError(OutputError):
    """The work stopped part way (a full disk, a lost process); what is finished is kept."""


class InUseError(OutputError):
    """Another process that is alive writes this output."""


class MissingDependencyError(MegabaseError):
    """An optional dependency is not installed.

    Parameters
    ----------
    package
        Name of the package that could not be imported.
    extra
        Name of the extra of megabase that brings it.
    purpose
        What needs it, for the message.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'megabase[{extra}]'"
        )


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line outside megabase that led here, so that Python shows the user's own line.

    Parameters
    ----------
    message
        What is taken to be so, in full: the command line shows nothing else.
    category
        A class of warnings of ours.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("megabase"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
