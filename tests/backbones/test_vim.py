import pytest
import torch
from timm.models import VisionTransformer
from torch import nn

from repshift import ShiftTracker, UnknownNameError, UnsupportedModelError, load_model
from repshift.backbones.vim import VIM
from repshift.backbones.vim_model import VisionMamba
from repshift.finding import find_structure

SMALL = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 16, "depth": 3, "d_state": 4, "num_classes": 5}


@pytest.fixture
def make_vim():
    """Build Vision Mambas of 4x6 patches and 3 layers, whose changes are as large as their streams."""

    def make(**options):
        torch.manual_seed(1)
        model = VisionMamba(**(SMALL | options)).eval()
        with torch.no_grad():
            for layer in model.layers:
                layer.mixer.out_proj.weight.normal_()
            model.pos_embed.normal_()
        return model

    return make


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))


def without_class_token(tokens, index):
    return torch.cat([tokens[:, :index], tokens[:, index + 1 :]], dim=1)


def test_the_sites_are_the_layers_in_order():
    structure = find_structure(load_model("vim_tiny"))
    assert [site.name for site in structure.sites] == [f"layers.{index}" for index in range(24)]
    assert all(set(site.operations) == {"mixer", "block"} for site in structure.sites)
    assert structure.tokens == 196
    assert structure.grid((224, 224)) == (14, 14)


def test_a_model_with_overlapping_patches_has_27_rows_and_columns():
    structure = find_structure(load_model("vim_tiny_stride8"))
    assert structure.tokens == 27 * 27
    assert structure.grid((224, 224)) == (27, 27)


def test_only_the_whole_layer_contains_the_residual(make_vim):
    for site in VIM.structure(make_vim()).sites:
        assert {name for name, operation in site.operations.items() if operation.on_stream} == {"block"}


# operation, residual -> what is compared with the stream that enters the mixer
SCORES = {
    ("mixer", False): lambda hidden, residual: hidden,
    ("mixer", True): lambda hidden, residual: residual + hidden,
    ("block", False): lambda hidden, residual: residual + hidden,
    ("block", True): lambda hidden, residual: residual + hidden,
}


@pytest.mark.parametrize("position", ["head", "middle"])
@pytest.mark.parametrize(("operation", "residual"), SCORES)
def test_shifts_are_between_the_stream_and_what_the_mixer_makes_of_it(
    make_vim, images, operation, residual, position, states
):
    model = make_vim(class_position=position)
    with ShiftTracker(model, operation=operation, residual=residual) as tracker, torch.no_grad():
        model(images)
    index = {"head": 0, "middle": 12}[position]
    for layer, (change, stream, *_) in enumerate(states(model, images)):
        after = SCORES[operation, residual](change, stream)
        expected = without_class_token((after - stream).square().sum(-1).sqrt(), index)
        torch.testing.assert_close(tracker.shifts[f"layers.{layer}"], expected, atol=1e-5, rtol=1e-5)


def test_the_two_scores_rank_the_patches_differently(make_vim, images):
    model, orders = make_vim(), []
    for residual in (False, True):
        with ShiftTracker(model, residual=residual) as tracker, torch.no_grad():
            model(images)
        orders.append(tracker.shifts["layers.1"].argsort(dim=1))
    assert not torch.equal(*orders)


def test_the_mixer_is_watched_unless_another_operation_is_asked_for(make_vim, images):
    model, shifts = make_vim(), []
    for options in ({}, {"operation": "mixer"}, {"operation": "block"}):
        with ShiftTracker(model, **options) as tracker, torch.no_grad():
            model(images)
        shifts.append(tracker.shifts["layers.0"])
    assert torch.equal(shifts[0], shifts[1])
    assert not torch.equal(shifts[0], shifts[2])


def test_tracking_does_not_change_the_logits(make_vim, images):
    model = make_vim()
    expected = model(images)
    with ShiftTracker(model):
        assert torch.equal(model(images), expected)


def test_maps_have_the_rows_and_columns_of_the_patches(make_vim, images):
    model = make_vim()
    with ShiftTracker(model) as tracker, torch.no_grad():
        model(images)
    assert tracker.maps["layers.2"].shape == (2, 4, 6)
    assert torch.equal(tracker.maps["layers.2"].flatten(1), tracker.shifts["layers.2"])


def test_single_layers_can_be_watched(make_vim, images):
    model = make_vim()
    with ShiftTracker(model, "layers.1") as tracker, torch.no_grad():
        model(images)
    assert list(tracker.shifts) == ["layers.1"]


@pytest.mark.parametrize("operation", ["attn", "mlp"])
def test_operations_of_transformers_are_refused_with_the_reason(make_vim, operation):
    with pytest.raises(UnsupportedModelError, match=rf"no operation '{operation}'.*one branch, its mixer.*'mixer'"):
        ShiftTracker(make_vim(), operation=operation)


@pytest.mark.parametrize("pruner", ["lines", "positions"])
def test_pruners_of_feature_maps_are_refused(make_vim, pruner):
    with pytest.raises(UnsupportedModelError, match=r"cannot shorten the ResidualPair.*pruner='sequence'"):
        ShiftTracker(make_vim()).prune({0: 0.2}, pruner=pruner)


def test_a_layer_that_does_not_exist_is_called_a_layer():
    with pytest.raises(ValueError, match=r"drops at layer 24, the model's layers are 0 to 23"):
        ShiftTracker(load_model("vim_tiny")).prune({24: 0.2})


def test_an_unknown_pruner_gets_the_closest_name(make_vim):
    with pytest.raises(UnknownNameError, match="'sequence'"):
        ShiftTracker(make_vim()).prune({0: 0.2}, pruner="sequences")


def test_a_users_subclass_is_recognised():
    class Mine(VisionMamba):
        pass

    assert VIM.matches(Mine(**SMALL))


class Namesake(nn.Module):
    """Has the name and nothing else."""


Namesake.__qualname__ = "VisionMamba"


@pytest.mark.parametrize("other", [Namesake, lambda: VisionTransformer(img_size=16, patch_size=8, depth=1)])
def test_other_models_are_not_taken_for_a_vision_mamba(other):
    assert not VIM.matches(other())
