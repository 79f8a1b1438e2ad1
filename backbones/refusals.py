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
# Tokens do not stand in row order inside the blocks
UNORDERED = ("Hiera",)


class KnownRefusals:
    """Well-known models by the names of their classes, anywhere inside, since models are often wrapped."""

    def why_not_pruned(self, model: nn.Module) -> str | None:
        """Say why a model can be tracked but not pruned; ``None`` if nothing is known of it."""
        names = (cls.__name__ for module in model.modules() for cls in type(module).__mro__)
        return next((UNPRUNED[name] for name in names if name in UNPRUNED), None)

    def has_unordered_tokens(self, model: nn.Module) -> bool:
        """Say whether tokens do not stand in row order inside."""
        return any(type(module).__name__ in UNORDERED for module in model.modules())


REFUSALS = KnownRefusals()
