"""How many tokens go where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from repshift.drops import FORMS, Drop, Repeated, checked_drop, dropped_count, whole_number
from repshift.errors import ScheduleError

ScheduleLike: TypeAlias = "Schedule | Mapping[int, Drop] | Sequence[Drop] | str"

# Sequences of numbers that nobody means as drops
NUMBERS = (bytes, bytearray, memoryview, range)


@dataclass(frozen=True)
class Schedule:
    """What is dropped after which block.

    Attributes:
        drops: Block (counted from zero) to drop: a float in (0, 1) is a share of the tokens that are there when the
            block ends, an int is a count of them. Blocks that drop nothing are left out.
        entries: Number of blocks that the schedule speaks of, if it was given as a list with one entry a block.
        repeated: Drops that are made at every so many blocks, however many a model has, see :meth:`every`.

    Raises:
        ScheduleError: If a block is no number from zero, a share is outside (0, 1), a count is negative, nothing is
            dropped at all, or entries are given beside what is repeated or that are fewer than the blocks.

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
    repeated: tuple[Repeated, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.drops, Mapping):
            raise ScheduleError(
                f"Schedule takes a dictionary of blocks and drops, got {self.drops!r}. "
                "Schedule.of reads every form: Schedule.of('0.2@0,3,6')."
            )
        drops = {}
        for block, drop in self.drops.items():
            checked = checked_drop(block, drop)
            if checked != 0:
                drops[int(block)] = checked
        self._check_repeated()
        if self.repeated and self.entries is not None:
            raise ScheduleError(
                f"A schedule of {self.entries} entries says what every block drops, so nothing can be repeated beside "
                "it. Leave entries out."
            )
        if not drops and not self.repeated:
            raise ScheduleError(
                f"The schedule {self.drops!r} drops nothing. Use the model as it is, or drop something."
            )
        if self.entries is not None and whole_number("entries of a schedule", self.entries) <= max(drops, default=-1):
            raise ScheduleError(f"A schedule of {self.entries} entries has no block {max(drops)}. Leave entries out.")
        object.__setattr__(self, "drops", {block: drops[block] for block in sorted(drops)})

    def _check_repeated(self) -> None:
        listed = tuple(self.repeated) if isinstance(self.repeated, Sequence) else (self.repeated,)
        if not all(isinstance(each, Repeated) for each in listed):
            raise ScheduleError(
                f"What is repeated is written by Schedule.every(0.2, 3) or '0.2@0::3', got {self.repeated!r}."
            )
        object.__setattr__(self, "repeated", listed)

    @classmethod
    def every(cls, drop: Drop, step: int, start: int = 0) -> Schedule:
        """Drop the same after every so many blocks, to the end of whatever model it is used on.

        Args:
            drop: A share of the tokens that are there or a count of them.
            step: How many blocks lie between two cuts, and one.
            start: The first block.

        Raises:
            ScheduleError: If one of them is no such number.

        Example:
            >>> from repshift import Schedule
            >>> str(Schedule.every(0.2, 3)), Schedule.every(0.2, 3).over(12).drops
            ('0.2@0::3', {0: 0.2, 3: 0.2, 6: 0.2, 9: 0.2})
        """
        return cls({}, repeated=(Repeated(drop, step, start),))

    def over(self, blocks: int) -> Schedule:
        """Return the schedule for a model of so many blocks, in which nothing is left to be repeated.

        Raises:
            ScheduleError: If a block is named twice, none is left to drop at, or there is no such number of blocks.
        """
        blocks = whole_number("blocks", blocks)
        if not self.repeated:
            return self
        drops = dict(self.drops)
        for each in self.repeated:
            for block in range(each.start, blocks, each.step):
                if block in drops:
                    raise ScheduleError(f"The schedule {self} names block {block} twice. Name each block once.")
                drops[block] = each.drop
        if not drops:
            raise ScheduleError(f"The schedule {self} begins behind the model's {blocks} blocks. Begin earlier.")
        return Schedule(drops)

    @classmethod
    def of(cls, schedule: ScheduleLike) -> Schedule:
        """Read a schedule in any of its forms.

        Args:
            schedule: A :class:`Schedule`; a dictionary of blocks and drops; a list with one entry a block, 0 where
                nothing is dropped; or a string, ``"0.2@0,3,6"``, ``"0.2@0,3;16@6"``, ``"0.2@0::3"`` (every third
                block), ``"13@0:11"`` (blocks 0 to 10), ``"r13"`` (13 tokens at every block, as merging is often
                written) or ``"[0.2,0,0]"``.

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
        if isinstance(schedule, str):
            return _parse(schedule)
        if isinstance(schedule, Mapping):
            return cls(schedule)
        if isinstance(schedule, Sequence) and not isinstance(schedule, NUMBERS):
            entries: Any = schedule
            return cls(dict(enumerate(entries)), len(entries))
        raise ScheduleError(f"This is no schedule ({type(schedule).__name__}): {schedule!r}. {FORMS}")

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
        blocks = whole_number(f"{unit}s", blocks)
        if self.repeated:
            return self.over(blocks).check(blocks, tokens, unit)
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
            ScheduleError: If fewer than one token would stay, or it depends on the number of blocks (:meth:`over`).

        Example:
            >>> from repshift import Schedule
            >>> Schedule.of("0.5@0;16@1").kept(64)
            {0: 32, 1: 16}
        """
        if self.repeated:
            raise ScheduleError(f"The schedule {self} depends on the number of blocks. Say it: schedule.over(blocks).")
        tokens, left = whole_number("tokens", tokens), {}
        for block, drop in self.drops.items():
            tokens -= dropped_count(tokens, drop, f"block {block}")
            left[block] = tokens
        return left

    def __str__(self) -> str:
        """Write the schedule in the form that :meth:`of` reads."""
        blocks_of: dict[Drop, list[str]] = {}
        for block, drop in self.drops.items():
            blocks_of.setdefault(drop, []).append(str(block))
        for each in self.repeated:
            blocks_of.setdefault(each.drop, []).append(f"{each.start}::{each.step}")
        return ";".join(f"{drop}@{','.join(blocks)}" for drop, blocks in blocks_of.items())

    def __hash__(self) -> int:
        """Equal schedules have one hash, so that they can be keys."""
        return hash((tuple(self.drops.items()), self.entries, self.repeated))


