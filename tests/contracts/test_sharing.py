"""Pruned and dense models share their weights, whatever torch does to those of one."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import random_unstructured

from repshift import ShiftTracker, UnsupportedModelError, dense, load_model

MODELS = {
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=48), {0: 4}),
    "resnet": (lambda: timm.create_model("resnet18"), {0: 4}),
    "torchvision resnet": (lambda: torchvision.models.resnet18(), {0: 4}),
    "vim": (lambda: load_model("tiny_vim"), {0: 8}),
}


@pytest.fixture(params=MODELS)
def pair(request):
    """A model with statistics of its own, and the pruned one."""
    build, schedule = MODELS[request.param]
    model = build().eval()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return model, ShiftTracker(model).prune(schedule), schedule


@pytest.fixture
def few():
    return torch.randn(2, 3, 64, 64)


def convert(model):
    model.double()


def convert_there_and_back(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.half().float()


def assign(model):
    other = copy.deepcopy(model).state_dict()
    model.load_state_dict({k: v * 1.01 if v.is_floating_point() else v for k, v in other.items()}, assign=True)


def empty_and_fill(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.to_empty(device="cpu")
    model.load_state_dict(state)


def train_a_little(model):
    model.train()
    model(torch.randn(4, 3, 64, 64)).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    model.eval()


WAYS = [convert, convert_there_and_back, assign, empty_and_fill, train_a_little]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("which", ["the original", "the pruned model"])
def test_what_is_done_to_one_model_is_done_to_both(pair, few, way, which):
    model, pruned, schedule = pair
    way(model if which == "the original" else pruned)
    few = few.to(next(model.parameters()).dtype)
    expected = ShiftTracker(copy.deepcopy(model)).prune(schedule)
    assert torch.equal(pruned(few), expected(few))
    for (name, one), (other_name, other) in zip(model.state_dict().items(), pruned.state_dict().items(), strict=True):
        assert (name, one.data_ptr(), one.dtype) == (other_name, other.data_ptr(), other.dtype)


def test_a_parameter_that_is_replaced_in_one_model_is_replaced_in_both(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5})
    vit.blocks[3].mlp.fc1.weight = nn.Parameter(torch.zeros_like(vit.blocks[3].mlp.fc1.weight))
    assert torch.equal(pruned(images), ShiftTracker(vit).prune({0: 0.5})(images))


def test_a_module_that_is_replaced_in_one_model_is_not_replaced_in_the_other(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5})
    expected = pruned(images)
    vit.head = nn.Linear(32, 2)
    assert torch.equal(pruned(images), expected)


def test_weights_that_are_computed_from_others_before_serve_both_models(vit, images):
    random_unstructured(vit.head, "weight", 0.5)
    weight_norm(vit.blocks[0].mlp.fc1)
    pruned = ShiftTracker(vit).prune({1: 16})
    with torch.no_grad():
        vit.head.weight_orig.mul_(2)
        vit.blocks[0].mlp.fc1.parametrizations.weight.original0.mul_(2)
    assert torch.equal(pruned(images), ShiftTracker(vit).prune({1: 16})(images))
    assert not torch.equal(vit(images), pruned(images))


def test_copies_share_nothing_with_the_original(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5})
    copied = copy.deepcopy(pruned)
    expected = copied(images)
    vit.double()
    assert torch.equal(copied(images), expected)


# --- modules that stand at several places ---------------------------------------------------------------------------


def test_a_block_that_stands_twice_is_cut_where_the_schedule_says(vit, images):
    apart = copy.deepcopy(vit)
    apart.blocks[1] = copy.deepcopy(apart.blocks[0])
    vit.blocks[1] = vit.blocks[0]
    for schedule in ({0: 16}, {1: 16}, {0: 16, 1: 9}):
        pruned = ShiftTracker(vit).prune(schedule)
        assert torch.equal(pruned(images), ShiftTracker(apart).prune(schedule)(images))
        assert list(pruned.state_dict()) == list(vit.state_dict())
        assert pruned.blocks[0].mlp.fc1.weight is pruned.blocks[1].mlp.fc1.weight


def test_a_part_of_a_block_that_stands_at_several_places_plays_its_role_at_each(vit, images):
    expected = ShiftTracker(vit).prune({0: 16, 2: 9})(images)
    shared = nn.Identity()
    for block in vit.blocks:
        block.drop_path2 = shared
    assert torch.equal(ShiftTracker(vit).prune({0: 16, 2: 9})(images), expected)


def test_one_module_without_weights_may_stand_everywhere(vit, images):
    expected = ShiftTracker(vit).prune({0: 16, 2: 9})(images)
    shared = nn.Identity()
    for block in vit.blocks:
        block.drop_path1 = block.drop_path2 = block.ls1 = block.ls2 = shared
    vit.norm_pre = vit.patch_drop = vit.head_drop = shared
    assert torch.equal(ShiftTracker(vit).prune({0: 16, 2: 9})(images), expected)
    assert torch.equal(ShiftTracker(vit).prune({0: 16, 2: 9}, restore=True)(images), expected)


def test_one_block_with_one_identity_that_stands_twice_is_cut_where_the_schedule_says(vit, images):
    vit.blocks[1] = vit.blocks[0]
    expected = ShiftTracker(vit).prune({1: 16})(images)
    vit.blocks[0].drop_path1 = vit.blocks[0].drop_path2 = nn.Identity()
    assert torch.equal(ShiftTracker(vit).prune({1: 16})(images), expected)


def test_blocks_of_a_stage_that_are_one_are_different_places():
    model = timm.create_model("resnet18").eval()
    model.layer1[1] = model.layer1[0]
    apart = copy.deepcopy(model)
    apart.layer1[1] = copy.deepcopy(apart.layer1[0])
    images = torch.randn(2, 3, 64, 64)
    for operation in ("stage", "block"):
        pruned = ShiftTracker(model, operation=operation).prune({0: 4})
        assert torch.equal(pruned(images), ShiftTracker(apart, operation=operation).prune({0: 4})(images))


# --- modules that have several names for one place ------------------------------------------------------------------


class Calls(nn.Module):
    """Holds one model under two names, and calls it by one or both of them."""

    def __init__(self, model, *called):
        super().__init__()
        self.one = self.other = model
        self.called = called

    def forward(self, images):
        return sum(getattr(self, name)(images) for name in self.called)


class Renamed(VisionTransformer):
    """Keeps its blocks under a second name, as a list, and calls them by that."""

    def __init__(self, *args, again=lambda blocks: blocks, **kwargs):
        super().__init__(*args, **kwargs)
        self.layers = again(self.blocks)

    def forward_features(self, images, **options):
        tokens = self.norm_pre(self._pos_embed(self.patch_embed(images)))
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


@pytest.mark.parametrize("called", [["one"], ["other"], ["one", "other"]], ids=" and ".join)
def test_a_model_is_pruned_by_whichever_of_its_names_it_is_called(vit, images, called):
    pruned = ShiftTracker(Calls(vit, *called)).prune({0: 16})
    assert torch.equal(pruned(images), len(called) * ShiftTracker(vit).prune({0: 16})(images))
    assert pruned.one is pruned.other
    assert ShiftTracker(pruned).run(images).kept[0].shape == (3, 48)
    assert torch.equal(dense(pruned)(images), len(called) * vit(images))


@pytest.mark.parametrize("again", [lambda blocks: blocks, nn.ModuleList, list], ids=["itself", "modules", "list"])
def test_blocks_are_pruned_by_whichever_of_their_names_they_are_called(build_vit, images, again):
    model = build_vit(model_class=Renamed, again=again)
    pruned = ShiftTracker(model).prune({0: 16, 2: 9})
    tracker = ShiftTracker(pruned).run(images)
    assert [kept.shape[1] for kept in tracker.kept.values()] == [48, 39]
    assert all(one is other for one, other in zip(pruned.layers, pruned.blocks, strict=True))
    assert list(pruned.state_dict()) == list(model.state_dict())


def test_a_name_that_may_mean_any_of_several_places_is_refused(build_vit):
    model = build_vit(model_class=Renamed)
    model.blocks[1] = model.blocks[0]
    model.layers = nn.ModuleList(model.blocks)
    with pytest.raises(UnsupportedModelError, match=r"at 'blocks.0' and 'blocks.1', .* other name 'layers.0' cannot"):
        ShiftTracker(model).prune({0: 16})


def test_the_original_keeps_its_shared_modules(vit):
    vit.blocks[1] = vit.blocks[0]
    ShiftTracker(vit).prune({0: 16})
    assert vit.blocks[1] is vit.blocks[0]
