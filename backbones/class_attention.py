"""timm's models whose class token reads the patches by an attention of its own: CaiT, CrossViT."""

from __future__ import annotations

from typing import Any

from repshift.attention_scores import Heads
from repshift.images import FixedGrid, Images
from repshift.layouts import TokenSequence
from repshift.modules import has_class
from repshift.sites import Operation, Site, Structure

CROSS = "timm.models.crossvit.CrossVit"
ONCE = "its class attention takes no mask"
NO_HEADS = "it mixes the logits of its heads, which queries and keys do not show"


class ClassAttention:
    """CaiT, whose class token joins behind the blocks, and CrossViT, whose branches read one another by theirs.

    CrossViT loses tokens of its last branch, which has most of the blocks; those of the others stay.
    """

    serves = "those with class attention (CaiT, CrossViT)"

    def matches(self, model: Any) -> bool:
        """Recognise the classes by name, so that timm need not be imported for other models."""
        return has_class(model, "timm.models.cait.Cait", CROSS)

    def structure(self, model: Any) -> Structure:
        """List the blocks that attend to all patches."""
        return _crossvit(model) if has_class(model, CROSS) else _cait(model)


CLASS_ATTENTION = ClassAttention()


def _cait(model: Any) -> Structure:
    names = [f"blocks.{number}" for number in range(len(model.blocks))]
    embedding = model.patch_embed
    return Structure(
        sites=tuple(map(_scaled, names)),
        layout=TokenSequence(),
        embedding="patch_embed",
        grid=embedding.dynamic_feat_size,
        tokens=embedding.num_patches,
        images=Images.of(embedding, fixed=True),
        grid_methods=("forward_intermediates",),
        counts_once=ONCE,
        restores=names[-1],
    )


def _scaled(name: str) -> Site:
    # one drop-path serves both branches, and what scales them is no module
    attn = Operation(f"{name}.norm1", (f"{name}.attn",), scaled_by=f"{name}.gamma_1")
    mlp = Operation(f"{name}.norm2", (f"{name}.mlp",), scaled_by=f"{name}.gamma_2")
    whole = Operation(name, (name,), on_stream=True)
    return Site(name, {"attn": attn, "mlp": mlp, "block": whole}, absent={"heads": NO_HEADS})


def _crossvit(model: Any) -> Structure:
    branch = model.num_branches - 1
    sites = []
    for number, scales in enumerate(model.blocks):
        for place, block in enumerate(scales.blocks[branch]):
            name = f"blocks.{number}.blocks.{branch}.{place}"
            attn = Operation(f"{name}.norm1", (f"{name}.drop_path1",))
            mlp = Operation(f"{name}.norm2", (f"{name}.drop_path2",))
            whole = Operation(name, (name,), on_stream=True)
            heads = Heads(f"{name}.attn.q_norm", f"{name}.attn.k_norm", block.attn.scale, 1, class_token=True)
            sites.append(Site(name, {"attn": attn, "mlp": mlp, "block": whole}, heads=heads))
    embedding = model.patch_embed[branch]
    patch = [size // side for size, side in zip(embedding.img_size, embedding.patch_size, strict=True)]
    return Structure(
        sites=tuple(sites),
        layout=TokenSequence(1),
        embedding=f"patch_embed.{branch}",
        grid=FixedGrid(*patch),  # the model resizes images for each branch
        tokens=embedding.num_patches,
        images=Images.of(embedding, fixed=True),
        counts_once=ONCE,
        restores=sites[-1].name,
    )
