"""Pretraining: model, genome, windows and objective put together and given to the loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from megabase.data.regions import Regions, Split, read_intervals, split_genome
from megabase.data.windows import (
    GenomeWindows,
    IntervalWindows,
    RandomWindows,
    TiledWindows,
    WindowSource,
    count_n,
)
from megabase.errors import ConfigError
from megabase.genome.store import GenomeStore
from megabase.models.adapt.language_model import build_language_model, save_language_model
from megabase.models.describe import Estimate, TrainingStep
from megabase.objectives.base import OBJECTIVES, Objective
from megabase.objectives.language import CausalLM
from megabase.ops.kernels import slower_than_possible
from megabase.tasks.digests import start_model
from megabase.tasks.pretrain_config import DataConfig, ObjectiveConfig, PretrainConfig, to_yaml
from megabase.tasks.pretrain_text import count_parameters, data_facts, plan_text
from megabase.training.engine import EvalSet, FitResult, fit
from megabase.training.memory import available_bytes
from megabase.training.process import build_fabric, planned_world
from megabase.training.run_folder import check_run, started_run
from megabase.training.schedule import LengthSchedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from rich.console import Console
    from transformers import PreTrainedModel

__all__ = ["Plan", "build_model", "build_objective", "plan_run", "pretrain"]

# Validation windows are the same in every run over the same places.
_EVAL_SEED = 20


@dataclass(frozen=True)
class Plan:
    """What a run will do and need, worked out before its first step."""

    model: PreTrainedModel
    """The model with its initial weights."""
    store: GenomeStore
    """The genome."""
    split: Split
    """Positions of each part."""
    windows: GenomeWindows
    """Training windows."""
    validation: EvalSet | None
    """Validation windows."""
    schedule: LengthSchedule
    """Stages in steps."""
    memory: Estimate
    """Estimated memory of one process."""
    available: int
    """Bytes a process may use."""
    text: str
    """All of it for people."""


def pretrain(
    config: PretrainConfig, *, dry_run: bool = False, console: Console | None = None
) -> FitResult | None:
    """Train a language model on a genome.

    Parameters
    ----------
    config
        Settings of the run.
    dry_run
        Stop after the plan: nothing is written.
    console
        Where to show the plan and the progress; None shows nothing.

    Returns
    -------
    FitResult or None
        None after a dry run.

    Raises
    ------
    MegabaseError
        For settings, data or a folder that cannot be used, too many non-finite steps, or a
        checkpoint that cannot be written.
    """
    resolved = to_yaml(config)
    changes = check_run(config, resolved)
    fabric = build_fabric(config.devices, config.precision)
    if not dry_run:
        fabric.launch()
    plan = plan_run(config, fabric)
    show = console if fabric.global_rank == 0 else None
    if show is not None:
        show.print(plan.text, markup=False, highlight=False, soft_wrap=True)
        for change in changes:
            show.print(f"resumed with another setting: {change}", markup=False, highlight=False)
        if (hint := slower_than_possible(plan.model, fabric.device)) is not None:
            show.print(hint, markup=False, highlight=False, soft_wrap=True)
    if plan.memory.total > plan.available and not config.force:
        raise ConfigError(
            f"the run needs about {plan.memory.total / 1e9:.1f} GB in each process and "
            f"{plan.available / 1e9:.1f} GB are available; lower stages micro_batch, set "
            "activation_checkpointing (and, of a deep model, checkpointing_stretch), or start it "
            "all the same with force=True"
        )
    if dry_run:
        return None
    data = data_facts(config.data, plan.store, plan.split, plan.validation)
    if config.model.init_from is not None:
        data["start"] = start_model(config.model.init_from)
    with started_run(config, resolved, fabric, data):
        return fit(
            plan.model,
            build_objective(config.objective),
            plan.windows,
            config,
            fabric=fabric,
            save_model=model_writer(plan.model),
            validation=plan.validation,
            console=show,
        )


def plan_run(config: PretrainConfig, fabric: Fabric) -> Plan:
    """Build everything a run needs and describe it; writes nothing."""
    torch.manual_seed(config.seed)
    model = build_model(config)
    store = GenomeStore.open(config.data.genome)
    split, source = _build_source(config.data, store, config.seed)
    objective = build_objective(config.objective)
    windows = GenomeWindows(store, source, extra=getattr(objective, "extra_bases", 0))
    world = max(fabric.world_size, planned_world(fabric, config.devices))
    schedule = LengthSchedule(config, world, windows.epoch_size)
    _try_windows(windows, schedule)
    validation = _build_validation(config, store, split)
    need = _largest(model, config, schedule, fabric)
    available = available_bytes(fabric.device)
    if fabric.device.type == "cpu":
        available //= max(1, world // config.devices.nodes)
    return Plan(
        model=model,
        store=store,
        split=split,
        windows=windows,
        validation=validation,
        schedule=schedule,
        memory=need,
        available=available,
        text=plan_text(
            config,
            model,
            store,
            split,
            schedule,
            validation,
            need,
            available,
            _notes(windows, schedule, split),
        ),
    )


def build_model(config: PretrainConfig) -> PreTrainedModel:
    """Build the model with fresh weights (from torch's current seed), or load ``init_from``.

    Raises
    ------
    ConfigError
        For an unknown family, preset or field, or a stage longer than the model.
    """
    model = build_language_model(config.model, config.longest, config.objective.name)
    limit = getattr(model.config, "max_length", None)
    lengths = {f"stages[{i}].length": stage.length for i, stage in enumerate(config.stages)}
    if config.data.eval_length is not None:
        lengths["data.eval_length"] = config.data.eval_length
    for name, length in lengths.items():
        if limit is not None and length > limit:
            raise ConfigError(
                f"{name} is {length:,}, above the longest input of the model, {limit:,}; "
                "shorten it or set model.max_length"
            )
    if config.activation_checkpointing:
        from megabase.models.base import checkpoint_activations

        checkpoint_activations(model, config.checkpointing_stretch)
    return model


def model_writer(model: PreTrainedModel) -> Callable[[Path, Mapping[str, torch.Tensor]], None]:
    """Give a function that writes the model and its tokenizer as a Hugging Face folder."""

    def write(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
        save_language_model(model, folder, state)

    return write


def build_objective(spec: ObjectiveConfig) -> Objective:
    """Build the objective.

    Raises
    ------
    ConfigError
        For an option that the objective does not have.
    """
    make = OBJECTIVES[spec.name]
    given = {
        "soft_mask_weight": spec.soft_mask_weight,
        "special_tokens": spec.special_tokens,
        "include_n": spec.count_n_and_padding,
        "include_padding": spec.count_n_and_padding,
    }
    taken = inspect.signature(make).parameters
    try:
        return make(**{name: given[name] for name in given if name in taken} | spec.options)
    except TypeError as error:
        raise ConfigError(f"objective.options of {spec.name}: {error}") from error


def _build_source(data: DataConfig, store: GenomeStore, seed: int) -> tuple[Split, WindowSource]:
    """Give the split of the genome and the training windows."""
    split = split_genome(
        store,
        include=data.include,
        exclude=data.exclude,
        validation=data.validation,
        test=data.test,
    )
    if data.windows == "random":
        return split, RandomWindows(
            split.train,
            seed=seed,
            reverse_complement=data.reverse_complement,
            max_n_fraction=data.max_n_fraction,
            count_n=partial(count_n, store),
        )
    if data.windows == "tiled":
        return split, TiledWindows(
            split.train, seed=seed, reverse_complement=data.reverse_complement
        )
    return _build_intervals(data, store, split, seed)


def _build_intervals(
    data: DataConfig, store: GenomeStore, split: Split, seed: int
) -> tuple[Split, WindowSource]:
    path = data.intervals or ""
    rows = read_intervals(store, path, "train")
    split = replace(split, train=Regions.of(*rows))
    if not len(split.validation):
        split = replace(split, validation=Regions.of(*read_intervals(store, path, "valid")))
    return split, IntervalWindows(
        rows,
        contig_lengths=np.array([c.length for c in store.contigs], dtype=np.int64),
        seed=seed,
        shift=data.shift,
        reverse_complement=data.reverse_complement,
        padding=data.padding,
    )


def _try_windows(windows: GenomeWindows, schedule: LengthSchedule) -> None:
    """Read one window of every stage, so that a length without windows fails before step 1."""
    for point, _ in schedule.stages():
        windows.batch(point.stage, np.zeros(1, dtype=np.int64), point.length)


def _notes(windows: GenomeWindows, schedule: LengthSchedule, split: Split) -> list[str]:
    """Say what the published way of cutting windows does not prevent."""
    source, notes = windows.source, []
    if isinstance(source, IntervalWindows):
        held_out = split.validation.union(split.test)
        for point, _ in schedule.stages():
            found = source.touching(held_out, point.length, windows.extra)
            if found:
                notes.append(
                    f"{found:,} of {windows.epoch_size(point.length):,} training windows of length "
                    f"{point.length:,} reach into held-out positions, as lengthened intervals may"
                )
    return notes


def _build_validation(config: PretrainConfig, store: GenomeStore, split: Split) -> EvalSet | None:
    if config.eval_every is None or len(split.validation) == 0:
        return None
    objective = (
        CausalLM() if config.objective.name == "causal_lm" else build_objective(config.objective)
    )
    source = TiledWindows(split.validation, seed=_EVAL_SEED, shuffle=True, last="drop")
    data = GenomeWindows(store, source, extra=getattr(objective, "extra_bases", 0))
    length = config.data.eval_length or config.longest
    windows = data.epoch_size(length) or 0
    if windows == 0:
        raise ConfigError(
            f"the validation places hold no window of {length:,} positions; the longest has "
            f"{split.validation.longest:,} bases: set data.eval_length or hold out more"
        )
    if config.data.eval_windows is not None:
        windows = min(windows, config.data.eval_windows)
    return EvalSet(data=data, windows=windows, length=length, objective=objective)


def _largest(
    model: PreTrainedModel, config: PretrainConfig, schedule: LengthSchedule, fabric: Fabric
) -> Estimate:
    """Estimate the memory of the stage that needs most."""
    shape: Any = model.config
    estimates = [
        TrainingStep(
            parameters=count_parameters(model),
            layers=shape.num_hidden_layers,
            width=shape.hidden_size,
            columns=getattr(shape, "vocab_rows", shape.vocab_size),
            micro_batch=point.micro_batch,
            length=point.length,
            half=config.precision != "fp32",
            checkpointing=config.activation_checkpointing,
            segment=config.checkpointing_stretch,
            shards=schedule.world if config.devices.strategy == "fsdp" else 1,
            on_cpu=fabric.device.type == "cpu",
            fused=getattr(shape, "works_piecewise", False),
        ).memory()
        for point, _ in schedule.stages()
    ]
    return max(estimates, key=lambda estimate: estimate.total)
