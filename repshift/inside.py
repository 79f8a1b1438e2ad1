"""Cutting inside a block, between its attention and its MLP, without touching how the block computes.

The block adds what its MLP yields to the stream, ``x' + F(x')``. The MLP is given the shorter ``x'``, so that ``F`` has
as many tokens; the sum is made here, the block adds a zero to its own ``x'``, and what it returns is exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from repshift.calls import Call
from repshift.errors import RepresentationError, UnsupportedModelError
from repshift.layouts import first_tensor, with_first_tensor
from repshift.measuring import OfBlock
from repshift.pruners import Pruner
from repshift.roles import Cut
from repshift.sites import Operation, Site


@dataclass(frozen=True)
class CutInside(Cut):
    """Shortens what enters the MLP of a block; the block itself plays it, and returns what was made of that.

    Attributes:
        adds: Name of the module whose output the block adds to the stream.
    """

    adds: str = ""

    def leave(self, output: Any) -> Any:
        """Return the stream with what the MLP added.

        Raises:
            RepresentationError: If the block ends without it.
        """
        stream = self.streams.own
        if stream.beyond is None:
            raise RepresentationError(
                f"{self.block!r} ended without running its MLP, in front of which tokens go. Its forward does not call "
                "the modules it is described by; choose a pruner that works behind the block, such as 'mnn'."
            )
        whole = with_first_tensor(output, stream.beyond)
        for listener in stream.heard_by():
            listener.returned(self.block, whole)
        return whole


@dataclass(frozen=True)
class Shorten(OfBlock):
    """Gives the MLP only what is left of the tokens."""

    cut: CutInside

    def enter(self, call: Call) -> Call:
        """Cut."""
        stream = self.running()
        if stream is None:
            return call
        left = self.cut.shorten(call.first, returned=False)
        stream.halfway = first_tensor(left)
        return call.with_first(left)


@dataclass(frozen=True)
class AddAside(OfBlock):
    """Adds what the MLP yields to what is left of the stream, and gives the block nothing to add."""

    adds: str

    def leave(self, output: Any) -> Any:
        """Add."""
        stream = self.running()
        if stream is None or stream.halfway is None:
            return output
        branch: Tensor = first_tensor(output)
        stream.beyond, stream.halfway = stream.halfway + branch, None
        for listener in stream.heard_by():
            listener.returned(self.adds, output)
        return with_first_tensor(output, branch.new_zeros(1, 1, 1))


def mlp_behind_attention(site: Site) -> Operation | None:
    """Return the MLP of a block if tokens can go in front of it: it is one branch on the stream, behind attention."""
    mlp = site.operations.get("mlp")
    if mlp is None or "attn" not in site.operations or len(mlp.leaves) != 1:
        return None
    plain = not (mlp.on_stream or mlp.from_output or mlp.before or mlp.after or mlp.scaled_by) and mlp.summed
    return mlp if plain else None


def require_mlp_behind_attention(site: Site, pruner: Pruner, operation: str | None) -> Operation:
    """Return the MLP of a block in front of which tokens go.

    Args:
        site: The block.
        pruner: Chooses there.
        operation: Whose change is scored; ``None`` if none is.

    Raises:
        UnsupportedModelError: If the block has none of that kind, or the operation is not over by then.
    """
    mlp, name = mlp_behind_attention(site), type(pruner).__name__
    if mlp is None:
        has = site.operations.get("mlp")
        scaled = "what its MLP yields is multiplied by a parameter outside of any module"
        why = scaled if has and has.scaled_by else "it has no MLP of one branch behind its attention"
        why = site.absent.get("mlp", why)
        raise UnsupportedModelError(
            f"{name} works between attention and MLP, which {site.name} does not allow: {why}. Choose a pruner "
            "that works behind the block, such as 'mnn' or 'merge'."
        )
    if operation not in (None, "attn"):
        raise UnsupportedModelError(
            f"{name} works between attention and MLP, where the change by {operation!r} is not known yet. Leave "
            "operation out, or give operation='attn'."
        )
    return mlp
