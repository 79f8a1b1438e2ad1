"""What every pruned model promises, held for vision transformers of every shape and for what they are part of."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock
from torch import nn

from repshift import Recipe
from repshift.testing import CHECKS, BackboneError, check_backbone, leftovers, make_subject

NO_CLASS_TOKEN = {"class_token": False, "global_pool": "avg"}
MODELS = {
    "class token": {},
    "distillation token": {"model_class": VisionTransformerDistilled},
    "registers and layer scale": {"reg_tokens": 3, "init_values": 0.5},
    "average pooling": NO_CLASS_TOKEN,
    "average pooling with the prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "map pooling": {"class_token": False, "global_pool": "map"},
    "post-norm": {"block_fn": ResPostBlock},
    "parallel branches": {"block_fn": ParallelThingsBlock},
}
RECIPES = {
    "whole blocks": Recipe("0.3@0;7@1", operation="block", distance="cosine"),
    "attention": Recipe("0.3@0;7@1", operation="attn", residual=True, keep="bottom"),
    "class attention": Recipe("0.3@0;7@1", score="cls_attention"),
    "norm": Recipe("0.3@0;7@1", score="norm"),
    "restored": Recipe("0.3@0;7@1", restore=True),
    "restored as they left": Recipe("0.3@0;7@1", restore="left"),
    **{name: Recipe("0.3@0;7@1", pruner=name) for name in ("cells", "mnn", "mnn1", "tome", "merge", "fuse")},
    "ward": Recipe("4@0;3@1", pruner="ward"),  # an exported graph has each of its steps
    "saliency_merge": Recipe("0.3@0;7@1", pruner="saliency_merge", operation="attn"),
    "merged and restored": Recipe("0.3@0;7@1", pruner="mnn", restore=True),
    "merged, by one kernel": Recipe("0.3@0;7@1", pruner="mnn", attention="flash"),
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_every_promise_is_kept_by_every_shape_of_model(build_vit, images, promise, options):
    promise(make_subject(build_vit(depth=3, **options), images))


def test_every_promise_is_kept_by_blocks_of_one_branch(build_vit, images, promise):
    recipe = Recipe("0.25@0,1", operation="block")
    promise(make_subject(build_vit(depth=3, block_fn=ParallelScalingBlock), images, recipe))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_promise_is_kept_by_every_recipe(build_vit, images, promise, recipe):
    promise(make_subject(build_vit(depth=3, global_pool="avg"), images, recipe))


@pytest.mark.parametrize("options", [{}, NO_CLASS_TOKEN, {"block_fn": ParallelThingsBlock}], ids=str)
def test_every_promise_is_kept_by_models_that_merge(build_vit, images, promise, merge, options):
    promise(make_subject(build_vit(depth=3, **options), images, Recipe("0.3@0;7@1", pruner=merge)))


class Normalise(nn.Module):
    def forward(self, images):
        return (images - 0.1) / 0.9


def test_every_promise_is_kept_by_a_model_that_holds_a_backbone(build_vit, images, promise):
    promise(make_subject(nn.Sequential(Normalise(), build_vit(depth=3)).eval(), images))


@pytest.mark.slow
def test_every_promise_about_compilation_is_kept(build_vit, images, promise_of_compilation):
    promise_of_compilation(make_subject(build_vit(depth=3), images))


@pytest.mark.slow
def test_every_promise_about_compilation_is_kept_by_models_that_merge(build_vit, images, promise_of_compilation, merge):
    model = nn.Sequential(Normalise(), build_vit(depth=3, **NO_CLASS_TOKEN)).eval()
    promise_of_compilation(make_subject(model, images, Recipe("0.3@0;7@1", pruner=merge)))


# whatever compiles what these choose serves the others, too; one of them cuts inside of the block
FURTHER = {
    "mnn": ("compiled models prune alike, in any order", Recipe("0.3@0;7@1", pruner="mnn")),
    "saliency_merge": ("graph breaks change nothing", RECIPES["saliency_merge"]),
    "restored": ("graph breaks change nothing", RECIPES["restored"]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), FURTHER.values(), ids=FURTHER)
def test_promises_about_compilation_are_kept_by_other_recipes(build_vit, images, name, recipe):
    CHECKS[name](make_subject(build_vit(depth=3), images, recipe))


# --- the function itself ------------------------------------------------------------------------------------------


def test_all_checks_are_made_by_one_call(build_vit, images, monkeypatch):
    asked = []
    checks = {name: lambda subject, name=name: asked.append((name, subject.model)) for name in CHECKS}
    monkeypatch.setattr("repshift.testing.CHECKS", checks)
    model = build_vit(depth=2)
    assert check_backbone(model, images) == tuple(CHECKS)
    assert asked == [(name, model) for name in CHECKS]


def test_broken_promises_are_listed(build_vit, images, monkeypatch):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    names = ["images do not disturb each other", "nothing is left of a forward", "copies prune alike"]
    monkeypatch.setattr("repshift.testing.CHECKS", {name: CHECKS[name] for name in names})
    model = build_vit(depth=2)
    model.blocks[1].drop_path1 = Noisy()
    with pytest.raises(BackboneError) as caught:
        check_backbone(model, images)
    first, *listed = str(caught.value).splitlines()
    assert first == "VisionTransformer breaks 2 of 3 promises:"
    assert [line.partition(": ")[0] for line in listed] == [f"- {names[0]}", f"- {names[2]}"]


class AddsPlaces(nn.Module):
    """Adds what it knows of each place, as if all tokens were there."""

    def forward(self, x):
        return x + torch.arange(x.shape[1]).unsqueeze(1) / 10


def test_a_model_that_looks_positions_up_in_its_blocks_is_found_out(build_vit, images):
    model = build_vit(depth=3)
    model.blocks[2].norm1 = nn.Sequential(model.blocks[2].norm1, AddsPlaces())
    subject = make_subject(model, images)
    for name in ("what is left is treated as in the dense model", "places do not matter behind a cut"):
        with pytest.raises(BackboneError, match="other numbers behind the last block"):
            CHECKS[name](subject)


def test_what_is_held_between_forwards_is_listed(vit, images):
    pruned = make_subject(vit, images).pruned()
    pruned.blocks[0].repshift_roles[-1].streams.own.before = images
    assert "blocks.0: before" in leftovers(pruned)
