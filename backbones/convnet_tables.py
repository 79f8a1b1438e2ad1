"""Where timm's convolutional networks have their stages and blocks, by the full names of their classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from repshift.backbones.shapes import keeps_shape


@dataclass(frozen=True)
class Stages:
    """Where a network has its stages, each a module of its own.

    Attributes:
        stages: Names or globs of the stages.
        blocks: What holds the blocks within a stage; ``None`` if the stage itself does.
        before: What may stand within a stage before its blocks; its output is what the stage's is compared with, if its
            first block does not change the map.
        first: Whether the first child of a stage alone may change the map.
        residual: Whether all blocks add their input, whatever is inside them.
        widens: Whether a stage may have nothing that brings its input to the channels of its output.
        behind: Whether the stage goes on behind its blocks.
        embedding: What takes the images.
        channels_last: Whether maps are ``(batch, rows, columns, channels)``.
    """

    stages: str = "stages.*"
    blocks: str | None = None
    before: tuple[str, ...] = ()
    first: bool = False
    residual: bool = False
    widens: bool = False
    behind: bool = False
    embedding: str = "stem"
    channels_last: bool = False


@dataclass(frozen=True)
class Run:
    """Where a network has its blocks, whose stages have no modules of their own.

    Attributes:
        units: Names or globs of the blocks, and of what stands between them.
        site: Which of them can be compared with what they take: a part of a class's name, or a function.
        widens: Whether they may return more channels than they take.
        paths: Whether they return several maps.
        each: Whether lines can go behind each block, since no strides divide them into stages.
        embedding: What takes the images.
    """

    units: tuple[str, ...]
    site: str | Callable[[nn.Module], bool]
    widens: bool = False
    paths: bool = False
    each: bool = False
    embedding: str = "stem"

    def has(self, model: nn.Module, name: str) -> bool:
        """Say whether a unit can be compared with what it takes."""
        module = model.get_submodule(name)
        if isinstance(self.site, str):
            return self.site in (type(module).__name__, name) or name in self.site.split(",")
        return self.site(module)


DOWNSAMPLED = Stages(blocks="blocks", before=("downsample",), residual=True)
IN_BLOCKS = Stages("blocks.*", embedding="conv_stem")

STAGES: dict[str, Stages] = {
    f"timm.models.{name}": stages
    for name, stages in {
        "byobnet.ByobNet": Stages(),
        "convnext.ConvNeXt": DOWNSAMPLED,
        "cpubone.CPUBone": Stages(first=True),
        "csatv2.CSATv2": Stages(first=True, embedding="stem_dct"),
        "cspnet.CspNet": Stages(blocks="blocks", before=("conv_down",), residual=True, widens=True, behind=True),
        "cspnext.CspNext": Stages(first=True),
        "edgenext.EdgeNeXt": DOWNSAMPLED,
        "efficientnet.EfficientNet": IN_BLOCKS,
        "efficientvit_mit.EfficientVit": Stages(blocks="blocks", first=True),
        "efficientvit_mit.EfficientVitLarge": Stages(blocks="blocks", first=True),
        "fasternet.FasterNet": Stages(blocks="blocks", before=("downsample",), residual=True, embedding="patch_embed"),
        "fastvit.FastVit": DOWNSAMPLED,
        "ghostnet.GhostNet": IN_BLOCKS,
        "hgnet.HighPerfGpuNet": Stages(blocks="blocks", before=("downsample",), widens=True),
        "iformer.IFormer": DOWNSAMPLED,
        "inception_next.MetaNeXt": DOWNSAMPLED,
        "inception_resnet_v2.InceptionResnetV2": Stages("repeat*", residual=True, embedding="conv2d_1a"),
        "lcnetv2.LCNetV2": Stages(),
        "lowformer.LowFormer": Stages(first=True),
        "mambaout.MambaOut": Stages(blocks="blocks", before=("downsample",), residual=True, channels_last=True),
        "metaformer.MetaFormer": DOWNSAMPLED,
        "mobilenetv3.MobileNetV3": IN_BLOCKS,
        "mobilenetv5.MobileNetV5": IN_BLOCKS,
        "mobilenetv5.MobileNetV5Encoder": IN_BLOCKS,
        "nextvit.NextViT": Stages(blocks="blocks", first=True, widens=True),
        "nfnet.NormFreeNet": Stages(),
        "regnet.RegNet": Stages("s[0-9]"),
        "repghost.RepGhostNet": IN_BLOCKS,
        "repvit.RepVit": DOWNSAMPLED,
        "resnetv2.ResNetV2": Stages(blocks="blocks"),
        "senet.SENet": Stages("layer[1-4]", embedding="layer0"),
        "sequencer.Sequencer2d": Stages(blocks="blocks", before=("downsample",), residual=True, channels_last=True),
        "shvit.SHViT": Stages(blocks="blocks", before=("downsample",), residual=True, embedding="patch_embed"),
        "starnet.StarNet": Stages(first=True),
        "swiftformer.SwiftFormer": DOWNSAMPLED,
        "tresnet.TResNet": Stages("body.layer*", embedding="body.s2d"),
        "vovnet.VovNet": Stages(blocks="blocks", before=("pool",), widens=True),
    }.items()
}


def _is_steady(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and keeps_shape(layer)


def _adds_its_input(block: nn.Module) -> bool:
    return bool(getattr(block, "use_shortcut", False))


def _keeps_its_input(block: nn.Module) -> bool:
    return not getattr(block, "no_skip", False)


def _takes_several(block: nn.Module) -> bool:
    return not getattr(block, "is_first", True)


RUNS: dict[str, Run] = {
    f"timm.models.{name}": run
    for name, run in {
        "convmixer.ConvMixer": Run(("blocks.*",), "Sequential", each=True),
        "densenet.DenseNet": Run(("features.*",), "DenseBlock", widens=True, embedding="features.conv0"),
        "dpn.DPN": Run(("features.*",), "DualPathBlock", widens=True, paths=True, embedding="features.conv1_1"),
        "inception_v3.InceptionV3": Run(
            ("Mixed_*",), "Mixed_5d,Mixed_6e,Mixed_7c", widens=True, embedding="Conv2d_1a_3x3"
        ),
        "inception_v4.InceptionV4": Run(
            ("features.*",), "features.9,features.17,features.21", widens=True, embedding="features.0"
        ),
        "rdnet.RDNet": Run(("dense_stages.*.*",), "DenseStage", widens=True),
        "rexnet.RexNet": Run(("features.*",), _adds_its_input, widens=True),
        "selecsls.SelecSls": Run(("features.*", "head.*"), _takes_several, widens=True, paths=True),
        "vgg.VGG": Run(("features.*",), _is_steady, embedding="features.0"),
        "xception.Xception": Run(("block*",), "Block", embedding="conv1"),
        "xception_aligned.XceptionAligned": Run(("blocks.*",), _keeps_its_input),
    }.items()
}
TREES = "timm.models.dla.DLA"
BRANCHES = "timm.models.hrnet.HighResolutionNet"

# Layers that fit maps of one size only, and why
BOUND = {
    "BottleneckAttn": "has a table of relative positions for one size of map",
    "HaloAttn": "attends within blocks of a fixed size, which the sides of the map must be multiples of",
    "LambdaLayer": "has a table of relative positions for one size of map",
    "BilinearAttnTransform": "divides the map into blocks of a fixed size, which its sides must be multiples of",
}
# Blocks that take the map apart into patches, and stretch one whose sides are no multiples of them
PATCHED = ("MobileVitV2Block",)