def _parse(text: str) -> Schedule:
    stripped = text.strip()
    try:
        if not stripped.isascii() or "_" in stripped:  # which Python takes for numbers, too
            raise ValueError("it has other signs than digits")
        if "@" not in stripped and not stripped.startswith("r"):
            if stripped[:1] == "[" and stripped[-1:] == "]":
                stripped = stripped[1:-1]
            entries = [_number(entry) for entry in stripped.split(",")]
            return Schedule(dict(enumerate(entries)), len(entries))
        return _parse_groups(stripped)
    except ScheduleError:
        raise
    except ValueError as error:
        raise ScheduleError(f"The schedule {text!r} cannot be read ({error}). {FORMS}") from error


def _parse_groups(text: str) -> Schedule:
    drops: dict[int, Drop] = {}
    repeated: list[Repeated] = []
    for group in text.split(";"):
        drop, sign, named = group.partition("@")
        for part in named.split(",") if sign else ["::"]:
            start, stop, step = _blocks(part)
            if stop is None:
                repeated.append(Repeated(_number(drop), step, start))
                continue
            for block in range(start, stop, step):
                if block in drops:
                    raise ScheduleError(f"The schedule {text!r} names block {block} twice. Name each block once.")
                drops[block] = _number(drop)
    return Schedule(drops, repeated=tuple(repeated))


def _blocks(text: str) -> tuple[int, int | None, int]:
    """Read one block, or ``start:stop:step`` as Python means it; without a stop it goes on to the last block."""
    if ":" not in text:
        return int(text), int(text) + 1, 1
    start, stop, step = (
        int(part) if part.strip() else None for part in (text if text.count(":") > 1 else f"{text}:").split(":")
    )
    if (start or 0) < 0 or (stop or 0) < 0:
        raise ValueError(f"blocks are counted from zero, not {text!r}")
    return start or 0, stop, 1 if step is None else step


def _number(text: str) -> Drop:
    if text.strip().startswith("r"):  # as it is written of merging
        return int(text.strip()[1:])
    return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
