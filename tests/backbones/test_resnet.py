import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from repshift import ScheduleError, ShiftTracker, UnknownNameError, UnsupportedModelError
from repshift.analysis.subjects.macs import count_macs
from repshift.backbones.resnet import RESNET
from repshift.finding import find_structure


def tiny(block=BasicBlock, layers=(2, 1, 1, 1), **options):
    torch.manual_seed(0)
    return ResNet(block, layers, **({"num_classes": 3, "channels": (8, 16, 24, 32)} | options)).eval()


def on_meta(name, library=timm.create_model):
    with torch.device("meta"):
        return library(name)


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


# --- which models, and what is known of them --------------------------------------------------------------------------

OF_TIMM = [
    "resnet18",
    "resnet50",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "resnet26t",
    "resnet50c",
    "resnet50s",
    "resnet50d",
    "seresnet50",
    "ecaresnet26t",
    "skresnet18",
    "res2net50_14w_8s",
    "resnest14d",
    "resnetrs50",
    "resnetaa50",
    "resnetblur50",
    "resnet50_gn",
]
OF_TORCHVISION = ["resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d"]


@pytest.mark.parametrize("name", OF_TIMM)
def test_a_resnet_of_timm_has_four_stages_with_three_strides_of_two_behind_the_first(name):
    structure = find_structure(on_meta(name))
    assert [(site.name, site.least) for site in structure.sites] == [
        ("layer1", 8),
        ("layer2", 4),
        ("layer3", 2),
        ("layer4", 1),
    ]
    assert all(set(site.operations) == {"stage", "block"} for site in structure.sites)


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_a_resnet_of_torchvision_is_described_like_timm_s(name):
    structures = (on_meta(name), on_meta(name, torchvision.models.get_model))
    ours, theirs = map(find_structure, structures)
    assert theirs == ours


def test_lines_go_by_the_shift_of_the_stage_unless_another_is_asked_for(model):
    structure = RESNET.structure(model)
    assert (structure.operation, structure.pruner, structure.unit) == ("stage", "lines", "stage")
    assert ShiftTracker(model).operation == "stage"


def test_a_users_subclass_is_recognised():
    class Mine(ResNet):
        pass

    assert RESNET.matches(Mine(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8)))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnetv2_50", "densenet121", "vgg11", "nf_resnet26"])
def test_other_models_are_not_taken_for_a_resnet(name):
    assert not RESNET.matches(on_meta(name))


@pytest.mark.parametrize(("stride", "least"), [(32, (8, 4, 2, 1)), (16, (4, 2, 1, 1)), (8, (2, 1, 1, 1))])
def test_strides_that_were_traded_for_dilation_need_no_lines(stride, least):
    assert tuple(site.least for site in RESNET.structure(tiny(output_stride=stride)).sites) == least


def test_a_stage_that_begins_with_the_identity_is_compared_with_its_input_others_with_their_shortcut():
    structure = RESNET.structure(tiny(channels=(64, 16, 24, 32)))
    first, second = (site.operations["stage"] for site in structure.sites[:2])
    assert (first.enters, first.from_output) == ("layer1.0", False)
    assert (second.enters, second.from_output) == ("layer2.0.downsample", True)


# --- the published cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", ["lines", "positions"])
@pytest.mark.parametrize("library", [timm.create_model, torchvision.models.get_model], ids=["timm", "torchvision"])
@pytest.mark.parametrize(("name", "dense", "pruned"), [("resnet34", 3.66, 2.46), ("resnet50", 4.09, 2.70)])
def test_the_papers_schedule_costs_the_papers_multiply_accumulates(name, dense, pruned, library, pruner):
    model = on_meta(name, library)
    shorter = ShiftTracker(model).prune({0: 8, 1: 4}, pruner=pruner, score="norm")
    assert count_macs(model, (3, 224, 224)) / 1e9 == pytest.approx(dense, abs=0.005)
    assert count_macs(shorter, (3, 224, 224)) / 1e9 == pytest.approx(pruned, abs=0.005)


def test_the_shift_costs_the_first_shortcut_of_a_stage_a_second_time():
    model = on_meta("resnet50", timm.create_model)
    costs = [
        count_macs(ShiftTracker(model).prune({0: 8, 1: 4}, score=score), (3, 224, 224)) for score in ("shift", "norm")
    ]
    assert costs[0] - costs[1] == 64 * 256 * 56 * 56  # of the second stage the output is smaller and is kept


def test_the_papers_schedule_leaves_48_and_20_lines():
    pruned = ShiftTracker(tiny()).prune({0: 8, 1: 4})
    sides = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        pruned.get_submodule(name).register_forward_hook(lambda _, args, output: sides.append(tuple(output.shape[2:])))
    with torch.no_grad():
        pruned(torch.randn(1, 3, 224, 224))
    assert sides == [(48, 48), (20, 20), (10, 10), (5, 5)]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_map_smaller_than_the_strides_behind_it_need_is_refused(model, images):
    pruned = ShiftTracker(model).prune({0: 9})
    message = r"Dropping 9 of a map of \(16, 16\) leaves \(7, 7\).*strides behind it need at least 8.*larger images"
    with pytest.raises(ScheduleError, match=message):
        pruned(images)


