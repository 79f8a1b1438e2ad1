"""timm's transformers over maps that lose lines: XCiT, whose blocks convolve too, and VOLO behind its outlookers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repshift.errors import UnsupportedModelError
from repshift.images import Images
from repshift.layouts import FeatureMap, Layout, UnrolledMap
from repshift.modules import children, has_class
from repshift.sites import Operation, Site, Structure

VOLO = "timm.models.volo.VOLO"
NO_HEADS = {"heads": "its attention is of a kind whose queries and keys are not known"}


class Lined:
    """Models whose blocks take maps of any number of rows and columns, and whose class token joins behind them."""

    serves = "XCiT and VOLO by lines"

    def matches(self, model: Any) -> bool:
        """Recognise the classes by name, so that timm need not be imported for other models."""
        return has_class(model, VOLO, "timm.models.xcit.Xcit")

    def structure(self, model: Any) -> Structure:
        """List the blocks.

        Raises:
            UnsupportedModelError: If no block is left behind what needs the whole grid.
        """
        return _volo(model) if has_class(model, VOLO) else _xcit(model)


LINED = Lined()


@dataclass(frozen=True)
class _Halved:
    """The grid behind convolutions of stride 2 that round odd sides up."""

    patch: int

    def __call__(self, image: tuple[int, int]) -> tuple[int, int]:
        return -(-image[0] // self.patch), -(-image[1] // self.patch)


def _xcit(model: Any) -> Structure:
    return Structure(
        sites=tuple(_site(f"blocks.{number}", {"local": 3}, UnrolledMap()) for number in range(len(model.blocks))),
        layout=UnrolledMap(),
        embedding="patch_embed",
        grid=_Halved(model.patch_embed.patch_size),
        tokens=None,
        pruner="lines",
        grid_methods=("forward_intermediates",),  # which lays what the blocks return out as if no line had gone
        sides=("H", "W"),
        images=Images.of(model.patch_embed),
    )


def _volo(model: Any) -> Structure:
    # positions are added in front of the third part, and parts without blocks change the size of the map
    parts = list(model.network)
    bare = [number for number, part in enumerate(parts) if "0" not in children(part)]
    behind = range(max([1, *bare]) + 1, len(parts))
    names = [f"network.{number}.{block}" for number in behind for block in range(len(parts[number]))]
    if not names:
        raise UnsupportedModelError("This VOLO has no block behind its outlookers. Track it by module names.")
    return Structure(
        sites=tuple(_site(name, {}) for name in names),
        layout=FeatureMap(channels_last=True),
        embedding="patch_embed",
        grid=None,
        tokens=None,
        pruner="lines",
        images=Images.of(model.patch_embed, fixed=True),
    )


def _site(name: str, more: dict[str, int], held: Layout | None = None) -> Site:
    # a layout of the operation's own says that nothing can be cut inside the block, where it is not laid out
    branches = {"attn": 1, "mlp": 2, **more}
    operations = {
        branch: Operation(f"{name}.norm{number}", (f"{name}.drop_path{number}",), before=held)
        for branch, number in branches.items()
    }
    return Site(name, {**operations, "block": Operation(name, (name,), on_stream=True)}, absent=NO_HEADS)
