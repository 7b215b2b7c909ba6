"""Everything that has to be measured on a GPU, in one go of ten minutes at most.

The parts run in processes of their own, one for each side (the published way, and megabase with
each back end), which write a row as soon as it is known: what runs out of memory or fails is a row
too, and after an error that ends the use of the device the next part gets a new process. Shares of
bandwidth and of matrix peak are those of a copy and of a square product on the same device.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import megabase as mb
from benchmarks.generation import GenerateConfig, run_generation
from benchmarks.harness import (
    BenchError,
    OtherWork,
    Say,
    build_model,
    in_child,
    made_up_fasta,
    memory_limit,
    record,
    watch,
)
from benchmarks.launches import LaunchConfig, count_step
from benchmarks.runtime import training_pass
from benchmarks.step import linear_maps
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.variants.scorer import VariantOptions, VariantScorer
from megabase.models.base import checkpoint_activations
from megabase.models.loading import Loaded
from megabase.ops import backend
from megabase.ops.causal_conv import causal_conv
from megabase.ops.hyena_mixer import MixerWeights, hyena_mixer
from megabase.ops.implicit_filter import FilterWeights, implicit_filter
from megabase.ops.long_conv import long_conv
from megabase.ops.norm_mlp import MlpWeights, NormWeights, add_norm, norm_mlp
from megabase.ops.selective_scan import ScanInputs, selective_scan
from megabase.ops.short_conv import short_conv
from megabase.settings import Settings

TOLERANCE = 1e-3
"""Largest difference of an operator in float32, relative to the largest number of each result."""
_SECONDS = {
    "limits": 10, "operators": 60, "step": 70, "length": 70, "scan": 20, "pretrain": 40,
    "variants": 20, "generate": 30,
}  # fmt: skip
"""Share of the time that each part gets; what does not fit is not run."""
_WIDTH, _LAYERS = 128, 2
"""HyenaDNA of most measurements."""
_GROWTH = {"gpt": 4.0, "hyenadna": 2.2}
"""How much longer a pass of twice the length takes, about."""
_DTYPES = ("float32", "bfloat16")
"""bfloat16 by autocast."""


@dataclass(frozen=True, kw_only=True)
class GpuConfig(Settings):
    """The campaign on a GPU: correctness, training steps, lengths, scan, pretraining, inference.

    Nothing is compared with numbers of other machines. With small it runs on a CPU in a minute.
    """

    device: str = "cuda"
    """Where to run: cuda, cuda:1, cpu."""
    small: bool = False
    """Tiny sizes, to see that everything runs."""
    backends: Sequence[str] = ("plain", "triton")
    """Back ends of megabase to measure."""
    parts: Sequence[str] = tuple(_SECONDS)
    """limits, operators, step, length, scan, pretrain, variants, generate."""
    time_limit: float = 570.0
    """Seconds that everything may take."""

    _limits: ClassVar[Mapping[str, str]] = {"be above 0": "time_limit"}

    def _problems(self) -> Iterator[str]:
        if unknown := set(self.parts) - set(_SECONDS):
            yield f"parts are out of {', '.join(_SECONDS)}, found {', '.join(sorted(unknown))}"
        if unknown := set(self.backends) - set(backend.BACKENDS):
            yield f"backends are out of {', '.join(backend.BACKENDS)}, found {', '.join(unknown)}"

    def sides(self) -> dict[str, list[str]]:
        """Give the parts of every side, in their order."""
        chosen: dict[str, list[str]] = {"published": ["limits", "step", "length", "scan"]}
        for name in self.backends:
            chosen[name] = [part for part in _SECONDS if part != "limits"]
        kept = {side: [p for p in own if p in self.parts] for side, own in chosen.items()}
        return {side: own for side, own in kept.items() if own}


class _Rows:
    """Writes a row for everything that is run, whatever becomes of it."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.path, self.side, self.small = Path(spec["rows"]), spec["side"], spec["small"]
        self.device, self.ends, self.part = torch.device(spec["device"]), 0.0, ""

    def run(
        self, facts: dict[str, Any], function: Callable[[], dict[str, Any]], expected: float = 0.0
    ) -> dict[str, Any]:
        """Run a function and write what it gives, unless it would take longer than there is."""
        row = {"part": self.part, "side": self.side, **facts}
        lost = False
        if time.monotonic() + expected > self.ends:
            row |= {"status": "not run", "reason": (
                f"about {expected:.0f} s more, over the limit" if expected < float("inf")
                else "the shorter one was not measured"
            )}  # fmt: skip
        else:
            try:
                row |= {"status": "measured", **function()}
            except Exception as error:  # noqa: BLE001 - a compiler may raise anything
                text = str(error).strip() or type(error).__name__
                memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
                    "can't allocate memory" in text
                )
                lost = not memory and "CUDA error" in text
                missing = isinstance(error, ImportError)
                status = "out of memory" if memory else "unsupported" if missing else "failed"
                row |= {"status": status, "reason": text.splitlines()[0][:300]}
        gc.collect()
        if self.device.type == "cuda" and not lost:
            torch.cuda.empty_cache()
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if lost:
            raise BenchError("the device is of no use to this process any more")
        return row

    def time(self, run: Callable[[], Any], repeats: int = 5) -> dict[str, Any]:
        """Give the median seconds of some runs after one that does not count, and peak memory."""
        cuda = self.device.type == "cuda"
        wait = partial(torch.cuda.synchronize, self.device) if cuda else lambda: None
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        run()
        wait()
        passes: list[float] = []
        while not passes or (len(passes) < repeats and time.monotonic() + passes[-1] < self.ends):
            began = time.perf_counter()
            run()
            wait()
            passes.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else None
        return {"seconds": statistics.median(passes), "passes": passes, "peak_bytes": peak}

    def override(self) -> Any:
        """Choose the back end of this side."""
        return backend.override("plain" if self.side == "published" else self.side)


def _limits(rows: _Rows) -> None:
    """Time what nothing can be quicker than: a copy, and a square product of each dtype."""
    elements, size = (1 << 20, 256) if rows.small else (1 << 28, 8192)
    x = torch.ones(elements, device=rows.device)
    y = torch.empty_like(x)

    def copy() -> dict[str, Any]:
        found = rows.time(lambda: y.copy_(x))
        return {**found, "bytes_per_second": 8 * elements / found["seconds"]}

    def product(dtype: torch.dtype) -> dict[str, Any]:
        a = torch.ones(size, size, device=rows.device, dtype=dtype)
        found = rows.time(lambda: a @ a)
        return {**found, "flops_per_second": 2 * size**3 / found["seconds"]}

    rows.run({"what": "copy"}, copy)
    for name in _DTYPES:
        rows.run({"what": "product", "dtype": name}, partial(product, getattr(torch, name)))


_Case = tuple[Sequence[tuple[int, ...]], Callable[..., Tensor]]


def _cases(small: bool) -> dict[str, _Case]:
    """Give the shapes of the tensors of every operator, and the operator as a function of them."""
    b, length, d, e, k, n = (2, 70, 16, 24, 3, 4) if small else (2, 1500, 128, 512, 4, 16)

    def both(y: Tensor, z: Tensor) -> Tensor:
        return torch.cat([y.flatten(), z.flatten()])

    return {
        "short_conv": (((b, d, length), (d, k), (d,)), short_conv),
        "long_conv": (((b, d, length), (d, length), (d,)), long_conv),
        "norm_mlp": (
            ((b, length, d), (d,), (d,), (e, d), (e,), (d, e), (d,)),
            lambda x, w, c, *maps: norm_mlp(x, MlpWeights(w, c, 1e-5, *maps)),
        ),
        "add_norm": (
            ((b, length, d), (b, length, d), (d,), (d,)),
            lambda x, r, w, c: both(*add_norm(x, r, NormWeights(w, c, 1e-5))),
        ),
        "hyena_mixer": (
            ((b, length, d), (d,), (d,), (3 * d, d), (3 * d,), (3 * d, 3), (3 * d,),
             (d, length), (d,), (d, d), (d,)),
            lambda x, w, c, *rest: hyena_mixer(x, MixerWeights(w, c, 1e-5, *rest)),
        ),
        "implicit_filter": (
            ((length, 5), (length,), (1, 64), (64, 5), (64, 64), (64,), (64,), (d, 64), (d,)),
            lambda z, t, f, w0, w1, b0, b1, last, rate: implicit_filter(
                z, t.detach(), FilterWeights(f, [w0, w1], [b0, b1], last, rate, 0.05)
            ),
        ),
        "causal_conv": (((b, length, d), (d, k), (d,)), causal_conv),
        "selective_scan": (
            ((b, length, d), (b, length, d), (d, n), (b, length, n), (b, length, n), (d,),
             (b, length, d), (d,)),
            lambda u, s, a, *rest: both(*selective_scan(ScanInputs(u, s, -a.abs(), *rest))),
        ),
    }  # fmt: skip


def _operators(rows: _Rows) -> None:
    """Compare values and gradients in float32 with the definitions in float64 on the CPU."""

    def compare(shapes: Sequence[tuple[int, ...]], function: Callable[..., Tensor]) -> Any:
        generator = torch.Generator().manual_seed(0)
        # Weights as small as a model's: sums over the width stay of order one.
        given = [
            torch.randn(s, generator=generator, dtype=torch.float64) / max(1, s[-1]) ** 0.5
            for s in shapes
        ]
        found: list[list[Tensor]] = []
        for name, device, dtype in (
            ("reference", torch.device("cpu"), torch.float64),
            (rows.side, rows.device, torch.float32),
        ):
            own = [t.to(device, dtype).requires_grad_() for t in given]
            with backend.override(name):
                y = function(*own)
                weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
                gradients = torch.autograd.grad(
                    y, own, weight.to(y), allow_unused=True, materialize_grads=True
                )
            found.append([t.detach().cpu().double() for t in (y, *gradients)])
        worst = max(
            float((got - want).abs().max() / want.abs().max().clamp(min=1e-6))
            for want, got in zip(*found, strict=True)
        )
        return {"largest_difference": worst, "within": worst <= TOLERANCE}

    for name, (shapes, function) in _cases(rows.small).items():
        rows.run({"operator": name, "tolerance": TOLERANCE}, partial(compare, shapes, function))


def _train(
    rows: _Rows, name: str, batch: int, length: int, dtype: str, checkpointing: bool = False
) -> dict[str, Any]:
    """Time forward, loss and backward."""
    torch.manual_seed(0)
    width, layers = (16, 1) if rows.small else (_WIDTH, _LAYERS)
    model = build_model(name, width, layers, length + 2).to(rows.device).train()
    if checkpointing:
        checkpoint_activations(model)
    ids = torch.randint(7, 11, (batch, length), device=rows.device)
    seconds: list[tuple[float, float, float]] = []

    def step() -> None:
        seconds.append(training_pass(model, ids, getattr(torch, dtype)))
        model.zero_grad(set_to_none=True)

    found = rows.time(step)
    counted = {"loss": seconds[0][2]}
    for i, what in enumerate(("forward", "backward")):
        counted[what] = statistics.median(one[i] for one in seconds[1:])
    return {**found, **counted, "tokens_per_second": batch * length / found["seconds"]}


def _step(rows: _Rows) -> None:
    """Time training steps of HyenaDNA; count the bytes of their launches and their products."""
    shapes = [(256, 1024), (8, 32_768), (1, 131_072), (1, 1_048_576)]
    name = "plain" if rows.side == "published" else "hyenadna"
    width, layers = (16, 1) if rows.small else (_WIDTH, _LAYERS)
    for batch, length in [(2, 64)] if rows.small else shapes:
        facts = {"batch": batch, "length": length}
        maps = build_model("hyenadna", width, layers, 16).config
        work = 6 * sum(a * b * c for a, b, c, _ in linear_maps(maps, batch, length, torch.float32))
        for dtype in _DTYPES:
            rows.run(
                {**facts, "dtype": dtype, "product_flops": work},
                partial(_train, rows, name, batch, length, dtype),
            )

        def counted(batch: int = batch, length: int = length) -> dict[str, Any]:
            own = "" if name == "plain" else rows.side
            shape = LaunchConfig(
                batch=batch, length=length, width=width, layers=layers, backend=own
            )
            found = count_step(shape, name)
            return {"launches": found.total, "bytes": found.bytes}

        rows.run({**facts, "what": "counted"}, counted)


def _length(rows: _Rows) -> None:
    """Time HyenaDNA, or on the published side GPT with fused attention, against length."""
    name = "gpt" if rows.side == "published" else "hyenadna"
    dtype = "bfloat16"  # what fused attention takes
    lengths = [64, 128] if rows.small else [1024 << n for n in range(11)]
    for checkpointing in (False, True):
        last, ended = 0.0, False
        for length in lengths:

            def one(length: int = length, checkpointing: bool = checkpointing) -> dict[str, Any]:
                if name == "gpt" and rows.device.type == "cuda":
                    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                        return _train(rows, name, 1, length, dtype, checkpointing)
                return _train(rows, name, 1, length, dtype, checkpointing)

            facts = {"model": name, "checkpointing": checkpointing, "length": length,
                     "dtype": dtype}  # fmt: skip
            row = rows.run(facts, one, float("inf") if ended else 2 * last * _GROWTH[name])
            ended = row["status"] != "measured"
            last = row.get("seconds", 0.0)


