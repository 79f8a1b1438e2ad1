"""How state space models hold tokens: what a layer computed, and apart from it the stream that it is added to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.layouts import TokenSequence
from repshift.positions import pick
from repshift.selection import Selection


@dataclass(frozen=True)
class ResidualPair:
    """A tuple ``(hidden, residual, ...)`` of ``(batch, length, channels)``: a layer's change, and what it is added to.

    As in state space models: the next layer adds both. Class and register tokens are protected: never scored, never
    dropped. They stand at the head, or a field of the tuple says where, ``(batch, number)`` int64, for each image by
    itself, because pruning may take different numbers of tokens before them.

    Attributes:
        prefix: How many protected tokens stand at the head, where no field says it.
        part: Which tokens are read: those of ``"hidden"``, of the ``"residual"``, or their ``"sum"``.
        protected: Name of the field that says where the protected tokens stand.
        decay: Lets dropped tokens still decay the states of later scans: takes the tuple and the positions that stay,
            ``(batch, kept)`` in the whole sequence, and returns the tuple, still of full length. ``None`` if the
            model's layers do not pass on what that needs.
    """

    prefix: int = 0
    part: Literal["hidden", "residual", "sum"] = "hidden"
    protected: str | None = None
    decay: Callable[[Any, Tensor], Any] | None = None

    def tokens(self, value: Any) -> Tensor:
        """Return the tokens that are not protected, ``(batch, tokens, channels)``.

        Raises:
            RepresentationError: If the value holds no such tokens.
        """
        return self._unprotected(self._read(value), value)

    def put(self, value: Any, tokens: Tensor) -> Any:
        """Return the tuple with these tokens, ``(batch, tokens, channels)``, as its hidden values.

        Raises:
            RepresentationError: If the value is no such tuple, or the tokens that are read are not the hidden values.
        """
        hidden, _ = _pair(value)
        if self.part != "hidden":
            raise RepresentationError(
                f"Tokens were read from the {self.part} of a pair, and only hidden values can be put back. "
                "Read those: part='hidden'."
            )
        others = _others(self._protected(value), hidden.shape[1])
        return _remade(value, [hidden.scatter(1, others.unsqueeze(-1).expand_as(tokens), tokens), *value[1:]])

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
        protected = self._protected(value)
        chosen = _others(protected, hidden.shape[1]).gather(1, kept)
        return torch.cat([protected, chosen], dim=1).sort(dim=1).values

    def keep(self, value: Any, selection: Selection) -> Any:
        """Return the tuple with only the kept and the protected tokens, in their order, of everything it holds."""
        positions = self.positions(value, selection.kept)
        return self._shortened(value, positions, lambda part: pick(part, positions))

    def merge(self, value: Any, selection: Selection, sizes: Tensor | None) -> Any:
        """Average everything that the tuple holds for each token; ``sizes`` as ``(batch, tokens)``."""
        positions = self.positions(value, selection.kept)
        own = _places_among(self._protected(value), positions)
        others = _others(own, positions.shape[1]).unsqueeze(-1)

        def merged(part: Tensor) -> Tensor:
            means = selection.mean(self._unprotected(part, value), sizes)
            return pick(part, positions).scatter(1, others.expand(-1, -1, part.shape[2]), means)

        return self._shortened(value, positions, merged)

    def align(self, value: Any, selection: Selection) -> Any:
        """Return the tuple, still of full length, in which what goes still decays the states of later scans.

        Raises:
            UnsupportedModelError: If the model's layers do not pass on what that needs.
        """
        if self.decay is None:
            raise UnsupportedModelError(
                f"This model's layers return {type(value).__name__} without the step sizes of their scans, which "
                "alignment needs. Prune without align=True."
            )
        return self.decay(value, self.positions(value, selection.kept))

    def _read(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value
        hidden, residual = _pair(value)
        if self.part == "hidden" or residual is None:  # the first layer starts from the embedding alone
            return hidden
        # in float32: rounded to bfloat16, what a small change adds would be lost
        return residual if self.part == "residual" else residual.float() + hidden.float()

    def _protected(self, value: Any) -> Tensor:
        if self.protected is not None and not isinstance(value, Tensor):
            places: Tensor = getattr(value, self.protected)
            return places
        hidden = value if isinstance(value, Tensor) else value[0]
        return torch.arange(self.prefix, device=hidden.device).expand(hidden.shape[0], -1)

    def _unprotected(self, part: Tensor, value: Any) -> Tensor:
        if self.protected is None or isinstance(value, Tensor):
            return TokenSequence(self.prefix).tokens(part)
        return pick(part, _others(self._protected(value), part.shape[1]))

    def _shortened(self, value: Any, positions: Tensor, shorten: Callable[[Tensor], Tensor]) -> Any:
        length = value[0].shape[1]

        def of(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(map(of, part))
            return shorten(part) if isinstance(part, Tensor) and part.ndim == 3 and part.shape[1] == length else part

        if self.protected is None:
            return _remade(value, [of(part) for part in value])
        places = self._protected(value)
        own = _places_among(places, positions)
        return _remade(value, [own if part is places else of(part) for part in value])


def _pair(value: Any) -> tuple[Tensor, Tensor | None]:
    if not isinstance(value, tuple) or len(value) < 2 or not isinstance(value[0], Tensor):
        raise RepresentationError(
            f"Expected a tuple (hidden, residual), got {type(value).__name__}. Choose a module that passes it on."
        )
    return value[0], value[1]


def _remade(value: Any, parts: list[Any]) -> Any:
    """Return a tuple of the same kind, named or not, with other parts."""
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def _places_among(protected: Tensor, positions: Tensor) -> Tensor:
    """Say where the protected tokens stand among the positions that are left."""
    return (positions.unsqueeze(2) < protected.unsqueeze(1)).sum(1)


def _others(positions: Tensor, length: int) -> Tensor:
    """Return all positions of a sequence but the given ones, ``(batch, length - number)`` ascending."""
    taken = torch.zeros(positions.shape[0], length, dtype=torch.int32, device=positions.device).scatter(1, positions, 1)
    # the ranks all differ, so that any sort will do: exporters know no stable one
    ranks = taken * length + torch.arange(length, dtype=torch.int32, device=positions.device)
    return ranks.argsort(dim=1)[:, : length - positions.shape[1]]
