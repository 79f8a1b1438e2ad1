"""What goes at one block: a share of the tokens that are there, or a count of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeAlias

from torch import Tensor

from repshift.errors import ScheduleError

# A share of the current tokens, in (0, 1), or a count of tokens
Drop: TypeAlias = float | int

FORMS = (
    "Give a dictionary of blocks and drops {0: 0.2, 3: 0.2}, a list with one entry a block [0.2, 0, 0, ...], "
    "or a string '0.2@0,3,6', '0.2@0::3' (every third block) or '13@0:11' (blocks 0 to 10)."
)


@dataclass(frozen=True)
class Repeated:
    """A drop after every so many blocks.

    Attributes:
        drop: A share of the tokens or a count of them.
        step: From one block to the next.
        start: The first block.

    Raises:
        ScheduleError: If one of them is no such number.
    """

    drop: Drop
    step: int
    start: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop", checked_drop(self.start, self.drop))
        if isinstance(self.step, bool) or not isinstance(self.step, Integral) or self.step < 1:
            raise ScheduleError(f"A schedule drops at every block (1) or every so many, got {self.step!r}. {FORMS}")
        if self.drop == 0:
            raise ScheduleError("A schedule that drops nothing at every so many blocks drops nothing. Drop something.")


def dropped_count(tokens: int, drop: Drop, where: str, unit: str = "tokens") -> int:
    """Say how many of ``tokens`` (or rows, or columns) a drop takes: the count itself, or the floor of the share.

    Raises:
        ScheduleError: If fewer than one would stay.

    Source: arXiv 2508.00367, tables: 196 -> 157 -> 126 -> 101 patches at 20 %.
    """
    count = dropped(tokens, drop)
    if count > tokens - 1:
        most = f"Drop at most {tokens - 1}." if tokens > 1 else "Drop nothing there, or give larger images."
        raise ScheduleError(f"Dropping {drop} at {where} leaves fewer than one of the {tokens} {unit} there. {most}")
    return count


def dropped(tokens: int, drop: Drop) -> int:
    """Say how many of ``tokens`` a drop means, whether there are that many or not."""
    # 1e-9: in binary 0.29 * 100 is a little less than 29, and 29 is meant
    return math.floor(drop * tokens + 1e-9) if isinstance(drop, float) else drop


def dropped_of_each(tokens: Tensor, share: float) -> Tensor:
    """Say the same as :func:`dropped` of many numbers at once, where they are: nothing is asked of the device.

    Args:
        tokens: ``(batch,)`` int64.
        share: Of the tokens.

    Returns:
        ``(batch,)`` int64.
    """
    return (tokens.double() * share + 1e-9).floor().long()


def whole_number(what: str, number: object) -> int:
    """Check that something can be so many.

    Raises:
        ScheduleError: If it cannot.
    """
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise ScheduleError(f"A model has one or more {what}, got {number!r}. Give a whole number from 1.")
    return int(number)


def checked_drop(block: object, drop: object) -> Drop:
    """Check one entry and return its drop as a plain float or int (NumPy's scalars are welcome).

    Raises:
        ScheduleError: If the block is no number from zero, or the drop is neither a share nor a count.
    """
    if isinstance(block, bool) or not isinstance(block, Integral) or block < 0:
        raise ScheduleError(f"A schedule names blocks by number from zero, got {block!r}. {FORMS}")
    if isinstance(drop, bool) or not isinstance(drop, Real):
        raise ScheduleError(f"Block {block} should drop a share or a count, got {drop!r}. {FORMS}")
    if isinstance(drop, Integral):
        if drop < 0:
            raise ScheduleError(f"Block {block} should drop a count of tokens, got {drop}. Give 1 or more.")
        return int(drop)
    share = float(drop)
    if share != 0 and not 0 < share < 1:
        raise ScheduleError(
            f"Block {block} should drop a share in (0, 1), got {drop}. For a count of tokens give an integer."
        )
    return share
