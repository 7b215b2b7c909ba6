"""A picture of embeddings: a map of the sequences, joined to their nearest neighbors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.errors import MissingDependencyError, ReportError
from megabase.report.style import LIGHT, WIDE, check_picture, picture, shortened, shown_name

MAPS = ("auto", "umap", "tsne", "pca")
"""Methods of the map; auto takes the first that is installed."""
_COLORS = ("#1a56c4", "#d9820b", "#2f9e44", "#c92a2a", "#7048a8", "#0f8b8d", "#b5588e", "#7a6a00",
           "#5a6b7b", "#9c4a1a")  # fmt: skip
"""Ten that can be told apart on white, also side by side."""
_MOST = 5_000  # points of a map: more cover one another, and t-SNE takes minutes

_Floats = npt.NDArray[np.floating[Any]]


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


def _project(vectors: _Floats, how: str, seed: int) -> tuple[_Floats, str]:
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


def _nearest(vectors: _Floats) -> npt.NDArray[np.int64]:
    """Give the nearest other vector of each by cosine distance, int64 (n,)."""
    unit = np.asarray(vectors, dtype=np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    return likeness.argmax(axis=1)


def save_embedding_plot(
    path: Path, vectors: _Floats, labels: Sequence[str] | None = None, *, title: str,
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
    if len(vectors) > _MOST:
        chosen = np.linspace(0, len(vectors) - 1, _MOST).astype(int)
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
            color = LIGHT.muted if label == "other" else _COLORS[number % len(_COLORS)]
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
    shown = names if len(names) <= len(_COLORS) else names[: len(_COLORS) - 1]
    array = np.asarray(labels)
    groups = [(name, np.flatnonzero(array == name)) for name in shown]
    rest = np.flatnonzero(~np.isin(array, shown))
    return [*groups, ("other", rest)] if len(rest) else groups
