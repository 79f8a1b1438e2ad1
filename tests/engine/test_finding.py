"""Backbones anywhere in a model, and what is said where there is none."""

import pytest
import timm
import torch
from torch import nn

from repshift import ShiftTracker, UnsupportedModelError, describe, load_model, recipe_of
from repshift.finding import find_backbones, find_structure, require_structure


class Normalise(nn.Module):
    def forward(self, images):
        return images - 0.5


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.net = inner

    def forward(self, images):
        return self.net(images).softmax(-1)


class Two(nn.Module):
    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, images):
        return self.one(images) + self.other(images)


WRAPPERS = {
    "a pipeline": (lambda model: nn.Sequential(Normalise(), model), "1"),
    "a module": (Wrapper, "net"),
    "deeper": (lambda model: nn.Sequential(Wrapper(Wrapper(model))), "0.net.net"),
    "data parallel": (nn.DataParallel, "module"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_backbone_is_found_inside_a_wrapper(vit, wrapper):
    wrap, prefix = WRAPPERS[wrapper]
    structure = find_structure(wrap(vit))
    assert structure.root == prefix
    assert [site.name for site in structure.sites] == [f"{prefix}.blocks.{number}" for number in range(4)]
    assert structure.embedding == f"{prefix}.patch_embed"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_whole_model_comes_back_with_that_part_pruned(vit, images, wrapper):
    wrap, prefix = WRAPPERS[wrapper]
    pruned = ShiftTracker(wrap(vit)).prune({0: 0.5, 2: 4})
    by_hand = wrap(ShiftTracker(vit).prune({0: 0.5, 2: 4}))
    assert type(pruned) is type(by_hand)
    assert torch.equal(pruned(images), by_hand(images))
    assert str(recipe_of(pruned).schedule) == "0.5@0;4@2"
    assert pruned.get_submodule(prefix).head.weight is vit.head.weight


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_vim"])
def test_other_kinds_are_found_too(name):
    model, images = load_model(name, pretrained=True), torch.rand(2, 3, 64, 64)
    pruned = ShiftTracker(Wrapper(model)).prune({0: 4})
    assert torch.equal(pruned(images), ShiftTracker(model).prune({0: 4})(images).softmax(-1))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_tracked_as_it_is_alone(vit, images, wrapper):
    wrap, prefix = WRAPPERS[wrapper]
    wrapped, alone = ShiftTracker(wrap(vit)), ShiftTracker(vit).run(images)
    with wrapped, torch.no_grad():
        vit(images) if wrapper == "a pipeline" else wrapped.model(images)
    if wrapper != "a pipeline":
        assert torch.equal(wrapped.maps[f"{prefix}.blocks.2"], alone.maps["blocks.2"])
    assert wrapped.maps[2].shape == (3, 8, 8)


def test_what_lays_tokens_out_on_the_grid_is_refused_inside_a_wrapper(vit, images):
    pruned = ShiftTracker(Wrapper(vit)).prune({0: 0.5})
    with pytest.raises(UnsupportedModelError, match="get_intermediate_layers lays all tokens out"):
        pruned.net.get_intermediate_layers(images)


def test_only_the_outermost_backbone_counts():
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64)
    assert [name for name, _ in find_backbones(hybrid)] == [""]


def test_several_backbones_are_refused_by_name(vit, build_vit):
    with pytest.raises(UnsupportedModelError, match=r"Two holds several backbones: 'one', 'other'\. Take one of them"):
        ShiftTracker(Two(vit, build_vit()))


def test_modules_of_a_model_with_several_backbones_can_be_tracked_by_name(vit, build_vit, images):
    tracker = ShiftTracker(Two(vit, build_vit()), "other.blocks.*").run(images)
    assert tracker.shifts["other.blocks.3"].shape == (3, 64)
    assert tracker.maps["other.blocks.3"].shape == (3, 8, 8)


def test_modules_beside_the_backbone_are_read_by_evidence(vit, images):
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.mix = vit, nn.Linear(3, 3)

        def forward(self, images):
            return self.net(images), self.mix(images.flatten(2).mT)

    tracker = ShiftTracker(Beside(), ["mix", "net.blocks.1"]).run(images)
    assert tracker.maps["mix"].shape == (3, 32, 32)  # no class token there
    assert tracker.maps["net.blocks.1"].shape == (3, 8, 8)


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper])
def test_well_known_models_are_refused_with_their_reason(wrap):
    model = wrap(timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=16, num_heads=(1, 1)))
    with pytest.raises(UnsupportedModelError, match="can be tracked but not pruned: it attends within windows"):
        require_structure(model)


def test_the_list_of_what_is_served_comes_from_the_registry(register):
    class Served:
        serves = "models of mine"

        def matches(self, model):
            return False

    register(Served())
    with pytest.raises(UnsupportedModelError, match="pruning serves models of mine, timm's plain vision transformers"):
        require_structure(nn.Linear(2, 2))


def test_a_backbone_without_words_is_named(register):
    class Silent:
        def matches(self, model):
            return False

    register(Silent())
    assert "the backbone 'of a test'" in describe(nn.Linear(2, 2)).why_not
