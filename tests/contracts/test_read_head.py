"""A last block that computes only what the head reads, against the whole block."""

import copy
import pickle

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from repshift import (
    Recipe,
    ScheduleError,
    ShiftTracker,
    UnsupportedModelError,
    dense,
    load_model,
    recipe_of,
    save_model,
)

KINDS = {
    "class token": (VisionTransformer, {}),
    "registers": (VisionTransformer, {"reg_tokens": 3, "init_values": 0.1, "qk_norm": True, "qkv_bias": False}),
    "two read": (VisionTransformerDistilled, {}),
    "norms within": (VisionTransformer, {"scale_attn_norm": True, "scale_mlp_norm": True, "fc_norm": True}),
}
RECIPES = [None, Recipe("0.2@0,2"), Recipe("0.2@0,2", pruner="mnn"), Recipe("9@1", input_size=24)]


@pytest.fixture(params=KINDS)
def model(request, build_vit):
    kind, options = KINDS[request.param]
    return build_vit(kind, **options)


def pruned_by(model, recipe, **changes):
    said = {} if recipe is None else {name: getattr(recipe, name) for name in ("schedule", "pruner", "input_size")}
    return ShiftTracker(model).prune(Recipe(**said, **changes))


def flops(model, images):
    # the other kernels are not counted on a CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(images)
    return counter.get_total_flops()


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@torch.no_grad()
def test_the_answers_are_those_of_the_whole_block(model, images, recipe):
    whole = model if recipe is None else pruned_by(model, recipe)
    found, expected = pruned_by(model, recipe, read="head")(images), whole(images)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@torch.no_grad()
def test_it_saves_queries_and_mlp_of_what_is_not_read(vit, images):
    pruned, channels, unread = ShiftTracker(vit).prune(read="head"), 32, 64
    # query, projection and MLP of each token, and its row of the attention: 65 keys, twice
    saved = unread * (10 * channels**2 + 2 * 65 * channels)
    assert flops(vit, images) - flops(pruned, images) == 2 * len(images) * saved


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_masks_and_sizes_are_honoured(model, images, fused):
    for block in model.blocks:
        block.attn.fused_attn = fused
    tokens = 64 + model.num_prefix_tokens
    hidden = torch.rand(len(images), 1, tokens, tokens) < 0.8
    hidden[..., 0] = True
    mask = {"attn_mask": hidden}
    for pruner, given in (("tokens", mask), ("mnn", mask), ("tokens", {"is_causal": True})):
        whole, pruned = (ShiftTracker(model).prune("0.2@0", pruner=pruner, read=read) for read in ("all", "head"))
        expected = whole.forward_head(whole.forward_features(images, **given))
        assert (pruned(images, **given) - expected).abs().max() <= 1e-6 * expected.abs().max()


