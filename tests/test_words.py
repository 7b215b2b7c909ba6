"""The prose of the project is in the words of its field, in American spelling.

Looked at are docs, README, docstrings, comments, and the texts of the source (messages and help).
Identifiers are not: ``torch.floor`` may stay what it is.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

ODD = {
    r"floors?": "baseline",
    r"stretch(es)?": "region, segment",
    r"so many": "N, up to N",
    r"(?<!there )(is|are|was|were) no(?! (longer|more|less|such)\b)": "is not a",
    r"told (so|to|by)": "reported, warned, rejected",
    r"mend(s|ed|ing)?": "fix",
    r"solved examples?": "demonstrations",
    r"divided by commas": "comma-separated",
    r"stays? as (it is|they are)": "frozen, unchanged",
    r"landscapes?": "base probabilities",
    r"saturat(e|es|ed|ing|ion)": "in-silico mutagenesis",
    r"no secret": "leaks",
    r"go(es)? on (with|from)": "resume, continue",
    r"whole or not at all": "atomically",
    r"\w*colour\w*": "color",
    r"centre[ds]?": "center",
    r"\w*labelled": "labeled",
    r"\w*labelling": "labeling",
    r"neighbour\w*": "neighbor",
    r"behaviour\w*": "behavior",
    r"licence[ds]?": "license",
    r"misspelt|learnt|spelt": "misspelled, learned, spelled",
}
"""Pattern of an odd or British word -> what the field writes."""

_BRITISH_ISE = re.compile(
    r"(summar|normal|token|initial|optim|organ|recogn|minim|maxim|general|serial|parallel|synchron"
    r"|quant|standard|random|visual|special|regular|material|character|priorit|util)is"
    r"(e|es|ed|ing|er|ers|ation)$"
)
"""Only these: rise, raise, otherwise and exercise end alike."""
_ANY = re.compile(r"(?<![\w.`/-])(" + "|".join(ODD) + r")(?![\w`(/-])", re.IGNORECASE)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Give line number and text of all prose of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        inside = False
        for number, line in enumerate(text.splitlines(), start=1):
            inside ^= line.startswith("```")
            if not inside:
                yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", " ", line)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, re.sub(r"``[^`]*``|`[^`]*`|:\w+:`[^`]*`", " ", line)


def odd_words(path: Path) -> Iterator[str]:
    """Give place and words of the prose of a file that the field does not use."""
    for number, line in prose(path):
        if re.fullmatch(r"\s*\w+", line):
            continue  # the name of a parameter
        found = [match.group(0) for match in _ANY.finditer(line)]
        found += [word for word in re.findall(r"(?<![\w.])\w+", line) if _BRITISH_ISE.search(word)]
        for word in found:
            yield f"{path.relative_to(ROOT)}:{number}: {word}"


def test_prose_is_in_the_words_of_the_field() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("**/*.md"), ROOT / "README.md"]
    files = [path for path in sorted(files) if "_build" not in path.parts]
    found = [line for path in files for line in odd_words(path)]
    assert not found, "\n".join([f"{len(found)} odd words", *found])
