"""Settings that several rooms read: frozen dataclasses, checked as a whole, free of torch.

The attribute docstrings are the help texts of the command line. A class holds what one part of the
program needs; the settings of a verb (:mod:`megabase.tasks.config`) are put together from these
classes, so that recipes, flags and Python arguments have the same flat names.
"""

import contextlib
import difflib
import importlib.util
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

from megabase.errors import ConfigError
from megabase.untrusted import fits, shown

_MOST_POSITIONS = (1 << 31) - 1
"""Positions of an input: tables of them are indexed by 32-bit numbers in some libraries."""
_MOST = 1 << 53  # largest number of a setting: from here on YAML's and JSON's floats are not exact
_RULES: Mapping[str, Callable[[float], bool]] = {
    "be at least 0": lambda value: value >= 0,
    "be at least 1": lambda value: value >= 1,
    "be at least 2": lambda value: value >= 2,
    "be above 0": lambda value: value > 0,
    "lie in 0 to 1": lambda value: 0 <= value <= 1,
    "lie in 0 to 1, 0 excluded": lambda value: 0 < value <= 1,
    "lie in 0 to 1, 1 excluded": lambda value: 0 <= value < 1,
}
"""Limits of a number, as messages say them; NaN keeps none."""
RETIRED = ("lora",)
"""Settings that recipes of earlier runs hold although their verb has no such setting."""
_Part = TypeVar("_Part", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: a dataclass that checks itself and reports all of its problems at once.

    A class says what its own fields must be in ``_limits``, what else is wrong with them in the
    generator ``_problems()`` (all are raised in one :class:`ConfigError`), and brings values of
    another notation (``1e6``, a list for a tuple) into one form in ``_normalize()``.
    """

    _prefix: ClassVar[str] = ""
    """Stands before the names of the fields in messages."""
    _limits: ClassVar[Mapping[str, str]] = {}
    """Rule (of ``_RULES``) -> the fields of this class that it holds for, where they are given."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)!r}; expected {kind.__name__}(...)"
            for name, kind in typing.get_type_hints(type(self)).items()
            if isinstance(kind, type) and is_dataclass(kind)
            if not isinstance(getattr(self, name), kind)
        ]
        if wrong:
            raise ConfigError("; ".join(wrong))
        classes: tuple[Any, ...] = type(self).__mro__
        for cls in classes:
            if "_normalize" in vars(cls):
                cls._normalize(self)
        problems: list[str] = []
        for cls in classes:
            problems += self._beyond_limits(cls)
            if "_problems" in vars(cls):
                problems += cls._problems(self)
        if problems:
            raise ConfigError("; ".join(problems))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _make_whole(self, *names: str) -> None:
        """Turn ``1e6`` into 1000000; a number with a fraction is refused."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, float) and not value.is_integer():
                raise ConfigError(f"{self._prefix}{name} is {value!r}; it must be a whole number")
            if isinstance(value, float):
                self._set(name, int(value))

    def _beyond_limits(self, cls: type) -> Iterator[str]:
        for rule, names in vars(cls).get("_limits", {}).items():
            for name in names.split():
                value, label = getattr(self, name), f"{self._prefix}{name}"
                if value is None or isinstance(value, str):
                    continue
                most = _MOST_POSITIONS if label == "stage length" else _MOST
                if not _RULES[rule](value):
                    yield f"{label} is {value}; it must {rule}"
                if value > most:
                    yield f"{label} is {value}; it must be at most {most:,}"

    def part(self, kind: type[_Part], **changes: Any) -> _Part:
        """Give the fields that `kind` has, as a `kind` of its own, with `changes`."""
        values = {f.name: getattr(self, f.name) for f in fields(kind) if hasattr(self, f.name)}
        return kind(**{**values, **changes})

    @classmethod
    def of(cls, values: Any, where: str = "", group: str = "", base: Self | None = None) -> Self:
        """Make settings of a mapping of plain values, those below them too, or change `base`.

        `where` and `group` are for messages. A :class:`ConfigError` names a field that does not
        exist, is lacking, or cannot have its value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}expected fields of {cls.__name__}, found {shown(values)}")
        hints = typing.get_type_hints(cls)
        for name in values:
            cls._require_field(str(name), where, group)
        known = {each.name: each for each in fields(cls) if each.init}
        lacking = [
            f"{group}{name}"
            for name, each in known.items()
            if name not in values and each.default is MISSING and each.default_factory is MISSING
        ]
        if lacking and base is None:
            what = ", ".join(lacking)
            raise ConfigError(f"{where}expected {what}, which the recipe does not give")

        def known_part(name: str) -> Any:  # what a group of settings is where it is not given
            if base is not None:
                return getattr(base, name)
            factory = known[name].default_factory
            return None if factory is MISSING else factory()

        made = {
            name: _value(hints[name], value, where, f"{group}{name}", known_part(name))
            for name, value in values.items()
        }
        return cls(**made) if base is None else replace(base, **made)

    @classmethod
    def check_field(cls, name: str, where: str = "", group: str = "") -> None:
        """Refuse the dotted name of a field that does not exist; messages are as of :meth:`of`."""
        first, _, below = name.partition(".")
        cls._require_field(first, where, group)
        kind = typing.get_type_hints(cls)[first]
        if below and isinstance(kind, type) and issubclass(kind, Settings):
            kind.check_field(below, where, f"{group}{first}.")

    @classmethod
    def _require_field(cls, name: str, where: str, group: str) -> None:
        known = [each.name for each in fields(cls) if each.init]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {group}{near[0]}?" if near else ""
            raise ConfigError(f"{where}there is no field {group}{name}{hint}")

    def with_values(self, values: Mapping[str, Any], where: str = "") -> Self:
        """Change fields by dotted name (``optim.lr``, ``overrides.n_layer``), all at once."""
        nested: dict[str, Any] = {}
        for name, value in values.items():
            *groups, last = name.split(".")
            below: Any = nested
            place: Any = self
            for group in groups:
                free = isinstance(place, Mapping)  # a table of free names
                place = place.get(group) if free else getattr(place, group, None)
                # Of such a table what is not changed is kept.
                below = below.setdefault(group, dict(place) if isinstance(place, Mapping) else {})
                if not isinstance(below, dict):
                    raise ConfigError(f"{where}{group} and {name} are both given; choose one")
            below[last] = value
        return self.of(nested, where, base=self)


