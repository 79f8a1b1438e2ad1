import pytest
import torch
from torch import nn

from repshift import ScheduleError, ShiftTracker, UnknownNameError, UnsupportedModelError
from repshift.pruners import TokenPruner


@pytest.fixture
def tracker(vit):
    return ShiftTracker(vit)


def test_a_block_out_of_range_is_refused_with_the_range(tracker):
    with pytest.raises(ScheduleError, match=r"at block 4, the model's blocks are 0 to 3 .*choose another block"):
        tracker.prune({4: 0.2})


@pytest.mark.parametrize("share", [1.0, 1.2, -0.2])
def test_a_share_outside_zero_and_one_is_refused(tracker, share):
    with pytest.raises(ScheduleError, match=rf"Block 0 .*share in \(0, 1\), got {share}.*give an integer"):
        tracker.prune({0: share})


@pytest.mark.parametrize("count", [64, 65, 1000])
def test_a_count_that_leaves_fewer_than_one_patch_is_refused(tracker, count):
    with pytest.raises(
        ScheduleError, match=rf"Dropping {count} at block 0 leaves fewer than one of the 64.*at most 63"
    ):
        tracker.prune({0: count})


def test_a_count_that_leaves_no_patch_of_a_dynamic_model_is_refused_when_it_runs(build_vit):
    pruned = ShiftTracker(build_vit(dynamic_img_size=True)).prune({0: 16})
    pruned(torch.randn(1, 3, 32, 32))
    with pytest.raises(ScheduleError, match=r"Dropping 16 at .*leaves fewer than one of the 16.*at most 15"):
        pruned(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("schedule", [[0.2, 0, 0], [0.2, 0, 0, 0, 0], "[0.2,0,0]"])
def test_a_list_of_the_wrong_length_is_refused_with_both_lengths(tracker, schedule):
    entries = 5 if len(schedule) == 5 else 3
    with pytest.raises(ScheduleError, match=rf"{entries} entries, the model has 4 blocks.*Give a dictionary"):
        tracker.prune(schedule)


@pytest.mark.parametrize("schedule", [{}, {0: 0}, [0, 0, 0, 0], "0@0"])
def test_a_schedule_that_drops_nothing_is_refused(tracker, schedule):
    with pytest.raises(ScheduleError, match=r"drops nothing.*Use the model as it is, or drop something"):
        tracker.prune(schedule)


def test_shares_of_less_than_one_patch_are_refused(tracker):
    with pytest.raises(ScheduleError, match=r"\{0: 0\.01\} drops none of the model's 64 tokens.*Raise it"):
        tracker.prune({0: 0.01})


def test_a_pruned_model_is_not_pruned_again(tracker):
    pruned = tracker.prune({0: 0.2})
    with pytest.raises(
        UnsupportedModelError, match=r"VisionTransformer is already pruned\. Prune the model it was made"
    ):
        ShiftTracker(pruned).prune({1: 0.2})


def test_an_unknown_score_names_the_closest(tracker):
    with pytest.raises(UnknownNameError, match=r"Unknown score 'norms'\. Did you mean 'norm'"):
        tracker.prune({0: 0.2}, score="norms")


def test_an_unknown_pruner_names_the_closest(tracker):
    with pytest.raises(UnknownNameError, match=r"Unknown pruner 'token'\. Did you mean 'tokens'"):
        tracker.prune({0: 0.2}, pruner="token")


def test_a_model_of_no_known_backbone_is_refused_with_what_works():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(
        UnsupportedModelError, match=r"Sequential belongs to no known backbone: pruning serves .*sites="
    ):
        ShiftTracker(model, "0").prune({0: 0.2})


def test_a_block_of_unknown_kind_is_refused_with_its_class(vit):
    vit.blocks[1] = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1 is of the class Identity.*Track it by module names"):
        ShiftTracker(vit)


# --- forwards that were replaced on the module itself, past every subclass -----------------------------------------


def patch(module):
    original = module.forward
    module.forward = lambda *args, **kwargs: original(*args, **kwargs)


@pytest.mark.parametrize("name", ["blocks.0", "blocks.0.norm2", "blocks.0.drop_path2", "patch_embed"])
def test_a_patched_module_that_takes_part_is_refused_with_its_name(vit, name):
    patch(vit.get_submodule(name))
    with pytest.raises(UnsupportedModelError, match=rf"forward of '{name}' was replaced.*before it was patched"):
        ShiftTracker(vit).prune({0: 0.2})


@pytest.mark.parametrize("name", ["blocks", ""])
def test_a_patched_module_around_the_blocks_is_refused_since_it_would_run_the_dense_ones(vit, name):
    patch(vit.get_submodule(name))
    with pytest.raises(UnsupportedModelError, match=r"was replaced.*before it was patched"):
        ShiftTracker(vit).prune({0: 0.2})


def test_a_patched_module_that_holds_the_blocks_under_another_name_is_refused(vit):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.direct, self.around = vit, nn.Sequential(vit)

        def forward(self, images):
            return self.around(images)

    model = Holder()
    assert ShiftTracker(model).prune({0: 0.2})
    patch(model.around)
    with pytest.raises(UnsupportedModelError, match=r"forward of 'around' was replaced"):
        ShiftTracker(model).prune({0: 0.2})


def test_a_patched_block_that_is_not_cut_still_runs(vit, images):
    expected = ShiftTracker(vit).prune({0: 0.2})(images)
    patch(vit.blocks[2])
    assert torch.equal(ShiftTracker(vit).prune({0: 0.2})(images), expected)


def test_a_refused_schedule_is_refused_before_anything_is_copied(vit):
    class Uncopyable(nn.Identity):
        def __deepcopy__(self, memo):
            pytest.fail("nothing should be copied")

    vit.blocks[3].drop_path1 = Uncopyable()
    with pytest.raises(ScheduleError):
        ShiftTracker(vit).prune({9: 0.2})


def test_a_pruner_s_class_is_no_pruner(vit):
    with pytest.raises(UnknownNameError, match="expected an object with a method choose"):
        ShiftTracker(vit).prune({0: 2}, pruner=TokenPruner)
