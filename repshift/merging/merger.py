"""What all pruners that merge have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar

from repshift.drops import Drop
from repshift.errors import ScheduleError
from repshift.pruners import Candidates
from repshift.selection import Selection


@dataclass(frozen=True)
class Merger(ABC):
    """A pruner that lets tokens become part of others.

    Attributes:
        size_attention: Whether a token counts in later attention as often as the tokens that it stands for.
    """

    size_attention: bool = field(default=True, kw_only=True)
    needs: ClassVar[tuple[str, ...]] = ("merge",)

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(setting.default, bool) and not isinstance(value, bool):
                raise ScheduleError(f"{type(self).__name__} has {setting.name} True or False, got {value!r}.")

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Merge as many tokens as a drop says; see :class:`repshift.pruners.Pruner`.

        Raises:
            ScheduleError: If fewer than one token would stay.
        """
        left = candidates.left(drop)
        return None if left == candidates.count else self.merge(candidates, left)

    @abstractmethod
    def merge(self, candidates: Candidates, left: int) -> Selection:
        """Say which tokens stay and which of them the others join.

        Args:
            candidates: The tokens.
            left: How many stay, fewer than there are.
        """
