"""What is taken away, given a score for every token. A pruner decides; the engine applies what it selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from repshift.candidates import Candidates, Pruner
from repshift.cells import CellPruner
from repshift.drops import Drop
from repshift.errors import UnsupportedModelError
from repshift.frames import FramePruner
from repshift.layouts import Layout
from repshift.map_pruners import FixedLinePruner, LinePruner, PositionPruner
from repshift.registry import Registry
from repshift.selection import Selection

__all__ = [
    "PRUNERS",
    "Candidates",
    "CellPruner",
    "FixedLinePruner",
    "FramePruner",
    "LinePruner",
    "PositionPruner",
    "Pruner",
    "SequencePruner",
    "TokenPruner",
    "check_layout",
]


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
        return None if candidates.left(drop) == candidates.count else candidates.highest_of_each(drop)


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


def tells_sizes(pruner: object) -> bool:
    """Say whether a pruner merges tokens, and later attention is to know how many each stands for."""
    return not getattr(pruner, "drops_only", False) and bool(getattr(pruner, "size_attention", True))


def check_layout(pruner: Pruner, layout: Layout, model: str, own: str, counts_once: str | None = None) -> None:
    """Check that a pruner can shorten what a model's blocks return.

    Raises:
        UnsupportedModelError: If the layout lacks what the pruner needs.
    """
    if missing := [method for method in getattr(pruner, "needs", ()) if not hasattr(layout, method)]:
        raise UnsupportedModelError(
            f"{type(pruner).__name__} cannot shorten the {type(layout).__name__} of {model}: that layout has no "
            f"{' or '.join(missing)}. Leave pruner out, or give pruner={own!r}."
        )
    if counts_once and tells_sizes(pruner):
        raise UnsupportedModelError(
            f"{type(pruner).__name__} lets a merged token count for all that it stands for, which {model} cannot be "
            f"told: {counts_once}. Give a pruner with size_attention=False, such as 'fuse', which lets it "
            f"count once, or drop tokens, pruner={own!r}."
        )


PRUNERS = Registry(
    "pruner",
    {
        "tokens": TokenPruner(),
        "sequence": SequencePruner(),
        "sequence_aligned": SequencePruner(align=True),
        "cells": CellPruner(),
        "lines": LinePruner(),
        "positions": PositionPruner(),
        "crop": FixedLinePruner("crop"),
        "centre": FixedLinePruner("centre"),
        "even": FixedLinePruner("even"),
        "mnn": "repshift.merging.names:MNN",
        "mnn1": "repshift.merging.names:MNN_ONE_ROUND",
        "ward": "repshift.merging.names:WARD",
        "tome": "repshift.merging.names:TOME",
        "merge": "repshift.merging.names:MERGE",
        "fuse": "repshift.merging.names:FUSE",
        "saliency_merge": "repshift.merging.names:SALIENCY_MERGE",
        "frames": FramePruner(TokenPruner()),
        "mnn_frames": "repshift.merging.names:MNN_FRAMES",
        "tome_frames": "repshift.merging.names:TOME_FRAMES",
        "merge_frames": "repshift.merging.names:MERGE_FRAMES",
        "saliency_merge_frames": "repshift.merging.names:SALIENCY_MERGE_FRAMES",
    },
)
