"""What timm makes of convolutional networks with ``features_only=True``: their stages without a head."""

from __future__ import annotations

from typing import Any

from torch import nn

from repshift.backbones.stages import Stage, inside, residual_stage, staged
from repshift.modules import children, has_class
from repshift.sites import Structure

BUILT = ("timm.models.efficientnet.EfficientNetFeatures", "timm.models.mobilenetv3.MobileNetV3Features")
TAKEN_APART = ("timm.models._features.FeatureDictNet",)  # FeatureListNet, too
LAYERS = ("layer1", "layer2", "layer3", "layer4")
STAGE = ("timm.models.convnext.ConvNeXtStage",)


class FeatureExtractors:
    """Networks that return a map of each stage, built by ``timm.create_model(name, features_only=True)``.

    Of a network that was taken apart only the modules are left, so it is told by these: the layers of a ResNet, the
    stages of a ConvNeXt. The maps behind a cut are smaller, as they are within the whole network.
    """

    serves = "ResNets, ConvNeXts, EfficientNets and MobileNets built with features_only=True"

    def matches(self, model: nn.Module) -> bool:
        """Recognise the classes by their names, so that timm need not be imported for other models."""
        if has_class(model, *BUILT):
            return getattr(model, "feature_hooks", None) is None  # hooks write to the model that they were made for
        return has_class(model, *TAKEN_APART) and bool(_layers(model) or _stages(model))

    def structure(self, model: nn.Module) -> Structure:
        """List the stages."""
        if has_class(model, *BUILT):
            return staged(model, [residual_stage(model, name) for name in inside(model, "blocks")], "conv_stem")
        embedding = next(iter(children(model)))
        if layers := _layers(model):
            return staged(model, [residual_stage(model, name) for name in layers], embedding)
        return staged(model, [_stage(model, name) for name in _stages(model)], embedding)


EXTRACTORS = FeatureExtractors()


def _layers(model: nn.Module) -> list[str]:
    modules = children(model)
    listed = [name for name in LAYERS if name in modules]
    blocks: list[Any] = [block for name in listed for block in modules[name].children()]
    return listed if blocks and all(hasattr(block, "downsample") for block in blocks) else []


def _stages(model: nn.Module) -> list[str]:
    return [name for name, module in children(model).items() if has_class(module, *STAGE)]


def _stage(model: nn.Module, name: str) -> Stage:
    blocks = inside(model, f"{name}.blocks")
    return Stage(name, units=(f"{name}.downsample", *blocks), blocks=blocks, start=f"{name}.downsample")
