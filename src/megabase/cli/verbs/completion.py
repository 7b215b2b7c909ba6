"""The verb that prints a completion script."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from megabase.cli.parser import Verb, build_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


_BASH = """\
_megabase() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" last="${{COMP_WORDS[COMP_CWORD-1]}}"
  local options=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs} --help --version" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}} $last" in
{choices}
  esac
  if [ -n "$options" ]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
    return
  fi
  case "$current" in -*)
    case "${{COMP_WORDS[1]}}" in
{options}
    esac ;;
  esac
  if [ -n "$options" ]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _megabase megabase
"""
"""Takes the verb from the second word; what begins with no dash is a file."""


_ZSH = "#compdef megabase\nautoload -U +X bashcompinit && bashcompinit\n"
"""zsh runs completions written for bash."""


def _add_completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="which shell")


def _completion(args: Namespace) -> int:
    """Print a script that completes verbs, options and their choices in a shell.

    bash: `source <(megabase completion bash)`; zsh: the same with zsh, in ~/.zshrc; fish:
    `megabase completion fish > ~/.config/fish/completions/megabase.fish`.
    """
    from megabase.cli import main

    parsers = {
        name: build_parser(name, f"megabase.cli.verbs.{module}")[0]
        for name, (module, _) in main.VERBS.items()
    }
    print(_fish(parsers) if args.shell == "fish" else _bash(parsers, args.shell == "zsh"), end="")
    return 0


def _options(parser: ArgumentParser) -> dict[str, list[str]]:
    """Give every option of a parser and of its actions, and the choices of its value.

    Without a name stand the words that need no option before them.
    """
    found: dict[str, list[str]] = {"": []}
    for action in parser._actions:
        choices = [str(choice) for choice in action.choices or ()]
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= _options(inner)
        if action.option_strings:
            found |= dict.fromkeys(action.option_strings, choices)
        else:
            found[""] = found[""] + choices
    return found


def _bash(parsers: dict[str, ArgumentParser], zsh: bool) -> str:
    choices, options = [], []
    for verb, parser in parsers.items():
        known = _options(parser)
        options.append(f'      {verb}) options="{" ".join(filter(None, known))}" ;;')
        choices += [
            f'    "{verb} {option or verb}") options="{" ".join(values)}" ;;'
            for option, values in known.items()
            if values
        ]
    text = _BASH.format(
        verbs=" ".join([*parsers, "help"]), choices="\n".join(choices), options="\n".join(options)
    )
    return (_ZSH if zsh else "") + text


def _fish(parsers: dict[str, ArgumentParser]) -> str:
    from megabase.cli import main

    lines = [
        f"complete -c megabase -n __fish_use_subcommand -a {verb} -d '{text}'"
        for verb, (_, text) in main.VERBS.items()
    ]
    for verb, parser in parsers.items():
        here = f"complete -c megabase -n '__fish_seen_subcommand_from {verb}'"
        for option, values in _options(parser).items():
            words = " ".join(values)
            if option:
                kind = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                lines.append(f"{here} {kind}" + (f" -xa '{words}'" if values else ""))
            elif values:
                lines.append(f"{here} -a '{words}'")
    return "\n".join(lines) + "\n"


# fmt: off
VERBS = {
    "completion": Verb(_add_completion, _completion, (
        "megabase completion bash",
    )),
}
