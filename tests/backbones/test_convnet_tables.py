"""Networks whose stages are found by the tables: one small network of each way to find them, and what is refused."""

import importlib

import pytest
import timm
import torch
from timm.models import DPN, VGG, CspNet, DenseNet, HighPerfGpuNet, MetaFormer, RexNet, SelecSls
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, SepConv
from torch import nn

from repshift import ScheduleError, ShiftTracker, UnsupportedModelError, describe
from repshift.backbones.convnet import CONVNET
from repshift.backbones.convnet_tables import RUNS, STAGES
from repshift.finding import find_structure
from repshift.testing import KeepAll

HG = {
    "stem_type": "v2",
    "stem_chs": [8, 16],
    "stage1": [16, 8, 32, 1, False, False, 3, 2],
    "stage2": [32, 8, 48, 2, True, False, 3, 2],
    "stage3": [48, 8, 64, 1, True, True, 5, 2],
    "stage4": [64, 8, 64, 1, True, True, 5, 2],
}


def csp():
    return CspNet(
        timm.models.cspnet.CspModelCfg(
            stem=timm.models.cspnet.CspStemCfg(out_chs=8, kernel_size=3, stride=2),
            stages=timm.models.cspnet.CspStagesCfg(
                depth=(1, 1, 1),
                out_chs=(16, 24, 32),
                stride=(2, 2, 2),
                expand_ratio=2.0,
                bottle_ratio=0.5,
                cross_linear=True,
            ),
        ),
        num_classes=3,
    )


