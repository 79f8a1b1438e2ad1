"""What is known of the tokens while they travel through a model: one forward, one thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from repshift.hooks import in_backward
from repshift.origins import Origin
from repshift.selection import Selection


class Listener(Protocol):
    """Who wants to see what the cuts of a pruned model do; a tracker's recorder is one."""

    def returned(self, block: str, value: Any) -> None:
        """See what a block returns, before it is shortened; or the MLP of one that is cut in front of that."""
        ...

    def shortened_inside(self, selection: Selection, sizes: Tensor | None, tokens: int) -> None:
        """See that tokens go while a block is running.

        Args:
            selection: What stays.
            sizes: ``(batch, tokens)``, see :class:`Stream`.
            tokens: How many there were.
        """
        ...

    def shortened(self, block: str, origin: Origin) -> None:
        """See where the tokens stood that are left."""
        ...


@dataclass(frozen=True, eq=False)
class PastCut:
    """A cut that may have to be undone.

    Attributes:
        selection: What it kept; with ``joins`` where every token finds a value in the end.
        before: ``(batch, tokens, channels)``, what the tokens were like, if dropped ones come back as they went.
    """

    selection: Selection
    before: Tensor | None = None


@dataclass(slots=True, eq=False)
class Stream:
    """What is known of the tokens during one forward; empty between forwards.

    Plain attributes of a plain object, because that is what dynamo follows through graph breaks. They are slots, since
    of other objects dynamo (torch 2.14) loses what is written behind a higher-order operator such as FlexAttention.

    Attributes:
        origin: Where the tokens stood; ``None`` unless somebody needs it (see :class:`repshift.roles.Cut`).
        sizes: ``(batch, tokens)`` float32, how many places each token stands for: 0 for padding, ``None`` for one each.
        padded: Whether some of them may be padding.
        grid: Rows and columns of all tokens, of videos frames, rows and columns, if a pruner asks for them.
        sides: Rows and columns of what is left, where blocks are given them as arguments.
        cuts: The cuts so far, if they are undone in the end.
        block: Name of the block that is running, if it drops tokens.
        before: ``x``, ``(batch, tokens, channels)``.
        source: What ``x`` is computed from once more, instead.
        after: What the branches so far add up to, same shape.
        scores: ``(batch, tokens)``.
        queries: Of the block's attention.
        keys: Of the block's attention, ``(batch, tokens, channels)``, averaged over heads.
        halfway: What is left of the value between attention and MLP, if it is cut there.
        beyond: The same with what the MLP adds: what the block returns.
        listeners: Who wants to see the cuts of this thread; they stay until they are taken off.
        left: What the last block returned, where a restored value was shown instead of it.
        laid_out: Whether the blocks run for somebody who lays their tokens out on their grid.
        answering: Whether the whole model runs, from images to answers; only watched where only the head's own tokens
            are computed.
    """

    origin: Origin | None = None
    sizes: Tensor | None = None
    padded: bool | None = None
    grid: tuple[int, ...] | None = None
    sides: tuple[int, int] | None = None
    cuts: tuple[PastCut, ...] = ()
    left: Any = None
    block: str | None = None
    before: Tensor | None = None
    source: Tensor | None = None
    after: Tensor | None = None
    scores: Tensor | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    halfway: Any = None
    beyond: Any = None
    listeners: tuple[Listener, ...] = ()
    answering: bool | None = None
    laid_out: bool | None = None

    def clear(self) -> None:
        """Forget everything of a forward."""
        self.origin = self.sizes = self.padded = self.grid = self.sides = None
        self.cuts = ()
        self.left = None
        self.leave_block()

    def leave_block(self) -> None:
        """Forget what the modules of one block told each other."""
        self.block = None
        self.before = self.source = self.after = self.scores = self.queries = self.keys = None
        self.halfway = self.beyond = None

    def heard_by(self) -> tuple[Listener, ...]:
        """Return who listens to this forward: nobody, if it is compiled or repeats another one."""
        if torch.compiler.is_compiling() or in_backward():
            return ()
        return self.listeners

    def begin(self, tokens: int, grid: tuple[int, ...] | None, rounds_up: bool = True) -> None:
        """Begin a forward: all tokens are there, each for itself.

        Args:
            tokens: How many there are.
            grid: Rows and columns, of feature maps.
            rounds_up: See :class:`repshift.origins.Origin`.
        """
        image = self.grid  # known since the embedding
        self.clear()
        self.grid = image
        self.origin = Origin(tokens, grid, None, grid, rounds_up)

    def cut(self, selection: Selection, grids: Sequence[tuple[int, ...] | None]) -> None:
        """Follow the tokens through a cut.

        Args:
            selection: What was kept.
            grids: Rows and columns before and after, of feature maps.
        """
        self.origin = (self.origin or Origin()).at(grids[0]).cut(selection, grids[1])
        self.sizes = selection.sizes(self.sizes)


class Streams(threading.local):
    """The stream of each thread, since servers run one model in several.

    The stream is an object *in* the thread's own attributes and not these attributes themselves: dynamo writes what a
    graph changed past the machinery of ``threading.local``, into a dictionary that no thread reads.
    """

    def __init__(self) -> None:
        self.own = Stream()  # once in every thread

    def __reduce__(self) -> tuple[type[Streams], tuple[()]]:
        return Streams, ()


def is_repeated() -> bool:
    """Say whether this forward repeats an earlier one in the backward pass, as gradient checkpointing does."""
    return not torch.compiler.is_compiling() and in_backward()


@contextmanager
def heard(stream: Stream, listener: Listener) -> Iterator[None]:
    """Let somebody listen to a stream while the context lasts; afterwards nothing is left on it."""
    stream.listeners = (*stream.listeners, listener)
    try:
        yield
    finally:
        stream.listeners = tuple(other for other in stream.listeners if other is not listener)
        stream.clear()
