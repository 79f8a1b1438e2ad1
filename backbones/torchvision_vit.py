"""The vision transformers of torchvision: ViT-B, ViT-L and ViT-H."""

from __future__ import annotations

from typing import Any

from torch import nn

from repshift.images import FixedGrid, Images
from repshift.layouts import TokenSequence
from repshift.modules import children, has_class
from repshift.sites import Operation, Site, Structure

PACKED = "its attention packs queries, keys and values into one projection that is no module of its own"


class TorchvisionVisionTransformer:
    """Models built on :class:`torchvision.models.VisionTransformer`: a class token, then the patches in row order.

    Positions are added before the blocks, and the head reads the class token, so any patch can go. The blocks take no
    mask, so attention cannot be told how many places a merged token stands for.
    """

    serves = "torchvision's vision transformers"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the class by its name, so that torchvision need not be imported for other models."""
        return has_class(model, "torchvision.models.vision_transformer.VisionTransformer")

    def structure(self, model: Any) -> Structure:
        """List the blocks."""
        side = model.image_size // model.patch_size
        names = [f"encoder.layers.{child}" for child in children(model.encoder.layers)]
        return Structure(
            sites=tuple(_site(name) for name in names),
            layout=TokenSequence(prefix=1),
            embedding="conv_proj",
            grid=FixedGrid(side, side),
            tokens=side * side,
            images=Images.of(model.conv_proj),
            restores=names[-1],
        )


TORCHVISION_VIT = TorchvisionVisionTransformer()


def _site(name: str) -> Site:
    operations = {
        "attn": Operation(f"{name}.ln_1", (f"{name}.dropout",)),
        "mlp": Operation(f"{name}.ln_2", (f"{name}.mlp",)),
        "block": Operation(name, (name,), on_stream=True),
    }
    return Site(name, operations, absent={"heads": PACKED})
