"""The vision encoders of language models in timm: Qwen3-VL, DeepSeek-V4, Gemma 4, and the classifiers on them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.rotary import ROTARY, only_keys
from repshift.backbones.vit import block_site
from repshift.calls import positional_names
from repshift.companions import Companion
from repshift.errors import UnsupportedModelError
from repshift.images import FixedGrid, Images, Resizing
from repshift.layouts import TokenSequence
from repshift.modules import has_class
from repshift.participants import own_class
from repshift.sites import Operation, Site, Structure

GEMMA = "timm.models.gemma4_vit.Gemma4VitEncoder"
ENCODERS = ("timm.models.qwen3_vit.Qwen3VitEncoder", "timm.models.deepseek_vit.DeepseekVitEncoder", GEMMA)
LAID_OUT = "they are laid out on rows and columns behind the blocks"
BINNED = "they are pooled by their places behind the blocks"
LATE = "its queries and keys stand in another order where they can be watched"


class RotaryEncoder:
    """Encoders with rotary tables; behind their blocks the grid is pooled or laid out, so all tokens must be back."""

    serves = "timm's encoders of Qwen3-VL, DeepSeek-V4 and Gemma 4 (with restore=True)"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the classes by their names; classifiers hold an encoder."""
        return has_class(model, *ENCODERS)

    def structure(self, model: Any) -> Structure:
        """List the blocks, and what they are given beside the tokens."""
        embedding, names = model.patch_embed, [f"blocks.{number}" for number in range(len(model.blocks))]
        if has_class(model, GEMMA):
            tables = [Companion(name, "batch token channels") for name in ("rope_cos", "rope_sin")]
            mask = Companion("attn_mask", "batch heads queries token", optional=True, padding=True)
            sites, companions, needs = [_sandwich(name) for name in names], (mask, *tables), BINNED
        else:
            sites = [block_site(model, name, model.get_submodule(name), only_keys) for name in names]
            companions, needs = (ROTARY,), LAID_OUT
        grid = getattr(embedding, "dynamic_feat_size", partial(_grid, patch=tuple(embedding.patch_size)))
        return Structure(
            sites=tuple(sites),
            layout=TokenSequence(),
            embedding="patch_embed",
            grid=grid,
            images=Images.of(embedding),
            grid_methods=("forward_intermediates",),
            tokens=grid.rows * grid.columns if isinstance(grid, FixedGrid) else None,
            companions=companions,
            bias="attn_mask" if "attn_mask" in positional_names(own_class(model.blocks[0]).forward) else None,
            restores=names[-1],
            needs_all=needs,
            resizes=partial(_resizing, model),
        )


ROTARY_VLM = RotaryEncoder()


def _grid(image: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    return image[0] // patch[0], image[1] // patch[1]


def _sandwich(name: str) -> Site:
    """Describe Gemma's block: a norm before each branch and one behind it, and one drop path for both."""
    attn, mlp = (Operation(f"{name}.norm{n}", (f"{name}.norm{n + 1}",)) for n in (1, 3))
    whole = Operation(name, (name,), on_stream=True)
    return Site(name, {"attn": attn, "mlp": mlp, "block": whole}, absent={"heads": LATE})


def _resizing(model: Any, size: tuple[int, int]) -> Resizing:
    sides = {"merge": "merge_size", "soft": "pooling_kernel_size"}  # DeepSeek's aligner fills up what is missing
    side = getattr(model, sides.get(model.global_pool, ""), 1)
    rows, columns = (side * length for length in model.patch_embed.patch_size)
    if size[0] % rows or size[1] % columns:
        raise UnsupportedModelError(
            f"input_size {size[0]}x{size[1]} does not come to whole patches of {rows}x{columns} pixels, as they are "
            f"pooled. Give multiples, such as input_size={(8 * rows, 8 * columns)}."
        )
    grid = FixedGrid(*_grid(size, model.patch_embed.patch_size))
    return Resizing("patch_embed", attributes={"patch_embed": {"dynamic_feat_size": grid}})
