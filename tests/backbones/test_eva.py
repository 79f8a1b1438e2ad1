"""timm's Eva: EVA, EVA-02, DINOv3, Perception Encoders; rotary tables for all, for each head, or none."""

from inspect import signature

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.eva import Eva

from repshift import ShiftTracker, UnsupportedModelError, describe
from repshift.positions import pick
from repshift.testing import CHECKS, make_subject
from repshift.testing.subjects import KeepAll

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
MIXED = {"use_rot_pos_emb": True, "rope_type": "mixed", "use_abs_pos_emb": False}
DINOV3 = {"use_rot_pos_emb": True, "rope_type": "dinov3", "use_abs_pos_emb": False, "dynamic_img_size": True}
KINDS = {
    "no rotary table": {"init_values": 0.5},
    "a table for each head of each block": {**MIXED, "num_reg_tokens": 2, "global_pool": "token"},
    "grouped keys": {**DINOV3, "attn_type": "rope", "num_kv_heads": 1, "qkv_fused": False, "rope_rotate_half": True},
    "post-norm": {"use_post_norm": True, "use_rot_pos_emb": True, "class_token": False},
    "pooled by attention": {"use_rot_pos_emb": True, "rope_grid_indexing": "xy", "global_pool": "map"},
}
if "num_kv_heads" not in signature(Eva).parameters:  # timm 1.0.23
    del KINDS["grouped keys"]
# what depends on the family; the rest is held for models with rotary tables in tests/contracts
OWN = ("described", "bit for bit", "dense model", "places", "schedule", "count", "disturb each other", "pruned by")


def build(**options):
    torch.manual_seed(0)
    model = Eva(**(SMALL | options)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "rope" not in name:  # branches that weigh something beside the stream
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[1] ** -0.5)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_what_every_family_promises_is_kept_by_every_kind(options, images):
    subject = make_subject(build(**options), images)
    for name, check in CHECKS.items():
        if any(word in name for word in OWN) and "threads" not in name:
            check(subject)


def rotated(x, table):
    """Turn pairs of channels, (batch, heads, tokens, channels), by sines and cosines: the definition of RoPE."""
    sine, cosine = table.chunk(2, -1)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * cosine + turned * sine


