"""Plots: of a run, of an evaluation, of the bases of a region, and a map of embeddings."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from megabase.errors import MissingDependencyError, ReportError
from megabase.genome.files import write_whole
from megabase.genome.interval import Interval
from megabase.report.style import (
    LIGHT,
    LINE_STYLES,
    WIDE,
    Axes,
    Figure,
    Size,
    Theme,
    as_svg,
    check_picture,
    padded,
    picture,
    position_ticks,
    shortened,
    shown_name,
)

Record = dict[str, Any]
_Values = npt.NDArray[np.float64]
_Label = tuple[float, str, str]  # height in data, text, color
_CLASS_COLORS = ("#1a56c4", "#b4530a", "#2f7d4f", "#8a3ea8", "#8a6d00", "#5c6773")
"""One for each class of bases; more classes begin again."""
_MOST_POINTS = 4000  # points of a line: about four in each pixel of the picture
_BAR = 0.09  # height of a bar of true classes, in units of probability
_PREFIX = "p_"  # beginning of the columns with a class's probability
MAPS = ("auto", "umap", "tsne", "pca")
"""Methods of the map; auto takes the first that is installed."""
_GROUP_COLORS = (
    "#1a56c4", "#d9820b", "#2f9e44", "#c92a2a", "#7048a8", "#0f8b8d", "#b5588e", "#7a6a00",
    "#5a6b7b", "#9c4a1a",
)  # fmt: skip
"""Ten that can be told apart on white, also side by side."""
_MOST_MAPPED = 5_000  # points of a map: more cover one another, and t-SNE takes minutes
_Vectors = npt.NDArray[np.floating[Any]]


def save_plots(evaluation: Record, folder: Path) -> list[Path]:
    """Write the plots of an evaluation's JSON record as SVG files on a white background.

    ``evaluation-context.svg`` with a context curve, ``evaluation-baselines.svg`` with Markov
    baselines; earlier ones are replaced.
    """
    draws = {"context": draw_context_curve} if evaluation["context"] else {}
    draws |= {"baselines": draw_baselines} if len(evaluation["baselines"]) > 1 else {}
    written = [folder / f"evaluation-{name}.svg" for name in draws]
    for path, draw in zip(written, draws.values(), strict=True):
        backed = rf'\1<rect width="100%" height="100%" fill="{LIGHT.background}"/>'
        svg = as_svg(partial(draw, evaluation))
        write_whole(path, re.sub(r"(<svg[^>]*>)", backed, svg, count=1))
    return written


def best_baseline(evaluation: Record, key: str = "measure") -> Record | None:
    """Give the baseline with the lowest perplexity over A, C, G, T; None without baselines.

    `key` is "measure" for the targets of the evaluation, "context_measure" for those of its context
    curve.
    """
    baselines = [baseline for baseline in evaluation["baselines"] if baseline[key] is not None]
    return min(baselines, key=lambda baseline: baseline[key]["nats_acgt"], default=None)


def draw_learning_curve(
    metrics: Sequence[Record], figure: Figure, theme: Theme, size: Size, perplexity: bool = True
) -> None:
    """Draw perplexity or loss against tokens seen (``metrics.jsonl``), with the stages as bands."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    shape: Any = np.exp if perplexity else np.array

    known = [r for r in metrics if "loss" in r and math.isfinite(r["loss"] or math.nan)]
    train = [r for r in known if r["kind"] == "train"]
    validation = [r for r in known if r["kind"] == "validation"]
    tokens = np.array([r["tokens"] for r in train], float)
    losses: _Values = shape([r["loss"] for r in train])
    what = "perplexity" if perplexity else "loss"
    axes = _add_axes(figure, size, 92 if size is WIDE else 80, what, top=48)
    axes.set_xscale("log")
    smooth = _smoothed(losses, [r["stage"] for r in train])
    axes.plot(tokens, losses, color=theme.muted, linewidth=0.8, alpha=0.45)
    alone = "o" if len(train) == 1 else ""  # a line of one point is not seen
    axes.plot(tokens, smooth, color=theme.muted, linewidth=1.6, marker=alone, markersize=4.5)
    labels: list[_Label] = [(float(smooth[-1]), "training", theme.muted)]
    shown = [float(smooth[-1])]
    steps = [0, *(r["step"] for r in train)]
    at = np.interp([r["step"] for r in validation], steps, [0, *tokens])
    if validation:
        held_out: _Values = shape([r["loss"] for r in validation])
        axes.plot(at, held_out, color=theme.model, marker="o", markersize=4.5)
        labels.append((float(held_out[-1]), "validation", theme.model))
        shown += held_out.tolist()
    # The fall of the first steps, and a rare spike, would flatten all that matters.
    usual = float(np.quantile(losses, 0.9))
    low = min(*shown, float(np.quantile(losses, 0.02)))
    high = max(*shown, min(usual, 4.6) if perplexity else usual, low + 0.05)
    low, high = low - 0.08 * (high - low), high + 0.12 * (high - low)
    axes.set_ylim(low, high)
    # The axis begins where the curve comes into sight.
    visible = tokens[losses < high]
    first = visible[0] if visible.size else tokens[0]
    axes.set_xlim(min([first, *at[:1]]) * 0.9, tokens[-1] * 1.02)
    _bands(axes, train, theme, size)
    axes.set_xlabel("tokens seen")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if size is WIDE else (1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())  # labels of minor ticks would run into each other
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _label_right(axes, labels, size)


