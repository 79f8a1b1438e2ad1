"""The residual networks of timm and torchvision: basic and bottleneck blocks, wide, ResNeXt, SE, resnet-d and more."""

from __future__ import annotations

from torch import nn

from repshift.backbones.stages import residual_stage, staged
from repshift.modules import has_class
from repshift.sites import Structure


class ResNet:
    """Models built on :class:`timm.models.ResNet` or :class:`torchvision.models.ResNet`: four stages of blocks.

    The convolutions behind a stage take a map of any size, so rows and columns can go. See
    :func:`repshift.backbones.stages.staged` for what is compared.
    """

    serves = "the residual networks of timm and torchvision"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the classes by their names, so that neither library need be imported for other models."""
        return has_class(model, "timm.models.resnet.ResNet", "torchvision.models.resnet.ResNet")

    def structure(self, model: nn.Module) -> Structure:
        """List the four stages."""
        names = ("layer1", "layer2", "layer3", "layer4")
        return staged(model, [residual_stage(model, name) for name in names], embedding="conv1")


RESNET = ResNet()