@torch.no_grad()
def by_hand(model, images, kept_behind):
    """EVA's forward written out: pre-norm, rotary attention, LayerScale, an average of the patches."""
    prefix, heads = model.num_prefix_tokens, SMALL["num_heads"]
    patches = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(2, -1, -1), patches], 1)
    x = x + (0 if model.pos_embed is None else model.pos_embed)
    places = torch.arange(patches.shape[1]).expand(2, -1)
    tables = model.rope.get_embed()
    for number, block in enumerate(model.blocks):
        table = tables[number] if tables.ndim == 4 else tables.expand(heads, -1, -1)
        table = torch.stack([table[:, each] for each in places])
        batch, length, width = x.shape
        bias = torch.cat([block.attn.q_bias, torch.zeros(width), block.attn.v_bias])
        qkv = F.linear(block.norm1(x), block.attn.qkv.weight, bias).view(batch, length, 3, heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = (torch.cat([each[:, :, :prefix], rotated(each[:, :, prefix:], table)], 2) for each in (q, k))
        weights = (q @ k.mT / (width // heads) ** 0.5).softmax(-1)
        x = x + block.gamma_1 * block.attn.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))
        x = x + block.gamma_2 * block.mlp(block.norm2(x))
        if number in kept_behind:
            kept = kept_behind[number]
            x, places = torch.cat([x[:, :prefix], pick(x[:, prefix:], kept)], 1), pick(places, kept)
    return model.head(model.fc_norm(x[:, prefix:].mean(1)))


@pytest.mark.parametrize("kind", [{}, MIXED], ids=["one table", "a table for each head of each block"])
def test_a_pruned_forward_is_the_one_written_out(kind, images):
    model = build(**({"use_rot_pos_emb": True, "init_values": 0.5} | kind))
    pruned = ShiftTracker(model).prune({0: 6, 1: 4})
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        found = pruned(images)
    first, second = tracker.kept["blocks.0"], tracker.kept["blocks.1"]  # both count from the images' own places
    behind = torch.stack([torch.searchsorted(one, two) for one, two in zip(first, second, strict=True)])
    assert (first != torch.arange(10)).any()
    torch.testing.assert_close(found, by_hand(model, images, {0: first, 1: behind}))


def test_what_is_compared_of_a_block_is_behind_its_layer_scale(images):
    model = build(init_values=0.5)
    seen = {}
    block = model.blocks[1]
    block.norm2.register_forward_pre_hook(lambda module, args: seen.update(before=args[0]))
    block.mlp.register_forward_hook(lambda module, args, output: seen.update(mlp=output))
    shift = ShiftTracker(model, operation="mlp").run(images).shifts["blocks.1"]
    torch.testing.assert_close(shift, (block.gamma_2 * seen["mlp"] - seen["before"])[:, 1:].norm(dim=-1))


def test_tokens_that_patch_dropout_takes_are_not_there_to_be_dropped(images):
    model = build(use_rot_pos_emb=True, patch_drop_rate=0.5).train()
    pruned = ShiftTracker(model).prune({0: 2, 1: 0.5})
    torch.manual_seed(3)
    kept = ShiftTracker(model).prune({0: 2, 1: 0.5}, pruner=KeepAll())(images)
    torch.manual_seed(3)
    assert torch.equal(kept, model(images))
    with ShiftTracker(pruned) as tracker:
        pruned(images).sum().backward()
    assert [each.shape[1] for each in tracker.kept.values()] == [6, 3]  # of the eight that are left of sixteen


@pytest.mark.parametrize("options", [{}, MIXED, DINOV3, {"use_rot_pos_emb": True, "ref_feat_shape": (2, 2)}], ids=str)
def test_a_smaller_input_is_timms_model_of_that_size(options, images):
    model = build(**options)
    if getattr(model.rope, "bands", model) is None:  # timm 1.0.23
        with pytest.raises(UnsupportedModelError, match="keeps the rotary table of this model for one size only"):
            ShiftTracker(model).prune(input_size=(16, 24))
        return
    smaller = ShiftTracker(model).prune(input_size=(16, 24))
    own = build(**options)
    own.load_state_dict(model.state_dict())
    own.set_input_size(img_size=(16, 24))
    resized = F.interpolate(images, size=(16, 24), mode="bicubic", antialias=True)
    torch.testing.assert_close(smaller(images), own(resized))
    pruned = ShiftTracker(model).prune({0: 2}, input_size=(16, 24))
    assert ShiftTracker(pruned).run(images).maps["blocks.0"].shape == (2, 2, 3)


def test_attention_is_no_score_where_it_is_turned_behind_what_can_be_watched(images):
    model = build(use_rot_pos_emb=True)
    with pytest.raises(UnsupportedModelError, match=r"no attention map to score by: its queries and keys are turned"):
        ShiftTracker(model).prune({0: 2}, score="mean_attention")
    assert "mean_attention" not in describe(model).scores
    assert "tome" in describe(model).pruners
    assert ShiftTracker(model).prune({0: 2}, pruner="tome")(images).shape == (2, 5)


def test_the_last_block_of_a_turned_model_is_not_computed_in_parts():
    with pytest.raises(UnsupportedModelError, match=r"read='head' cannot be given here: its last block turns"):
        ShiftTracker(build(use_rot_pos_emb=True, global_pool="token")).prune({0: 2}, read="head")


@pytest.mark.parametrize("name", ["vit_pe_core_tiny_patch16_384", "vit_small_patch16_dinov3"])
def test_named_models_are_found_with_their_blocks(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert len(describe(model).structure.sites) == len(model.blocks)


def test_a_head_that_averages_and_takes_the_largest_cannot_be_told_of_sizes(images):
    model = build(global_pool="avgmax")
    with pytest.raises(UnsupportedModelError, match=r"cannot be told: .*average and the largest"):
        ShiftTracker(model).prune({0: 4}, pruner="mnn")
    assert ShiftTracker(model).prune({0: 4})(images).shape == (2, 5)
