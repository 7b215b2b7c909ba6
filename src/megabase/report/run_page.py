"""The page of a training run: what was learned, how well, against which baselines, from what."""

import math
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from megabase.errors import ReportError
from megabase.genome.files import check_output, write_whole
from megabase.report import style
from megabase.report.plots import (
    best_baseline,
    draw_baselines,
    draw_context_curve,
    draw_learning_curve,
)
from megabase.training.run_folder import RunFolder
from megabase.untrusted import read_json

Record = dict[str, Any]


@dataclass(frozen=True)
class _RunRecord:
    """Contents of a run folder, and ``config.json`` of its best checkpoint, or the last."""

    folder: Path
    config: Record
    data: Record
    environment: Record
    metrics: tuple[Record, ...]
    model: Record
    parameters: int
    optimizer: str
    checkpoint: str
    result: Record
    """``result.json`` of a run on labeled sequences; empty of pretraining."""

    def of_kind(self, kind: str) -> list[Record]:
        return [record for record in self.metrics if record.get("kind") == kind]


def _read_run(folder: str | Path) -> _RunRecord:
    run = Path(folder)
    if not run.is_dir():
        raise ReportError(f"{run}: there is no such run folder")
    trained = (run / "metrics.jsonl").is_file()
    if (run / "prompt").is_dir() or ((run / "result.json").is_file() and not trained):
        raise ReportError(
            f"{run} trained no model: pages are of `megabase pretrain` and `finetune`; its numbers "
            f"are in {run / 'result.json'}"
        )
    if not trained:
        raise ReportError(
            f"{run} is not a run folder: it has no metrics.jsonl; name the folder that "
            "`megabase pretrain` or `finetune` wrote to"
        )
    reader = RunFolder(run, ReportError)
    metrics = reader.metrics()
    if not any(record.get("kind") == "train" for record in metrics):
        raise ReportError(f"{run / 'metrics.jsonl'} holds no training step yet")
    data = reader.record("data.json")
    labeled = "genome" not in data
    if labeled and not (run / "result.json").is_file():
        raise ReportError(f"{run} holds no result.json yet; finish the run with resume=True")
    config = reader.config()
    best = reader.checkpoint()
    if best is None:
        raise ReportError(f"{run} holds no checkpoint yet (neither best nor last)")
    return _RunRecord(
        run, config, data, reader.record("environment.json"), tuple(metrics),
        read_json(best / "config.json", ReportError), reader.parameters(best),
        config.get("optim", {}).get("name") or reader.optimizer(best), best.resolve().name,
        reader.record("result.json") if labeled else {},
    )  # fmt: skip


def _read_evaluation(path: str | Path) -> Record:
    """Read the JSON of an evaluation; a :class:`ReportError` for any other file."""
    record = read_json(path, ReportError)
    if record.get("kind") != "evaluation":
        raise ReportError(
            f"{path} is not an evaluation (kind {record.get('kind')!r}); "
            "`megabase evaluate -o FILE.json` writes one"
        )
    return record


