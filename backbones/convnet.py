"""Other plain convolutional networks of timm: ConvNeXt, RegNet, ResNetV2, MambaOut, EfficientNet, MobileNetV3."""

from __future__ import annotations

from torch import nn

from repshift.backbones.stages import Stage, shortcut, staged
from repshift.modules import has_class
from repshift.sites import Structure

DOWNSAMPLED = ("timm.models.convnext.ConvNeXt", "timm.models.mambaout.MambaOut")
PRE_ACTIVATION = ("timm.models.resnetv2.ResNetV2",)
REGULAR = ("timm.models.regnet.RegNet",)
INVERTED = ("timm.models.efficientnet.EfficientNet", "timm.models.mobilenetv3.MobileNetV3")


class ConvNet:
    """Networks whose stages end in maps that any size will do for.

    The stage's input is brought to its output's size by what the network itself has for it: the first shortcut
    (RegNet, ResNetV2), the layer between the stages (ConvNeXt, MambaOut), or the first block, where that has no
    shortcut because it changes the size (EfficientNet, MobileNetV3; a stage of one such block has nothing to compare).
    """

    def matches(self, model: nn.Module) -> bool:
        """Recognise the classes by their names, so that timm need not be imported for other models."""
        return has_class(model, *DOWNSAMPLED, *PRE_ACTIVATION, *REGULAR, *INVERTED)

    def structure(self, model: nn.Module) -> Structure:
        """List the stages."""
        if has_class(model, *REGULAR):
            names = [name for name, _ in model.named_children() if name[:1] == "s" and name[1:].isdigit()]
            return staged(model, [_first_shortcut(model, name, name) for name in names], embedding="stem")
        if has_class(model, *INVERTED):
            return staged(model, [_inverted(model, name) for name in _children(model, "blocks")], "conv_stem")
        names = _children(model, "stages")
        if has_class(model, *PRE_ACTIVATION):
            return staged(model, [_first_shortcut(model, name, f"{name}.blocks") for name in names], "stem")
        channels_last = has_class(model, "timm.models.mambaout.MambaOut")
        return staged(model, [_downsampled(model, name) for name in names], "stem", channels_last)


CONVNET = ConvNet()


def _children(model: nn.Module, name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{child}" for child, _ in model.get_submodule(name).named_children())


def _first_shortcut(model: nn.Module, name: str, container: str) -> Stage:
    blocks = _children(model, container)
    return Stage(name, units=blocks, blocks=blocks, start=shortcut(model, blocks[0]))


def _downsampled(model: nn.Module, name: str) -> Stage:
    blocks = _children(model, f"{name}.blocks")
    return Stage(name, units=(f"{name}.downsample", *blocks), blocks=blocks, start=f"{name}.downsample")


def _inverted(model: nn.Module, name: str) -> Stage:
    blocks = _children(model, name)
    if getattr(model.get_submodule(blocks[0]), "has_skip", False):
        return Stage(name, units=blocks, blocks=blocks)
    reason = "its only block changes the map's size or channels and has no shortcut" if len(blocks) == 1 else None
    return Stage(name, units=blocks, blocks=blocks, start=blocks[0], absent=reason)
