"""Video transformers of Hugging Face: VideoMAE, ViViT, V-JEPA 2."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.huggingface_blocks import site_of, why_no_bias
from repshift.backbones.huggingface_names import blocks_of, named, within_head
from repshift.backbones.positions import Tubelets
from repshift.companions import Companion
from repshift.images import Images
from repshift.layouts import TokenSequence
from repshift.modules import children, has_class
from repshift.sites import Structure

DECODER = "its decoder puts the tokens where bool_masked_pos says, which counts all of them"
PREDICTOR = "The predictor reads every token by its place (skip_predictor=True leaves it out)"
VIDEOMAE = "transformers.models.videomae.modeling_videomae.VideoMAEFor"
# by class: that of the blocks, what the names of those begin with, how many prefix tokens there are
FAMILIES = {
    "videomae.modeling_videomae.VideoMAEPreTrainedModel": ("VideoMAELayer", "", 0),
    "vivit.modeling_vivit.VivitPreTrainedModel": ("VivitLayer", "", 1),
    "vjepa2.modeling_vjepa2.VJEPA2PreTrainedModel": ("VJEPA2Layer", "encoder.", 0),
}
COMPANIONS = {
    "VivitLayer": (Companion("attention_mask", "batch heads token token", 1, optional=True),),
    "VJEPA2Layer": (Companion("position_mask", "token -> batch token", counted=True),),
}


class VideoTransformer:
    """VideoMAE, ViViT and V-JEPA 2, alone and with heads: tokens in the order of frames, rows and columns.

    Positions are added before the blocks. In V-JEPA 2 every block counts them for itself, and is told the places of the
    tokens that are left.
    """

    serves = "transformers' video models VideoMAE, ViViT and V-JEPA 2"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the families by the names of their classes."""
        return named(model, FAMILIES) is not None

    def structure(self, model: Any) -> Structure:
        """List the blocks and where their operations can be watched."""
        kind, under, prefix = named(model, FAMILIES) or ("", "", 0)
        described = within_head(model, partial(_described, kind=kind, under=under, prefix=prefix))
        if has_class(model, f"{VIDEOMAE}PreTraining"):
            return replace(described, needs_all=DECODER)
        if has_class(model, f"{VIDEOMAE}VideoClassification") and model.fc_norm is not None:
            return replace(described, weighs=described.sites[-1].name)  # whose output the head averages
        return described


VIDEO = VideoTransformer()


def _described(model: Any, kind: str, under: str, prefix: int) -> Structure:
    blocks = blocks_of(model, kind, under)
    embedding = f"{under}embeddings"
    first = next(module for module in model.get_submodule(embedding).modules() if isinstance(module, nn.Conv3d))
    patches: Any = getattr(model.get_submodule(embedding), "patch_embeddings", None)
    return Structure(
        sites=tuple(site_of(name, model.get_submodule(name)) for name in blocks),
        layout=TokenSequence(prefix),
        embedding=embedding,
        grid=Tubelets((first.stride[0], first.stride[1], first.stride[2])),
        # V-JEPA 2 takes videos of any length and size
        tokens=None if kind == "VJEPA2Layer" else patches.num_patches,
        images=Images(first.in_channels, frames=True),
        companions=COMPANIONS.get(kind, ()),
        bias="attention_mask" if kind == "VivitLayer" else None,
        no_bias=partial(why_no_bias, model.config) if kind == "VivitLayer" else None,
        restores=blocks[-1],
        reads_places={"predictor": PREDICTOR} if "predictor" in children(model) else {},
    )
