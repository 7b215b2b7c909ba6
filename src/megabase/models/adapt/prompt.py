"""Soft prompts: learnable tokens next to a sequence, and a frozen language model.

The model answers with the next token after a separator (label tokens, the published way) or through
a small linear head. A saved prompt is tied to one model by its hash.

Source: arXiv 2306.15794v2, section 4.3, and ``evals/soft_prompting_genomics.py`` of
HazyResearch/hyena-dna, which puts the prompt first.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from megabase import __version__
from megabase.errors import ModelError
from megabase.genome.files import write_json, write_whole
from megabase.layers.pooling import POOLINGS, pool
from megabase.models.auto import load_model
from megabase.models.checkpoints.checks import require_finite_weights, weights_hash
from megabase.models.families import family_of
from megabase.models.heads import label_fields
from megabase.untrusted import build, parsing, read_json, shown

_Position = Literal["before", "after", "both"]
_Answer = Literal["label_tokens", "head"]
_Over = Literal["sequence", "prompt", "all"]
_Layers = Literal["first", "all"]
PROMPTED_FAMILIES = ("hyenadna", "gpt", "mamba")
"""Families that read embeddings in place of tokens and predict the next token."""
PROMPT_FILES = ("prompt.json", "prompt.safetensors")  # files of a saved prompt
_FORMAT = 1  # number of the layout of ``prompt.json``, so that a later one is refused by name
_LETTERS = {2: "AN", 3: "AGN", 4: "ACGN", 5: "ACGTN"}
"""Label tokens by the number of classes: the first two as published, the others likewise."""
# What a position of the model's input is.
_PAD, _PROMPT, _TOKEN, _END = range(4)
_NOISE = 0.02  # standard deviation of the initial soft-prompt tokens, as published
_LONGEST_BLOCK = 1 << 24
"""Tokens of a sequence behind demonstrations that a file may claim: beyond any model's input."""


def _refuse(rules: Iterable[tuple[Any, str]]) -> None:
    """Raise one ModelError that says everything that is wrong, if anything is."""
    if problems := [text for wrong, text in rules if wrong]:
        raise ModelError("; ".join(problems))


