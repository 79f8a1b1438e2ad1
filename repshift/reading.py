"""A last block that computes only what the head reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repshift.calls import Call
from repshift.errors import ScheduleError, UnsupportedModelError
from repshift.recipes import Recipe
from repshift.roles import Bystander, Role
from repshift.sites import Structure
from repshift.stream import Streams, is_repeated


@dataclass(frozen=True)
class Answer(Bystander):
    """Tells the last block that the whole model runs, which hands its tokens to the head and nobody else."""

    streams: Streams

    def enter(self, call: Call) -> Call:
        """Say so."""
        self.streams.own.answering = True
        return call

    def close(self, failed: bool) -> None:
        """Take it back."""
        self.streams.own.answering = None


@dataclass(frozen=True)
class ReadOnly(Bystander):
    """Runs the last block in another way.

    Attributes:
        streams: What the modules of the model tell each other.
        run: Called with the block and its arguments.
    """

    streams: Streams
    run: Callable[..., Any]

    def enter(self, call: Call) -> Call:
        """Refuse to run where somebody else than the head may read.

        Raises:
            UnsupportedModelError: If the block runs without the whole model.
        """
        if self.streams.own.answering is None and not is_repeated():
            raise UnsupportedModelError(
                "This model was pruned with read='head': its last block computes only what the head reads, so it has "
                "no tokens to give (forward_features, forward_intermediates, get_intermediate_layers). Call the model "
                "itself, or prune with read='all'."
            )
        return call


def reading_roles(structure: Structure, recipe: Recipe, streams: Streams) -> list[tuple[str, Role]]:
    """Say which modules play which roles so that only what the head reads is computed.

    Args:
        structure: Of the model.
        recipe: Settled, with ``read="head"``.
        streams: What the modules of the model tell each other.

    Raises:
        UnsupportedModelError: If the head reads all tokens, or that is not known.
        ScheduleError: If something is dropped where nothing is read any more.
    """
    if structure.reading.forward is None:
        raise UnsupportedModelError(
            f"read='head' cannot be given here: {structure.reading.why}. Leave it out, which computes all tokens."
        )
    last = len(structure.sites) - 1
    if last in recipe.drops:
        raise ScheduleError(
            f"The schedule drops after {structure.unit} {last}, the last one, of which the head reads no token that "
            f"could go (read='head'). End it before, as in '{recipe.drops[last]}@0:{last}'."
        )
    run = ReadOnly(streams, structure.reading.forward)
    return [(structure.root, Answer(streams)), (structure.sites[last].name, run)]
