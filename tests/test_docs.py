"""Every code block of the documentation runs, in order, page by page; its output is what is shown.

Python blocks of a page share their names. ``bash`` blocks hold commands; in ``console`` blocks the
lines after ``$ `` are commands and the others their output. A ``text`` block right after a Python
or bash block is the output of that. Of output, ``...`` stands for anything, and numbers may differ
by two percent. A YAML block that begins with ``# NAME.yaml`` is written to that file. A block after
``<!-- not run: REASON -->`` is only compiled; its commands are given to the parsers of the verbs.

``MEGABASE_RECORD_DOCS=1`` writes the output of this machine into blocks that differ.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megabase.cli.main import VERBS, main
from megabase.cli.parser import build_parser
from megabase.errors import MegabaseError

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"extending.md"}
"""Pages that other tests run: its modules are installed as a package (tests/test_extending.py)."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name not in ELSEWHERE]
SHELL = {"cut", "export", "grep", "head", "megabase", "sed", "tail"}
"""Other commands that a page may run."""
RECORD = bool(os.environ.get("MEGABASE_RECORD_DOCS"))

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*?) -->\n+)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_TOLERANCE = 0.02
"""Relative: a sum of floats in another order, through a few steps of training."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    mark: str
    """Comment before it."""
    end: int
    """Where it ends in the page."""
    start: int
    """Where its text begins in the page."""

    @property
    def reason(self) -> str | None:
        """Why it is not run; None when it is."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else None