def label_letters(classes: int) -> str:
    """Give the letter of each of 2 to 5 classes: AN for two and AGN for three, as published."""
    if classes not in _LETTERS:
        raise ModelError(
            f"label tokens are letters of the alphabet A, C, G, T, N: there are letters for 2 to "
            f"5 classes, found {classes}; answer with the head instead"
        )
    return _LETTERS[classes]


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """What a prompt is, apart from its numbers."""

    length: int  # soft-prompt tokens, which are learned; 0 for none
    classes: tuple[str, ...]  # names of the answers, in the order of the outputs
    kind: str = "classes"  # or multi_label, regression, nucleotides: a class for each of them
    position: _Position = "before"
    """Where it is. ``both``: the first half, rounded up, before and the rest after the sequence."""
    answer: _Answer = "label_tokens"  # next token after a separator, or a linear head
    layers: _Layers = "first"  # that read it: the first, or each has soft-prompt tokens of its own
    # Of label tokens: the letter and the token id of each class; the separator after which the
    # model answers; whether the letters of the classes only are compared, not all logits.
    letters: str = ""
    label_ids: tuple[int, ...] = ()
    end_id: int | None = None
    restricted: bool = False
    # Of a head for sequences: how positions become one vector, and which ones.
    pooling: str = "mean"
    over: _Over = "sequence"
    # Of demonstrations: their ids, between prompt and sequence; tokens of each sequence, shorter
    # ones padded on the left; the padding token.
    examples: tuple[int, ...] = ()
    block: int = 0
    pad_id: int = 4

    def __post_init__(self) -> None:
        choices = {
            "position": get_args(_Position), "answer": get_args(_Answer), "over": get_args(_Over),
            "pooling": [name for name in POOLINGS if name != "hf"], "layers": get_args(_Layers),
        }  # fmt: skip
        _refuse(
            (getattr(self, name) not in known,
             f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
            for name, known in choices.items()
        )  # fmt: skip
        tokens, whole, ids = self.answer == "label_tokens", self.kind == "classes", self.label_ids
        different = len(ids) == len(self.classes) == len(set(ids))
        _refuse((
            (self.length < 0,
             f"a prompt has 0 soft-prompt tokens or more, found {self.length}"),
            (self.examples and (not tokens or self.block < 1 or self.sides[1]),
             "demonstrations need label tokens, a length, and a prompt that stands before them"),
            (tokens and not whole,
             "label tokens answer one class for a whole sequence; several labels, numbers and "
             "labels of nucleotides need the head"),
            (tokens and whole and not different,
             f"{len(self.classes)} classes need as many different label tokens"),
            (tokens and whole and different and self.end_id is None,
             "label tokens need the separator after which the model answers"),
            (not tokens and self.over == "prompt" and not self.length,
             "the head reads the prompt's own positions, but there are none"),
        ))  # fmt: skip

    @property
    def sides(self) -> tuple[int, int]:
        """Soft-prompt tokens before and after the sequence."""
        before = {"before": self.length, "after": 0, "both": -(-self.length // 2)}[self.position]
        return before, self.length - before

    @property
    def extra(self) -> int:
        """Positions of the model that the sequence cannot have."""
        return self.length + len(self.examples) + (self.answer == "label_tokens")


@dataclass
class _PromptedOutput:
    """Answers of a prompted model: (n, K), or (n, length, K) for nucleotides.

    With label tokens the log-probabilities of the letters among all tokens, or with ``restricted``
    their bare logits, beside all logits (n, vocabulary) after the separator, or (n, m, vocabulary)
    after each of the wanted positions.
    """

    logits: Tensor
    token_logits: Tensor | None = None


class PromptedModel(nn.Module):
    """A frozen model with a soft prompt.

    Parameters
    ----------
    model
        Of the families in :data:`PROMPTED_FAMILIES`; with a next-token head for label tokens. No
        weight of it gets a gradient, and it is not part of the state dict, which holds the
        prompt and the head alone.
    spec
        What the prompt is.
    start
        Initial soft-prompt tokens (length, width); by default noise N(0, 0.02^2), as published.
    dropout
        Dropout of the soft-prompt tokens in training (published: 0.1).
    """

    def __init__(
        self, model: PreTrainedModel, spec: PromptSpec, *, start: Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_model(model, spec)
        model.requires_grad_(False)
        # In a tuple it is not a submodule: it is neither saved nor synchronized with the prompt.
        self._frozen = (model,)
        self.spec = spec
        self.dropout = dropout
        table = model.get_input_embeddings().weight
        if not isinstance(table, Tensor):
            raise ModelError(f"{type(model).__name__} has no table of token embeddings")
        width, options = table.shape[1], {"dtype": table.dtype, "device": table.device}
        if start is None:
            start = torch.randn(spec.length, width, dtype=torch.float32) * _NOISE
        if start.shape != (spec.length, width):
            raise ModelError(
                f"initial tokens of shape {tuple(start.shape)}; expected {(spec.length, width)}"
            )
        vectors, classes = start.detach().clone().to(**options), len(spec.classes)
        self.vectors = nn.Parameter(vectors) if spec.length else None
        deep = spec.length and spec.layers == "all"
        layers = torch.randn(len(self._layers()) - 1, spec.length, width) * _NOISE if deep else None
        self.deeper = None if layers is None else nn.Parameter(layers.to(**options))
        self.head = nn.Linear(width, classes, **options) if spec.answer == "head" else None
        self.config: Any = copy.deepcopy(model.config)
        for name, value in label_fields(spec.kind, spec.classes).items():
            setattr(self.config, name, value)
        for name in ("units", "label_kind"):  # of the model's own head
            vars(self.config).pop(name, None)
        self.train(model.training)

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model."""
        return self._frozen[0]

    def _layers(self) -> Sequence[nn.Module]:
        base: Any = self.model.base_model
        return getattr(base, "backbone", base).layers

    @property
    def max_length(self) -> int | None:
        """Most tokens of a sequence: the model's longest input without the prompt's positions."""
        longest = getattr(self.model.config, "max_length", None)
        if self.spec.examples:
            return self.spec.block
        return None if longest is None else int(longest) - self.spec.extra

    @property
    def trained_parameters(self) -> int:
        """Numbers of the prompt and the head."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on or off, in the frozen model too."""
        self.model.train(mode)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # What moves the prompt (to, cuda, half) moves the model it belongs to.
        self.model._apply(fn)
        return super()._apply(fn, recurse)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> _PromptedOutput:  # fmt: skip
        """Answer for sequences.

        Parameters
        ----------
        input_ids
            int64 (n, length) tokens of the sequences, without separator.
        attention_mask
            1 at real tokens, (n, length); padding may lie on either side. Padding after the
            sequence is moved behind the prompt and the separator; padding before it stays between
            prompt and sequence, as published.
        positions
            Label tokens only, int64 (n, m): positions in `input_ids` whose next token is the
            answer. The ids then bring demonstrations and separators of their own.
        """
        if positions is not None:
            return self._at(input_ids, positions)
        if self.spec.examples:
            input_ids, attention_mask = self._behind_examples(input_ids, attention_mask), None
        hidden, kinds = self._encode(input_ids, attention_mask)
        if self.spec.answer == "label_tokens":
            end = (kinds == _END).int().argmax(dim=1)
            return self._letters(hidden[torch.arange(len(hidden), device=hidden.device), end])
        head = cast("nn.Linear", self.head)
        if self.spec.kind == "nucleotides":
            first = self.spec.sides[0]
            return _PromptedOutput(head(hidden[:, first : first + input_ids.shape[1]]))
        over = {"sequence": kinds == _TOKEN, "prompt": kinds == _PROMPT, "all": kinds != _PAD}
        pooling = cast("Any", self.spec.pooling)
        return _PromptedOutput(head(pool(hidden, pooling, over[self.spec.over])))

    def _at(self, input_ids: Tensor, positions: Tensor) -> _PromptedOutput:
        """Answer with label tokens at given positions of the ids."""
        before, after = self.spec.sides
        if after or self.spec.answer == "head":
            raise ModelError(
                "demonstrations are answered by label tokens, behind a prompt before the sequence"
            )
        hidden, _ = self._encode(input_ids, None, closed=False)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        return self._letters(hidden[rows, positions + before])

    def _behind_examples(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Put the demonstrations before sequences that are padded on the left to their length."""
        spec, (rows, length) = self.spec, input_ids.shape
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        longest = int(real.sum(dim=1).max())
        if longest > spec.block:
            raise ModelError(
                f"a sequence has {longest:,} tokens, but the prompt's demonstrations have "
                f"{spec.block:,}; cut it"
            )
        order = real.bool().long().argsort(dim=1, stable=True)  # padding first
        padded = torch.where(real.bool(), input_ids, spec.pad_id).gather(1, order)
        block = padded.new_full((rows, spec.block), spec.pad_id)
        kept = min(length, spec.block)
        block[:, spec.block - kept :] = padded[:, length - kept :]
        examples = padded.new_tensor(spec.examples).expand(rows, -1)
        return torch.cat([examples, block], dim=1)

    def _letters(self, hidden: Tensor) -> _PromptedOutput:
        """Answer with label tokens from hidden vectors."""
        token_logits = cast("nn.Module", self.model.get_output_embeddings())(hidden)
        ids = list(self.spec.label_ids)
        wide = token_logits.to(torch.promote_types(token_logits.dtype, torch.float32))
        scores = wide if self.spec.restricted else F.log_softmax(wide, dim=-1)
        return _PromptedOutput(scores[..., ids], wide)

    def _encode(
        self, input_ids: Tensor, attention_mask: Tensor | None, closed: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Give the hidden vectors (n, T, width) and what each position is (n, T)."""
        embeddings, kinds = self._assemble(input_ids, attention_mask, closed)
        longest = getattr(self.model.config, "max_length", None)
        if longest is not None and embeddings.shape[1] > longest:
            raise ModelError(
                f"the sequence has {input_ids.shape[1]:,} tokens and the prompt takes "
                f"{self.spec.extra} positions, but the model reads {int(longest):,}; shorten the "
                f"sequence to {int(longest) - self.spec.extra:,} tokens or take a shorter prompt"
            )
        mask = None if attention_mask is None else (kinds != _PAD).long()
        with self._deeper(kinds == _PROMPT):
            output = self.model.base_model(
                inputs_embeds=embeddings, attention_mask=mask, return_dict=True
            )
        return output.last_hidden_state, kinds

    @contextmanager
    def _deeper(self, place: Tensor) -> Iterator[None]:
        """Let every layer but the first read soft-prompt tokens of its own, at True of (n, T)."""

        def put(at: int, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            # A layer reads the sum of its first two arguments, of which the second may be None.
            hidden, residual, *rest = given
            own = cast("Tensor", self.deeper)[at].to(hidden.dtype).expand(len(hidden), -1, -1)
            own = F.dropout(own, self.dropout, self.training)
            hidden = hidden.masked_scatter(place[..., None], own)
            if residual is not None:
                residual = residual.masked_fill(place[..., None], 0)
            return hidden, residual, *rest

        layers = [] if self.deeper is None else self._layers()[1:]
        hooks = [
            layer.register_forward_pre_hook(partial(put, at)) for at, layer in enumerate(layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _assemble(
        self, input_ids: Tensor, attention_mask: Tensor | None, closed: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Put prompt, embedded sequence and separator together."""
        table = self.model.get_input_embeddings()
        rows, length = input_ids.shape
        before, after = self.spec.sides
        end = closed and self.spec.answer == "label_tokens"
        parts: list[Tensor] = [table(input_ids)]
        if self.vectors is not None:
            # Each sequence of a batch drops its own numbers.
            prompt = F.dropout(self.vectors.expand(rows, -1, -1), self.dropout, self.training)
            parts = [prompt[:, :before], *parts, prompt[:, before:]]
        if end:
            separator = torch.full_like(input_ids[:, :1], cast("int", self.spec.end_id))
            parts.append(table(separator))
        joined = torch.cat(parts, dim=1)
        kinds = torch.full(joined.shape[:2], _PROMPT, dtype=torch.long, device=joined.device)
        kinds[:, before : before + length] = _TOKEN
        if end:
            kinds[:, -1] = _END
        if attention_mask is None:
            return joined, kinds
        real = attention_mask.bool()
        kinds[:, before : before + length] = torch.where(real, _TOKEN, _PAD)
        if not after and not end:
            return joined, kinds
        # Padding behind the last token goes to the end of the row, everything else keeps its order.
        number = torch.arange(length, device=real.device)
        last = torch.where(real, number, -1).amax(dim=1, keepdim=True)
        trailing = torch.zeros_like(kinds)
        trailing[:, before : before + length] = (number > last).long()
        order = trailing.argsort(dim=1, stable=True)
        gathered = joined.gather(1, order[..., None].expand(-1, -1, joined.shape[2]))
        return gathered, kinds.gather(1, order)


def _check_model(model: PreTrainedModel, spec: PromptSpec) -> None:
    """Refuse a pair of model and prompt that cannot work or learns nothing."""
    name, family = type(model).__name__, family_of(model.config.model_type)
    if family is None or family.name not in PROMPTED_FAMILIES:
        raise ModelError(
            f"{name} cannot read a soft prompt; models of the families "
            f"{', '.join(PROMPTED_FAMILIES)} can"
        )
    causal = bool(getattr(model.config, "is_causal_model", True))
    tokens, longest = spec.answer == "label_tokens", getattr(model.config, "max_length", None)
    beside = causal and spec.length and not tokens
    own = spec.kind == "nucleotides" or spec.over == "sequence"
    _refuse((
        (tokens and model.get_output_embeddings() is None,
         f"{name} has no next-token head to answer with label tokens; take a language model, or "
         "answer with the head"),
        (tokens and not causal,
         "label tokens are the next token of a model that reads left to right, and this one looks "
         "ahead; answer with the head"),
        (beside and spec.position == "after" and own,
         "a prompt after the sequence cannot change the sequence's own positions in a model that "
         "reads left to right; put it before, or let the head read the prompt's positions too"),
        (beside and spec.position == "before" and spec.over == "prompt",
         "a prompt before the sequence does not see it in a model that reads left to right, so its "
         "own positions carry no information; let the head read the sequence"),
        (longest is not None and spec.extra >= longest,
         f"a prompt of {spec.length:,} tokens leaves no room for a sequence in a model that reads "
         f"{longest or 0:,} tokens"),
    ))  # fmt: skip


@dataclass(frozen=True)
class _SavedPrompt:
    """A saved prompt without its model."""

    folder: Path
    model: str  # that it was made for, as it was named then
    model_hash: str
    spec: PromptSpec
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]  # of its making, such as the padding side and the strands


def save_prompt(
    prompted: PromptedModel, folder: str | Path, *, model: str,
    state: Mapping[str, Tensor] | None = None, facts: Mapping[str, Any] | None = None,
    spec: PromptSpec | None = None,
) -> None:  # fmt: skip
    """Write a prompt into a folder; its model is named, not copied.

    `model` is its name; a path becomes absolute. `state` and `spec` stand in for the prompt's own:
    a gathered state dict, a spec with demonstrations added. `facts` are further plain values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec = spec or prompted.spec
    record = {
        "format": _FORMAT,
        "megabase": __version__,
        "model": str(Path(model).absolute()) if Path(model).exists() else model,
        "model_hash": weights_hash(prompted.model, next_token=spec.answer == "label_tokens"),
        **asdict(spec),
        "facts": dict(facts or {}),
    }
    tensors = {name: value.contiguous() for name, value in (state or prompted.state_dict()).items()}
    write_json(folder / PROMPT_FILES[0], record)
    write_whole(folder / PROMPT_FILES[1], save(tensors))


def read_prompt(path: str | Path) -> _SavedPrompt:
    """Read a saved prompt, without its model, from its folder or the run folder around it."""
    given = Path(path).expanduser()
    folders = [given, given / "prompt", given / "best", given / "last"]
    folder = next((known for known in folders if (known / PROMPT_FILES[0]).is_file()), None)
    if folder is None:
        what = "there is no such folder" if not given.is_dir() else f"it holds no {PROMPT_FILES[0]}"
        raise ModelError(
            f"{given}: is not a prompt ({what}); expected a folder written by megabase prompt"
        )
    file = folder / PROMPT_FILES[0]
    record = read_json(file, ModelError)
    with parsing(file, ModelError, "expected a prompt that megabase wrote"):
        if record["format"] != _FORMAT:
            raise ModelError(
                f"{file} has format {shown(record['format'])}; this version reads {_FORMAT}: use "
                f"the megabase that wrote it ({shown(record.get('megabase'))})"
            )
        record.setdefault("layers", "first")  # prompts of before there was a choice
        spec = build(PromptSpec, {field.name: record[field.name] for field in fields(PromptSpec)})
        known = {name: record[name] for name in ("model", "model_hash")}
        known |= {"folder": folder, "spec": spec, "tensors": {}, "facts": record.get("facts", {})}
        saved = build(_SavedPrompt, known)
    with parsing(folder / PROMPT_FILES[1], ModelError, "expected a prompt that megabase wrote"):
        tensors = load_file(folder / PROMPT_FILES[1])
    held = sum(tensor.numel() for tensor in tensors.values())
    if spec.length > max(held, 1) or spec.block > _LONGEST_BLOCK:
        raise ModelError(f"{file}: claims {spec.length:,} tokens; the prompt has {held:,} numbers")
    return replace(saved, tensors=tensors)


def load_prompt(
    path: str | Path, model: str | Path | PreTrainedModel | None = None, *,
    device: str | torch.device | None = None,
) -> PromptedModel:  # fmt: skip
    """Load a prompt, in evaluation mode, together with the model that it was made for.

    Parameters
    ----------
    path
        Folder of a prompt, or a run folder of ``megabase prompt``.
    model
        The model, or where to load it from (see :func:`megabase.models.load_model`); by default the
        name that the prompt was saved with. Another one than that is a :class:`ModelError`.
    device
        Where a model that is loaded here goes; the CPU by default.
    """
    saved = read_prompt(path)
    label_tokens = saved.spec.answer == "label_tokens"
    name = saved.model if model is None else model
    if isinstance(name, PreTrainedModel):
        found, name = name, str(name.config.name_or_path or type(name).__name__)
    else:
        found = load_model(name, "causal-lm" if label_tokens else "base", device=device)
    given = weights_hash(found, next_token=label_tokens)
    if given != saved.model_hash:
        raise ModelError(
            f"the prompt {saved.folder} belongs to another model: it was made for {saved.model} "
            f"(weights {saved.model_hash[:12]}), and {name} has the weights {given[:12]}; give it "
            "that model, or make a prompt for this one"
        )
    with parsing(saved.folder / PROMPT_FILES[0], ModelError):
        prompted = PromptedModel(found, saved.spec)
    try:
        prompted.load_state_dict(saved.tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{saved.folder}: the prompt's numbers do not fit ({reason})") from error
    if isinstance(model, PreTrainedModel):
        require_finite_weights(found, str(name))
    require_finite_weights(prompted, str(saved.folder))
    return prompted.eval()
