"""GenomicBenchmarks (Gresova et al. 2023): regulatory elements of human, mouse and worm.

Layout ``DATA/TASK/{train,test}/CLASS/NAME.txt``, as the ``genomic-benchmarks`` package unpacks it
(version 0), or tables of the same names. There is no validation split.
"""

from __future__ import annotations

from pathlib import Path

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.suites.base import (
    Published,
    Task,
    choose_tasks,
    figures,
    need_folder,
    read_task,
)
from megabase.errors import InputError

__all__ = ["DATASETS", "load", "names"]

INSTRUCTIONS = (
    "Expected DATA/TASK/{train,test}/CLASS/NAME.txt (or train.csv and test.csv). To get it: "
    'pip install genomic-benchmarks; python -c "from genomic_benchmarks.loc2seq import '
    "download_dataset as d; d('human_nontata_promoters', version=0, dest_path='DATA')\"; with the "
    "package installed, download=True does the same"
)

# max_length: Caduceus's protocol (arXiv 2403.03234); longer sequences lose their end.
DATASETS: dict[str, int] = {
    "dummy_mouse_enhancers_ensembl": 1024,
    "demo_coding_vs_intergenomic_seqs": 200,
    "demo_human_or_worm": 200,
    "human_enhancers_cohn": 500,
    "human_enhancers_ensembl": 512,
    "human_ensembl_regulatory": 512,
    "human_nontata_promoters": 251,
    "human_ocr_ensembl": 512,
    "drosophila_enhancers_stark": 1024,
}
"""Task -> longest sequence that is read, in bases."""

_HYENA = "HyenaDNA paper (2306.15794), Table 4.1"
_HYENA_MODELS = ("CNN", "DNABERT", "GPT", "HyenaDNA")
_HYENA_TABLE = {
    "dummy_mouse_enhancers_ensembl": (0.690, 0.669, 0.801, 0.851),
    "demo_coding_vs_intergenomic_seqs": (0.876, 0.925, 0.888, 0.913),
    "demo_human_or_worm": (0.930, 0.965, 0.956, 0.966),
    "human_enhancers_cohn": (0.695, 0.740, 0.705, 0.742),
    "human_enhancers_ensembl": (0.689, 0.857, 0.835, 0.892),
    "human_ensembl_regulatory": (0.933, 0.881, 0.915, 0.938),
    "human_nontata_promoters": (0.846, 0.856, 0.877, 0.966),
    "human_ocr_ensembl": (0.680, 0.751, 0.730, 0.809),
}
_SCRATCH = "HyenaDNA paper (2306.15794), Table A.4"
_SCRATCH_MODELS = (
    "GPT from scratch", "HyenaDNA from scratch", "HyenaDNA 6-mer from scratch",
    "HyenaDNA bidirectional from scratch",
)  # fmt: skip
_SCRATCH_TABLE = {
    "dummy_mouse_enhancers_ensembl": (0.793, 0.847, 0.818, 0.806),
    "demo_coding_vs_intergenomic_seqs": (0.893, 0.909, 0.867, 0.903),
    "demo_human_or_worm": (0.948, 0.964, 0.929, 0.959),
    "human_enhancers_cohn": (0.677, 0.729, 0.698, 0.721),
    "human_enhancers_ensembl": (0.790, 0.857, 0.880, 0.859),
    "human_ensembl_regulatory": (0.902, 0.904, 0.902, 0.891),
    "human_nontata_promoters": (0.852, 0.933, 0.835, 0.885),
    "human_ocr_ensembl": (0.683, 0.788, 0.702, 0.753),
}
_CADUCEUS = "Caduceus paper (2403.03234), Table 1"
_CADUCEUS_MODELS = (
    "CNN", "HyenaDNA", "Mamba", "Caduceus w/o equivariance", "Caduceus-Ph", "Caduceus-PS",
)  # fmt: skip
_CADUCEUS_TABLE = {
    "dummy_mouse_enhancers_ensembl": (
        (0.715, 0.087), (0.780, 0.025), (0.743, 0.054), (0.770, 0.058), (0.754, 0.074),
        (0.793, 0.058),
    ),
    "demo_coding_vs_intergenomic_seqs": (
        (0.892, 0.008), (0.904, 0.005), (0.904, 0.004), (0.908, 0.003), (0.915, 0.003),
        (0.910, 0.003),
    ),
    "demo_human_or_worm": (
        (0.942, 0.002), (0.964, 0.002), (0.967, 0.002), (0.970, 0.003), (0.973, 0.001),
        (0.968, 0.002),
    ),
    "human_enhancers_cohn": (
        (0.702, 0.021), (0.729, 0.014), (0.732, 0.029), (0.741, 0.008), (0.747, 0.004),
        (0.745, 0.007),
    ),
    "human_enhancers_ensembl": (
        (0.744, 0.122), (0.849, 0.006), (0.862, 0.008), (0.883, 0.002), (0.893, 0.008),
        (0.900, 0.006),
    ),
    "human_ensembl_regulatory": (
        (0.872, 0.005), (0.869, 0.012), (0.814, 0.211), (0.871, 0.007), (0.872, 0.011),
        (0.873, 0.007),
    ),
    "human_ocr_ensembl": (
        (0.698, 0.013), (0.783, 0.007), (0.815, 0.002), (0.818, 0.003), (0.828, 0.006),
        (0.818, 0.006),
    ),
    "human_nontata_promoters": (
        (0.861, 0.009), (0.944, 0.002), (0.933, 0.007), (0.933, 0.006), (0.946, 0.007),
        (0.945, 0.010),
    ),
}  # fmt: skip