def write_run_page(
    run: str | Path, output: str | Path | None = None, evaluation: str | Path | None = None, *,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write the page of a run of ``megabase pretrain`` or ``finetune`` and give its path.

    `output` is by default ``report.html`` in the run folder; `evaluation`, the JSON of ``megabase
    evaluate``, is ``evaluation.json`` there, if it exists, and of pretraining alone. A
    :class:`ReportError` when something cannot be read or written, or the page exists.
    """
    style.require_matplotlib()
    target = Path(output) if output is not None else Path(run) / "report.html"
    record = _read_run(run)
    check_output(target, overwrite)
    if record.result and evaluation is not None:
        raise ReportError(f"{run} is a run on labeled sequences, which have no evaluation")
    found = Path(evaluation) if evaluation is not None else record.folder / "evaluation.json"
    measured = _read_evaluation(found) if evaluation is not None or found.is_file() else None
    write_whole(target, _build_run_page(record, measured), overwrite)
    return target


def _build_run_page(run: _RunRecord, evaluation: Record | None) -> str:
    labeled = bool(run.result)
    on = Path(run.data["train"]["source"]).name if labeled else run.data["genome"]["name"]
    title = f"{_family_name(run)} on {on}"
    version = (evaluation or {}).get("version") or run.environment.get("megabase", "")
    measured = [_metrics_section(run)] if labeled else []
    if evaluation is not None:
        measured = [_context(evaluation), _baselines(evaluation), _breakdown(run, evaluation)]
    return style.document(
        f"{title} - megabase",
        [
            f'<header><p class="kicker">megabase training run</p><h1>{escape(title)}</h1>',
            f'<p class="lead">{escape(_verdict(run, evaluation))}</p></header>',
            style.statistics(_headline(run, evaluation)),
            _learning(run),
            *measured,
            _labels_section(run) if labeled else _data_section(run),
            _settings_section(run),
            f"<footer>Made by megabase {escape(str(version))} from the run folder "
            f"<code>{escape(run.folder.name)}</code>. This page asks no other host.</footer>",
        ],
    )


def _chosen(run: _RunRecord) -> tuple[str, str, str] | None:
    """Give the metric that chose the checkpoint (else the first), its value, and of what."""
    for split, shown in (("test", "test"), ("valid", "validation")):
        if found := run.result.get(split):
            name = str(run.result.get("monitor"))
            name = name if name in found else next(iter(found))
            return name, _metric(found[name]), f"{run.result['rows'][split]:,} {shown} sequences"
    return None


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _metrics_section(run: _RunRecord) -> str:
    splits = [name for name in ("valid", "test") if run.result.get(name)]
    names = dict.fromkeys(name for split in splits for name in run.result[split])
    rows = [(name, *(_metric(run.result[s].get(name)) for s in splits)) for name in names]
    heads = {"valid": "validation", "test": "test"}
    head = [f"{heads[name]} ({run.result['rows'][name]:,})" for name in splits]
    return style.section("Metrics", [style.table(["metric", *head], rows)]) if splits else ""


def _verdict(run: _RunRecord, evaluation: Record | None) -> str:
    if run.result:
        if (chosen := _chosen(run)) is None:
            return "This run had neither validation nor test sequences: nothing was measured."
        beside = "No baseline was trained beside it; megabase benchmark does that."
        return f"On {chosen[2]}: {chosen[0]} {chosen[1]}. {beside}"
    if evaluation is None:
        return (
            "This run has not been evaluated on held-out DNA yet; megabase evaluate does that. "
            "What follows is what training itself recorded."
        )
    model, baseline = evaluation["overall"], best_baseline(evaluation)
    held = evaluation["train_overlap"] == 0 or not _same_genome(run, evaluation)
    kind = "held-out bases" if held else "bases, not all of them held out,"
    text = (
        f"On {model['targets']:,} {kind} the model is as uncertain as if it had to choose "
        f"among {model['perplexity_acgt']:.3f} equally likely bases."
    )
    if baseline is None or baseline["order"] is None:
        return text + " No Markov model was trained beside it."
    name = baseline["name"].replace("Markov order", "a Markov model of order", 1)
    name = name.replace(", fitted", " with fitted rates")
    reference = f"the best baseline, {name} ({baseline['measure']['perplexity_acgt']:.3f})"
    margin, error = baseline["margin_nats"], baseline["margin_nats_se"] or 0.0
    if margin > 0 or abs(margin) <= 2 * error:
        how = "level with" if abs(margin) <= 2 * error else "better than"
        return f"{text} That is {how} {reference}."
    return (
        f"{text} That is worse than {reference}: counting k-mers in the training data predicts "
        "this DNA better than the model does."
    )


def _same_genome(run: _RunRecord, evaluation: Record) -> bool:
    return evaluation["genome_checksum"] == run.data["genome"]["sha256"]


def _plus_minus(measure: Record) -> str:
    error = measure["perplexity_acgt_se"]
    return "" if error is None else f"\u00b1 {error:.3f}"


def _with_error(measure: Record) -> str:
    return f"{measure['perplexity_acgt']:.3f} {_plus_minus(measure)}".strip()


def _headline(run: _RunRecord, evaluation: Record | None) -> list[tuple[str, str, str]]:
    last = run.of_kind("train")[-1]
    items: list[tuple[str, str, str]] = []
    if (chosen := _chosen(run)) is not None:
        items.append((chosen[1], "", f"{chosen[0]}, {chosen[2]}"))
    if evaluation is not None:
        model, baseline = evaluation["overall"], best_baseline(evaluation)
        what = "perplexity over A,\u00a0C,\u00a0G,\u00a0T"
        items.append((f"{model['perplexity_acgt']:.3f}", _plus_minus(model), what))
        if baseline is not None:
            value = f"{baseline['measure']['perplexity_acgt']:.3f}"
            items.append((value, "", f"best baseline: {baseline['name']}"))
    seen = f"tokens seen in {style.duration(last['seconds'])}"
    items.append((_short_number(run.parameters), "", "parameters"))
    return [*items, (_short_number(last["tokens"]), "", seen)]


def _learning(run: _RunRecord) -> str:
    train, validation = run.of_kind("train"), run.of_kind("validation")
    language = not run.result
    what = "Perplexity is exp of the mean loss over all columns of the vocabulary. "
    caption = what if language else "The loss is a mean over the labels. "
    caption += "Grey is training: single steps thin, their running median thick; "
    held = "windows, which training never reads" if language else "sequences"
    held = f"blue is the mean over the fixed validation {held}. "
    caption += held if validation else "this run had no validation. "
    several = len({record["length"] for record in train}) > 1
    if several:
        caption += (
            "Bands are the stages of the length warm-up: short sequences have less context, so the "
            "training line is not comparable across bands; the validation line is. "
        )
    skipped = len(run.of_kind("skipped"))
    if skipped:
        caption += f"{skipped} steps with a loss that was not finite were skipped. "
    first, last = (math.exp(x["loss"]) if language else x["loss"] for x in (train[0], train[-1]))
    what = "perplexity" if language else "loss"
    seen = f"Training {what} against tokens seen goes from {first:.2f} to {last:.3f}."
    draw = partial(draw_learning_curve, run.metrics, perplexity=language)
    curve = style.figure(draw, seen, caption.strip())
    stages = _stage_table(train, validation) if validation and several else ""
    return style.section("Learning curve", [curve, stages])


def _stage_table(train: list[Record], validation: list[Record]) -> str:
    rows: list[list[str]] = []
    before = {"tokens": 0, "seconds": 0.0, "step": 0}
    for stage in dict.fromkeys(record["stage"] for record in train):
        last = [record for record in train if record["stage"] == stage][-1]
        checks = [v for v in validation if before["step"] < v["step"] <= last["step"]]
        rows.append([
            f"{stage + 1}", f"{last['length']:,}", _short_number(last["tokens"] - before["tokens"]),
            style.duration(last["seconds"] - before["seconds"]),
            f"{math.exp(checks[-1]['loss']):.3f}" if checks else "-",
        ])  # fmt: skip
        before = last
    return style.table(["stage", "length", "tokens", "time", "validation after"], rows)


def _context(evaluation: Record) -> str:
    if not evaluation["context"]:
        return ""
    points = evaluation["context"]
    first, last = points[0], points[-1]
    width = first["context"] - first["context_min"] + 1
    least = f"from {width - 1} bases less up to the context stated"
    exact = f"The {width} bases of a block see {least}. " if width > 1 else ""
    saved, error = last["saved_nats"] / math.log(2), (last["saved_nats_se"] or 0.0) / math.log(2)
    meaning = (
        f"Beyond {first['context']:,} bases more context makes no measurable difference here "
        f"({saved:.4f} \u00b1 {error:.4f} bits a base saved)."
    )
    if abs(saved) > 2 * error:
        meaning = (
            f"Going from {first['context']:,} to {last['context']:,} bases of context "
            f"{'saves' if saved > 0 else 'costs'} {abs(saved):.4f} \u00b1 {error:.4f} bits a base "
            "(paired)."
        )
    rows = [
        [f"{p['context']:,}", _with_error(p["measure"]), f"{p['saved_nats'] / math.log(2):.4f}"]
        for p in points
    ]
    alternative = (
        f"Perplexity goes from {first['measure']['perplexity_acgt']:.3f} at {first['context']} "
        f"bases of context to {last['measure']['perplexity_acgt']:.3f} at {last['context']}."
    )
    caption = (
        f"The same {last['measure']['targets']:,} target bases at every context length, in blocks "
        f"spread evenly over the held-out regions. {exact}Bars are standard errors of the level; "
        "the points share their targets, so differences between them are known better than the "
        "bars suggest. Dashed: the best baseline on these targets."
    )
    return style.section(
        "Perplexity against context",
        [
            f"<p>{escape(meaning)}</p>",
            style.figure(partial(draw_context_curve, evaluation), alternative, caption),
            style.table(["context", "perplexity", "bits saved a base"], rows),
        ],
    )


def _baselines(evaluation: Record) -> str:
    if len(evaluation["baselines"]) < 2:
        return ""
    model = evaluation["overall"]
    markov = [baseline for baseline in evaluation["baselines"] if baseline["order"] is not None]
    plain, fitted = (
        {one["order"]: _with_error(one["measure"]) for one in markov if one["fitted"] is kind}
        for kind in (False, True)
    )
    cells = [["uniform", "4.000", ""]]
    cells += [[f"order {k}", text, fitted.get(k, "")] for k, text in plain.items()]
    cells.append(["model", _with_error(model), ""])
    best = best_baseline(evaluation) or markov[0]
    margin, error = best["margin_nats"] / math.log(2), (best["margin_nats_se"] or 0) / math.log(2)
    summary = (
        f"The best of them is {best['name'].replace('Markov ', '')} with "
        f"{best['measure']['perplexity_acgt']:.3f}. The model {'saves' if margin > 0 else 'costs'} "
        f"{abs(margin):.4f} \u00b1 {error:.4f} bits a base against it (paired)."
    )
    return style.section(
        "Baselines",
        [
            "<p>What a model must beat to have learned more than the frequencies of short k-mers. "
            "Markov models of order k predict a base from the k bases before it, by counts in the "
            f"training regions ({evaluation['baseline_bases']:,} bases), on the same targets. "
            f"{escape(summary)}</p>",
            style.figure(
                partial(draw_baselines, evaluation),
                f"Perplexity of Markov models by order, against {model['perplexity_acgt']:.3f} of "
                "the model.",
                "Each order is interpolated with the one below: a context seen n times has weight "
                f"n / (n + r), with r = {markov[0]['rates'][0]:g} on one line and fitted for each "
                "order to a held-back part of the training regions on the other. Long contexts "
                "that training has seen too rarely make a model worse.",
            ),
            style.table(["", "fixed rate", "fitted rates"], cells, [len(cells) - 1]),
        ],
    )


def _breakdown(run: _RunRecord, evaluation: Record) -> str:
    contigs = list(evaluation["by_contig"].items())
    groups = list(evaluation["by_soft_mask"].items()) + (contigs[:20] if len(contigs) > 1 else [])
    model = evaluation["overall"]
    rows = [[n, f"{part['targets']:,}", _with_error(part)] for n, part in [*groups, ("all", model)]]
    places = ", ".join(evaluation["regions"][:5])
    if evaluation["region_count"] > 5:
        places += f" and {evaluation['region_count'] - 5:,} more"
    seen = evaluation["window"] - evaluation["stride"] + 1
    return style.section(
        "Where it was measured",
        [
            style.table(["", "bases", "perplexity"], rows, [len(rows) - 1]),
            f'<p class="note">Regions: {escape(places)}. Windows of '
            f"{evaluation['window']:,} positions; a base sees {seen:,} to "
            f"{evaluation['window']:,} bases of context. {evaluation['skipped']:,} bases that are "
            "not A, C, G or T were passed over. Perplexity is over A, C, G, T; over all columns "
            f"of the vocabulary that of all bases is {model['perplexity']:.3f}. Soft-masked bases "
            "are those in lower case in the FASTA, mostly repeats. Standard errors by block "
            "bootstrap.</p>",
            _overlap_note(run, evaluation),
        ],
    )


def _overlap_note(run: _RunRecord, evaluation: Record) -> str:
    if not _same_genome(run, evaluation):
        text = (
            f"The genome evaluated, {evaluation['genome']}, is not the one trained on. Whether "
            "it holds parts of the training data is not known."
        )
    elif evaluation["train_overlap"] is None:
        text = "Whether these regions overlap the training regions was not looked at."
    elif evaluation["train_overlap"]:
        text = (
            f"{evaluation['train_overlap']:,} of {evaluation['region_bases']:,} bases lie in the "
            "training regions: this is not a held-out perplexity."
        )
    else:
        text = "No base of these regions lies in the training regions."
    return f'<p class="note">{escape(text)}</p>'


def _family_name(run: _RunRecord) -> str:  # as its paper writes it
    names = {
        "hyenadna": "HyenaDNA", "megabase_gpt": "GPT", "megabase_mamba": "Mamba",
        "caduceus": "Caduceus", "genomic-cnn": "CNN", "deepsea": "DeepSEA", "dnabert": "DNABERT",
        "genomic-bigbird": "BigBird",
    }  # fmt: skip
    kind = str(run.model.get("model_type", "model"))
    return names.get(kind, kind)


def _short_number(value: float) -> str:
    """Write 1,234,567 as 1.23 M."""
    for scale, word in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.3g} {word}"
    return f"{value:,.0f}"


def _data_section(run: _RunRecord) -> str:
    splits, genome = run.data["splits"], run.data["genome"]

    def part(name: str) -> str:
        split = splits[name]
        if not split["bases"]:
            return "none"
        shown = ", ".join(split["regions"][:4])
        more = split["number_of_regions"] - 4
        return f"{split['bases']:,} bases: {shown}" + (f" and {more:,} more" if more > 0 else "")

    contigs, share = run.data["contigs"], run.config["data"].get("reverse_complement", 0)
    facts = {
        "genome": f"{genome['name']}, {sum(contigs.values()):,} bases in {len(contigs):,} contigs",
        "sha256": genome["sha256"], "training": part("train"), "validation": part("validation"),
        "test": part("test"), "windows": str(run.data["windows"]),
        "reverse complement": f"{share:.0%} of the training windows",
    }  # fmt: skip
    return style.section("Data", [style.definitions(facts.items())])


def _labels_section(run: _RunRecord) -> str:
    facts = {"labels": run.data["kind"], "classes": ", ".join(run.data["classes"])}
    for name, shown in (("train", "training"), ("valid", "validation"), ("test", "test")):
        if split := run.data.get(name):
            rows = f"{split['rows']:,} sequences, {split['bases']:,} bases"
            facts[shown] = f"{rows}: {Path(split['source']).name}"
    facts["start"] = run.data.get("start", {}).get("model", "")
    return style.section("Data", [style.definitions(facts.items())])


def _settings_section(run: _RunRecord) -> str:
    config, optim = run.config, run.config.get("optim", {})
    last, place = run.of_kind("train")[-1], run.environment
    layers = run.model.get("n_layer") or run.model.get("num_hidden_layers")
    width = run.model.get("d_model") or run.model.get("hidden_size")
    longest = run.model.get("max_seq_len") or run.model.get("max_length")
    commit = place.get("git") or {}
    memory = max(record.get("memory_mb") or 0.0 for record in run.of_kind("train"))
    devices = ", ".join(place.get("devices") or []) or place.get("processor") or ""
    packages = place.get("packages", {})
    named = [name for name in ("torch", "transformers", "lightning-fabric") if packages.get(name)]
    software = [f"megabase {place.get('megabase')}", f"Python {place.get('python')}"]
    software += [f"{name} {packages[name]}" for name in named]
    tokens = config.get("global_batch_tokens")
    batch = f"{tokens:,} tokens" if tokens else f"{config.get('global_batch', 0):,} sequences"
    facts = {
        "model": _family_name(run)
        + (f", {layers} layers, width {width}" if layers else "")
        + (f", longest input {longest:,}" if longest else ""),
        "parameters": f"{run.parameters:,}",
        "checkpoint": run.checkpoint,
        "steps": f"{last['step']:,} of {batch}",
        "optimizer": f"{run.optimizer}, learning rate {optim.get('lr', 0):g} "
        f"({optim.get('schedule')}), weight decay {optim.get('weight_decay', 0):g}",
        "precision": str(config.get("precision", "")),
        "seed": str(config.get("seed", "")),
        "time": f"{style.duration(last['seconds'])} of training steps, "
        f"{last['tokens'] / max(last['seconds'], 1e-9):,.0f} tokens a second",
        "memory": f"{memory:,.0f} MB" if memory else "",
        "machine": f"{devices}, {place.get('cores')} cores",
        "software": ", ".join(software),
        "commit": str(commit.get("commit", ""))[:12]
        + (" with changes" if commit.get("changed") else ""),
    }
    return style.section("Run", [style.definitions(facts.items())])
