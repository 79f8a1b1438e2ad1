"""Maps that travel as sequences, with rows and columns as arguments of the blocks, which follow what is left.

Only whole lines can go, so a map is left; it is laid out for the cut alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repshift.calls import Call
from repshift.layouts import first_tensor, with_first_tensor
from repshift.roles import Bystander
from repshift.stream import Streams


@dataclass(frozen=True)
class GiveSides(Bystander):
    """Tells a block how many rows and columns are left.

    Attributes:
        streams: What the modules of the model tell each other.
        arguments: Names of the block's arguments for rows and columns.
    """

    streams: Streams
    arguments: tuple[str, str]

    def enter(self, call: Call) -> Call:
        """Note what the first block is told, and tell the others."""
        stream, (rows, columns) = self.streams.own, self.arguments
        if stream.sides is None:
            stream.sides = call.get(rows), call.get(columns)
        return call.replaced(rows, stream.sides[0]).replaced(columns, stream.sides[1])


@dataclass(frozen=True)
class Unroll(Bystander):
    """Lays a sequence out as a map ``(batch, rows, columns, channels)``, in front of the cut."""

    streams: Streams

    def leave(self, output: Any) -> Any:
        """Lay it out."""
        stream, tokens = self.streams.own, first_tensor(output)
        assert stream.sides is not None
        return with_first_tensor(output, tokens.reshape(tokens.shape[0], *stream.sides, -1))


@dataclass(frozen=True)
class RollUp(Bystander):
    """Makes a sequence of a map again, behind the cut, and notes its rows and columns."""

    streams: Streams

    def leave(self, output: Any) -> Any:
        """Roll it up."""
        tokens = first_tensor(output)
        self.streams.own.sides = int(tokens.shape[1]), int(tokens.shape[2])
        return with_first_tensor(output, tokens.flatten(1, 2))
