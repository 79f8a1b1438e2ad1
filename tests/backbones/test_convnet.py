from functools import partial

import pytest
import timm
import torch
from timm.models import ConvNeXt, EfficientNet, RegNet
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.regnet import RegNetCfg
from torch import nn

from repshift import ScheduleError, ShiftTracker, UnsupportedModelError
from repshift.backbones.convnet import CONVNET
from repshift.finding import find_structure
from repshift.layouts import FeatureMap


def on_meta(name):
    if name.startswith("regnet"):  # its widths are computed by tensors, which older versions of torch lack on meta
        return timm.create_model(name).to("meta")
    with torch.device("meta"):
        return timm.create_model(name)


def inverted(*stages):
    torch.manual_seed(0)
    return EfficientNet(decode_arch_def([[stage] for stage in stages]), num_classes=3, stem_size=8).eval()


def described(model):
    return [
        (site.name, site.least, "".join(name[0] for name in site.operations)) for site in CONVNET.structure(model).sites
    ]


# --- which models, and what is known of them --------------------------------------------------------------------------

FOUR = [
    "convnext_atto",
    "convnext_zepto_rms_ols",
    "convnextv2_atto",
    "mambaout_femto",
    "resnetv2_50",
    "resnetv2_50d_gn",
]
REGULAR = ["regnetx_002", "regnety_002", "regnetv_040"]


@pytest.mark.parametrize("name", FOUR)
def test_networks_of_four_stages_have_three_strides_of_two_behind_the_first(name):
    assert described(on_meta(name)) == [(f"stages.{index}", 8 >> index, "sb") for index in range(4)]


@pytest.mark.parametrize("name", REGULAR)
def test_a_regnet_has_four_stages_of_its_own_names(name):
    assert described(on_meta(name)) == [("s1", 8, "sb"), ("s2", 4, "sb"), ("s3", 2, "sb"), ("s4", 1, "sb")]


def test_an_efficientnet_has_stages_of_strides_one_and_two():
    expected = [16, 8, 4, 2, 2, 1, 1]  # the fifth and the last stage keep the size
    assert [least for _, least, _ in described(on_meta("efficientnet_b1"))] == expected


@pytest.mark.parametrize(
    ("name", "embedding"),
    [("convnext_atto", "stem"), ("regnetx_002", "stem"), ("efficientnet_b1", "conv_stem"), ("fbnetv3_b", "conv_stem")],
)
def test_images_enter_at_the_stem(name, embedding):
    assert find_structure(on_meta(name)).embedding == embedding


def test_maps_of_a_mambaout_end_with_the_channels_and_no_others():
    assert find_structure(on_meta("mambaout_femto")).layout == FeatureMap(channels_last=True)
    assert find_structure(on_meta("convnext_atto")).layout == FeatureMap()


@pytest.mark.parametrize(
    ("name", "rounds_up"),
    [
        ("convnext_atto", False),  # its strides have no padding
        ("mambaout_femto", True),
        ("regnety_002", True),
        ("resnetv2_50d", True),
        ("efficientnet_b0", True),
        ("tf_efficientnet_b0", True),  # padded while it runs
        ("mobilenetv4_hybrid_medium", True),
    ],
)
def test_strides_round_odd_sides_as_the_layers_do(name, rounds_up):
    assert find_structure(on_meta(name)).rounds_up is rounds_up


def test_a_users_subclass_is_recognised():
    class Mine(ConvNeXt):
        pass

    assert CONVNET.matches(Mine(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "nasnetalarge"])
def test_other_models_are_not_taken_for_a_plain_convolutional_network(name):
    assert not CONVNET.matches(on_meta(name))


# --- what a stage is compared with ------------------------------------------------------------------------------------

SMALLEST = [
    "convnext_zepto_rms",
    "mambaout_femto",
    "resnetv2_18",
    "resnetv2_34d",
    "regnetx_002",
    "regnetz_005",
    "efficientnet_b0",
    "tinynet_e",
    "mixnet_s",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium",
    "fbnetv3_b",
]


@pytest.mark.parametrize("operation", ["stage", "block"])
@pytest.mark.parametrize("name", SMALLEST)
def test_every_stage_with_a_shortcut_has_shifts_of_the_size_of_its_output(name, operation):
    model = on_meta(name).eval()
    structure, sides = find_structure(model), {}

    def watch(name, module, args, output):
        sides[name] = structure.layout.grid(output)

    for site in structure.sites:
        model.get_submodule(site.name).register_forward_hook(partial(watch, site.name))
    with ShiftTracker(model, operation=operation) as tracker, torch.no_grad():
        model(torch.empty(2, 3, 64, 96, device="meta"))
    assert len(tracker.shifts) >= 2
    for stage, shift in tracker.maps.items():
        assert shift.shape == (2, *sides[stage])