@torch.no_grad()
def test_a_projection_that_is_no_plain_layer_runs_as_it_is(vit, images):
    class Adapted(nn.Linear):
        def forward(self, x):
            return 1.5 * super().forward(x)

    pruned = ShiftTracker(vit).prune(read="head")
    vit.blocks[-1].attn.qkv.__class__ = pruned.blocks[-1].attn.qkv.__class__ = Adapted
    torch.testing.assert_close(pruned(images), vit(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["attn", "attn.qkv", "attn.proj", "attn.q_norm"])
@pytest.mark.parametrize("patched", [False, True])
def test_hooks_and_patches_inside_the_block_are_honoured(build_vit, images, where, patched):
    vit = build_vit(qk_norm=True)
    module = vit.blocks[-1].get_submodule(where)
    with torch.no_grad():
        plain = vit(images)
        if patched:
            own = module.forward
            module.forward = lambda *args, **kwargs: 1.5 * own(*args, **kwargs)
        else:
            module.register_forward_hook(lambda module, args, output: 1.5 * output)
        expected = vit(images)
        assert (expected - plain).abs().max() > 1e-3
        pruned = ShiftTracker(vit).prune(Recipe(None, read="head"))
        torch.testing.assert_close(pruned(images), expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_whole_block(vit, images):
    pruned = ShiftTracker(vit).prune(read="head")
    found, expected = (
        torch.autograd.grad(model(images).square().sum(), tuple(model.parameters())) for model in (pruned, vit)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_gradient_checkpointing_may_repeat_the_block(vit, images):
    pruned = ShiftTracker(vit).prune(read="head")
    pruned.set_grad_checkpointing()
    pruned.train()(images).sum().backward()
    assert vit.blocks[-1].mlp.fc1.weight.grad.any()


@pytest.mark.parametrize("kind", ["class token", "two read"])
@torch.no_grad()
def test_it_compiles_exports_and_copies(kind, build_vit, images, fresh_dynamo):
    vit = build_vit(KINDS[kind][0])
    pruned = ShiftTracker(vit).prune("9@1", pruner="mnn", read="head")
    expected = pruned(images)
    torch.compile(vit, backend="eager")(images)
    torch.testing.assert_close(torch.compile(pruned, fullgraph=True, backend="eager")(images), expected)
    torch.testing.assert_close(torch.export.export(pruned, (images,)).module()(images), expected)
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(other(images), expected)
    assert torch.equal(dense(pruned)(images), vit(images))


def test_a_folder_brings_it_back(tmp_path):
    pruned = ShiftTracker(load_model("tiny_vit", pretrained=True)).prune(read="head")
    save_model(pruned, tmp_path, "tiny_vit")
    assert recipe_of(load_model(tmp_path)) == Recipe(read="head")


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, images: model.forward_features(images),
        lambda model, images: model.forward_intermediates(images),
        lambda model, images: model.get_intermediate_layers(images),
        lambda model, images: ShiftTracker(model),
        lambda model, images: ShiftTracker(model, sites="blocks.3.mlp"),
    ],
)
def test_whoever_asks_for_tokens_is_refused(vit, images, ask):
    pruned = ShiftTracker(vit).prune(read="head")
    with pytest.raises(UnsupportedModelError, match="pruned with read='head'"):
        ask(pruned, images)
    assert pruned(images).shape == (3, 10)  # and nothing of it is left


def test_blocks_before_the_last_can_be_watched(vit, images):
    pruned = ShiftTracker(vit).prune("9@1", read="head")
    tracker = ShiftTracker(pruned, sites="blocks.[0-2]").run(images)
    assert tracker.kept["blocks.1"].shape == (3, 55)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "avg"}, "more than the class token .global_pool='avg'"),
        ({"global_pool": "map"}, "more than the class token"),
        ({"block_fn": ParallelScalingBlock}, "block is of another kind .*ParallelScalingBlock"),
        ({"block_fn": ResPostBlock}, "block is of another kind .*ResPostBlock"),
        ({"attn_layer": "diff"}, "attention of its last block is of another kind"),
    ],
)
def test_heads_and_blocks_of_other_kinds_are_refused(build_vit, options, message):
    with pytest.raises(UnsupportedModelError, match=message):
        ShiftTracker(build_vit(**options), operation="block").prune(read="head")


def test_a_head_of_ones_own_is_refused(build_vit):
    class Own(VisionTransformer):
        def forward_head(self, x, pre_logits=False):
            return self.head(x.mean(1))

    with pytest.raises(UnsupportedModelError, match="forward_head is its own"):
        ShiftTracker(build_vit(Own)).prune(read="head")


def test_what_it_goes_ill_with_is_refused(vit):
    with pytest.raises(UnsupportedModelError, match="not described"):
        ShiftTracker(load_model("tiny_resnet")).prune(read="head")
    with pytest.raises(UnsupportedModelError, match="restore gives every token"):
        Recipe("9@1", restore=True, read="head")
    with pytest.raises(ScheduleError, match=r"after block 3, the last one.*'9@0:3'"):
        ShiftTracker(vit).prune("r9", read="head")
