"""Measure the rules of the house on the source, and check them.

    python tools/house.py                 # the table
    python tools/house.py --check         # exit status 1 when a limit is passed (run by make lint)
    python tools/house.py --root OTHER    # another checkout, to compare

A file is one idea, a folder can be looked over, an argument list can be read, a constant says why
it has its value. What is counted is said beside each row.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LIMITS = {
    "longest file": 600,
    "largest folder": 12,
    "functions with more than 8 arguments": 0,
    "comparisons with class names as text": 0,
    "constants without their reason": 0,
    "error classes": 16,
    "lines": 46_000,  # the goal was 42,000 before the features that came after it
    "files": 200,
    "public classes and functions": 650,
}
"""What the house allows; a row without a limit is only told."""
MOST_ARGUMENTS = 8
"""More than this are not read at a glance; operators take one named tuple of weights."""
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")


@dataclass
class House:
    """What was counted, and where."""

    counts: Counter[str] = field(default_factory=Counter)
    where: dict[str, list[str]] = field(default_factory=dict)

    def add(self, row: str, place: str) -> None:
        """Count one more of a kind, at a place."""
        self.counts[row] += 1
        self.where.setdefault(row, []).append(place)


def main() -> int:
    """Print the table; with ``--check`` give 1 when a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--check", action="store_true", help="exit status 1 over a limit")
    parser.add_argument("--list", metavar="ROW", help="print the places of one row")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    house = measure(args.root)
    if args.list:
        print("\n".join(house.where.get(args.list, [])))
        return 0
    if args.json:
        print(json.dumps(dict(house.counts), indent=2))
        return 0
    over = [row for row, most in LIMITS.items() if house.counts[row] > most]
    for row, count in house.counts.items():
        limit = f"  (at most {LIMITS[row]:,})" if row in LIMITS else ""
        print(f"{row:<48} {count:>8,}{limit}{'  OVER' if row in over else ''}")
    return int(args.check and bool(over))


def measure(root: Path) -> House:
    """Count everything under ``src/megabase``; code is counted in ``benchmarks`` too."""
    house = House()
    package = root / "src" / "megabase"
    files = sorted(package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in files}
    house.counts["files"] = len(files)
    lengths = {path: len(path.read_text().splitlines()) for path in files}
    house.counts["lines"] = sum(lengths.values())
    own_benchmarks = sorted((root / "benchmarks").rglob("*.py"))
    house.counts["lines of code, benchmarks included"] = sum(
        code_lines(path.read_text()) for path in [*files, *own_benchmarks]
    )
    house.counts["longest file"] = max(lengths.values())
    house.where["longest file"] = [f"{n:>5} {p.relative_to(root)}" for n, p in ranked(lengths)]
    folders = Counter(path.parent for path in files if path.name != "__init__.py")
    house.counts["largest folder"] = max(folders.values())
    house.where["largest folder"] = [f"{n:>5} {p.relative_to(root)}" for n, p in ranked(folders)]
    errors = error_classes(trees)
    house.counts["error classes"] = len(errors)
    house.where["error classes"] = sorted(errors)
    for row in LIMITS:
        house.counts.setdefault(row, 0)
    for path, tree in trees.items():
        look(house, tree, path.read_text(), path.relative_to(root))
    return house


def ranked(counts: dict[Path, int] | Counter[Path]) -> Iterator[tuple[int, Path]]:
    """Give counts and places, the largest first."""
    yield from sorted(((count, path) for path, count in counts.items()), reverse=True)


def code_lines(text: str) -> int:
    """Count lines that hold code: no blank line, no comment, no docstring."""
    skip: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for item in body if isinstance(body, list) else []:
            if isinstance(item, ast.Expr) and isinstance(getattr(item.value, "value", None), str):
                skip.update(range(item.lineno, (item.end_lineno or item.lineno) + 1))
    held: set[int] = set()
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in quiet and token.type != tokenize.ENDMARKER:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - skip)


def error_classes(trees: dict[Path, ast.Module]) -> set[str]:
    """Name the classes that derive from MegabaseError, however far, and MegabaseError itself."""
    bases: dict[str, set[str]] = {}
    places: dict[str, str] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                key = f"{node.name} {path.stem}"
                bases[key] = {ast.unparse(base).split(".")[-1] for base in node.bases}
                places[key] = node.name
    names = {"MegabaseError"}
    while True:
        more = {places[key] for key, own in bases.items() if own & names} | names
        if more == names:
            break
        names = more
    return {key for key in bases if places[key] in names}


def look(house: House, tree: ast.Module, text: str, path: Path) -> None:
    """Count what one file holds."""
    lines = text.splitlines()
    for node in tree.body:
        name = getattr(node, "name", "_")
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not name.startswith("_"):
            house.add("public classes and functions", f"{path}:{node.lineno} {name}")
    for position, node in enumerate(tree.body):
        name = constant_name(node)
        if name and not has_reason(tree.body, position, lines):
            house.add("constants without their reason", f"{path}:{node.lineno} {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_kernel(node):
            arguments = node.args
            names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = len([a for a in names if a.arg not in ("self", "cls", "ctx")])
            if count > MOST_ARGUMENTS:
                place = f"{path}:{node.lineno} {node.name} ({count})"
                house.add("functions with more than 8 arguments", place)
        if isinstance(node, ast.Compare) and names_a_class(node):
            house.add("comparisons with class names as text", f"{path}:{node.lineno}")


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is compiled by Triton: each pointer and each size is an argument."""
    return any(ast.unparse(one) == "triton.jit" for one in node.decorator_list)


def constant_name(node: ast.stmt) -> str | None:
    """Name the constant that a statement of a module defines, if it does."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name):
        return None
    return target.id if _CONSTANT.fullmatch(target.id) else None


def has_reason(body: list[ast.stmt], position: int, lines: list[str]) -> bool:
    """Whether a constant has a comment before or beside it, or a text behind it."""
    node = body[position]
    after = body[position + 1] if position + 1 < len(body) else None
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
        return isinstance(after.value.value, str)
    around = lines[node.lineno - 1 : node.end_lineno]
    if any("  # " in line and "fmt:" not in line for line in around):
        return True
    return lines[node.lineno - 2].lstrip().startswith("#")


def names_a_class(node: ast.Compare) -> bool:
    """Whether a comparison holds ``__name__`` of a class against a text."""
    sides = [node.left, *node.comparators]
    named = any(isinstance(side, ast.Attribute) and side.attr == "__name__" for side in sides)
    texts = any(isinstance(part, ast.Constant) and isinstance(part.value, str)
                for side in sides for part in ast.walk(side))  # fmt: skip
    return named and texts


if __name__ == "__main__":
    sys.exit(main())
