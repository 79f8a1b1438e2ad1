"""What is taken away, given a score for every token. A pruner decides; the engine applies what it selected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from repshift.drops import Drop, dropped_count
from repshift.errors import UnsupportedModelError
from repshift.layouts import Layout
from repshift.registry import Registry
from repshift.scores import oracle_free
from repshift.selection import Selection, keep_highest


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
    """

    value: Any
    layout: Any
    ranking: Tensor | None
    sizes: Tensor | None = None
    block: str = "this block"
    keys: Tensor | None = None

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


class Pruner(Protocol):
    """Chooses which tokens stay, and whether the others are dropped or become part of those.

    A pruner computes counts from shapes, never from data, so that compiled graphs stay whole; it is stored on the
    pruned model, so it must pickle. A class attribute ``needs`` may name the methods that the layout must have. A class
    attribute ``drops_only = True`` promises that its selections have no ``joins``, so that no sizes need travel on;
    ``chooses_itself = True`` that it looks at no scores, so that none are measured; ``wants_keys = True`` asks for the
    keys of the block's attention; ``size_attention = False`` lets merged tokens count once in later attention.
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


@dataclass(frozen=True)
class TokenPruner:
    """Drops single tokens, those with the lowest scores of each image; the others stay in order.

    Example:
        >>> import torch
        >>> from repshift.layouts import TokenSequence
        >>> tokens, scores = torch.arange(4.0).view(1, 4, 1), torch.tensor([[0.5, 0.1, 0.9, 0.2]])
        >>> TokenPruner().choose(Candidates(tokens, TokenSequence(), scores), 0.5).kept
        tensor([[0, 2]])

    Source: arXiv 2508.00367, section 3.
    """

    needs: ClassVar[tuple[str, ...]] = ("keep",)
    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Drop the tokens with the lowest scores; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one token would stay.
        """
        left = candidates.left(drop)
        return None if left == candidates.count else candidates.highest(left)


@dataclass(frozen=True)
class SequencePruner:
    """Drops elements of a state space model's sequence, those with the lowest scores of each image.

    Hidden values and residual stream are shortened together, the order stays, and class tokens are never dropped.

    Attributes:
        align: Let the dropped elements still decay the states of the layers behind, by the step sizes that they had
            in the last layer that saw them (after Zhan et al. 2024, arXiv 2409.18962). Needs a model whose layers
            pass their step sizes on, as :class:`repshift.backbones.vim_model.VisionMamba` does.

    Source: arXiv 2508.00367, section 4 (state space models).
    """

    align: bool = False
    needs: ClassVar[tuple[str, ...]] = ("keep", "align")
    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Drop the elements with the lowest scores; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one element would stay.
        """
        left = candidates.left(drop)
        if left == candidates.count:
            return None
        if candidates.ranking is None or not self.align:
            return candidates.highest(left)
        return Selection(candidates.highest(left).kept, aligned=True)


@dataclass(frozen=True)
class LinePruner:
    """Drops whole rows and whole columns of a feature map, so that a map is left for the convolutions behind.

    The score of a line is the mean of its positions; for each image those with the lowest go. An integer drop is that
    many rows and that many columns, a share is one of each.

    Example:
        >>> import torch
        >>> from repshift.layouts import FeatureMap
        >>> scores = torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0, 3.0, 0.0, 4.0, 5.0]])
        >>> LinePruner().choose(Candidates(scores.view(1, 1, 3, 3), FeatureMap(), scores), 1).kept
        tensor([[4, 5, 7, 8]])

    Source: arXiv 2508.00367, section 4 (convolutional networks, line-wise).
    """

    needs: ClassVar[tuple[str, ...]] = ("arrange",)
    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Drop the lines whose scores have the lowest means; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one line would stay.
        """
        return _choose_on_map(candidates, drop, _whole_lines)


