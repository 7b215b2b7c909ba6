"""Fine-tuning: runs on labeled sequences, put together of tokens, batches, losses and metrics.

Validation chooses the best checkpoint; the test rows are read for their labels at the start and
scored once, with that checkpoint, at the end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from megabase.data.batches import Draw, LabeledBatches, Padding, tokenize
from megabase.data.labeled import IGNORED, ONE_STRAND, LabeledSequences, Ragged
from megabase.data.leaks import leak_hint
from megabase.errors import ConfigError, InputError
from megabase.evaluate import metrics
from megabase.genome import alphabet
from megabase.genome.files import atomic_file
from megabase.models.adapt.build import build_classifier, build_encoder, save_classifier
from megabase.models.auto import load_model
from megabase.models.base import checkpoint_activations
from megabase.models.heads import HEADS
from megabase.objectives.labels import (
    LabelTokens,
    NucleotideLabels,
    SequenceLabels,
    TrackLabels,
    Units,
)
from megabase.settings import HeadConfig, OptimConfig, Stage, StartConfig, TrainConfig
from megabase.tasks.config import FinetuneConfig, LabeledConfig
from megabase.tasks.labeled_data import describe_data, read_splits, split_lines
from megabase.tasks.run import Done, Plan, RunResult, execute, lay_out, write_arrays
from megabase.training.checkpoint import SaveModel
from megabase.training.evaluation import EvalSet, evaluate
from megabase.training.optimizer import build_optimizer

_EVAL_BATCH = 64
"""Most sequences of a validation batch by default: more are not faster and take memory."""
_MONITORS = {
    "classes": "accuracy", "multi_label": "auroc", "nucleotides": "auroc",
    "regression": "pearson", "tracks": "pearson",
}  # fmt: skip
"""What chooses the best checkpoint by default: the metric that the field reports most."""
_SEQUENCES, _BASES, _EPOCHS = 32_000, 2e7, (2, 20)
"""What training reads unless told otherwise: this many sequences (500 steps of 64: on small tables
of GUE the best checkpoints lie at steps 330 to 460), at most this many bases (about half an hour of
two cores with the packaged model), in 2 passes at least, for large tables, and 20 at most."""
_VALIDATIONS = 8  # of a run at least, unless told otherwise: enough to find the best checkpoint
_MOST_CLASSES = 10  # classes that the plan lists: as many as fit a line


class LabeledRun:
    """A run on labeled sequences: what is the same for every model that learns them.

    Reading, metrics and tokens come first; the verb builds its model from them and gives it to
    :meth:`plan`. `task` is the kind of model that the verb needs; None takes the one that fits the
    labels.
    """

    def __init__(self, config: LabeledConfig, start: StartConfig, task: str | None = None) -> None:
        self.start, self.splits = start, read_splits(config)
        self.train = self.splits["train"]
        self._config, self._strands = _choose_strands(config, self.train)
        self.head = self._config.head
        """Settings of the head, with what the rows decide."""
        self.units = _units_of(config, self.splits)
        kind = self.train.kind
        names = list(config.metrics or metrics.default_metrics(kind))
        self.monitor = config.monitor or _MONITORS[kind]
        if self.monitor != "loss" and self.monitor not in names:
            names.append(self.monitor)
        metrics.check(names, kind)
        self.names = tuple(names)
        self.family, self.tokens = build_encoder(
            start,
            self.head,
            task or HEADS[kind][0],
            lambda: (alphabet.decode(self.train.sequence(i)) for i in range(len(self.train))),
            per_base=kind in ("nucleotides", "tracks"),
        )
        self.rows: dict[tuple[str, bool], Ragged] = {}
        """Tokens by split and by strand (True: the reverse complement)."""
        self.longest = 0
        """Most tokens of a sequence."""

    def tokenize(self, limit: int | None = None) -> None:
        """Make the tokens of every split and strand; `limit` is the model's longest input."""
        table, head = self._config.table, self.head
        bases = table.max_length
        room = self.tokens.room(limit) if limit is not None and table.truncate else None
        if room is not None:
            bases = room if bases is None else min(bases, room)
        self.rows = {
            (name, reverse): tokenize(
                split, self.tokens.encode, reverse=reverse, max_bases=bases, max_tokens=limit,
                truncate=table.truncate,
            )
            for name, split in self.splits.items()
            for reverse in (False, True)
            if not reverse
            or (head.reverse_complement if name == "train" else head.strand_average)
        }  # fmt: skip
        self.longest = max(int(found.lengths.max(initial=1)) for found in self.rows.values())

    def plan(
        self, fabric: Fabric, model: Any, save_model: SaveModel, first_lines: Sequence[str], *,
        lengths: str, label_tokens: LabelTokens | None = None, trains: bool = True,
    ) -> Plan:  # fmt: skip
        """Put the plan together; `first_lines` describe the model, `lengths` the sequences.

        `label_tokens` is the loss of an answer by label tokens; None for a head.
        """
        config, splits, head = self._config, self.splits, self.head
        base: Any = getattr(model, "model", model).base_model  # of a soft prompt: the frozen one
        base.padded_side = head.padding
        double = bool(getattr(model.config, "double_sigmoid", False))
        sets = self._batches()
        settings = self._resolved()
        whole = settings.devices.strategy != "fsdp"
        settings = replace(settings, optim=_choose_optimizer(model, settings.optim, whole))
        schedule = lay_out(settings, fabric, sets["train"])
        if config.predictions:
            _check_predictions(splits, schedule.world)
        beyond = int((self.rows["train", False].lengths > settings.longest).sum())
        notes = _notes_of(splits)
        if beyond:
            notes.append(
                f"{beyond:,} of {len(self.train):,} training sequences have more tokens than the "
                f"longest stage, {settings.longest:,}: training never reads their ends"
            )
        lines = [
            *first_lines, _label_line(self.train, self.units), *split_lines(splits),
            f"lengths     {lengths}", self._strands,
        ]  # fmt: skip
        if trains:
            lines += [
                f"budget      {schedule.total_steps:,} steps of {schedule.at(0).global_batch} "
                "sequences",
                f"optimizer   {settings.optim}, precision {settings.precision}",
            ]
        else:
            lines.append("budget      nothing to train: the frozen model is measured as it is")
        monitor = self.monitor if trains and "valid" in splits else "none"
        if monitor != "none":
            lines.append(
                f"validation  every {settings.eval_every} steps; {monitor} chooses the best"
            )
        facts = {
            "parameters": sum(p.numel() for p in model.parameters()), "kind": self.train.kind,
            "classes": list(self.train.classes), "monitor": monitor,
        }  # fmt: skip
        return Plan(
            settings=settings, family=self.family, model=model, batches=sets["train"],
            objective=label_tokens or _objective_of(self.train, head, double, self.units),
            evaluations={
                name: self._evaluation(split, sets[name], double, label_tokens)
                for name, split in splits.items()
                if name != "train"
            },
            schedule=schedule, save_model=save_model, splits=splits, lines=lines, notes=notes,
            data=describe_data(splits, self.start.trained), hints=(leak_hint(splits),),
            trains=trains, facts=facts,
        )  # fmt: skip

    def _batches(self) -> dict[str, LabeledBatches]:
        config, head = self._config, self.head
        return {
            name: LabeledBatches(
                self.rows[name, False],
                split.along if split.kind in ("nucleotides", "tracks") else split.labels,
                padding=Padding(self.tokens.pad_id, head.padding == "left", head.pad_to_longest),
                draw=Draw(
                    seed=config.seed,
                    shuffle=name == "train",
                    block=config.global_batch or 1,
                    reverse_probability=(head.reverse_complement or 0.0)
                    if name == "train"
                    else 0.0,
                    crop=head.crop if name == "train" else 1.0,
                ),
                reverse=self.rows.get((name, True)),
                both_strands=name != "train" and bool(head.strand_average),
                bin=split.bin,
            )
            for name, split in self.splits.items()
        }

    def _resolved(self) -> TrainConfig:
        """Give what the loop reads, with what depends on the data: length, steps of an epoch."""
        config = self._config
        stages = config.stages
        rows, epochs = len(self.train), None
        if not stages:
            if config.steps is None and config.tokens is None:
                epochs = config.epochs or self._passes()
            stages = (Stage(length=self.longest, micro_batch=config.micro_batch, epochs=epochs),)
        by_tokens = max(1, int(config.global_batch_tokens or 1) // self.longest)
        batch = config.global_batch or by_tokens
        every = 1 if epochs is None else math.ceil(_VALIDATIONS / epochs)
        return config.part(
            TrainConfig,
            stages=stages,
            eval_every=config.eval_every or -(-rows // batch // every),
            eval_batch=config.eval_batch or config.micro_batch or min(batch, _EVAL_BATCH),
        )

    def _passes(self) -> float:
        """Give the epochs of a run that names none: by rows and their length."""
        read = min(_SEQUENCES, _BASES / float(self.train.lengths.mean()))
        low, high = _EPOCHS
        return float(np.clip(round(read / len(self.train), 1), low, high))

    def _evaluation(
        self, split: LabeledSequences, data: LabeledBatches, double_sigmoid: bool,
        label_tokens: LabelTokens | None,
    ) -> EvalSet:  # fmt: skip
        """Give what measures a split: plain loss, and metrics over the whole of it."""
        names = self.names
        common: dict[str, Any] = {
            "data": data, "windows": len(split), "length": self.longest, "monitor": self.monitor,
            "higher": metrics.higher_is_better(self.monitor),
        }  # fmt: skip
        if split.kind == "nucleotides":
            return EvalSet(
                objective=NucleotideLabels(tabulate=True),
                metrics=lambda table: metrics.measure_table(names, split.outputs, table),
                **common,
            )
        if self.units is not None:
            objective: Any = SequenceLabels("regression", units=self.units)
            if split.kind == "tracks":
                objective = TrackLabels(self.units, width=self.longest // split.bin)
            measure = partial(metrics.measure_numbers, names, split)
            return EvalSet(objective=objective, metrics=measure, **common)
        if label_tokens is None:
            return EvalSet(
                objective=SequenceLabels(cast("Any", split.kind), double_sigmoid=double_sigmoid),
                metrics=lambda outputs: metrics.measure(names, split.kind, outputs, split.labels),
                **common,
            )
        measure = answer_metrics(names, split, label_tokens.label_ids)
        return EvalSet(objective=label_tokens, metrics=measure, **common)


def _choose_strands(config: LabeledConfig, train: LabeledSequences) -> tuple[LabeledConfig, str]:
    """Decide how strands are used where the settings leave it open, and say so."""
    head, why = config.head, ""
    share, average = head.reverse_complement, head.strand_average
    if share is None and train.kind in ("nucleotides", "tracks"):
        # Features of either strand are as true of the other one; tracks may be of one strand.
        share = 0.5 if config.genome.features and config.genome.strand == "either" else 0.0
    elif share is None:
        found = train.oriented()
        share = 0.0 if found >= ONE_STRAND else 0.5
        why = f" (k-mers of the two strands differ by {found:.1%})"
    average = share > 0 if average is None else average
    line = (
        "strands     "
        + (f"{share:.0%} of the training rows reversed" if share else "training rows as they are")
        + ("; answers are means of both strands" if average else "")
        + why
    )
    return replace(
        config, head=replace(head, reverse_complement=share, strand_average=average)
    ), line


def _choose_optimizer(model: nn.Module, optim: OptimConfig, whole: bool) -> OptimConfig:
    """Name Muon where it has matrices to take, `whole` on each device, and AdamW elsewhere."""
    if optim.name is not None:
        return optim
    muon = replace(optim, name="muon")
    try:
        build_optimizer(model, muon)
    except ConfigError:  # it has none
        whole = False
    return muon if whole else replace(optim, name="adamw")


def _units_of(config: LabeledConfig, splits: Mapping[str, LabeledSequences]) -> Units | None:
    """Give the units of numbers whose loss or scale the settings name, and of tracks."""
    head, genome, train = config.head, config.genome, splits["train"]
    plain = head.loss is None and head.scale == "linear"
    if train.kind not in ("regression", "tracks"):
        if not plain:
            what = f"head.loss {head.loss}" if head.loss else f"head.scale {head.scale}"
            raise ConfigError(f"{what} is for numbers, but the labels are {train.kind}")
        return None
    if plain and train.kind == "regression":
        return None
    for split in splits.values() if head.loss == "poisson" or head.scale == "log1p" else ():
        low = np.argwhere(split.labels < 0)
        if len(low):
            row, column = low[0].tolist()
            value, name = split.labels[row, column], split.classes[column]
            if split.kind == "tracks":
                row = int(np.searchsorted(split.along.offsets, row, "right")) - 1
            raise InputError(
                f"{split.where(row)}: {name} is {value:g}; head.loss poisson and head.scale log1p "
                f"are for counts, and {len(low):,} numbers are below 0"
            )
    tracks = {} if train.kind == "regression" else {"bin": train.bin, "statistic": genome.statistic}
    loss, names = head.loss or "mse", train.classes
    return Units.fit(loss, head.scale, train.labels, names, **tracks)


def answer_metrics(
    names: Sequence[str], rows: LabeledSequences, ids: Sequence[int]
) -> Callable[[np.ndarray], dict[str, float]]:
    """Give what measures answers by label tokens, whose columns of the outputs are `ids`.

    The published accuracy, ``strict_accuracy``, demands that the answer wins among all tokens.
    """
    columns = np.asarray(ids)
    return lambda outputs: {
        **metrics.measure(names, rows.kind, outputs[:, columns], rows.labels),
        "strict_accuracy": float((outputs.argmax(axis=1) == columns[rows.labels]).mean()),
    }


def _notes_of(splits: Mapping[str, LabeledSequences]) -> list[str]:
    if "valid" not in splits:
        return ["no validation rows: the last checkpoint is measured"]
    read = [(s.text.source, s.text.intervals) for name, s in splits.items() if name != "train"]
    if len(read) < 2 or read[0] != read[1]:
        return []
    return [
        "validation and test are the same file: the checkpoint is chosen on the test rows, so "
        "the test figures are too good"
    ]


def _label_line(train: LabeledSequences, units: Units | None) -> str:
    counts = [f"{name} {n:,}" for name, n in train.class_counts().items()]
    classes = ", ".join(counts[:_MOST_CLASSES]) + ", ..." * (len(counts) > _MOST_CLASSES)
    return (
        f"labels      {train.kind}: {train.outputs} "
        + (f"({classes})" if counts else "numbers")
        + (", in bases" if train.kind == "nucleotides" else "")
        + ("" if units is None else f" ({', '.join(train.classes)}), {units.said(train.kind)}")
    )


def _objective_of(
    train: LabeledSequences, head: HeadConfig, double_sigmoid: bool, units: Units | None
) -> SequenceLabels | NucleotideLabels | TrackLabels:
    weights = head.class_weights
    if weights == "balanced":
        weights = _balanced_weights(train.class_counts())
    if weights is not None and len(weights) != train.outputs:
        raise ConfigError(
            f"head.class_weights has {len(weights)} numbers, but there are {train.outputs} "
            f"classes: {', '.join(train.classes)}"
        )
    smoothing = head.label_smoothing
    if train.kind == "tracks" and units is not None:
        if weights is not None or smoothing:
            raise ConfigError("head.class_weights and head.label_smoothing are not for tracks")
        return TrackLabels(units)
    if train.kind == "nucleotides":
        return NucleotideLabels(class_weights=weights, label_smoothing=smoothing)
    return SequenceLabels(
        cast("Any", train.kind), class_weights=weights, label_smoothing=smoothing,
        double_sigmoid=double_sigmoid, units=units,
    )  # fmt: skip


def _balanced_weights(counts: Mapping[str, int]) -> list[float]:
    """Give every class the weight n / (classes * its examples), so that all weigh the same."""
    for name, count in counts.items():
        if not count:
            raise ConfigError(
                "head.class_weights is balanced, but no training example is of the class "
                f"{name!r}; give the weights as numbers"
            )
    total = sum(counts.values())
    return [total / (len(counts) * count) for count in counts.values()]


def _check_predictions(splits: Mapping[str, LabeledSequences], world: int) -> None:
    text = splits["test"].text if "test" in splits else None
    if splits["train"].kind != "nucleotides" or text is None or text.intervals is None:
        raise ConfigError(
            "predictions are written for labels of nucleotides on a genome with test places "
            "(genome.test); leave predictions out"
        )
    if world > 1:
        raise ConfigError(
            f"predictions are written by one process, and this run has {world}; leave them out"
        )


def measure_splits(
    config: LabeledConfig, done: Done, model: nn.Module, columns: Sequence[int] | None = None
) -> dict[str, dict[str, float]]:
    """Give loss and metrics of each split with the chosen model, and write its outputs.

    `columns` are the outputs that stand for the classes, None for all in order.
    """
    plan = done.plan
    found: dict[str, dict[str, float]] = {}
    kept: dict[str, np.ndarray] = {}
    for name, windows in plan.evaluations.items():
        split = plan.splits[name]
        said, left = None, config.head.padding == "left"
        if config.predictions and name == "test":
            said = _NucleotidePredictions(split, left=left)
        windows = replace(windows, on_batch=said)
        if windows.metrics is not None and getattr(windows.objective, "units", None) is not None:
            windows = replace(windows, metrics=partial(cast("Any", windows.metrics), detail=True))
        scored = evaluate(model, windows, plan.settings.eval_batch or 1, done.fabric)
        if said is not None:
            said.write(done.run / "predictions.parquet")
        found[name] = {"loss": scored.loss, **scored.metrics}
        if scored.outputs is not None and split.kind != "tracks":
            outputs = scored.outputs if columns is None else scored.outputs[:, columns]
            kept |= {name: outputs, f"{name}_labels": split.labels}
    if done.fabric.global_rank == 0 and kept:
        write_arrays(done.run / "outputs.npz", kept)
    return found


class _NucleotidePredictions:
    """Collects the class probabilities of every labeled base of a genome, and writes them.

    `left` says whether the rows of a batch are padded on the left.
    """

    def __init__(self, windows: LabeledSequences, *, left: bool = False) -> None:
        self._windows, self._left = windows, left
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def __call__(self, rows: NDArray[np.int64], found: Any) -> None:
        """Take the ``outputs`` (n, length, K) of the windows with these numbers."""
        windows = self._windows
        probabilities = found.outputs.softmax(dim=2).float().cpu().numpy()
        width = probabilities.shape[1]
        for row, values in zip(rows.tolist(), probabilities, strict=True):
            size = min(int(windows.lengths[row]), width)
            start = width - size if self._left else 0
            interval = (windows.text.intervals or ())[int(windows.rows[row])]
            first = int(windows.offsets[row])
            truth = windows.labels[first : first + size]
            known = np.flatnonzero(truth != IGNORED)
            contig = np.repeat(np.array([interval.contig]), len(known))
            part = contig, interval.start + known, truth[known], values[start + known]
            self._parts.append(part)

    def write(self, path: Path) -> None:
        """Write a row for each labeled base: contig, 0-based position, label and p_CLASS."""
        classes = self._windows.classes
        contigs, positions, labels, table = map(np.concatenate, zip(*self._parts, strict=True))
        frame = pl.DataFrame({
            "contig": contigs, "position": positions, "label": np.array(classes)[labels],
            **{f"p_{name}": table[:, i] for i, name in enumerate(classes)},
        })  # fmt: skip
        with atomic_file(path, overwrite=True) as file:
            frame.write_parquet(file)


def finetune(
    config: FinetuneConfig, *, dry_run: bool = False, console: Console | None = None
) -> RunResult | None:
    """Train a model on labeled sequences and measure it.

    A `dry_run` stops after the plan, before anything is written, and gives None; plan and progress
    are shown on `console`. The result has ``parameters`` of the model (tied ones once), ``kind``,
    ``classes``, ``epochs`` over the training rows, ``monitor`` that chose the checkpoint,
    ``training_seconds`` of the steps, ``tokens_per_second`` of them (padding left out), and
    ``bases_per_second``, of sequences of average length: comparable between tokenizers.

    Raises
    ------
    MegabaseError
        For settings, data, a model or a folder that cannot be used, too many non-finite steps, or a
        checkpoint that cannot be written.
    """
    return execute(config, _plan, _conclude, dry_run=dry_run, console=console)


def _plan(config: FinetuneConfig, fabric: Fabric) -> Plan:
    """Build everything a run needs and describe it; writes nothing."""
    start, lora = config.part(StartConfig), config.lora
    run = LabeledRun(config, start)
    run.tokenize()
    torch.manual_seed(config.seed)
    kind, classes = run.train.kind, run.train.classes
    model: Any = build_classifier(
        start, run.head, lora, run.family, kind, classes, run.tokens, run.longest
    )
    vars(model.config).pop("units", None)  # of the run that the weights come from
    if run.units is not None:
        model.config.units = asdict(run.units)
    if config.activation_checkpointing:
        checkpoint_activations(model, config.checkpointing_stretch)
    limit = getattr(model.config, "max_length", None)
    if limit is not None and run.longest > limit:
        run.tokenize(limit)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    bases, tokenizer = run.train.lengths, run.tokens.tokenizer
    line = (
        f"model       {run.family}, {parameters:,} parameters"
        + (f", {trained:,} of them trained" if trained < parameters else "")
        + f", from {start.trained or 'fresh weights'}; tokenizer {type(tokenizer).__name__}"
    )
    return run.plan(
        fabric,
        model,
        lambda folder, state: save_classifier(model, tokenizer, folder, state, lora, start.model),
        [line],
        lengths=f"{int(bases.min()):,} to {int(bases.max()):,} bases, "
        f"{run.longest:,} tokens at most",
    )


def _conclude(config: FinetuneConfig, done: Done) -> RunResult:
    """Score valid and test with the chosen checkpoint, read back from its folder."""
    plan, metrics = done.plan, {}
    if not done.stopped and plan.evaluations:
        model = load_model(done.chosen, device=done.fabric.device)
        metrics = measure_splits(config, done, model)
    batches, stages = cast("LabeledBatches", plan.batches), done.drawn()
    tokens = sum(batches.token_count(stage, 0, count, length) for stage, length, count in stages)
    bases = sum(count for *_, count in stages) * float(plan.splits["train"].lengths.mean())
    seconds = done.outcome.progress.seconds or math.inf  # nothing is trained in no time
    return RunResult.of(
        done, metrics, epochs=done.epochs, tokens_per_second=tokens / seconds,
        bases_per_second=bases / seconds,
    )  # fmt: skip