def _value(hint: Any, value: Any, where: str, name: str, base: Any = None) -> Any:
    """Bring a value of YAML to the type of its field: settings, rows of settings, 1e-3."""
    unions = (typing.Union, types.UnionType)
    known = typing.get_args(hint) if typing.get_origin(hint) in unions else (hint,)
    if float in known and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML takes 1e-3 for text
    for one in known:
        inner = typing.get_args(one)
        if is_dataclass(one) and (isinstance(value, Mapping) or len(known) == 1):
            kind: Any = one
            return value if isinstance(value, kind) else kind.of(value, where, f"{name}.", base)
        if typing.get_origin(one) in (list, tuple) and isinstance(value, list):
            made = [_value(inner[0], item, where, f"{name}[{i}]") for i, item in enumerate(value)]
            return made if typing.get_origin(one) is list else tuple(made)
    if not fits(value, hint):
        raise ConfigError(f"{where}{name} cannot be {shown(value)}")
    return value


@dataclass(frozen=True, kw_only=True)
class Stage(Settings):
    """One row of the sequence-length warm-up: train at this length for so long."""

    length: int
    """Input positions per sequence; one position reads one base."""
    micro_batch: int | None = None
    """Sequences that one device takes through the model at a time (null: all of its share)."""
    steps: int | None = None
    """Duration in optimizer steps. Give one of steps, tokens, epochs; the last stage may give none:
    it runs to the end of the budget."""
    tokens: int | float | None = None
    """Duration in input positions, rounded up to whole steps."""
    epochs: int | float | None = None
    """Duration in passes over the windows; only for window kinds with a fixed number of windows."""

    _prefix = "stage "
    _limits: ClassVar = {"be at least 1": "length micro_batch steps tokens",
                         "be at least 0": "epochs"}  # fmt: skip

    def _normalize(self) -> None:
        self._make_whole("tokens")

    def _problems(self) -> Iterator[str]:
        given = [n for n in ("steps", "tokens", "epochs") if getattr(self, n) is not None]
        if len(given) > 1:
            yield f"stage of length {self.length} gives {' and '.join(given)}; give one of them"


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """The optimizer and its learning-rate schedule."""

    name: Literal["adamw", "muon"] | None = "adamw"
    """adamw, or muon: matrices of the layers by orthogonalized momentum, the rest by AdamW, both
    with the rate of AdamW. null: muon where such matrices are trained and devices hold them whole,
    else adamw."""
    lr: float = 6e-4
    """Highest learning rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay (a model may exempt parameters, such as the filter of Hyena)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two running means."""
    eps: float = 1e-8
    """Added to the denominator of AdamW."""
    clip: float | None = 1.0
    """Largest global gradient norm; null does not clip."""
    schedule: Literal["cosine", "constant", "published"] = "cosine"
    """cosine: linear warm-up from 0, then half a cosine to min_lr_ratio. constant: warm-up, then
    level. published: HyenaDNA's, whose cosine counts from step 0, not from the end of the
    warm-up."""
    warmup_steps: int | None = None
    """Steps of warm-up; null takes warmup_fraction."""
    warmup_fraction: float = 0.01
    """Share of the schedule spent on warm-up when warmup_steps is null."""
    warmup_lr: float = 1e-6
    """Learning rate at step 0 (schedule published only)."""
    min_lr_ratio: float = 0.1
    """Final learning rate as a share of the highest."""
    schedule_steps: int | float | None = None
    """Length of the schedule in steps; null takes the length of the run. The published 1k run
    used 381500, far more than its about 13300 steps."""

    _limits: ClassVar = {
        "be above 0": "lr clip",
        "be at least 0": "weight_decay eps warmup_lr warmup_steps",
        "lie in 0 to 1": "warmup_fraction min_lr_ratio",
        "be at least 1": "schedule_steps",
    }

    def _normalize(self) -> None:
        self._make_whole("schedule_steps")
        self._set("betas", tuple(self.betas))

    def _problems(self) -> Iterator[str]:
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas are {self.betas}; each must lie in 0 to 1, 1 excluded"

    def __str__(self) -> str:
        """Name the optimizer with its rate and decay, as the lines about a run do."""
        name = "AdamW" if self.name == "adamw" else "Muon and AdamW"
        return f"{name}, lr {self.lr:g} ({self.schedule}), weight decay {self.weight_decay:g}"


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Settings):
    """Where to train; read by Lightning Fabric. Under torchrun or SLURM the launcher decides."""

    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int | Literal["auto"] = "auto"
    """Devices (processes) per node; auto takes every GPU, or one process on a CPU."""
    nodes: int = 1
    """Number of machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """auto: ddp for several processes. fsdp shards parameters, gradients and optimizer state."""
    replicas: int = 1
    """With fsdp: groups of devices that each hold the whole model between them (HSDP), such as one
    for each machine."""
    context_parallel: int = 1
    """Devices that share each sequence, every one a part of its positions (pretraining only)."""
    threads: int | None = None
    """CPU threads of torch per process; null leaves torch's own choice."""

    _limits: ClassVar = {"be at least 1": "nodes threads devices context_parallel replicas"}

    def _problems(self) -> Iterator[str]:
        if self.replicas > 1 and self.strategy != "fsdp":
            yield f"devices.replicas is {self.replicas}; only the strategy fsdp has replicas"
        if self.context_parallel > 1 and self.strategy == "fsdp":
            yield (
                f"devices.context_parallel is {self.context_parallel} and devices.strategy is "
                "fsdp; devices that share a sequence need the strategy ddp (or auto)"
            )


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Settings):
    """How long and in which batches to train."""

    stages: tuple[Stage, ...] = (Stage(length=1024),)
    """The sequence-length warm-up as a table; one row trains at one length."""
    length_rule: Literal["constant", "published"] = "constant"
    """constant: every step sees global_batch, whatever the number of devices. published: as in the
    HyenaDNA repository (epochs only; accumulation is global_batch // micro_batch on each device, so
    k devices see k times global_batch; a stage of 0 epochs runs one)."""
    global_batch: int | None = 64
    """Sequences per optimizer step, over all devices and micro-batches."""
    global_batch_tokens: int | float | None = None
    """Input positions per step in place of sequences: longer stages take fewer sequences."""
    steps: int | float | None = None
    """Budget: the run ends after this many optimizer steps."""
    tokens: int | float | None = None
    """Budget: the run ends after this many input positions, rounded up to whole steps."""

    @property
    def longest(self) -> int:
        """Longest stage in input positions; a model is built for it from the start."""
        return max(stage.length for stage in self.stages)

    def _normalize(self) -> None:
        self._make_whole("global_batch_tokens", "steps", "tokens")
        stages = tuple(self.stages) if isinstance(self.stages, (list, tuple)) else (self.stages,)
        if any(not isinstance(stage, Stage) for stage in stages):
            raise ConfigError(f"stages is {self.stages!r}; expected a list of Stage(length=...)")
        self._set("stages", stages)
        if self.global_batch_tokens is not None:
            self._set("global_batch", None)  # tokens win over the default number of sequences

    _limits: ClassVar = {"be at least 1": "global_batch global_batch_tokens steps tokens"}

    def _problems(self) -> Iterator[str]:
        if not self.stages and type(self).stages:  # else the length is known once data are read
            yield "stages is empty; give at least one, such as {length: 1024}"
        if self.global_batch is None and self.global_batch_tokens is None:
            yield "global_batch and global_batch_tokens are both null; give one"
        if self.steps is not None and self.tokens is not None:
            yield "steps and tokens are both given; the budget is one of them"
        lengths = [(stage.steps, stage.tokens, stage.epochs) for stage in self.stages]
        endless = [number for number, given in enumerate(lengths) if given == (None, None, None)]
        if any(number < len(self.stages) - 1 for number in endless):
            yield (
                f"stages {endless} have no duration (steps, tokens or epochs); "
                "only the last stage may leave it out"
            )
        elif endless and self.steps is None and self.tokens is None:
            yield "the run has no end: give steps or tokens, or a duration for the last stage"
        if self.length_rule == "published":
            full = [s for s in self.stages if s.epochs is not None and s.micro_batch is not None]
            if not self.stages or len(full) < len(self.stages):
                yield "length_rule published needs epochs and micro_batch in every stage"
            if self.global_batch is None:
                yield "length_rule published needs global_batch, in sequences"
        elif any(stage.epochs == 0 for stage in self.stages):
            yield "a stage has 0 epochs; leave it out"


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """A run, whatever its task: folder, devices, optimizer, validation and checkpoints."""

    output: str
    """Folder of the run. It must be new or empty, unless resume or overwrite is set."""
    devices: DeviceConfig = field(default_factory=DeviceConfig)
    """Devices, nodes and strategy."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpointing_stretch: int = 1
    """With activation_checkpointing: layers in a row that keep one input between them; 2 or 3: less
    memory for deep models at the longest lengths, a fifth more time."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning rate."""
    precision: Literal["fp32", "tf32", "bf16-mixed", "bf16-true", "fp16-mixed"] = "fp32"
    """tf32: float32 whose matrix products round their inputs. bf16-mixed, fp16-mixed: matrix
    products in half precision over float32 weights, of float16 with a scaled loss. bf16-true:
    weights in bfloat16 too. Filters, scan states, losses and log-probabilities are float32 in all.
    tf32 and fp16-mixed need a CUDA device."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and the dropout masks."""
    eval_every: int | None = 500
    """Steps between validations (and one at the end); null never validates."""
    eval_batch: int | None = None
    """Sequences per forward pass in validation; null takes the micro-batch of the last stage."""
    checkpoint_every: int | None = 500
    """Steps between checkpoints (and one at the end); null writes only that one and the best."""
    keep: int = 2
    """Checkpoints kept besides the best one; older ones are deleted."""
    patience: int | None = None
    """The run ends early after this many validations in a row without a new best; null: never."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl and of the console."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Tools that hear the records of metrics.jsonl too: tensorboard (files in the folder of the
    run), wandb (Weights & Biases; WANDB_MODE=offline writes files alone)."""
    max_non_finite: int = 10
    """Steps with a loss or gradient that is not finite are skipped; after this many a run ends."""
    resume: bool = False
    """Continue from the last checkpoint of the output folder, exactly."""
    overwrite: bool = False
    """Delete an earlier run in the output folder and start anew."""

    _limits: ClassVar = {
        "be at least 1": "eval_every eval_batch checkpoint_every keep patience log_every "
        "max_non_finite checkpointing_stretch"
    }

    def _problems(self) -> Iterator[str]:
        if not self.output:
            yield "output is empty; name the folder of the run"
        if self.checkpointing_stretch > 1 and not self.activation_checkpointing:
            yield "checkpointing_stretch needs activation_checkpointing true"
        for name in self.log:
            if importlib.util.find_spec(name) is None:
                yield f"log: {name} is not installed; pip install {name}"
        if self.resume and self.overwrite:
            yield "resume and overwrite are both set; they exclude each other"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(BudgetConfig, RunConfig):
    """All that the training loop reads; its folder, model and data are there already."""

    compile: bool = False
    """Run the model through torch.compile."""

    def _problems(self) -> Iterator[str]:
        if self.compile and self.devices.context_parallel > 1:
            yield "compile and devices.context_parallel are both set; they exclude each other"
        if self.optim.name == "muon" and self.devices.strategy == "fsdp":
            yield "optim.name muon needs whole matrices, which fsdp cuts; take devices.strategy ddp"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Which model to train."""

    preset: str | None = None
    """Shape of a published checkpoint (``megabase info`` lists them), with fresh weights; null
    builds from the fields below."""
    family: str = "hyenadna"
    """Model family."""
    d_model: int = 128
    """Width."""
    n_layer: int = 2
    """Number of blocks."""
    max_length: int | None = None
    """Longest input the model is built for, in positions; null takes the longest stage plus the two
    special positions of the published models. The filter depends on it."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Further fields of the family's configuration, by name; they win over everything else."""
    init_from: str | None = None
    """Model folder, run folder or Hub name to start from; the fields above are then ignored."""

    _prefix = "model."
    _limits: ClassVar = {"be at least 1": "d_model n_layer max_length"}

    def _problems(self) -> Iterator[str]:
        if self.preset is not None and self.init_from is not None:
            yield "model.preset and model.init_from are both given; choose one"


