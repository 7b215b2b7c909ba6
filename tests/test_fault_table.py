"""The table of faults in the documentation names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "faults.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_every_row_names_tests_that_exist() -> None:
    table = rows()
    for cells in table:
        assert len(cells) == 3, cells
        named = NAMED.findall(cells[1])
        assert named, f"no test in {cells}"
        for path, function in named:
            source = ROOT / path
            assert source.is_file(), f"{path} is named in {TABLE.name} and does not exist"
            names = {
                node.name
                for node in ast.walk(ast.parse(source.read_text()))
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
            }
            assert not function or function in names, f"{path} has no {function}"
