"""What is known of models that no backbone serves: why they are tracked but not pruned."""

from __future__ import annotations

from torch import nn

WINDOWS = "it attends within windows of a fixed grid, which dropped tokens would tear apart"
TABLE = "its attention looks positions up in a table or rotation of a fixed grid, one entry for each token"
SCANS = "it scans the grid in several directions, which needs all rows and columns"
STRIDES = "its later layers take strides over the grid of tokens, which needs all rows and columns"

# By class name, so that no library need be imported to say no
UNPRUNED = {
    **dict.fromkeys(
        ("SwinTransformer", "SwinTransformerV2", "SwinTransformerV2Cr", "MaxxVit", "DaVit", "GlobalContextVit"), WINDOWS
    ),
    **dict.fromkeys(
        ("Nest", "Twins", "Hiera", "HieraDet", "VisionTransformerSAM", "TinyVit", "EfficientVitMsra"), WINDOWS
    ),
    **dict.fromkeys(("Beit", "Eva", "VisionTransformerRelPos", "Levit", "LevitDistilled", "MultiScaleVit"), TABLE),
    **dict.fromkeys(("VSSM", "VMamba", "PlainMamba", "LocalVisionMamba", "MambaVision", "EfficientViM"), SCANS),
    **dict.fromkeys(("PyramidVisionTransformerV2", "PoolingVisionTransformer", "Xcit", "CoaT", "FocalNet"), STRIDES),
}
CELLS = "each of its cells reads the maps of the two cells before, of which one is of the dense size behind a cut"
UNPRUNED |= {
    **dict.fromkeys(("NASNetALarge", "PNASNet5Large"), CELLS),
    **dict.fromkeys(("EfficientFormer", "EfficientFormerV2", "Visformer"), TABLE),
}
TAKEN_APART = "it was built with features_only=True, which takes the network apart; build it without"
TRACED = "it is a graph that was traced from a model, whose blocks are no modules any more; give the model itself"
UNPRUNED |= {
    **dict.fromkeys(("FeatureListNet", "FeatureDictNet", "FeatureHookNet"), TAKEN_APART),
    **dict.fromkeys(("EfficientNetFeatures", "MobileNetV3Features"), TAKEN_APART),
    "GraphModule": TRACED,
}
# What holds a model and does not go with a pruned one
WRAPPERS = {
    "FeatureGetterNet": "(features_only=True) lays all tokens out on their grid, which takes restore=True",
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

    def why_not_inside(self, wrapper: nn.Module) -> str | None:
        """Say why a model inside a wrapper must be pruned by itself; ``None`` if nothing is known of it."""
        return next((WRAPPERS[cls.__name__] for cls in type(wrapper).__mro__ if cls.__name__ in WRAPPERS), None)

    def has_unordered_tokens(self, model: nn.Module) -> bool:
        """Say whether tokens do not stand in row order inside."""
        return any(type(module).__name__ in UNORDERED for module in model.modules())


REFUSALS = KnownRefusals()
