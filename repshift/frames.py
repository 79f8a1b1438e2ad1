"""The same of every frame: any pruner of single tokens, run on each frame of a video by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from repshift.candidates import Candidates, Pruner
from repshift.drops import Drop
from repshift.errors import ScheduleError
from repshift.layouts import TokenSequence
from repshift.selection import Selection


@dataclass(frozen=True)
class FramePruner:
    """Lets a pruner choose within each frame of a video by itself: as many tokens go from every one.

    So no frame loses all its tokens, and what merges stays within its frame. A share is one of each frame's tokens; a
    count is one of all, which the frames must divide. Tokens that are left stand frame by frame, as they did.

    Attributes:
        within: Chooses in each frame.
    """

    within: Pruner
    wants_frames: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The methods that the layout must have."""
        return tuple(getattr(self.within, "needs", ()))

    @property
    def drops_only(self) -> bool:
        """Whether nothing is merged."""
        return bool(getattr(self.within, "drops_only", False))

    @property
    def chooses_itself(self) -> bool:
        """Whether it looks at no scores."""
        return bool(getattr(self.within, "chooses_itself", False))

    @property
    def wants_keys(self) -> bool:
        """Whether it asks for the keys of the block's attention."""
        return bool(getattr(self.within, "wants_keys", False))

    @property
    def size_attention(self) -> bool:
        """Whether merged tokens count in later attention as often as what they stand for."""
        return bool(getattr(self.within, "size_attention", True))

    @property
    def before_mlp(self) -> bool:
        """Whether it chooses between attention and MLP."""
        return bool(getattr(self.within, "before_mlp", False))

    def choose(self, candidates: Candidates, drop: Drop) -> Selection | None:
        """Let the pruner choose in each frame; see :class:`repshift.pruners.Pruner`.

        Raises:
            ScheduleError: If the frames do not divide a count, or fewer than one token of each would stay.
            UnsupportedModelError: If it is not known how many frames there are.
        """
        frames, batch = candidates.in_frames(), candidates.tokens.shape[0]
        if not isinstance(drop, float):
            drop = _each(drop, frames, candidates.block)
        selection = self.within.choose(_by_frame(candidates, frames), drop)
        if selection is None:
            return None
        count, left = candidates.count // frames, selection.kept.shape[1]

        def together(places: Tensor | None, step: int) -> Tensor | None:
            if places is None:
                return None
            first = step * torch.arange(frames, device=places.device).view(1, frames, 1)
            return (torch.unflatten(places, 0, (batch, frames)) + first).flatten(1)

        weights, absent = (
            None if value is None else value.reshape(batch, -1) for value in (selection.weights, selection.absent)
        )
        kept, joins = together(selection.kept, count), together(selection.joins, left)
        assert kept is not None
        return replace(selection, kept=kept, joins=joins, weights=weights, absent=absent, leading=False)


def _each(drop: int, frames: int, block: str) -> int:
    if drop % frames:
        near = max(1, round(drop / frames)) * frames
        raise ScheduleError(
            f"Dropping {drop} tokens in {block} cannot be the same in each of {frames} frames. Drop a multiple, such "
            f"as {near}, or a share."
        )
    return drop // frames


def _by_frame(candidates: Candidates, frames: int) -> Candidates:
    """Return the tokens of each frame as if they were an image of its own."""

    def split(value: Tensor | None) -> Tensor | None:
        return None if value is None else torch.unflatten(value, 1, (frames, -1)).flatten(0, 1)

    return Candidates(
        split(candidates.tokens),
        TokenSequence(),
        split(candidates.ranking),
        split(candidates.sizes),
        f"each frame of {candidates.block}",
        split(candidates.keys),
    )
