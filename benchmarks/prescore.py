"""Every substitution of a stretch of a genome, against bare forward passes of the same windows.

One process with one thread does, in turns for each chunk: what ``megabase variants --all`` does
(windows, passes, scores of both strands, rows, bgzip), and the model alone on the token ids of the
same windows, as many at a time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from benchmarks.harness import OtherWork, Say, proc_bytes, record, refuse_difference
from megabase.data.vocabulary import codes_to_ids
from megabase.genome.alphabet import BASE_BITS, BASE_TOKEN_IDS, T
from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.inference.variants.every_snv import _Options, _rows, _Scorer
from megabase.models.loading import inference_mode
from megabase.ops import backend
from megabase.settings import Settings

TOLERANCE = 1e-4
"""Largest difference of a score."""
_CHUNK = 1 << 16
"""Bases of a turn, as of a chunk of the verb."""


@dataclass(frozen=True, kw_only=True)
class PrescoreConfig(Settings):
    """Scoring every substitution against bare forward passes of the same windows.

    The scores of the first chunk are compared before anything is reported.
    """

    genome: str
    """FASTA file, the first contig of which is read."""
    start: int
    """0-based first base, so far inside that both strands have their context."""
    bases: int = 2_000_000
    """Length of the stretch."""
    window: int | None = None
    """Bases that are read at once (default: up to 1,024)."""
    model: str = "default"
    """Model folder or preset."""

    _limits: ClassVar[Mapping[str, str]] = {"be at least 1": "bases"}

    def _problems(self) -> Iterator[str]:
        if self.start < 0:
            yield f"start is 0 or more, found {self.start}"


def run_prescore(config: PrescoreConfig, say: Say) -> dict[str, Any]:
    """Measure; see :class:`PrescoreConfig`.

    Returns
    -------
    dict
        Ready for JSON: bases per second of both ways, and the ratio of times of each chunk (median,
        least, most), by the clock and by the time of the processor.
    """
    others = OtherWork()
    with tempfile.TemporaryDirectory(prefix="megabase-bench-") as folder:
        store = Path(folder) / "genome.mb"
        Genome.build(config.genome, store)
        torch.set_num_threads(1)
        scorer = _Scorer.load(config.model, store, _Options(config.window))
        contig, turns = scorer.store.contigs[0], []
        end = min(contig.length, config.start + config.bases)
        for low in range(config.start, end, _CHUNK):
            part = Interval(contig.name, low, min(end, low + _CHUNK))
            windows = [scorer.cut(part, strand == "reverse").windows for strand in scorer.strands]
            ids = codes_to_ids(torch.from_numpy(np.concatenate(windows)))
            if not turns:
                _compare(scorer, part, ids)
            seconds = {}
            ways = {
                "bare": partial(_bare, scorer, ids),
                "ours": partial(_rows, scorer, [part]),
            }
            for name, way in ways.items():
                began = time.perf_counter(), time.process_time()
                way()
                seconds[name] = time.perf_counter() - began[0], time.process_time() - began[1]
            turns.append((part.length, seconds))
    found: dict[str, Any] = {"peak_bytes": proc_bytes("VmHWM"), "chunks": len(turns)}
    for clock, name in enumerate(("wall", "processor")):
        ratios = [seconds["bare"][clock] / seconds["ours"][clock] for _, seconds in turns]
        found[name] = {
            f"{way}_bases_per_second": round(
                statistics.median(n / seconds[way][clock] for n, seconds in turns)
            )
            for way in ("bare", "ours")
        }
        found[name]["ours/bare"] = {
            "median": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2),
            "most": round(max(ratios), 2),
        }
    say(str(found))
    return record("prescore", config, others, backend=backend.active(), **found)


def _bare(scorer: _Scorer, ids: torch.Tensor) -> None:
    """Run the model, and no more."""
    with inference_mode(scorer.model.model):
        for some in ids.split(scorer.rows):
            scorer.model.model(input_ids=some)


def _compare(scorer: _Scorer, part: Interval, ids: torch.Tensor) -> None:
    """Refuse scores that differ from those of the bare passes; the first chunk warms both up."""
    logits = []
    with inference_mode(scorer.model.model):
        for some in ids.split(scorer.rows):
            out = scorer.model.model(input_ids=some).logits
            logits.append(out[..., BASE_TOKEN_IDS[0] : BASE_TOKEN_IDS[-1] + 1])
    own, strands = scorer.score([part])[0], np.split(torch.cat(logits).numpy(), 2)
    total: Any = 0
    for reverse, of_strand in enumerate(strands):
        cut = scorer.cut(part, bool(reverse))
        along = of_strand[:, scorer.context - 1 : -1].reshape(-1, 4)[cut.at]
        total = total + (along[::-1, ::-1] if reverse else along)
    ref = np.minimum(scorer.store.view(part.contig)[part.start : part.end] & np.uint8(BASE_BITS), T)
    expected = (total - np.take_along_axis(total, ref[:, None].astype(int), 1)) / 2
    gap = np.abs(expected - own)[~np.isnan(own)]
    refuse_difference(float(gap.max()), TOLERANCE, "scores differ from those of bare passes")
