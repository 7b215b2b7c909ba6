"""Embeddings: hidden states of a model, one vector for each sequence or for each base.

Layer 0 is the token embedding, layer k the output of block k, and the last one comes after the
final norm (``output_hidden_states``). Only tokens that stand for bases are pooled, and every
sequence gets the vector that it would get alone.
"""

import json
import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import gelu

from megabase.data.sources import Sequence as Given
from megabase.data.sources import SequenceInput
from megabase.errors import InputError, MissingDependencyError
from megabase.evaluate.sequences import (
    Span,
    named_sequences,
    plan_windows,
    record_name,
    require_readable,
    run_batched,
    stitched,
)
from megabase.genome.alphabet import encode, reverse_complement
from megabase.inference.jobs import BATCH_TOKENS, Work, map_sequences, split_options
from megabase.inference.parts import Provenance, merge_tables, require_suffix
from megabase.layers.pooling import pool
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import ModelSpec, inference_mode, load
from megabase.options import EmbedOptions

Pool = Literal["mean", "max", "sum", "first", "last", "all"]
"""Ways from the vectors of all bases to one. ``all``: mean, maximum and standard deviation of every
layer, and mean and maximum of the units inside its MLP where it has one, side by side: units answer
to motifs, so that a linear model reads more from them than from the sums that they leave behind."""
Long = Literal["error", "chunks", "published"]
"""What to do with a sequence longer than the model reads. ``error``: refuse it. ``chunks``: cut it
into pieces side by side and pool over the positions of all pieces, so that a mean weighs every base
alike (of the pooling ``all`` the vectors of the pieces are averaged so). ``published``: the plain
mean of the vectors of the pieces, however short the last one."""
Averaged = Literal["forward", "both"]
"""Strands that are read: the one that is given, or the mean with its reverse complement."""

_SUFFIXES = (".parquet", ".npy", ".npz", ".zarr", ".h5ad")  # formats of rows with vectors
_VECTOR = "embedding"  # the column or array of the vectors, under the name of what they are
_ZARR_CHUNK = 1 << 22  # bytes: few files, each small enough to be read for a handful of rows
_HDF5_SLACK = 1 << 14  # what HDF5 adds for one more array: headers and alignment

Codes = NDArray[np.uint8]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Embeddings:
    """Vectors of sequences, and what they are; the sha256 is over configuration and weights."""

    vectors: Vectors
    """(sequences, width)."""
    lengths: NDArray[np.int64]
    """Bases, (sequences,)."""
    chunks: NDArray[np.int64]
    """Pieces that each was read in, (sequences,)."""
    layer: int
    pooling: str
    model: str
    model_sha256: str

    def __repr__(self) -> str:
        rows, width = self.vectors.shape
        what = f"{self.pooling} of layer {self.layer} of {self.model}"
        return f"Embeddings({rows:,} x {width:,}, {what})"


