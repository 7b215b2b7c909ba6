"""Soft prompts: vectors are learnt beside the sequences while the model stays as it is.

Validation chooses the best prompt; the test rows are read for their labels at the start and scored
once, with that prompt, at the end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.data.leaks import overlap_hint
from megabase.errors import ConfigError
from megabase.genome.files import write_json, write_whole
from megabase.ops.kernels import slower_than_possible
from megabase.tasks.digests import start_of
from megabase.tasks.finetune import describe_data, measure_splits
from megabase.tasks.finetune_data import read_splits
from megabase.tasks.prompt_config import PromptConfig, to_yaml
from megabase.tasks.prompt_plan import PromptPlan, plan_prompt
from megabase.training.engine import FitResult, fit
from megabase.training.process import build_fabric
from megabase.training.run_folder import check_run, finished_result, own_folder, started_run

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from rich.console import Console

__all__ = ["PromptResult", "learn_prompt", "prompt_lengths", "prompt_table"]


@dataclass(frozen=True)
class PromptResult:
    """What a run came to; written to ``result.json``."""

    run: str
    """Run folder; its ``prompt`` is the saved prompt."""
    model: str
    """Name of the frozen model."""
    family: str
    """Its family."""
    length: int
    """Vectors of the prompt."""
    position: str
    """Where they are."""
    answer: str
    """label_tokens or head."""
    parameters: int
    """Numbers of the frozen model."""
    trained_parameters: int
    """Numbers of the prompt and its head."""
    prompt_bytes: int
    """Size of the saved prompt."""
    kind: str
    """What the labels are."""
    classes: list[str]
    """Names of the outputs."""
    rows: dict[str, int]
    """Sequences of each split."""
    steps: int
    """Optimizer steps done."""
    epochs: float
    """The same in passes over the training rows."""
    best_step: int | None
    """Step of the prompt that was measured; None without validation or training."""
    monitor: str
    """What chose it."""
    training_seconds: float
    """Time of the training steps."""
    seconds: float
    """Time of the whole call."""
    valid: dict[str, float] = field(default_factory=dict)
    """Loss and metrics of the validation rows."""
    test: dict[str, float] = field(default_factory=dict)
    """Loss and metrics of the test rows."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers has to know."""
    signal: int | None = None
    """Signal that stopped the run early; then nothing was measured."""


