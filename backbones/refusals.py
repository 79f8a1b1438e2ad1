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
UNITS = (
    f"{WINDOWS}; its tokens are unrolled into units of such windows, and its own forward_features(images, mask=...) "
    "leaves out whole ones before the blocks"
)
BLOCKIFIED = f"{WINDOWS}; its tokens are laid out window by window, and it needs as many in each"
REGIONS = f"{WINDOWS}, and looks positions up by rows and columns; the neck behind the blocks convolves the grid"
POOLED = "its attention pools queries and keys by convolutions over the grid, which needs all rows and columns"
STEPPED = f"{STRIDES}, and {TABLE}"
SUMMARISED = f"it attends within windows of a fixed grid and to summaries by convolutions with strides, and {STRIDES}"
CONVOLVED = "its attention convolves the grid for its positions, at several scales that are resized to one another"
FOCAL = f"each of its blocks modulates tokens by convolutions over the map around them, and {STRIDES}"
GATED = "its gated attention computes distances from the number of tokens, as if they filled a square"
PIXELS = "its blocks carry a second stream, of the pixels of each patch, which is not known to lose the same patches"

FRAMES = "it attends over frames and over places in turn, by laying all tokens out as frames, rows and columns"
CAUSAL = "it is a decoder: every token is predicted from those before it, each of which later tokens look back at"
DISTANCES = "its attention counts how far apart two tokens stand, which changes when tokens between them go"
TIMM = "; timm's model of this kind is described and pruned instead, repshift.load_model(name)"
OTHERWISE = f"where its stages stand is not known{TIMM}"
UNREAD = (
    "its images are read by a tower of a kind that is not known here, and its language model loses no tokens; models "
    "like LLaVA are pruned whose tower is CLIP, SigLIP or another one of transformers' that is served"
)
CELLS = "each of its cells reads the maps of the two cells before, of which one is of the dense size behind a cut"

# By class name, so that no library need be imported to say no
UNPRUNED = {
    **dict.fromkeys(
        ("SwinTransformer", "SwinTransformerV2", "SwinTransformerV2Cr", "MaxxVit", "DaVit", "GlobalContextVit"), WINDOWS
    ),
    **dict.fromkeys(("HieraDet", "TinyVit", "EfficientVitMsra"), WINDOWS),
    **dict.fromkeys(("MaxVit", "SwinTransformer3d"), WINDOWS),
    **dict.fromkeys(("VGG", "AlexNet", "GoogLeNet", "Inception3", "SqueezeNet"), NO_SHORTCUTS),
    "DenseNet": CONCATENATED,
    **dict.fromkeys(("VideoResNet", "S3D"), VIDEO),
    "ShuffleNetV2": SHUFFLED,
    "MViT": STRIDES,
    **dict.fromkeys(("Levit", "LevitDistilled"), STEPPED),
    **dict.fromkeys(("VSSM", "VMamba", "PlainMamba", "LocalVisionMamba", "MambaVision", "EfficientViM"), SCANS),
    **dict.fromkeys(("PyramidVisionTransformerV2", "PoolingVisionTransformer"), STRIDES),
    "MultiScaleVit": POOLED,
    "Hiera": UNITS,
    "Nest": BLOCKIFIED,
    "VisionTransformerSAM": REGIONS,
    "Twins": SUMMARISED,
    "CoaT": CONVOLVED,
    "FocalNet": FOCAL,
    "ConVit": GATED,
    "TNT": PIXELS,
    **dict.fromkeys(("NASNetALarge", "PNASNet5Large"), CELLS),
    **dict.fromkeys(("EfficientFormer", "EfficientFormerV2", "Visformer"), TABLE),
    # of transformers
    **dict.fromkeys(("SwinModel", "Swinv2Model", "Swin2SRModel", "HieraModel"), WINDOWS),
    **dict.fromkeys(("PvtModel", "PvtV2Model", "SegformerModel"), STRIDES),
    "TimesformerModel": FRAMES,
    "LevitModel": STEPPED,
}
TAKEN_APART = (
    "it was built with features_only=True, which takes a network of this kind apart so that its stages are not known; "
    "build it without, or one of ResNet, ConvNeXt, EfficientNet or MobileNetV3"
)
TRACED = "it is a graph that was traced from a model, whose blocks are no modules any more; give the model itself"
INSTEAD = "; smaller images make it faster instead, if it is built for them"
UNPRUNED = {name: why + INSTEAD for name, why in UNPRUNED.items()}
UNPRUNED |= {
    **dict.fromkeys(("FeatureListNet", "FeatureDictNet", "FeatureHookNet"), TAKEN_APART),
    **dict.fromkeys(("EfficientNetFeatures", "MobileNetV3Features"), TAKEN_APART),
    "GraphModule": TRACED,
    "DenseNet": CONCATENATED + TIMM,
    **dict.fromkeys(("VGG", "Inception3"), NO_SHORTCUTS + TIMM),
    **dict.fromkeys(("ResNetModel", "RegNetModel", "ConvNextModel", "ConvNextV2Model", "ConvNextBackbone"), OTHERWISE),
    **dict.fromkeys(("EfficientNetModel", "MobileNetV2Model", "MobileViTModel", "MobileViTV2Model"), OTHERWISE),
    **dict.fromkeys(("DebertaModel", "DebertaV2Model", "T5Stack", "MPNetModel", "ModernBertModel"), DISTANCES),
    **dict.fromkeys(("GPT2Model", "OPTModel", "LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"), CAUSAL),
}
# What holds a model and does not go with a pruned one
GETTER = "FeatureGetterNet"
WRAPPERS = {
    GETTER: (
        "(features_only=True) lays all tokens out on their grid, of which some would be gone. Prune with restore=True; "
        "a model whose tokens cannot have their places back (XCiT) is pruned when it is built without features_only"
    ),
    "DistributedDataParallel": (
        "listens to the gradients of the model inside, and a copy of it would listen twice. Prune that, {inside}, "
        "instead"
    ),
}
# Tokens do not stand in row order inside the blocks
UNORDERED = ("Hiera", "HieraModel", "Nest")


class KnownRefusals:
    """Well-known models by the names of their classes, anywhere inside, since models are often wrapped."""

    def why_not_pruned(self, model: nn.Module) -> str | None:
        """Say why a model can be tracked but not pruned; ``None`` if nothing is known of it."""
        names = (cls.__name__ for module in model.modules() for cls in type(module).__mro__)
        why = next((UNPRUNED[name] for name in names if name in UNPRUNED), None)
        sees = why == CAUSAL and any(isinstance(module, (nn.Conv2d, nn.Conv3d)) for module in model.modules())
        return UNREAD if sees else why

    def why_not_inside(self, wrapper: nn.Module, laid_out: bool) -> str | None:
        """Say why a model inside a wrapper cannot be pruned there; ``None`` if nothing is known of it."""
        names = [cls.__name__ for cls in type(wrapper).__mro__ if not (laid_out and cls.__name__ == GETTER)]
        return next((WRAPPERS[name] for name in names if name in WRAPPERS), None)

    def has_unordered_tokens(self, model: nn.Module) -> bool:
        """Say whether tokens do not stand in row order inside."""
        return any(type(module).__name__ in UNORDERED for module in model.modules())


REFUSALS = KnownRefusals()