class Embedder:
    """A model ready to embed sequences; options are :class:`megabase.options.EmbedOptions`."""

    def __init__(
        self, spec: ModelSpec = None, *, layer: int = -1, pooling: Pool = "mean",
        long: Long = "error", strands: Averaged = "forward", batch_tokens: int = BATCH_TOKENS,
        device: str | torch.device | None = None,
    ) -> None:  # fmt: skip
        for name, value, kind in (
            ("pooling", pooling, Pool), ("long", long, Long), ("strands", strands, Averaged)
        ):  # fmt: skip
            if value not in get_args(kind):
                raise InputError(f"{name} is one of {', '.join(get_args(kind))}; found {value!r}")
        self._loaded = loaded = load(spec, head="none", device=device)
        self.model, self.name, self.digest = loaded.model, loaded.name, loaded.digest
        self.encoder, self.longest, self._pad = loaded.encoder, loaded.longest, loaded.padded
        self.pooling: Pool = pooling
        self.long, self.both_strands = long, strands == "both"
        self.batch_tokens = batch_tokens
        # One base tells how many layers there are, and how wide they are.
        states = self._states(encode("ACGTACGTACGTACGT")[None], None)[0]
        if not -len(states) <= layer < len(states):
            raise InputError(
                f"{self.name} has layers 0 to {len(states) - 1} (0 is the token embedding); found "
                f"{layer}"
            )
        if pooling == "all" and layer != -1:
            raise InputError(f"layer is {layer}, and pooling all takes every layer; leave it out")
        self.layer = layer % len(states)
        self.width = int(states[self.layer].shape[-1])
        if pooling == "all":
            self.width = self._pool_pieces([encode("ACGTACGTACGTACGT")]).shape[1]

    def pooled(
        self, sequences: Sequence[Codes], names: Sequence[str] | None = None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Embed base codes: float32 (sequences, width), and int64 (sequences,), their pieces."""
        pieces, owner = self._pieces(sequences, names)
        found = self._pool_pieces(pieces)
        if self.both_strands:
            turned = self._pool_pieces([reverse_complement(piece) for piece in pieces])
            found = (0.5 * (found + turned)).astype(np.float32)
        name = self.name, "hidden states"
        require_finite(found, *name, lambda row: record_name(names, int(owner[row])))
        count = np.bincount(owner, minlength=len(sequences))
        if len(pieces) == len(sequences):
            return found, count
        sizes = np.array([len(piece) for piece in pieces], dtype=np.float64)
        mine = [owner == number for number in range(len(sequences))]
        return np.stack([self._join(found[own], sizes[own]) for own in mine]), count

    def _join(self, vectors: Vectors, sizes: NDArray[np.float64]) -> Vectors:
        if self.long == "published":
            return vectors.mean(axis=0)
        if self.pooling in ("mean", "all"):
            return np.average(vectors, axis=0, weights=sizes).astype(np.float32)
        if self.pooling in ("sum", "max"):
            return getattr(vectors, self.pooling)(axis=0)
        return vectors[0 if self.pooling == "first" else -1]

    def _pieces(
        self, sequences: Sequence[Codes], names: Sequence[str] | None = None
    ) -> tuple[list[Codes], NDArray[np.int64]]:
        advice = "cut it into chunks (long='chunks'), or take a model with a longer input"
        pieces: list[Codes] = []
        owner: list[int] = []
        for number, codes in enumerate(sequences):
            size = max(1, len(codes))
            if self.longest is not None and not self.encoder.fits(codes, self.longest):
                size = self.encoder.bases_for(self.longest)
            if self.long == "error" or not len(codes):
                require_readable(self._loaded, codes, record_name(names, number), advice)
            for start in range(0, len(codes), size):
                pieces.append(codes[start : start + size])
                owner.append(number)
        return pieces, np.array(owner, dtype=np.int64)

    def _pool_pieces(self, pieces: Sequence[Codes]) -> Vectors:
        def vectors(codes: Codes, _: NDArray[np.int64]) -> list[Vectors]:
            if self.pooling == "all":
                return list(self._every_pool(codes).cpu().numpy())
            states, mask = self._states(codes, self.layer)
            return list(pool(states[0].float(), self.pooling, mask).cpu().numpy())

        found = run_batched(pieces, vectors, batch_tokens=self.batch_tokens, pad=self._pad)
        return np.stack(found) if found else np.zeros((0, self.width), dtype=np.float32)

    def _every_pool(self, codes: Codes) -> Tensor:
        """Give the pools of ``all`` for a batch of pieces of one length, (batch, width)."""
        units: list[Tensor] = []
        hooks = [
            module.register_forward_hook(
                lambda _, __, found: units.append(gelu(found.float(), approximate="tanh"))
            )
            for name, module in self.model.named_modules()
            if name.endswith("mlp.fc1")
        ]
        try:
            states, mask = self._states(codes, None)
        finally:
            for hook in hooks:
                hook.remove()
        pools = []
        for state in (one.float() for one in states[1:]):
            mean = pool(state, "mean", mask)
            spread = pool((state - mean[:, None]) ** 2, "mean", mask).sqrt()
            pools += [mean, pool(state, "max", mask), spread]
        pools += [pool(unit, way, mask) for unit in units for way in ("mean", "max")]
        return torch.cat(pools, dim=1)

    def per_base(
        self, sequences: Iterable[Codes], names: Sequence[str] | None = None
    ) -> Iterator[Vectors]:
        """Give the hidden states of every base, float32 (length, width), sequence by sequence.

        Windows over a sequence longer than the model reads share half of its longest input, and a
        base is taken from the one with most DNA before it. InputError for a model whose tokens are
        not single bases.
        """
        if not self.encoder.per_base:
            raise InputError(
                f"{self.name} reads tokens of several bases, so it has no vector for each base; "
                "take pooled vectors"
            )
        for number, codes in enumerate(sequences):
            found = self._along(codes)
            if self.both_strands:
                turned = self._along(reverse_complement(codes))
                found = (0.5 * (found + turned[::-1])).astype(np.float32)
            what = record_name(names, number)
            require_finite(found[None], self.name, "hidden states", lambda _, what=what: what)
            yield found

    def _along(self, codes: Codes) -> Vectors:
        """Give the states of every base of one sequence."""
        self._pieces([codes] if self.long == "error" else [codes[:1]])
        window = len(codes) if self.longest is None else self.longest - self.encoder.extra
        spans = plan_windows(len(codes), window, window // 2, "before")

        def answer(group: Sequence[Span]) -> Vectors:
            rows = np.stack([codes[span.start : span.end] for span in group])
            states, mask = self._states(rows, self.layer)
            return states[0][mask].view(*rows.shape, -1).float().cpu().numpy()

        return stitched(spans, (0, len(codes)), self.batch_tokens, answer)

    def _states(self, codes: Codes, layer: int | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """Give the states of one layer (or of all), and which tokens are bases."""
        batch = self.encoder.batch(codes, self._loaded.device)
        with inference_mode(self.model):
            output: Any = self.model(**batch.inputs(), output_hidden_states=True)
            states = getattr(output, "hidden_states", None)
            if states is None:
                raise InputError(
                    f"{self.name} gives no hidden states, so it has no embeddings; take a language "
                    "model"
                )
            chosen = tuple(states) if layer is None else (states[layer],)
        return chosen, batch.bases


def embed(
    model: ModelSpec | Embedder, sequences: Iterable[str | Codes], **options: Unpack[EmbedOptions]
) -> Embeddings:
    """Embed sequences, letters or base codes: one vector each. An embedder keeps its options."""
    own, run = split_options(options, EmbedOptions)
    embedder = model if isinstance(model, Embedder) else Embedder(model, **own, **run)
    codes = [one.codes for one in named_sequences(sequences)]
    vectors, chunks = embedder.pooled(codes)
    return Embeddings(
        vectors=vectors, lengths=np.array([len(c) for c in codes], dtype=np.int64), chunks=chunks,
        layer=embedder.layer, pooling=embedder.pooling, model=embedder.name,
        model_sha256=embedder.digest,
    )  # fmt: skip


def embed_file(
    model: ModelSpec, source: SequenceInput | str | Path, output: str | Path,
    **options: Unpack[EmbedOptions],
) -> Path:  # fmt: skip
    """Embed a file of sequences as :func:`embed`, in the format of the ending of `output`.

    Formats are ``.parquet``, ``.npy``, ``.npz``, ``.zarr`` and ``.h5ad``; with the pooling
    ``"none"`` there is one vector for each base.
    """
    suffix = require_suffix(output, _SUFFIXES)
    package = {".zarr": "zarr", ".h5ad": "anndata"}.get(suffix)
    if package and find_spec(package) is None:
        raise MissingDependencyError(package, "anndata", f"writing {suffix}")
    own, run = split_options(options, EmbedOptions)
    pooling = own.get("pooling", "mean")
    per_base = pooling == "none"
    make = partial(Embedder, model, **{**own, "pooling": "mean" if per_base else pooling})

    def describe(ready: Embedder) -> dict[str, Any]:
        return {
            "layer": ready.layer, "pooling": pooling, "long": ready.long,
            "both_strands": ready.both_strands,
        }  # fmt: skip

    work = Work(_per_base if per_base else _pooled, make, SequenceInput.chunks)
    return map_sequences("embed", work, source, output, describe, _merge, **run)


def _pooled(ready: Embedder, chunk: list[Given]) -> pl.DataFrame:
    vectors, pieces = ready.pooled([item.codes for item in chunk], [item.name for item in chunk])
    return _frame({**Given.columns(chunk), "chunks": pieces}, vectors)


def _per_base(ready: Embedder, chunk: list[Given]) -> pl.DataFrame:
    names = [item.name for item in chunk]
    found = list(ready.per_base([item.codes for item in chunk], names))
    lengths = [len(rows) for rows in found]
    columns = {
        "name": np.repeat(np.array(names, dtype=object), lengths).tolist(),
        "position": np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]),
    }
    return _frame(columns, np.concatenate(found))


def _frame(columns: dict[str, Any], vectors: NDArray[np.float32]) -> pl.DataFrame:
    """Put what rows are and their vectors, float32 (rows, width), into one frame."""
    array = pl.Series(_VECTOR, vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))
    return pl.DataFrame(columns).with_columns(array)


def _merge(parts: Sequence[Path], target: Path, provenance: Provenance) -> None:
    """Merge parts, in order, in the format of the ending of `target`.

    ``.npz``: arrays ``embedding`` and one for each column, and ``megabase`` (JSON). ``.zarr``: the
    same in a group, the JSON as an attribute. ``.h5ad``: AnnData with the matrix as X, the columns
    as obs (texts as categories), unique names as obs_names, and the JSON as ``uns["megabase"]``.
    """
    suffix = require_suffix(target, _SUFFIXES)
    if suffix == ".parquet":
        merge_tables(parts, target, provenance)
        return
    frame = pl.scan_parquet(list(parts), glob=False)
    dtype: Any = frame.collect_schema()[_VECTOR]
    shape = (int(frame.select(pl.len()).collect().item()), int(dtype.size))
    if suffix == ".npy":
        with target.open("wb") as file:
            _write_matrix(file, shape, parts)
        return
    columns = frame.drop(_VECTOR).collect()
    write = {".npz": _write_npz, ".zarr": _write_zarr, ".h5ad": _write_h5ad}[suffix]
    write(target, shape, parts, columns, provenance.to_json())


def _blocks(parts: Sequence[Path]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Give the vectors of each part, with the rows that they are in the whole."""
    first = 0
    for part in parts:
        vectors = pl.read_parquet(part, columns=[_VECTOR], glob=False)[_VECTOR]
        block = np.ascontiguousarray(vectors.to_numpy(), dtype=np.float32)
        yield slice(first, first + len(block)), block
        first += len(block)


def _plain(column: pl.Series) -> NDArray[Any]:
    """Give a column as an array without Python objects."""
    if column.dtype == pl.String:
        return np.array(column.fill_null("").to_list(), dtype=np.str_)
    return column.to_numpy()


def _write_matrix(file: Any, shape: tuple[int, int], parts: Sequence[Path]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for _, block in _blocks(parts):
        file.write(block.tobytes())


def _write_npz(
    target: Path, shape: tuple[int, int], parts: Sequence[Path], columns: pl.DataFrame, about: str
) -> None:
    small = {name: _plain(columns[name]) for name in columns.columns}
    with zipfile.ZipFile(target, "w") as archive:
        for name, values in {_VECTOR: None, **small, "megabase": np.array(about)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                if values is None:
                    _write_matrix(file, shape, parts)
                else:
                    np.lib.format.write_array(file, values, allow_pickle=False)


def _write_zarr(
    target: Path, shape: tuple[int, int], parts: Sequence[Path], columns: pl.DataFrame, about: str
) -> None:
    import zarr

    group: Any = zarr.open_group(str(target), mode="w", zarr_format=2)
    rows = max(1, min(shape[0], _ZARR_CHUNK // (4 * shape[1])))
    matrix = group.create_array(_VECTOR, shape=shape, dtype="f4", chunks=(rows, shape[1]))
    for where, block in _blocks(parts):
        matrix[where] = block
    for name in columns.columns:
        values = _plain(columns[name])
        group.create_array(name, shape=values.shape, dtype=values.dtype)[:] = values
    group.attrs["megabase"] = json.loads(about)


def _write_h5ad(
    target: Path, shape: tuple[int, int], parts: Sequence[Path], columns: pl.DataFrame, about: str
) -> None:
    import anndata
    import h5py
    import pandas as pd

    # Plain objects: anndata cannot write the strings that pandas would choose by itself, nor those
    # of the categories that anndata makes of a text column and puts into natural order.
    def index(names: list[str]) -> Any:
        return pd.Index(names, dtype=object)

    with warnings.catch_warnings():  # a name that ends like the added numbers is not a mistake
        warnings.simplefilter("ignore")
        unique = anndata.utils.make_index_unique(index(columns["name"].to_list()))
    obs = pd.DataFrame(index=index(unique.tolist()))
    for name in columns.columns:
        column = columns[name]
        if column.dtype == pl.String:
            known = index(column.drop_nulls().unique().sort().to_list())
            obs[name] = pd.Categorical(column.to_list(), categories=known)
        else:
            obs[name] = _plain(column)
    var = pd.DataFrame(index=index([f"h{i}" for i in range(shape[1])]))
    data = anndata.AnnData(obs=obs, var=var, uns={"megabase": about})
    # HDF5 does not survive a full disk. So all but the matrix is made in memory and written as
    # bytes, and room for the matrix is taken from the disk before HDF5 writes into it.
    with h5py.File("x.h5ad", "w", driver="core", backing_store=False) as small:
        anndata.io.write_elem(small, "/", data)
        if "X" in small:
            del small["X"]
        small.flush()
        image = small.id.get_file_image()
    with target.open("wb") as file:
        file.write(image)
        file.flush()
        _take_room(file.fileno(), len(image) + 4 * shape[0] * shape[1] + _HDF5_SLACK)
    with h5py.File(target, "r+") as whole:
        matrix = whole.create_dataset("X", shape=shape, dtype="f4")
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for where, block in _blocks(parts):
            matrix[where] = block


def _take_room(file: int, size: int) -> None:
    """Make a file so long that `size` bytes of it are its own on the disk; fail when it is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    at, zeros = os.fstat(file).st_size, bytes(1 << 20)
    while at < size:  # macOS has no such call
        at += os.pwrite(file, zeros[: size - at], at)
