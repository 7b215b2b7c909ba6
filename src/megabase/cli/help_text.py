"""How ``--help`` looks: defaults said once, examples as they are typed."""

from __future__ import annotations

import argparse

from jsonargparse import DefaultHelpFormatter

__all__ = ["HelpFormatter", "examples_text"]

_EXAMPLES = "examples:\n"


def examples_text(examples: tuple[str, ...]) -> str | None:
    """Give the end of a help text that shows how a verb is called; None without examples."""
    return _EXAMPLES + "\n".join(f"  {line}" for line in examples) if examples else None


class HelpFormatter(DefaultHelpFormatter):
    """The formatter of jsonargparse without the defaults that say nothing, or say it twice."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        if action.dest == "help":
            return text
        own = action.help or ""
        unset = action.default is None and "null" not in (self._get_type_str(action) or "")
        if action.nargs == 0 or unset or action.default == [] or "(default" in own:
            # Only what was added behind the text of the option itself.
            added = text[len(own) :]
            for piece in (", default: %(default)s", "default: %(default)s"):
                added = added.replace(piece, "")
            return own + ("" if added == " ()" else added)
        return text

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return text
        return super()._fill_text(text, width, indent)
