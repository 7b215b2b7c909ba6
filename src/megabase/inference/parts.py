"""Outputs made of finished parts, so that an interrupted run goes on where it stopped.

``OUTPUT.partial`` beside an output holds ``manifest.json`` (what is computed, with which options),
a file for each finished chunk, and the lock of the process that makes it. Everything is renamed
into place, so a part that is there is whole. Of an output that is a pipe or a device it lies in the
folder for temporary files; of shard 2 of 3 in ``OUTPUT.shard-2-of-3``, which stays. Merging tables
and numbers along a genome never holds more than one part, whatever the size of the whole.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase import __version__
from megabase.data.sources import SequenceInput, genome_store
from megabase.errors import InputError, OutputError
from megabase.genome import files
from megabase.genome.files import writing
from megabase.genome.signal import BIGWIG, bigwigs
from megabase.ops import backend
from megabase.training.run_folder import differences
from megabase.untrusted import read_json

_MANIFEST = "manifest.json"  # what is computed
_SHARD = "shard.json"  # of a finished shard: which it is, and how many chunks there are in all
_MERGED = ".merged"  # marks that the output is whole and only has to be put in its place
_ZARR_GROUP = ".zgroup"  # the one kind of output that is a folder
_NOT_STREAMED = (".parquet", ".npz", ".zarr", ".h5ad", ".bw", ".bigwig")  # their writers seek
_ADVICE = "make room and continue with resume=True"  # on a full disk
TABLE_SUFFIXES = (".parquet", ".tsv")  # endings of tables
_ROW_GROUP = 1 << 16  # rows that a reader of Parquet has to hold at once
_DIGITS = 7  # in text: as many as a model that computes in 32 bits gives


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of an output come from."""

    verb: str
    """What was done: ``score``, ``variants``, ..."""
    model: str
    model_sha256: str
    """Over configuration and weights."""
    genome: str | None = None
    genome_sha256: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    """File names of the inputs, each with its sha256."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Everything that changes a number."""
    version: str = __version__

    @classmethod
    def of(cls, verb: str, ready: Any, source: SequenceInput, options: Mapping[str, Any]) -> Self:
        """Describe what is made of a file; `ready` has the ``name`` and ``digest`` of a model."""
        genome = sha256 = None
        if source.genome is not None:
            with genome_store(source.genome) as store:
                genome, sha256 = store.name, store.checksum
        options = {**options}
        if source.found_kind == "vcf":
            options["window"] = source.window
        if source.column is not None:
            options["sequence"] = source.column
        if source.regions:
            options["regions"] = list(source.regions)
        inputs = cls.digests(source.path, *source.regions)
        return cls(verb, ready.name, ready.digest, genome, sha256, inputs, options)

    @staticmethod
    def digests(*given: str | Path) -> dict[str, str]:
        """Give names and sha256 of the inputs that are files; regions may be named otherwise."""
        return {Path(one).name: files.file_digest(one) for one in given if Path(one).is_file()}

    def to_json(self) -> str:
        """Give one line of JSON with sorted keys: equal text for equal runs."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def write(self, frame: pl.DataFrame, target: Path, *, overwrite: bool = False) -> None:
        """Write a table in memory as :func:`merge_tables` does, complete or not at all."""
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part.parquet"
            frame.write_parquet(part)
            with files.atomic_file(target, overwrite, seeks=True) as file:
                merge_tables([part], Path(file.name), self)


class Shard(NamedTuple):
    """A share of the chunks of a run: those whose number modulo `out_of` is `number`."""

    number: int = 0  # 0-based, unlike in text
    out_of: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read ``2/3``; the whole for None. InputError for anything else."""
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text or "1/1")
        if match is None or int(match[1]) > int(match[2]):
            raise InputError(f"a shard is its number and how many, such as 2/3; found {text}")
        return cls(int(match[1]) - 1, int(match[2]))

    def folder(self, target: Path) -> Path | None:
        """Folder of the parts of an output; None for the whole."""
        if self.out_of == 1:
            return None
        if files.is_stream(target):
            raise InputError(f"{target}: a shard needs a file as output, beside which parts lie")
        place = files.real_place(target)
        return place.with_name(f"{place.name}.shard-{self.number + 1}-of-{self.out_of}")


_WHOLE = Shard()  # all chunks: what is merged at once


def refuse_existing(
    target: Path, overwrite: bool, shard: Shard = _WHOLE, resume: bool = False
) -> None:
    """Refuse an output that cannot be written or that another process is making."""
    if files.real_place(target).name and not files.is_stream(target):
        folder = PartFolder(target, "", shard.folder(target))
        folder._tidy()
        folder.refuse_finished(overwrite or resume)
    _check(target, overwrite)


