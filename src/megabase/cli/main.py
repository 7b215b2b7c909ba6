"""Entry point of the ``megabase`` command.

``megabase VERB ...`` imports only the module of that verb, and that module imports torch and
transformers only when it runs, so every ``--help`` answers at once.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megabase import __version__
from megabase.cli.streams import say
from megabase.errors import MegabaseError
from megabase.training.process import Terminated, handling

VERBS: dict[str, tuple[str, str]] = {
    "genome": ("genome", "build, describe and verify genome stores"),
    "score": ("score", "log-likelihood and perplexity of sequences or intervals"),
    "variants": ("score", "variant-effect scores for a VCF"),
    "ism": ("score", "in-silico mutagenesis: every substitution of a region"),
    "embed": ("sequences", "embeddings of sequences: hidden states of any layer"),
    "predict": ("sequences", "labels and probabilities, by sequence or along a genome"),
    "attribute": ("sequences", "attribute an output of a model to input bases"),
    "merge": ("score", "one output of the shards of a run"),
    "generate": ("score", "generate DNA with a causal language model"),
    "evaluate": ("evaluate", "perplexity of a model against Markov baselines"),
    "compare": ("evaluate", "evaluations of several models in one table"),
    "report": ("evaluate", "a self-contained HTML page about a run or a region"),
    "pretrain": ("train", "pretrain a language model on a genome"),
    "finetune": ("train", "fine-tune a model on labeled sequences"),
    "prompt": ("train", "soft-prompt tuning with a frozen model"),
    "icl": ("train", "few-shot in-context classification"),
    "benchmark": ("train", "models on benchmark suites: leaks, seeds, one table"),
    "convert": ("models", "turn a published checkpoint into a model folder"),
    "info": ("models", "describe a model: kind, size, limits; list those known by name"),
    "publish": ("models", "send a run to the Hugging Face Hub, with a card made of its records"),
    "doctor": ("installation", "check this installation, and how to repair it"),
    "completion": ("installation", "print a completion script for a shell"),
}
"""Name -> module of :mod:`megabase.cli.verbs`, what it does; in the order of the help text: use a
model, then train one."""
COMMAND = "command.json"
"""File of a finished shard: the command that made it, for ``megabase merge``."""
_SHOWN_WARNINGS: set[str] = set()
"""Texts shown in this call: a warning of every row would hide all others."""
_DEBUG = "MEGABASE_DEBUG=1 shows where"
"""Said where Python's own text may not be enough to find the cause."""


_USAGE = """\
usage: megabase [-h] [-V | --version] VERB ...

Long-range DNA language models at single-nucleotide resolution.

verbs:
{verbs}

`megabase help VERB` describes a verb. A bad input ends with one line on standard
error and exit status 2; --verbose or MEGABASE_DEBUG=1 shows where it was raised."""
"""Shown without a verb."""


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line for people, once, without the source line Python would add."""
    if str(message) in _SHOWN_WARNINGS:
        return
    _SHOWN_WARNINGS.add(str(message))
    say(f"megabase: warning: {message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with arguments, those of the process when None; give the exit status.

    0: success; 2: input that the user has to change, or a machine that gives out; 130: interrupted;
    143: SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not _open_streams():
        say("megabase: error: standard output is closed; send it to a file or to /dev/null")
        return 2
    program = f"megabase {arguments[0]}" if arguments and arguments[0] in VERBS else "megabase"
    try:
        try:
            return _dispatch(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough
        _discard_output()
        return 0
    except (MegabaseError, OSError, MemoryError, RecursionError, RuntimeError) as error:
        text = _reason(error)
        if text is None:
            raise
        if os.environ.get("MEGABASE_DEBUG") or "--verbose" in arguments:
            say(traceback.format_exc().rstrip())
        say(f"{program}: error: {text}")
        return 2
    except KeyboardInterrupt as stop:
        what, status = (
            ("stopped by SIGTERM", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        )
        say(f"{program}: {'; '.join((what, *getattr(stop, '__notes__', ())))}")
        return status


def _open_streams() -> bool:
    """Make both streams take any letter; give whether there is a standard output at all."""
    if sys.stderr is None:  # closed by 2>&-: the next file opened would take its number
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    return sys.stdout is not None


def _discard_output() -> None:
    """Throw away what standard output still holds, so that nothing fails at the end of Python."""
    with contextlib.suppress(OSError):  # a stream in memory has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reason(error: Exception) -> str | None:
    """Say in one line what the user or the machine has to change; None for an error of ours."""
    if isinstance(error, MegabaseError):
        return str(error)
    if isinstance(error, OSError):
        if error.filename is not None and error.strerror is not None:
            # A file or folder that cannot be opened, wherever: the name and the system's reason.
            name = os.fsdecode(error.filename)
            full = error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
            return f"cannot {'write' if full else 'open'} {name}: {error.strerror}"
        try:  # one more end of line tells whether it is standard output that fails
            sys.stdout.write("\n")
            sys.stdout.flush()
        except OSError:
            _discard_output()
            return f"cannot write to standard output: {error.strerror or error}"
        return f"{error.strerror or error} ({_DEBUG})"
    if isinstance(error, RecursionError):
        return f"the input is nested too deeply ({_DEBUG})"
    # Of torch.distributed; gloo, on CPUs, raises no class of its own.
    lost = getattr(sys.modules.get("torch.distributed"), "DistError", ())
    if isinstance(error, lost) or "gloo/transport" in str(error):
        return f"another process ended before this one; its message says why ({_DEBUG})"
    # torch says so in a RuntimeError: of a class of its own on a GPU, by its text on the CPU.
    full = (MemoryError, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError))
    if isinstance(error, full) or "can't allocate memory" in str(error):
        return f"out of memory; take smaller batches or windows, or fewer processes ({_DEBUG})"
    return None


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = (f"  {name:<10}  {text}" for name, (_, text) in VERBS.items())
        print(_USAGE.format(verbs="\n".join(rows)))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"megabase {__version__}")
        return 0
    if arguments[0] == "help":
        return _dispatch([*arguments[1:2], "--help"])
    verb = arguments[0]
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, [*VERBS, "help"], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MegabaseError(f"there is no verb {verb!r}{hint} (megabase --help lists them)")
    from megabase.cli import streams
    from megabase.cli.parser import build_parser

    warnings.showwarning = _show_warning
    _SHOWN_WARNINGS.clear()
    parser, command = build_parser(verb, f"megabase.cli.verbs.{VERBS[verb][0]}")
    try:
        with handling(Terminated.stop, signal.SIGTERM):
            args = parser.instantiate(parser.parse_args(arguments[1:]))
            streams.quiet = args.quiet
            status = command.run(args)
            if args.get("shard"):
                from megabase.genome.files import write_json
                from megabase.inference.parts import Shard

                folder = Shard.parse(args.shard).folder(Path(args.output))
                if folder is not None:
                    write_json(folder / COMMAND, {"command": arguments})
            return status or 0
    except MegabaseError as error:
        error.args = (parser.as_typed(str(error)),)
        raise


if __name__ == "__main__":
    raise SystemExit(main())
