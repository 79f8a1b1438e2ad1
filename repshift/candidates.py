"""What a pruner chooses among, and what a pruner is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from repshift.drops import Drop, dropped_count, dropped_of_each
from repshift.errors import UnsupportedModelError
from repshift.positions import keep_highest
from repshift.scores import oracle_free
from repshift.selection import Selection


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a pruner chooses among: the tokens that a block returned, and what is known of them.

    Attributes:
        value: What the block returned.
        layout: How the value holds its tokens.
        ranking: ``(batch, tokens)``, highest for what should stay; ``None`` if nothing was measured.
        sizes: ``(batch, tokens)`` float32, how many places each token stands for, 0 for padding; ``None`` for one each.
        block: The block's name, for messages.
        keys: ``(batch, tokens, channels)``, the keys of the block's attention, averaged over heads; ``None`` unless the
            pruner has an attribute ``wants_keys``.
        places: ``(batch, tokens)`` int64, where each of them stood among all tokens that there were, row by row;
            ``None`` unless the pruner has an attribute ``wants_places``.
        whole: Rows and columns of all tokens that there were, of videos frames, rows and columns; likewise, or if it
            has an attribute ``wants_frames``.
        multiple: Of a feature map, what the numbers of rows and columns left must be a multiple of. A share is rounded
            to fit, a count is taken as it is.
        padded: Whether sizes may be 0, because there is a mask of padding; otherwise they are of merged tokens alone.
    """

    value: Any
    layout: Any
    ranking: Tensor | None
    sizes: Tensor | None = None
    block: str = "this block"
    keys: Tensor | None = None
    places: Tensor | None = None
    whole: tuple[int, ...] | None = None
    multiple: int = 1
    padded: bool = True

    @property
    def prefix(self) -> int:
        """How many prefix tokens stand before them."""
        return int(getattr(self.layout, "prefix", 0))

    @property
    def tokens(self) -> Tensor:
        """The tokens, ``(batch, tokens, channels)``, prefix tokens left out."""
        tokens: Tensor = self.layout.tokens(self.value)
        return tokens

    @property
    def count(self) -> int:
        """How many tokens there are."""
        return int((self.tokens if self.ranking is None else self.ranking).shape[1])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a feature map.

        Raises:
            UnsupportedModelError: If the value is none.
        """
        grid = self.layout.grid(self.value)
        if grid is None or len(grid) != 2:
            raise UnsupportedModelError(
                f"Lines are dropped from maps of rows and columns, got a grid {grid}. Choose another pruner."
            )
        return grid[0], grid[1]

    def on_grid(self) -> tuple[Tensor, tuple[int, int]]:
        """Return the places of the tokens, and the rows and columns of all that there were.

        Raises:
            UnsupportedModelError: If they are not known.
        """
        if self.places is None or self.whole is None or len(self.whole) != 2:
            raise UnsupportedModelError(
                f"The places of the tokens behind {self.block} are not known. Give the pruner wants_places = True, and "
                "run the whole model."
            )
        return self.places, (self.whole[0], self.whole[1])

    def in_frames(self) -> int:
        """Return how many frames the tokens come from, of which each has as many left.

        Raises:
            UnsupportedModelError: If that is not known, or some have more tokens than others.
        """
        if self.whole is None or len(self.whole) != 3 or self.count % self.whole[0]:
            raise UnsupportedModelError(
                f"The tokens behind {self.block} are not known to be as many of every frame. Give the pruner "
                "wants_frames = True, run the whole model, and let all cuts take the same of every frame."
            )
        return self.whole[0]

    @property
    def scores(self) -> Tensor:
        """The ranking; where nothing was measured, the places of the tokens, the first ones highest."""
        if self.ranking is not None:
            return self.ranking
        tokens = self.tokens
        return oracle_free(tokens, tokens)

    def left(self, drop: Drop) -> int:
        """Say how many tokens stay.

        Args:
            drop: A share of the tokens or a count of them.

        Raises:
            ScheduleError: If fewer than one would stay.
        """
        count = self.count
        return count - dropped_count(count, drop, self.block)

    def highest(self, count: int) -> Selection:
        """Select the tokens that rank highest, in their order; where nothing was measured, the first ones."""
        if self.ranking is None:
            return Selection.first(count, self.tokens)
        return Selection(keep_highest(self.ranking, count))

    def highest_of_each(self, drop: Drop) -> Selection:
        """Select as :meth:`highest`; a share is one of each image's own tokens, padding left out.

        So an image or a text keeps in a padded batch what it keeps alone. What stays beyond that becomes padding, so
        that the batch is of one length. Of a count, padding is the first to go.

        Args:
            drop: A share of the tokens or a count of them.

        Raises:
            ScheduleError: If fewer than one would stay.
        """
        selection = self.highest(self.left(drop))
        if self.sizes is None or not self.padded or not isinstance(drop, float):
            return selection
        there = self.sizes > 0
        tokens = there.sum(1)
        most = tokens - dropped_of_each(tokens, drop)
        ranking = self.scores.masked_fill(~there, -torch.inf)
        place = ranking.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return replace(selection, absent=(place >= most.unsqueeze(1)).gather(1, selection.kept))


class Pruner(Protocol):
    """Chooses which tokens stay, and whether the others are dropped or become part of those.

    A pruner computes counts from shapes, never from data, so that compiled graphs stay whole; it is stored on the
    pruned model, so it must pickle. A class attribute ``needs`` may name the methods that the layout must have. A class
    attribute ``drops_only = True`` promises that its selections have no ``joins``, so that no sizes need travel on;
    ``chooses_itself = True`` that it looks at no scores, so that none are measured; ``wants_keys = True`` asks for the
    keys of the block's attention, ``wants_places = True`` for the places of the tokens on the grid,
    ``wants_frames = True`` for the number of frames of a video, of which every cut then takes as many tokens;
    ``size_attention = False`` lets merged tokens count once in later attention; ``before_mlp = True`` chooses between
    attention and MLP of the block, whose MLP then runs on what is left.
    """

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Choose among the tokens behind a block.

        Args:
            candidates: The tokens, their scores, and what else is known of them.
            drop: A share of the tokens or a count of them.

        Returns:
            What stays; ``None`` if all do.
        """
        ...