def _check(target: Path, overwrite: bool) -> None:
    if target.is_dir() and (target / _ZARR_GROUP).is_file():
        if not overwrite:
            raise OutputError(
                f"{target} exists already and is not replaced unless asked; choose another name "
                "or use overwrite=True"
            )
        return
    files.check_output(target, overwrite, seeks=target.name.lower().endswith(_NOT_STREAMED))


class PartFolder:
    """The finished parts of one output; ``PartFolder(...)`` joins the folder of another process.

    `suffix` is the ending of the part files; the folder lies beside the output when `path` is None.
    """

    def __init__(self, target: Path, suffix: str, path: Path | None = None) -> None:
        self.target, self.suffix, self.created = target, suffix, False
        place = files.real_place(target)
        self.path = path or place.with_name(f"{place.name}.partial")
        self._lock = files.Lock(self.path / files.LOCK_NAME, target)

    @classmethod
    def open(
        cls, target: Path, provenance: Provenance, suffix: str, *, resume: bool = False,
        overwrite: bool = False, shard: Shard = _WHOLE, device: str | None = None,
    ) -> Self:  # fmt: skip
        """Begin an output, or resume an interrupted one; :meth:`release` it at the end.

        An interrupted run is resumed only with equal provenance and kind of `device` (None where
        nothing is computed). OutputError when the output exists or is being made by another
        process, or when an interrupted run left parts and neither `resume` nor `overwrite` is on.
        """
        refuse_existing(target, overwrite, shard, resume)
        stream = files.is_stream(target)
        if stream and resume:
            raise OutputError(f"{target} is a pipe or a device: there is nothing to resume")
        place = Path(tempfile.mkdtemp(prefix="megabase-")) if stream else shard.folder(target)
        folder = cls(target, suffix, place)
        try:
            folder._lock.acquire()
            folder._begin(_record(provenance, device), resume, overwrite)
        except BaseException:
            if folder.created:
                folder.discard()
            folder.release()
            with contextlib.suppress(OSError):
                folder.path.rmdir()  # made just now, if it is empty
            raise
        return folder

    def _begin(self, record: dict[str, Any], resume: bool, overwrite: bool) -> None:
        """Write the manifest, or compare with that of the interrupted run."""
        _check(self.target, overwrite)  # another process may just have finished it
        self.refuse_finished(overwrite or resume)
        manifest = self.path / _MANIFEST
        if manifest.is_file():
            if resume:
                held = read_json(manifest, OutputError)
                if "device" not in held:  # gathered shards: nothing is left to compute
                    record.pop("device", None)
                if found := [*differences(held, record).values()]:
                    more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
                    raise OutputError(
                        f"{self.path} belongs to a run with other options or inputs "
                        f"({'; '.join(found[:3])}{more}); use the same ones, or start again with "
                        "overwrite=True"
                    )
                (self.path / _SHARD).unlink(missing_ok=True)
                return
            if not overwrite:
                raise OutputError(
                    f"{self.path} holds {len(self.finished()):,} finished parts of an "
                    "interrupted run; continue it with resume=True, or start again "
                    "with overwrite=True"
                )
        self._clear()
        self.created = True
        with files.writing(self.target):
            files.write_json(manifest, record)

    def _clear(self) -> None:
        """Empty the folder, but for the lock."""
        found = [path for path in self.path.iterdir() if path.name != files.LOCK_NAME]
        strangers = [path.name for path in found if not path.name.startswith(".")]
        if strangers and not (self.path / _MANIFEST).is_file():
            raise OutputError(
                f"cannot write {self.target}: the parts would lie in {self.path}, which holds "
                f"files that are not of a run ({', '.join(sorted(strangers)[:3])}); move it away"
            )
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Refuse a folder in use; remove one that was killed after its output was in place."""
        self._lock.refuse_used()
        if (self.path / _MERGED).is_file() and not self._merged.exists():
            self.discard()  # only the last step moves the merged output away

    @property
    def _merged(self) -> Path:
        """Path of the merged output: inside the folder, so nothing half-done lies beside it."""
        return self.path / "output" / files.real_place(self.target).name

    def part(self, number: int) -> Path:
        """Place of the part of chunk `number`."""
        return self.path / f"part-{number:08d}{self.suffix}"

    def finished(self) -> list[int]:
        """Numbers of the finished parts, in order."""
        found = self.path.glob(f"part-????????{self.suffix}")
        return sorted(int(path.name[5:13]) for path in found)

    def write(self, number: int, write: Callable[[Path], object]) -> None:
        """Write the part of a chunk: `write` is given a path, whose file is then renamed."""
        part = self.part(number)
        temporary = files.new_name(part)
        with files.writing(self.target, _ADVICE):
            try:
                write(temporary)
                os.replace(temporary, part)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def finish(self, chunks: int, merge: Callable[[list[Path], Path], object]) -> None:
        """Merge all parts, in order, with `merge` (parts, path to write); remove the folder."""
        parts = [self.part(number) for number in range(chunks)]
        merged, mark = self._merged, self.path / _MERGED
        with files.writing(self.target, _ADVICE):
            mark.unlink(missing_ok=True)
            merged.parent.mkdir(exist_ok=True)
            merge(parts, merged)
            if files.is_stream(self.target):
                with files.atomic_file(self.target) as stream, merged.open("rb") as file:
                    shutil.copyfileobj(file, stream)
            else:
                place = files.real_place(self.target)
                mark.touch()
                if place.exists() and (merged.is_dir() or place.is_dir()):
                    # A folder takes no other's place: the old one goes away with the parts.
                    os.replace(place, self.path / "replaced")
                os.replace(merged, place)
        self.discard()

    def refuse_finished(self, again: bool) -> None:
        """Refuse to make a finished shard again; resuming it finds all parts."""
        if (self.path / _SHARD).is_file() and not again:
            raise OutputError(
                f"{self.path} is finished already; merge the shards with megabase merge, or use "
                "overwrite=True"
            )

    def finish_shard(self, shard: Shard, chunks: int) -> None:
        """Mark the shard as finished, of a run of this number of chunks."""
        with files.writing(self.target, _ADVICE):
            files.write_json(self.path / _SHARD, {"shard": list(shard), "chunks": chunks})

    def discard(self) -> None:
        """Remove the folder with all parts."""
        shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """End the ownership."""
        self._lock.release()


def _record(provenance: Provenance, device: str | None) -> dict[str, Any]:
    """Give what parts have to share: backends and devices round differently, so they are in it."""
    where = {"backend": backend.active()} | ({} if device is None else {"device": device})
    return {**json.loads(provenance.to_json()), **where}


def gather_shards(
    shards: Sequence[str | Path], output: str | Path, overwrite: bool = False
) -> None:
    """Put the parts of all shards of a run into ``TARGET.partial``: resuming the run merges them.

    OutputError when a shard is missing, unfinished, given twice, of another run, or lacks a part.
    """
    folders, target = [Path(shard) for shard in shards], Path(output)
    if not folders:
        raise InputError("expected the folders of shards, found none")
    found: dict[int, Path] = {}
    first: dict[str, Any] = {}
    for path in folders:
        if not (path / _SHARD).is_file():
            what = "is not a finished shard" if path.is_dir() else "is not there"
            advice = "finish it with --resume of its megabase command (resume=True in Python)"
            raise OutputError(f"{path} {what}; {advice}")
        about = read_json(path / _SHARD, OutputError)
        about["manifest"] = read_json(path / _MANIFEST, OutputError)
        (index, count), chunks = about.pop("shard"), about["chunks"]
        first = first or {**about, "count": count}
        other = [name for name, value in (about | {"count": count}).items() if first[name] != value]
        if other:
            pair = (first["manifest"], about["manifest"])
            more = "; ".join([*differences(*pair).values()][:3]) or f"other {other[0]}"
            raise OutputError(f"{path} is of another run than {folders[0]} ({more})")
        if index in found:
            pair = f"{found[index]}, {path}"
            raise OutputError(f"shard {index + 1} of {count} is given twice: {pair}")
        found[index] = path
        for number in range(index, chunks, count):
            if not any(path.glob(f"part-{number:08d}.*")):
                raise OutputError(f"{path} lacks the part of chunk {number}; make the shard again")
    missing = [str(i + 1) for i in range(first.get("count", 0)) if i not in found]
    if missing:
        raise OutputError(f"shard {', '.join(missing)} of {first['count']} is missing")
    made = {k: v for k, v in first["manifest"].items() if k not in ("backend", "device")}
    # What a killed merge left is made good.
    folder = PartFolder.open(target, Provenance(**made), "", resume=True, overwrite=overwrite)
    try:
        with files.writing(target, _ADVICE):
            for path in found.values():
                for part in path.glob("part-*"):
                    (folder.path / part.name).unlink(missing_ok=True)
                    try:
                        os.link(part, folder.path / part.name)
                    except OSError:  # another disk
                        shutil.copyfile(part, folder.path / part.name)
    except BaseException:
        folder.discard()
        raise
    finally:
        folder.release()


def require_suffix(target: str | Path, suffixes: Sequence[str] = TABLE_SUFFIXES) -> str:
    """Give the ending of an output, which says its format; OutputError if not in `suffixes`.

    A format that needs a package which is not there is refused too.
    """
    for suffix in suffixes:
        if Path(target).name.lower().endswith(suffix):
            if suffix in BIGWIG:
                bigwigs("writing bigWig")
            return suffix
    known = ", ".join(suffixes)
    raise OutputError(f"{target}: the ending says the format; expected one of {known}")


def merge_tables(parts: Sequence[Path], target: Path, provenance: Provenance) -> None:
    """Merge parts, in order, into Parquet or TSV by the ending of `target`.

    Provenance as JSON is metadata ``megabase`` of Parquet, and the first line of TSV, ``#megabase:
    {...}``. TSV has lists as numbers with commas between, and seven significant digits.
    """
    suffix = require_suffix(target)
    frame = pl.scan_parquet(list(parts), glob=False)
    if suffix == ".parquet":
        about = {"megabase": provenance.to_json()}
        frame.sink_parquet(target, row_group_size=_ROW_GROUP, metadata=about)
        return
    with target.open("wb") as file:
        file.write(f"#megabase: {provenance.to_json()}\n".encode())
        for number, part in enumerate(parts):
            rows = pl.read_parquet(part, glob=False)
            rows = rows.with_columns(_as_text(name, dtype) for name, dtype in rows.schema.items())
            rows.write_csv(file, separator="\t", include_header=number == 0)


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.List):
        each = pl.element()
        if dtype.inner.is_float():
            each = each.round_sig_figs(_DIGITS)
        return pl.col(name).list.eval(each.cast(pl.String).fill_null("nan")).list.join(",")
    return pl.col(name).round_sig_figs(_DIGITS) if dtype.is_float() else pl.col(name)


class Run(NamedTuple):
    """Numbers of neighboring bases from 0-based `start`: float32 (n,), NaN where there is none."""

    contig: str
    start: int
    values: NDArray[np.float32]

    @classmethod
    def read(cls, parts: Sequence[Path], column: str = "values") -> Iterator[Self]:
        """Read intervals of parts: contig, start, strand and a list, the column."""
        columns = ["contig", "start", "strand", column]
        for part in parts:
            frame = pl.read_parquet(part, columns=columns, glob=False)
            for contig, start, strand, values in frame.iter_rows():
                along = np.array(values, dtype=np.float32)
                yield cls(contig, start, along[::-1] if strand == "-" else along)


def write_bigwig(path: Path, contigs: Mapping[str, int], runs: Iterable[Run]) -> None:
    """Write numbers along a genome; `contigs` has the length of every contig.

    OutputError when runs overlap, are not in the order of the genome or lie outside their contig,
    or when there is no number.
    """
    package = bigwigs("writing bigWig")
    name = path.name.rpartition(".tmp.")[2]  # what it will be called
    entries = _entries(name, contigs, runs)
    first = next(entries, None)
    if first is None:
        raise OutputError(f"{name}: there is no number to write")
    # The writer swallows what its input raises, so the error is kept and raised again.
    failure: list[BaseException] = []

    def guarded() -> Iterator[tuple[str, int, int, float]]:
        try:
            yield first
            yield from entries
        except BaseException as error:  # noqa: BLE001
            failure.append(error)

    try:
        package.open(str(path), "w").write(dict(contigs), guarded())
    except (OSError, ValueError, RuntimeError) as error:
        if failure:
            raise failure[0] from error
        with writing(path):
            raise
    if failure:
        raise failure[0]


def _entries(
    name: str, contigs: Mapping[str, int], runs: Iterable[Run]
) -> Iterator[tuple[str, int, int, float]]:
    """Give the segments of one value of all runs, which are checked for their order."""
    contig, reached, finished = "", 0, set[str]()
    for run in runs:
        if run.contig != contig:
            finished.add(contig)
            contig, reached = run.contig, 0
        length = contigs.get(run.contig, 0)
        if run.contig in finished or run.start < reached:
            raise OutputError(
                f"{name}: {run.contig}:{run.start + 1:,} comes after a later position; "
                "tracks are written in the order of the genome, without overlap"
            )
        reached = run.start + len(run.values)
        if reached > length:
            raise OutputError(
                f"{name}: {run.contig}:{run.start + 1:,}-{reached:,} reaches past the end "
                f"of the contig ({length:,})"
            )
        if not len(run.values):
            continue
        changes = np.flatnonzero(run.values[1:] != run.values[:-1]) + 1  # NaN differs from itself
        bounds = np.concatenate(([0], changes, [len(run.values)]))
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            value = float(run.values[first])
            if not np.isnan(value):
                yield run.contig, run.start + first, run.start + last, value
