"""What is known of models that no backbone serves: why they are tracked but not pruned."""

from __future__ import annotations

from torch import nn

WINDOWS = "it attends within windows of a fixed grid, which dropped tokens would tear apart"
TABLE = "its attention looks positions up in a table or rotation of a fixed grid, one entry for each token"
SCANS = "it scans the grid in several directions, which needs all rows and columns"
SHUFFLED = "its blocks shuffle their channels, so what leaves a stage cannot be compared with what enters"
CONCATENATED = "its layers add channels instead of changing the values there are, so there is no shift to go by"
NO_SHORTCUTS = "it has no shortcuts, so what leaves a stage has nothing of its size and channels to be compared with"
VIDEO = "it is a network of video, whose maps have frames; lines go from maps of rows and columns"
STRIDES = "its later layers take strides over the grid of tokens, which needs all rows and columns"

# By class name, so that no library need be imported to say no
UNPRUNED = {
    **dict.fromkeys(
        ("SwinTransformer", "SwinTransformerV2", "SwinTransformerV2Cr", "MaxxVit", "DaVit", "GlobalContextVit"), WINDOWS
    ),
    **dict.fromkeys(
        ("Nest", "Twins", "Hiera", "HieraDet", "VisionTransformerSAM", "TinyVit", "EfficientVitMsra"), WINDOWS
    ),
    **dict.fromkeys(("MaxVit", "SwinTransformer3d"), WINDOWS),
    **dict.fromkeys(("VGG", "AlexNet", "GoogLeNet", "Inception3", "SqueezeNet"), NO_SHORTCUTS),
    "DenseNet": CONCATENATED,
    **dict.fromkeys(("VideoResNet", "S3D"), VIDEO),
    "ShuffleNetV2": SHUFFLED,
    "MViT": STRIDES,
    **dict.fromkeys(("Beit", "Eva", "VisionTransformerRelPos", "Levit", "LevitDistilled", "MultiScaleVit"), TABLE),
    **dict.fromkeys(("VSSM", "VMamba", "PlainMamba", "LocalVisionMamba", "MambaVision", "EfficientViM"), SCANS),
    **dict.fromkeys(("PyramidVisionTransformerV2", "PoolingVisionTransformer", "Xcit", "CoaT", "FocalNet"), STRIDES),
}
TAKEN_APART = (
    "it was built with features_only=True, which takes a network of this kind apart so that its stages are not known; "
    "build it without, or one of ResNet, ConvNeXt, EfficientNet or MobileNetV3"
)
TRACED = "it is a graph that was traced from a model, whose blocks are no modules any more; give the model itself"
UNPRUNED |= {
    **dict.fromkeys(("FeatureListNet", "FeatureDictNet", "FeatureHookNet"), TAKEN_APART),
    **dict.fromkeys(("EfficientNetFeatures", "MobileNetV3Features"), TAKEN_APART),
    "GraphModule": TRACED,
}
# What holds a model and does not go with a pruned one
GETTER = "FeatureGetterNet"
WRAPPERS = {
    GETTER: "(features_only=True) lays all tokens out on their grid, which takes restore=True",
    "DistributedDataParallel": "listens to the gradients of the model inside, and a copy of it would listen twice",
}
# Tokens do not stand in row order inside the blocks
UNORDERED = ("Hiera",)


class KnownRefusals:
    """Well-known models by the names of their classes, anywhere inside, since models are often wrapped."""

    def why_not_pruned(self, model: nn.Module) -> str | None:
        """Say why a model can be tracked but not pruned; ``None`` if nothing is known of it."""
        names = (cls.__name__ for module in model.modules() for cls in type(module).__mro__)
        return next((UNPRUNED[name] for name in names if name in UNPRUNED), None)

    def why_not_inside(self, wrapper: nn.Module, laid_out: bool) -> str | None:
        """Say why a model inside a wrapper must be pruned by itself; ``None`` if nothing is known of it."""
        names = [cls.__name__ for cls in type(wrapper).__mro__ if not (laid_out and cls.__name__ == GETTER)]
        return next((WRAPPERS[name] for name in names if name in WRAPPERS), None)

    def has_unordered_tokens(self, model: nn.Module) -> bool:
        """Say whether tokens do not stand in row order inside."""
        return any(type(module).__name__ in UNORDERED for module in model.modules())


REFUSALS = KnownRefusals()
