"""Gene biotypes from frozen embeddings (HyenaDNA, section 4.4): boosted trees, weighted F1.

A sequence becomes the mean of a model's last hidden states; genes longer than the model reads are
cut into pieces whose means are averaged. XGBoost learns the biotype from it, with the published
settings (1000 trees of depth 3, learning rate 0.1, softmax). The paper names neither its genes nor
its split, so test genes are drawn here with the run's seed, class by class.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megabase.benchmarking.config import BenchmarkConfig, BiotypeConfig, ModelEntry
from megabase.benchmarking.models import kmer_words, resolve_entry
from megabase.benchmarking.rows import Together, together_note
from megabase.benchmarking.suites.base import choose_tasks, need_folder, published
from megabase.data.label_files import read_text
from megabase.data.labeled import LabeledSequences, LabelTable, label_splits, split_rows
from megabase.errors import InputError, MissingDependencyError
from megabase.evaluate import metrics
from megabase.evaluate.baselines import kmer_counts
from megabase.genome.files import numbered_lines, without_nan, write_json
from megabase.tasks.labeled_data import digest, hash_of
from megabase.tasks.run import write_arrays

if TYPE_CHECKING:
    from rich.console import Console

_INSTRUCTIONS = (
    "Expected a FASTA of genes with their biotype in the header (gene_biotype:NAME, as in the cdna "
    "and ncrna files of ftp.ensembl.org/pub/current_fasta, or as the last word), or a table with "
    "columns sequence and label"
)
"""Shown to users whose file is missing or has no biotypes."""
_BIOTYPE = re.compile(r"\bgene_biotype:(\S+)")
"""As Ensembl writes it in the headers of its cdna and ncrna files."""
_METRICS = ("f1_weighted", "accuracy", "f1", "mcc")
"""The first is that of the HyenaDNA paper."""


@dataclass(frozen=True)
class _Vectors:
    """Embeddings of all genes, and what they cost."""

    values: npt.NDArray[np.float32]
    family: str
    parameters: int
    seconds: float


def names(config: BenchmarkConfig) -> list[str]:
    """Name the task."""
    path = need_folder(config.data, "biotype", _INSTRUCTIONS)
    if config.protocol != "holdout":
        raise InputError(f"biotype knows the protocol holdout only, not {config.protocol}")
    return choose_tasks([f"biotype-{path.name.split('.')[0]}"], config.task_names, str(path))


def _read_genes(config: BenchmarkConfig) -> LabeledSequences:
    """Read genes of the most frequent biotypes; an InputError with fewer than two."""
    path = Path(str(config.data)).expanduser()
    fasta = re.search(r"\.(fa|fna|fasta)(\.gz)?$", path.name, re.IGNORECASE)
    headers = fasta and next(iter(numbered_lines(path)), (0, ""))[1]
    text = _ensembl(path) if headers and _BIOTYPE.search(headers) else read_text(
        path, sequence=config.table.sequence, label=config.table.label,
        fasta_label=config.table.fasta_label,
    )  # fmt: skip
    counts = Counter(row[0] for row in text.labels)
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: config.biotype.top]
    kept = {name for name, count in common if count >= 2}
    if len(kept) < 2:
        raise InputError(f"{path} has {len(kept)} biotypes with two genes or more. {_INSTRUCTIONS}")
    rows = [i for i, row in enumerate(text.labels) if row[0] in kept]
    chosen = LabelTable(
        text.source,
        [text.sequences[i] for i in rows],
        [text.labels[i] for i in rows],
        text.columns,
        [text.where(i) for i in rows],
    )
    return label_splits({"train": chosen}, "classes")["train"]


def _ensembl(path: Path) -> LabelTable:
    sequences: list[list[str]] = []
    labels: list[tuple[str, ...]] = []
    names: list[str] = []
    for number, line in numbered_lines(path):
        if line.startswith(">"):
            found = _BIOTYPE.search(line)
            if found is None:
                raise InputError(f"{path}, line {number:,}: the header has no gene_biotype:NAME")
            labels.append((found.group(1),))
            names.append(f"{path}, line {number:,}")
            sequences.append([])
        elif line.strip():
            sequences[-1].append(line.strip())
    return LabelTable(str(path), ["".join(s) for s in sequences], labels, ("label",), names)


def run(
    config: BenchmarkConfig,
    names: list[str],
    output: Path,
    console: Console | None,
    done: Callable[[], None] | None,
) -> list[dict[str, Any]]:
    """Embed the genes with every model, train the trees with every seed, and draw the picture.

    Finished runs and embeddings in `output` are kept.
    """
    require()
    genes = _read_genes(config)
    groups = Together(config.together).groups(genes)
    records: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for entry in config.entries:
        found = _embed(config, entry, genes, output)
        for seed in config.seed_numbers:
            record = _one(config, entry, names[0], genes, groups, found, seed, output)
            records.append(record)
            if console is not None:
                console.print(f"{names[0]}  {entry.name}  seed-{seed}: f1_weighted "
                              f"{record['test']['f1_weighted']:.4f}", markup=False)  # fmt: skip
            if done is not None:
                done()
        pictures.append(_picture(entry, genes, found, config.seed_numbers[0]))
    folder = output / "pictures"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"biotype.{names[0]}.json", {"method": "t-SNE", "items": pictures})
    return records


def require() -> None:
    """Refuse to begin without xgboost and scikit-learn (the extra biotype)."""
    for package in ("xgboost", "sklearn"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependencyError(
                package, "biotype", "boosted trees on embeddings"
            ) from error


def _key(config: BenchmarkConfig, entry: ModelEntry, genes: LabeledSequences) -> str:
    return hash_of(
        {"rows": digest(genes), "start": entry.start, "settings": entry.settings,
         "pieces": config.biotype.max_length}
    )  # fmt: skip


def _embed(
    config: BenchmarkConfig, entry: ModelEntry, genes: LabeledSequences, output: Path
) -> _Vectors:
    """Embed all genes, or read what an earlier call kept."""
    folder = output / "embeddings"
    folder.mkdir(exist_ok=True)
    file = folder / f"{_key(config, entry, genes)}.npz"
    if file.is_file():
        with np.load(file) as kept:
            about = json.loads(str(kept["about"]))
            return _Vectors(kept["values"], **about)
    started = time.perf_counter()
    words = kmer_words(entry.start)
    if words is not None:
        values = np.asarray(kmer_counts(genes, max(words)).toarray(), dtype=np.float32)
        family, parameters = "kmer", 0
    else:
        model = _model(entry)
        family = str(model.config.model_type)
        parameters = sum(p.numel() for p in model.parameters())
        values = _pieces(model, genes, config.biotype)
    about = {
        "family": family, "parameters": parameters, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    write_arrays(file, {"values": values, "about": np.array(json.dumps(about))})
    return _Vectors(values, **about)


def _model(entry: ModelEntry) -> Any:
    """Load a model without its head, or build it with fresh weights."""
    import torch

    from megabase.models.auto import load_config, load_model
    from megabase.models.families import FAMILIES, family_of
    from megabase.models.presets import find_preset

    start = resolve_entry(entry)
    unknown = sorted(set(entry.settings) - {"overrides"})
    if unknown:
        raise InputError(f"{entry.name}: biotype trains no model, so {unknown[0]} has no meaning")
    torch.manual_seed(0)
    if "model" in start and not start.get("from_scratch"):
        return load_model(None if start["model"] == "default" else start["model"], "base").eval()
    if "model" in start:
        settings = load_config(None if start["model"] == "default" else start["model"])
        family = family_of(settings.model_type)
    else:
        name = start.get("family") or find_preset(start["preset"]).family
        family = FAMILIES[name]
        fields = dict(find_preset(start["preset"]).config) if "preset" in start else {}
        settings = family.config_class()(**{**fields, **entry.settings.get("overrides", {})})
    if family is None or "base" not in family.classes():
        raise InputError(f"{entry.name} has no hidden states to embed with")
    return family.classes()["base"](settings).eval()  # pyright: ignore[reportArgumentType]


def _pieces(model: Any, genes: LabeledSequences, config: BiotypeConfig) -> npt.NDArray[np.float32]:
    """Average the embeddings of the pieces of each gene."""
    from megabase.inference.embedding import Embedder

    embedder = Embedder(model)
    longest = config.max_length or embedder.longest or int(genes.lengths.max())
    if embedder.longest is not None:
        longest = min(longest, embedder.longest)
    pieces: list[npt.NDArray[np.uint8]] = []
    owner: list[int] = []
    for index in range(len(genes)):
        codes = genes.sequence(index)
        for start in range(0, len(codes), longest):
            pieces.append(codes[start : start + longest])
            owner.append(index)
    vectors, _ = embedder.pooled(pieces)
    total = np.zeros((len(genes), vectors.shape[1]), dtype=np.float64)
    np.add.at(total, np.array(owner), vectors)
    return (total / np.bincount(owner, minlength=len(genes))[:, None]).astype(np.float32)


def _one(
    config: BenchmarkConfig,
    entry: ModelEntry,
    task: str,
    genes: LabeledSequences,
    groups: npt.NDArray[np.int64] | None,
    found: _Vectors,
    seed: int,
    output: Path,
) -> dict[str, Any]:
    """Train and test the trees with one seed."""
    own = [config.together] if config.together is not None else []
    key = hash_of([_key(config, entry, genes), asdict(config.biotype), *own])
    folder = output / "runs" / f"biotype.{task}" / f"{hash_of(entry.name)}-seed-{seed}-{key}"
    file = folder / "record.json"
    if file.is_file():
        return json.loads(file.read_text())
    from xgboost import XGBClassifier

    started = time.perf_counter()
    train, test = split_rows(genes.labels, config.biotype.test_fraction, seed, groups)
    trees = XGBClassifier(
        n_estimators=config.biotype.trees,
        max_depth=config.biotype.depth,
        learning_rate=config.biotype.learning_rate,
        objective="multi:softprob" if len(genes.classes) > 2 else "binary:logistic",
        random_state=seed,
        n_jobs=1,
    )
    trees.fit(found.values[train], genes.labels[train])
    chances = np.asarray(trees.predict_proba(found.values[test]), dtype=np.float32)
    outputs = np.log(np.maximum(chances, 1e-12))
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / "outputs.npz", {"test": outputs, "test_labels": genes.labels[test]})
    measured = metrics.measure(_METRICS, "classes", outputs, genes.labels[test])
    seconds = found.seconds / len(config.seed_numbers) + time.perf_counter() - started
    record = {
        "format": 1, "suite": "biotype", "task": task, "model": entry.name, "start": entry.start,
        "compare": entry.compare, "overrides": entry.settings.get("overrides", {}), "key": key,
        "protocol": config.protocol, "recipe": None, "seed": seed, "fold": None,
        "metric": "f1_weighted", "metrics": list(_METRICS), "kind": "classes",
        "classes": list(genes.classes), "groups": {}, "official": False, "length": None,
        "notes": [
            "frozen embeddings, mean over positions; "
            f"{config.biotype.trees} boosted trees of depth {config.biotype.depth}; no validation "
            "rows, test genes drawn class by class with the run's seed (the paper states no split)"
            + ("" if config.together is None else f"; {together_note(config.together)}"),
        ],
        "published": [asdict(item) for item in published("biotype", "biotype")],
        "rows": {"train": len(train), "test": len(test)},
        "test_rows": digest(genes.take(test)), "settings": asdict(config.biotype),
        "tuning_seconds": 0.0, "folder": folder.name, "family": found.family,
        "parameters": found.parameters, "trained_parameters": 0, "seconds": seconds,
        "training_seconds": seconds, "valid": {}, "test": measured, "chosen": {},
    }  # fmt: skip
    record = without_nan(record)
    write_json(file, record)
    return record


def _picture(
    entry: ModelEntry, genes: LabeledSequences, found: _Vectors, seed: int
) -> dict[str, Any]:
    """Lay the test genes of the first seed out in two dimensions."""
    from sklearn.manifold import TSNE

    _, test = split_rows(genes.labels, 0.2, seed)
    rows = test[:3000]
    values = found.values[rows].astype(np.float64)
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
    perplexity = min(30.0, max(2.0, (len(rows) - 1) / 3))
    points = TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(values)
    return {
        "model": entry.name,
        "points": np.asarray(points, dtype=np.float64).round(3).tolist(),
        "labels": genes.labels[rows].tolist(),
        "classes": list(genes.classes),
    }
