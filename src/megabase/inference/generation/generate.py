"""Sequences written by a causal language model, base by base."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.augment import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.sequences import as_codes, require_several
from megabase.genome.alphabet import decode, encode
from megabase.inference.generation.decoding import Decoder, step_threads
from megabase.inference.generation.sampling import Sampler, SamplingOptions
from megabase.models.checkpoints.finite import require_finite
from megabase.models.loading import Loaded, ModelSpec, inference_mode, load, threads

__all__ = ["Generated", "Prompt", "Task", "Writer", "generate", "generate_stream", "task_chunks"]

_BATCH_POSITIONS = 1 << 19
_MOST_SIDE_BY_SIDE = 16
_IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT",
    "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGTN",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """What a sequence begins with.

    Parameters
    ----------
    codes
        Base codes, uint8 (length,); may be empty: the first base is then drawn evenly.
    name
        Name for outputs.
    """

    codes: NDArray[np.uint8]
    name: str = ""

    @classmethod
    def of(cls, text: str, name: str = "") -> Prompt:
        """Read letters; errors as :func:`megabase.genome.alphabet.encode`."""
        return cls(as_codes(text, "the prompt"), name)


@dataclass(frozen=True)
class Generated:
    """One sequence written by a model.

    Parameters
    ----------
    number
        Running number of the sequence; with the seed it decides all draws.
    name
        Name of its prompt.
    prompt
        Letters it was given.
    sequence
        Letters that were written, without the prompt.
    log_prob
        Natural log-probability of the written letters among those allowed, under the model itself
        (temperature 1, no cuts).
    stopped
        ``"length"``, or the motif that ended it.
    """

    number: int
    name: str
    prompt: str
    sequence: str
    log_prob: float
    stopped: str


@dataclass(frozen=True)
class Task:
    """A sequence to write: its running number and what it begins with."""

    number: int
    prompt: Prompt


def generate(
    model: ModelSpec = None,
    prompts: Iterable[str | Prompt] = ("",),
    *,
    length: int = 1_000,
    samples: int = 1,
    options: SamplingOptions | None = None,
    stop: Sequence[str] = (),
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Generated, ...]:
    """Write sequences with a causal language model.

    Parameters
    ----------
    model
        A model, or how :func:`megabase.models.auto.load_model` finds it.
    prompts
        What sequences begin with: letters, or :class:`Prompt` with a name.
    length
        Bases to write after each prompt, at most.
    samples
        Sequences for each prompt.
    options
        How letters are drawn.
    stop
        Motifs (IUPAC letters) that end a sequence once its written part ends with one; the motif
        stays.
    batch_size
        Sequences written side by side; chosen by their length when None. Prompts of one length go
        together. It changes time and memory; results but for rounding it does not.
    progress
        Called with the number of bases written since the last call.

    Returns
    -------
    tuple of Generated
        In the order of the prompts.

    Raises
    ------
    InputError
        When the model cannot write, or a prompt and its continuation do not fit it.
    """
    found = generate_stream(
        model,
        prompts,
        length=length,
        samples=samples,
        options=options,
        stop=stop,
        batch_size=batch_size,
        progress=progress,
    )
    return tuple(found)


def generate_stream(
    model: ModelSpec = None,
    prompts: Iterable[str | Prompt] = ("",),
    *,
    length: int = 1_000,
    samples: int = 1,
    options: SamplingOptions | None = None,
    stop: Sequence[str] = (),
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Generated]:
    """Give the sequences of :func:`generate` one after the other, reading prompts as needed."""
    if length < 1 or samples < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(
            "length, samples and batch_size must be 1 or more, found "
            f"{length}, {samples} and {batch_size}"
        )
    writer = Writer(load(model, head="language"), length, options, stop, batch_size, progress)
    for chunk in task_chunks(prompts, samples, length, batch_size):
        yield from writer.write(chunk)


def task_chunks(
    prompts: Iterable[str | Prompt], samples: int, length: int, batch_size: int | None = None
) -> Iterator[list[Task]]:
    """Give the sequences to write, with their numbers, in chunks: the same ones every time.

    A chunk is a batch, or several where the prompts differ in length: those of one length are
    found among so many.
    """
    chunk: list[Task] = []
    for number, prompt in enumerate(_repeated(prompts, samples)):
        chunk.append(Task(number, prompt))
        size = len(chunk[0].prompt.codes)
        same = all(len(task.prompt.codes) == size for task in chunk)
        most = _width(size, length, batch_size) if same else 8 * (batch_size or _MOST_SIDE_BY_SIDE)
        if len(chunk) >= most:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _repeated(prompts: Iterable[str | Prompt], samples: int) -> Iterator[Prompt]:
    for given in require_several(prompts):
        prompt = given if isinstance(given, Prompt) else Prompt.of(given)
        yield from (prompt for _ in range(samples))


def _width(size: int, length: int, batch_size: int | None) -> int:
    """Give how many sequences are written side by side after prompts of `size` bases."""
    return batch_size or max(1, min(_MOST_SIDE_BY_SIDE, _BATCH_POSITIONS // (size + length)))


class _Motif:
    """A motif in IUPAC letters."""

    def __init__(self, text: str) -> None:
        if not text or set(text.upper()) - set(_IUPAC):
            raise InputError(
                f"a stop motif is written in IUPAC letters ({''.join(_IUPAC)}), found {text!r}"
            )
        self.text = text.upper()
        self._allowed = [set(encode(_IUPAC[letter]).tolist()) for letter in self.text]

    def ends(self, codes: NDArray[np.uint8]) -> bool:
        if len(codes) < len(self._allowed):
            return False
        tail = codes[len(codes) - len(self._allowed) :].tolist()
        return all(code in allowed for code, allowed in zip(tail, self._allowed, strict=True))


class Writer:
    """Writes chunks of sequences with one model.

    Parameters
    ----------
    model
        A causal language model, loaded.
    length, options, stop, batch_size, progress
        As for :func:`generate`.

    Raises
    ------
    InputError
        When the model cannot write, or a number or a motif is out of range.
    """

    def __init__(
        self,
        model: Loaded,
        length: int,
        options: SamplingOptions | None = None,
        stop: Sequence[str] = (),
        batch_size: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.model, self.name, self.digest = model.model, model.name, model.digest
        self.length, self.options = length, options or SamplingOptions()
        self.stop = [_Motif(motif) for motif in stop]
        self.batch_size = batch_size
        self.progress = progress or (lambda count: None)
        self.longest, self.device = model.longest, model.device
        self._decoder: Decoder | None = None
        Decoder(self.model, 1, 1)  # refuses what cannot write, before anything is read

    def check(self, prompt: Prompt) -> None:
        """Refuse a prompt that does not fit, or holds what is no base."""
        size, name = len(prompt.codes), f" {prompt.name!r}" if prompt.name else ""
        if self.longest is not None and size + self.length > self.longest:
            raise InputError(
                f"prompt{name} has {size:,} bases and {self.length:,} are to be written, but the "
                f"model takes at most {self.longest:,} positions; shorten one of them"
            )

    def _reader(self, batch: int, length: int) -> Decoder:
        if self._decoder is None or self._decoder.length not in (None, length):
            self._decoder = Decoder(self.model, batch, length)
        else:
            self._decoder.reset(batch)
        return self._decoder

    def write(self, chunk: Sequence[Task]) -> list[Generated]:
        """Write the sequences of a chunk; they come in its order.

        Raises
        ------
        InputError
            For a prompt that does not fit.
        """
        by_length: dict[int, list[Task]] = {}
        for task in chunk:
            self.check(task.prompt)
            by_length.setdefault(len(task.prompt.codes), []).append(task)
        written: dict[int, Generated] = {}
        with inference_mode(self.model):
            for size, same in by_length.items():
                width = _width(size, self.length, self.batch_size)
                for begin in range(0, len(same), width):
                    for one in self._write(same[begin : begin + width]):
                        written[one.number] = one
        return [written[task.number] for task in chunk]

    def _write(self, tasks: list[Task]) -> list[Generated]:
        batch, size = len(tasks), len(tasks[0].prompt.codes)
        reader = self._reader(batch, size + self.length)
        prompts = np.stack([task.prompt.codes for task in tasks]).reshape(batch, size)
        scores = reader.prefill(codes_to_ids(torch.from_numpy(prompts)).to(self.device))
        with threads(step_threads(self.model, batch)):
            return self._steps(tasks, reader, scores)

    def _steps(self, tasks: list[Task], reader: Decoder, scores: Tensor) -> list[Generated]:
        batch = len(tasks)
        sampler = Sampler(self.options, [task.number for task in tasks])
        codes = np.empty((batch, self.length), np.uint8)
        log_probs = np.zeros(batch)
        ends: list[tuple[int, str] | None] = [None] * batch
        running = np.ones(batch, bool)
        told = 0
        for step in range(self.length):
            given = _numpy(scores)
            require_finite(given, self.name, "scores", lambda row: _sequence_name(tasks[row]))
            places, own = sampler.draw(given)
            codes[:, step] = sampler.codes[places]
            log_probs += np.where(running, own, 0.0) if self.stop else own
            if self.stop:
                self._stop(codes[:, : step + 1], ends, running)
                if not running.any():
                    break
            if step + 1 < self.length:
                ids = torch.from_numpy(sampler.ids[places])
                scores = reader.step(ids if self.device.type == "cpu" else ids.to(self.device))
            if step + 1 - told == 256:
                told = step + 1
                self.progress(256 * batch)
        self.progress((self.length - told) * batch)
        found = []
        for row, task in enumerate(tasks):
            end, why = ends[row] or (self.length, "length")
            written = decode(codes[row, :end])
            prompt = decode(task.prompt.codes)
            found.append(
                Generated(
                    task.number, task.prompt.name, prompt, written, float(log_probs[row]), why
                )
            )
        return found

    def _stop(
        self,
        codes: NDArray[np.uint8],
        ends: list[tuple[int, str] | None],
        running: NDArray[np.bool_],
    ) -> None:
        for row in np.flatnonzero(running).tolist():
            for motif in self.stop:
                if motif.ends(codes[row]):
                    ends[row] = (codes.shape[1], motif.text)
                    running[row] = False
                    break


def _sequence_name(task: Task) -> str:
    prompt = f" (prompt {task.prompt.name})" if task.prompt.name else ""
    return f"generated sequence {task.number}{prompt}"


def _numpy(scores: Any) -> NDArray[np.floating]:
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    return scores.cpu().numpy()
