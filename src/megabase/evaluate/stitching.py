"""Windows over a sequence longer than a model reads, and which window answers for which base."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from megabase.errors import InputError

__all__ = ["STITCHES", "Span", "Stitch", "plan_windows"]

Stitch = Literal["centre", "before", "average"]
"""``centre``: a base is answered for by the window in which it is farthest from both ends.
``before``: by the window that has most DNA in front of it, for models that look back only.
``average``: by the mean of all windows that cover it."""

STITCHES: tuple[str, ...] = get_args(Stitch)
"""Names of the rules."""


class Span(NamedTuple):
    """A window and the part of it that counts; all 0-based half-open, in the whole sequence."""

    start: int
    end: int
    first: int
    last: int


def plan_windows(
    length: int,
    window: int,
    overlap: int,
    rule: Stitch = "centre",
    part: tuple[int, int] | None = None,
) -> list[Span]:
    """Lay windows over a sequence.

    Windows begin every ``window - overlap`` bases; the last one is moved back to end with the
    sequence, so that all have the same length. A sequence no longer than a window is one window.

    Parameters
    ----------
    length
        Bases of the sequence.
    window
        Bases of a window.
    overlap
        Bases that neighbours share.
    rule
        Who answers for a base that several windows cover. With ``centre`` neighbours meet in the
        middle of what they share; with ``before`` the earlier window keeps all of it.
    part
        Give only the windows that answer for bases of this part, (first, after the last); they are
        the same as in the plan of the whole sequence.

    Returns
    -------
    list of Span
        In order. Their parts tile the sequence, but for ``average``, where they are the windows.

    Raises
    ------
    InputError
        For an unknown rule, or an overlap that is negative or not smaller than the window.

    Examples
    --------
    >>> plan_windows(10, 6, 2)
    [Span(start=0, end=6, first=0, last=5), Span(start=4, end=10, first=5, last=10)]
    """
    if rule not in STITCHES:
        raise InputError(f"windows are stitched by {', '.join(STITCHES)}; found {rule!r}")
    if window < 1 or not 0 <= overlap < window:
        raise InputError(
            f"the overlap must be 0 or more and smaller than the window of {window:,} bases; found "
            f"{overlap:,}"
        )
    low, high = (0, length) if part is None else part
    if length <= window:
        return [Span(0, length, 0, length)]
    step = window - overlap
    count = -(-(length - window) // step) + 1

    def start_of(number: int) -> int:
        return min(number * step, length - window)

    # A genome has millions of windows: only those near the part are looked at.
    near = range(max(0, (low - window) // step - 1), min(count, high // step + 2))
    spans: list[Span] = []
    for number in near:
        start, end = start_of(number), start_of(number) + window
        first, last = start, end
        if rule == "before":
            first = start_of(number - 1) + window if number else 0
        elif rule == "centre":
            first = (start + start_of(number - 1) + window + 1) // 2 if number else 0
            last = (start_of(number + 1) + end + 1) // 2 if number + 1 < count else length
        if first < high and last > low:
            spans.append(Span(start, end, first, last))
    return spans
