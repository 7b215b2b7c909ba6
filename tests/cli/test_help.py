"""Help texts: of every verb, readable, and with examples that the parser takes."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from megabase.cli.main import VERBS, main
from megabase.cli.parser import build_parser

_SUBVERBS = ["genome build", "genome info", "genome verify"]


@pytest.mark.parametrize("verb", [*VERBS, *_SUBVERBS])
def test_help_names_types_and_says_each_default_once(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*verb.split(), "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "<function" not in text
    assert "-h, --help Show this help message and exit." in text
    for option in text.split(" --")[1:]:
        assert not ("(default: " in option and ", default: " in option), option


@pytest.mark.parametrize("verb", VERBS)
def test_the_parser_takes_the_examples(
    verb: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("recipe.yaml", "w") as recipe:
        recipe.write("output: runs/mine\ndata: {genome: hg38.mb}\n")
    parser, command = build_parser(verb, f"megabase.cli.verbs.{VERBS[verb][0]}")
    assert command.examples
    for example in command.examples:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("megabase", verb)
        parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("verb", "option"),
    [("finetune", "--head.reverse-complement"), ("icl", "--shots"), ("prompt", "--prompt.length")],
)
def test_help_needs_no_torch(verb: str, option: str) -> None:
    code = (
        "import sys; from megabase.cli.main import main\n"
        f"try: main([{verb!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'polars'} & set(sys.modules), 'slow'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout
