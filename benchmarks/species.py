"""Species told by likelihood: one language model for each species, and the sums of their answers.

The start model goes on, once for each species, with pretraining on the training part of that
species alone. A test sample is read by all of them in windows of one length, each on its own, and
belongs to the species whose model gives its bases the highest log-likelihood. Windows add up, so
models that read a thousand bases decide about samples of any length. Two ways stand beside it on
the same samples: Markov models decided in the same manner, and logistic regression on k-mers.

Every record is cut along its length as by ``megabase benchmark species --species.split segment``;
samples begin on multiples of the window in the test part. Accuracy is the mean over species of the
share that is right, its interval a bootstrap over stretches as long as the sample, with all samples
that begin in one: neighbors that share bases are drawn together.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import megabase as mb
from benchmarks.harness import BenchError, OtherWork, Say, record
from megabase.benchmarking.config import BenchmarkConfig, SpeciesConfig
from megabase.benchmarking.suites.species import _draw_samples, _read_genomes, _split_records
from megabase.data.labeled import LabelTable, label_splits
from megabase.data.vocabulary import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.baselines import fit_baseline
from megabase.evaluate.log_probs import token_log_probs
from megabase.evaluate.markov import _MarkovModel
from megabase.genome import alphabet
from megabase.genome.alphabet import decode, pack_kmers, reverse_complement
from megabase.genome.files import write_whole
from megabase.genome.store import Genome
from megabase.models.loading import load
from megabase.settings import DeviceConfig, ModelConfig, OptimConfig, Settings, Stage
from megabase.tasks.config import DataConfig, PretrainConfig
from megabase.training.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from megabase.report.style import Size, Theme

Codes = NDArray[np.uint8]
Floats = NDArray[np.float64]

LN_2 = math.log(2)
"""Nats of a bit."""
_PARTS = ("train", "valid", "test")
"""Parts of a split; the number of one seeds its samples, as in the suite."""
_WORDS = (4, 5, 6)
"""k of the k-mers, of which validation chooses one: those of ``megabase benchmark``."""
_LONG = 31
"""Bases of words that two places of a genome share by descent, not by chance."""
_RESAMPLES = 2_000
"""Bootstrap resamples: the ends of an interval move in the third digit with others."""
_ROWS = 32
"""Windows in one pass of a model: no faster with more on a CPU."""
_VALIDATIONS = 4
"""Validations of a run: enough to see it turn, and a few seconds each."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(Settings):
    """Telling species by the likelihood of language models carried on to each.

    Models are trained, or taken from `runs` where they are finished; one seed, a table by length.
    """

    runs: str
    """Folder of the training runs; finished ones are kept, interrupted ones continue."""
    genomes: dict[str, str] = field(default_factory=dict)
    """Species name -> FASTA (plain or gzip), or a folder of them."""
    data: str | None = None
    """One FASTA with a record for each species, in place of genomes."""
    pool_records: bool = False
    """Join the records of validation and of test, an N between (for short records)."""
    start: str = "default"
    """Causal language model to go on from: a model folder, run folder or Hub name, or default."""
    tokens: float = 1e6
    """Input positions that the model of each species is trained on."""
    shared_tokens: float = 0
    """Input positions of a stage before, on all species together, that all go on from; 0: none."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Optimizer."""
    lr: float = 1e-3
    """Highest learning rate."""
    batch: int = 16
    """Windows of a step."""
    precision: Literal["fp32", "bf16-mixed"] = "bf16-mixed"
    """Of training; log-likelihoods are of float32."""
    window: int = 1_024
    """Bases that the models read at once, in training and test."""
    lengths: tuple[int, ...] = (1_024, 4_096, 16_384, 65_536)
    """Bases of the samples, multiples of the window."""
    samples: int = 60
    """Most test samples of a species and length, evenly spaced over where one fits."""
    test_windows: int | None = None
    """Most windows of the test part of a species that are read, the first ones; None: all."""
    apart: float | None = None
    """Leave out windows that share more than this part of their 31-mers with the training part of
    any species, such as 0.1 (overlapping clones); what is left of a piece is joined. None: keep."""
    strands: Literal["forward", "both"] = "both"
    """Strands that are read; the log-likelihood of both is their mean."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Group -> species: how often the answer lies in the right group is measured too."""
    markov_order: int = 8
    """Longest context of the Markov models, interpolated, in bases."""
    train_bases: float = 5e6
    """Bases of the training samples of k-mers for each length; 0 leaves k-mers out."""
    eval_samples: int = 150
    """Validation samples of k-mers, all species together."""
    seed: int = 1
    """Seed of training."""

    _limits: ClassVar[Mapping[str, str]] = {
        "be at least 1": "batch samples eval_samples test_windows",
        "be at least 2": "window",
        "be at least 0": "markov_order train_bases shared_tokens",
        "be above 0": "tokens lr",
        "lie in 0 to 1": "apart",
    }

    def _normalize(self) -> None:
        self._set("lengths", tuple(sorted(self.lengths)))

    def _problems(self) -> Iterator[str]:
        if not self.lengths or any(length % self.window or not length for length in self.lengths):
            yield f"lengths are multiples of the window, {self.window:,}; found {self.lengths}"
        named = [name for members in self.groups.values() for name in members]
        if self.groups and sorted(named) != sorted(set(named)):
            yield "groups name a species twice"


class _Samples(NamedTuple):
    """Test samples of a species at a length: first and last window, and stretch of each."""

    first: NDArray[np.int64]
    last: NDArray[np.int64]  # exclusive
    stretch: NDArray[np.int64]


class _Test(NamedTuple):
    """The test part of a species, cut into windows."""

    windows: Codes  # (windows, bases)
    pieces: NDArray[np.int64]  # windows of each piece of the part

    def only(self, kept: NDArray[np.bool_]) -> _Test:
        """Give the windows that are kept, those of a piece joined."""
        ends = np.cumsum(self.pieces)
        counts = [kept[end - size : end].sum() for end, size in zip(ends, self.pieces, strict=True)]
        return _Test(self.windows[kept], np.array(counts, dtype=np.int64))

    def samples(self, count: int, most: int) -> _Samples:
        """Give samples of `count` windows, none of which leaves its piece."""
        begins = np.cumsum(self.pieces) - self.pieces
        fits = [
            begin + np.arange(size - count + 1)
            for begin, size in zip(begins.tolist(), self.pieces.tolist(), strict=True)
        ]
        first = np.concatenate([np.zeros(0, np.int64), *fits])
        first = first[np.linspace(0, len(first) - 1, min(most, len(first))).astype(np.int64)]
        return _Samples(first, first + count, first // count)


def run_likelihood(config: LikelihoodConfig, say: Say) -> dict[str, Any]:
    """Train and measure; see :class:`LikelihoodConfig`.

    Returns
    -------
    dict
        Ready for JSON: ``species`` with the bases of each part, the windows that are read and the
        share of their 31-mers that a training part holds; ``training`` (seconds and tokens of each
        run); ``lengths``: for each length the samples, and of each way the accuracy with its
        interval, that of groups, the table of answers (rows: truth), and the bits per base by which
        the own model is ahead of the best other one (mean and standard deviation).
    """
    others, settings = OtherWork(), _suite(config)
    parts = _split_records(_read_genomes(settings), settings.species)
    names = list(parts)
    if config.groups and sorted(x for one in config.groups.values() for x in one) != names:
        raise InputError(f"groups must hold every species once: {', '.join(names)}")
    models, training = _train(config, parts, say)
    tests = {name: _cut(config, parts[name]["test"]) for name in names}
    began = time.perf_counter()
    likelihoods = {"model": [_model_sums(config, path, tests) for path in models]}
    say(f"read the test parts in {(time.perf_counter() - began) / 60:.1f} minutes")
    likelihoods["markov"] = [_markov_sums(config, parts[name], tests) for name in names]
    shared = _shared(parts, tests)
    if config.apart is not None:
        kept = {name: share <= config.apart for name, share in shared.items()}
        tests = {name: test.only(kept[name]) for name, test in tests.items()}
        likelihoods = {
            way: [[own[mask] for own, mask in zip(one, kept.values(), strict=True)] for one in sums]
            for way, sums in likelihoods.items()
        }
    lengths = []
    for length in config.lengths:
        samples = {
            name: test.samples(length // config.window, config.samples)
            for name, test in tests.items()
        }
        short = [name for name in names if not len(samples[name].first)]
        if short:
            say(f"{length:,} bases: no sample fits {', '.join(short)}")
            continue
        scores = {way: _add_up(sums, samples) for way, sums in likelihoods.items()}
        if config.train_bases:
            scores["kmer"] = _kmers(config, length, parts, (tests, samples))
        found: dict[str, Any] = {"length": length, "samples": sum(map(len, scores["model"]))}
        found["stretches"] = {name: len(np.unique(one.stretch)) for name, one in samples.items()}
        for way, by_species in scores.items():
            found[way] = _measure(config, names, by_species, samples)
            if way != "kmer":
                found[way]["ahead"] = _ahead(names, by_species, length)
        say(_line(found))
        lengths.append(found)
    bases: dict[str, dict[str, Any]] = {
        name: {part: sum(map(len, parts[name][part])) for part in _PARTS} for name in names
    }
    for name, share in shared.items():
        bases[name] |= {"windows": len(tests[name].windows), "shared": float(share.mean())}
    return record("species", config, others, species=bases, training=training, lengths=lengths)


def _suite(config: LikelihoodConfig) -> BenchmarkConfig:
    """Give the settings with which the suite reads and cuts the same genomes."""
    species = SpeciesConfig(genomes=config.genomes, split="segment")
    return BenchmarkConfig(suite="species", output=config.runs, data=config.data, species=species)


def _train(
    config: LikelihoodConfig, parts: Mapping[str, Mapping[str, list[Codes]]], say: Say
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Train a model for each species, where there is none; give the runs, and what they took."""
    jobs = {name: ([name], config.tokens) for name in parts}
    start = config.start
    if config.shared_tokens:
        jobs = {"all species": (list(parts), config.shared_tokens), **jobs}
    found: list[dict[str, Any]] = []
    for name, (members, tokens) in jobs.items():
        folder = Path(config.runs) / name.replace(" ", "_")
        genome = folder.with_suffix(".mb")
        if not genome.exists():
            _build(genome, [parts[member] for member in members])
        steps = -(-int(tokens) // (config.batch * config.window))
        store = Genome(genome)
        held_out = [contig.name for contig in store.contigs if contig.name.startswith("valid")]
        run = mb.pretrain(
            PretrainConfig(
                output=str(folder),
                data=DataConfig(genome=str(genome), validation=held_out),
                model=ModelConfig(init_from=start),
                stages=(Stage(length=config.window, micro_batch=config.batch),),
                global_batch=config.batch,
                steps=steps,
                optim=OptimConfig(name=config.optimizer, lr=config.lr, warmup_fraction=0.05),
                precision=config.precision,
                devices=DeviceConfig(accelerator="cpu", threads=torch.get_num_threads()),
                eval_every=max(1, steps // _VALIDATIONS),
                checkpoint_every=None,
                log_every=20,
                seed=config.seed,
                resume=(folder / "config.yaml").exists(),
            )
        )
        if run.result.signal is not None:
            raise BenchError(f"{name} was stopped; the same command goes on from its checkpoint")
        if name == "all species":
            start = str(folder)
        curve = [one for one in RunFolder(folder).metrics() if one.get("kind") == "validation"]
        found.append(
            {
                "name": name, "steps": steps, "tokens": steps * config.batch * config.window,
                "seconds": round(run.result.training_seconds, 1),
                "bits_per_base": round(run.metrics["loss"] / LN_2, 4),
                "validations": [round(one["loss"] / LN_2, 4) for one in curve],
            }
        )  # fmt: skip
        say(f"{name}: {found[-1]}")
    return [Path(config.runs) / name.replace(" ", "_") for name in parts], found


def _build(path: Path, species: Sequence[Mapping[str, list[Codes]]]) -> None:
    """Write a genome of the training and validation parts, a contig for each piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fasta = path.with_suffix(".fa")
    with fasta.open("w") as file:
        for number, parts in enumerate(species):
            for part in ("train", "valid"):
                for piece, codes in enumerate(parts[part]):
                    if len(codes):
                        file.write(f">{part}_{number}_{piece}\n{decode(codes)}\n")
    Genome.build(fasta, path)
    fasta.unlink()


def _joined(config: LikelihoodConfig, pieces: list[Codes]) -> list[Codes]:
    """Join pieces with an N between where they are pooled, as the suite does."""
    if not config.pool_records:
        return pieces
    gap = np.full(1, alphabet.N, dtype=np.uint8)
    return [np.concatenate([codes for piece in pieces for codes in (piece, gap)])]


def _cut(config: LikelihoodConfig, pieces: list[Codes]) -> _Test:
    """Cut the test part of a species into windows; what is left at the end of a piece is out."""
    pieces = _joined(config, pieces)
    sizes = np.array([len(piece) // config.window for piece in pieces], dtype=np.int64)
    if config.test_windows is not None:
        before = np.cumsum(sizes) - sizes
        sizes = np.clip(config.test_windows - before, 0, sizes)
    rows = [
        piece[: size * config.window].reshape(-1, config.window)
        for piece, size in zip(pieces, sizes.tolist(), strict=True)
    ]
    return _Test(np.concatenate(rows), sizes)


def _shared(
    parts: Mapping[str, Mapping[str, list[Codes]]], tests: Mapping[str, _Test]
) -> dict[str, Floats]:
    """Give the share of the 31-mers of each window that a training part holds, of any species."""
    training = np.unique(
        np.concatenate([_long_words(codes) for one in parts.values() for codes in one["train"]])
    )
    found = {}
    for name, test in tests.items():
        shares = []
        for words in map(_long_words, test.windows):
            place = np.minimum(np.searchsorted(training, words), len(training) - 1)
            shares.append((training[place] == words).mean() if len(words) else 0.0)
        found[name] = np.array(shares)
    return found


def _long_words(codes: Codes) -> NDArray[np.uint64]:
    """Give the 31-mers of DNA, each as the lesser of itself and its reverse complement."""
    words, known = pack_kmers(codes, _LONG, canonical=True)
    return words[known]


def _model_sums(config: LikelihoodConfig, path: Path, tests: Mapping[str, _Test]) -> list[Floats]:
    """Give the log-likelihood of every window of each species under a model, in nats.

    They are kept beside the run, for the same windows read by the same weights.
    """
    model = load(path, head="language")
    key = hashlib.sha256(f"{model.digest} {config.strands}".encode())
    for test in tests.values():
        key.update(test.windows.tobytes())
    kept = path.with_name(f"{path.name}-{key.hexdigest()[:16]}.npy")
    ends = np.cumsum([len(test.windows) for test in tests.values()])[:-1]
    if kept.exists():
        return np.split(np.load(kept), ends)

    def read(windows: Codes) -> Floats:
        ids = codes_to_ids(torch.from_numpy(np.ascontiguousarray(windows)))
        parts = [
            token_log_probs(model, some).nansum(1, dtype=torch.float64) for some in ids.split(_ROWS)
        ]
        return torch.cat(parts).numpy()

    found = [_of_strands(config, test.windows, read) for test in tests.values()]
    np.save(kept, np.concatenate(found))
    return found


def _markov_sums(
    config: LikelihoodConfig, parts: Mapping[str, list[Codes]], tests: Mapping[str, _Test]
) -> list[Floats]:
    """Give the same under a Markov model of one species; validation chooses its rates."""
    markov = _MarkovModel(config.markov_order)
    for codes in parts["train"]:
        markov.add(codes)
        markov.add(reverse_complement(codes))
    markov.fit_rates([codes for codes in parts["valid"] if len(codes)])

    def read(windows: Codes) -> Floats:
        found = [
            np.nansum(markov.log_probabilities(some, 1, markov.fitted_rates or ())[-1], axis=1)
            for some in np.array_split(windows, -(-len(windows) // _ROWS))
        ]
        return np.concatenate(found)

    return [_of_strands(config, test.windows, read) for test in tests.values()]


def _of_strands(config: LikelihoodConfig, windows: Codes, read: Any) -> Floats:
    """Read one strand, or both for their mean."""
    if config.strands == "forward":
        return read(windows)
    return (read(windows) + read(reverse_complement(windows))) / 2


def _add_up(sums: list[list[Floats]], samples: Mapping[str, _Samples]) -> list[Floats]:
    """Add the windows of every sample up: for each species (samples, models)."""
    found = []
    for number, drawn in enumerate(samples.values()):
        along = np.stack([of_model[number] for of_model in sums], axis=1)
        total = np.concatenate([np.zeros((1, along.shape[1])), np.cumsum(along, axis=0)])
        found.append(total[drawn.last] - total[drawn.first])
    return found


def _kmers(
    config: LikelihoodConfig, length: int, parts: Mapping[str, Mapping[str, list[Codes]]],
    test: tuple[Mapping[str, _Test], Mapping[str, _Samples]],
) -> list[Floats]:  # fmt: skip
    """Fit logistic regression on k-mers to samples of the suite; give its answers to ours."""
    count = {
        "train": max(1, round(config.train_bases / length / len(parts))),
        "valid": max(1, config.eval_samples // len(parts)),
    }
    texts = {}
    for part in _PARTS:
        sequences: list[str] = []
        labels: list[tuple[str, ...]] = []
        for number, (species, pieces) in enumerate(parts.items()):
            if part == "test":
                windows, drawn = test[0][species].windows, test[1][species]
                pairs = zip(drawn.first, drawn.last, strict=True)
                own = [decode(windows[low:high].ravel()) for low, high in pairs]
            else:
                rng = np.random.default_rng([length, _PARTS.index(part), number])
                own = _draw_samples(_joined(config, pieces[part]), length, count[part], rng)
            sequences += own
            labels += [(species,)] * len(own)
        texts[part] = LabelTable(f"{part} samples", sequences, labels, ("label",))
    splits = label_splits(texts, "classes")
    answers = fit_baseline(splits, _WORDS, "accuracy", ["accuracy"]).outputs["test"]
    if answers.shape[1] == 2:  # of two classes the second one's score alone is not zero
        answers = np.stack([-answers[:, 1], answers[:, 1]], axis=1)
    columns = [list(splits["train"].classes).index(species) for species in parts]
    ends = np.cumsum([len(drawn.first) for drawn in test[1].values()])[:-1]
    return np.split(answers[:, columns].astype(np.float64), ends)


def _measure(
    config: LikelihoodConfig, names: list[str], scores: list[Floats],
    samples: Mapping[str, _Samples],
) -> dict[str, Any]:  # fmt: skip
    """Measure the answers: the highest score of a sample decides."""
    answers = [found.argmax(1) for found in scores]
    right = [own == number for number, own in enumerate(answers)]
    stretches = [one.stretch for one in samples.values()]
    table = [np.bincount(own, minlength=len(names)).tolist() for own in answers]
    found: dict[str, Any] = {"accuracy": _interval(right, stretches), "answers": table}
    if config.groups:
        group_of = [next(g for g, all_ in config.groups.items() if name in all_) for name in names]
        inside = [
            np.array([group_of[answer] == group_of[number] for answer in own])
            for number, own in enumerate(answers)
        ]
        found["groups"] = _interval(inside, stretches)
    return found


def _ahead(names: list[str], likelihoods: list[Floats], length: int) -> dict[str, Any]:
    """Give the bits a base by which the own model is ahead of the best other one."""
    ahead = []
    for number, own in enumerate(likelihoods):
        best_other = np.delete(own, number, axis=1).max(1)
        ahead.append((own[:, number] - best_other) / (length * LN_2))
    each = np.concatenate(ahead)
    return {
        "mean": float(np.mean([one.mean() for one in ahead])), "sd": float(each.std()),
        "by_species": {n: float(one.mean()) for n, one in zip(names, ahead, strict=True)},
    }  # fmt: skip


def _interval(
    right: list[NDArray[np.bool_]], stretches: list[NDArray[np.int64]]
) -> dict[str, float]:
    """Give the mean over species of the share right, and its 95 % bootstrap interval."""
    rng, means = np.random.default_rng(0), []
    for own, stretch in zip(right, stretches, strict=True):
        _, group = np.unique(stretch, return_inverse=True)
        counts = np.bincount(group)
        hits = np.bincount(group, weights=own)
        drawn = rng.integers(0, len(counts), (_RESAMPLES, len(counts)))
        means.append(hits[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.mean(means, axis=0), (0.025, 0.975)).tolist()
    return {"value": float(np.mean([own.mean() for own in right])), "low": low, "high": high}


def _line(found: Mapping[str, Any]) -> str:
    """Write the accuracies of a length."""
    ways = [way for way in WAYS if way in found]
    cells = []
    for way in ways:
        one = found[way]["accuracy"]
        group = f", groups {found[way]['groups']['value']:.3f}" if "groups" in found[way] else ""
        cells.append(f"{way} {one['value']:.3f} ({one['low']:.3f}-{one['high']:.3f}){group}")
    return f"{found['length']:,} bases, {found['samples']} samples: {'; '.join(cells)}"


WAYS = {
    "model": "language models, likelihood",
    "markov": "Markov models, likelihood",
    "kmer": "k-mers, logistic regression",
}
"""Names of the ways in the picture."""


def save_plot(found: Mapping[str, Any], output: Path) -> list[Path]:
    """Draw accuracy against length as SVG beside the JSON; an earlier file is replaced."""
    return [draw_results({"": found}, output.with_suffix(".svg"))]


def draw_results(results: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Draw a panel for each result, by title: accuracy against length, of groups where there are.

    Chance is always the same species, or the largest group.
    """
    from megabase.report.style import Size, as_svg

    size = Size(330 * len(results) + 60, 330, 12.0)
    write_whole(path, as_svg(partial(_draw, results), size=size), True)
    return path


def _draw(
    results: Mapping[str, Mapping[str, Any]], figure: Figure, theme: Theme, size: Size
) -> None:
    figure.set_layout_engine("constrained")
    figure.set_facecolor(theme.background)
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    looks = {"model": ("o-", theme.model), "markov": ("s--", theme.model),
             "kmer": ("^:", theme.baseline)}  # fmt: skip
    for axes, (title, found) in zip(panels, results.items(), strict=True):
        lengths = [one["length"] for one in found["lengths"]]
        groups = found["config"]["groups"]
        what, chance = ("groups", max(map(len, groups.values()))) if groups else ("accuracy", 1)
        for way, (style, color) in looks.items():
            known = [one[way][what] for one in found["lengths"] if way in one]
            if not known:
                continue
            values = np.array([[one["value"], one["low"], one["high"]] for one in known]).T
            errors = np.abs(values[1:] - values[0])
            axes.errorbar(lengths, values[0], yerr=errors, fmt=style, color=color, capsize=3,
                          markersize=5, label=WAYS[way])  # fmt: skip
        axes.axhline(chance / len(found["species"]), color=theme.muted, linewidth=1, label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.set(ylim=(0, 1.05), xlabel="bases of a sample")
        axes.set_title(title, loc="left")
        axes.grid(True, axis="y")
    panels[0].set_ylabel("accuracy")
    panels[0].legend(frameon=False, fontsize=size.text - 3, loc="lower right")
