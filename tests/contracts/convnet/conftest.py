"""Small convolutional networks, and their pruned forwards written out in plain torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from timm.layers import BatchNormAct2d
from timm.models import ConvNeXt, EfficientNet, RegNet, ResNet, ResNetV2
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mambaout import MambaOut
from timm.models.regnet import RegNetCfg
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from repshift import ShiftTracker


@dataclass(frozen=True)
class Family:
    """How a network is built, and how its forward is written out.

    `blocks` lists the residual blocks of a stage; `begin` yields what enters the first of them and what the stage's
    output is compared with; `shortcut` does the latter for one block. `bare` names stages without a shortcut, the
    last ones; where the network `floors`, its strides take half of an odd side rounded down.
    """

    build: Callable[[], nn.Module]
    stages: tuple[str, ...]
    begin: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    shortcut: Callable[[Any, torch.Tensor], torch.Tensor]
    stem: Callable[[Any, torch.Tensor], torch.Tensor] = lambda model, x: model.stem(x)
    head: Callable[[Any, torch.Tensor], torch.Tensor] = lambda model, x: model.forward_head(x)
    blocks: Callable[[Any], list[nn.Module]] = lambda stage: list(stage.blocks)
    drops: tuple[tuple[int, int], ...] = ((0, 4), (1, 2))
    bare: tuple[str, ...] = ()
    floors: bool = False
    channels_last: bool = False


def resnet_shortcut(block, x):
    return x if block.downsample is None else block.downsample(x)


def pre_activation_shortcut(block, x):
    return x if block.downsample is None else block.downsample(block.norm1(x))


def begin_with_first(blocks, shortcut):
    return lambda stage, x: (x, shortcut(blocks(stage)[0], x))


def begin_behind_layer(stage, x):
    x = stage.downsample(x)
    return x, x


def begin_inverted(stage, x):
    # the first block has a shortcut only if it keeps size and channels
    return x, (x if stage[0].has_skip else stage[0](x))


def inverted_shortcut(block, x):
    assert block.has_skip
    return x


def torchvision_head(model, x):
    return model.fc(model.avgpool(x).flatten(1))


def build_efficientnet():
    stages = [
        ["ds_r2_k3_s1_e1_c8"],
        ["ir_r2_k3_s2_e2_c16_se0.25"],
        ["ir_r3_k5_s2_e2_c16"],
        ["ir_r2_k3_s2_e2_c24"],
        ["ir_r1_k3_s1_e2_c32"],
    ]
    return EfficientNet(decode_arch_def(stages), num_classes=10, num_features=32, stem_size=8)


LAYERS = ("layer1", "layer2", "layer3", "layer4")
STAGES = ("stages.0", "stages.1", "stages.2", "stages.3")


def timm_resnet(block, layers, **options):
    def build():
        return ResNet(block, layers, num_classes=10, channels=(8, 16, 24, 32), **options)

    return Family(
        build,
        LAYERS,
        stem=lambda model, x: model.maxpool(model.act1(model.bn1(model.conv1(x)))),
        blocks=list,
        begin=begin_with_first(list, resnet_shortcut),
        shortcut=resnet_shortcut,
    )


FAMILIES = {
    "timm ResNet": timm_resnet(BasicBlock, (2, 2, 1, 1)),
    "timm ResNet-d": timm_resnet(Bottleneck, (2, 1, 2, 1), stem_type="deep", stem_width=8, avg_down=True),
    "torchvision ResNet": Family(
        lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=10),
        LAYERS,
        stem=lambda model, x: model.maxpool(model.relu(model.bn1(model.conv1(x)))),
        head=torchvision_head,
        blocks=list,
        begin=begin_with_first(list, resnet_shortcut),
        shortcut=resnet_shortcut,
    ),
    "ConvNeXt": Family(
        lambda: ConvNeXt(num_classes=10, depths=(2, 2, 1, 1), dims=(8, 16, 24, 32), ls_init_value=1.0),
        STAGES,
        head=lambda model, x: model.forward_head(model.norm_pre(x)),
        begin=begin_behind_layer,
        shortcut=lambda block, x: x,
        floors=True,
    ),
    "RegNet": Family(
        lambda: RegNet(RegNetCfg(depth=10, w0=8, wa=6.0, wm=2.0, group_size=8, se_ratio=0.25), num_classes=10),
        ("s1", "s2", "s3", "s4"),
        head=lambda model, x: model.forward_head(model.final_conv(x)),
        blocks=lambda stage: list(stage.children()),
        begin=begin_with_first(lambda stage: list(stage.children()), resnet_shortcut),
        shortcut=resnet_shortcut,
    ),
    "ResNetV2": Family(
        lambda: ResNetV2((2, 2, 1, 1), (16, 24, 32, 40), num_classes=10, stem_chs=8, norm_layer=BatchNormAct2d),
        STAGES,
        head=lambda model, x: model.forward_head(model.norm(x)),
        begin=begin_with_first(lambda stage: list(stage.blocks), pre_activation_shortcut),
        shortcut=pre_activation_shortcut,
    ),
    "MambaOut": Family(
        lambda: MambaOut(num_classes=10, depths=(2, 2, 1, 1), dims=(8, 16, 24, 32)),
        STAGES,
        begin=begin_behind_layer,
        shortcut=lambda block, x: x,
        channels_last=True,
    ),
    "EfficientNet": Family(
        build_efficientnet,
        ("blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"),
        stem=lambda model, x: model.bn1(model.conv_stem(x)),
        head=lambda model, x: model.forward_head(model.bn2(model.conv_head(x))),
        blocks=list,
        begin=begin_inverted,
        shortcut=inverted_shortcut,
        drops=((1, 4), (2, 1)),
        bare=("blocks.4",),
    ),
}
SIZES = {"square": (64, 64), "non-square": (64, 96), "odd": (69, 93)}


def spread(model):
    """Random weights that keep the scale of activations, and running statistics that are not those of a fresh model."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif parameter.mean() > 0.5:  # scales of norms and layers
                parameter.copy_(0.8 + 0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(torch.randn(8, 3, 64, 64, generator=generator))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_var.mul_(0.8 + 0.4 * torch.rand(norm.num_features, generator=generator))
    return model.eval()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def net(family):
    return FAMILIES[family]


@pytest.fixture
def model(net):
    return spread(net.build())


@pytest.fixture
def pruned(net, model):
    return ShiftTracker(model).prune(dict(net.drops))


@pytest.fixture
def build_resnet():
    """Build a ResNet of timm: how its forward is written out, and the model."""

    def build(block, layers, **options):
        net = timm_resnet(block, layers, **options)
        return net, spread(net.build())

    return build


def picture(size):
    return torch.randn(3, 3, *SIZES[size], generator=torch.Generator().manual_seed(3))


@pytest.fixture
def images():
    """Three square images."""
    return picture("square")


@pytest.fixture(params=SIZES)
def sized_images(request):
    """Three images of each size."""
    return picture(request.param)


# --- the definition, written out --------------------------------------------------------------------------------------


def distances(before, after, channels_last, distance="l2"):
    """How far every position moved, ``(batch, rows, columns)``."""
    channels = -1 if channels_last else 1
    if distance == "l1":
        return (after - before).abs().sum(channels)
    if distance == "cosine":
        lengths = before.square().sum(channels).sqrt() * after.square().sum(channels).sqrt()
        turned = 1 - (before * after).sum(channels) / lengths
        return turned.masked_fill(lengths == 0, 1.0)  # nothing points anywhere
    return (after - before).square().sum(channels).sqrt()


def _kept_lines(means, drop):
    left = list(range(len(means)))
    for _ in range(drop):
        lowest = min(left, key=lambda line: means[line])
        left.remove(lowest)
    gone = max(means[line] for line in range(len(means)) if line not in left)
    margin = (min(means[line] for line in left) - gone) / gone
    assert margin > 1e-5, "the lines nearly tie: the comparison would depend on rounding"
    return left


def _without_lines(x, scores, drop, channels_last):
    maps, lines = [], []
    for image, score in zip(x, scores.tolist(), strict=True):
        rows = _kept_lines([sum(row) / len(row) for row in score], drop)
        columns = _kept_lines([sum(column) / len(column) for column in zip(*score, strict=True)], drop)
        maps.append(image[rows][:, columns] if channels_last else image[:, rows][:, :, columns])
        lines.append((rows, columns))
    return torch.stack(maps), lines


@dataclass
class Written:
    """What a written-out forward comes to: shifts of stages, of their last blocks and of all blocks, and lines left."""

    logits: torch.Tensor
    stages: dict[str, torch.Tensor]
    last_blocks: dict[str, torch.Tensor]
    blocks: dict[str, torch.Tensor]
    lines: dict[str, list]


@torch.no_grad()
def _written_out(net, model, images, drops=(), reference="stage", shorten=_without_lines, distance="l2"):
    names = {module: name for name, module in model.named_modules()}
    stages, last_blocks, blocks, lines = {}, {}, {}, {}
    x = net.stem(model, images)
    for index, name in enumerate(net.stages):
        stage = model.get_submodule(name)
        x, start = net.begin(stage, x.clone())
        start, x = start.clone(), x.clone()
        for block in net.blocks(stage):
            bare = not getattr(block, "has_skip", True)
            compared = None if bare else net.shortcut(block, x.clone()).clone()
            x = block(x.clone()).clone()
            if not bare:
                last_blocks[name] = blocks[names[block]] = distances(compared, x, net.channels_last, distance)
        if name not in net.bare:
            stages[name] = distances(start, x, net.channels_last, distance)
        if index in dict(drops):
            scores = (stages if reference == "stage" else last_blocks)[name]
            x, lines[name] = shorten(x, scores, dict(drops)[index], net.channels_last)
    return Written(net.head(model, x), stages, last_blocks, blocks, lines)


@pytest.fixture
def kept_lines():
    """Return the lines of one image that are left, ascending, chosen one after the other."""
    return _kept_lines


@pytest.fixture
def without_lines():
    """Drop the lowest rows and columns of every image by itself; also return which ones are left."""
    return _without_lines


@pytest.fixture
def written_out():
    """Run the dense modules one by one, with copies wherever something could be changed in place."""
    return _written_out


@pytest.fixture
def assert_close():
    """Compare logits, with a tolerance that is a part of the largest one."""

    def check(actual, expected):
        torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)

    return check


@pytest.fixture
def record():
    """Track a model while it sees images."""

    def watch(model, images, sites=None, **options):
        with ShiftTracker(model, sites, **options) as tracker, torch.no_grad():
            model(images)
        return tracker

    return watch
