"""The embedded zoo: small models, trained on Cluttered MNIST, that ship with the package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from repshift.backbones.checkpoints import load_weights, shipped_weights

# What timm needs to know to preprocess for a zoo model (`timm.data.resolve_model_data_config`). Mean and standard
# deviation are those of the training canvases.
CLUTTERED_MNIST = {
    "input_size": (3, 64, 64),
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
    from timm.models import VisionTransformer

    settings: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 1,
        "in_chans": 3,
        "num_classes": 10,
        "embed_dim": 48,
        "depth": 6,
        "num_heads": 3,
    } | options
    embed_layer = _convolutional_embedding(settings["in_chans"], strides=(2, 2, 1))
    model: nn.Module = VisionTransformer(**({"embed_layer": embed_layer} | settings))
    return _finished("tiny_vit", model, settings, pretrained)


def tiny_resnet(*, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build the embedded residual network: four stages of two basic blocks, 32 x 32 positions of 16 channels at first.

    The stem halves the image once and does not pool, as is usual for small images, so that the first stages have lines
    to lose.

    Args:
        pretrained: Load the shipped weights (Cluttered MNIST; see ``weights/tiny_resnet.md``).
        **options: Passed on to :class:`timm.models.ResNet`.
    """
    from timm.models.resnet import BasicBlock, ResNet

    settings: dict[str, Any] = {
        "block": BasicBlock,
        "layers": (2, 2, 2, 2),
        "channels": (16, 32, 64, 128),
        "stem_type": "deep",
        "stem_width": 8,
        "in_chans": 3,
        "num_classes": 10,
    } | options
    model: Any = ResNet(**settings)
    model.maxpool = nn.Identity()
    return _finished("tiny_resnet", model, settings, pretrained)


def tiny_vim(*, pretrained: bool = False, **options: Any) -> nn.Module:
    """Build the embedded state space model: 64 patch tokens, a class token among them, 6 layers of 48 channels.

    A convolutional stem of stride 8 replaces the patch embedding, for the reason given in :func:`tiny_vit`.

    Args:
        pretrained: Load the shipped weights (Cluttered MNIST; see ``weights/tiny_vim.md``).
        **options: Passed on to :class:`repshift.backbones.vim_model.VisionMamba`.
    """
    from repshift.backbones.vim_model import VisionMamba

    settings: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 1,
        "in_chans": 3,
        "num_classes": 10,
        "embed_dim": 48,
        "depth": 6,
        "d_state": 8,
    } | options
    embed_layer = _convolutional_embedding(settings["in_chans"], strides=(2, 2, 2))
    model = VisionMamba(**({"embed_layer": embed_layer} | settings))
    return _finished("tiny_vim", model, settings, pretrained)


def _convolutional_embedding(in_chans: int, strides: tuple[int, int, int]) -> Callable[..., nn.Module]:
    """Make timm's convolutional stem of three layers the embedding of a model."""
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.models.vision_transformer_hybrid import ConvStem

    stem = ConvStem(in_chans=in_chans, depth=3, channels=(16, 32, 48), stride=strides)
    return partial(HybridEmbed, backbone=stem)


def _finished(name: str, model: nn.Module, settings: dict[str, Any], pretrained: bool) -> nn.Module:
    """Tell timm how to preprocess, and load the shipped weights if they are wanted."""
    from timm.layers import to_2tuple

    model.pretrained_cfg = {  # type: ignore[assignment]
        **CLUTTERED_MNIST,
        "architecture": name,
        "fixed_input_size": name != "tiny_resnet",  # a CNN takes any size as it is
        "input_size": (settings["in_chans"], *to_2tuple(settings.get("img_size", 64))),
        "num_classes": settings["num_classes"],
    }
    if pretrained:
        load_weights(model, shipped_weights(name))
    return model
