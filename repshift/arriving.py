"""What becomes of the tokens behind the last block: weighed, brought back to their places, missed, forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repshift.calls import Call
from repshift.companions import Companion
from repshift.errors import RepresentationError, RepshiftError, UnsupportedModelError, first_line
from repshift.layouts import Layout, first_tensor, side_by_side, with_first_tensor
from repshift.restoring import restored
from repshift.roles import Bystander, Surrounding
from repshift.stream import Streams


@dataclass(frozen=True)
class Weigh(Bystander):
    """Stands in front of an average over tokens: the mean of weighted tokens is the weighted mean.

    Attributes:
        streams: What the modules of the model tell each other.
        layout: How the value holds its tokens.
        with_prefix: Whether prefix tokens take part in the average, each for itself.
        present: Whether the average leaves padding out.
        taken: The average is over what the module takes.
    """

    streams: Streams
    layout: Layout
    with_prefix: bool
    present: bool = False
    taken: bool = False

    def enter(self, call: Call) -> Call:
        """Weigh what the module takes, if that is averaged."""
        return call.with_first(self._weighed(call.first)) if self.taken else call

    def leave(self, output: Any) -> Any:
        """Weigh what the module returns, if that is averaged."""
        return output if self.taken else self._weighed(output)

    def _weighed(self, output: Any) -> Any:
        """Multiply every token by the places it stands for, over their mean."""
        sizes = self.streams.own.sizes
        if sizes is None:
            return output
        tokens = self.layout.tokens(output)
        value = first_tensor(output)
        prefix = value.shape[1] - tokens.shape[1] if self.with_prefix else 0
        # the average behind divides by the number of tokens, and should divide by the number of places
        number = (sizes > 0).sum(1) if self.present else tokens.shape[1]
        share = (prefix + number) / (prefix + sizes.sum(1)).clamp_min(1e-6)
        if self.with_prefix:
            output = with_first_tensor(output, (value * share[:, None, None]).to(value.dtype))
        weighted = tokens * (sizes * share.unsqueeze(1)).unsqueeze(-1)
        return self.layout.put(output, weighted.to(tokens.dtype))


@dataclass(frozen=True)
class Restore(Bystander):
    """Gives the tokens that went their places back."""

    streams: Streams
    layout: Layout

    def leave(self, output: Any) -> Any:
        """Undo the cuts, the last one first."""
        stream = self.streams.own
        if not stream.cuts:
            return output
        tokens = self.layout.tokens(output)
        whole = side_by_side(restored(tokens, stream.cuts), tokens)
        stream.cuts, stream.sizes = (), None  # every place has a token again
        return self.layout.put(output, whole)


@dataclass(frozen=True)
class ShortenAnswer(Surrounding):
    """Shortens what a method of the model returns beside the tokens, in a dictionary.

    Attributes:
        streams: What the modules of the model tell each other.
        methods: The name of the method.
        companion: What has an entry for each token, by its key; with ``padding`` it says which of them are there.
        ends: Whether nothing behind needs to know what became of the tokens.
    """

    streams: Streams
    methods: tuple[str, ...]
    companion: Companion
    ends: bool

    def around(self, run: Callable[[], Any]) -> Any:
        """Run the method, and exchange that entry of the dictionary."""
        stream = self.streams.own
        try:
            answer = run()
            positions = None if stream.origin is None else stream.origin.positions
            value = answer.get(self.companion.argument) if isinstance(answer, dict) else None
            if positions is None or value is None:
                return answer
            left = self.companion.shortened(value, positions)
            if self.companion.padding and stream.sizes is not None:
                # what an image keeps beyond its share became padding at the cut, too
                left = (stream.sizes > 0).to(left.dtype)
            return {**answer, self.companion.argument: left}
        finally:
            if self.ends and not stream.heard_by():
                stream.clear()


@dataclass(frozen=True)
class RefuseFewer(Bystander):
    """Refuses to run a module that reads tokens by their places, where some have gone.

    Attributes:
        why: What it does with them.
    """

    why: str

    def enter(self, call: Call) -> Call:
        """Refuse.

        Raises:
            UnsupportedModelError: Always.
        """
        raise UnsupportedModelError(f"{self.why}, and this model has dropped or merged some. Prune with restore=True.")


@dataclass(frozen=True)
class Explain(Bystander):
    """Says what an error of a module comes of, where tokens have gone.

    Attributes:
        part: Of the error's text, in small letters.
        said: Instead of it.
    """

    part: str
    said: str

    def explain(self, error: Exception, call: Call, module: Any) -> None:
        """Say so.

        Raises:
            RepresentationError: If it is the error that is meant.
        """
        if not isinstance(error, RepshiftError) and self.part in str(error).lower():
            raise RepresentationError(f"{self.said} ({first_line(error)})") from error


@dataclass(frozen=True)
class End(Bystander):
    """Ends what is known of the tokens, behind the last module that needs it, or whenever the model ends."""

    streams: Streams

    def close(self, failed: bool) -> None:
        """Forget it, unless somebody listens and will."""
        stream = self.streams.own
        if not stream.heard_by():
            stream.clear()