@pytest.mark.parametrize("name", SMALLEST)
def test_every_stage_with_a_shortcut_can_be_pruned(name):
    model = on_meta(name).eval()
    stages = [index for index, site in enumerate(find_structure(model).sites) if "stage" in site.operations]
    pruned = ShiftTracker(model).prune({stages[0]: 1, stages[1]: 1})
    with torch.no_grad():
        assert pruned(torch.empty(2, 3, 96, 128, device="meta")).shape == (2, 1000)


def test_a_stage_of_inverted_residuals_is_compared_with_the_output_of_what_changes_its_size():
    model = inverted("ir_r2_k3_s1_e1_c8", "ir_r3_k3_s2_e2_c16")
    first, second = (site.operations["stage"] for site in CONVNET.structure(model).sites)
    assert (first.enters, first.from_output) == ("blocks.0.0", False)
    assert (second.enters, second.from_output) == ("blocks.1.0", True)


def test_a_stage_is_compared_with_the_output_of_the_last_block_that_has_no_shortcut():
    torch.manual_seed(0)
    stages = decode_arch_def([["ir_r1_k3_s2_e2_c8", "ir_r1_k3_s1_e2_c16", "ir_r2_k3_s1_e2_c24"]])
    model = EfficientNet(stages, num_classes=3, stem_size=8).eval()
    outputs = []
    for index in (2, 3):
        model.blocks[0][index].register_forward_hook(lambda _, args, output: outputs.append(output.clone()))
    with ShiftTracker(model) as tracker, torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(tracker.maps["blocks.0"], (outputs[1] - outputs[0]).norm(dim=1))


def test_a_stage_without_any_shortcut_is_not_counted_but_its_stride_is():
    model = inverted("ir_r1_k3_s2_e2_c16", "ir_r2_k3_s2_e2_c24", "ir_r1_k3_s2_e2_c32")
    assert described(model) == [("blocks.1", 2, "sb")]
    assert ShiftTracker(model).prune({0: 1})(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_blocks_that_add_nothing_and_keep_the_shape_are_compared_with_what_the_first_of_them_takes():
    model = inverted("ds_r3_k3_s2_e1_c16_noskip")
    (stage,) = CONVNET.structure(model).sites
    assert (stage.operations["stage"].enters, stage.operations["stage"].from_output) == ("blocks.0.0", True)


def test_a_stage_without_any_shortcut_is_left_out_of_the_tracked():
    model = inverted("ir_r2_k3_s1_e1_c8", "ir_r1_k3_s2_e2_c16", "ir_r2_k3_s2_e2_c24")
    with ShiftTracker(model) as tracker, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert list(tracker.shifts) == ["blocks.0", "blocks.2"]


def test_a_network_without_any_shortcut_is_refused_with_the_reason():
    model = inverted("ds_r1_k3_s1_e1_c12_noskip", "ds_r1_k3_s2_e1_c16")
    with pytest.raises(UnsupportedModelError, match=r"each of its stages ends in a block that.*no shortcut"):
        ShiftTracker(model)


def test_a_regnet_whose_first_blocks_have_no_shortcut_is_compared_behind_them():
    torch.manual_seed(0)
    settings = RegNetCfg(depth=10, w0=8, wa=6.0, wm=2.0, group_size=8, downsample=None)
    second, *_ = CONVNET.structure(RegNet(settings, num_classes=3)).sites  # the first stage's only block has none
    assert (second.operations["stage"].enters, second.operations["stage"].from_output) == ("s2.b1", True)
    assert "s2.b1" not in CONVNET.structure(RegNet(settings, num_classes=3)).parts


def test_strides_inside_attention_do_not_count_for_the_map():
    assert [least for _, least, _ in described(on_meta("mobilenetv4_hybrid_medium"))] == [4, 2, 1]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_map_smaller_than_the_strides_behind_it_need_is_refused():
    model = ConvNeXt(num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)).eval()
    pruned = ShiftTracker(model).prune({1: 5})
    message = r"Dropping 5 of a map of \(8, 8\) leaves \(3, 3\).*strides behind it need at least 4"
    with pytest.raises(ScheduleError, match=message):
        pruned(torch.randn(1, 3, 64, 64))


def test_a_stage_out_of_range_is_refused_with_the_range():
    with pytest.raises(ScheduleError, match=r"drops at stage 7, the model's stages are 0 to 6"):
        ShiftTracker(on_meta("efficientnet_b1")).prune({7: 2})


def test_a_pruner_of_tokens_is_refused_with_the_one_that_fits():
    with pytest.raises(UnsupportedModelError, match=r"TokenPruner.*FeatureMap of ConvNeXt.*pruner='lines'"):
        ShiftTracker(on_meta("convnext_atto")).prune({0: 2}, pruner="tokens")


def test_a_stage_without_blocks_is_left_out_but_its_stride_counts():
    model = ConvNeXt(num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    model.stages[3].blocks = nn.Sequential()
    assert [(site.name, site.least) for site in CONVNET.structure(model).sites] == [
        ("stages.0", 8),
        ("stages.1", 4),
        ("stages.2", 2),
    ]