def test_pools_that_round_odd_sides_otherwise_than_their_shortcut_need_multiples():
    described = {name: RESNET.structure(on_meta(name)) for name in ("resnetaa50", "resnet50d", "resnetblur18")}
    assert [site.multiple for site in described["resnetaa50"].sites] == [8, 4, 2, 1]
    assert {site.multiple for name in ("resnet50d", "resnetblur18") for site in described[name].sites} == {1}


@pytest.mark.parametrize(("drop", "fit"), [("1@0", 8), ("5@0", 8), ("1@1", 4), ("1@2", 2), ("1@3", None)])
def test_lines_that_such_pools_cannot_halve_are_refused_with_a_number_that_fits(drop, fit):
    model = tiny(aa_layer=torch.nn.AvgPool2d)
    pictures = torch.randn(2, 3, 64, 64)
    pruned = ShiftTracker(model).prune(drop)
    if fit is None:  # behind the last of them anything goes
        assert pruned(pictures).isfinite().all()
        return
    with pytest.raises(ScheduleError, match=rf"take multiples of \d only.*Drop {fit} rows"):
        pruned(pictures)
    stage = drop.partition("@")[2]
    assert ShiftTracker(model).prune(f"{fit}@{stage}")(pictures).isfinite().all()


@pytest.mark.parametrize("pruner", ["lines", "positions", "even"])
def test_a_share_is_rounded_to_what_such_pools_can_halve(pruner):
    model = tiny(aa_layer=torch.nn.AvgPool2d)
    with ShiftTracker(ShiftTracker(model).prune("0.1@0,1", pruner=pruner)) as tracker, torch.no_grad():
        tracker.model(torch.randn(2, 3, 128, 192))
    # 10 % of 32 and 48 lines would leave 29 and 44, then 10 % of 12 and 20 would leave 11 and 18
    assert {name: kept.shape[1] for name, kept in tracker.kept.items()} == {"layer1": 24 * 40, "layer2": 8 * 16}


def test_the_shorter_side_decides_whether_a_map_is_too_small(model):
    pruned = ShiftTracker(model).prune({0: 4})
    assert pruned(torch.randn(1, 3, 48, 64)).shape == (1, 3)
    with pytest.raises(ScheduleError, match=r"\(12, 11\) leaves \(8, 7\)"):
        pruned(torch.randn(1, 3, 48, 44))


def test_as_many_lines_as_the_strides_need_are_enough(model, images):
    assert ShiftTracker(model).prune({0: 8})(images).shape == (2, 3)


def test_a_small_image_of_which_nothing_is_dropped_is_welcome(model):
    small = torch.randn(1, 3, 16, 16)  # maps of 4, 2, 1 and 1, where 20 % is nothing
    assert torch.equal(ShiftTracker(model).prune({0: 0.2})(small), model(small))


def test_a_count_that_leaves_no_line_is_refused(model, images):
    with pytest.raises(ScheduleError, match=r"Dropping 16 at 'layer1' leaves fewer than one of the 16 rows"):
        ShiftTracker(model).prune({0: 16})(images)


def test_the_pruned_model_works_again_after_an_image_that_was_too_small(model, images):
    pruned = ShiftTracker(model).prune({0: 8})
    expected = pruned(images)
    with pytest.raises(ScheduleError):
        pruned(images[..., :60, :60])
    assert torch.equal(pruned(images), expected)


@pytest.mark.parametrize("stage", [4, 11])
def test_a_stage_out_of_range_is_refused_with_the_range(model, stage):
    message = rf"drops at stage {stage}, the model's stages are 0 to 3 .*choose another stage"
    with pytest.raises(ScheduleError, match=message):
        ShiftTracker(model).prune({stage: 2})


@pytest.mark.parametrize("schedule", [[4, 2, 0], [4, 2, 0, 0, 0]])
def test_a_list_of_the_wrong_length_is_refused_with_the_number_of_stages(model, schedule):
    with pytest.raises(ScheduleError, match=rf"{len(schedule)} entries, the model has 4 stages"):
        ShiftTracker(model).prune(schedule)


def test_a_list_has_one_entry_a_stage(model, images):
    listed, named = (ShiftTracker(model).prune(schedule) for schedule in ([4, 2, 0, 0], {0: 4, 1: 2}))
    assert torch.equal(listed(images), named(images))


@pytest.mark.parametrize("schedule", [torch.tensor(4), torch.tensor(0.2), 4, {0: torch.tensor(4)}, {0: (8, 4)}])
def test_a_schedule_without_entries_is_refused(model, schedule):
    with pytest.raises(ScheduleError, match=r"Give a dictionary"):
        ShiftTracker(model).prune(schedule)


