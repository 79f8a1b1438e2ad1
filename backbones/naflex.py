"""timm's ``NaFlexVit``: images of any proportions, as images or as patches that were cut before and padded."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.positions import fitting_grid
from repshift.backbones.rotary import ROTARY, only_keys
from repshift.backbones.vit import BOTH, block_site
from repshift.companions import Companion
from repshift.images import FixedGrid, Images, Resizing
from repshift.layouts import TokenSequence
from repshift.modules import has_class
from repshift.sites import Structure

PADDED = "its attention may be told of padding, or of places, which queries and keys do not show"


class NaFlexVit:
    """Models of :class:`timm.models.NaFlexVit`.

    They take images, or a dictionary of ``patches``, ``patch_coord`` and ``patch_valid``: patches of images of several
    sizes, padded to as many for each. What is padded is a token of size 0 by the mask that the model makes of
    ``patch_valid``; and ``patch_valid`` itself is shortened where ``forward_features`` hands it to the head.
    """

    serves = "timm's NaFlexViT"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the class by its name."""
        return has_class(model, "timm.models.naflexvit.NaFlexVit")

    def structure(self, model: Any) -> Structure:
        """List the blocks, and what they are given beside the tokens."""
        heads = partial(only_keys, why=PADDED)
        prefix, pooled = model.num_prefix_tokens, model.attn_pool is not None
        grid = model.embeds.dynamic_feat_size
        mask = Companion("attn_mask", "batch heads token token", prefix, optional=True, padding=True)
        return Structure(
            sites=tuple(block_site(model, f"blocks.{n}", block, heads) for n, block in enumerate(model.blocks)),
            layout=TokenSequence(prefix),
            embedding="embeds",
            grid=grid,
            images=Images.of(model.embeds),
            grid_methods=("forward_intermediates",),
            tokens=grid.rows * grid.columns if isinstance(grid, FixedGrid) else None,
            companions=(mask, *([] if model.rope is None else [ROTARY])),
            bias="attn_mask",
            weighs="attn_pool" if pooled else "norm" if model.global_pool == "avg" else None,
            weighs_bias="attn_mask" if pooled else None,
            counts_once=BOTH if model.global_pool == "avgmax" and not pooled else None,
            weighs_prefix=model.pool_include_prefix,
            weighs_present=True,
            answers={"forward_features": Companion("patch_valid", "batch token", padding=True)},
            restores=f"blocks.{len(model.blocks) - 1}",
            resizes=partial(_resizing, model),
        )


NAFLEX = NaFlexVit()


def _resizing(model: Any, size: tuple[int, int]) -> Resizing:
    grid = FixedGrid(*fitting_grid(model.embeds, size))
    return Resizing("embeds", attributes={"embeds": {"dynamic_feat_size": grid}})
