"""What the blocks are given beside the tokens follows them: rotary tables, masks, padding."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from repshift import Recipe, Selection, ShiftTracker
from repshift.backbones.eva import EVA
from repshift.companions import Companion
from repshift.layouts import TokenSequence
from repshift.positions import pick
from repshift.pruning import prune
from repshift.sites import Operation, Site, Structure
from repshift.testing import leftovers, make_subject

# --- rotary tables ------------------------------------------------------------------------------------------------


ROTARY = {
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 56, "embed_dim": 32, "num_heads": 2}),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": 64, "embed_dim": 32, "num_heads": 2}),
}


@pytest.fixture(params=ROTARY)
def rotary(request):
    name, options = ROTARY[request.param]
    model = timm.create_model(name, depth=3, num_classes=5, **options).eval()
    return model, torch.randn(3, 3, options["img_size"], options["img_size"])


@torch.no_grad()
def rotated_by_hand(model, images, kept_at):
    x = model.patch_embed(images)
    x, rope = model._pos_embed(x)
    x, prefix = model.norm_pre(x), model.num_prefix_tokens
    for number, block in enumerate(model.blocks):
        x = block(x, rope=rope)
        if number in kept_at:
            kept = kept_at[number]
            x = torch.cat([x[:, :prefix], pick(x[:, prefix:], kept)], 1)
            rope = pick(rope if rope.ndim == 3 else rope.expand(len(x), -1, -1), kept)
            rotated = rope[:, None]
            x = model.blocks[number + 1](x, rope=rotated)
            for later in model.blocks[number + 2 :]:
                x = later(x, rope=rotated)
            break
    return model.forward_head(model.norm(x))


def test_rotary_tables_follow_the_tokens(rotary):
    model, images = rotary
    pruned = ShiftTracker(model).prune({0: 0.4})
    kept = ShiftTracker(pruned).run(images).kept["blocks.0"]
    assert (kept != torch.arange(kept.shape[1])).any()
    torch.testing.assert_close(pruned(images), rotated_by_hand(model, images, {0: kept}))


def test_every_promise_is_kept_by_models_with_rotary_tables(rotary, promise):
    promise(make_subject(*rotary))


def test_every_promise_is_kept_by_models_with_rotary_tables_that_merge(rotary, promise, merge):
    promise(make_subject(*rotary, Recipe("0.3@0;3@1", pruner=merge)))


def test_tables_that_do_not_follow_are_found_out(rotary):
    model, images = rotary
    forgetful = replace(EVA.structure(model), companions=())
    with pytest.raises(RuntimeError, match="size of tensor"):
        prune(model, forgetful, Recipe({0: 0.4}))(images)


# --- masks of the user's own ----------------------------------------------------------------------------------------


MASKS = {"batch": lambda mask: mask, "one for all": lambda mask: mask[0, 0], "words": lambda mask: mask > -1}


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_a_mask_that_is_given_to_a_vit_follows_the_tokens(vit, images, make):
    mask = torch.zeros(1, 1, 65, 65)
    mask[..., 20:40] = -torch.inf
    pruned = ShiftTracker(vit).prune({0: 16})
    found = pruned.forward_features(images, attn_mask=make(mask))
    with torch.no_grad():
        x = vit.blocks[0](vit.norm_pre(vit._pos_embed(vit.patch_embed(images))), attn_mask=mask)
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned.forward_features(images, attn_mask=make(mask))
    kept = tracker.kept["blocks.0"]
    with torch.no_grad():
        x = torch.cat([x[:, :1], pick(x[:, 1:], kept)], 1)
        where = torch.cat([torch.zeros(3, 1, dtype=torch.int64), kept + 1], 1)
        follows = torch.stack([mask[0, 0][places][:, places] for places in where])[:, None]
        for block in vit.blocks[1:]:
            x = block(x, attn_mask=follows)
        torch.testing.assert_close(found, vit.norm(x))


def test_nothing_of_a_mask_is_left(vit, images):
    pruned = ShiftTracker(vit).prune({0: 16})
    expected = pruned(images)
    pruned.forward_features(images, attn_mask=torch.zeros(1, 1, 65, 65))
    assert not leftovers(pruned)
    assert torch.equal(pruned(images), expected)


# --- text: padding is a token of size 0 -----------------------------------------------------------------------------


class TextLayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x, attention_mask=None):
        batch, length, channels = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, 4, channels // 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attention_mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, channels))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Words to features; the mask says which words are there, as in BERT."""

    def __init__(self, channels=32, depth=4):
        super().__init__()
        self.embeddings = nn.Linear(8, channels)
        self.layers = nn.ModuleList(TextLayer(channels) for _ in range(depth))

    def forward(self, words, attention_mask):
        x = self.embeddings(words)
        mask = (1.0 - attention_mask[:, None, None]) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, attention_mask=mask)
        return x