@pytest.mark.parametrize(("pruner", "kind"), [("tokens", "TokenPruner"), ("sequence", "SequencePruner")])
def test_a_pruner_of_sequences_is_refused_with_the_one_that_fits(model, pruner, kind):
    with pytest.raises(UnsupportedModelError, match=rf"{kind} cannot shorten the FeatureMap of ResNet.*pruner='lines'"):
        ShiftTracker(model).prune({0: 2}, pruner=pruner)


@pytest.mark.parametrize("operation", ["attn", "mlp"])
def test_operations_of_transformers_are_refused_with_those_of_a_resnet(model, operation):
    message = rf"layer1 has no operation '{operation}'.*it is convolutional.*operation='stage' or operation='block'"
    with pytest.raises(UnsupportedModelError, match=message):
        ShiftTracker(model, operation=operation)


def test_a_pruner_of_maps_is_refused_for_a_vit(vit):
    for pruner, kind in (("lines", "LinePruner"), ("positions", "PositionPruner")):
        with pytest.raises(UnsupportedModelError, match=rf"{kind} cannot shorten the TokenSequence.*pruner='tokens'"):
            ShiftTracker(vit).prune({0: 2}, pruner=pruner)


def test_an_unknown_pruner_names_the_closest(model):
    with pytest.raises(UnknownNameError, match=r"Unknown pruner 'line'\. Did you mean 'lines'"):
        ShiftTracker(model).prune({0: 2}, pruner="line")


def test_a_network_without_its_last_stage_is_pruned_behind_those_it_has(images):
    model = tiny(channels=(64, 16, 24, 32))
    model.layer4, model.fc = nn.Identity(), nn.Identity()
    pruned = ShiftTracker(model).prune({1: 2})
    with ShiftTracker(pruned) as tracker:
        pruned(images)
    assert list(tracker.shifts) == ["layer1", "layer2", "layer3"]
    assert list(tracker.kept) == ["layer2"]


def test_a_network_without_any_stage_is_refused(model):
    model.layer1 = model.layer2 = model.layer3 = model.layer4 = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="ResNet has no residual blocks left to watch"):
        ShiftTracker(model)


def test_a_resnet_without_its_last_stage_can_still_be_tracked_by_names(images):
    model = tiny(channels=(64, 16, 24, 32))
    model.layer4, model.fc = nn.Identity(), nn.Identity()
    with ShiftTracker(model, "layer1.*") as tracker, torch.no_grad():
        model(images)
    assert set(tracker.shifts) == {"layer1.0", "layer1.1"}


def test_a_patched_stage_is_refused_with_its_name(model):
    original = model.layer1.forward
    model.layer1.forward = lambda x: original(x)
    with pytest.raises(UnsupportedModelError, match=r"forward of 'layer1' was replaced"):
        ShiftTracker(model).prune({0: 2})


@pytest.mark.parametrize("stem", ["", "deep"])
def test_images_of_whole_numbers_are_refused(stem):
    pruned = ShiftTracker(tiny(Bottleneck, stem_type=stem, stem_width=8)).prune({0: 2})
    with pytest.raises(Exception, match=r"torch.uint8 images.*expected floating-point"):
        pruned(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


# --- models whose later layers need the whole grid --------------------------------------------------------------------

NEED_THE_GRID = {
    "swin_tiny_patch4_window7_224": "SwinTransformer .*windows of a fixed grid",
    "swinv2_tiny_window8_256": "SwinTransformerV2 .*windows of a fixed grid",
    "maxvit_tiny_tf_224": "MaxxVit .*windows of a fixed grid",
    "hiera_tiny_224": "Hiera .*windows of a fixed grid.*mask=",
    "levit_128s": "LevitDistilled .*strides over the grid.*table or rotation of a fixed grid",
    "mvitv2_tiny": "MultiScaleVit .*pools queries and keys by convolutions",
    "nest_tiny": "Nest .*laid out window by window",
    "samvit_base_patch16": "VisionTransformerSAM .*the neck behind the blocks",
    "twins_svt_small": "Twins .*summaries by convolutions with strides",
    "coat_tiny": "CoaT .*at several scales",
    "focalnet_tiny_srf": "FocalNet .*convolutions over the map",
    "convit_tiny": "ConVit .*as if they filled a square",
    "tnt_s_patch16_224": "TNT .*a second stream",
    "nasnetalarge": "NASNetALarge .*maps of the two cells before",
    "visformer_tiny": "Visformer .*table or rotation of a fixed grid",
    "pvt_v2_b0": "PyramidVisionTransformerV2 .*strides over the grid",
}


@pytest.mark.parametrize("name", NEED_THE_GRID)
def test_a_model_that_needs_the_grid_says_why_it_is_not_pruned_and_how_it_is_tracked(name):
    model = on_meta(name)
    message = rf"{NEED_THE_GRID[name]}.*sites="
    with pytest.raises(UnsupportedModelError, match=message):
        ShiftTracker(model)
    with pytest.raises(UnsupportedModelError, match=message):
        ShiftTracker(model, "*").prune({0: 2})
