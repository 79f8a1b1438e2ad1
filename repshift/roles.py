"""What single modules do when a model is pruned: check the images, and cut.

How tokens are scored within a block stands in :mod:`repshift.measuring`, what is done about those that went in
:mod:`repshift.travelling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from repshift.calls import Call
from repshift.drops import Drop
from repshift.errors import RepresentationError, ScheduleError
from repshift.images import Images, explain, require_floating_point
from repshift.layouts import Layout, shortened
from repshift.origins import Origin
from repshift.pruners import Candidates, Pruner
from repshift.restoring import nearest_kept
from repshift.selection import Selection
from repshift.stream import PastCut, Stream, Streams, is_repeated

# Whether dropped tokens have their places back in the end, and with what value
Restoring = Literal[False, True, "left"]


class Role(Protocol):
    """What a module does in pruning, around its own forward."""

    def enter(self, call: Call) -> Call:
        """Look at what the module is called with, and return what takes its place."""
        ...

    def leave(self, output: Any) -> Any:
        """Look at what the module returns, and return what takes its place."""
        ...

    def close(self, failed: bool) -> None:
        """Clean up after the forward, whether it succeeded or not."""
        ...


class Bystander:
    """A role's parts that do nothing."""

    def enter(self, call: Call) -> Call:
        """Let the call pass."""
        return call

    def leave(self, output: Any) -> Any:
        """Let the output pass."""
        return output

    def close(self, failed: bool) -> None:
        """Do nothing."""
        return None


class Surrounding(Bystander):
    """A role around methods of a module other than its forward.

    Attributes:
        methods: Their names.
    """

    methods: tuple[str, ...]

    def around(self, run: Callable[[], Any]) -> Any:
        """Run the method, with its arguments bound, and return what takes the place of its answer."""
        return run()


@dataclass(frozen=True)
class TakeImages(Bystander):
    """Refuses what are no images, where they enter the model.

    Attributes:
        images: What the model takes, if that is known.
    """

    images: Images | None

    def enter(self, call: Call) -> Call:
        """Check the images; patches in a dictionary are for the embedding to check."""
        if isinstance(call.first, Mapping):
            return call
        require_floating_point(call.first)
        if self.images is not None:
            self.images.require_rank(call.first)
        return call

    def explain(self, error: Exception, call: Call, module: Any) -> None:
        """Say what is wrong with the images that the embedding failed on.

        Raises:
            RepresentationError: If that is known.
        """
        explain(error, self.images, call.first, module)


