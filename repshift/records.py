"""What a tracker has seen: shifts by module name, and the maps made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from repshift.errors import RepresentationError, UnknownNameError
from repshift.origins import Origin
from repshift.registry import suggest
from repshift.selection import restore


class Records(dict[str, Tensor]):
    """What was recorded, by module name; a name that was not recorded gets a clear error."""

    def __missing__(self, name: str) -> Tensor:
        if not self:
            raise UnknownNameError(
                f"Nothing is recorded for {name!r} yet. Run the model itself inside the with block "
                "(a torch.compile'd version of it ignores hooks); only pruned models have kept positions."
            )
        raise UnknownNameError(f"Nothing is recorded for {name!r}. {suggest(name, self)}")


@dataclass(frozen=True)
class Record:
    """A shift, with what is needed to lay it out as a map: where its tokens stood, and on which grid."""

    shift: Tensor
    origin: Origin
    grid: tuple[int, ...] | None


class Maps(Mapping[str, Tensor]):
    """Records laid out on their grids; made when asked for."""

    def __init__(self, records: dict[str, Record]) -> None:
        self._records = records

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._records:
            return Records({known: record.shift for known, record in self._records.items()})[name]
        record = self._records[name]
        shift, origin = record.shift, record.origin
        if origin.positions is not None and origin.tokens is not None:
            if shift.shape[1] != origin.positions.shape[1]:
                raise RepresentationError(
                    f"{name!r} gave {shift.shape[1]} shifts where {origin.positions.shape[1]} tokens are left, so they "
                    "cannot be laid out: they count a class token too. Watch the blocks themselves."
                )
            shift = restore(shift, origin.positions, origin.tokens)
        if record.grid is None or math.prod(record.grid) != shift.shape[1]:
            raise RepresentationError(
                f"The {shift.shape[1]} tokens of {name!r} have no known rows and columns"
                f"{f' (the image has a grid of {record.grid})' if record.grid else ''}. "
                "Run the whole model on images inside the with block, or reshape tracker.shifts yourself."
            )
        return shift.reshape(shift.shape[0], *record.grid)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: object) -> bool:
        return name in self._records