def mixed():
    """Convolutions in two stages, attention over a sequence in two."""
    return MetaFormer(
        num_classes=3,
        depths=(1, 1, 1, 1),
        dims=(8, 16, 32, 32),
        token_mixers=[SepConv, SepConv, Attention, Attention],
        norm_layers=[LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
    )


def selecsls():
    blocks = [(32, 0, 8, 16, True, 2), (16, 16, 8, 24, False, 1), (24, 0, 8, 24, True, 2), (24, 24, 8, 32, False, 1)]
    cfg = {
        "block": timm.models.selecsls.SelecSlsBlock,
        "features": blocks,
        "head": [(32, 16, 3, 2)],
        "num_features": 16,
        "feature_info": [],
    }
    return SelecSls({**cfg, "feature_info": [{"num_chs": 32, "reduction": 2, "module": "stem.2"}]}, num_classes=3)


SMALL = {
    "blocks with shortcuts of several kinds": (lambda: timm.create_model("test_byobnet"), "stages.0", "stages.1"),
    "shortcuts of scaled convolutions": (lambda: timm.create_model("test_nfnet"), "stages.0", "stages.1"),
    "across and beside": (csp, "stages.0", "stages.1"),
    "aggregation": (lambda: HighPerfGpuNet(HG, num_classes=3, head_hidden_size=16), "stages.0", "stages.1"),
    "attention over a sequence": (mixed, "stages.0", "stages.1"),
    "a layer first": (lambda: timm.create_model("starnet_s050"), "stages.0", "stages.1"),
    "trees": (lambda: timm.create_model("dla46x_c"), "level2", "level3"),
    "two paths": (
        lambda: DPN((2, 2, 2, 1), (4, 4, 4, 8), 16, 4, num_classes=3, small=True, num_init_features=8),
        "features.conv2_2",
        "features.conv3_2",
    ),
    "a list of two maps": (selecsls, "features.1", "features.3"),
    "growing by what is concatenated": (
        lambda: DenseNet(8, (2, 2, 1, 1), num_classes=3),
        "features.denseblock1",
        "features.denseblock2",
    ),
    "growing shortcuts": (lambda: RexNet(initial_chs=8, final_chs=48, num_classes=3), "features.2", "features.4"),
    "plain layers": (
        lambda: VGG([8, 8, "M", 16, 16, "M", 24, 24], num_classes=3, mlp_ratio=0.01),
        "features.2",
        "features.7",
    ),
    "blocks that keep the size": (
        lambda: timm.models.ConvMixer(16, 3, kernel_size=5, patch_size=4, num_classes=3),
        "blocks.0",
        "blocks.1",
    ),
}


def network(kind):
    torch.manual_seed(0)
    build, *cut = SMALL[kind]
    return build().eval(), cut


@pytest.fixture
def images():
    return torch.randn(3, 3, 96, 128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", SMALL)
def test_lines_go_where_the_stages_end_and_nothing_else_changes(kind, images):
    model, cut = network(kind)
    tracker = ShiftTracker(model)
    with torch.no_grad():
        dense = model(images)
        assert torch.equal(tracker.prune("0.25@0,1", pruner=KeepAll())(images), dense)
        pruned = tracker.prune("0.25@0,1")
        with tracker:
            model(images)
        with ShiftTracker(pruned) as shorter:
            together = pruned(images)
        torch.testing.assert_close(torch.cat([pruned(image[None]) for image in images]), together)
    assert not torch.equal(together, dense)
    assert list(shorter.kept) == cut
    # what is left stands where it stood: in the map of the dense model
    for name in cut:
        assert shorter.maps[name].shape == tracker.maps[name].shape
    later = [name for name in shorter.shifts if name not in cut]
    assert all(shorter.shifts[name].shape[1] < tracker.shifts[name].shape[1] for name in later)


@pytest.mark.parametrize("kind", SMALL)
def test_a_stage_is_compared_with_something_of_its_own_size(kind, images):
    model, (first, _) = network(kind)
    site = next(site for site in CONVNET.structure(model).sites if site.name == first)
    operation, seen = site.operations[CONVNET.structure(model).operation], {}

    def see(name):
        def hook(module, args, output):
            seen[name] = [value[0] if isinstance(value, (tuple, list)) else value for value in (args[0], output)]

        return hook

    for name in {operation.enters, *operation.leaves}:
        model.get_submodule(name).register_forward_hook(see(name))
    with ShiftTracker(model) as tracker, torch.no_grad():
        model(images)
    before, after = seen[operation.enters][operation.from_output], seen[operation.leaves[0]][1]
    assert before.shape[2:] == after.shape[2:]
    assert before.shape[1] <= after.shape[1]
    lacking = torch.zeros(len(after), after.shape[1] - before.shape[1], *after.shape[2:])
    expected = (after - torch.cat([before, lacking], 1)).norm(dim=1)
    if not any(getattr(part, "inplace", False) for part in model.modules()):  # which change what the hooks keep
        torch.testing.assert_close(tracker.maps[first], expected)


def test_trees_lose_lines_that_the_strides_behind_can_halve_only():
    model, _ = network("trees")
    assert [site.multiple for site in CONVNET.structure(model).sites] == [8, 4, 2, 1]
    images = torch.randn(1, 3, 128, 128)
    with ShiftTracker(ShiftTracker(model).prune("0.1@0")) as tracker, torch.no_grad():
        tracker.model(images)
    assert tracker.kept["level2"].shape == (1, 24 * 24)  # of 32; 29 would be left of 10 %
    with pytest.raises(ScheduleError, match=r"take multiples of 8 only.*Drop 8 rows"):
        ShiftTracker(model).prune({0: 3})(images)


def test_maps_that_are_taken_apart_into_patches_keep_a_multiple_of_them():
    with torch.device("meta"):
        model = timm.create_model("mobilevitv2_050")
    sites = find_structure(model).sites
    assert [site.multiple for site in sites][:3] == [2 * site.least for site in sites][:3]
    with pytest.raises(ScheduleError, match=r"\(7, 15\) rows.* take multiples of 8 only.*Give larger images"):
        ShiftTracker(model).prune({1: 1})(torch.zeros(1, 3, 64, 128, device="meta"))


def test_a_network_that_goes_on_in_several_sizes_loses_lines_before():
    with torch.device("meta"):
        model = timm.create_model("hrnet_w18_small_v2")
    sites = find_structure(model).sites
    assert [(site.name, site.multiple) for site in sites] == [("layer1.0", 8), ("layer1.1", 8)]


# --- what is refused --------------------------------------------------------------------------------------------------

BOUND = {
    "botnet26t_256": r"stages\.2\.1\.self_attn \(BottleneckAttn\) has a table of relative positions",
    "halonet26t": r"HaloAttn\) attends within blocks of a fixed size",
    "bat_resnext26ts": r"BilinearAttnTransform\) divides the map into blocks",
    "lambda_resnet26rpt_256": r"LambdaLayer\) has a table of relative positions",
}


@pytest.mark.parametrize("name", BOUND)
def test_a_network_with_a_layer_for_one_size_of_map_names_it(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UnsupportedModelError, match=BOUND[name]):
        ShiftTracker(model)
    assert BOUND[name].partition(r"\)")[0].rpartition("(")[2].strip("\\") in describe(model).why_not


def test_a_lambda_layer_whose_positions_are_a_convolution_is_welcome():
    with torch.device("meta"):
        assert CONVNET.structure(timm.create_model("lambda_resnet26t")).sites


def test_every_class_of_the_tables_is_a_network():
    for name in (*STAGES, *RUNS):
        module, _, cls = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), cls)
        except ImportError:  # newer than this timm
            continue
        assert issubclass(found, nn.Module)
