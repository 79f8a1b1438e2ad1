"""timm's ``Eva``: EVA, EVA-02, DINOv3, the Perception Encoders, Sapiens2, with rotary positions or without."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.positions import fitting_grid
from repshift.backbones.rotary import ROTARY, only_keys
from repshift.backbones.vit import BOTH, block_site, mask_of
from repshift.calls import positional_names
from repshift.errors import UnsupportedModelError
from repshift.images import FixedGrid, Images, Resizing
from repshift.layouts import TokenSequence
from repshift.modules import has_class
from repshift.participants import own_class
from repshift.sites import Reading, Structure

READING = Reading(why="its last block turns queries and keys by their places, which is not computed in parts")


class Eva:
    """Models of :class:`timm.models.Eva`: prefix tokens first, then the patches in row order.

    Queries and keys of the patches are turned by a table of their places, which the blocks are given beside the tokens;
    so it travels with them. LayerScale is a parameter of the block, and what leaves it is behind that.
    """

    serves = "timm's EVA, EVA-02, DINOv3 and Perception Encoders"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the class by its name."""
        return has_class(model, "timm.models.eva.Eva")

    def structure(self, model: Any) -> Structure:
        """List the blocks, and what they are given beside the tokens."""
        embedding, pool, prefix = model.patch_embed, model.attn_pool, model.num_prefix_tokens
        fixed, grid = not model.dynamic_img_size, embedding.dynamic_feat_size
        tokens = grid.rows * grid.columns if isinstance(grid, FixedGrid) else embedding.num_patches if fixed else None
        pooled = pool is not None and "attn_mask" in positional_names(own_class(pool).forward)
        return Structure(
            sites=tuple(block_site(model, f"blocks.{n}", block, only_keys) for n, block in enumerate(model.blocks)),
            layout=TokenSequence(prefix),
            embedding="patch_embed",
            grid=grid,
            images=Images.of(embedding, fixed=fixed),
            grid_methods=("forward_intermediates",),
            tokens=tokens,
            companions=(mask_of(model, prefix), *([] if model.rope is None else [ROTARY])),
            bias="attn_mask",
            weighs="attn_pool" if pooled else "norm" if model.global_pool == "avg" and pool is None else None,
            weighs_bias="attn_mask" if pooled else None,
            counts_once=BOTH if model.global_pool == "avgmax" and pool is None else None,
            weighs_prefix=pooled,  # it pools prefix tokens, too
            restores=f"blocks.{len(model.blocks) - 1}",
            resizes=partial(_resizing, model),
            reading=READING,
        )


EVA = Eva()


def _resizing(model: Any, size: tuple[int, int]) -> Resizing:
    """Let a model of one size compute as timm's of any size do, which make both tables of positions anew."""
    from timm.layers import Format

    grid = FixedGrid(*fitting_grid(model.patch_embed, size))
    if model.dynamic_img_size:
        return Resizing("patch_embed", attributes={"patch_embed": {"dynamic_feat_size": grid}})
    if getattr(model.rope, "bands", model) is None:
        raise UnsupportedModelError(
            "This version of timm keeps the rotary table of this model for one size only, so input_size cannot be "
            "given. Build the model with dynamic_img_size=True, or with this size."
        )
    embedding = {"dynamic_feat_size": grid, "strict_img_size": False, "flatten": False, "output_fmt": Format.NHWC}
    attributes: dict[str, dict[str, Any]] = {"": {"dynamic_img_size": True}, "patch_embed": embedding}
    if model.rope is not None:
        attributes["rope"] = {"_use_cached_embed": False}
    return Resizing("patch_embed", model.patch_embed.img_size, attributes)
