"""Pruned convolutional networks against forwards written out in plain torch, and what else they promise."""

import copy
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import pytest
import torch
import torchvision
from timm.layers import BatchNormAct2d, BlurPool2d, GroupNorm
from timm.models import ConvNeXt, EfficientNet, RegNet, ResNet, ResNetV2
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mambaout import MambaOut
from timm.models.regnet import RegNetCfg
from timm.models.res2net import Bottle2neck
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from repshift import RepresentationError, ShiftTracker

# --- eight small networks, each written out stage by stage ------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """How a network is built, and how its forward is written out.

    `blocks` lists the residual blocks of a stage; `begin` yields what enters the first of them and what the stage's
    output is compared with; `shortcut` does the latter for one block. `bare` names stages without a shortcut; where the
    network `floors`, its strides take half of an odd side rounded down.
    """

    build: Callable[[], nn.Module]
    stages: tuple[str, ...]
    stem: Callable[[Any, torch.Tensor], torch.Tensor]
    head: Callable[[Any, torch.Tensor], torch.Tensor]
    blocks: Callable[[Any], list[nn.Module]]
    begin: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    shortcut: Callable[[Any, torch.Tensor], torch.Tensor]
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
        ["ds_r2_k3_s1_e1_c8_noskip"],
        ["ir_r2_k3_s2_e2_c16_se0.25"],
        ["ir_r3_k5_s2_e2_c16"],
        ["ir_r2_k3_s2_e2_c24"],
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
        head=lambda model, x: model.forward_head(x),
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
        stem=lambda model, x: model.stem(x),
        head=lambda model, x: model.forward_head(model.norm_pre(x)),
        blocks=lambda stage: list(stage.blocks),
        begin=begin_behind_layer,
        shortcut=lambda block, x: x,
        floors=True,
    ),
    "RegNet": Family(
        lambda: RegNet(RegNetCfg(depth=10, w0=8, wa=6.0, wm=2.0, group_size=8, se_ratio=0.25), num_classes=10),
        ("s1", "s2", "s3", "s4"),
        stem=lambda model, x: model.stem(x),
        head=lambda model, x: model.forward_head(model.final_conv(x)),
        blocks=lambda stage: list(stage.children()),
        begin=begin_with_first(lambda stage: list(stage.children()), resnet_shortcut),
        shortcut=resnet_shortcut,
    ),
    "ResNetV2": Family(
        lambda: ResNetV2((2, 2, 1, 1), (16, 24, 32, 40), num_classes=10, stem_chs=8, norm_layer=BatchNormAct2d),
        STAGES,
        stem=lambda model, x: model.stem(x),
        head=lambda model, x: model.forward_head(model.norm(x)),
        blocks=lambda stage: list(stage.blocks),
        begin=begin_with_first(lambda stage: list(stage.blocks), pre_activation_shortcut),
        shortcut=pre_activation_shortcut,
    ),
    "MambaOut": Family(
        lambda: MambaOut(num_classes=10, depths=(2, 2, 1, 1), dims=(8, 16, 24, 32)),
        STAGES,
        stem=lambda model, x: model.stem(x),
        head=lambda model, x: model.forward_head(x),
        blocks=lambda stage: list(stage.blocks),
        begin=begin_behind_layer,
        shortcut=lambda block, x: x,
        channels_last=True,
    ),
    "EfficientNet": Family(
        build_efficientnet,
        ("blocks.0", "blocks.1", "blocks.2", "blocks.3"),
        stem=lambda model, x: model.bn1(model.conv_stem(x)),
        head=lambda model, x: model.forward_head(model.bn2(model.conv_head(x))),
        blocks=list,
        begin=begin_inverted,
        shortcut=inverted_shortcut,
        drops=((1, 4), (2, 1)),
        bare=("blocks.0",),
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


@pytest.fixture
def images():
    return picture("square")


def picture(size, batch=3):
    return torch.randn(batch, 3, *SIZES[size], generator=torch.Generator().manual_seed(3))


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


def kept_lines(means, drop):
    """The lines of one image that are left, ascending, chosen one after the other."""
    left = list(range(len(means)))
    for _ in range(drop):
        lowest = min(left, key=lambda line: means[line])
        left.remove(lowest)
    gone = max(means[line] for line in range(len(means)) if line not in left)
    margin = (min(means[line] for line in left) - gone) / gone
    assert margin > 1e-5, "the lines nearly tie: the comparison would depend on rounding"
    return left


def without_lines(x, scores, drop, channels_last):
    """Drop the lowest rows and columns of every image by itself; also return which ones are left."""
    maps, lines = [], []
    for image, score in zip(x, scores.tolist(), strict=True):
        rows = kept_lines([sum(row) / len(row) for row in score], drop)
        columns = kept_lines([sum(column) / len(column) for column in zip(*score, strict=True)], drop)
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
def written_out(net, model, images, drops=(), reference="stage", shorten=without_lines, distance="l2"):
    """Run the dense modules one by one, with copies wherever something could be changed in place."""
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


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


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


def test_the_written_out_forward_without_drops_is_the_dense_model(net, model, images):
    assert_close(written_out(net, model, images).logits, model(images))


def test_the_drops_of_these_tests_change_the_logits_by_far_more_than_the_tolerance(model, pruned, images):
    dense = model(images)
    assert (dense - pruned(images)).abs().max() > 1e-2 * dense.abs().max()


@pytest.mark.parametrize("reference", ["stage", "block"])
@pytest.mark.parametrize("size", SIZES)
def test_pruned_logits_equal_a_written_out_forward(net, model, size, reference):
    images = picture(size)
    pruned = ShiftTracker(model, reference=reference).prune(dict(net.drops))
    assert_close(pruned(images), written_out(net, model, images, net.drops, reference).logits)


def test_the_two_references_drop_different_lines(net, model, images):
    stage, block = (written_out(net, model, images, net.drops, reference).lines for reference in ("stage", "block"))
    assert stage != block


def without_positions(x, scores, drop, channels_last):
    """Drop the lowest positions of each row of every image, then of each column of what is left."""
    maps = []
    for image, score in zip(x, scores.tolist(), strict=True):
        image = image if channels_last else image.permute(1, 2, 0)
        places = [[(row, column) for column in kept_lines(values, drop)] for row, values in enumerate(score)]
        columns = []
        for places_of_column in zip(*places, strict=True):
            kept = kept_lines([score[row][column] for row, column in places_of_column], drop)
            columns.append(torch.stack([image[places_of_column[index]] for index in kept]))
        shortened = torch.stack(columns, dim=1)
        maps.append(shortened if channels_last else shortened.permute(2, 0, 1))
    return torch.stack(maps), None


def test_logits_pruned_by_positions_equal_a_written_out_forward(net, model):
    images = picture("non-square")
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner="positions")
    assert_close(pruned(images), written_out(net, model, images, net.drops, shorten=without_positions).logits)


# --- what residual networks are built of ------------------------------------------------------------------------------

VARIANTS = {
    "anti-aliasing": (BasicBlock, {"aa_layer": BlurPool2d}),
    "squeeze and excitation": (Bottleneck, {"block_args": {"attn_layer": "se"}}),
    "groups of channels": (Bottleneck, {"cardinality": 4, "base_width": 32}),
    "wide": (Bottleneck, {"base_width": 128}),
    "drop path": (BasicBlock, {"drop_path_rate": 0.5}),
    "drop block": (BasicBlock, {"drop_block_rate": 0.5}),
    "strided stem": (BasicBlock, {"replace_stem_pool": True, "stem_type": "deep_tiered", "stem_width": 8}),
    "dilation": (Bottleneck, {"output_stride": 8}),
    "group norm": (BasicBlock, {"norm_layer": partial(GroupNorm, num_groups=4)}),
    "ResNeSt": (ResNestBottleneck, {"base_width": 64, "block_args": {"radix": 2, "avd": True}, "avg_down": True}),
    "Res2Net": (Bottle2neck, {"base_width": 64, "block_args": {"scale": 4}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_resnet_equals_its_written_out_forward(images, variant):
    block, options = VARIANTS[variant]
    net = timm_resnet(block, (2, 2, 1, 1), **options)
    model = spread(net.build())
    assert_close(
        ShiftTracker(model).prune({0: 4, 1: 1})(images), written_out(net, model, images, ((0, 4), (1, 1))).logits
    )


# --- tracked shifts ---------------------------------------------------------------------------------------------------


def record(model, images, sites=None, **options):
    with ShiftTracker(model, sites, **options) as tracker, torch.no_grad():
        model(images)
    return tracker


def assert_maps_equal(tracker, expected):
    assert list(tracker.maps) == list(expected)
    for name, shifts in expected.items():
        torch.testing.assert_close(tracker.maps[name], shifts, atol=1e-4, rtol=1e-4)
        assert torch.equal(tracker.shifts[name], tracker.maps[name].flatten(1))


@pytest.mark.parametrize("size", SIZES)
def test_tracked_shifts_of_the_stages_equal_the_definition(net, model, size):
    assert_maps_equal(record(model, picture(size)), written_out(net, model, picture(size)).stages)


@pytest.mark.parametrize("options", [{"reference": "block"}, {"operation": "block"}])
def test_tracked_shifts_against_the_last_block_equal_the_definition(net, model, images, options):
    assert_maps_equal(record(model, images, **options), written_out(net, model, images).last_blocks)


@pytest.mark.parametrize("size", SIZES)
def test_tracked_shifts_of_all_residual_blocks_equal_the_definition(net, model, size):
    expected = written_out(net, model, picture(size)).blocks
    assert_maps_equal(record(model, picture(size), list(expected)), expected)


@pytest.mark.parametrize("family", ["timm ResNet", "timm ResNet-d", "torchvision ResNet"], indirect=True)
def test_a_glob_of_the_blocks_of_a_resnet_watches_what_the_definition_says(net, model, images):
    assert_maps_equal(record(model, images, "layer?.*"), written_out(net, model, images).blocks)


@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_other_distances_are_taken_over_the_channels(net, model, images, distance):
    expected = written_out(net, model, images, distance=distance)
    assert_maps_equal(record(model, images, distance=distance), expected.stages)


class AddsToItsInput(BasicBlock):
    """A residual block that adds its branch to what it was given, in place, as a user may write it."""

    def forward(self, x):
        branch = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.act2(shortcut.add_(branch))


def test_a_tracked_shift_is_right_where_a_block_changes_its_own_input(images):
    net = timm_resnet(AddsToItsInput, (2, 1, 1, 1))
    model = spread(net.build())
    expected = written_out(net, model, images)
    assert_maps_equal(record(model, images), expected.stages)
    assert_maps_equal(record(model, images, "layer?.*"), expected.blocks)


# --- where the positions of a pruned network were ---------------------------------------------------------------------


def halved(lines, floors):
    """Take the first of every two lines; it stands where half of its index says."""
    return [[line // 2 for line in each[::2][: len(each) // 2 if floors else None]] for each in lines]


def pushed(net, model, images):
    """Send the rows and columns of the dense maps through the same cuts and strides, as plain lists of each image.

    Returns those at the end of every stage, and the sides of the dense maps there.
    """
    sides = {name: shifts.shape[1:] for name, shifts in written_out(net, model, images).last_blocks.items()}
    sides = {name: sides.get(name) for name in net.stages if name in sides}
    cut = written_out(net, model, images, net.drops).lines
    places, previous = {}, None
    for name, side in sides.items():
        if previous is None:
            rows, columns = ([list(range(length))] * len(images) for length in side)
        elif side != previous:
            rows, columns = halved(rows, net.floors), halved(columns, net.floors)
        if name in cut:
            rows = [[row[index] for index in left] for row, (left, _) in zip(rows, cut[name], strict=True)]
            columns = [[column[index] for index in left] for column, (_, left) in zip(columns, cut[name], strict=True)]
        places[name], previous = list(zip(rows, columns, strict=True)), side
    return places, sides


@pytest.mark.parametrize("size", SIZES)
def test_kept_positions_count_the_positions_of_the_dense_maps(net, model, pruned, size):
    tracker = record(pruned, picture(size))
    places, sides = pushed(net, model, picture(size))
    assert list(tracker.kept) == [net.stages[index] for index, _ in net.drops]
    for name, kept in tracker.kept.items():
        width = sides[name][1]
        expected = [[row * width + column for row in rows for column in columns] for rows, columns in places[name]]
        assert kept.tolist() == expected


@pytest.mark.parametrize("size", SIZES)
def test_maps_of_a_pruned_network_have_the_dense_sides_and_show_what_was_left(net, model, pruned, size):
    tracker = record(pruned, picture(size))
    places, sides = pushed(net, model, picture(size))
    last, _ = net.drops[-1]
    for name in net.stages[last + 1 :]:  # behind all cuts
        shown = ~tracker.maps[name].isnan()
        expected = torch.zeros(3, *sides[name], dtype=torch.bool)
        for image, (rows, columns) in zip(expected, places[name], strict=True):
            for row in rows:
                image[row, columns] = True
        assert torch.equal(shown, expected)


def test_the_first_cut_stage_of_a_pruned_network_shows_the_shifts_of_the_dense_one(net, model, pruned, images):
    first = net.stages[net.drops[0][0]]
    assert torch.equal(record(pruned, images).shifts[first], record(model, images).shifts[first])


def test_shifts_behind_a_cut_are_those_of_the_written_out_network(net, model, pruned, images):
    expected = written_out(net, model, images, net.drops)
    for options, shifts in (({}, expected.stages), ({"sites": list(expected.blocks)}, expected.blocks)):
        tracker = record(pruned, images, **options)
        assert list(tracker.shifts) == list(shifts)
        for name, shift in tracker.shifts.items():
            torch.testing.assert_close(shift, shifts[name].flatten(1), atol=1e-4, rtol=1e-4)


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", ["lines", "positions"])
def test_logits_and_kept_positions_of_a_batch_equal_those_of_its_images_alone(net, model, images, pruner):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    logits, together = pruned(images), record(pruned, images).kept
    first = next(iter(together.values()))
    assert not torch.equal(first[0], first[1])
    for index, image in enumerate(images):
        assert_close(pruned(image[None])[0], logits[index])
        for name, kept in record(pruned, image[None]).kept.items():
            assert torch.equal(kept[0], together[name][index])


def outputs_of_stages(net, model, images):
    seen = {}
    with ExitStack() as stack, torch.no_grad():
        for name in net.stages:
            hook = model.get_submodule(name).register_forward_hook(lambda _, args, y, name=name: seen.update({name: y}))
            stack.callback(hook.remove)
        model(images)
    return seen


@pytest.mark.parametrize("pruner", ["lines", "positions"])
def test_channels_last_gives_the_logits_of_contiguous_maps(net, model, images, pruner):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    expected = pruned(images)
    model.to(memory_format=torch.channels_last)
    assert_close(pruned(images.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("pruner", ["lines", "positions"])
def test_a_cut_leaves_a_map_in_the_memory_format_that_it_had(net, model, images, pruner):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    for memory in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory)
        inputs = images.to(memory_format=memory)
        before, after = outputs_of_stages(net, model, inputs), outputs_of_stages(net, pruned, inputs)
        for index, _ in net.drops:
            name = net.stages[index]
            assert after[name].shape != before[name].shape
            for form in (torch.contiguous_format, torch.channels_last):
                assert after[name].is_contiguous(memory_format=form) == before[name].is_contiguous(memory_format=form)


@pytest.mark.parametrize("pruner", ["lines", "positions"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_no_image_at_all_gives_no_logits(net, model, memory, pruner):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    nothing = torch.zeros(0, 3, 64, 64).to(memory_format=memory)
    assert pruned(nothing).shape == model(nothing).shape == (0, 10)


# --- a model like any other -------------------------------------------------------------------------------------------


def tensors(model):
    return dict(chain(model.named_parameters(), model.named_buffers()))


def test_pruned_has_the_class_the_keys_and_the_tensors_of_the_model(model, pruned):
    assert type(pruned) is type(model)
    assert list(pruned.state_dict()) == list(model.state_dict())
    own, shared = tensors(model), tensors(pruned)
    assert shared.keys() == own.keys()
    assert all(shared[name].data_ptr() == own[name].data_ptr() for name in own)


def test_the_model_is_untouched_by_tracking_and_pruning_and_running_the_pruned(net, model, images):
    logits = model(images)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    classes = {name: type(module) for name, module in model.named_modules()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    pruned = ShiftTracker(model).prune(dict(net.drops))
    pruned(images)
    record(pruned, images)
    record(model, images)
    assert torch.equal(model(images), logits)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_copy_of_the_pruned_prunes_alike_with_weights_of_its_own(pruned, images):
    copied, expected = copy.deepcopy(pruned), pruned(images)
    assert torch.equal(copied(images), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(pruned(images), expected)


def test_pruned_survives_pickle(pruned, images):
    assert torch.equal(pickle.loads(pickle.dumps(pruned))(images), pruned(images))


@dataclass(frozen=True)
class KeepAll:
    """Takes every position as kept, through the layout, instead of leaving the map alone."""

    def shorten(self, value, scores, drop, layout):
        kept = torch.arange(scores.shape[1]).expand(scores.shape[0], -1)
        return layout.arrange(value, kept, layout.grid(value)), kept


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("reference", ["stage", "block"])
def test_keeping_every_position_is_the_dense_model_bit_for_bit(net, model, images, reference, memory):
    model.to(memory_format=memory)
    inputs = images.to(memory_format=memory)
    pruned = ShiftTracker(model, reference=reference).prune(dict(net.drops), pruner=KeepAll())
    assert torch.equal(pruned(inputs), model(inputs))


def test_a_share_of_less_than_one_line_is_the_dense_model_bit_for_bit(net, model, images):
    pruned = ShiftTracker(model).prune({net.drops[0][0]: 0.01})
    assert torch.equal(pruned(images), model(images))


def test_gradients_flow_through_the_lines_that_are_left_and_no_others(net, model, images):
    index = net.drops[0][0]
    pruned = ShiftTracker(model).prune({index: 4}).train()
    whole = []

    def watch(module, args, output):
        output.retain_grad()
        whole.append(output)

    net.blocks(pruned.get_submodule(net.stages[index]))[-1].register_forward_hook(watch)
    with ShiftTracker(pruned) as tracker:
        pruned(images).square().sum().backward()
    gradient = whole[0].grad.abs().sum(-1 if net.channels_last else 1).flatten(1)
    kept = torch.zeros_like(gradient).scatter(1, tracker.kept[net.stages[index]], 1.0)
    assert torch.equal(gradient > 0, kept > 0)


def test_gradients_reach_every_parameter_that_the_dense_model_s_reach(model, pruned, images):
    def reached(trained):
        model.zero_grad(set_to_none=True)
        trained.train()(images).square().sum().backward()
        return {name for name, value in trained.named_parameters() if value.grad is not None and value.grad.any()}

    assert reached(pruned) == reached(model)


def test_scores_carry_no_gradient(net, model, images):
    seen = []

    def watching(before, after):
        seen.append(before.requires_grad or after.requires_grad)
        return (after - before).norm(dim=-1)

    ShiftTracker(model, distance=watching).prune(dict(net.drops)).train()(images)
    assert seen == [False, False]


def test_a_bfloat16_network_keeps_the_lines_that_its_own_shifts_rank_highest(net, model, images):
    model.bfloat16()
    pruned = ShiftTracker(model).prune(dict(net.drops))
    index, drop = net.drops[0]
    name = net.stages[index]
    dense, tracker = record(model, images.bfloat16()), record(pruned, images.bfloat16())
    assert dense.shifts[name].dtype == torch.float32
    scores = dense.maps[name]
    _, lines = without_lines(torch.zeros(3, 1, *scores.shape[1:]), scores, drop, channels_last=False)
    width = scores.shape[2]
    assert tracker.kept[name].tolist() == [[row * width + col for row in rows for col in cols] for rows, cols in lines]
    assert pruned(images.bfloat16()).dtype == torch.bfloat16


# --- gradient checkpointing -------------------------------------------------------------------------------------------

# where timm's checkpointing runs the blocks one by one, past their stage
PAST_THE_STAGE = ["timm ResNet", "timm ResNet-d", "EfficientNet"]
WITHIN_THE_STAGE = ["ConvNeXt", "RegNet", "ResNetV2", "MambaOut"]


@pytest.mark.parametrize("reference", ["stage", "block"])
@pytest.mark.parametrize("family", PAST_THE_STAGE, indirect=True)
def test_checkpointing_that_would_run_past_the_cuts_is_refused(net, model, images, reference):
    pruned = ShiftTracker(model, reference=reference).prune(dict(net.drops))
    expected = pruned(images)
    pruned.set_grad_checkpointing()
    with pytest.raises(RepresentationError, match=r"without the block itself.*set_grad_checkpointing\(False\)"):
        pruned(images)
    pruned.set_grad_checkpointing(False)
    assert torch.equal(pruned(images), expected)


@pytest.mark.parametrize("family", WITHIN_THE_STAGE, indirect=True)
def test_checkpointing_within_the_stages_gives_the_same_gradients(pruned, images):
    parameters = list(pruned.parameters())
    expected = torch.autograd.grad(pruned(images).square().sum(), parameters)
    pruned.set_grad_checkpointing()
    actual = torch.autograd.grad(pruned(images).square().sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", WITHIN_THE_STAGE, indirect=True)
def test_nothing_of_a_checkpointed_forward_is_left_on_the_pruned_model_after_its_backward(pruned, images):
    pruned.set_grad_checkpointing()
    pruned(images).square().sum().backward()
    relays = [
        role.relay
        for module in pruned.modules()
        for role in getattr(module, "repshift_roles", ())
        if hasattr(role, "relay")
    ]
    assert relays
    assert all(relay.before is None and relay.after is None and relay.scores is None for relay in relays)


@pytest.mark.parametrize("family", PAST_THE_STAGE + WITHIN_THE_STAGE, indirect=True)
def test_a_checkpointed_network_is_tracked_like_any_other(net, model, images):
    expected = record(model, images).shifts
    model.set_grad_checkpointing()
    with ShiftTracker(model) as tracker:
        model(images).sum().backward()
    assert tracker.shifts.keys() == expected.keys()
    for name, shift in tracker.shifts.items():
        torch.testing.assert_close(shift, expected[name])


# --- graphs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()  # what other tests compiled counts against the limit of graphs for one function
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("family", "pruner"), [("timm ResNet-d", "lines"), ("timm ResNet", "positions")], indirect=["family"]
)
def test_a_pruned_network_compiled_after_the_dense_one_equals_its_eager_form(net, model, images, pruner):
    pruned = ShiftTracker(model).prune(dict(net.drops), pruner=pruner)
    for each in (model, pruned):
        fast = torch.compile(each, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert_close(fast(images), each(images))
            assert_close(fast(images[:2]), each(images[:2]))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("family", ["timm ResNet"], indirect=True)
def test_gradients_of_a_compiled_pruned_network_equal_the_eager_ones(pruned, images):
    parameters = list(pruned.parameters())
    expected = torch.autograd.grad(pruned(images).square().sum(), parameters)
    fast = torch.compile(pruned, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(fast(images).square().sum(), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * other.abs().max().item(), rtol=1e-4)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("family", ["RegNet"], indirect=True)
def test_an_exported_network_with_any_batch_size_equals_its_eager_form(pruned, images, strict):
    batch = torch.export.Dim("batch")
    program = torch.export.export(pruned, (images,), dynamic_shapes=({0: batch},), strict=strict)
    with torch.no_grad():
        for some in (images, images[:2]):
            assert_close(program.module()(some), pruned(some))
