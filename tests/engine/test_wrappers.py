import pytest
import timm
import torch
from torch import nn

from repshift import (
    Recipe,
    RecipeError,
    ShiftTracker,
    UnsupportedModelError,
    dense,
    describe,
    load_model,
    recipe_of,
    repeated_blocks,
)
from repshift.testing import KeepAll

IMAGES = torch.rand(1, 3, 64, 64)


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def prune(model):
    return ShiftTracker(model).prune("1@0")


def test_a_sharded_model_says_to_prune_first(group):
    from torch.distributed.fsdp import fully_shard

    model = load_model("tiny_vit", depth=2)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    for call in (prune, dense):
        with pytest.raises(UnsupportedModelError, match=r"sharded already.*Prune first"):
            call(model)
    pruned = prune(load_model("tiny_vit", depth=2))
    fully_shard(pruned)
    assert pruned(IMAGES).shape == (1, 10)


def test_wrappers_that_do_not_go_with_a_pruned_model_name_the_one_inside(group):
    parallel = nn.parallel.DistributedDataParallel(load_model("tiny_vit", depth=2))
    with pytest.raises(UnsupportedModelError, match=r"DistributedDataParallel.*Prune that, model\.module, instead"):
        prune(parallel)
    assert prune(parallel.module)(IMAGES).shape == (1, 10)


def test_extractors_of_tokens_take_models_that_restore():
    torch.manual_seed(0)
    extractor = timm.create_model("vit_tiny_patch16_224", features_only=True, img_size=64, depth=3).eval()
    for schedule in ("4@0", "0.25@0::2"):
        with pytest.raises(UnsupportedModelError, match=r"FeatureGetterNet.*Prune with restore=True"):
            ShiftTracker(extractor).prune(schedule)
    assert ShiftTracker(extractor).run(IMAGES).shifts.stacked().shape == (3, 1, 16)
    pruned = ShiftTracker(extractor).prune("4@0", restore=True)
    inside = ShiftTracker(extractor.model).prune("4@0", restore=True)
    expected = inside.forward_intermediates(IMAGES, indices=extractor.out_indices, intermediates_only=True)
    for found, right, dense_map in zip(pruned(IMAGES), expected, extractor(IMAGES), strict=True):
        assert torch.equal(found, right)
        assert found.shape == dense_map.shape
        assert not torch.equal(found, dense_map)


EXTRACTORS = {
    "resnet10t": [(32, 32), (14, 14), (7, 7), (4, 4), (2, 2)],
    "convnext_zepto_rms": [(14, 14), (7, 7), (3, 3), (1, 1)],
    "efficientnet_lite0": [(32, 32), (14, 14), (7, 7), (4, 4), (2, 2)],
    "mobilenetv3_small_050": [(32, 32), (16, 16), (6, 6), (3, 3), (2, 2)],
}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors_of_maps_are_pruned_as_their_networks_are(name):
    torch.manual_seed(0)
    extractor = timm.create_model(name, features_only=True).eval()
    first = next(number for number, site in enumerate(describe(extractor).structure.sites) if site.operations)
    pruned = ShiftTracker(extractor).prune({first: 2})
    assert [tuple(each.shape[-2:]) for each in pruned(IMAGES)] == EXTRACTORS[name]
    kept = ShiftTracker(extractor).prune({first: 2}, pruner=KeepAll())
    for one, other in zip(kept(IMAGES), extractor(IMAGES), strict=True):
        assert torch.equal(one, other)


def test_extractors_that_are_not_known_say_so():
    for name, options in (("regnetx_002", {}), ("efficientnet_lite0", {"feature_location": "expansion"})):
        with pytest.raises(UnsupportedModelError, match="built with features_only=True"):
            prune(timm.create_model(name, features_only=True, **options))


class Module(nn.Module):
    """What a module of Lightning is to us: a model with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.model = load_model("tiny_vit", depth=2)

    def forward(self, images):
        return self.model(images)


def test_a_model_with_adapters_is_pruned_with_them():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        load_model("tiny_vit", depth=2), peft.LoraConfig(target_modules=["qkv", "fc1"])
    ).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # which begins as zero
            nn.init.normal_(parameter)
    pruned = ShiftTracker(adapted).prune("64@0")
    assert type(pruned) is type(adapted)
    assert torch.equal(pruned(IMAGES), ShiftTracker(adapted.get_base_model()).prune("64@0")(IMAGES))
    with pruned.disable_adapter():
        without = pruned(IMAGES)
    assert not torch.equal(without, pruned(IMAGES))


def test_timms_models_in_transformers_are_pruned():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    arguments = {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2}
    config = transformers.TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=arguments, num_labels=3)
    model = transformers.TimmWrapperModel(config).eval()
    pruned = ShiftTracker(model).prune("4@0")
    found, inside = pruned(IMAGES), ShiftTracker(model.timm_model).prune("4@0")
    assert torch.equal(found.last_hidden_state, inside.forward_features(IMAGES))
    assert found.last_hidden_state.shape == (1, 13, 24)
    with pytest.raises(UnsupportedModelError, match="restore=True"):
        pruned(IMAGES, output_hidden_states=True)
    restored = ShiftTracker(model).prune("4@0", restore=True)(IMAGES, output_hidden_states=True)
    assert [each.shape for each in restored.hidden_states] == [(1, 24, 4, 4)] * 2


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: nn.Sequential(nn.Identity(), model), lambda _: Module()]
)
def test_other_wrappers_are_pruned_whole(wrap):
    assert prune(wrap(load_model("tiny_vit", depth=2)))(IMAGES).shape == (1, 10)


def test_compiled_scripted_and_traced_models_are_described_as_what_they_are():
    model = load_model("tiny_resnet")
    with pytest.raises(UnsupportedModelError, match=r"torch\.jit, here model\._orig_mod, and compile the result"):
        prune(torch.compile(model))
    assert "already compiled" in describe(torch.compile(model)).why_not
    with pytest.raises(UnsupportedModelError, match="a graph that was traced from a model"):
        prune(torch.fx.symbolic_trace(model))


@pytest.mark.parametrize("thing", [None, 3, "tiny_vit", [], torch.ones(1), nn.Linear])
def test_only_models_are_models(thing):
    for call in (ShiftTracker, describe, dense, recipe_of, lambda model: repeated_blocks(model, IMAGES)):
        with pytest.raises(UnsupportedModelError, match="Expected a model"):
            call(thing)


@pytest.mark.parametrize("settings", [{"align": 3}, {"align": "yes"}, {"other": 1}])
def test_settings_of_a_pruner_are_of_its_own_kind(settings):
    with pytest.raises(RecipeError, match="The pruner"):
        Recipe.from_dict({"schedule": "1@0", "pruner": {"name": "sequence", **settings}})
