"""One engine for every verb that maps a file: chunks, shared out over processes, merged in order.

Chunks do not depend on the number of processes, and each is computed by one process with a fixed
number of threads, so neither does the output. Beyond a machine work is shared by shards, whole
chunks each: chunk n goes to shard n modulo their number, and there to a process in the same way.
"""

import contextlib
import difflib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import polars as pl
import torch

from megabase.data.sources import SequenceInput, genome_store
from megabase.errors import InputError, InputWarning, MegabaseError, ResumableError
from megabase.genome.files import is_stream
from megabase.inference.parts import PartFolder, Provenance, Shard, refuse_existing
from megabase.models.loading import choose_device, threads
from megabase.options import Progress, RunOptions
from megabase.training.process import handling

_Part = pl.DataFrame | str | bytes
"""Result of a chunk: a frame (kept as Parquet), lines of text, or what is kept as it is."""

_Merge = Callable[[list[Path], Path, Provenance], object]  # writes all parts, in order, to a path
_POLL_SECONDS = 0.1  # a chunk takes seconds or more, so looking more often would show nothing new
BATCH_TOKENS = 1 << 16
"""Positions of a forward pass: a small model then keeps a CPU or a GPU busy in a few GB."""


@dataclass(frozen=True)
class Work:
    """What is done to every chunk of an input: all that a worker process is told, so picklable."""

    verb: Callable[[Any, Any], _Part]
    """A function of a module, called with what `make` gave and a chunk."""
    make: Callable[..., Any]
    """Called with ``device=``: loads the model, in each process once."""
    chunks: Callable[..., Iterable[Any]]
    """Reads the input as a stream of chunks: the same ones at every call."""
    items: Callable[[Any], int] = len
    """Counts the items of a chunk, for the progress bar."""
    suffix: str = ".parquet"
    """Ending of part files: ``.parquet`` for frames, any other for text."""


@dataclass(frozen=True)
class _Share:
    """Which chunks a process computes, and with what."""

    rank: int = 0
    world: int = 1
    device: str | None = None
    threads: int = 1
    shard: Shard = Shard.parse(None)  # noqa: RUF009 (immutable)

    def has(self, number: int) -> bool:
        """Whether a chunk is for this process."""
        mine = number % self.shard.out_of == self.shard.number
        return mine and number // self.shard.out_of % self.world == self.rank


def _require_known(options: Mapping[str, Any], kind: Any) -> None:
    """Refuse keywords that a TypedDict does not have, which Python itself lets through."""
    for name in options.keys() - kind.__optional_keys__:
        near = difflib.get_close_matches(name, kind.__optional_keys__, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"there is no option {name}{hint}")


