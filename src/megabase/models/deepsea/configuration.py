"""Configuration of DeepSEA."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from megabase.models.base import OwnFamilyConfig, Problems


def flatten_length(length: int, kernel: int, pool: int) -> int:
    """Count the positions that three convolutions and two poolings leave.

    >>> flatten_length(1000, 8, 4)
    53
    """
    for _ in range(2):
        length = max(length - kernel + 1, 0) // pool
    return max(length - kernel + 1, 0)


class DeepSEAConfig(OwnFamilyConfig, PreTrainedConfig):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Shape of a DeepSEA network; the defaults are the published one (52,843,119 parameters).

    Parameters
    ----------
    channels
        Filters of the three convolutions.
    kernel, pool
        Width of the convolutions, and of the pooling after the first two.
    hidden
        Width of the dense layer before the output.
    dropout
        After the first, second and third convolution.
    floor
        What a rectified unit gives where its input is not positive.
    max_length
        Bases of every input: the dense layer has a weight for each position. Shorter inputs are
        padded on the right with positions that are not a base.
    too_long
        ``"error"`` refuses longer inputs; ``"trim"`` keeps their first `max_length` bases.
    unknown_value
        Value of all four channels at an N. 0, as the code that made DeepSEA's data did; some later
        loaders used 0.25. Padding and special tokens are always 0.
    strand_average
        Average the probabilities of both strands in evaluation mode, as the published prediction
        model does (its variant model does not). Training mode reads the forward strand: the other
        one is its own sample.
    **kwargs
        ``num_labels`` (919), ``problem_type`` (``"multi_label_classification"``) and the rest of
        transformers' configuration.
    """

    model_type = "deepsea"
    family_title = "DeepSEA network"

    channels: tuple[int, ...] | list[int] = (320, 480, 960)
    kernel: int = 8
    pool: int = 4
    hidden: int = 925
    dropout: tuple[float, ...] | list[float] = (0.2, 0.2, 0.5)
    floor: float = 1e-6
    max_length: int = 1000
    too_long: str = "error"
    unknown_value: float = 0.0
    strand_average: bool = True
    vocab_size: int = 12
    pad_token_id: int | None = 4

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            kwargs.setdefault("num_labels", 919)
        if self.problem_type is None:
            self.problem_type = "multi_label_classification"
        super().__post_init__(**kwargs)
        self.channels, self.dropout = list(self.channels), list(self.dropout)
        problems = Problems("DeepSEA configuration", self)
        problems.demand(
            len(self.channels) == 3 and min(self.channels) >= 1,
            f"channels must be three positive numbers, found {self.channels}",
        )
        problems.demand(
            len(self.dropout) == 3 and all(0 <= share < 1 for share in self.dropout),
            f"dropout must be three shares from 0 to below 1, found {self.dropout}",
        )
        problems.one_of("too_long", ("error", "trim"))
        problems.whole("kernel", "pool", "hidden", "max_length", "vocab_size")
        if not problems.found and not flatten_length(self.max_length, self.kernel, self.pool):
            least = ((self.kernel * self.pool) + self.kernel - 1) * self.pool + self.kernel - 1
            problems.demand(
                False,
                f"max_length={self.max_length} leaves nothing after three convolutions; "
                f"give {least} or more",
            )
        problems.report()

    def to_diff_dict(self) -> dict[str, Any]:
        """Give what is saved; labels always, since transformers leaves out two of them as usual."""
        labels = {"id2label": self.id2label, "label2id": self.label2id}
        return {**super().to_diff_dict(), **labels}