def learn_prompt(
    config: PromptConfig, *, dry_run: bool = False, console: Console | None = None
) -> PromptResult | None:
    """Learn a prompt for a frozen model and measure it.

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
    PromptResult or None
        None after a dry run.

    Raises
    ------
    MegabaseError
        For settings, data, a model or a folder that cannot be used, too many non-finite steps, or a
        checkpoint that cannot be written.
    """
    started = time.perf_counter()
    resolved = to_yaml(config)
    changes = check_run(config, resolved)
    fabric = build_fabric(config.devices, config.precision)
    if not dry_run:
        fabric.launch()
    plan = plan_prompt(config, fabric)
    show = console if fabric.global_rank == 0 else None
    if show is not None:
        show.print(plan.text, markup=False, highlight=False, soft_wrap=True)
        for change in changes:
            show.print(f"resumed with another setting: {change}", markup=False, highlight=False)
        for hint in (slower_than_possible(plan.model, fabric.device), overlap_hint(plan.splits)):
            if hint is not None:
                show.print(hint, markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        return None
    with started_run(config, resolved, fabric, describe_data(plan.splits, start_of(config))) as run:
        return _run(plan, run, fabric, show, started)


def _run(
    plan: PromptPlan, run: Path, fabric: Fabric, show: Console | None, started: float
) -> PromptResult:
    outcome = _train(plan, run, fabric, show)
    if outcome is not None and outcome.signal is not None:
        return _result(plan, outcome, {}, run, time.perf_counter() - started)
    _keep_best(plan, run, fabric, outcome)
    figures = _measure(plan, run, fabric)
    result = _result(plan, outcome, figures, run, time.perf_counter() - started)
    if fabric.global_rank == 0:
        write_json(run / "result.json", vars(result))
    return result


def _train(
    plan: PromptPlan, run: Path, fabric: Fabric, console: Console | None
) -> FitResult | None:
    """Fit the prompt; None when it has no numbers to fit."""
    if not plan.model.trained_parameters:
        plan.model.to(fabric.device)
        return None
    return fit(
        plan.model,
        plan.objective,
        plan.batches,
        plan.config,
        fabric=fabric,
        save_model=lambda folder, state: _save(plan, folder, state),
        validation=plan.evaluations.get("valid"),
        console=console,
    )


def _save(plan: PromptPlan, folder: Path, state: Mapping[str, Any] | None = None) -> None:
    from megabase.models.adapt.prompt import save_prompt

    model = str(plan.config.model)
    name = str(Path(model).absolute()) if Path(model).exists() else model
    head = plan.config.head
    facts = {
        "padding": head.padding,
        "strand_average": head.strand_average,
        "reverse_complement": head.reverse_complement,
        "longest": plan.batches.longest,
    }
    save_prompt(plan.model, folder, model=name, state=state, facts=facts)


def _keep_best(plan: PromptPlan, run: Path, fabric: Fabric, outcome: FitResult | None) -> None:
    """Copy the chosen prompt to ``run/prompt``, without the training state beside it."""
    from megabase.models.adapt.prompt import PROMPT_FILES

    if fabric.global_rank == 0:
        target = run / "prompt"
        target.mkdir(exist_ok=True)
        if outcome is None:
            _save(plan, target)
        else:
            best = run / "best"
            source = best if "valid" in plan.evaluations and best.is_dir() else run / "last"
            for name in PROMPT_FILES:
                write_whole(target / name, (source / name).read_bytes())
    fabric.barrier()


def _measure(plan: PromptPlan, run: Path, fabric: Fabric) -> dict[str, dict[str, float]]:
    """Score valid and test with the saved prompt, read back from its folder."""
    from megabase.models.adapt.prompt import load_prompt

    model = load_prompt(run / "prompt", plan.model.model)
    spec = model.spec
    columns = list(spec.label_ids) if spec.answer == "label_tokens" else None
    return measure_splits(model, plan.evaluations, plan.splits, plan.config, run, fabric, columns)


def _result(
    plan: PromptPlan,
    outcome: FitResult | None,
    figures: Mapping[str, dict[str, float]],
    run: Path,
    seconds: float,
) -> PromptResult:
    from megabase.models.adapt.prompt import prompt_bytes

    train, spec = plan.splits["train"], plan.model.spec
    steps = outcome.progress.step if outcome is not None else 0
    done, sequences = 0, 0
    for point, count in plan.schedule.stages():
        count = min(count, steps - done)
        sequences += count * point.global_batch
        done += count
    valid = plan.evaluations.get("valid")
    return PromptResult(
        run=plan.config.output,
        model=str(plan.config.model),
        family=plan.family,
        length=spec.length,
        position=spec.position,
        answer=spec.answer,
        parameters=sum(p.numel() for p in plan.model.model.parameters()),
        trained_parameters=plan.model.trained_parameters,
        prompt_bytes=prompt_bytes(run / "prompt") if (run / "prompt").is_dir() else 0,
        kind=train.kind,
        classes=list(train.classes),
        rows={name: len(split) for name, split in plan.splits.items()},
        steps=steps,
        epochs=sequences / len(plan.batches),
        best_step=outcome.progress.best_step if outcome is not None and valid is not None else None,
        monitor=valid.monitor if outcome is not None and valid is not None else "none",
        training_seconds=outcome.progress.seconds if outcome is not None else 0.0,
        seconds=seconds,
        valid=figures.get("valid", {}),
        test=figures.get("test", {}),
        notes=plan.notes,
        signal=outcome.signal if outcome is not None else None,
    )


def prompt_lengths(
    config: PromptConfig,
    lengths: Sequence[int],
    *,
    dry_run: bool = False,
    console: Console | None = None,
) -> list[PromptResult]:
    """Learn a prompt of each length, in ``OUTPUT/length-N``, and write one table of them.

    With ``resume``, finished lengths are kept and the others go on or start.

    Parameters
    ----------
    config
        Settings; its own length is not used.
    lengths
        Different whole numbers, 0 allowed.
    dry_run
        Only show the plans.
    console
        Where to show plans and progress.

    Returns
    -------
    list of PromptResult
        In the order of the lengths; shorter when a signal stopped one (the last). Otherwise
        ``OUTPUT/result.json`` and ``OUTPUT/table.md`` hold all of them.

    Raises
    ------
    ConfigError
        Before anything runs, when a folder is taken or a length is negative.
    """
    runs: list[PromptConfig] = []
    for length in dict.fromkeys(lengths):
        folder = Path(config.output) / f"length-{length}"
        started = (folder / "config.yaml").is_file()
        settings = replace(config.prompt, length=length)
        one = replace(config, prompt=settings, output=str(folder), resume=config.resume and started)
        check_run(one, to_yaml(one))
        runs.append(one)
    if not runs:
        raise ConfigError("lengths is empty; give one or more whole numbers")
    with contextlib.nullcontext() if dry_run else own_folder(Path(config.output)):
        return _run_all(config, runs, dry_run, console)


def _run_all(
    config: PromptConfig, runs: Sequence[PromptConfig], dry_run: bool, console: Console | None
) -> list[PromptResult]:
    results: list[PromptResult] = []
    for one in runs:
        finished = _finished(one) if one.resume else None
        result = finished or learn_prompt(one, dry_run=dry_run, console=console)
        if result is None:
            continue
        results.append(result)
        if result.signal is not None:
            return results
    if results:
        output = Path(config.output)
        write_json(output / "result.json", {"runs": [vars(r) for r in results]})
        write_whole(output / "table.md", prompt_table(results))
    return results


def _finished(config: PromptConfig) -> PromptResult | None:
    found = finished_result(
        Path(config.output),
        to_yaml(config),
        lambda: describe_data(read_splits(config), start_of(config)),
    )
    return None if found is None else PromptResult(**found)


def prompt_table(results: Sequence[PromptResult]) -> str:
    """Write results as a Markdown table, one row for each length.

    It holds nothing that differs between two equal runs, such as times.
    """
    splits = [name for name in ("valid", "test") if getattr(results[0], name)]
    columns = [(split, name) for split in splits for name in getattr(results[0], split)]
    head = ["vectors", "parameters trained", "bytes saved", "steps"]
    head += [f"{split} {name}" for split, name in columns]
    lines = [f"| {' | '.join(head)} |", f"|{' ---: |' * len(head)}"]
    for result in results:
        cells = [f"{result.length}", f"{result.trained_parameters:,}",
                 f"{result.prompt_bytes:,}", f"{result.steps:,}"]  # fmt: skip
        cells += [f"{getattr(result, split)[name]:.4f}" for split, name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