@dataclass(frozen=True)
class PositionPruner:
    """Drops the least important positions of each row, then those of each column; what is left closes up to a map.

    Counts are those of :class:`LinePruner`, but each row loses other columns, and each column other rows.

    Example:
        >>> import torch
        >>> from repshift.layouts import FeatureMap
        >>> scores = torch.tensor([[9.0, 0.0, 8.0, 0.0, 7.0, 6.0, 1.0, 2.0, 0.0]])
        >>> PositionPruner().choose(Candidates(scores.view(1, 1, 3, 3), FeatureMap(), scores), 1).kept
        tensor([[0, 2, 4, 5]])

    Source: arXiv 2508.00367, section 4 (convolutional networks, token-wise).
    """

    needs: ClassVar[tuple[str, ...]] = ("arrange",)
    drops_only: ClassVar[bool] = True

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Drop the lowest of the scores in each row and then in each column; see :class:`Pruner`.

        Raises:
            ScheduleError: If fewer than one line would stay.
        """
        return _choose_on_map(candidates, drop, _single_positions)


def check_layout(pruner: Pruner, layout: Layout, model: str, own: str) -> None:
    """Check that a pruner can shorten what a model's blocks return.

    Raises:
        UnsupportedModelError: If the layout lacks what the pruner needs.
    """
    if missing := [method for method in getattr(pruner, "needs", ()) if not hasattr(layout, method)]:
        raise UnsupportedModelError(
            f"{type(pruner).__name__} cannot shorten the {type(layout).__name__} of {model}: that layout has no "
            f"{' or '.join(missing)}. Leave pruner out, or give pruner={own!r}."
        )


def _choose_on_map(
    candidates: Candidates, drop: Drop, keep: Callable[[Tensor, tuple[int, int]], Tensor]
) -> Selection | None:
    """Leave as many rows and columns as a drop says; ``keep`` finds them by scores ``(batch, rows, columns)``."""
    rows, columns = candidates.grid
    left = (
        rows - dropped_count(rows, drop, candidates.block, "rows"),
        columns - dropped_count(columns, drop, candidates.block, "columns"),
    )
    if left == (rows, columns):
        return None
    if candidates.ranking is None:
        return Selection.corner((rows, columns), left, candidates.tokens)
    return Selection(keep(candidates.ranking.reshape(-1, rows, columns), left), grid=left)


def _whole_lines(scores: Tensor, left: tuple[int, int]) -> Tensor:
    scores = scores.float()
    rows, columns = keep_highest(scores.mean(2), left[0]), keep_highest(scores.mean(1), left[1])
    return (rows.unsqueeze(2) * scores.shape[2] + columns.unsqueeze(1)).flatten(1)


def _single_positions(scores: Tensor, left: tuple[int, int]) -> Tensor:
    batch, rows, columns = scores.shape
    old = torch.arange(rows * columns, device=scores.device).view(1, rows, columns).expand(batch, -1, -1)
    in_rows = keep_highest(scores.flatten(0, 1), left[1]).view(batch, rows, left[1])
    scores, old = scores.gather(2, in_rows), old.gather(2, in_rows)
    in_columns = keep_highest(scores.transpose(1, 2).flatten(0, 1), left[0]).view(batch, left[1], left[0])
    return old.gather(1, in_columns.transpose(1, 2)).flatten(1)


PRUNERS = Registry(
    "pruner",
    {
        "tokens": TokenPruner(),
        "sequence": SequencePruner(),
        "sequence_aligned": SequencePruner(align=True),
        "lines": LinePruner(),
        "positions": PositionPruner(),
        "mnn": "repshift.merging.names:MNN",
        "mnn1": "repshift.merging.names:MNN_ONE_ROUND",
        "ward": "repshift.merging.names:WARD",
        "tome": "repshift.merging.names:TOME",
        "merge": "repshift.merging.names:MERGE",
        "fuse": "repshift.merging.names:FUSE",
    },
)
