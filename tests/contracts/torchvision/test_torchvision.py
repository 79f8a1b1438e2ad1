"""Torchvision's vision transformers and convolutional networks, small ones, against forwards written out."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import convnext, efficientnet, mobilenetv2, mobilenetv3, regnet, swin_transformer
from torchvision.models import vision_transformer as vit

from repshift import Recipe, ShiftTracker, UnsupportedModelError, describe
from repshift.testing import CHECKS, make_subject


def build_vit(**options):
    return vit.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5, **options)


def build_convnext():
    sizes = [(8, 12, 2), (12, 16, 2), (16, None, 1)]
    settings = [convnext.CNBlockConfig(*size) for size in sizes]
    return convnext.ConvNeXt(settings, layer_scale=1.0, num_classes=5)


def build_efficientnet():
    settings = [
        efficientnet.MBConvConfig(1, 3, 1, 8, 8, 1, 1, 1),  # a stage of one block with a shortcut
        efficientnet.MBConvConfig(2, 3, 2, 8, 16, 1, 1, 1),  # and one of a block without
        efficientnet.FusedMBConvConfig(2, 3, 1, 16, 24, 3),
        efficientnet.MBConvConfig(2, 5, 2, 24, 32, 2, 1, 1),
    ]
    return efficientnet.EfficientNet(settings, dropout=0.0, num_classes=5)


def build_mobilenet_v2():
    settings = [[1, 8, 1, 1], [2, 16, 2, 2], [2, 24, 3, 1], [2, 32, 1, 1]]
    return mobilenetv2.MobileNetV2(5, inverted_residual_setting=settings)


def build_mobilenet_v3():
    config = partial(mobilenetv3.InvertedResidualConfig, width_mult=1.0)
    settings = [
        config(16, 3, 16, 16, False, "RE", 1, 1),
        config(16, 3, 32, 24, False, "RE", 2, 1),
        config(24, 5, 32, 24, True, "HS", 1, 1),
        config(24, 5, 32, 24, True, "HS", 1, 1),
    ]
    return mobilenetv3.MobileNetV3(settings, 32, num_classes=5)


def build_regnet():
    return regnet.RegNet(regnet.BlockParams([2, 1, 2, 1], [8, 16, 24, 32], [8] * 4, [1.0] * 4, [2] * 4), num_classes=5)


# how each is built, and the stages that it has: what is cut, what the output is compared with
NETWORKS = {
    "ConvNeXt": (build_convnext, {"features.1": "features.0", "features.3": "features.2", "features.5": "features.4"}),
    "EfficientNet": (
        build_efficientnet,
        {"features.1": "features.0", "features.3": "features.3.0", "features.4": "features.4.0"},
    ),
    "MobileNetV2": (build_mobilenet_v2, {"features.3": "features.2", "features.6": "features.5"}),
    "MobileNetV3": (build_mobilenet_v3, {"features.1": "features.0", "features.4": "features.3"}),
    "RegNet": (build_regnet, {f"trunk_output.block{n}": f"trunk_output.block{n}.block{n}-0.proj" for n in range(1, 5)}),
    "MNASNet": (
        partial(models.MNASNet, 0.25, num_classes=5),
        # the fourth stack begins with a shortcut, so that what enters it is what leaves the third
        {f"layers.{n}": "layers.10" if n == 11 else f"layers.{n}.0" for n in range(8, 13)},
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """A network whose norms have seen images, and its stages."""
    torch.manual_seed(0)
    build, stages = NETWORKS[request.param]
    model = build().train()
    with torch.no_grad():
        model(torch.randn(4, 3, 96, 64))
    return model.eval(), stages


@pytest.fixture
def images():
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pictures():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plain_vit():
    torch.manual_seed(0)
    model = build_vit().eval()
    nn.init.normal_(model.heads.head.weight)
    return model


def outputs_of(model, names, images):
    """Return what modules return in a dense forward, as copies, by name."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output.clone()})
        )
        for name in names
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


def test_a_network_is_tracked_across_its_stages(network, images):
    model, stages = network
    assert describe(model).blocks == tuple(stages)
    seen = outputs_of(model, {*stages, *stages.values()}, images)
    tracker = ShiftTracker(model).run(images)
    for name, start in stages.items():
        expected = (seen[name] - seen[start]).square().sum(1).sqrt()
        torch.testing.assert_close(tracker.maps[name], expected)


