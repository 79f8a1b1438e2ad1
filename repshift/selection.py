"""What a pruner answers: which tokens stay, and where the others go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift.errors import RepresentationError
from repshift.positions import behind_prefix, out_of_range, pick, rows_of


@dataclass(frozen=True, eq=False)
class Selection:
    """Which tokens stay, and which of them the others become part of. A pruner decides it, the engine applies it.

    Attributes:
        kept: ``(batch, kept)`` int64 positions of the tokens that stay, in the order of the shorter value; of a
            sequence ascending.
        joins: ``(batch, tokens)`` int64: for every token which of the kept ones, by its place among them, it becomes
            part of; a kept token joins itself. ``None``: what is not kept is dropped.
        grid: Of a feature map, rows and columns of what stays; ``kept`` then lists its positions row by row.
        aligned: Of a state space model: what is dropped still decays the states of later scans.
        leading: The kept tokens are the first ones of every image, so a slice serves for picking them out.
        weights: ``(batch, tokens)`` float32, how much of its size each token brings along; ``None`` for all of it.
        keeps_norm: A merged token has the mean length of the tokens in it, which their mean would fall below.
        absent: ``(batch, kept)`` bool, places that hold nothing any more, because fewer tokens are left of this image
            than of others: padding. Not with ``joins``; ``None`` for none.

    Raises:
        RepresentationError: If positions are no such tensors.

    Example:
        >>> import torch
        >>> merged = Selection(torch.tensor([[0, 2]]), joins=torch.tensor([[0, 0, 1]]))
        >>> values = torch.tensor([[[1.0], [3.0], [5.0]]])
        >>> merged.take(values).flatten(), merged.mean(values).flatten()
        (tensor([1., 5.]), tensor([2., 5.]))
    """

    kept: Tensor
    joins: Tensor | None = None
    grid: tuple[int, int] | None = None
    aligned: bool = False
    leading: bool = False
    weights: Tensor | None = None
    keeps_norm: bool = False
    absent: Tensor | None = None

    def __post_init__(self) -> None:
        for what, positions in (("kept", self.kept), ("joins", self.kept if self.joins is None else self.joins)):
            if isinstance(positions, Tensor) and positions.ndim == 2 and positions.dtype == torch.int64:
                continue
            got = f"{tuple(positions.shape)} of {positions.dtype}" if isinstance(positions, Tensor) else repr(positions)
            raise RepresentationError(
                f"A selection's {what} are positions (batch, number) in a tensor of torch.int64, got {got}."
            )

    @staticmethod
    def first(count: int, like: Tensor) -> Selection:
        """Keep the first tokens of every image, without looking at any.

        Args:
            count: How many.
            like: ``(batch, ...)``; only its length and device matter.
        """
        kept = torch.arange(count, device=like.device).expand(like.shape[0], -1)
        return Selection(kept, leading=True)

    @staticmethod
    def corner(grid: tuple[int, int], left: tuple[int, int], like: Tensor) -> Selection:
        """Keep the first rows and columns of every map, without looking at any.

        Args:
            grid: Rows and columns that are there.
            left: Rows and columns that stay.
            like: ``(batch, ...)``; only its length and device matter.
        """
        rows, columns = (torch.arange(side, device=like.device) for side in left)
        kept = (rows.unsqueeze(1) * grid[1] + columns).flatten().expand(like.shape[0], -1)
        return Selection(kept, grid=left, leading=True)

    def behind(self, prefix: int) -> Selection:
        """Return the selection of tokens that so many others stand in front of, which stay as they are."""
        joins, weights = self.joins, self.weights
        return replace(
            self,
            kept=behind_prefix(self.kept, prefix),
            joins=None if joins is None else behind_prefix(joins, prefix),
            weights=None if weights is None else F.pad(weights, (prefix, 0), value=1.0),
        )

    def take(self, values: Tensor) -> Tensor:
        """Pick out what belongs to the kept tokens.

        Args:
            values: ``(batch, tokens, ...)``.

        Returns:
            ``(batch, kept, ...)``.
        """
        return values[:, : self.kept.shape[1]] if self.leading else pick(values, self.kept)

    def add(self, values: Tensor) -> Tensor:
        """Add up what belongs to each kept token and to the tokens that join it.

        Args:
            values: ``(batch, tokens, ...)``.

        Returns:
            ``(batch, kept, ...)`` of the same dtype; where nothing is joined, what :meth:`take` gives.
        """
        if self.joins is None:
            return self.take(values)
        batch, kept = self.kept.shape
        if values.shape[:2] != self.joins.shape:
            raise RepresentationError(
                f"Tokens that join others are {tuple(self.joins.shape)} for (batch, tokens), got values "
                f"{tuple(values.shape)}. Give the values of all tokens."
            )
        sums = values.new_zeros(batch * kept, *values.shape[2:])
        try:
            sums = sums.index_add(0, rows_of(self.joins, kept), values.flatten(0, 1))
        except (IndexError, RuntimeError) as error:
            raise out_of_range(error, self.kept) from error
        return sums.view(batch, kept, *values.shape[2:])

    def mean(self, values: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Average each kept token with the tokens that join it, weighted by their sizes.

        Args:
            values: ``(batch, tokens, channels)``.
            sizes: ``(batch, tokens)`` how many places each token stands for; ``None`` for one each. Tokens of size 0
                weigh nothing, unless a whole group has size 0: it keeps the value of its kept token.

        Returns:
            ``(batch, kept, channels)`` of the values' dtype, computed in float32 at least. A token that nothing joins
            keeps its value bit for bit.
        """
        if self.joins is None:
            return self.take(values)
        wide = values if values.dtype == torch.float64 else values.float()
        counts = self.add(torch.ones_like(self.joins, dtype=wide.dtype))
        shares = None if sizes is None and self.weights is None else self._shares(sizes)  # one each: the sum over all
        sums = self.add(wide if shares is None else wide * shares.unsqueeze(-1))
        scale = 1 / counts if shares is None else torch.ones_like(counts)
        if self.keeps_norm:
            lengths = torch.linalg.vector_norm(wide, dim=-1)
            lengths = self.add(lengths if shares is None else lengths * shares)
            longer = lengths / torch.linalg.vector_norm(sums, dim=-1).clamp_min(torch.finfo(sums.dtype).tiny)
            scale = torch.where(counts == 1, 1.0, longer * scale)
        return (sums * scale.unsqueeze(-1)).to(values.dtype)

    def _shares(self, sizes: Tensor | None) -> Tensor:
        """Say which share of its group's weight each token has, ``(batch, tokens)``; of a token alone exactly 1."""
        assert self.joins is not None
        weights = self._brought(sizes)
        totals = self.add(weights).gather(1, self.joins)
        itself = torch.zeros_like(weights).scatter(1, self.kept, 1.0)
        return torch.where(totals > 0, weights / totals.clamp_min(torch.finfo(totals.dtype).tiny), itself)

    def sizes(self, sizes: Tensor | None = None) -> Tensor | None:
        """Return how many places the kept tokens stand for.

        Args:
            sizes: ``(batch, tokens)`` float32 before; ``None`` for one each.

        Returns:
            ``(batch, kept)`` float32; ``None`` for one each.
        """
        if sizes is None and self.joins is None and self.absent is None:
            return None
        left = self.add(self._brought(sizes))
        return left if self.absent is None else left.masked_fill(self.absent, 0.0)

    def _brought(self, sizes: Tensor | None) -> Tensor:
        like = self.kept if self.joins is None else self.joins
        own = torch.ones_like(like, dtype=torch.float32) if sizes is None else sizes
        return own if self.weights is None else own * self.weights

    def back(self, values: Tensor, before: Tensor | None = None) -> Tensor:
        """Give every token its place back.

        Args:
            values: ``(batch, kept, channels)``.
            before: ``(batch, tokens, channels)``, what the tokens were like when they were dropped; not needed if
                every token joins a kept one.

        Returns:
            ``(batch, tokens, channels)``: tokens that joined a kept one have its value, dropped ones their own before.

        Raises:
            RepresentationError: If tokens were dropped and it is not known what they were like.
        """
        if self.joins is not None:
            return pick(values, self.joins)
        if before is None:
            raise RepresentationError(
                "Dropped tokens come back as they were before, which was not given. Give before, (batch, tokens, "
                "channels)."
            )
        if self.absent is not None:
            values = torch.where(self.absent.unsqueeze(-1), self.take(before).to(values.dtype), values)
        return before.scatter(1, self.kept.unsqueeze(-1).expand_as(values), values.to(before.dtype))
