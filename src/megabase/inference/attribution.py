"""Attribution: what each base of a sequence does to an output of a model.

A sequence is a one-hot matrix X of shape (length, 4), the embedding of a position is X @ E with the
rows of E for A, C, G, T, and the output f is a function of X. ``gradient`` is df/dX;
``gradient_input`` is df/dX at the base that stands there. ``integrated_gradients`` is (X - X')
times the mean gradient on the straight way from a baseline X' to X (Sundararajan, Taly and Yan,
arXiv 1703.01365), computed by captum: its sum is f(X) - f(X') but for a gap, which is given.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, cast, get_args

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megabase.data.sources import Sequence as Given
from megabase.data.sources import SequenceInput, genome_store
from megabase.errors import InputError, MissingDependencyError, OutputError
from megabase.evaluate.sequences import named_sequences, require_readable
from megabase.genome import alphabet
from megabase.genome.signal import BIGWIG
from megabase.inference.jobs import BATCH_TOKENS, Work, map_sequences, split_options
from megabase.inference.parts import Provenance, Run, merge_tables, require_suffix, write_bigwig
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import ModelSpec, find_class, inference_mode, language_model_kind, load
from megabase.options import AttributeOptions

_Method = Literal["gradient", "gradient_input", "integrated_gradients"]
_Baseline = Literal["uniform", "n"]
"""Where integrated gradients begin. ``uniform``: a quarter of every base. ``n``: the letter N at
every position. (An embedding of zeros is not a baseline: the norm layers are steep around it.)"""

_Codes = NDArray[np.uint8]
_LOG_LIKELIHOOD = "log-likelihood"  # name of the output of a language model
_SUFFIXES = (".parquet", ".npz", *BIGWIG)  # formats that hold a number for each base
_NUMBERS = ("output", "baseline_output", "gap")  # of a whole sequence


@dataclass(frozen=True, repr=False)
class Attribution:
    """What each base of one sequence does to an output."""

    values: NDArray[np.float32]
    """(length,): contribution of each position; its sum over A, C, G, T (and N)."""
    letters: NDArray[np.float32]
    """(length, 4): by letter. The gradient for the gradient methods, the shares of integrated
    gradients otherwise."""
    output: float
    """f of the sequence: a logit, or a log-likelihood in nats."""
    baseline_output: float
    """f of the baseline; NaN for the gradient methods."""
    gap: float
    """Sum of the attributions minus (output - baseline_output); NaN for the gradient methods."""

    def __repr__(self) -> str:
        return f"Attribution({len(self.values):,} bases, output {self.output:.4g})"


class _Attributor:
    """A model and an output of it, ready to attribute; options: :class:`AttributeOptions`."""

    def __init__(
        self, spec: ModelSpec = None, *, target: str | int | None = None,
        method: _Method = "integrated_gradients", baseline: _Baseline = "uniform", steps: int = 64,
        batch_tokens: int = BATCH_TOKENS // 2, device: str | torch.device | None = None,
    ) -> None:  # fmt: skip
        for name, value, kind in (("method", method, _Method), ("baseline", baseline, _Baseline)):
            if value not in get_args(kind):
                raise InputError(f"{name} is one of {', '.join(get_args(kind))}; found {value!r}")
        if steps < 1:
            raise InputError(f"steps must be 1 or more, found {steps}")
        if method == "integrated_gradients":
            MissingDependencyError.load("captum.attr", "attribute", "integrated gradients")
        self._loaded = loaded = load(spec, device=device)
        self.model, self.kind, self.name = loaded.model, loaded.kind, loaded.name
        self.encoder, self.digest = loaded.encoder, loaded.digest
        self.device, self.names = loaded.device, loaded.class_names()
        if not self.encoder.per_base:
            raise InputError(
                f"{self.name} reads tokens of several bases; attribution to single bases needs one "
                "token for each base"
            )
        self.method, self.baseline, self.steps = method, baseline, steps
        self.batch_tokens = batch_tokens
        self.target = self._find_target(target)
        codes = np.arange(5, dtype=np.uint8)  # token ids of A, C, G, T and N
        rows = self.encoder.row(codes)[self.encoder.before :][:5]
        self.rows = torch.from_numpy(rows).to(self.device)

    def _find_target(self, target: str | int | None) -> int | str:
        if self.kind == "causal-lm":
            language_model_kind(self.model)  # refuses a next-token head that sees what it predicts
            if target not in (None, _LOG_LIKELIHOOD):
                raise InputError(
                    f"{self.name} is a language model without classes; its target is the "
                    f"{_LOG_LIKELIHOOD} of the sequence, found {target!r}"
                )
            return _LOG_LIKELIHOOD
        if self.kind not in ("sequence-classification", "token-classification"):
            raise InputError(
                f"{self.name} is a {self.kind} model; attribution needs a classifier or a causal "
                "language model"
            )
        return find_class(self.names, target, self.name)

    def __call__(self, codes: _Codes, name: str = "the sequence") -> Attribution:
        """Attribute one sequence of base codes, uint8 (length,).

        InputError when it is empty or longer than the model reads, NotFiniteError for NaN or
        infinity.
        """
        require_readable(self._loaded, codes, name, "attribute a shorter part")
        trained = [one for one in self.model.parameters() if one.requires_grad]
        for parameter in trained:  # no gradients to weights, which are as before afterwards
            parameter.requires_grad_(False)
        try:
            with inference_mode(self.model, gradients=True):
                found = self._attribute((codes & alphabet.BASE_BITS).astype(np.uint8))
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
        whole = [found.output]
        if self.method == "integrated_gradients":
            whole += [found.baseline_output, found.gap]
        numbers = np.concatenate((whole, found.values, found.letters.ravel()))
        require_finite(numbers[None], self.name, "attributions", lambda _: name)
        return found

    def _attribute(self, codes: _Codes) -> Attribution:
        batch = self.encoder.batch(codes[None], self.device)
        place = int(batch.bases[0].int().argmax())
        observed = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        dtype = next(self.model.parameters()).dtype
        x = nn.functional.one_hot(observed, 5).to(dtype)[None]  # (1, L, 5): A, C, G, T, N

        def forward(one_hot: Tensor) -> Tensor:
            return self._output(one_hot, batch.ids, place, observed)

        if self.method == "integrated_gradients":
            return self._integrated(forward, x)
        x.requires_grad_()
        value = forward(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
        letters = slope[0, :, :4]
        given = (slope * x)[0].sum(-1) if self.method == "gradient_input" else slope[0].norm(dim=-1)
        nan = float("nan")
        return Attribution(_numbers(given), _numbers(letters), float(value.detach()[0]), nan, nan)

    def _integrated(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Attribution:
        from captum.attr import IntegratedGradients

        values = [0.25] * 4 + [0.0] if self.baseline == "uniform" else [0.0] * 4 + [1.0]
        start = x.new_tensor(values).expand_as(x).contiguous()
        shares = IntegratedGradients(forward).attribute(
            x, baselines=start, n_steps=self.steps, method="gausslegendre",
            internal_batch_size=max(1, self.batch_tokens // x.shape[1]),
        )  # fmt: skip
        shares = cast("Tensor", shares).detach()[0]
        with torch.no_grad():
            output, base = float(forward(x)[0]), float(forward(start)[0])
        total = float(shares.double().sum())
        return Attribution(
            _numbers(shares.sum(-1)), _numbers(shares[:, :4]), output, base, total - (output - base)
        )

    def _output(self, one_hot: Tensor, ids: Tensor, place: int, observed: Tensor) -> Tensor:
        """Give f for one-hot rows (rows, length, 5); tokens other than bases are unchanged."""
        rows, length = one_hot.shape[:2]
        with _embedded(self.model, one_hot, self.rows, place):
            output: Any = self.model(input_ids=ids.expand(rows, -1))
        logits: Tensor = output.logits
        if isinstance(self.target, int):
            if logits.dim() == 2:
                return logits[:, self.target]
            return logits[:, place : place + length, self.target].mean(1)
        scores = logits[:, place : place + length - 1, self.rows[:4]].float().log_softmax(-1)
        wanted, known = observed[1:].clamp(max=3), observed[1:] < 4
        own = scores.gather(-1, wanted.expand(rows, -1)[..., None])[..., 0]
        return torch.where(known, own, 0.0).sum(1)


def _numbers(values: Tensor) -> NDArray[np.float32]:
    return values.detach().float().cpu().numpy()


@contextmanager
def _embedded(model: Any, one_hot: Tensor, rows: Tensor, place: int) -> Iterator[None]:
    """Let the embedding of the model answer with that of one-hot rows, from token `place` on."""
    try:
        layer = model.get_input_embeddings()
    except NotImplementedError:
        raise InputError(
            f"{type(model).__name__} reads bases without an embedding, so it cannot be attributed"
        ) from None
    seen: list[bool] = []

    def replace(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        length = one_hot.shape[1]
        if output.dim() != 3 or output.shape[1] < place + length:
            raise InputError(
                f"{type(model).__name__} embeds {tuple(output.shape)} for {length:,} bases, so its "
                "bases cannot be told apart; it cannot be attributed"
            )
        seen.append(True)
        # Its own forward pass, without this hook: the weight may be elsewhere, or be a part of it.
        vectors = module.forward(rows[None])[0]
        mixed = one_hot.to(vectors.dtype) @ vectors
        return torch.cat([output[:, :place], mixed, output[:, place + length :]], dim=1)

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
    if not seen:
        name = type(model).__name__
        raise InputError(f"{name} does not call its embedding, so it cannot be attributed")


def attribute(
    model: ModelSpec, sequences: Iterable[str | _Codes], **options: Unpack[AttributeOptions]
) -> list[Attribution]:
    """Attribute an output of a model to the bases of sequences, letters or base codes, one by one.

    The output is the logit of a class, its mean over all positions for a model that labels every
    base; or the log-likelihood of the sequence for a causal language model. Integrated gradients
    are summed over the points of Gauss and Legendre.
    """
    own, run = split_options(options, AttributeOptions)
    ready = _Attributor(model, **own, **run)
    return [ready(one.codes) for one in named_sequences(sequences)]


def attribute_file(
    model: ModelSpec, source: SequenceInput | str | Path, output: str | Path,
    **options: Unpack[AttributeOptions],
) -> Path:  # fmt: skip
    """Attribute an output of a model to the bases of a file of sequences as :func:`attribute`.

    ``.parquet``: a row for each sequence with lists ``values`` (a number for each base) and
    ``letters`` (four for each base, A, C, G, T). ``.npz``: the same end to end, with offsets.
    ``.bw``: the values along the genome, for BED input in its order without overlap.
    """
    suffix = require_suffix(output, _SUFFIXES)
    given = source if isinstance(source, SequenceInput) else SequenceInput(source)
    if suffix in BIGWIG and given.found_kind != "bed":
        raise OutputError(
            f"{output}: a track needs positions in a genome; give a BED file, or write Parquet or "
            "npz"
        )
    own, run = split_options(options, AttributeOptions)

    def describe(ready: _Attributor) -> dict[str, Any]:
        return {
            "target": ready.target if isinstance(ready.target, str) else ready.names[ready.target],
            "method": ready.method, "baseline": ready.baseline,
            "steps": ready.steps,
        }  # fmt: skip

    def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
        if suffix == ".parquet":
            merge_tables(parts, target, provenance)
        elif suffix == ".npz":
            _write_npz(parts, target, provenance)
        else:
            with genome_store(str(given.genome)) as store:
                sizes = {contig.name: contig.length for contig in store.contigs}
            write_bigwig(target, sizes, Run.read(parts))

    chunks = partial(SequenceInput.chunks, cost=16)  # of 64 steps, forth and back
    work = Work(_rows, partial(_Attributor, model, **own), chunks)
    return map_sequences("attribute", work, given, output, describe, merge, **run)


def _rows(ready: _Attributor, chunk: list[Given]) -> pl.DataFrame:
    found = [ready(item.codes, item.name) for item in chunk]
    floats = pl.List(pl.Float32)
    return pl.DataFrame(Given.columns(chunk)).with_columns(
        *(pl.Series(name, [getattr(one, name) for one in found]) for name in _NUMBERS),
        pl.Series("values", [one.values.tolist() for one in found], dtype=floats),
        pl.Series("letters", [one.letters.ravel().tolist() for one in found], dtype=floats),
    )


def _write_npz(parts: list[Path], target: Path, provenance: Provenance) -> None:
    frame = pl.concat([pl.read_parquet(part, glob=False) for part in parts])
    numbers: Any = {name: frame[name].to_numpy() for name in _NUMBERS}
    with target.open("wb") as file:
        np.savez(
            file,
            names=np.array(frame["name"].to_list(), dtype=np.str_),
            offsets=np.concatenate(([0], np.cumsum(frame["length"].to_numpy()))),
            values=frame["values"].explode().to_numpy(),
            letters=frame["letters"].explode().to_numpy().reshape(-1, 4),
            megabase=np.array(provenance.to_json()),
            **numbers,
        )
