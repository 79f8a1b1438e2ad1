"""How a value inside a model holds tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from repshift.errors import RepresentationError


class Layout(Protocol):
    """Reads tokens out of the value that a module takes or returns."""

    def tokens(self, value: Any) -> Tensor:
        """Return the tokens that can be scored, ``(batch, tokens, channels)``; prefix tokens are left out."""
        ...

    def grid(self, value: Any) -> tuple[int, ...] | None:
        """Return the rows and columns (or frames, rows and columns) of the tokens, if the value itself tells."""
        ...


class TokenLayout(Layout, Protocol):
    """A layout whose tokens can be dropped one by one."""

    def keep(self, value: Any, kept: Tensor) -> Any:
        """Return the value with only the ``kept`` tokens, ``(batch, kept)`` ascending, and every prefix token."""
        ...


@dataclass(frozen=True)
class Sequence:
    """A tensor ``(batch, prefix + tokens, channels)``: the prefix tokens (class, distillation, registers) come first.

    Prefix tokens are never scored and never dropped.
    """

    prefix: int = 0

    def tokens(self, value: Any) -> Tensor:
        """Return the tokens behind the prefix, ``(batch, tokens, channels)``.

        Raises:
            RepresentationError: If the value is no such tensor or holds nothing behind the prefix.
        """
        tensor = first_tensor(value)
        if tensor.ndim != 3 or tensor.shape[1] <= self.prefix:
            raise RepresentationError(
                f"Expected (batch, tokens, channels) with more than {self.prefix} prefix token(s), "
                f"got {tuple(tensor.shape)}. Choose a module that carries the tokens."
            )
        return tensor[:, self.prefix :]

    def grid(self, value: Any) -> None:
        """Return ``None``: a sequence does not tell its rows and columns."""
        return None

    def keep(self, value: Tensor, kept: Tensor) -> Tensor:
        """Return ``(batch, prefix + kept, channels)``: the prefix and the kept tokens in the order of ``kept``.

        Args:
            value: ``(batch, prefix + tokens, channels)``.
            kept: ``(batch, kept)`` int64 positions among the tokens behind the prefix.
        """
        batch, length, channels = value.shape
        positions = kept + self.prefix
        if self.prefix:
            prefix = torch.arange(self.prefix, device=kept.device).expand(batch, -1)
            positions = torch.cat([prefix, positions], dim=1)
        # whole rows of one long table are copied ten times as fast as gather picks single numbers (on a CPU)
        rows = positions + length * torch.arange(batch, device=kept.device).unsqueeze(1)
        return value.flatten(0, 1).index_select(0, rows.flatten()).view(batch, positions.shape[1], channels)


@dataclass(frozen=True)
class FeatureMap:
    """A tensor ``(batch, channels, rows, columns)``, or ``(batch, rows, columns, channels)``; every position a token.

    A dimension of frames may stand before the rows.
    """

    channels_last: bool = False

    def tokens(self, value: Any) -> Tensor:
        """Return the positions in row-major order, ``(batch, rows * columns, channels)``."""
        tensor = self._checked(value)
        return tensor.flatten(1, -2) if self.channels_last else tensor.flatten(2).transpose(1, 2)

    def grid(self, value: Any) -> tuple[int, ...]:
        """Return ``(rows, columns)`` or ``(frames, rows, columns)``."""
        shape = self._checked(value).shape
        return tuple(shape[1:-1] if self.channels_last else shape[2:])

    @staticmethod
    def _checked(value: Any) -> Tensor:
        tensor = first_tensor(value)
        if tensor.ndim not in (4, 5):
            raise RepresentationError(
                f"Expected a feature map of 4 or 5 dimensions, got {tuple(tensor.shape)}. "
                "Choose a module that carries the map."
            )
        return tensor


def guess_layout(value: Any) -> Layout:
    """Choose a layout by the number of dimensions alone: a sequence without prefix, or a map with channels first.

    Raises:
        RepresentationError: If the value holds no tensor of 3 to 5 dimensions.
    """
    tensor = first_tensor(value)
    if tensor.ndim == 3:
        return Sequence()
    if tensor.ndim in (4, 5):
        return FeatureMap()
    raise RepresentationError(
        f"Tokens lie in (batch, tokens, channels) or in feature maps, got {tuple(tensor.shape)}. "
        "Choose a module that carries them."
    )


def first_argument(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the value of a forward's first parameter, whether it was given by position or by name.

    Raises:
        RepresentationError: If the forward was called without any.
    """
    if args:
        return args[0]
    for name in inspect.signature(forward).parameters:
        if name in kwargs:
            return kwargs[name]
    raise RepresentationError("A module was called without an input, so there is nothing to watch. Choose another one.")


def first_tensor(value: Any) -> Tensor:
    """Return the value itself if it is a tensor, or the first element of a tuple or list that is one.

    Raises:
        RepresentationError: If there is no tensor.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)):
        for element in value:
            if isinstance(element, Tensor):
                return element
    raise RepresentationError(
        f"Expected a tensor or a tuple that holds one, got {type(value).__name__}. Choose a module that takes and "
        "returns tensors."
    )