@dataclass(frozen=True)
class Cut(Bystander):
    """Shortens what a block returns.

    Attributes:
        streams: What the modules of the model tell each other.
        block: The block's name.
        layout: How the value holds its tokens.
        pruner: Chooses what stays.
        drop: How much goes.
        keep: Whether what scores highest stays (``"top"``) or what scores lowest (``"bottom"``).
        measured: Whether tokens are scored; otherwise the first ones stay.
        least: How many rows and columns of a map must be left for the strides behind.
        multiple: What the numbers of rows and columns left must be a multiple of.
        follows: Whether later modules must know what became of the tokens.
        restoring: Whether the tokens have their places back in the end.
        words: What is dropped here and by what, for people.
    """

    streams: Streams
    block: str
    layout: Layout
    pruner: Pruner
    drop: Drop
    keep: Literal["top", "bottom"] = "top"
    measured: bool = True
    least: int = 1
    multiple: int = 1
    follows: bool = False
    restoring: Restoring = False
    words: str = ""

    def leave(self, output: Any) -> Any:
        """Apply what the pruner chooses.

        Raises:
            RepresentationError: If it answers something else than a selection.
        """
        return self.shorten(output, returned=True)

    def shorten(self, value: Any, returned: bool) -> Any:
        """Shorten a value, and say so.

        Args:
            value: Holds the tokens.
            returned: Whether it is what the block returns, or the block goes on with it.

        Raises:
            RepresentationError: If the pruner answers something else than a selection.
        """
        stream = self.streams.own
        ranking = self._ranking(stream)
        candidates = Candidates(
            value,
            self.layout,
            ranking,
            stream.sizes,
            repr(self.block),
            stream.keys,
            *self._places(value, stream),
            multiple=self.multiple,
            padded=bool(stream.padded),
        )
        selection = self.pruner.choose(candidates, self.drop)
        if not isinstance(selection, (Selection, NoneType)):
            raise RepresentationError(
                f"The pruner {type(self.pruner).__name__} answered {type(selection).__name__!r}. Let choose return a "
                "repshift.Selection, or None to keep all."
            )
        left = value if selection is None else shortened(self.layout, value, selection, stream.sizes)
        grids = self.layout.grid(value), self.layout.grid(left)
        self._require_lines(*grids)
        listeners = stream.heard_by()
        for listener in listeners:
            if returned:
                listener.returned(self.block, value)
            elif selection is not None:
                listener.shortened_inside(selection, stream.sizes, candidates.count)
        if selection is not None and (self.follows or listeners or (stream.origin is not None and not is_repeated())):
            if self.restoring:
                stream.cuts = (*stream.cuts, self._past(candidates.tokens, selection, stream.sizes))
            stream.cut(selection, grids)
            for listener in listeners:
                listener.shortened(self.block, stream.origin or Origin())
        return left

    def close(self, failed: bool) -> None:
        """Leave nothing of the block behind, and nothing at all if the forward ends here."""
        if failed:
            self.streams.own.clear()
        else:
            self.streams.own.leave_block()

    def _ranking(self, stream: Stream) -> Tensor | None:
        if not self.measured:
            return None
        scores = stream.scores
        if scores is None:
            raise RepresentationError(
                f"{self.block!r} ended without running the operation that scores its tokens. Its forward does not "
                "call the modules it is described by; choose operation='block'."
            )
        if not torch.compiler.is_compiling():
            _require_numbers(scores, self.block)
        ranking = -scores if self.keep == "bottom" else scores
        if stream.sizes is None or not stream.padded:
            return ranking
        return ranking.masked_fill(stream.sizes == 0, -torch.inf)

    def _places(self, value: Any, stream: Stream) -> tuple[Tensor | None, tuple[int, ...] | None]:
        """Return where the tokens stood, and on which grid, if the pruner asks and it is known."""
        origin, grid = stream.origin, stream.grid
        if origin is None or grid is None:  # which is noted only for a pruner that asks
            return None, None
        if origin.tokens != math.prod(grid):
            raise RepresentationError(
                f"{origin.tokens} tokens entered the blocks, but the images give {'x'.join(map(str, grid))} of them. "
                "Run the whole model on the images, or choose another pruner."
            )
        tokens = self.layout.tokens(value)
        everywhere = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
        return everywhere if origin.positions is None else origin.positions, grid

    def _past(self, tokens: Tensor, selection: Selection, sizes: Tensor | None) -> PastCut:
        if selection.joins is not None:
            return PastCut(selection)
        if self.restoring == "left":
            return PastCut(selection, tokens)
        left = selection.sizes(sizes)
        there = None if left is None else left > 0
        return PastCut(Selection(selection.kept, joins=nearest_kept(tokens, selection.kept, there)))

    def _require_lines(self, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> None:
        if before and after and min(after) < self.least and after != before:
            raise ScheduleError(
                f"Dropping {self.drop} of a map of {before} leaves {after} rows and columns, but the strides behind it "
                f"need at least {self.least}. Drop less there, or give larger images."
            )
        if before and after and after != before and any(side % self.multiple for side in after):
            fit = before[0] - max(1, after[0] // self.multiple) * self.multiple
            drop = f"Drop {fit} rows and columns" if fit > 0 else "Give larger images"
            raise ScheduleError(
                f"Dropping {self.drop} of a map of {before} leaves {after} rows and columns, but the layers behind it "
                f"take multiples of {self.multiple} only: they round odd sides in two ways, or take the map apart into "
                f"patches. {drop}, or drop at another stage."
            )


def _require_numbers(scores: Tensor, block: str) -> None:
    """Refuse scores that are not numbers: they would rank as the highest and as the lowest at once."""
    is_traced = type(scores) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(scores)
    is_captured = scores.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if is_traced or is_captured or scores.device.type == "meta" or not bool(scores.isnan().any()):
        return
    each = scores.isnan().sum(1)
    image = int(each.argmax())
    raise RepresentationError(
        f"{int(each[image])} of the {scores.shape[1]} scores of image {image} at {block!r} are not a number (NaN), as "
        f"are some of {int((each > 0).sum())} of the {len(each)} images, so they cannot be ranked. Look for NaN in the "
        "images and the weights, or for numbers too large for the dtype; check the score if it is your own."
    )
