"""How a value inside a model holds tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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

    def keep_first(self, value: Any, count: int) -> Any:
        """Return the value with only the first ``count`` tokens and every prefix token, as fast as can be."""
        ...


class MapLayout(Layout, Protocol):
    """A layout on rows and columns, which lose whole lines so that a map is left."""

    def arrange(self, value: Any, kept: Tensor, grid: tuple[int, int]) -> Any:
        """Return the value with the ``kept`` positions, ``(batch, rows * columns)`` row by row of the new ``grid``."""
        ...

    def corner(self, value: Any, grid: tuple[int, int]) -> Any:
        """Return the value with only the first rows and columns, as many as ``grid`` says, as fast as can be."""
        ...


@dataclass(frozen=True)
class Sequence:
    """A tensor ``(batch, prefix + tokens, channels)``: the prefix tokens (class, distillation, registers) come first.

    Prefix tokens are never scored and never dropped.

    Example:
        >>> layout = Sequence(prefix=1)
        >>> value = torch.arange(4.0).view(1, 4, 1)
        >>> layout.tokens(value).flatten(), layout.keep(value, torch.tensor([[0, 2]])).flatten()
        (tensor([1., 2., 3.]), tensor([0., 1., 3.]))
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
        positions = kept + self.prefix
        if self.prefix:
            prefix = torch.arange(self.prefix, device=kept.device).expand(value.shape[0], -1)
            positions = torch.cat([prefix, positions], dim=1)
        return select(value, positions)

    def keep_first(self, value: Tensor, count: int) -> Tensor:
        """Return ``(batch, prefix + count, channels)``: the prefix and the first tokens behind it."""
        return value[:, : self.prefix + count]


@dataclass(frozen=True)
class ResidualPair:
    """A tuple ``(hidden, residual, ...)`` of ``(batch, length, channels)``: a layer's change, and what it is added to.

    As in state space models: the next layer adds both. Class and register tokens are protected: never scored, never
    dropped. They stand at the head, or the tuple says where in a field ``protected``, ``(batch, number)`` int64, for
    each image by itself, because pruning may take different numbers of tokens before them.

    Attributes:
        prefix: How many protected tokens stand at the head, where the tuple does not say it.
        part: Which tokens are read: those of ``"hidden"``, of the ``"residual"``, or their ``"sum"``.
    """

    prefix: int = 0
    part: Literal["hidden", "residual", "sum"] = "hidden"

    def tokens(self, value: Any) -> Tensor:
        """Return the tokens that are not protected, ``(batch, tokens, channels)``.

        Raises:
            RepresentationError: If the value holds no such tokens.
        """
        tensor = self._read(value)
        if (protected := getattr(value, "protected", None)) is None:
            return Sequence(self.prefix).tokens(tensor)
        return select(tensor, _others(protected, tensor.shape[1]))

    def grid(self, value: Any) -> None:
        """Return ``None``: a sequence does not tell its rows and columns."""
        return None

    def positions(self, value: Any, kept: Tensor) -> Tensor:
        """Say where the kept and the protected tokens stand.

        Args:
            value: See the class.
            kept: ``(batch, kept)`` int64 positions among the tokens that are not protected, ascending.

        Returns:
            ``(batch, kept + protected)`` positions in the sequence, ascending.

        Raises:
            RepresentationError: If the value is no such tuple.
        """
        hidden, _ = _pair(value)
        if (protected := getattr(value, "protected", None)) is None:
            protected = torch.arange(self.prefix, device=kept.device).expand(hidden.shape[0], -1)
        chosen = _others(protected, hidden.shape[1]).gather(1, kept)
        return torch.cat([protected, chosen], dim=1).sort(dim=1).values

    def keep(self, value: Any, kept: Tensor) -> Any:
        """Return the tuple with only the kept and the protected tokens, in their order, of everything it holds."""
        positions = self.positions(value, kept)
        length = value[0].shape[1]

        def shortened(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(map(shortened, part))
            whole = isinstance(part, Tensor) and part.ndim == 3 and part.shape[1] == length
            return select(part, positions) if whole else part

        parts = [shortened(part) for part in value]
        remade: Any = type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if (protected := getattr(value, "protected", None)) is None:
            return remade
        return remade._replace(protected=(positions.unsqueeze(2) < protected.unsqueeze(1)).sum(1))

    def keep_first(self, value: Any, count: int) -> Any:
        """Return the tuple with only the first ``count`` tokens that are not protected, and the protected ones."""
        hidden, _ = _pair(value)
        return self.keep(value, torch.arange(count, device=hidden.device).expand(hidden.shape[0], -1))

    def _read(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value
        hidden, residual = _pair(value)
        if self.part == "hidden" or residual is None:  # the first layer starts from the embedding alone
            return hidden
        # in float32: rounded to bfloat16, what a small change adds would be lost
        return residual if self.part == "residual" else residual.float() + hidden.float()


def _pair(value: Any) -> tuple[Tensor, Tensor | None]:
    if not isinstance(value, tuple) or len(value) < 2 or not isinstance(value[0], Tensor):
        raise RepresentationError(
            f"Expected a tuple (hidden, residual), got {type(value).__name__}. Choose a module that passes it on."
        )
    return value[0], value[1]


def select(value: Tensor, positions: Tensor) -> Tensor:
    """Take tokens out of a sequence.

    Args:
        value: ``(batch, length, channels)``.
        positions: ``(batch, number)`` int64, for each image its own.

    Returns:
        ``(batch, number, channels)``.
    """
    batch, length, channels = value.shape
    # whole rows of one long table are copied ten times as fast as gather picks single numbers (on a CPU)
    rows = positions + length * torch.arange(batch, device=positions.device).unsqueeze(1)
    return value.flatten(0, 1).index_select(0, rows.flatten()).view(batch, positions.shape[1], channels)


def _others(positions: Tensor, length: int) -> Tensor:
    """Return all positions of a sequence but the given ones, ``(batch, length - number)`` ascending."""
    taken = torch.zeros(positions.shape[0], length, dtype=torch.uint8, device=positions.device).scatter(1, positions, 1)
    return taken.argsort(dim=1, stable=True)[:, : length - positions.shape[1]]


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

    def arrange(self, value: Tensor, kept: Tensor, grid: tuple[int, int]) -> Tensor:
        """Lay kept positions out as a smaller map.

        Args:
            value: A map of rows and columns, without frames.
            kept: ``(batch, rows * columns)`` int64: for each position of the new map in row-major order, which of the
                old one stands there.
            grid: Rows and columns of the new map.

        Returns:
            The new map; where the channels lie together in memory, they still do.

        Raises:
            RepresentationError: If the value has frames, too.
        """
        if value.ndim != 4:
            raise RepresentationError(
                f"Lines are dropped from maps of rows and columns, got {tuple(value.shape)}. Choose another pruner."
            )
        if self.channels_last:
            return select(value.flatten(1, 2), kept).view(value.shape[0], *grid, value.shape[3])
        if value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous():
            rows = select(value.permute(0, 2, 3, 1).flatten(1, 2), kept)
            return rows.view(value.shape[0], *grid, value.shape[1]).permute(0, 3, 1, 2)
        chosen = kept.unsqueeze(1).expand(-1, value.shape[1], -1)
        return value.flatten(2).gather(2, chosen).view(*value.shape[:2], *grid)

    def corner(self, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the map with only its first rows and columns, as many as ``grid`` says; a view."""
        rows, columns = grid
        return value[:, :rows, :columns] if self.channels_last else value[:, :, :rows, :columns]

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
