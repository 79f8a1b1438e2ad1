"""The plain vision transformers of timm: ``vision_transformer``, DeiT, DeiT-3, DINOv2, and the hybrids on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from repshift.attention_scores import Heads
from repshift.backbones.positions import fitting_grid, resampled_table
from repshift.backbones.vit_reading import reading_of
from repshift.calls import positional_names
from repshift.companions import Companion
from repshift.errors import UnsupportedModelError
from repshift.images import FixedGrid, Images, Resizing
from repshift.layouts import TokenSequence
from repshift.modules import children, has_class
from repshift.participants import own_class
from repshift.sites import Operation, Site, Structure

PARALLEL = "it has several attentions side by side"
OTHER = "its attention is of a kind whose queries and keys are not known"
BOTH = "its head takes the average and the largest of the tokens (global_pool='avgmax')"
JOINT = "its attention and MLP share one branch with one residual, so neither has a change of its own"


class VisionTransformer:
    """Models built on :class:`timm.models.VisionTransformer`: prefix tokens first, then the patches in row order.

    Positions are added before the blocks and nothing behind them counts tokens, so any token can go: class token,
    distillation token, registers, none of them; average, map or token pooling; LayerScale, post-norm, parallel
    branches.
    """

    serves = "timm's plain vision transformers"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the class by its name, so that timm need not be imported for other models."""
        return has_class(model, "timm.models.vision_transformer.VisionTransformer")

    def structure(self, model: Any) -> Structure:
        """List the blocks and where their operations can be watched.

        Raises:
            UnsupportedModelError: If a block is of a kind that is not known here.
        """
        embedding, prefix = model.patch_embed, model.num_prefix_tokens
        # without a table of positions, or with one that is resized, images of any size are welcome
        fixed = not model.dynamic_img_size and model.pos_embed is not None
        # all blocks take a mask, or none is told of it
        masked = all("attn_mask" in positional_names(own_class(block).forward) for block in model.blocks)
        # images of any size may all be resized to one
        grid = embedding.dynamic_feat_size
        tokens = embedding.num_patches if fixed else grid.rows * grid.columns if isinstance(grid, FixedGrid) else None
        pool = model.attn_pool
        pooled = pool is not None and "attn_mask" in positional_names(own_class(pool).forward)
        return Structure(
            sites=tuple(block_site(model, f"blocks.{index}", block) for index, block in enumerate(model.blocks)),
            layout=TokenSequence(prefix),
            embedding="patch_embed",
            grid=grid,
            images=Images.of(embedding, fixed=fixed),
            grid_methods=("forward_intermediates", "get_intermediate_layers"),
            tokens=tokens,
            companions=(mask_of(model, prefix),) if masked else (),
            bias="attn_mask" if masked else None,
            # the head averages what the last norm returns, or pools it by attention
            weighs="attn_pool" if pooled else "norm" if model.global_pool == "avg" and pool is None else None,
            weighs_bias="attn_mask" if pooled else None,
            counts_once=BOTH if model.global_pool == "avgmax" and pool is None else None,
            weighs_prefix=bool(getattr(model, "pool_include_prefix", False)),
            restores=f"blocks.{len(model.blocks) - 1}",
            resizes=partial(_resizing, model),
            reading=reading_of(model),
        )


VIT = VisionTransformer()


def _resizing(model: Any, size: tuple[int, int]) -> Resizing:
    """Say how a model takes images of another size; it resamples a table of positions itself if its size is dynamic."""
    embedding, table = model.patch_embed, model.pos_embed
    rows, columns = fitting_grid(embedding, size)
    attributes: dict[str, Any] = {"dynamic_feat_size": FixedGrid(rows, columns)}
    if model.dynamic_img_size:
        return Resizing("patch_embed", attributes={"patch_embed": attributes})
    attributes |= {"img_size": size, "grid_size": (rows, columns), "num_patches": rows * columns}
    if table is None:
        return Resizing("patch_embed", embedding.img_size, {"patch_embed": attributes})
    prefix = table.shape[1] - embedding.num_patches
    resample = partial(resampled_table, grid=(rows, columns), old_grid=tuple(embedding.grid_size), prefix=prefix)
    return Resizing("patch_embed", embedding.img_size, {"patch_embed": attributes}, {"pos_embed": resample})


