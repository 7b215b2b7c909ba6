"""Pretraining: model, genome, windows and objective put together and given to the loop."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from rich.console import Console
from torch.distributed.device_mesh import init_device_mesh

from megabase.data.regions import Intervals, Regions
from megabase.data.windows import (
    GenomeWindows,
    IntervalWindows,
    RandomWindows,
    TiledWindows,
    WindowSource,
)
from megabase.errors import ConfigError
from megabase.genome.store import Genome
from megabase.memory import available_bytes
from megabase.models.adapt.build import build_language_model
from megabase.models.base import checkpoint_activations
from megabase.models.checkpoints.convert import write_model
from megabase.models.describe import step_memory
from megabase.models.tokenizers.character import DNATokenizer
from megabase.objectives.base import OBJECTIVES, Objective
from megabase.objectives.language import CausalLM
from megabase.parallel import context_parallel
from megabase.settings import TrainConfig
from megabase.tasks.config import DataConfig, ObjectiveConfig, PretrainConfig
from megabase.tasks.labeled_data import start_record
from megabase.tasks.run import Done, Plan, RunResult, execute, lay_out
from megabase.training.evaluation import EvalSet
from megabase.training.process import MAPPED_PARTS, keep_freed_memory
from megabase.training.schedule import LengthSchedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EVAL_SEED = 20  # orders the validation windows: the same ones in every run over the same regions
_LISTED_REGIONS = 1000
"""Regions written out per split; a genome in many small pieces would make a file of megabytes."""


def pretrain(
    config: PretrainConfig, *, dry_run: bool = False, console: Console | None = None
) -> RunResult | None:
    """Train a language model on a genome; ``valid`` of the result has the best loss (in nats).

    Arguments and errors are those of :func:`megabase.tasks.finetune.finetune`.
    """
    return execute(config, _plan, _conclude, dry_run=dry_run, console=console)


def _conclude(_: PretrainConfig, done: Done) -> RunResult:
    """Give what validation has measured; the test regions are left to ``megabase evaluate``."""
    loss = done.outcome.progress.best_loss
    found = {} if loss is None else {"valid": {"loss": loss, "perplexity": np.exp(loss).item()}}
    windows = {name: one.windows for name, one in done.plan.evaluations.items()}
    return RunResult.of(done, found, rows=windows)


def _plan(config: PretrainConfig, fabric: Fabric) -> Plan:
    data, objective = config.data, _objective(config.objective)
    torch.manual_seed(config.seed)
    model = build_language_model(config.model, config.longest, config.objective.name)
    _check_lengths(config, model)
    if config.activation_checkpointing:
        checkpoint_activations(model, config.checkpointing_stretch)
    store = Genome(data.genome)
    split, source = _build_source(data, store, config.seed)
    windows = GenomeWindows(store, source, extra=getattr(objective, "extra_bases", 0))
    eval_batch = config.eval_batch or config.stages[-1].micro_batch
    settings = config.part(TrainConfig, eval_batch=eval_batch)
    schedule = lay_out(settings, fabric, windows)
    for point, _ in schedule.stages():  # a length without windows fails before step 1
        windows.batch(point.stage, np.zeros(1, dtype=np.int64), point.length)
    validation = None
    if config.eval_every is not None and len(split["validation"]):
        # Plain loss over the targets, whatever the training weighs.
        plain = CausalLM() if config.objective.name == "causal_lm" else objective
        validation = _validation(
            store, split, plain, data.eval_length or config.longest, data.eval_windows
        )
    if config.devices.context_parallel > 1:
        lengths, objectives = [point.length for point, _ in schedule.stages()], [objective]
        if validation is not None:
            lengths, objectives = [*lengths, validation.length], [objective, validation.objective]
        _share(model, objectives, fabric, settings, lengths)
    need = _largest(model, settings, schedule, on_cpu=fabric.device.type == "cpu")
    available = available_bytes(fabric.device)
    if fabric.device.type == "cpu":
        processes = schedule.world * config.devices.context_parallel
        available //= max(1, processes // config.devices.nodes)
    facts = _data_facts(data.windows, store, split, validation)
    if config.model.init_from is not None:
        facts["start"] = start_record(config.model.init_from)
    refusal = (
        f"the run needs about {need['total'] / 1e9:.1f} GB in each process and "
        f"{available / 1e9:.1f} GB are available; lower stages micro_batch, set "
        "activation_checkpointing (and, of a deep model, checkpointing_stretch), or start it "
        "all the same with force=True"
    )
    lines = [
        _model_line(model, config.longest),
        f"genome      {store.name} (sha256 {store.checksum[:12]}): "
        f"{split['train'].total:,} bases to train on, {split['validation'].total:,} for "
        f"validation, {split['test'].total:,} for test; windows {data.windows}",
        *_schedule_lines(settings, schedule),
        "validation  none"
        if validation is None
        else f"validation  {validation.windows} windows of {validation.length:,} every "
        f"{config.eval_every} steps",
        f"memory      about {need['total'] / 1e9:.2f} GB in each process "
        f"(activations {need['activations'] / 1e9:.2f}, convolution {need['workspace'] / 1e9:.2f}, "
        f"weights, gradients and optimizer "
        f"{(need['parameters'] + need['gradients'] + need['optimizer']) / 1e9:.2f}); "
        f"{available / 1e9:.1f} GB available",
    ]
    # As it was trained: bases only, padded on the right.
    limit = getattr(model.config, "max_length", None)
    tokenizer = DNATokenizer(model_max_length=limit, special_tokens="none", padding_side="right")
    return Plan(
        settings=settings, family=str(getattr(model.config, "model_type", "")), model=model,
        batches=windows, objective=objective, schedule=schedule, data=facts, lines=lines,
        evaluations={} if validation is None else {"valid": validation},
        save_model=lambda folder, state: write_model(folder, model, tokenizer, state),
        notes=_notes(windows, schedule, split),
        refusal=refusal if need["total"] > available and not config.force else None,
    )  # fmt: skip


def _share(
    model: PreTrainedModel, objectives: Sequence[Any], fabric: Fabric, settings: TrainConfig,
    lengths: Sequence[int],
) -> None:  # fmt: skip
    """Let the processes of each reader share every window; refuse what cannot be shared."""
    for objective in objectives:
        if not hasattr(objective, "part"):
            raise ConfigError(
                f"the objective {type(objective).__name__} does not say how processes share a "
                "window: it has no attribute part; leave devices.context_parallel at 1"
            )
    if not dist.is_initialized():
        return  # a dry run: nothing is launched
    keep_freed_memory(MAPPED_PARTS)
    shared = settings.devices.context_parallel
    shape = (fabric.world_size // shared, shared)
    mesh = init_device_mesh(fabric.device.type, shape, mesh_dim_names=("dp", "cp"))
    shards = context_parallel(model, mesh["cp"])
    for length in lengths:
        shards.part(length)
    for objective in objectives:
        objective.part = shards.part


def _check_lengths(config: PretrainConfig, model: PreTrainedModel) -> None:
    """Refuse stages and validation windows that are longer than the model's longest input."""
    limit = getattr(model.config, "max_length", None)
    lengths = {f"stages[{i}].length": stage.length for i, stage in enumerate(config.stages)}
    for name, length in (*lengths.items(), ("data.eval_length", config.data.eval_length or 0)):
        if limit is not None and length > limit:
            raise ConfigError(
                f"{name} is {length:,}, above the longest input of the model, {limit:,}; "
                "shorten it or set model.max_length"
            )


