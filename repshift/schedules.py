"""How many tokens go where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeAlias

from repshift.errors import ScheduleError

# A share of the current tokens, in (0, 1), or a count of tokens
Drop: TypeAlias = float | int
ScheduleLike: TypeAlias = "Schedule | Mapping[int, Drop] | Sequence[Drop] | str"

FORMS = (
    "Give a dictionary of blocks and drops {0: 0.2, 3: 0.2}, a list with one entry a block [0.2, 0, 0, ...], "
    "or a string '0.2@0,3,6'."
)


@dataclass(frozen=True)
class Schedule:
    """What is dropped after which block.

    Attributes:
        drops: Block (counted from zero) to drop: a float in (0, 1) is a share of the tokens that are there when the
            block ends, an int is a count of them. Blocks that drop nothing are left out.
        entries: Number of blocks that the schedule speaks of, if it was given as a list with one entry a block.

    Raises:
        ScheduleError: If a block is no number from zero, a share is outside (0, 1), a count is negative, or nothing is
            dropped at all.

    Example:
        >>> from repshift import Schedule
        >>> paper = Schedule({0: 0.2, 3: 0.2, 6: 0.2})
        >>> paper.kept(196)
        {0: 157, 3: 126, 6: 101}
        >>> str(paper)
        '0.2@0,3,6'

    Source: arXiv 2508.00367, section 4: 20 % of the current tokens after the first, fourth and seventh block.
    """

    drops: Mapping[int, Drop]
    entries: int | None = None

    def __post_init__(self) -> None:
        drops = {}
        for block, drop in self.drops.items():
            checked = _checked(block, drop)
            if checked != 0:
                drops[int(block)] = checked
        if not drops:
            raise ScheduleError(
                f"The schedule {self.drops!r} drops nothing. Use the model as it is, or drop something."
            )
        object.__setattr__(self, "drops", {block: drops[block] for block in sorted(drops)})

    @classmethod
    def of(cls, schedule: ScheduleLike) -> Schedule:
        """Read a schedule in any of its forms.

        Args:
            schedule: A :class:`Schedule`; a dictionary of blocks and drops; a list with one entry a block, 0 where
                nothing is dropped; or a string, ``"0.2@0,3,6"``, ``"0.2@0,3;16@6"`` or ``"[0.2,0,0]"``.

        Raises:
            ScheduleError: If it has none of these forms, a share is outside (0, 1), a count is negative, or nothing
                is dropped at all.

        Example:
            >>> from repshift import Schedule
            >>> Schedule.of([0.2, 0, 0, 16]) == Schedule({0: 0.2, 3: 16}, entries=4)
            True
            >>> Schedule.of("0.2@0,3;16@6").drops
            {0: 0.2, 3: 0.2, 6: 16}
        """
        if isinstance(schedule, Schedule):
            return schedule
        read = _parse(schedule) if isinstance(schedule, str) else schedule
        if isinstance(read, Mapping):
            return cls(read)
        if isinstance(read, Sequence):
            return cls(dict(enumerate(read)), len(read))
        raise ScheduleError(f"A schedule cannot be a {type(schedule).__name__}: {schedule!r}. {FORMS}")

    def check(self, blocks: int, tokens: int | None, unit: str = "block") -> None:
        """Check that the schedule fits a model.

        Args:
            blocks: How many blocks, stages or layers the model has.
            tokens: How many prunable tokens it starts with; ``None`` if that depends on the input.
            unit: What they are called.

        Raises:
            ScheduleError: If a list has the wrong length, a block does not exist, fewer than one token would stay,
                or the schedule comes to dropping no token at all.
        """
        if self.entries is not None and self.entries != blocks:
            raise ScheduleError(f"The schedule has {self.entries} entries, the model has {blocks} {unit}s. {FORMS}")
        for block in self.drops:
            if block >= blocks:
                raise ScheduleError(
                    f"The schedule drops at {unit} {block}, the model's {unit}s are 0 to {blocks - 1} "
                    f"(counted from zero). Leave that entry out or choose another {unit}."
                )
        if tokens is not None and self.kept(tokens)[max(self.drops)] == tokens:
            raise ScheduleError(
                f"The schedule {dict(self.drops)} drops none of the model's {tokens} tokens: each share comes to less "
                "than one token. Raise it, or give a count."
            )

    def kept(self, tokens: int) -> dict[int, int]:
        """Say how many tokens are left after each block that drops some.

        Args:
            tokens: How many prunable tokens there are at first.

        Returns:
            Numbers of tokens by block, in order.

        Raises:
            ScheduleError: If fewer than one token would stay.

        Example:
            >>> from repshift import Schedule
            >>> Schedule.of("0.5@0;16@1").kept(64)
            {0: 32, 1: 16}
        """
        left = {}
        for block, drop in self.drops.items():
            tokens -= dropped_count(tokens, drop, f"block {block}")
            left[block] = tokens
        return left

    def __str__(self) -> str:
        """Write the schedule in the form that :meth:`of` reads."""
        blocks_of: dict[Drop, list[int]] = {}
        for block, drop in self.drops.items():
            blocks_of.setdefault(drop, []).append(block)
        return ";".join(f"{drop}@{','.join(map(str, blocks))}" for drop, blocks in blocks_of.items())


def dropped_count(tokens: int, drop: Drop, where: str, unit: str = "tokens") -> int:
    """Say how many of ``tokens`` (or rows, or columns) a drop takes: the count itself, or the floor of the share.

    Raises:
        ScheduleError: If fewer than one would stay.

    Source: arXiv 2508.00367, tables: 196 -> 157 -> 126 -> 101 patches at 20 %.
    """
    # 1e-9: in binary 0.29 * 100 is a little less than 29, and 29 is meant
    count = math.floor(drop * tokens + 1e-9) if isinstance(drop, float) else drop
    if count > tokens - 1:
        raise ScheduleError(
            f"Dropping {drop} at {where} leaves fewer than one of the {tokens} {unit} there. Drop at most {tokens - 1}."
        )
    return count


def _checked(block: object, drop: object) -> Drop:
    """Check one entry and return its drop as a plain float or int (NumPy's scalars are welcome)."""
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


def _parse(text: str) -> dict[int, Drop] | list[Drop]:
    stripped = text.strip()
    try:
        if "@" not in stripped:
            return [_number(entry) for entry in stripped.strip("[]").split(",")]
        drops: dict[int, Drop] = {}
        for group in stripped.split(";"):
            drop, blocks = group.split("@")
            for block in blocks.split(","):
                if int(block) in drops:
                    raise ScheduleError(f"The schedule {text!r} names block {int(block)} twice. Name each block once.")
                drops[int(block)] = _number(drop)
        return drops
    except ScheduleError:
        raise
    except ValueError as error:
        raise ScheduleError(f"The schedule {text!r} cannot be read ({error}). {FORMS}") from error


def _number(text: str) -> Drop:
    return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
