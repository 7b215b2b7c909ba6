"""Measure how far the settings of a verb travel: through which files, and how often back up.

    python tools/settings_travel.py [pretrain finetune benchmark]

Runs each verb once on tiny inputs and records every call of a function of ours that gets a settings
object (a subclass of ``megabase.settings.Settings``) as an argument. *files* counts the files of
those functions; *climbs* counts how often a call in a lower layer is followed by one in a layer
above it, which is where a reader has to turn back. A comprehension or lambda counts as the function
it stands in, and what a settings class does by itself (its checks) does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "megabase"
GOALS = {"pretrain": (12, 4), "finetune": (15, 6), "benchmark": (20, 8)}
"""Verb -> most files, most climbs: a third of what they were when the settings were one object."""
LAYERS = (
    ("cli",), ("benchmarking", "report"), ("tasks", "inference"), ("evaluate",), ("training",),
    ("objectives", "models"), ("data", "layers"), ("genome", "ops"),
)  # fmt: skip
"""Folders from top to bottom, as the import contracts have them."""
COMMON = "--devices.accelerator cpu --devices.devices 1 --log-every 1 --output run"
COMMANDS = {
    "pretrain": "pretrain --data.genome g.mb --data.validation '[chr2]' --model.d_model 8 "
    "--model.n_layer 1 --stages '[{length: 32, micro_batch: 4}]' --global-batch 4 --steps 2 "
    f"--eval-every 1 {COMMON}",
    "finetune": "finetune --family hyenadna --overrides '{d_model: 8, n_layer: 1}' --train t.csv "
    f"--test t.csv --steps 2 --global-batch 8 {COMMON}",
    "benchmark": "benchmark table --data sets --models hyenadna --seeds [1] --settings "
    "'{overrides: {d_model: 8, n_layer: 1}, steps: 2, global_batch: 8}' --bootstrap 0 --no-page "
    "--output run",
}
"""One run of each verb, on the inputs that :func:`make_inputs` writes."""


class Travel:
    """Records the calls that get settings."""

    def __init__(self) -> None:
        from megabase.settings import Settings

        self.kind = Settings
        self.calls: list[tuple[str, str]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Look at a call; for ``sys.setprofile``."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(SOURCE)):
            return
        file = str(Path(code.co_filename).relative_to(SOURCE))
        if code.co_name.startswith("<") or file == "settings.py":
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = [frame.f_locals.get(name) for name in names]
        own = names[:1] == ("self",) and isinstance(given[0], self.kind)
        if not own and any(isinstance(value, self.kind) for value in given):
            self.calls.append((file, code.co_name))

    def climbs(self) -> int:
        """Count steps from a lower layer to a higher one."""
        layers = [_layer(file) for file, _ in self.calls]
        return sum(before > now for before, now in pairwise(layers))


def _layer(file: str) -> int:
    folder = file.split("/")[0]
    return next((i for i, names in enumerate(LAYERS) if folder in names), len(LAYERS))


def make_inputs(folder: Path) -> None:
    """Write a genome store, a labeled table and a folder of a suite."""
    import numpy as np

    from megabase.genome.store import Genome

    rng = np.random.default_rng(0)
    dna = ["".join(rng.choice(list("ACGT"), size=n)) for n in (2000, 400, *[30] * 40)]
    (folder / "g.fa").write_text(f">chr1\n{dna[0]}\n>chr2\n{dna[1]}\n")
    Genome.build(folder / "g.fa", folder / "g.mb")
    rows = "\n".join(f"{text},{'ab'[i % 2]}" for i, text in enumerate(dna[2:]))
    (folder / "sets" / "mine").mkdir(parents=True)
    for file in ("t.csv", "sets/mine/train.csv", "sets/mine/test.csv"):
        (folder / file).write_text(f"sequence,label\n{rows}\n")


def measure(verb: str) -> Travel:
    """Run a verb once."""
    from megabase.cli.main import main

    travel = Travel()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        make_inputs(Path(name))
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            sys.setprofile(travel)
            try:
                status = main(shlex.split(COMMANDS[verb]))
            finally:
                sys.setprofile(None)
        if status:
            raise SystemExit(f"{verb} ended with status {status}: {said.getvalue()}")
    return travel


def run() -> int:
    """Print the table; with ``--check`` give 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verbs", nargs="*", help=", ".join(COMMANDS))
    parser.add_argument("--calls", action="store_true", help="print the calls in their order")
    parser.add_argument("--check", action="store_true", help="exit status 1 over a goal")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(SOURCE.parent))
    over = False
    print(f"{'verb':<10} {'files':>14} {'climbs':>14} {'calls':>8}")
    for verb in args.verbs or COMMANDS:
        travel, (most_files, most_climbs) = measure(verb), GOALS[verb]
        files, climbs = {file for file, _ in travel.calls}, travel.climbs()
        over |= len(files) > most_files or climbs > most_climbs
        print(f"{verb:<10} {f'{len(files)} of {most_files}':>14} "
              f"{f'{climbs} of {most_climbs}':>14} {len(travel.calls):>8}")  # fmt: skip
        for file, name in travel.calls if args.calls else ():
            print(f"    {'  ' * _layer(file)}{file}:{name}")
    return int(args.check and over)


if __name__ == "__main__":
    raise SystemExit(run())
