"""How a value inside a model holds tokens: what reads them out also puts others in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.errors import RepresentationError
from repshift.positions import behind_prefix, pick
from repshift.selection import Selection


class Layout(Protocol):
    """Reads tokens out of the value that a module takes or returns, and puts others into their place."""

    def tokens(self, value: Any) -> Tensor:
        """Return the tokens that can be scored, ``(batch, tokens, channels)``; prefix tokens are left out."""
        ...

    def put(self, value: Any, tokens: Tensor) -> Any:
        """Return the value with these tokens, ``(batch, tokens, channels)``, instead of its own.

        Prefix tokens stay. Putting back what :meth:`tokens` read changes nothing.
        """
        ...

    def grid(self, value: Any) -> tuple[int, ...] | None:
        """Return the rows and columns (or frames, rows and columns) of the tokens, if the value itself tells."""
        ...


class TokenLayout(Layout, Protocol):
    """A layout whose tokens can be dropped and merged one by one."""

    def keep(self, value: Any, selection: Selection) -> Any:
        """Return the value with only the kept tokens, in their order, and every prefix token, as fast as can be."""
        ...

    def merge(self, value: Any, selection: Selection, sizes: Tensor | None) -> Any:
        """Return the value with every kept token averaged with those that join it, by their sizes.

        Args:
            value: What is to become shorter.
            selection: With ``joins``.
            sizes: ``(batch, tokens)``, see :meth:`repshift.selection.Selection.mean`.
        """
        ...


class MapLayout(Layout, Protocol):
    """A layout on rows and columns, which lose whole lines so that a map is left."""

    def arrange(self, value: Any, selection: Selection) -> Any:
        """Return the value with the kept positions laid out on the selection's ``grid``, row by row."""
        ...


