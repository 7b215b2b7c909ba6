"""Work in numbered chunks, shared out over processes, merged in input order.

The chunks are the same however many processes there are, and each is computed by one process with
a fixed number of threads, so the output does not depend on their number. Processes talk through
the part folder alone: chunk n goes to process n modulo their number, which works on one machine,
over several GPUs, and under ``torchrun`` on machines that share a file system.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from megabase.errors import InputError, InputWarning, MegabaseError, ResumableError
from megabase.evaluate.provenance import Provenance
from megabase.genome.files import is_stream, writing
from megabase.inference.parts import PartFolder

__all__ = ["Job", "Progress", "default_workers", "run_job"]

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, items done, and items in all (None while unknown)."""

_POLL_SECONDS = 0.1


class Job(Protocol):
    """Work that is done chunk by chunk. Must be picklable, without a loaded model."""

    @property
    def suffix(self) -> str:
        """Ending of part files."""
        ...

    def provenance(self) -> Provenance:
        """Give what is computed; two jobs with the same give the same output."""
        ...

    def chunks(self) -> Iterator[Any]:
        """Read the input as a stream of chunks: the same ones every time."""
        ...

    def items(self, chunk: Any) -> int:
        """Count the items of a chunk, for the progress bar."""
        ...

    def open(self, device: str | None) -> Callable[[Any], Any]:
        """Load the model onto a device and give the function from a chunk to its result."""
        ...

    def write_part(self, result: Any, path: Path) -> None:
        """Write the result of a chunk."""
        ...

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write the output from all parts in order."""
        ...


def default_workers(device: str | None) -> int:
    """Give the number of GPUs, or of cores when the CPU computes (one thread each)."""
    import torch

    if device in (None, "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    if device in (None, "cpu"):
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    return 1


def run_job(
    job: Job,
    target: str | Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    threads: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compute all chunks of a job and merge them into the output.

    Parameters
    ----------
    job
        The work.
    target
        The output.
    workers
        Processes; as many as GPUs or cores when None. Input of a single chunk is computed here.
    device
        ``cpu``, ``cuda`` (worker i takes GPU i), ``cuda:1``, ...; a GPU if there is one when None.
    threads
        Threads of each process for tensor operations on the CPU.
    resume, overwrite
        As for :meth:`megabase.inference.parts.PartFolder.open`.
    progress
        Called now and then.

    Returns
    -------
    pathlib.Path
        The output. Under ``torchrun`` rank 0 writes it and the other ranks return when their
        chunks are done.

    Raises
    ------
    MegabaseError
        Whatever the job raises; a folder of parts begun by this call is removed then. After an
        interrupt, a kill, a lost worker or on a full disk it stays, for `resume`.
    """
    target = Path(target)
    if workers is not None and workers < 1:
        raise InputError(f"the number of workers must be 1 or more, found {workers}")
    if threads < 1:
        raise InputError(f"the number of threads must be 1 or more, found {threads}")
    if device is not None:
        from megabase.models.scored_model import choose_device

        choose_device(device)  # refuses one that is not there, before any work
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        return _torchrun(job, target, rank, world, device, threads, resume, overwrite, progress)
    with _begun(job, target, resume, overwrite) as folder:
        count = default_workers(device) if workers is None else workers
        if count > 1:  # loading a model in a process takes seconds: not for a handful of items
            count = max(1, min(count, len(list(itertools.islice(job.chunks(), count)))))
        if count == 1:
            chunks = _work(job, folder, 0, 1, _worker_device(device, 0), threads, progress)
        else:
            chunks = _spawn(job, folder, count, device, threads, progress)
        if progress is not None:
            progress("writing", chunks, chunks)
        folder.finish(chunks, job.merge)
    return target


