"""What single modules do when a model is pruned: remember, measure, cut."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from repshift.attention import AttentionScore, Heads
from repshift.errors import RepresentationError, ScheduleError
from repshift.hooks import in_backward
from repshift.layouts import Layout
from repshift.pruners import Pruner
from repshift.schedules import Drop
from repshift.scores import Score, apply_score

# Called with what a block returned, what is left of it, and the kept positions (None: all)
Observer: TypeAlias = Callable[[Any, Any, Tensor | None], None]


class Relay(threading.local):
    """What the modules of one block tell each other during one forward.

    Empty between forwards, and separate in every thread, since servers run one model in several.
    """

    running: bool
    before: Tensor | None
    after: Tensor | None
    scores: Tensor | None
    queries: Tensor | None

    def __init__(self) -> None:
        # once in every thread: an attribute that appears only during the first forward would fail dynamo's guards
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.running = False
        self.before = self.after = self.scores = self.queries = None

    def __reduce__(self) -> tuple[type[Relay], tuple[()]]:
        return Relay, ()


class Role(Protocol):
    """What a module does in pruning, around its own forward."""

    def enter(self, value: Any) -> None:
        """Look at the module's first input."""
        ...

    def leave(self, output: Any) -> Any:
        """Look at the module's output and return what takes its place."""
        ...

    def close(self) -> None:
        """Clean up after the forward, whether it succeeded or not."""
        ...


class _Bystander:
    """A role's parts that do nothing."""

    def enter(self, value: Any) -> None:
        return None

    def leave(self, output: Any) -> Any:
        return output

    def close(self) -> None:
        return None


@dataclass(frozen=True)
class RequireFloat(_Bystander):
    """Refuses images that are not floating-point, where they enter the model."""

    def enter(self, value: Any) -> None:
        """Check the images."""
        require_floating_point(value)


@dataclass(frozen=True)
class Begin(_Bystander):
    """Tells the modules of a block that it is running."""

    relay: Relay

    def enter(self, value: Any) -> None:
        """Begin a forward."""
        self.relay.running = True


@dataclass(frozen=True)
class Remember(_Bystander):
    """Remembers the tokens that enter the operation: what a module takes, or what it returns."""

    relay: Relay
    layout: Layout
    from_output: bool = False

    def enter(self, value: Any) -> None:
        """Remember ``x`` if the module takes it."""
        if self.relay.running and not self.from_output:
            self.relay.before = self.layout.tokens(value).detach()

    def leave(self, output: Any) -> Any:
        """Remember ``x`` if the module returns it."""
        if self.relay.running and self.from_output:
            self.relay.before = self.layout.tokens(output).detach()
        return output


@dataclass(frozen=True)
class Measure(_Bystander):
    """Scores the tokens that leave the operation; of several parallel branches, the last one scores their sum."""

    relay: Relay
    layout: Layout
    score: Score
    add_before: bool
    last: bool

    def leave(self, output: Any) -> Any:
        """Add this branch, and score if it was the last."""
        relay = self.relay
        if not relay.running:
            _require_repetition()
            return output
        after = self.layout.tokens(output).detach()
        if relay.after is not None:
            after = relay.after + after
        if not self.last:
            relay.after = after
        elif relay.before is not None:
            after = add(relay.before, after) if self.add_before else after
            relay.scores = apply_score(self.score, relay.before, after)
        return output


@dataclass(frozen=True)
class Ask(_Bystander):
    """Remembers the queries of the block's attention."""

    relay: Relay

    def leave(self, output: Any) -> Any:
        """Remember them."""
        if self.relay.running:
            self.relay.queries = output.detach()
        return output


@dataclass(frozen=True)
class Attend(_Bystander):
    """Scores the tokens by the attention that they receive, when the keys are there."""

    relay: Relay
    heads: Heads
    score: AttentionScore

    def leave(self, output: Any) -> Any:
        """Compute the attention from queries and keys."""
        relay = self.relay
        if not relay.running:
            _require_repetition()
        elif relay.queries is not None:
            relay.scores = self.score(relay.queries, output.detach(), self.heads)
        return output


@dataclass
class Cut(_Bystander):
    """Shortens what the block returns.

    Attributes:
        keep: Whether what scores highest stays (``"top"``) or what scores lowest (``"bottom"``); the ``"first"``
            tokens stay without any score.
        least: How many rows and columns of a map must be left for the strides behind.
        observers: Called at every forward; only a tracker sets them, and only while it is attached.
    """

    relay: Relay
    layout: Layout
    pruner: Pruner
    drop: Drop
    least: int = 1
    keep: Literal["top", "bottom", "first"] = "top"
    observers: tuple[Observer, ...] = field(default=(), repr=False, compare=False)

    def leave(self, output: Any) -> Any:
        """Drop the tokens that scored lowest."""
        if self.keep == "first":
            shortened, kept = self.pruner.keep_first(output, self.drop, self.layout)  # type: ignore[attr-defined]
        else:
            shortened, kept = self.pruner.shorten(output, self._ranking(), self.drop, self.layout)
        self._require_lines(self.layout.grid(output), self.layout.grid(shortened))
        for observe in self.observers:
            observe(output, shortened, kept)
        return shortened

    def _ranking(self) -> Tensor:
        scores = self.relay.scores
        if scores is None:
            raise RepresentationError(
                "A block ended without running the operation that scores its tokens. Its forward does not call the "
                "modules it is described by; choose operation='block'."
            )
        return -scores if self.keep == "bottom" else scores

    def _require_lines(self, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> None:
        if before and after and min(after) < self.least and after != before:
            raise ScheduleError(
                f"Dropping {self.drop} of a map of {before} leaves {after} rows and columns, but the strides behind it "
                f"need at least {self.least}. Drop less there, or give larger images."
            )

    def close(self) -> None:
        """Leave nothing of this forward behind."""
        self.relay.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "observers": ()}  # a copy is not watched by the original's tracker


def _require_repetition() -> None:
    """Refuse what runs past the block that would drop its tokens, unless it repeats what is done already."""
    if torch.compiler.is_compiling() or not in_backward():
        raise RepresentationError(
            "Modules of a block that drops tokens ran without the block itself, so nothing would be dropped. Gradient "
            "checkpointing runs the blocks of some convolutional networks so, one by one past their stage: switch it "
            "off, model.set_grad_checkpointing(False), or run the whole model."
        )


@contextmanager
def observed(cut: Cut, observer: Observer) -> Iterator[None]:
    """Let an observer see a cut while the context lasts."""
    cut.observers = (*cut.observers, observer)
    try:
        yield
    finally:
        cut.observers = tuple(other for other in cut.observers if other is not observer)


def add(stream: Tensor, branch: Tensor) -> Tensor:
    """Add a branch to the residual stream, ``(batch, tokens, channels)`` both, and return the sum in float32.

    Rounded to bfloat16, what a small branch adds would be lost.
    """
    return stream.float() + branch.float()


def require_floating_point(value: Any) -> None:
    """Refuse images of whole numbers.

    Raises:
        RepresentationError: If they are not floating-point.
    """
    if not isinstance(value, Tensor):
        raise RepresentationError(
            f"The model got a {type(value).__name__}, expected a floating-point tensor "
            "(batch, channels, rows, columns). Convert the images with torchvision or timm.data.create_transform."
        )
    images = value
    if not images.is_floating_point():
        raise RepresentationError(
            f"The model got {images.dtype} images of shape {tuple(images.shape)}, expected floating-point ones. "
            "Scale and normalise them as the model was trained, for example with "
            "timm.data.create_transform(**timm.data.resolve_model_data_config(model))."
        )
