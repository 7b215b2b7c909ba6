"""Outputs made of finished parts, so that an interrupted run goes on where it stopped.

While ``OUTPUT`` is being made there is a folder ``OUTPUT.partial`` beside it: ``manifest.json``
(what is being computed, with which options) and one file for each finished chunk of work. Every
part is written beside its place and renamed, so a part that is there is whole. At the end the
parts are merged in order, the output takes its place in one step, and the folder goes away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from megabase.inference.errors import OutputError
from megabase.inference.provenance import Provenance

__all__ = ["PartFolder", "refuse_existing"]

_MANIFEST = "manifest.json"
_ZARR_GROUP = ".zgroup"  # the one kind of output that is a folder


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises
    ------
    OutputError
        When it exists (and `overwrite` is off), is a folder, or would lie in no folder.
    """
    if target.is_dir() and not (target / _ZARR_GROUP).is_file():
        raise OutputError(f"cannot write {target}: it is a folder; give a file name")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}")
    if target.exists() and not overwrite:
        raise OutputError(
            f"{target} exists already and is not replaced unless asked; choose another name or "
            "use --overwrite (overwrite=True)"
        )


class PartFolder:
    """The finished parts of one output.

    Use :meth:`open`.

    Parameters
    ----------
    target
        The output.
    suffix
        Ending of the part files, with its dot.
    """

    def __init__(self, target: Path, suffix: str) -> None:
        self.target = target
        self.suffix = suffix
        self.path = target.with_name(f"{target.name}.partial")
        self.created = False

    @classmethod
    def open(
        cls,
        target: Path,
        provenance: Provenance,
        suffix: str,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> PartFolder:
        """Begin an output, or go on with an interrupted one.

        Parameters
        ----------
        target
            The output.
        provenance
            What is computed; an interrupted run is continued only with the same.
        suffix
            Ending of the part files, with its dot.
        resume
            Whether to go on with an interrupted run; without one the work begins anew.
        overwrite
            Whether an existing output, or what an interrupted run left, may be replaced.

        Raises
        ------
        OutputError
            When the output exists; when an interrupted run left parts and neither `resume` nor
            `overwrite` is on; when the options differ from those of the interrupted run.
        """
        refuse_existing(target, overwrite)
        folder = cls(target, suffix)
        manifest = folder.path / _MANIFEST
        if manifest.is_file():
            if resume:
                folder._require_same(provenance, json.loads(manifest.read_text()))
                return folder
            if not overwrite:
                raise OutputError(
                    f"{folder.path} holds {len(folder.finished()):,} finished parts of an "
                    "interrupted run; continue it with --resume (resume=True), or start again "
                    "with --overwrite"
                )
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.path.mkdir()
        folder.created = True
        _write(manifest, lambda path: path.write_text(json.dumps(provenance.to_dict(), indent=1)))
        return folder

    @classmethod
    def join(cls, target: Path, suffix: str) -> PartFolder:
        """Use the folder that another process began."""
        return cls(target, suffix)

    def _require_same(self, provenance: Provenance, record: dict[str, object]) -> None:
        differences = provenance.differences(record)
        if differences:
            shown = "; ".join(differences[:3])
            more = f" and {len(differences) - 3:,} more" if len(differences) > 3 else ""
            raise OutputError(
                f"{self.path} belongs to a run with other options ({shown}{more}); use the same "
                "ones, or start again with --overwrite"
            )

    def part(self, number: int) -> Path:
        """Place of the part of chunk `number`."""
        return self.path / f"part-{number:08d}{self.suffix}"

    def has(self, number: int) -> bool:
        """Whether the part of this chunk is finished."""
        return self.part(number).is_file()

    def finished(self) -> list[int]:
        """Numbers of the finished parts, in order."""
        return sorted(
            int(path.name[5:13]) for path in self.path.glob(f"part-????????{self.suffix}")
        )

    def write(self, number: int, write: Callable[[Path], object]) -> None:
        """Write the part of a chunk: `write` is given a path, whose file is then renamed."""
        _write(self.part(number), write)

    def finish(self, chunks: int, merge: Callable[[list[Path], Path], object]) -> None:
        """Merge the parts into the output and remove the folder.

        Parameters
        ----------
        chunks
            Number of parts.
        merge
            Called with the parts in order and the path to write.

        Raises
        ------
        OutputError
            When the output cannot be written.
        """
        parts = [self.part(number) for number in range(chunks)]
        # Written inside the folder: whatever happens, nothing half-done lies beside the output.
        merged = self.path / self.target.name
        try:
            merge(parts, merged)
            if self.target.exists() and (merged.is_dir() or self.target.is_dir()):
                # A folder takes no other's place: the old one goes away with the parts.
                os.replace(self.target, self.path / "replaced")
            os.replace(merged, self.target)
        except OSError as error:
            raise OutputError(f"cannot write {self.target}: {error.strerror or error}") from error
        self.discard()

    def discard(self) -> None:
        """Remove the folder with all parts."""
        shutil.rmtree(self.path, ignore_errors=True)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