def mask_of(model: Any, prefix: int) -> Companion:
    """Describe the attention mask that the blocks may be given."""
    heads = {getattr(getattr(block, "attn", None), "num_heads", None) for block in model.blocks}
    sizes: dict[str, Any] = {"heads": heads.pop()} if len(heads) == 1 and None not in heads else {}
    return Companion("attn_mask", "batch heads token token", prefix, optional=True, sizes=sizes)


def block_site(
    model: Any, name: str, block: nn.Module, heads_of: Callable[[Any, str, Any], Heads | None] | None = None
) -> Site:
    """Describe a block of timm's, by the modules it has.

    Args:
        model: Holds the block.
        name: Of the block.
        block: The block.
        heads_of: Says of the model, and of name and module of its attention, where queries and keys can be watched; by
            default as in timm's plain attention.

    Raises:
        UnsupportedModelError: If it is of a kind that is not known here.
    """
    whole = Operation(name, (name,), on_stream=True)
    parts = children(block)
    if "attns" in parts and "ffns" in parts:  # ParallelThingsBlock: several branches of each kind, added up
        operations = {"attn": _parallel(name, "attns", block), "mlp": _parallel(name, "ffns", block), "block": whole}
        return Site(name, operations, absent={"heads": PARALLEL})
    if "in_proj" in parts:  # ParallelScalingBlock, DiffParallelScalingBlock
        return Site(name, {"block": whole}, absent={"attn": JOINT, "mlp": JOINT, "heads": OTHER})
    if {"attn", "mlp", "norm1", "norm2", "drop_path1", "drop_path2"} <= parts.keys():
        # F is what is added to the stream, so it ends behind LayerScale, post-norm and drop-path; it starts at the
        # stream, which is where the norm stands before the branch, unless the norm stands behind it (ResPostBlock,
        # EvaBlockPostNorm); of a pruned model the block's own class is a generated one, which inherits from this
        post_norm = any(cls.__name__.startswith(("ResPost", "EvaBlockPostNorm")) for cls in type(block).__mro__)
        attn = Operation(f"{name}.{'attn' if post_norm else 'norm1'}", (f"{name}.drop_path1",))
        mlp = Operation(f"{name}.{'mlp' if post_norm else 'norm2'}", (f"{name}.drop_path2",))
        heads = (heads_of or _heads)(model, f"{name}.attn", block.get_submodule("attn"))
        return Site(name, {"attn": attn, "mlp": mlp, "block": whole}, absent={"heads": OTHER}, heads=heads)
    raise UnsupportedModelError(
        f"{name} is of the class {type(block).__name__}, whose order of attention, MLP and residuals is not known. "
        "Track it by module names: ShiftTracker(model, sites='blocks.*')."
    )


def _heads(model: Any, name: str, attention: Any) -> Heads | None:
    """Say where queries and keys leave timm's plain attention: behind their norms, which are there if only in name."""
    if not has_class(attention, "timm.layers.attention.Attention", "timm.models.vision_transformer.Attention"):
        return None
    class_token = getattr(model, "cls_token", None) is not None
    return Heads(f"{name}.q_norm", f"{name}.k_norm", attention.scale, model.num_prefix_tokens, class_token)


def _parallel(name: str, kind: str, block: nn.Module) -> Operation:
    count = len(children(block.get_submodule(kind)))
    # not the Sequential around a branch: with an attention mask its parts are called one by one
    leaves = tuple(f"{name}.{kind}.{index}.drop_path" for index in range(count))
    return Operation(f"{name}.{kind}.0.norm", leaves)
