"""Other plain convolutional networks of timm: ConvNeXt, RegNet, ResNetV2, MambaOut, EfficientNet, MobileNetV3."""

from __future__ import annotations

from torch import nn

from repshift.backbones.stages import Stage, inside, residual_stage, staged
from repshift.modules import children, has_class
from repshift.sites import Structure

DOWNSAMPLED = ("timm.models.convnext.ConvNeXt", "timm.models.mambaout.MambaOut")
PRE_ACTIVATION = ("timm.models.resnetv2.ResNetV2",)
REGULAR = ("timm.models.regnet.RegNet",)
INVERTED = ("timm.models.efficientnet.EfficientNet", "timm.models.mobilenetv3.MobileNetV3")


class ConvNet:
    """Networks whose stages end in maps that any size will do for.

    The stage's input is brought to its output's size by what the network itself has for it: the first shortcut
    (RegNet, ResNetV2), the layer between the stages (ConvNeXt, MambaOut), or the blocks that have no shortcut because
    they change the size or the channels (EfficientNet, MobileNetV3, some RegNets; a stage that ends in such a block has
    nothing to compare with).
    """

    serves = "other plain convolutional networks of timm"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the classes by their names, so that timm need not be imported for other models."""
        return has_class(model, *DOWNSAMPLED, *PRE_ACTIVATION, *REGULAR, *INVERTED)

    def structure(self, model: nn.Module) -> Structure:
        """List the stages."""
        if has_class(model, *REGULAR):
            own = [name for name in children(model) if name[:1] == "s" and name[1:].isdigit()]
            return staged(model, [residual_stage(model, name) for name in own], embedding="stem")
        if has_class(model, *INVERTED):
            return staged(model, [residual_stage(model, name) for name in inside(model, "blocks")], "conv_stem")
        names = inside(model, "stages")
        if has_class(model, *PRE_ACTIVATION):
            return staged(model, [residual_stage(model, name, f"{name}.blocks") for name in names], "stem")
        channels_last = has_class(model, "timm.models.mambaout.MambaOut")
        return staged(model, [_downsampled(model, name) for name in names], "stem", channels_last)


CONVNET = ConvNet()


def _downsampled(model: nn.Module, name: str) -> Stage:
    blocks = inside(model, f"{name}.blocks")
    return Stage(name, units=(f"{name}.downsample", *blocks), blocks=blocks, start=f"{name}.downsample")