def _scan(rows: _Rows) -> None:
    """Time the selective scan, or on the published side that of ``mamba_ssm``."""
    b, length, d, n = (1, 64, 8, 4) if rows.small else (8, 4096, 512, 16)
    generator = torch.Generator().manual_seed(0)
    shapes = [(b, length, d), (b, length, d), (d, n), (b, length, n), (b, length, n), (d,)]

    def run() -> dict[str, Any]:
        given = [torch.randn(s, generator=generator).to(rows.device) for s in shapes]
        given[2] = -given[2].abs()
        given = [t.requires_grad_() for t in given]
        if rows.side == "published":
            from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore[reportMissingImports]
                selective_scan_fn,
            )

            def scan() -> Tensor:
                u, delta, a, b_, c, skip = given
                turned = (t.transpose(1, 2).contiguous() for t in (u, delta, b_, c))
                u, delta, b_, c = turned
                return selective_scan_fn(u, delta, a, b_, c, skip, delta_softplus=True)
        else:

            def scan() -> Tensor:
                return selective_scan(ScanInputs(*given))[0]

        found = rows.time(lambda: torch.autograd.grad(scan().sum(), given))
        return {**found, "positions_per_second": b * length / found["seconds"]}

    rows.run({"batch": b, "length": length, "channels": d, "states": n}, run)