def split_options(options: Mapping[str, Any], kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part the keywords of a verb from those of :class:`RunOptions`; refuse others than of `kind`.

    The first are all that changes a number.
    """
    _require_known(options, kind)
    run = {name: options[name] for name in options.keys() & RunOptions.__optional_keys__}
    return {name: options[name] for name in options.keys() - run.keys()}, run


def check_run(output: str | Path, **running: Unpack[RunOptions]) -> _Share:
    """Refuse options that cannot be, and an output that cannot be written, before any work."""
    _require_known(running, RunOptions)
    workers, device = running.get("workers"), running.get("device")
    number = running.get("threads", 1)
    if workers is not None and workers < 1:
        raise InputError(f"the number of workers must be 1 or more, found {workers}")
    if number < 1:
        raise InputError(f"the number of threads must be 1 or more, found {number}")
    if device is not None:
        choose_device(device)  # refuses one that is not there
    shard = Shard.parse(running.get("shard"))
    overwrite, resume = (running.get(name, False) for name in ("overwrite", "resume"))
    refuse_existing(Path(output), overwrite, shard, resume)
    return _Share(0, 1, _worker_device(device, 0), number, shard)


def map_file(
    work: Work, output: str | Path, describe: Callable[[Any], Provenance], merge: _Merge,
    **running: Unpack[RunOptions],
) -> Path:  # fmt: skip
    """Compute all chunks of an input and merge them into the output.

    `describe` is called in this process with what ``work.make`` gave (with ``batch_tokens`` too),
    before the first chunk: it checks that and gives the provenance; equal provenance means equal
    output. With ``shard`` the parts are not merged, and the result is their folder. A folder of
    parts begun by this call stays, for ``resume``, after an interrupt, a kill, a lost worker or on
    a full disk; other errors remove it.
    """
    output = Path(output)
    workers, device = running.get("workers"), running.get("device")
    progress = running.get("progress")
    share = check_run(output, **running)
    if "batch_tokens" in running:
        work = replace(work, make=partial(work.make, batch_tokens=running["batch_tokens"]))
    count = _worker_count(device) if workers is None else workers
    # Where others compute, the model of this process only tells its name and digest.
    aside = count > 1
    with threads(share.threads):  # as in the processes: what is made here may depend on them
        ready = work.make(device=None if aside else share.device)
        provenance = describe(ready)
    with _begun(work, output, provenance, running) as folder:
        if count > 1:  # loading a model in a process takes seconds: not for a few items
            count = max(1, min(count, len(list(itertools.islice(work.chunks(), count)))))
        if count > 1:
            chunks = _spawn(work, folder, count, device, share, progress)
        else:
            if aside and share.device not in (None, "cpu"):
                ready = work.make(device=share.device)
            chunks = _work(work, folder, share, ready, progress)
        if share.shard.out_of > 1:
            folder.finish_shard(share.shard, chunks)
            return folder.path
        if progress is not None:
            progress("writing", chunks, chunks)
        folder.finish(chunks, lambda parts, target: merge(parts, target, provenance))
    return output


def map_sequences(
    verb: str, work: Work, source: SequenceInput | str | Path, output: str | Path,
    describe: Callable[[Any], dict[str, Any]], merge: _Merge, **running: Unpack[RunOptions],
) -> Path:  # fmt: skip
    """Compute all chunks of a file of sequences, as :func:`map_file`.

    ``work.chunks`` is called with the input, a FASTA genome of which becomes a store for all
    processes; an InputError of ``work.verb`` is given the name of the file. `describe` gives the
    options, all that changes a number.
    """
    if not isinstance(source, SequenceInput):
        source = SequenceInput(source)
    check_run(output, **running)
    with contextlib.ExitStack() as stack:
        if source.genome is not None:
            store = stack.enter_context(genome_store(source.genome))
            source = replace(source, genome=store.path)
        ours = replace(
            work,
            verb=partial(_naming_the_file, work.verb, Path(source.path).name),
            chunks=partial(work.chunks, source),
        )

        def provenance(ready: Any) -> Provenance:
            return Provenance.of(verb, ready, source, describe(ready))

        return map_file(ours, output, provenance, merge, **running)


def _naming_the_file(verb: Callable[[Any, Any], _Part], name: str, ready: Any, chunk: Any) -> _Part:
    """Compute a chunk; say in which file an item is that cannot be used."""
    try:
        return verb(ready, chunk)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _worker_count(device: str | None) -> int:
    """Give the number of GPUs, or of cores when the CPU computes (one thread each)."""
    if device in (None, "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    if device in (None, "cpu"):
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 1


def _worker_device(device: str | None, index: int) -> str | None:
    """Give the device of a process: each takes a GPU of its own while there are some."""
    if device in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{index % torch.cuda.device_count()}"
    return device


@contextlib.contextmanager
def _begun(
    work: Work, output: Path, provenance: Provenance, running: RunOptions
) -> Iterator[PartFolder]:
    """Own the folder of parts; decide what stays of it when the work does not end well."""
    folder = PartFolder.open(
        output, provenance, work.suffix,
        resume=running.get("resume", False), overwrite=running.get("overwrite", False),
        shard=Shard.parse(running.get("shard")), device=choose_device(running.get("device")).type,
    )  # fmt: skip
    lasts = not is_stream(output)
    try:
        yield folder
    except KeyboardInterrupt as stop:
        if lasts:
            stop.add_note(f"the finished parts are in {folder.path}; continue with --resume")
        raise
    except ResumableError:
        raise
    except MegabaseError:
        if folder.created:
            folder.discard()
        raise
    finally:
        if not lasts:
            folder.discard()
        folder.release()


def _work(
    work: Work, folder: PartFolder, share: _Share, ready: Any = None,
    progress: Progress | None = None,
) -> int:  # fmt: skip
    """Compute the chunks of one process; give the number of all chunks."""
    number, done = -1, 0
    with threads(share.threads):
        for number, chunk in enumerate(work.chunks()):
            if not share.has(number):
                continue
            if not folder.part(number).is_file():
                if ready is None:
                    ready = work.make(device=share.device)
                folder.write(number, partial(_write_part, work.verb(ready, chunk)))
            done += work.items(chunk)
            if progress is not None:
                progress("model", done, None)
    return number + 1


def _write_part(result: _Part, path: Path) -> None:
    if isinstance(result, str):
        path.write_text(result, encoding="utf-8")
    elif isinstance(result, bytes):
        path.write_bytes(result)
    else:
        result.write_parquet(path)


def _end_with_parent() -> None:
    """End this process when the one that began it is killed: nobody would merge its parts."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _child(work: Work, output: Path, parts: Path, share: _Share, failed: Any) -> None:
    """Compute the share of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The parent reads the same input and says it once.
    warnings.simplefilter("ignore", InputWarning)
    try:
        _work(work, PartFolder(output, work.suffix, parts), share)
    except MegabaseError as error:
        # Not through a file: the disk may be what is full.
        failed.put((isinstance(error, ResumableError), str(error)))
        sys.exit(2)


def _spawn(
    work: Work, folder: PartFolder, world: int, device: str | None, whole: _Share,
    progress: Progress | None,
) -> int:  # fmt: skip
    """Share the chunks out over new processes; give the number of all chunks."""
    # Processes are started afresh: a fork of a process with threads or a GPU may hang.
    context = multiprocessing.get_context("spawn")
    failed = context.SimpleQueue()
    children = []
    for rank in range(world):
        share = replace(whole, rank=rank, world=world, device=_worker_device(device, rank))
        told = (work, folder.target, folder.path, share, failed)
        children.append(context.Process(target=_child, args=told, daemon=True))
    try:
        # Ctrl-C goes to all processes; this one ends the others.
        with handling(signal.SIG_IGN, signal.SIGINT):
            for child in children:
                child.start()
        sizes = [work.items(chunk) for chunk in work.chunks()]
        mine = sum(size for number, size in enumerate(sizes) if whole.has(number))
        while True:
            alive = any(child.is_alive() for child in children)
            for rank, child in enumerate(children):
                if child.exitcode not in (None, 0):
                    raise _failure(folder, rank, child.exitcode, failed)
            if progress is not None:
                done = sum(sizes[number] for number in folder.finished())
                progress("model", done, mine)
            if not alive:
                return len(sizes)
            time.sleep(_POLL_SECONDS)
    finally:
        for child in children:
            if child.pid is not None:
                child.terminate()
                child.join()


def _failure(folder: PartFolder, rank: int, status: int | None, failed: Any) -> MegabaseError:
    """Give the error of a worker as the error of this process."""
    if not failed.empty():
        resumable, text = failed.get()
        return ResumableError(text) if resumable else InputError(text)
    return ResumableError(
        f"worker {rank} ended with status {status}; the finished parts are kept in {folder.path}, "
        "continue with resume=True"
    )
