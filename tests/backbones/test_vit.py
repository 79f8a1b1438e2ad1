import pytest
import torch
from timm.models import vision_transformer as timm_vit
from torch import nn

from repshift import ShiftTracker, UnsupportedModelError, load_model
from repshift.backbones.vit import VIT
from repshift.finding import find_structure

BLOCKS = {
    "plain": {},
    "LayerScale": {"init_values": 0.1},
    "norm behind the branch": {"block_fn": timm_vit.ResPostBlock, "init_values": 0.1},
    "parallel branches": {"block_fn": timm_vit.ParallelThingsBlock},
}


def watch(model, sites, images):
    """Record the first input of every module that is entered and the output of every one that is left."""
    inputs, outputs, handles = {}, {}, []

    def keep(store, name, value):
        store[name] = value[0] if isinstance(value, tuple) else value

    for site in sites:
        for operation in site.operations.values():
            for name in (operation.enters, *operation.leaves):
                module = model.get_submodule(name)
                handles += [
                    module.register_forward_pre_hook(lambda module, args, name=name: keep(inputs, name, args)),
                    module.register_forward_hook(lambda module, args, output, name=name: keep(outputs, name, output)),
                ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return inputs, outputs


@pytest.mark.parametrize("kind", BLOCKS)
def test_what_the_operations_yield_adds_up_to_the_stream(make_vit, kind):
    model = make_vit(**BLOCKS[kind])
    sites = VIT.structure(model).sites
    inputs, outputs = watch(model, sites, torch.rand(2, 3, 16, 24))
    for site in sites:
        attn, mlp = site.operations["attn"], site.operations["mlp"]
        entered = inputs[site.name]
        between = entered + sum(outputs[name] for name in attn.leaves)
        assert torch.allclose(inputs[attn.enters], entered)
        assert torch.allclose(inputs[mlp.enters], between, atol=1e-6)
        assert torch.allclose(outputs[site.name], between + sum(outputs[name] for name in mlp.leaves), atol=1e-6)


def test_the_sites_are_the_blocks_in_order():
    structure = find_structure(load_model("deit_tiny_patch16_224"))
    assert [site.name for site in structure.sites] == [f"blocks.{index}" for index in range(12)]
    assert all(set(site.operations) == {"attn", "mlp", "block"} for site in structure.sites)
    assert structure.tokens == 196
    assert structure.grid((224, 224)) == (14, 14)


def test_only_the_whole_block_contains_the_residual(make_vit):
    for site in VIT.structure(make_vit()).sites:
        assert {name for name, operation in site.operations.items() if operation.on_stream} == {"block"}


PREFIXES = [
    ({}, 1),
    ({"reg_tokens": 4}, 5),
    ({"class_token": False, "global_pool": "avg"}, 0),
    ({"class_token": False, "global_pool": "map"}, 0),
    ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, 2),
]


@pytest.mark.parametrize(("options", "prefix"), PREFIXES)
def test_class_token_and_registers_are_the_prefix(make_vit, options, prefix):
    model = make_vit(**options)
    layout = VIT.structure(model).layout
    value = torch.rand(1, prefix + 6, 16)
    assert torch.equal(layout.tokens(value), value[:, prefix:])


def test_the_distillation_token_belongs_to_the_prefix():
    structure = find_structure(load_model("deit_tiny_distilled_patch16_224"))
    assert structure.layout.tokens(torch.rand(1, 198, 192)).shape == (1, 196, 192)


def test_a_model_for_images_of_any_size_has_no_fixed_number_of_tokens(make_vit):
    structure = VIT.structure(make_vit(dynamic_img_size=True))
    assert structure.tokens is None
    assert structure.grid((32, 48)) == (4, 6)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_other_models_are_not_taken_for_a_vit(name):
    assert not VIT.matches(load_model(name))


def test_a_users_subclass_is_recognised():
    class Mine(timm_vit.VisionTransformer):
        pass

    assert VIT.matches(Mine(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2))


@pytest.mark.parametrize("operation", ["attn", "mlp"])
def test_a_block_with_one_joint_branch_has_no_operation_of_its_own(make_vit, operation):
    model = make_vit(block_fn=timm_vit.ParallelScalingBlock)
    with pytest.raises(UnsupportedModelError, match=rf"no operation '{operation}'.*one branch.*operation='block'"):
        ShiftTracker(model, operation=operation)


def test_a_block_with_one_joint_branch_is_served_as_a_whole(make_vit):
    model = make_vit(block_fn=timm_vit.ParallelScalingBlock)
    images = torch.rand(2, 3, 16, 24)
    with ShiftTracker(model, operation="block") as tracker, torch.no_grad():
        model(images)
    assert tracker.shifts["blocks.1"].shape == (2, 6)
    assert ShiftTracker(model, operation="block").prune({0: 2})(images).shape == (2, 3)


class Strange(nn.Module):
    def __init__(self, dim, *args, **kwargs):
        super().__init__()
        self.mixer = nn.Linear(dim, dim)

    def forward(self, x, **kwargs):
        return x + self.mixer(x)


def test_a_block_of_an_unknown_kind_is_refused_with_the_reason(make_vit):
    with pytest.raises(
        UnsupportedModelError, match=r"blocks\.0 is of the class Strange.*not known.*sites='blocks\.\*'"
    ):
        VIT.structure(make_vit(block_fn=Strange))


def test_the_advice_for_a_block_of_an_unknown_kind_works(make_vit):
    model = make_vit(block_fn=Strange)
    with ShiftTracker(model, sites="blocks.*") as tracker, torch.no_grad():
        model(torch.rand(2, 3, 16, 24))
    assert set(tracker.shifts) == {"blocks.0", "blocks.1"}