def _smoothed(values: _Values, stages: Sequence[int]) -> _Values:
    """Take the running median of about a tenth of the points, within each stage."""
    half, place = max(2, len(values) // 20), np.asarray(stages)
    parts = [slice(max(0, i - half), i + half + 1) for i in range(len(values))]
    return np.array([np.median(values[p][place[p] == place[i]]) for i, p in enumerate(parts)])


def _bands(axes: Axes, train: Sequence[Record], theme: Theme, size: Size) -> None:
    """Shade every second stage and write its length above it."""
    first, last = axes.get_xlim()
    start, pixels = first, size.width * axes.get_position().width
    stages = [r["stage"] for r in train]
    for number, stage in enumerate(dict.fromkeys(stages)):
        rows = [r for r in train if r["stage"] == stage]
        end = min(rows[-1]["tokens"], last)
        if end <= first:
            continue
        if number % 2 == 1:
            axes.axvspan(start, end, color=theme.faint, alpha=0.55, linewidth=0)
        share = math.log(end / start) / math.log(last / first) if end > start else 0.0
        text = f"{rows[0]['length']:,}"
        if share * pixels > 0.75 * size.text * len(text):
            axes.annotate(
                text, (math.sqrt(start * end), 1.0), xycoords=("data", "axes fraction"),
                xytext=(0, 4), textcoords="offset points", ha="center", va="bottom",
                color=theme.muted, fontsize=size.text - 1,
            )  # fmt: skip
        start = end
    axes.annotate(
        "length of the sequences", (1.0, 1.0), xycoords="axes fraction", xytext=(0, 22),
        textcoords="offset points", ha="right", va="bottom", color=theme.muted,
        fontsize=size.text - 1,
    )  # fmt: skip


def draw_context_curve(evaluation: Record, figure: Figure, theme: Theme, size: Size) -> None:
    """Draw perplexity over A, C, G, T against context length (JSON of an evaluation)."""
    points = evaluation["context"]
    context = [point["context"] for point in points]
    found = [point["measure"]["perplexity_acgt"] for point in points]
    errors = [point["measure"]["perplexity_acgt_se"] or 0.0 for point in points]
    axes = _add_axes(figure, size, 140 if size is WIDE else 84, "perplexity over A, C, G, T")
    axes.set_xscale("log", base=2)
    axes.errorbar(
        context, found, yerr=errors, color=theme.model, marker="o", markersize=5, capsize=0,
        elinewidth=1.2,
    )  # fmt: skip
    heights = [v + e * sign for v, e in zip(found, errors, strict=True) for sign in (-1, 1)]
    labels: list[_Label] = [(found[-1], _model_label(found[-1], size), theme.model)]
    baseline = best_baseline(evaluation, "context_measure")
    if baseline is not None:
        value = baseline["context_measure"]["perplexity_acgt"]
        axes.axhline(value, color=theme.baseline, linewidth=1.4, linestyle=(0, (4, 3)))
        labels.append((value, _baseline_label(baseline["name"], value, size), theme.baseline))
        heights.append(value)
    axes.set(ylim=padded(heights), xlim=(context[0] / 1.15, context[-1] * 1.15))
    step = 1 if len(context) <= (10 if size is WIDE else 5) else 2
    axes.set(xticks=context[::-step][::-1], xlabel="context before the base (bases)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{int(value):,}")
    _label_right(axes, labels, size)


def _baseline_label(name: str, value: float, size: Size) -> str:
    name = name.replace(", fitted", ",\nfitted")
    if size is WIDE:
        return f"{name} {value:.3f}" if "\n" in name else f"{name}\n{value:.3f}"
    return f"{name.replace('order ', '')}\n{value:.3f}"


def _model_label(value: float, size: Size) -> str:
    return f"model {value:.3f}" if size is WIDE else f"model\n{value:.3f}"


def draw_baselines(evaluation: Record, figure: Figure, theme: Theme, size: Size) -> None:
    """Draw perplexity over A, C, G, T of the Markov models by order, and the model's."""
    model = evaluation["overall"]["perplexity_acgt"]
    axes = _add_axes(figure, size, 140 if size is WIDE else 84, "perplexity over A, C, G, T")
    axes.axhline(4.0, color=theme.muted, linewidth=1.0, linestyle=(0, (1, 3)))
    axes.axhline(model, color=theme.model)
    labels: list[_Label] = [
        (4.0, "uniform 4", theme.muted),
        (model, _model_label(model, size), theme.model),
    ]
    shown = [4.0, model]
    orders: list[int] = []
    lines: list[tuple[str, list[float]]] = []
    hollow = {"marker": "D", "markerfacecolor": theme.background, "linewidth": 1.2}
    styles: dict[str, Any] = {"fixed rate": {"marker": "o"}, "fitted rates": hollow}
    for fitted, (kind, style) in enumerate(styles.items()):
        markov = (one for one in evaluation["baselines"] if one["order"] is not None)
        baselines = [one for one in markov if one["fitted"] == bool(fitted)]
        if not baselines:
            continue
        orders = [baseline["order"] for baseline in baselines]
        values = [baseline["measure"]["perplexity_acgt"] for baseline in baselines]
        axes.plot(orders, values, color=theme.baseline, markersize=4.5, **style)
        lines.append((f"Markov, {kind}" if size is WIDE else kind, values))
        shown += [min(values), max(values)]
    # High orders that overfit may go far up; what is to be compared stays readable.
    best, highest = min(shown), max(4.0, model)
    low, high = padded([best, min(max(shown), highest + 0.3 * (highest - best))])
    axes.set_ylim(low, high)
    for text, values in lines:
        out = next((i for i, value in enumerate(values) if value > high), None)
        if out is None or out == 0:
            labels.append((min(values[-1], high), text, theme.baseline))
        else:  # named where it leaves the picture
            rise = (high - values[out - 1]) / (values[out] - values[out - 1])
            right = "fitted" in text
            axes.annotate(
                text.removeprefix("Markov, "), (orders[out - 1] + rise, high),
                xytext=(6 if right else -6, -3), textcoords="offset points", va="top",
                ha="left" if right else "right", color=theme.baseline,
            )  # fmt: skip
    ticks = [order for order in orders if order % 2 == 0]
    axes.set(xticks=ticks, xlabel="order of the Markov model (bases of context)")
    _label_right(axes, labels, size)


def draw_lengths(
    series: Mapping[str, Sequence[tuple[int, float, float | None]]], axis: tuple[str, str],
    figure: Figure, theme: Theme, size: Size,
) -> None:  # fmt: skip
    """Draw a metric against a length, one line of (length, metric, spread) for each name.

    `axis` names the length and the metric.
    """
    from matplotlib.ticker import MaxNLocator

    axes = _add_axes(figure, size, right=10, y_label=axis[1])
    for number, (name, points) in enumerate(series.items()):
        lengths, values, spreads = zip(*sorted(points), strict=True)
        axes.errorbar(
            lengths, values, fmt=f"o{LINE_STYLES[number % 4]}", capsize=3, markersize=5,
            yerr=[spread or 0.0 for spread in spreads] if any(spreads) else None,
            color=theme.baseline if name.startswith("kmer") else theme.model,
            label=shown_name(name),
        )  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))  # labels of few letters
    # A length of 0 stands on the axis too: linear up to 1, logarithmic from there.
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.minorticks_off()
    every = sorted({length for points in series.values() for length, *_ in points})
    axes.set_xticks(every, [f"{length:,}" for length in every])
    axes.set_xlabel(axis[0])
    axes.legend(frameon=False, loc="best", fontsize=size.text - 2)


