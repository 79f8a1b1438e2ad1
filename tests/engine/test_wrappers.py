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
    with pytest.raises(UnsupportedModelError, match=r"DistributedDataParallel.*the model inside, model\.module"):
        prune(parallel)
    assert prune(parallel.module)(IMAGES).shape == (1, 10)


def test_extractors_of_features_name_the_model_inside():
    extractor = timm.create_model("vit_tiny_patch16_224", features_only=True, img_size=64, depth=3)
    with pytest.raises(UnsupportedModelError, match=r"FeatureGetterNet.*the model inside, model\.model"):
        prune(extractor)
    assert ShiftTracker(extractor).run(IMAGES).shifts.stacked().shape == (3, 1, 16)
    for name in ("resnet18", "efficientnet_b0"):
        with pytest.raises(UnsupportedModelError, match="built with features_only=True"):
            prune(timm.create_model(name, features_only=True))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: nn.Sequential(nn.Identity(), model)])
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
