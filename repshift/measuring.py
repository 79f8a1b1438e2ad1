"""What single modules do to score the tokens of a block that drops some: begin, remember, measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repshift.attention_scores import AttentionScore, Heads
from repshift.branches import Replay, Scale, add_to_float32
from repshift.calls import Call
from repshift.errors import RepresentationError
from repshift.layouts import Layout, first_tensor
from repshift.roles import Bystander
from repshift.scores import Score, apply_score, widened
from repshift.stream import Stream, Streams, is_repeated

# bytes of tokens that are compared at once on a CPU, so that what comes in between stays in its cache
CACHE = 4 * 2**20


@dataclass(frozen=True)
class OfBlock(Bystander):
    """A role within one block that drops tokens.

    Attributes:
        streams: What the modules of the model tell each other.
        block: The block's name.
    """

    streams: Streams
    block: str

    def running(self) -> Stream | None:
        """Return the stream if the block is running, else ``None``.

        Raises:
            RepresentationError: If this runs past the block, and does not repeat what is done already.
        """
        stream = self.streams.own
        if stream.block == self.block:
            return stream
        if not is_repeated():
            raise RepresentationError(
                f"Modules of {self.block!r}, which drops tokens, ran without the block itself, so nothing would be "
                "dropped. Gradient checkpointing runs the blocks of some convolutional networks so, one by one past "
                "their stage: switch it off, model.set_grad_checkpointing(False), or run the whole model."
            )
        return None


@dataclass(frozen=True)
class Begin(Bystander):
    """Tells the modules of a block that it is running."""

    streams: Streams
    block: str

    def enter(self, call: Call) -> Call:
        """Begin."""
        stream = self.streams.own
        stream.leave_block()
        stream.block = self.block
        return call


@dataclass(frozen=True)
class Remember(Bystander):
    """Remembers the tokens that enter the operation: what a module takes, or what it returns.

    Attributes:
        streams: What the modules of the model tell each other.
        block: The block's name.
        layout: How the value holds its tokens.
        from_output: The module returns ``x``; otherwise it takes it.
        replay: Runs the module once more when ``x`` is needed, if what it takes is smaller than what it returns.
    """

    streams: Streams
    block: str
    layout: Layout
    from_output: bool = False
    replay: Replay | None = None

    def enter(self, call: Call) -> Call:
        """Remember ``x`` if the module takes it."""
        stream = self.streams.own
        if stream.block == self.block:
            if not self.from_output:
                stream.before = self.layout.tokens(call.first).detach()
            elif self.replay is not None and self.replay.is_possible(stream):
                stream.source = first_tensor(call.first).detach()
        return call

    def leave(self, output: Any) -> Any:
        """Remember ``x`` if the module returns it."""
        stream = self.streams.own
        if stream.block != self.block or not self.from_output:
            return output
        if stream.source is None or stream.source.numel() >= first_tensor(output).numel():
            stream.before, stream.source = self.layout.tokens(output).detach(), None
        return output


@dataclass(frozen=True)
class Rate(OfBlock):
    """Scores the tokens that enter the operation by themselves, whatever it does to them; nothing need be kept."""

    layout: Layout
    score: Score
    from_output: bool = False

    def enter(self, call: Call) -> Call:
        """Score ``x`` if the module takes it."""
        if not self.from_output:
            self._rate(call.first)
        return call

    def leave(self, output: Any) -> Any:
        """Score ``x`` if the module returns it."""
        if self.from_output:
            self._rate(output)
        return output

    def _rate(self, value: Any) -> None:
        stream = self.running()
        if stream is not None:
            tokens = self.layout.tokens(value).detach()
            stream.scores = apply_score(self.score, tokens, tokens, read_only=True)


@dataclass(frozen=True)
class Measure(OfBlock):
    """Scores the tokens that leave the operation; of several parallel branches, the last one scores their sum.

    Attributes:
        streams: What the modules of the model tell each other.
        block: The block's name.
        layout: How the value holds its tokens.
        score: Of the tokens before and after.
        read_only: See :func:`repshift.scores.apply_score`.
        adds_before: Whether ``after`` is ``x + F(x)`` instead of ``F(x)``.
        last: Whether this is the last branch.
        replay: See :class:`Remember`.
        scale: What the block multiplies this branch by.
        source_layout: How ``x`` is held, where it is computed once more.
        widens: Whether ``x`` may have fewer channels than what leaves.
    """

    layout: Layout
    score: Score
    read_only: bool
    adds_before: bool
    last: bool
    replay: Replay | None = None
    scale: Scale | None = None
    source_layout: Layout | None = None
    widens: bool = False

    def leave(self, output: Any) -> Any:
        """Add this branch, and score if it was the last."""
        stream = self.running()
        if stream is None:
            return output
        after = self.layout.tokens(output).detach()
        if self.scale is not None:
            after = self.scale.applied(after)
        if stream.after is not None:
            after = stream.after + after
        if not self.last:
            stream.after = after
        elif stream.source is not None and self.replay is not None and self.source_layout is not None:
            stream.scores = self._compare_replayed(stream.source, after)
        elif stream.before is not None:
            stream.scores = self._compare(stream.before, after)
        return output

    def _compare(self, before: Tensor, after: Tensor) -> Tensor:
        images = _images_at_once(after)
        if images is None or not self.read_only or images >= after.shape[0]:
            return self._score(before, after)
        pairs = zip(torch.split(before, images), torch.split(after, images), strict=True)
        return torch.cat([self._score(*pair) for pair in pairs])

    def _compare_replayed(self, source: Tensor, after: Tensor) -> Tensor:
        assert self.replay is not None
        assert self.source_layout is not None
        # in parts, so that what comes in between does not need as much memory as was saved
        images = min(_images_at_once(after) or len(after), max(1, len(after) // 4))
        with torch.no_grad():
            pairs = zip(torch.split(source, images), torch.split(after, images), strict=True)
            return torch.cat(
                [self._score(self.source_layout.tokens(self.replay.run(taken)), part) for taken, part in pairs]
            )

    def _score(self, before: Tensor, after: Tensor) -> Tensor:
        before = widened(before, after) if self.widens else before
        after = add_to_float32(before, after) if self.adds_before else after
        return apply_score(self.score, before, after, read_only=self.read_only)


@dataclass(frozen=True)
class Ask(OfBlock):
    """Remembers the queries of the block's attention."""

    def leave(self, output: Any) -> Any:
        """Remember them."""
        stream = self.running()
        if stream is not None:
            stream.queries = output.detach()
        return output


@dataclass(frozen=True)
class KeepKeys(OfBlock):
    """Remembers the keys of the block's attention, averaged over heads, for a pruner that compares by them."""

    prefix: int

    def leave(self, output: Any) -> Any:
        """Remember them."""
        stream = self.running()
        if stream is not None:
            stream.keys = output.detach().mean(1)[:, self.prefix :]
        return output


@dataclass(frozen=True)
class Attend(OfBlock):
    """Scores the tokens by the attention that they receive, when the keys are there."""

    heads: Heads
    score: AttentionScore

    def leave(self, output: Any) -> Any:
        """Compute the attention from queries and keys."""
        stream = self.running()
        if stream is not None and stream.queries is not None:
            stream.scores = self.score(stream.queries, output.detach(), self.heads)
        return output


def _images_at_once(tokens: Tensor) -> int | None:
    """Say how many images to compare at once on a CPU, as many as stay in its cache; elsewhere ``None`` for all."""
    if torch.compiler.is_compiling() or tokens.device.type != "cpu":
        return None
    return max(1, CACHE // max(1, tokens[:1].numel() * tokens.element_size()))