def _objective(spec: ObjectiveConfig) -> Objective:
    """Build the objective; a ConfigError for an option that it does not have."""
    make, count = OBJECTIVES[spec.name], spec.count_n_and_padding
    given = {
        "soft_mask_weight": spec.soft_mask_weight, "special_tokens": spec.special_tokens,
        "include_n": count, "include_padding": count,
    }  # fmt: skip
    taken = inspect.signature(make).parameters
    try:
        return make(**{name: given[name] for name in given if name in taken} | spec.options)
    except TypeError as error:
        raise ConfigError(f"objective.options of {spec.name}: {error}") from error


def _build_source(
    data: DataConfig, store: Genome, seed: int
) -> tuple[dict[str, Regions], WindowSource]:
    split = Regions.split(
        store, include=data.include, exclude=data.exclude, validation=data.validation,
        test=data.test,
    )  # fmt: skip
    common: dict[str, Any] = {"seed": seed, "reverse_complement": data.reverse_complement}
    if data.windows == "random":
        weights = [(Regions.read(store, [name]), one) for name, one in data.weights.items()]
        for name, (regions, _) in zip(data.weights, weights, strict=True):
            if not len(regions.intersect(split["train"])):
                raise ConfigError(f"data.weights: {name} holds no position to train on")
        return split, RandomWindows(
            split["train"], max_n_fraction=data.max_n_fraction, store=store, weights=weights,
            **common,
        )  # fmt: skip
    if data.windows == "tiled":
        return split, TiledWindows(split["train"], **common)
    path = data.intervals or ""
    rows = Intervals.read(store, path, "train")
    split["train"] = Regions.of(*rows)
    if not len(split["validation"]):
        split["validation"] = Regions.of(*Intervals.read(store, path, "valid"))
    return split, IntervalWindows(
        rows,
        contig_lengths=np.array([c.length for c in store.contigs], dtype=np.int64),
        shift=data.shift,
        padding=data.padding,
        **common,
    )