def _add_axes(figure: Figure, size: Size, right: float, y_label: str, top: float = 26) -> Axes:
    """Give axes with fixed margins in pixels, a light grid, and the y label lying on top."""
    left, bottom = 3.6 * size.text, 3.8 * size.text
    axes = size.axes(figure, left, bottom, right, top)
    axes.grid(axis="y")
    across, along = size.width - left - right, size.height - bottom - top
    axes.text(
        0.005 - left / across, 1 + (top - 16) / along, y_label, transform=axes.transAxes,
        va="bottom", ha="left", color=axes.xaxis.label.get_color(),
    )  # fmt: skip
    return axes


def _label_right(axes: Axes, labels: Sequence[_Label], size: Size) -> None:
    """Write labels to the right of the axes at their heights, moved apart where they would meet."""
    low, high = axes.get_ylim()
    pixels = size.height * axes.get_position().height
    gap = 1.35 * size.text
    scale = pixels / (high - low)
    wanted = sorted((scale * (height - low), text, color) for height, text, color in labels)
    # Upwards every label leaves room for the one below it; downwards none leaves the picture.
    half = [0.5 * gap * (text.count("\n") + 1) for _, text, _ in wanted]
    placed = [place for place, _, _ in wanted]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + half[i - 1] + half[i])
    above = pixels + gap
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], above - half[i])
        above = placed[i] - half[i]
    for place, (_, text, color) in zip(placed, wanted, strict=True):
        axes.annotate(
            text, (1.0, place / pixels), xycoords="axes fraction", xytext=(8, 0),
            textcoords="offset points", va="center", ha="left", color=color, linespacing=1.2,
        )  # fmt: skip


