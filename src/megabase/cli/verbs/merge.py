"""The verb that makes one output of shards."""

from __future__ import annotations

from pathlib import Path

from megabase.cli.parser import Namespace, Verb, VerbParser
from megabase.errors import InputError, OutputError


def _add_merge(parser: VerbParser) -> None:
    add = parser.add_argument
    add("shards", metavar="SHARD", nargs="+", type=str, help="folders that --shard made: "
        "OUTPUT.shard-1-of-3, ...")  # fmt: skip
    add("-o", "--output", type=str, metavar="FILE", help="what to write (default: OUTPUT, beside "
        "the first shard)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an existing output")


def _merge(args: Namespace) -> int:
    """Merge the shards of a run into the output that one run would have written.

    Needs the model and the inputs where the command names them, and computes nothing. A shard that
    is missing, unfinished, given twice or of another run is refused. The shards stay.
    """
    from megabase.cli.main import COMMAND, VERBS
    from megabase.cli.parser import build_parser
    from megabase.inference.parts import gather_shards
    from megabase.untrusted import read_json

    folders = [Path(path) for path in args.shards]
    target = Path(args.output or str(folders[0]).rpartition(".shard-")[0] or folders[0])
    if not folders[0].is_dir():
        raise InputError(f"there is no shard {folders[0]}")
    held = next((path / COMMAND for path in folders if (path / COMMAND).is_file()), None)
    if held is None:
        raise InputError(
            f"{folders[0]} does not hold the command of a shard; of shards made in Python call "
            "megabase.gather_shards, and the method again with resume=True"
        )
    command: list[str] = read_json(held, OutputError)["command"]
    parser, verb = build_parser(command[0], f"megabase.cli.verbs.{VERBS[command[0]][0]}")
    again = parser.instantiate(parser.parse_args(command[1:]))
    if target.suffix.lower() != (was := Path(again.output).suffix).lower():
        raise InputError(f"{target}: the shards are of a {was} file; name one that ends so")
    again.shard, again.output, again.resume = None, str(target), True
    # Nothing is computed: neither workers nor an accelerator are needed.
    again.overwrite, again.workers, again.device = args.overwrite, 1, "cpu"
    gather_shards(folders, target, args.overwrite)
    return verb.run(again) or 0


# fmt: off
VERBS = {
    "merge": Verb(_add_merge, _merge, ("megabase merge scored.vcf.gz.shard-*-of-8",)),
}