@dataclass(frozen=True, kw_only=True)
class StartConfig(Settings):
    """The model that a run starts from: trained weights, or the shape of new ones."""

    model: str | None = None
    """Model to start from: a model folder, a run folder, a Hub name, or default."""
    from_scratch: bool = False
    """Take the shape of the model and fresh weights."""
    family: str | None = None
    """Family of a new model with fresh weights: hyenadna, gpt, mamba, caduceus, cnn, deepsea,
    dnabert or bigbird."""
    preset: str | None = None
    """Shape of a new model with fresh weights: a published one (``megabase info --list``)."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration, by name; they win over preset and loaded model."""
    tokenizer: str | None = None
    """null: the tokenizer of the model or family. char, 2mer to 8mer (k-mers side by side),
    bpe:4096 (byte pairs learned from the training sequences), or a folder that holds one."""

    def _problems(self) -> Iterator[str]:
        given = [n for n in ("model", "family", "preset") if getattr(self, n) is not None]
        if not given:
            yield (
                "there is no model: name one to start from (a folder, a run, a Hub name, default), "
                "or give family or preset for fresh weights"
            )
        elif len(given) > 1:
            yield f"{' and '.join(given)} are given; choose one"
        if self.from_scratch and self.model is None:
            yield "from_scratch takes the shape of a model; family and preset are fresh anyway"

    @property
    def trained(self) -> str | None:
        """The model whose weights are the start; None for fresh weights."""
        return None if self.from_scratch else self.model


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Settings):
    """From a model to labels."""

    pooling: str | None = None
    """How positions become one vector: mean, last, first, max or sum over real tokens,
    published_mean over padding too; null keeps the model's own way."""
    special_tokens: Literal["auto", "yes", "no"] = "auto"
    """Whether the tokenizer adds its special tokens; auto: in dnabert and bigbird."""
    padding: Literal["right", "left"] = "right"
    """Side that shorter sequences of a batch are padded on (left, as published)."""
    pad_to_longest: bool = False
    """Pad every batch to the longest sequence of all, as published, instead of its own longest."""
    freeze: bool = False
    """Train only the head; the weights below it are frozen."""
    freeze_blocks: int = 0
    """Freeze the first blocks, this many of them, and the embedding below them."""
    freeze_embeddings: bool = False
    """Freeze the token embedding."""
    class_weights: Literal["balanced"] | list[float] | None = None
    """Loss weights of the classes (of the positive answers, for several labels): balanced is
    inverse to their number; or one number for each, in the order of the sorted names."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    loss: Literal["mse", "poisson"] | None = None
    """Loss of numbers. mse: squared error of standardized numbers. poisson: for counts, over their
    mean. null: mse of tracks, squared error of the numbers of a table as they are."""
    scale: Literal["linear", "log1p"] = "linear"
    """log1p: the logarithm of one more than a number is learned; predictions and metrics are in the
    unit of the data."""
    reverse_complement: float | None = None
    """Probability that a training sequence is read as its reverse complement; null: 0.5, but 0
    where the training rows show that their direction matters, as those of promoters do, and for
    tracks and labels of bases, but for features of either strand."""
    crop: float = 1.0
    """Share of every training sequence that is read, from a start drawn anew in each epoch;
    validation and test read the whole. Not with special tokens."""
    strand_average: bool | None = None
    """Validate and test on the mean of the outputs for both strands; null: where training reads
    both."""

    _prefix = "head."
    _limits: ClassVar = {
        "be at least 0": "freeze_blocks",
        "lie in 0 to 1, 1 excluded": "label_smoothing",
        "lie in 0 to 1, 0 excluded": "crop",
        "lie in 0 to 1": "reverse_complement",
    }


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Settings):
    """Low-rank adapters beside frozen weights, through peft (the extra lora)."""

    rank: int = 0
    """Rank of the adapters; 0 has none. The weights below the head are frozen, the head learns."""
    alpha: float | None = None
    """The adapter counts alpha / rank times; null takes twice the rank."""
    targets: list[str] = field(default_factory=list)
    """Linear layers that get one, by the last part of their names; empty takes all below the head
    but those that compute filters."""
    save: Literal["merged", "adapter"] = "merged"
    """merged: checkpoints hold the model with the adapters folded in. adapter: adapters and head
    alone too, in the folder adapter beside it."""

    _prefix = "lora."
    _limits: ClassVar = {"be at least 0": "rank", "be above 0": "alpha"}
