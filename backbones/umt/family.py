"""What the engine needs to know of UMT's video encoder, alone and inside the models of whole tasks."""

from __future__ import annotations

from typing import Any

from torch import nn

from repshift.attention_scores import Heads
from repshift.backbones.positions import Tubelets
from repshift.companions import Companion
from repshift.images import Images
from repshift.layouts import TokenSequence
from repshift.modules import has_class
from repshift.sites import Operation, Site, Structure

HELD = Companion("held", "token -> batch token", holds=True)


class UnmaskedTeacher:
    """:class:`repshift.backbones.umt.vision.UMTVideoEncoder`: tokens in the order of frames, rows and columns.

    Positions are added before the blocks. Behind them the tokens of each frame are averaged, so the pooling is told
    which token stands for which places, and how much each counts.
    """

    serves = "UMT's video encoders"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the class by its name."""
        return has_class(model, "repshift.backbones.umt.vision.UMTVideoEncoder")

    def structure(self, model: Any) -> Structure:
        """List the blocks and where their operations can be watched."""
        sites = tuple(_site(f"encoder.blocks.{n}", block) for n, block in enumerate(model.encoder.blocks))
        patch = model.settings.patch
        return Structure(
            sites=sites,
            layout=TokenSequence(),
            embedding="encoder.patch_embed",
            grid=Tubelets((1, patch, patch)),
            tokens=None,  # videos of any length are welcome
            images=Images(model.encoder.patch_embed.proj.in_channels, frames=True),
            bias="bias",
            weighs="pooling",
            weighs_bias="bias",
            behind={"pooling": (HELD,)} if model.settings.keep_temporal else {},
            restores=sites[-1].name,
        )


UMT = UnmaskedTeacher()


def _site(name: str, block: Any) -> Site:
    operations = {
        "attn": Operation(f"{name}.norm1", (f"{name}.attn",)),
        "mlp": Operation(f"{name}.norm2", (f"{name}.mlp",)),
        "block": Operation(name, (name,), on_stream=True),
    }
    heads = Heads(f"{name}.attn.q_norm", f"{name}.attn.k_norm", block.attn.scale, prefix=0, class_token=False)
    return Site(name, operations, heads=heads)