@contextlib.contextmanager
def _begun(job: Job, target: Path, resume: bool, overwrite: bool) -> Iterator[PartFolder]:
    """Own the folder of parts; decide what stays of it when the work does not end well."""
    folder = PartFolder.open(
        target, job.provenance(), job.suffix, resume=resume, overwrite=overwrite
    )
    lasts = not is_stream(target)
    try:
        yield folder
    except KeyboardInterrupt as stop:
        if lasts:
            stop.add_note(f"the finished parts are in {folder.path}; go on with --resume")
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
    job: Job,
    folder: PartFolder,
    rank: int,
    world: int,
    device: str | None,
    thread_count: int,
    progress: Progress | None = None,
) -> int:
    """Compute the chunks of one process; give the number of all chunks."""
    from megabase.models.scored_model import threads

    compute: Callable[[Any], Any] | None = None
    number, done = -1, 0
    with threads(thread_count):
        for number, chunk in enumerate(job.chunks()):
            if number % world == rank and not folder.has(number):
                if compute is None:
                    compute = job.open(device)
                result = compute(chunk)
                folder.write(number, lambda path, result=result: job.write_part(result, path))
            done += job.items(chunk)
            if progress is not None:
                progress("model", done, None)
    return number + 1


def _worker_device(device: str | None, index: int) -> str | None:
    import torch

    if device in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{index % torch.cuda.device_count()}"
    return device


def _end_with_parent() -> None:
    """End this process when the one that began it is killed: nobody would merge its parts."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _child(
    job: Job,
    folder: tuple[Path, Path],
    rank: int,
    world: int,
    device: str | None,
    thread_count: int,
    failed: Any,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    target, path = folder
    # The parent reads the same input and says it once.
    warnings.simplefilter("ignore", InputWarning)
    try:
        joined = PartFolder.join(target, job.suffix, path)
        _work(job, joined, rank, world, _worker_device(device, rank), thread_count)
    except MegabaseError as error:
        # Not through a file: the disk may be what is full.
        failed.put((isinstance(error, ResumableError), str(error)))
        sys.exit(2)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes begun in this block ignore Ctrl-C, which goes to all; their parent ends them.

    Otherwise each would show where it was.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _spawn(
    job: Job,
    folder: PartFolder,
    world: int,
    device: str | None,
    thread_count: int,
    progress: Progress | None,
) -> int:
    # Processes are started afresh: a fork of a process with threads or a GPU may hang.
    context = multiprocessing.get_context("spawn")
    failed = context.SimpleQueue()
    places = folder.target, folder.path
    arguments = [(job, places, rank, world, device, thread_count, failed) for rank in range(world)]
    children = [context.Process(target=_child, args=each, daemon=True) for each in arguments]
    try:
        with _deaf_to_interrupts():
            for child in children:
                child.start()
        sizes = [job.items(chunk) for chunk in job.chunks()]
        while True:
            alive = any(child.is_alive() for child in children)
            for rank, child in enumerate(children):
                if child.exitcode not in (None, 0):
                    raise _failure(folder, rank, child.exitcode, failed)
            if progress is not None:
                done = sum(sizes[number] for number in folder.finished())
                progress("model", done, sum(sizes))
            if not alive:
                return len(sizes)
            time.sleep(_POLL_SECONDS)
    finally:
        for child in children:
            if child.pid is not None:
                child.terminate()
                child.join()


def _failure(folder: PartFolder, rank: int, status: int | None, failed: Any) -> MegabaseError:
    if not failed.empty():
        resumable, text = failed.get()
        return ResumableError(text) if resumable else InputError(text)
    return ResumableError(
        f"worker {rank} ended with status {status}; the finished parts are kept in {folder.path}, "
        "continue with resume=True"
    )


def _torchrun(
    job: Job,
    target: Path,
    rank: int,
    world: int,
    device: str | None,
    thread_count: int,
    resume: bool,
    overwrite: bool,
    progress: Progress | None,
) -> Path:
    """Compute one rank's share; rank 0 begins the folder and merges."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "") + os.environ.get("MASTER_PORT", "")
    started = f"started-{run_id}"
    local = _worker_device(device, int(os.environ.get("LOCAL_RANK", rank)))
    if is_stream(target):
        raise InputError(f"{target}: the processes of torchrun need a file to write to")

    def share(folder: PartFolder) -> int:
        return _work(job, folder, rank, world, local, thread_count, progress if not rank else None)

    if rank > 0:
        folder = PartFolder.join(target, job.suffix)
        while not (folder.path / started).is_file():  # torchrun ends this rank when rank 0 fails
            time.sleep(_POLL_SECONDS)
        share(folder)
        return target
    with _begun(job, target, resume, overwrite) as folder:
        with writing(target):
            (folder.path / started).touch()
        chunks = share(folder)
        while not all(folder.has(number) for number in range(chunks)):
            time.sleep(_POLL_SECONDS)
        folder.finish(chunks, job.merge)
    return target