def _read_predictions(path: Path, place: str) -> pl.DataFrame:
    """Read the predicted bases of a contig or region (``chr1:1,001-2,000``), sorted by position."""
    if not path.is_file():
        raise ReportError(f"there is no file {path}; a run writes it with predictions=True")
    table = pl.scan_parquet(path)
    where = Interval.parse(place) if ":" in place else None
    chosen = table.filter(pl.col("contig") == (where.contig if where else place))
    if where:
        inside = pl.col("position").is_between(where.start, where.end, closed="left")
        chosen = chosen.filter(inside)
    chosen = chosen.collect()
    if chosen.is_empty():
        contigs = table.select("contig").unique().collect()["contig"].sort()
        found = ", ".join(contigs[:5])
        raise ReportError(f"{path} has no base of {place}; it has bases of {found}")
    return chosen.sort("position")


def _draw_nucleotides(table: pl.DataFrame, figure: Figure) -> None:
    """Draw probabilities as lines, and the true classes as bars under them.

    Of more bases than the picture has room for, means of equally many neighbors are drawn.
    """
    # The first class is the background: what is left when the others are drawn.
    classes = [name[len(_PREFIX) :] for name in table.columns if name.startswith(_PREFIX)]
    shown = list(enumerate(classes))[1:]
    place = table["position"].to_numpy()
    label = table["label"].to_numpy()
    axes = figure.subplots()
    for number, name in shown:
        color = _CLASS_COLORS[(number - 1) % len(_CLASS_COLORS)]
        _line(axes, place, table[f"{_PREFIX}{name}"].to_numpy(), color, f"probability of {name}")
        # A bar over every run of adjacent bases of the class.
        at = place[label == name]
        runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []
        axes.broken_barh(
            [(int(run[0]) + 0.5, len(run)) for run in runs], (-_BAR * (1.4 * number), _BAR),
            facecolors=color, alpha=0.55, label=f"{name}: annotated", linewidth=0,
        )  # fmt: skip
    axes.set(ylim=(-_BAR * (1.4 * len(shown) + 0.4), 1.02), yticks=[0, 0.5, 1])
    axes.axhline(0.5, color=LIGHT.faint, linewidth=1, zorder=0)
    axes.axhline(0, color=LIGHT.muted, linewidth=0.6, zorder=0)
    first, last = int(place[0]), int(place[-1]) + 1
    axes.set_xlim(first + 0.5, last + 0.5)
    position_ticks(axes, last, 0.9 * 72 * figure.get_figwidth())
    where = Interval(table["contig"][0], first, last)
    axes.set_xlabel(f"position on {where.contig}")
    axes.set_title(str(where), loc="left")
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))


