"""Intermediate tokens at their places: what a restoring model gives to whoever lays them out on their grid.

A block that runs for one of the model's grid methods returns all tokens, those that went restored by the cuts so far,
and the next block goes on with those that are really left. So the method itself, whatever it does with what the blocks
return, needs no knowledge of pruning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from repshift.calls import Call
from repshift.layouts import Layout, first_tensor
from repshift.restoring import restored
from repshift.roles import Bystander, Surrounding
from repshift.stream import Streams


@dataclass(frozen=True)
class LayOut(Surrounding):
    """Tells the blocks that one of the model's grid methods runs.

    Attributes:
        streams: What the modules of the model tell each other.
        methods: Their names.
        always: Somebody lays them out whenever the model runs.
    """

    streams: Streams
    methods: tuple[str, ...]
    always: bool = False

    def enter(self, call: Call) -> Call:
        """Say so, if that is always the case."""
        if self.always:
            self.streams.own.laid_out = True
        return call

    def close(self, failed: bool) -> None:
        """Take it back."""
        if self.always:
            self.streams.own.laid_out = None

    def around(self, run: Callable[[], Any]) -> Any:
        """Say so while it runs; afterwards nothing of the forward is left, as it may end before its end."""
        stream = self.streams.own
        outer, stream.laid_out = stream.laid_out, True
        try:
            return run()
        finally:
            stream.laid_out = outer
            if not stream.heard_by():
                stream.clear()


@dataclass(frozen=True)
class Resume(Bystander):
    """Goes on with the tokens that are left, in front of a block behind a cut."""

    streams: Streams

    def enter(self, call: Call) -> Call:
        """Take them for the restored ones."""
        left = self.streams.own.left
        if left is None:
            return call
        # a block that returns more than the tokens may be given only these
        return call.with_first(first_tensor(left) if isinstance(call.first, Tensor) else left)


@dataclass(frozen=True)
class Show(Bystander):
    """Shows all tokens at their places behind a block, and remembers those that are left."""

    streams: Streams
    layout: Layout

    def leave(self, output: Any) -> Any:
        """Undo the cuts so far, for a grid method alone."""
        stream = self.streams.own
        if stream.laid_out is None:
            return output
        stream.left = output
        return self.layout.put(output, restored(self.layout.tokens(output), stream.cuts))