def test_a_pruned_network_computes_with_what_is_left_of_the_map(network, images):
    model, stages = network
    name = next(iter(stages))
    pruned = ShiftTracker(model).prune({0: 2})
    shifts = ShiftTracker(model).run(images).maps[name]
    left = {}
    model.get_submodule(name).register_forward_hook(
        lambda module, args, output: torch.stack(
            [image[:, left["rows"][i]][:, :, left["columns"][i]] for i, image in enumerate(output)]
        )
    )
    left["rows"] = shifts.mean(2).topk(shifts.shape[1] - 2).indices.sort().values
    left["columns"] = shifts.mean(1).topk(shifts.shape[2] - 2).indices.sort().values
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), model(images))


@pytest.mark.parametrize("network", ["EfficientNet"], indirect=True)
def test_networks_keep_the_promises(network, images, promise):
    promise(make_subject(network[0], images))


@pytest.mark.parametrize(
    "name", ["nothing dropped is the dense model, bit for bit", "images do not disturb each other"]
)
def test_networks_keep_the_first_promises(network, images, name):
    CHECKS[name](make_subject(network[0], images))


def test_a_vision_transformer_keeps_the_promises(plain_vit, pictures, promise):
    promise(make_subject(plain_vit, pictures, Recipe("0.25@0;3@1")))


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_a_pruned_vision_transformer_is_its_written_out_forward(plain_vit, pictures, operation):
    model = plain_vit
    with torch.no_grad():
        x = model._process_input(pictures)
        x = torch.cat([model.class_token.expand(2, -1, -1), x], 1) + model.encoder.pos_embedding
        for number, block in enumerate(model.encoder.layers):
            normed = block.ln_1(x)
            attention, _ = block.self_attention(normed, normed, normed, need_weights=False)
            between = x + attention
            mlp = block.mlp(block.ln_2(between))
            compared = {"attn": (x, attention), "mlp": (between, mlp), "block": (x, between + mlp)}[operation]
            x = between + mlp
            if number == 0:
                shift = (compared[0] - compared[1])[:, 1:].square().sum(-1).sqrt()
                kept = shift.topk(12).indices.sort().values + 1
                x = torch.stack([image[[0, *own.tolist()]] for image, own in zip(x, kept, strict=True)])
        expected = model.heads(model.encoder.ln(x)[:, 0])
        pruned = ShiftTracker(model, operation=operation).prune("0.25@0")
        torch.testing.assert_close(pruned(pictures), expected)


def test_what_a_vision_transformer_of_torchvision_lacks_is_said(plain_vit):
    with pytest.raises(UnsupportedModelError, match="packs queries, keys and values"):
        ShiftTracker(plain_vit).prune("0.25@0", score="cls_attention")
    with pytest.raises(UnsupportedModelError, match="input_size"):
        ShiftTracker(plain_vit).prune(input_size=16)


REFUSED = {
    "maxvit_t": "windows",
    "swin_t": "windows",
    "vgg11": "nothing of its size and channels to be compared with; timm's model of this kind is described",
    "densenet121": "there is no shift to go by; timm's model of this kind is described",
    "shufflenet_v2_x0_5": "shuffle their channels",
    "video.r3d_18": "frames",
    "video.s3d": "frames",
    "video.swin3d_t": "windows",
    "video.mvit_v2_s": "strides",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_of_torchvision_say_what_stands_in_the_way(name):
    where = models.video if name.startswith("video.") else models
    with torch.device("meta"):
        model = getattr(where, name.rpartition(".")[2])()
    assert REFUSED[name] in describe(model).why_not


def test_maps_of_windowed_models_stand_in_row_order():
    torch.manual_seed(0)
    options = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": [4, 4]}
    model = swin_transformer.SwinTransformer(**options, num_classes=5).eval()
    images = torch.randn(1, 3, 32, 48)
    tracker = ShiftTracker(model, "features.1.*").run(images)
    seen = outputs_of(model, ["features.0", "features.1.0"], images)
    expected = (seen["features.1.0"] - seen["features.0"]).square().sum(-1).sqrt()
    torch.testing.assert_close(tracker.maps["features.1.0"], expected)


def test_maps_of_windowed_video_have_frames_rows_and_columns():
    torch.manual_seed(0)
    options = {"patch_size": [2, 4, 4], "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": [2, 4, 4]}
    model = models.video.SwinTransformer3d(**options, num_classes=5).eval()
    tracker = ShiftTracker(model, "features.0.*").run(torch.randn(1, 3, 4, 32, 48))
    assert tracker.maps["features.0.0"].shape == (1, 2, 8, 12)