class TextBackbone:
    def matches(self, model):
        return isinstance(model, TextEncoder)

    def structure(self, model):
        def site(name):
            return Site(name, {"mlp": Operation(f"{name}.norm2", (f"{name}.mlp",))})

        return Structure(
            sites=tuple(site(f"layers.{number}") for number in range(len(model.layers))),
            layout=TokenSequence(1),
            embedding="embeddings",
            grid=None,
            tokens=None,
            companions=(Companion("attention_mask", "batch 1 token token", prefix=1, padding=True),),
            bias="attention_mask",
            restores=f"layers.{len(model.layers) - 1}",
        )


@pytest.fixture
def text(register):
    """An encoder, sixteen words of which the last four are padding, and the mask that says so."""
    register(TextBackbone())
    mask = torch.ones(2, 16)
    mask[:, 12:] = 0
    return TextEncoder().eval(), torch.randn(2, 16, 8), mask


@pytest.mark.parametrize("pruner", ["tokens", "merge"])
def test_padding_goes_first_and_the_rest_is_the_text_without_it(text, pruner, merge):
    model, words, mask = text
    pruner = merge if pruner == "merge" else pruner
    padded = ShiftTracker(model).prune({0: 4, 2: 3}, pruner=pruner)(words, mask)
    plain = ShiftTracker(model).prune({2: 3}, pruner=pruner)(words[:, :12], mask[:, :12])
    assert padded.shape == plain.shape == (2, 9, 32)
    torch.testing.assert_close(padded, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep", ["top", "bottom"])
@pytest.mark.parametrize("pruner", ["tokens", "merge"])
def test_what_stands_in_the_padding_does_not_matter(text, pruner, merge, keep):
    model, words, mask = text
    pruned = ShiftTracker(model).prune({0: 2, 2: 6}, pruner=merge if pruner == "merge" else pruner, keep=keep)
    other = words.clone()
    other[:, 12:] = 50 * torch.randn(2, 4, 8)
    found, expected = pruned(other, mask), pruned(words, mask)
    torch.testing.assert_close(found[:, :9], expected[:, :9], atol=1e-5, rtol=1e-4)


def test_padding_of_each_text_is_its_own(text):
    model, words, mask = text
    mask[1, 9:] = 0
    pruned = ShiftTracker(model).prune({0: 4, 2: 3})
    together = pruned(words, mask)
    alone = pruned(words[:1], mask[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)
    kept = ShiftTracker(pruned)
    with kept, torch.no_grad():
        pruned(words, mask)
    assert (kept.kept["layers.0"][0] < 11).all()  # the first of the twelve is the prefix
    assert (kept.kept["layers.0"][1] < 8).sum() == 8  # all eight words of the second text


def test_every_word_has_its_place_back(text):
    model, words, mask = text
    whole = ShiftTracker(model).prune({0: 4, 2: 3}, restore=True)(words, mask)
    assert whole.shape == (2, 16, 32)


def test_nothing_dropped_is_the_dense_encoder(text, keep_all):
    model, words, mask = text
    kept = ShiftTracker(model).prune({0: 4, 2: 3}, pruner=keep_all)(words, mask)
    torch.testing.assert_close(kept, model(words, mask), atol=1e-6, rtol=1e-5)
    assert Selection.first(2, words).leading


def test_nothing_is_left_where_a_hook_fails_between_the_blocks(vit, images):
    pruned = ShiftTracker(vit).prune({1: 0.2, 2: 0.2})
    for block in (0, 1, 2, 3):
        handle = pruned.blocks[block].register_forward_hook(lambda *seen: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pruned(images, attn_mask=torch.zeros(65, 65))
        handle.remove()
        assert not leftovers(pruned)


def test_nothing_is_left_where_a_hook_fails_between_the_blocks_of_a_part(vit, images):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = vit

        def forward(self, images):
            return self.net(images, attn_mask=torch.zeros(65, 65))

    pruned = ShiftTracker(Masked()).prune({1: 0.2})
    pruned.net.blocks[2].register_forward_hook(lambda *seen: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pruned(images)
    assert not leftovers(pruned)
    assert type(pruned) is Masked
