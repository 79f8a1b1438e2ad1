"""Models that compute with smaller images than they are given, against models that were resized by timm itself."""

import copy
import pickle

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled

from repshift import (
    Recipe,
    RepresentationError,
    RepshiftError,
    ScheduleError,
    ShiftTracker,
    UnsupportedModelError,
    dense,
    describe,
    load_model,
    recipe_of,
    save_model,
)
from repshift.resizing import resized

KINDS = {
    "class token": {},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "dynamic": {"dynamic_img_size": True},
    "no positions": {"pos_embed": "none"},
}
FAMILIES = [*KINDS, "distilled", "convolutional stem", "tiny_vim", "tiny_resnet"]


def make(family, build_vit):
    if family in KINDS:
        return build_vit(**KINDS[family])
    if family == "distilled":
        return build_vit(VisionTransformerDistilled)
    return load_model("tiny_vit" if family == "convolutional stem" else family, pretrained=True).eval()


@pytest.fixture(params=FAMILIES)
def model(request, build_vit):
    return make(request.param, build_vit)


@pytest.fixture
def images(model):
    side = model.pretrained_cfg["input_size"][-1] if hasattr(model, "pretrained_cfg") else 32
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


def other_size(images):
    return images.shape[-2] // 4 * 3, images.shape[-1] // 2


def by_timm(model, size):
    other = copy.deepcopy(model)
    if hasattr(other, "set_input_size"):
        other.set_input_size(img_size=size)
    return other


@torch.no_grad()
def test_a_model_at_another_size_is_the_one_that_timm_makes_of_it(model, images):
    size = other_size(images)
    expected = by_timm(model, size)(resized(images, size))
    torch.testing.assert_close(ShiftTracker(model).prune(input_size=size)(images), expected, rtol=0, atol=0)


@torch.no_grad()
def test_cuts_and_maps_are_those_of_the_other_size(model, images):
    size = other_size(images)
    pruned, other = ShiftTracker(model).prune("2@0", input_size=size), by_timm(model, size)
    expected = ShiftTracker(ShiftTracker(other).prune("2@0")).run(resized(images, size))
    found = ShiftTracker(pruned).run(images)
    torch.testing.assert_close(found.output, expected.output, rtol=0, atol=0)
    for name, drawn in expected.maps.items():
        torch.testing.assert_close(found.maps[name], drawn, rtol=0, atol=0, equal_nan=True)
    if describe(model).grid(1, 1) is not None:
        assert describe(pruned).grid(*images.shape[-2:]) == describe(other).grid(*size)
        assert describe(pruned).tokens == len(expected.shifts[0][0])


@torch.no_grad()
def test_at_its_own_size_nothing_is_resized(model, images):
    own = tuple(images.shape[-2:])
    assert torch.equal(ShiftTracker(model).prune(input_size=own)(images), model(images))
    assert torch.equal(
        ShiftTracker(model).prune("2@0", input_size=own)(images), ShiftTracker(model).prune("2@0")(images)
    )


@torch.no_grad()
def test_weights_are_those_of_the_model_and_the_way_back_is_whole(model, images, tensors):
    before, attributes = model(images), {name: set(vars(module)) for name, module in model.named_modules()}
    pruned = ShiftTracker(model).prune("2@0", input_size=other_size(images))
    found = pruned(images)
    assert all(value is tensors(model)[name] for name, value in tensors(pruned).items())
    assert {name: value.shape for name, value in pruned.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert torch.equal(model(images), before)
    whole = dense(pruned)
    assert torch.equal(whole(images), before)
    assert {name: set(vars(module)) for name, module in whole.named_modules()} == attributes
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(other(images), found)
        assert torch.equal(dense(other)(images), before)


@torch.no_grad()
def test_weights_that_are_loaded_later_count(model, images):
    size = other_size(images)
    pruned = ShiftTracker(model).prune(input_size=size)
    pruned.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()}, assign=True)
    torch.testing.assert_close(pruned(images), by_timm(model, size)(resized(images, size)), rtol=0, atol=0)


def test_gradients_reach_the_table_of_positions(build_vit, images_of_vit, reached):
    vit = build_vit()
    pruned = ShiftTracker(vit).prune(input_size=24)
    assert "pos_embed" in reached(pruned, images_of_vit)
    assert vit.pos_embed.grad.shape == vit.pos_embed.shape


