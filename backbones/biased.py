"""timm's vision transformers with a bias of relative positions in attention: BEiT, BEiT v2, and ``relpos``."""

from __future__ import annotations

from typing import Any

from repshift.calls import positional_names
from repshift.companions import Built, Companion
from repshift.errors import UnsupportedModelError
from repshift.images import Images
from repshift.layouts import TokenSequence
from repshift.modules import children, has_class
from repshift.participants import own_class
from repshift.sites import Operation, Site, Structure

NO_HEADS = "its attention adds a bias of positions that queries and keys do not show"
LOGITS = "batch heads token token"


class Biased:
    """Models whose attention adds a bias that is built for all pairs of tokens; it follows the tokens that are left.

    It is built inside every block (most of them), or once in front of the blocks, which are given it.
    """

    serves = "those with a bias of relative positions (BEiT, relpos)"

    def matches(self, model: Any) -> bool:
        """Recognise the classes by name, so that timm need not be imported for other models."""
        return has_class(
            model, "timm.models.beit.Beit", "timm.models.vision_transformer_relpos.VisionTransformerRelPos"
        )

    def structure(self, model: Any) -> Structure:
        """List the blocks, and where each builds its bias.

        Raises:
            UnsupportedModelError: If a block is of a kind that is not known here.
        """
        embedding, prefix = model.patch_embed, model.num_prefix_tokens
        names = [f"blocks.{number}" for number in range(len(model.blocks))]
        # BEiT adds the shared bias to that of each block; relpos has one of both
        shared = positional_names(own_class(model.blocks[0]).forward)[2]
        beit = shared == "shared_rel_pos_bias"
        built = (_built(name, block.attn, prefix, beit) for name, block in zip(names, model.blocks, strict=True))
        inside = tuple(each for each in built if each is not None)
        is_shared = (model.rel_pos_bias if beit else model.shared_rel_pos) is not None
        return Structure(
            sites=tuple(_site(name, block) for name, block in zip(names, model.blocks, strict=True)),
            layout=TokenSequence(prefix),
            embedding="patch_embed",
            grid=embedding.dynamic_feat_size,
            tokens=embedding.num_patches,
            images=Images.of(embedding, fixed=True),
            grid_methods=("forward_intermediates",),
            companions=(Companion(shared, LOGITS, prefix, optional=not is_shared),),
            built=inside,
            bias=shared if beit or not inside else None,
            weighs="norm" if model.global_pool == "avg" else None,
            restores=names[-1],
        )


BIASED = Biased()


def _built(name: str, attention: Any, prefix: int, beit: bool) -> Built | None:
    if beit:
        made = Built(f"{name}.attn", Companion("_get_rel_pos_bias", LOGITS, prefix))
        return made if attention.relative_position_bias_table is not None else None
    made = Built(f"{name}.attn.rel_pos", Companion("get_bias", LOGITS, prefix), is_bias=True)
    return made if attention.rel_pos is not None else None


def _site(name: str, block: Any) -> Site:
    if not {"attn", "mlp", "norm1", "norm2", "drop_path1", "drop_path2"} <= children(block).keys():
        raise UnsupportedModelError(
            f"{name} is of the class {type(block).__name__}, whose order of attention, MLP and residuals is not known. "
            "Track it by module names: ShiftTracker(model, sites='blocks.*')."
        )
    post_norm = any(cls.__name__.startswith("ResPost") for cls in type(block).__mro__)
    attn = Operation(f"{name}.{'attn' if post_norm else 'norm1'}", (f"{name}.drop_path1",))
    mlp = Operation(f"{name}.{'mlp' if post_norm else 'norm2'}", (f"{name}.drop_path2",))
    whole = Operation(name, (name,), on_stream=True)
    return Site(name, {"attn": attn, "mlp": mlp, "block": whole}, absent={"heads": NO_HEADS})
