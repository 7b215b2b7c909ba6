"""Named errors of the inference verbs."""

from megabase.errors import MegabaseError, OutputError

__all__ = ["InferenceError", "InputFileError", "OutputError"]


class InferenceError(MegabaseError):
    """What is asked of a model cannot be done with it, or with these lengths."""


class InputFileError(MegabaseError):
    """A file of sequences, intervals or variants cannot be used; the message names the place."""
