"""Outputs made of finished parts, so that an interrupted run goes on where it stopped.

``OUTPUT.partial`` beside an output holds ``manifest.json`` (what is computed, with which options),
a file for each finished chunk, and the lock of the process that makes it. Everything is renamed
into place, so a part that is there is whole. Of an output that is a pipe or a device it lies in the
folder for temporary files; of shard 2 of 3 in ``OUTPUT.shard-2-of-3``, which stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from megabase import __version__
from megabase.data.sources import SequenceInput, genome_store
from megabase.errors import InputError, OutputError
from megabase.genome import files
from megabase.untrusted import read_json

_MANIFEST = "manifest.json"  # what is computed
_SHARD = "shard.json"  # of a finished shard: which it is, and how many chunks there are in all
_MERGED = ".merged"  # marks that the output is whole and only has to be put in its place
_ZARR_GROUP = ".zgroup"  # the one kind of output that is a folder
_NOT_STREAMED = (".parquet", ".npz", ".zarr", ".h5ad", ".bw", ".bigwig")  # their writers seek
_ADVICE = "make room and continue with resume=True"  # on a full disk


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
    def of(
        cls, verb: str, ready: Any, source: SequenceInput, options: Mapping[str, Any]
    ) -> Provenance:
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


class Shard(NamedTuple):
    """A share of the chunks of a run: those whose number modulo `out_of` is `number`."""

    number: int = 0
    """0-based, unlike in text."""
    out_of: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
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
    ) -> PartFolder:  # fmt: skip
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
                from megabase.training.run_folder import differences

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
    from megabase.ops import backend

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
            from megabase.training.run_folder import differences

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