def _pretrain(rows: _Rows) -> None:
    """Pretrain on a made-up genome as the command does, data path and AdamW included."""
    cuda = rows.device.type == "cuda"

    def run(length: int, batch: int, precision: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="megabase-gpu-") as folder:
            fasta = made_up_fasta(Path(folder) / "g.fa", 40_000 if rows.small else 8_000_000)
            done = mb.pretrain(mb.PretrainConfig(
                output=f"{folder}/run", steps=3 if rows.small else 40, log_every=1,
                data=mb.DataConfig(genome=str(fasta), validation=["chr1:1-8000"]),
                model=mb.ModelConfig(d_model=16 if rows.small else _WIDTH, n_layer=_LAYERS),
                stages=(mb.Stage(length=length, micro_batch=batch),), global_batch=batch,
                devices=mb.DeviceConfig(accelerator=rows.device.type, devices=1),
                precision=cast("Any", precision),
            ))  # fmt: skip
            lines = (done.folder / "metrics.jsonl").read_text().splitlines()
        found = [r["tokens_per_second"] for r in map(json.loads, lines) if r["kind"] == "train"]
        return {"tokens_per_second": statistics.median(found[len(found) // 4 :])}

    for length, batch in [(64, 2)] if rows.small else [(1024, 256), (32_768, 8)]:
        for precision in ("fp32", "bf16-mixed") if cuda or rows.small else ("fp32",):
            facts = {"length": length, "batch": batch, "precision": precision}
            rows.run(facts, partial(run, length, batch, precision))


def _variants(rows: _Rows) -> None:
    """Score SNVs on both strands with a window for each."""

    def run(window: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="megabase-gpu-") as folder:
            fasta = made_up_fasta(Path(folder) / "g.fa", 40_000 if rows.small else 1_000_000)
            genome = Genome.build(fasta, Path(folder) / "g.mb")
            model = build_model("hyenadna", 16 if rows.small else _WIDTH, _LAYERS, window + 2)
            loaded = Loaded(model.to(rows.device).eval(), "causal-lm", "")
            scorer = VariantScorer(loaded, genome, VariantOptions(window))
            text = "".join(fasta.read_text().splitlines()[1:])
            rng, count = np.random.default_rng(0), 6 if rows.small else 1024
            places = sorted(rng.choice(len(text) - 2 * window, 3 * count, replace=False) + window)
            known = [int(at) for at in places if text[at] in "ACGT"][:count]
            given = [
                VcfRecord(i, ("chr1", str(at + 1), ".", text[at], "ACGTA"["ACGT".index(text[at])
                          + 1]), "chr1", at, text[at], ("ACGTA"["ACGT".index(text[at]) + 1],))
                for i, at in enumerate(known)
            ]  # fmt: skip
            found = rows.time(lambda: scorer.score(given), 2)
        return {**found, "variants_per_second": len(given) / found["seconds"]}

    for window in (64,) if rows.small else (1024, 16_384):
        rows.run({"window": window}, partial(run, window))


def _generate(rows: _Rows) -> None:
    """Write one token after another, by captured steps, and by single operations ("fast")."""

    def run(batch: int, steps: str) -> dict[str, Any]:
        with backend.override(backend.active() if steps == "captured" else "fast"):
            found = run_generation(
                GenerateConfig(
                    device=str(rows.device), batch=batch, tokens=64 if rows.small else 2048,
                    compare_at=32 if rows.small else 1024, positions=8, repeats=1,
                    width=16 if rows.small else _WIDTH,
                ),
                lambda _: None,
            )  # fmt: skip
        return {"tokens_per_second": found["tokens_per_second"],
                "largest_difference": found["equality"]["largest_difference"]}  # fmt: skip

    for batch, steps in ((1, "captured"), (1, "fast"), (64, "captured"))[: 2 if rows.small else 3]:
        rows.run({"batch": batch, "steps": steps}, partial(run, batch, steps))


_PARTS: dict[str, Callable[[_Rows], None]] = {
    "limits": _limits, "operators": _operators, "step": _step, "length": _length, "scan": _scan,
    "pretrain": _pretrain, "variants": _variants, "generate": _generate,
}  # fmt: skip


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure some parts of one side in this process; rows go to the file ``rows``.

    `spec` holds ``side``, ``parts`` (seconds by name), ``device``, ``small`` and ``rows``.
    """
    torch.set_float32_matmul_precision("highest")
    # Only a part that hangs meets this: others look at the clock themselves.
    watch(2 * sum(spec["parts"].values()) + 30, memory_limit(0))
    rows = _Rows(spec)
    for rows.part, seconds in spec["parts"].items():
        rows.ends = time.monotonic() + seconds
        try:
            with rows.override():
                _PARTS[rows.part](rows)
        except BenchError:
            return {"lost_in": rows.part}
    return {}


def run_gpu(config: GpuConfig, say: Say) -> dict[str, Any]:
    """Measure; see :class:`GpuConfig`.

    Returns
    -------
    dict
        ``rows``: of every part and side, with their ``status``; ``device_name``.
    """
    others, began, rows = OtherWork(), time.monotonic(), []
    sides = config.sides()
    name = torch.cuda.get_device_name(config.device) if config.device.startswith("cuda") else "CPU"
    with tempfile.TemporaryDirectory(prefix="megabase-gpu-") as folder:
        for number, (side, parts) in enumerate(sides.items()):
            path, left = Path(folder) / f"{side}.jsonl", list(parts)
            path.touch()
            while left:
                # What the sides before did not need goes to those behind.
                rest = config.time_limit - (time.monotonic() - began)
                behind = [p for own in list(sides.values())[number + 1 :] for p in own]
                share = max(0.0, rest) / sum(_SECONDS[p] for p in [*left, *behind])
                ended = in_child(
                    "benchmarks.gpu:measure", side=side, device=config.device, small=config.small,
                    rows=str(path), parts={p: share * _SECONDS[p] for p in left},
                )  # fmt: skip
                found = [json.loads(line) for line in path.read_text().splitlines()]
                begun = {row["part"] for row in found}
                reached = max((i for i, p in enumerate(left) if p in begun), default=0)
                if ended["status"] != "measured":
                    what = {"part": left[reached], "side": side, "what": "process"}
                    row = {**what, "status": ended["status"], "reason": ended["reason"]}
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                lost = ended["status"] != "measured" or "lost_in" in ended
                left = left[reached + 1 :] if lost else []
            rows += [json.loads(line) for line in path.read_text().splitlines()]
    _shares(rows)
    for row in rows:
        say(line(row))
    return record("gpu", config, others, device_name=name, rows=rows)


def _shares(rows: list[dict[str, Any]]) -> None:
    """Add to steps which share of a copy's bandwidth and of a product's rate they reach."""
    known = [r for r in rows if r["status"] == "measured"]
    limits = {(r["what"], r.get("dtype")): r for r in known if r["part"] == "limits"}
    counts = [r for r in known if r.get("what") == "counted"]
    counted = {(r["side"], r["batch"], r["length"]): r["bytes"] for r in counts}
    for row in known:
        if row["part"] != "step" or "seconds" not in row:
            continue
        product = limits.get(("product", row["dtype"]))
        if product is not None:
            rate = row["product_flops"] / row["seconds"]
            row["share_of_product"] = rate / product["flops_per_second"]
        touched = counted.get((row["side"], row["batch"], row["length"]))
        if touched and ("copy", None) in limits and row["dtype"] == "float32":
            rate = touched / row["seconds"]
            row["share_of_copy"] = rate / limits["copy", None]["bytes_per_second"]


def line(row: Mapping[str, Any]) -> str:
    """Write a row as one line of text."""
    left = ("part", "side", "status", "reason", "passes", "product_flops", "tolerance", "loss")
    facts = ", ".join(f"{k} {shown(v)}" for k, v in row.items() if k not in left and v is not None)
    end = "" if row["status"] == "measured" else f": {row['status']} ({row['reason']})"
    return f"{row['part']:<10} {row['side']:<10} {facts}{end}"


def shown(value: Any) -> str:
    """Write a number as short as it can be read."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