def published(task: str) -> tuple[Published, ...]:
    """Give the published figures of a task."""
    found: tuple[Published, ...] = ()
    if task in _HYENA_TABLE:
        found += figures(_HYENA, "accuracy", "published", _HYENA_MODELS, _HYENA_TABLE[task])
        found += figures(_SCRATCH, "accuracy", "published", _SCRATCH_MODELS, _SCRATCH_TABLE[task])
        found += figures(_CADUCEUS, "accuracy", "cv5", _CADUCEUS_MODELS, _CADUCEUS_TABLE[task])
    if task == "drosophila_enhancers_stark":
        source = "GenomicBenchmarks repository"
        found += figures(source, "accuracy", "holdout", ("CNN",), (0.586,))
    return found


def names(config: BenchmarkConfig) -> list[str]:
    """Name the tasks to run."""
    if config.download:
        return choose_tasks(list(DATASETS), config.task_names, "GenomicBenchmarks")
    folder = need_folder(config.data, "genomic-benchmarks", INSTRUCTIONS)
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name in DATASETS)
    if not found:
        raise InputError(f"{folder} holds no folder named after a task. {INSTRUCTIONS}")
    return choose_tasks(found, config.task_names, str(folder))


def load(config: BenchmarkConfig, name: str) -> Task:
    """Read a task."""
    folder = _download(config, name) if config.download else Path(config.data or "") / name
    splits, official, notes = read_task(
        folder,
        sequence=config.table.sequence,
        label=config.table.label,
        kind="classes",
        resplit=config.resplit,
        resplit_seed=config.resplit_seed,
        together=config.together,
    )
    return Task(
        suite="genomic-benchmarks",
        name=name,
        splits=splits,
        metric="accuracy",
        metrics=("mcc", "f1", "auroc", "auprc"),
        published=published(name),
        official=official,
        notes=notes,
        settings={"table.max_length": DATASETS[name], "table.truncate": True},
    )


def _download(config: BenchmarkConfig, name: str) -> Path:
    """Let the package of the benchmark fetch a data set (it checks nothing but the size)."""
    if config.data is None:
        raise InputError("download=True needs data=...: the folder to keep the files in")
    target = Path(config.data).expanduser() / name
    if target.is_dir():
        return target
    try:
        from genomic_benchmarks.loc2seq import (  # pyright: ignore[reportMissingImports]
            download_dataset,
        )
    except ImportError as error:
        raise InputError(
            "download=True needs the package genomic-benchmarks (pip install genomic-benchmarks)"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    download_dataset(name, version=0, dest_path=str(target.parent))
    return target