def _notes(
    windows: GenomeWindows, schedule: LengthSchedule, split: dict[str, Regions]
) -> list[str]:
    """Say what the published way of cutting windows does not prevent."""
    source, held_out = windows.source, split["validation"].union(split["test"])
    return [
        f"{found:,} of {windows.epoch_size(point.length):,} training windows of length "
        f"{point.length:,} reach into held-out positions, as lengthened intervals may"
        for point, _ in schedule.stages()
        if isinstance(source, IntervalWindows)
        and (found := source.touching(held_out, point.length, windows.extra))
    ]


def _validation(
    store: Genome, split: dict[str, Regions], objective: Objective, length: int, most: int | None
) -> EvalSet:
    source = TiledWindows(split["validation"], seed=_EVAL_SEED, shuffle=True, last="drop")
    data = GenomeWindows(store, source, extra=getattr(objective, "extra_bases", 0))
    windows = data.epoch_size(length) or 0
    if windows == 0:
        raise ConfigError(
            f"the validation places hold no window of {length:,} positions; the longest has "
            f"{split['validation'].longest:,} bases: set data.eval_length or hold out more"
        )
    windows = windows if most is None else min(windows, most)
    return EvalSet(data=data, windows=windows, length=length, objective=objective)


def _largest(
    model: PreTrainedModel, settings: TrainConfig, schedule: LengthSchedule, *, on_cpu: bool
) -> dict[str, int]:
    config: Any = model.config
    shape = {
        "parameters": model.num_parameters(),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "columns": getattr(config, "vocab_rows", config.vocab_size),
        "piecewise": on_cpu and getattr(config, "works_piecewise", False),
    }
    estimates = [
        step_memory(
            shape,
            point.micro_batch,
            -(-point.length // settings.devices.context_parallel),
            half=settings.precision not in ("fp32", "tf32"),
            segment=settings.checkpointing_stretch if settings.activation_checkpointing else 0,
            shards=schedule.world // settings.devices.replicas
            if settings.devices.strategy == "fsdp"
            else 1,
            on_cpu=on_cpu,
        )
        for point, _ in schedule.stages()
    ]
    return max(estimates, key=lambda estimate: estimate["total"])


def _model_line(model: PreTrainedModel, longest: int) -> str:
    shape: Any = model.config
    limit = getattr(shape, "max_length", longest)
    return (
        f"model       {shape.model_type}, {shape.num_hidden_layers} layers, width "
        f"{shape.hidden_size}, {model.num_parameters():,} parameters, "
        + (f"longest input {limit:,}" if limit is not None else "no limit of the input's length")
    )


def _schedule_lines(settings: TrainConfig, schedule: LengthSchedule) -> list[str]:
    lines: list[str] = []
    for point, steps in schedule.stages():
        share, shared = point.global_batch // schedule.world, settings.devices.context_parallel
        among = f", {shared} processes for each" if shared > 1 else ""
        lines.append(
            f"stage {point.stage}     {steps:,} steps of {point.global_batch} x {point.length:,} = "
            f"{point.global_batch * point.length:,} tokens "
            f"({schedule.world} x {-(-share // point.micro_batch)} micro-batches of "
            f"{min(point.micro_batch, share)}{among})"
        )
    return [
        *lines,
        f"budget      {schedule.total_steps:,} steps, {schedule.total_tokens:,} tokens",
        f"optimizer   {settings.optim}, precision {settings.precision}",
    ]


def _data_facts(
    windows: str, store: Genome, split: dict[str, Regions], validation: EvalSet | None
) -> dict[str, Any]:
    """Give the content of ``data.json``: genome, checksum, contigs, regions of each split."""
    return {
        "genome": {"name": store.name, "path": str(store.path), "sha256": store.checksum},
        "contigs": {contig.name: contig.length for contig in store.contigs},
        "windows": windows,
        "splits": {name: _region_facts(store, regions) for name, regions in split.items()},
        "validation": (
            {"windows": validation.windows, "length": validation.length} if validation else None
        ),
    }


def _region_facts(store: Genome, regions: Regions) -> dict[str, Any]:
    """Count regions, and write the first as people do, 1-based with both ends."""
    columns = (regions.contig, regions.start, regions.end)
    digest = hashlib.sha256(b"".join(column.astype("<i8").tobytes() for column in columns))
    rows = zip(*(column[:_LISTED_REGIONS].tolist() for column in columns), strict=True)
    names = [contig.name for contig in store.contigs]
    return {
        "bases": regions.total,
        "number_of_regions": len(regions),
        "sha256": digest.hexdigest(),
        "regions": [f"{names[contig]}:{start + 1:,}-{end:,}" for contig, start, end in rows],
    }
