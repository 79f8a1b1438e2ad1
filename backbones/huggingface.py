"""Image towers of Hugging Face transformers, alone and in what holds them; :mod:`.huggingface_towers` lists them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.huggingface_blocks import grid_of, prefix_of, site_of, why_no_bias
from repshift.backbones.huggingface_folder import save_with_recipe
from repshift.backbones.huggingface_names import blocks_of
from repshift.backbones.huggingface_towers import HOLDERS, POOLED, REFUSED, TOWERS, Holder, Tower, named
from repshift.calls import positional_names
from repshift.companions import Built, Companion
from repshift.errors import UnsupportedModelError
from repshift.images import Images
from repshift.layouts import TokenSequence
from repshift.participants import own_class
from repshift.sites import Structure

LOGITS = "batch heads token token"


class HuggingFaceTower:
    """Models of transformers whose blocks are pre-norm transformer blocks behind one embedding of the image.

    Blocks and embedding are found by their classes, since their names differ between versions. Class tokens and
    registers stand in front. Of a model of images and text the text tower is left alone.
    """

    serves = "transformers' image towers (ViT, DeiT, DINOv2, DINOv3, BEiT, CLIP, SigLIP, ViT-MAE and models like these)"

    def matches(self, model: nn.Module) -> bool:
        """Recognise towers, and what holds them where that matters, by the full names of their classes."""
        return any(named(model, table) is not None for table in (TOWERS, HOLDERS, REFUSED))

    def structure(self, model: Any) -> Structure:
        """Find the tower and describe it.

        Raises:
            UnsupportedModelError: If what holds it needs tokens where they were, or a block is of a kind unknown here.
        """
        if why := named(model, REFUSED):
            raise UnsupportedModelError(f"{own_class(model).__name__} cannot be pruned: {why}.")
        found = ((name, module, named(module, TOWERS)) for name, module in model.named_modules())
        # the innermost: older versions hold a tower in another one of its name
        *_, (prefix, inside, tower) = ((name, module, tower) for name, module, tower in found if tower is not None)
        described = _described(inside, tower, named(model, HOLDERS) or Holder())
        return described.within(prefix) if prefix else described


HUGGINGFACE = HuggingFaceTower()


def _described(model: Any, tower: Tower, holder: Holder) -> Structure:
    inside = dict(model.named_modules())
    blocks, place = blocks_of(model, tower.block), blocks_of(model, tower.embedding)[0]
    prefix = prefix_of(inside[place])
    mask = Companion("attention_mask", LOGITS, prefix, not tower.padded, tower.padded)
    table = Companion("forward", LOGITS, prefix)
    taken = positional_names(own_class(inside[blocks[0]]).forward)
    masks = (mask,) if "attention_mask" in taken else ()
    weighs = blocks[-1] if holder.weighs == "last block" else holder.weighs or tower.weighs
    return Structure(
        sites=tuple(site_of(name, inside[name]) for name in blocks),
        layout=TokenSequence(prefix),
        embedding=place,
        grid=grid_of(inside[place]) if tower.gridded else None,
        images=Images.of(inside[place]) if tower.gridded else None,
        tokens=None,  # positions are interpolated for images of other sizes
        companions=(*masks, *(each for each in tower.companions if each.argument in taken)),
        built=tuple(
            Built(name, table, is_bias=not masks) for name in inside if tower.built and name.endswith(f".{tower.built}")
        ),
        bias="attention_mask" if masks else None,
        no_bias=partial(why_no_bias, model.config) if masks else None,
        weighs=weighs if weighs in inside else None,
        weighs_taken=tower.weighs_taken,
        weighs_bias="key_padding_mask" if weighs == POOLED else None,
        behind={name: companions for name, companions in tower.behind.items() if name in inside},
        restores=blocks[-1],
        needs_all=holder.needs_all,
        shows_all=bool(holder.needs_all),
        methods={"save_pretrained": save_with_recipe},
    )
