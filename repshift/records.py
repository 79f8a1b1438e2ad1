"""What a tracker has seen: tensors by module name, and the maps made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repshift.errors import RepresentationError, UnknownNameError
from repshift.origins import Origin
from repshift.positions import restore
from repshift.registry import suggest


class PerModule(Mapping[str, Tensor]):
    """Tensors by module name, in the order of the model; a block can also be named by its number.

    Args:
        tensors: What was recorded.
        blocks: Names of the model's blocks, as a schedule counts them; by default those recorded.
    """

    def __init__(self, tensors: Mapping[str, Tensor], blocks: Sequence[str] = ()) -> None:
        self._tensors = dict(tensors)
        self._blocks = tuple(blocks) or tuple(tensors)

    def __getitem__(self, key: str | int) -> Tensor:
        return self._tensors[self._known(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, (str, int)) and self._named(key) in self._tensors

    def __repr__(self) -> str:
        shapes = (f"{name}: {tuple(tensor.shape)}" for name, tensor in self._tensors.items())
        return f"{type(self).__name__}({', '.join(shapes)})"

    def stacked(self) -> Tensor:
        """Return all tensors as one, ``(modules, batch, ...)``.

        Raises:
            RepresentationError: If they are not of one shape, as behind the cuts of a pruned model.
            UnknownNameError: If nothing is recorded.
        """
        if not self._tensors:
            self._known("everything")
        return _stack(self._tensors)

    def _known(self, key: str | int) -> str:
        name = self._named(key) if isinstance(key, (str, int)) else str(key)
        if name in self._tensors:
            return name
        if not self._tensors:
            raise UnknownNameError(
                f"Nothing is recorded for {key!r} yet. Run the model itself inside the with block "
                "(a torch.compile'd version of it ignores hooks), in the thread that entered it; only pruned models "
                "have kept positions."
            )
        raise UnknownNameError(f"Nothing is recorded for {key!r}. {suggest(name, self._tensors)}")

    def _named(self, key: str | int) -> str:
        if isinstance(key, (str, bool)):
            return str(key)
        return self._name(key)

    def _name(self, number: int) -> str:
        return self._blocks[number] if -len(self._blocks) <= number < len(self._blocks) else str(number)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured at one module, with what is needed to lay it out as a map.

    Attributes:
        shift: ``(batch, tokens)``.
        origin: Where the tokens stood.
        grid: Their rows and columns; ``None`` if these are not known.
    """

    shift: Tensor
    origin: Origin
    grid: tuple[int, ...] | None

    def everywhere(self, name: str) -> Tensor:
        """Return a value for every token of the dense model, ``(batch, tokens)``; NaN for those that were dropped.

        A token that became part of another one has the value of that.

        Raises:
            RepresentationError: If there are not as many values as tokens left.
        """
        shift, origin = self.shift, self.origin
        if origin.positions is None or origin.tokens is None:
            return shift
        if shift.shape[1] != origin.positions.shape[1]:
            raise RepresentationError(
                f"{name!r} gave {shift.shape[1]} shifts where {origin.positions.shape[1]} tokens are left, so they "
                "cannot be laid out: they count a class token too. Watch the blocks themselves."
            )
        if origin.joined is None:
            return restore(shift, origin.positions, origin.tokens)
        return shift.gather(1, origin.joined.clamp_min(0)).masked_fill(origin.joined < 0, torch.nan)


class Maps(Mapping[str, Tensor]):
    """Measurements laid out on their grids; made when asked for.

    Args:
        measurements: By module name.
        blocks: See :class:`PerModule`.
    """

    def __init__(self, measurements: Mapping[str, Measurement], blocks: Sequence[str] = ()) -> None:
        self._measurements = dict(measurements)
        self._shifts = PerModule({name: each.shift for name, each in measurements.items()}, blocks)

    def __getitem__(self, key: str | int) -> Tensor:
        name = self._shifts._known(key)
        measured = self._measurements[name]
        shift = measured.everywhere(name)
        if measured.grid is None or math.prod(measured.grid) != shift.shape[1]:
            raise RepresentationError(
                f"The {shift.shape[1]} tokens of {name!r} have no known rows and columns"
                f"{f' (the image has a grid of {measured.grid})' if measured.grid else ''}: no image was seen to "
                "enter, or these are not all of its patches, row by row. Run the whole model on images inside the with "
                "block; where tokens are words, or in an order of their own, reshape tracker.shifts yourself."
            )
        return shift.reshape(shift.shape[0], *measured.grid)

    def __iter__(self) -> Iterator[str]:
        return iter(self._measurements)

    def __len__(self) -> int:
        return len(self._measurements)

    def __contains__(self, key: object) -> bool:
        return key in self._shifts

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}: {each.grid}' for name, each in self._measurements.items())})"
        )

    def stacked(self) -> Tensor:
        """Return all maps as one, ``(modules, batch, rows, columns)``.

        Raises:
            RepresentationError: If they are not of one size, or one cannot be laid out.
            UnknownNameError: If nothing is recorded.
        """
        if not self._measurements:
            self._shifts.stacked()
        return _stack(dict(self.items()))


def _stack(tensors: Mapping[str, Tensor]) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) > 1:
        raise RepresentationError(
            f"What was recorded has several shapes, {', '.join(map(str, sorted(shapes)))}, so it cannot be stacked. "
            "Take single modules; of a pruned model, maps.stacked() has every token's place."
        )
    return torch.stack(list(tensors.values()))