@dataclass(frozen=True)
class TokenSequence:
    """A tensor ``(batch, prefix + tokens, channels)``: the prefix tokens (class, distillation, registers) come first.

    Prefix tokens are never scored and never dropped. Of a tuple the first tensor counts, and the rest stays as it is.

    Example:
        >>> layout = TokenSequence(prefix=1)
        >>> value = torch.arange(4.0).view(1, 4, 1)
        >>> layout.tokens(value).flatten(), layout.keep(value, Selection(torch.tensor([[0, 2]]))).flatten()
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

    def put(self, value: Any, tokens: Tensor) -> Any:
        """Return the prefix of the value and behind it these tokens, ``(batch, tokens, channels)``."""
        if not self.prefix:
            return with_first_tensor(value, tokens)
        return with_first_tensor(value, torch.cat([first_tensor(value)[:, : self.prefix], tokens], dim=1))

    def grid(self, value: Any) -> None:
        """Return ``None``: a sequence does not tell its rows and columns."""
        return None

    def keep(self, value: Any, selection: Selection) -> Any:
        """Return ``(batch, prefix + kept, channels)``: the prefix and the kept tokens."""
        tensor = first_tensor(value)
        if selection.leading:
            return with_first_tensor(value, tensor[:, : self.prefix + selection.kept.shape[1]])
        kept = pick(tensor, behind_prefix(selection.kept, self.prefix))
        return with_first_tensor(value, side_by_side(kept, tensor))

    def merge(self, value: Any, selection: Selection, sizes: Tensor | None) -> Any:
        """Return ``(batch, prefix + kept, channels)``: the prefix and the averages by ``(batch, tokens)`` sizes."""
        sizes = None if sizes is None else F.pad(sizes, (self.prefix, 0), value=1.0)
        return with_first_tensor(value, selection.behind(self.prefix).mean(first_tensor(value), sizes))


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

    def put(self, value: Any, tokens: Tensor) -> Any:
        """Return a map of the same rows and columns with these tokens, ``(batch, rows * columns, channels)``."""
        batch, _, channels = tokens.shape
        if self.channels_last:
            return with_first_tensor(value, tokens.reshape(batch, *self.grid(value), channels))
        return with_first_tensor(value, tokens.transpose(1, 2).reshape(batch, channels, *self.grid(value)))

    def grid(self, value: Any) -> tuple[int, ...]:
        """Return ``(rows, columns)`` or ``(frames, rows, columns)``."""
        shape = self._checked(value).shape
        return tuple(shape[1:-1] if self.channels_last else shape[2:])

    def arrange(self, value: Any, selection: Selection) -> Any:
        """Lay kept positions out as a smaller map, in the same order in memory: convolutions round by it.

        Args:
            value: A map of rows and columns, without frames.
            selection: With a ``grid``; its ``kept`` says for each position of the new map in row-major order which of
                the old one stands there.

        Raises:
            RepresentationError: If the value has frames, too, or the selection has no grid.
        """
        tensor, grid, kept = first_tensor(value), selection.grid, selection.kept
        if tensor.ndim != 4 or grid is None:
            raise RepresentationError(
                f"Lines are dropped from maps of rows and columns, got {tuple(tensor.shape)} and the grid {grid}. "
                "Choose another pruner."
            )
        if selection.leading:
            rows, columns = grid
            corner = tensor[:, :rows, :columns] if self.channels_last else tensor[:, :, :rows, :columns]
            return with_first_tensor(value, corner)
        first = tensor.permute(0, 3, 1, 2) if self.channels_last else tensor
        batch, channels = first.shape[:2]
        if first.stride(1) == 1 < channels:  # channels lie together
            together = pick(first.permute(0, 2, 3, 1).flatten(1, 2), kept)
            smaller = together.view(batch, *grid, channels).permute(0, 3, 1, 2)
        else:
            chosen = kept.unsqueeze(1).expand(-1, channels, -1)
            smaller = first.flatten(2).gather(2, chosen).view(batch, channels, *grid)
        return with_first_tensor(value, smaller.permute(0, 2, 3, 1) if self.channels_last else smaller)

    @staticmethod
    def _checked(value: Any) -> Tensor:
        tensor = first_tensor(value)
        if tensor.ndim not in (4, 5):
            raise RepresentationError(
                f"Expected a feature map of 4 or 5 dimensions, got {tuple(tensor.shape)}. "
                "Choose a module that carries the map."
            )
        return tensor


@dataclass(frozen=True)
class UnrolledMap(FeatureMap):
    """A map as a sequence ``(batch, rows * columns, channels)``: the blocks are given rows and columns beside it.

    While it is cut it is laid out as a map with channels last.
    """

    channels_last: bool = True

    def tokens(self, value: Any) -> Tensor:
        """Return the tokens, ``(batch, rows * columns, channels)``, of the sequence or the map."""
        tensor = first_tensor(value)
        return tensor if tensor.ndim == 3 else super().tokens(value)

    def grid(self, value: Any) -> tuple[int, ...] | None:  # type: ignore[override]  # only a map tells
        """Return rows and columns where it is laid out, else ``None``."""
        return None if first_tensor(value).ndim == 3 else super().grid(value)


def guess_layout(value: Any) -> Layout:
    """Choose a layout by the number of dimensions alone: a sequence without prefix, or a map with channels first.

    Raises:
        RepresentationError: If the value holds no tensor of 3 to 5 dimensions.
    """
    tensor = first_tensor(value)
    if tensor.ndim == 3:
        return TokenSequence()
    if tensor.ndim in (4, 5):
        return FeatureMap()
    raise RepresentationError(
        f"Tokens lie in (batch, tokens, channels) or in feature maps, got {tuple(tensor.shape)}. "
        "Choose a module that carries them."
    )


def shortened(layout: Any, value: Any, selection: Selection, sizes: Tensor | None = None) -> Any:
    """Apply what a pruner selected.

    Args:
        layout: How the value holds its tokens.
        value: What a block returned.
        selection: What stays of it.
        sizes: ``(batch, tokens)`` how many places each token stands for; ``None`` for one each.

    Returns:
        The shorter value.
    """
    if selection.grid is not None:
        return layout.arrange(value, selection)
    if selection.joins is not None:
        return layout.merge(value, selection, sizes)
    return layout.keep(layout.align(value, selection) if selection.aligned else value, selection)


def side_by_side(tokens: Tensor, like: Tensor) -> Tensor:
    """Let tokens lie side by side in memory if others do, as some embeddings leave them.

    So the order in which later sums are taken, and so their rounding, is that of the dense model.

    Args:
        tokens: ``(batch, tokens, channels)``.
        like: The others, of the same form.
    """
    return tokens.mT.contiguous().mT if like.stride(2) != 1 and like.stride(1) == 1 else tokens


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


def with_first_tensor(value: Any, tensor: Tensor) -> Any:
    """Return a value with another tensor of any shape where :func:`first_tensor` finds one."""
    if isinstance(value, Tensor):
        return tensor
    place = next(index for index, element in enumerate(value) if isinstance(element, Tensor))
    parts = [*value[:place], tensor, *value[place + 1 :]]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