@pytest.fixture
def images_of_vit():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", ["class token", "tiny_resnet"])
@torch.no_grad()
def test_it_compiles_and_exports_whole(family, build_vit, fresh_dynamo):
    model = make(family, build_vit)
    images = torch.randn(2, 3, 32 if family == "class token" else 64, 32 if family == "class token" else 64)
    pruned = ShiftTracker(model).prune("2@0", input_size=other_size(images))
    expected = pruned(images)
    torch.compile(model, backend="eager")(images)  # what was compiled before it does not serve it
    torch.testing.assert_close(torch.compile(pruned, fullgraph=True, backend="eager")(images), expected)
    for strict in (False, True):
        exported = torch.export.export(pruned, (images,), strict=strict).module()
        torch.testing.assert_close(exported(images), expected)


@torch.no_grad()
def test_half_precision_and_functional_calls(build_vit, images_of_vit):
    pruned = ShiftTracker(build_vit()).prune("2@0", input_size=24)
    doubled = {name: 2 * value for name, value in pruned.state_dict().items()}
    found = torch.func.functional_call(pruned, doubled, (images_of_vit,))
    pruned.load_state_dict(doubled)
    assert torch.equal(pruned(images_of_vit), found)
    assert pruned.bfloat16()(images_of_vit.bfloat16()).dtype == torch.bfloat16


def test_a_folder_brings_it_back(tmp_path, images_of_vit):
    model, images = load_model("tiny_vit", pretrained=True), torch.rand(1, 3, 64, 64)
    pruned = ShiftTracker(model).prune(input_size=48)
    save_model(pruned, tmp_path, "tiny_vit")
    loaded = load_model(tmp_path)
    assert recipe_of(loaded) == Recipe(input_size=48) == recipe_of(pruned)
    assert torch.equal(loaded.eval()(images), pruned.eval()(images))


@torch.no_grad()
def test_a_part_of_a_model_can_take_another_size(build_vit, images_of_vit):
    whole = torch.nn.Sequential(torch.nn.Identity(), build_vit())
    pruned = ShiftTracker(whole).prune("2@0", input_size=24)
    expected = ShiftTracker(whole[1]).prune("2@0", input_size=24)(images_of_vit)
    assert torch.equal(pruned(images_of_vit), expected)
    assert ShiftTracker(pruned).run(images_of_vit).maps["1.blocks.0"].shape == (2, 6, 6)


@torch.no_grad()
def test_intermediate_maps_of_smaller_images_are_smaller(build_vit, images_of_vit):
    vit = build_vit()
    found = ShiftTracker(vit).prune(input_size=(24, 16)).forward_intermediates(images_of_vit)[1]
    expected = by_timm(vit, (24, 16)).forward_intermediates(resized(images_of_vit, (24, 16)))[1]
    assert found[0].shape == (2, 32, 6, 4)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("class token", 30, r"30x30 does not come to whole tokens of 4x4 pixels. Give multiples, such as .*\(28, 28\)"),
        ("class token", (2, 32), r"such as input_size=\(4, 32\)"),
        ("tiny_vim", 60, "whole tokens of 8x8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(family, size, message, build_vit):
    with pytest.raises(UnsupportedModelError, match=message):
        ShiftTracker(make(family, build_vit)).prune(input_size=size)


def test_a_schedule_is_checked_against_the_tokens_of_the_other_size(build_vit):
    with pytest.raises(ScheduleError, match=r"16 (prunable )?tokens"):
        ShiftTracker(build_vit()).prune("30@0", input_size=16)


def test_the_images_are_those_of_the_dense_model(build_vit):
    pruned = ShiftTracker(build_vit()).prune(input_size=24)
    with pytest.raises(RepresentationError, match="of 32x32 pixels, which it resizes to 24x24 itself"):
        pruned(torch.randn(1, 3, 24, 24))
    with pytest.raises(RepresentationError, match=r"takes images \(batch, 3, 32, 32\)"):
        pruned(torch.randn(1, 1, 32, 32))


def test_what_is_not_described_is_refused(build_vit):
    vit = build_vit()
    vit.patch_embed.feat_ratio = None
    with pytest.raises(RepshiftError, match="How many pixels a token"):
        ShiftTracker(vit).prune(input_size=24)
