"""Gene biotypes from frozen embeddings (HyenaDNA, section 4.4): boosted trees, weighted F1.

A sequence becomes the mean of a model's last hidden states; genes longer than the model reads are
cut into pieces whose means are averaged. XGBoost learns the biotype from it, with the published
settings (1000 trees of depth 3, learning rate 0.1, softmax). The paper names neither its genes nor
its split, so test genes are drawn here with the run's seed, class by class.
"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megabase.benchmarking.config import BenchmarkConfig, BiotypeConfig, ModelEntry
from megabase.benchmarking.suites import Suite, Task, choose_tasks, published
from megabase.data.label_files import read_text
from megabase.data.labeled import LabeledSequences, label_splits
from megabase.errors import InputError, MissingDependencyError
from megabase.evaluate import metrics
from megabase.evaluate.baselines import kmer_counts
from megabase.tasks.labeled_data import digest, hash_of
from megabase.tasks.run import write_arrays

if TYPE_CHECKING:
    from megabase.benchmarking.run import Job

_INSTRUCTIONS = (
    "Expected a FASTA of genes with their biotype in the header (gene_biotype:NAME, as in the cdna "
    "and ncrna files of ftp.ensembl.org/pub/current_fasta, or as the last word), or a table with "
    "columns sequence and label"
)
"""Shown to users whose file is missing or has no biotypes."""
_METRICS = ("f1_weighted", "accuracy", "f1", "mcc")  # the first is that of the HyenaDNA paper


def _names(config: BenchmarkConfig) -> list[str]:
    path = config.folder(_INSTRUCTIONS)
    if config.protocol != "holdout":
        raise InputError(f"biotype knows the protocol holdout only, not {config.protocol}")
    return choose_tasks([f"biotype-{path.name.split('.')[0]}"], config.task_names, str(path))


def _load(config: BenchmarkConfig, name: str) -> Task:
    """Read the genes; every run draws its own test genes among them."""
    chosen = config.biotype
    note = (
        f"frozen embeddings, mean over positions; {chosen.trees} boosted trees of depth "
        f"{chosen.depth}; no validation rows, test genes drawn class by class with the run's seed "
        "(the paper states no split)"
    )
    return Task(
        "biotype", name, {"train": _read_genes(config)}, _METRICS[0], _METRICS[1:],
        published("biotype", "biotype"), False, (note,), test_fraction=chosen.test_fraction,
    )  # fmt: skip


def _read_genes(config: BenchmarkConfig) -> LabeledSequences:
    """Read genes of the most frequent biotypes; an InputError with fewer than two."""
    path, table = Path(str(config.data)).expanduser(), config.table
    text = read_text(
        path, sequence=table.sequence, label=table.label, fasta_label=table.fasta_label
    )
    counts = Counter(row[0] for row in text.labels)
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: config.biotype.top]
    kept = {name for name, count in common if count >= 2}
    if len(kept) < 2:
        raise InputError(f"{path} has {len(kept)} biotypes with two genes or more. {_INSTRUCTIONS}")
    rows = np.array([i for i, row in enumerate(text.labels) if row[0] in kept])
    return label_splits({"train": text.take(rows)}, "classes")["train"]


def _require() -> None:
    """Refuse to begin without xgboost and scikit-learn (the extra biotype)."""
    for package in ("xgboost", "sklearn"):
        MissingDependencyError.load(package, "biotype", "boosted trees on embeddings")


def _fit(config: BenchmarkConfig, job: "Job", output: Path, folder: Path) -> dict[str, Any]:
    """Embed the genes, train and test the trees; keeps embeddings in `output`."""
    from xgboost import XGBClassifier

    chosen, seed = config.biotype, job.unit.seed
    vectors, about = _embed(config, job.entry, job.task.splits["train"], output)
    started = time.perf_counter()
    train, test = job.splits["train"], job.splits["test"]
    trees = XGBClassifier(
        n_estimators=chosen.trees, max_depth=chosen.depth, learning_rate=chosen.learning_rate,
        objective="multi:softprob" if len(train.classes) > 2 else "binary:logistic",
        random_state=seed, n_jobs=1,
    )  # fmt: skip
    trees.fit(vectors[train.rows], train.labels)
    chances = np.asarray(trees.predict_proba(vectors[test.rows]), dtype=np.float32)
    outputs = np.log(np.maximum(chances, 1e-12))
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / "outputs.npz", {"test": outputs, "test_labels": test.labels})
    seconds = about["seconds"] / len(config.seed_numbers) + time.perf_counter() - started
    return {
        **about, "trained_parameters": 0, "seconds": seconds, "training_seconds": seconds,
        "valid": {}, "test": metrics.measure(_METRICS, "classes", outputs, test.labels),
        "chosen": {}, "notes": [],
    }  # fmt: skip


def _embed(
    config: BenchmarkConfig, entry: ModelEntry, genes: LabeledSequences, output: Path
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Embed all genes, or read what an earlier call kept; give family, parameters, seconds too."""
    folder = output / "embeddings"
    folder.mkdir(exist_ok=True)
    key = hash_of([digest(genes), entry.start, entry.settings, config.biotype.max_length])
    file = folder / f"{key}.npz"
    if file.is_file():
        with np.load(file) as kept:
            return kept["values"], json.loads(str(kept["about"]))
    started = time.perf_counter()
    if (words := entry.words) is not None:
        values = np.asarray(kmer_counts(genes, max(words)).toarray(), dtype=np.float32)
        about: dict[str, Any] = {"family": "kmer", "parameters": 0}
    else:
        model = entry.open(("base",))
        count = sum(p.numel() for p in model.parameters())
        about = {"family": str(model.config.model_type), "parameters": count}
        values = _pieces(model, genes, config.biotype)
    about["seconds"] = time.perf_counter() - started
    write_arrays(file, {"values": values, "about": np.array(json.dumps(about))})
    return values, about


def _pieces(model: Any, genes: LabeledSequences, config: BiotypeConfig) -> npt.NDArray[np.float32]:
    """Average the embeddings of the pieces of each gene."""
    from megabase.inference.embedding import Embedder

    embedder = Embedder(model)
    longest = embedder.longest or int(genes.lengths.max())
    longest = min(config.max_length or longest, longest)
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


SUITE = Suite(_names, _load, _fit, _require)  # what the runner calls
