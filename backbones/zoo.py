"""The embedded zoo: small models, trained on Cluttered MNIST, that ship with the package."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.checkpoints import load_weights, shipped_weights

# What timm needs to know to preprocess for a zoo model (`timm.data.resolve_model_data_config`). Mean and standard
# deviation are those of the training canvases.
CLUTTERED_MNIST = {
    "input_size": (3, 64, 64),
    "fixed_input_size": True,
    "num_classes": 10,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "mean": (0.084, 0.084, 0.084),
    "std": (0.193, 0.193, 0.193),
    "license": "cc-by-sa-3.0",
}


def tiny_vit(*, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build the embedded vision transformer: 256 patch tokens, a class token, 6 blocks of 48 channels, 3 heads.

    A convolutional stem of stride 4 replaces the patch embedding, because a plain one learns this task far slower
    (Xiao et al. 2021, "Early Convolutions Help Transformers See Better", arXiv 2106.14881).

    Args:
        pretrained: Load the shipped weights (Cluttered MNIST; see ``weights/tiny_vit.md``).
        **options: Passed on to :class:`timm.models.VisionTransformer`.
    """
    from timm.layers import to_2tuple
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    settings: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 1,
        "in_chans": 3,
        "num_classes": 10,
        "embed_dim": 48,
        "depth": 6,
        "num_heads": 3,
    } | options
    stem = ConvStem(in_chans=settings["in_chans"], depth=3, channels=(16, 32, 48), stride=(2, 2, 1))
    model: nn.Module = VisionTransformer(**({"embed_layer": partial(HybridEmbed, backbone=stem)} | settings))
    rows, columns = to_2tuple(settings["img_size"])
    model.pretrained_cfg = {  # type: ignore[assignment]
        **CLUTTERED_MNIST,
        "architecture": "tiny_vit",
        "input_size": (settings["in_chans"], rows, columns),
        "num_classes": settings["num_classes"],
    }
    if pretrained:
        load_weights(model, shipped_weights("tiny_vit"))
    return model