def blocks(text: str) -> list[Block]:
    return [
        Block(m["language"], m["text"], m["mark"] or "", m.end(), m.start("text"))
        for m in _BLOCK.finditer(text)
    ]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small files that examples/inputs.py writes (or a folder where it wrote them before)."""
    if ready := os.environ.get("MEGABASE_DOCS_INPUTS"):
        return Path(ready)
    spec = importlib.util.spec_from_file_location("inputs", ROOT / "examples" / "inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("inputs")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module.write_inputs(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(
    page: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks(page.read_text())
    if all(block.reason or block.language not in ("python", "bash", "console") for block in found):
        folder = tmp_path
    else:
        folder = tmp_path / "work"
        shutil.copytree(inputs, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("megabase.inference.jobs._worker_count", lambda device: 1)
    space: dict[str, Any] = {"__name__": page.stem}
    changes: list[tuple[int, int, str]] = []
    for number, block in enumerate(found):
        after = found[number + 1] if number + 1 < len(found) else None
        follows = after is not None and after.language == "text" and not after.mark
        if block.language == "yaml" and (name := re.match(r"# ([\w.-]+\.yaml)", block.text)):
            Path(name.group(1)).write_text(block.text)
        if block.language not in ("python", "bash", "console"):
            continue
        if block.reason is not None:
            parse_only(page, block)
        elif block.language == "console":
            run_console(block, page, changes)
        else:
            output = run_block(page, block, space)
            if follows and after is not None and not same(after.text, output):
                assert RECORD, f"{page.name}: expected\n{after.text}\nfound\n{output}"
                changes.append((after.start, len(after.text), output))
    if changes:
        record(page, changes)


def parse_only(page: Path, block: Block) -> None:
    """Check a block that cannot run: its Python compiles, its commands parse."""
    if block.language == "python":
        compile(block.text, page.name, "exec")
        return
    for line in commands(block):
        words = shlex.split(line, comments=True)
        if words and words[0] in ("megabase", "srun", "torchrun"):
            verb, *arguments = words[words.index("megabase") + 1 :]
            arguments = [str(ROOT / a) if (ROOT / a).is_file() else a for a in arguments]  # recipes
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    module = f"megabase.cli.verbs.{VERBS[verb][0]}"
                    build_parser(verb, module)[0].parse_args(arguments)
            except (SystemExit, MegabaseError) as error:
                pytest.fail(f"{page.name}: {line}: {error}")


def commands(block: Block) -> Iterator[str]:
    """Give the commands of a block, each on one line."""
    text = block.text.replace("\\\n", " ")
    for line in text.split("\n"):
        if block.language == "console":
            if line.startswith("$ "):
                yield line[2:]
        elif line.strip() and not line.startswith("#"):
            yield line


def run_block(page: Path, block: Block, space: dict[str, Any]) -> str:
    if block.language == "bash":
        return "".join(run_command(line, page) for line in commands(block))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block.text, f"{page.name} ({block.text[:30]!r}...)", "exec"), space)
    return output.getvalue()


def run_command(line: str, page: Path) -> str:
    """Run a command and give what a terminal shows of it."""
    words = shlex.split(line, comments=True)
    words = [one for word in words for one in sorted(glob.glob(word)) or [word]]  # as a shell
    if words[0] == "megabase" and "|" not in words and ">" not in words:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                status = main(words[1:])
            except SystemExit as stop:
                status = int(stop.code or 0)
        assert status == 0, f"{page.name}: {line}\n{output.getvalue()}"
        return output.getvalue()
    assert words[0] in (
        "head",
        "tail",
        "cat",
        "ls",
        "cut",
        "grep",
        "zcat",
        "sed",
        "export",
        "megabase",
    ), line
    line = re.sub(r"\bmegabase (?=\w)", f"{shlex.quote(sys.executable)} -m megabase ", line)
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, f"{page.name}: {line}\n{done.stderr}"
    return done.stdout + done.stderr


def run_console(block: Block, page: Path, changes: list[tuple[int, int, str]]) -> None:
    """Run a console block and compare the output of each of its commands."""
    parts = re.split(r"^(?=\$ )", block.text, flags=re.MULTILINE)
    made: list[str] = []
    for part in parts:
        if not part.strip():
            continue
        command, _, shown = re.sub(r"\\\n", "\\\0", part).partition("\n")
        output = run_command(command.replace("\\\0", " ")[2:], page)
        good = not shown or same(shown, output)
        assert good or RECORD, f"{page.name}: {command}\nexpected\n{shown}\nfound\n{output}"
        made.append(part if good else command.replace("\0", "\n") + "\n" + output)
    if "".join(made) != block.text:
        changes.append((block.start, len(block.text), "".join(made)))


def same(shown: str, found: str) -> bool:
    """Tell whether the output is the one that is shown, but for ``...`` and small differences."""
    lines, rest = _tidy(shown), _tidy(found)
    while lines:
        line = lines.pop(0)
        if line == "...":
            if not lines:
                return True
            while rest and not _same_line(lines[0], rest[0]):
                rest.pop(0)
        elif not rest or not _same_line(line, rest.pop(0)):
            return False
    return not rest


def _same_line(shown: str, found: str) -> bool:
    if shown == found:
        return True
    parts = [part.strip() for part in shown.split("...")]
    if len(parts) > 1:
        begins, ends = parts[0], parts[-1]
        return _same_start(begins, found) and found.rstrip().endswith(ends)
    wanted, given = _NUMBER.findall(shown), _NUMBER.findall(found)
    return (
        len(wanted) == len(given)
        and re.sub(r"\s", "", _NUMBER.sub("#", shown)) == re.sub(r"\s", "", _NUMBER.sub("#", found))
        and all(_close(one, other) for one, other in zip(wanted, given, strict=True))
    )


def _same_start(start: str, found: str) -> bool:
    """Compare words as far as the shown line goes."""
    words = start.split()
    return _same_line(" ".join(words), " ".join(found.split()[: len(words)]))


def _close(one: str, other: str) -> bool:
    try:
        a, b = float(one.replace(",", "")), float(other.replace(",", ""))
    except ValueError:
        return False
    return abs(a - b) <= _TOLERANCE * max(1.0, abs(a))


def _tidy(text: str) -> list[str]:
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    # What a slow machine writes every half a minute is on no page.
    return [line for line in lines if line and not re.match(r"megabase: .* a second(,|$)", line)]


def record(page: Path, changes: list[tuple[int, int, str]]) -> None:
    """Write outputs into the page, last ones first."""
    text = page.read_text()
    for start, length, output in sorted(changes, reverse=True):
        output = output if output.endswith("\n") else output + "\n"
        text = text[:start] + output + text[start + length :]
    page.write_text(text)


def test_marks_name_a_reason() -> None:
    for page in PAGES:
        for block in blocks(page.read_text()):
            if block.mark.startswith("not run"):
                assert block.reason, f"{page.name}: {block.text[:40]!r}"