def _line(axes: Axes, place: np.ndarray, values: np.ndarray, color: str, name: str) -> None:
    """Draw a line that breaks where positions are missing, of means where there are too many."""
    step = -(-len(place) // _MOST_POINTS)
    gaps = np.flatnonzero(np.diff(place) > 1) + 1
    for i, part in enumerate(np.split(np.arange(len(place)), gaps)):
        edges = np.arange(0, len(part), step)
        counts = np.diff(np.append(edges, len(part)))
        height = np.add.reduceat(values[part].astype(np.float64), edges) / counts
        label = name if i == 0 else None
        axes.plot(place[part][edges] + 1, height, color=color, label=label, linewidth=1.2)


def save_nucleotide_plot(
    predictions: Path, place: str, output: Path, *, overwrite: bool = False
) -> None:
    """Draw a region from ``predictions.parquet`` of a run, as ``.png``, ``.svg`` or ``.pdf``.

    A :class:`ReportError` when there is nothing to draw, or the file cannot be written.
    """
    check_picture(output, "a region", overwrite)
    table = _read_predictions(predictions, place)
    with picture(output, 13.3, 4.2, overwrite) as figure:
        _draw_nucleotides(table, figure)


def check_embedding_plot(path: Path, how: str = "auto", overwrite: bool = False) -> None:
    """Refuse a map that cannot be drawn, before any work is done.

    A :class:`ReportError` for another ending, a file that exists or an unknown method; a
    :class:`MissingDependencyError` without its package.
    """
    check_picture(path, "the map", overwrite)
    if how not in MAPS:
        raise ReportError(f"a map is one of {', '.join(MAPS)}; found {how!r}")
    if how == "umap" and not find_spec("umap"):
        raise ReportError("UMAP needs umap-learn: pip install umap-learn")
    if how == "tsne" and not find_spec("sklearn"):
        raise MissingDependencyError("scikit-learn", "suites", "t-SNE")


def _project(vectors: _Vectors, how: str, seed: int) -> tuple[_Vectors, str]:
    """Lay vectors (n, width) out in the plane: (n, 2), and what was done, for the axis."""
    if how == "auto":
        how = "umap" if find_spec("umap") else "tsne" if find_spec("sklearn") else "pca"
    centered = np.asarray(vectors, dtype=np.float64) - np.mean(vectors, axis=0)
    _, scale, axes = np.linalg.svd(centered, full_matrices=False)
    components = centered @ axes[:2].T
    components = np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
    if how == "pca" or len(vectors) < 8:
        share = float((scale[:2] ** 2).sum() / max((scale**2).sum(), 1e-30))
        return components, f"principal components 1 and 2 ({share:.0%} of the variance)"
    if how == "umap":
        import umap  # pyright: ignore[reportMissingImports]

        found = umap.UMAP(random_state=seed, n_neighbors=min(15, len(vectors) - 1))
        return found.fit_transform(vectors), "UMAP"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    start: Any = (components / max(float(components[:, 0].std()), 1e-12) * 1e-4).astype(np.float32)
    layout = TSNE(perplexity=perplexity, init=start, random_state=seed)
    return layout.fit_transform(np.asarray(vectors, dtype=np.float32)), "t-SNE"


def _nearest(vectors: _Vectors) -> npt.NDArray[np.int64]:
    """Give the nearest other vector of each by cosine distance, int64 (n,)."""
    unit = np.asarray(vectors, dtype=np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    return likeness.argmax(axis=1)


def save_embedding_plot(
    path: Path, vectors: _Vectors, labels: Sequence[str] | None = None, *, title: str,
    how: str = "auto", seed: int = 0, overwrite: bool = False,
) -> float | None:  # fmt: skip
    """Draw the map of embeddings; a thin line joins each point to its nearest neighbor.

    Neighbors are those of the full vectors, not of the map, so the lines show what it tears apart.
    Of `vectors` (n, width) more than 5,000 are thinned evenly; `labels` give colors: the nine most
    frequent and the rest. Returns, with labels, the share of points whose nearest neighbor has the
    same label. Errors are those of :func:`check_embedding_plot`.
    """
    check_embedding_plot(path, how, overwrite)
    if len(vectors) < 2:
        raise ReportError("a map needs two sequences or more")
    if len(vectors) > _MOST_MAPPED:
        chosen = np.linspace(0, len(vectors) - 1, _MOST_MAPPED).astype(int)
        labels = None if labels is None else [str(labels[int(i)]) for i in chosen]
        vectors = np.asarray(vectors[chosen])
    places, name = _project(vectors, how, seed)
    near = _nearest(vectors)
    groups = _groups(labels or ["all"] * len(vectors))
    from matplotlib.collections import LineCollection

    with picture(path, 7.2, 5.4, overwrite) as figure:
        axes = figure.add_subplot()
        lines: Any = np.stack([places, places[near]], axis=1)
        axes.add_collection(LineCollection(lines, colors=LIGHT.muted, linewidths=0.4, alpha=0.35))
        size = float(np.clip(4_000 / len(vectors), 6, 40))
        for number, (label, members) in enumerate(groups):
            color = LIGHT.muted if label == "other" else _GROUP_COLORS[number % len(_GROUP_COLORS)]
            axes.scatter(
                places[members, 0], places[members, 1], s=size, color=color, linewidths=0.4,
                edgecolors=LIGHT.background, label=f"{shown_name(label, 20)} ({len(members):,})",
            )  # fmt: skip
        figure.suptitle(shortened(title, 470, WIDE.text), x=0.02, ha="left", fontsize=WIDE.text)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(name, loc="left")
        axes.spines["bottom"].set_visible(False)
        if labels is not None:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    if labels is None:
        return None
    return float(np.mean([labels[i] == labels[int(j)] for i, j in enumerate(near)]))


def _groups(labels: Sequence[str]) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Give the members of each label, the most frequent first; the rarest are one group."""
    names = [name for name, _ in Counter(sorted(labels)).most_common()]
    shown = names if len(names) <= len(_GROUP_COLORS) else names[: len(_GROUP_COLORS) - 1]
    array = np.asarray(labels)
    groups = [(name, np.flatnonzero(array == name)) for name in shown]
    rest = np.flatnonzero(~np.isin(array, shown))
    return [*groups, ("other", rest)] if len(rest) else groups
