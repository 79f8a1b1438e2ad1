"""Merged tokens against a forward in which a token of size s stands s times, written out for one image at a time."""

import pytest
import torch

from repshift import Recipe, RepresentationError, Selection, ShiftTracker, UnsupportedModelError, recipe_of
from repshift.merging import MutualNearestPruner
from repshift.testing import KeepAll

POOLINGS = {
    "class token": {},
    "average": {"class_token": False, "global_pool": "avg"},
    "average, norm behind it": {"global_pool": "avg"},
    "average, norm before it": {"global_pool": "avg", "fc_norm": False},
    "average with the class token": {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True},
}
DROPS = {0: 16, 2: 9}


def attend(attention, tokens, sizes):
    """Attention over a sequence in which token j stands sizes[j] times."""
    count, channels = tokens.shape
    repeated = torch.repeat_interleave(tokens, sizes, dim=0)
    heads, width = attention.num_heads, channels // attention.num_heads

    def of(x, which):
        return attention.qkv(x)[:, which * channels : (which + 1) * channels].view(len(x), heads, width).transpose(0, 1)

    weights = (of(tokens, 0) @ of(repeated, 1).mT * width**-0.5).softmax(-1)
    return attention.proj((weights @ of(repeated, 2)).transpose(0, 1).reshape(count, channels))


def merge_by_hand(tokens, sizes, scores, drop):
    """Merge one image's tokens: those that score lowest into the kept one at the smallest angle."""
    order = sorted(range(len(tokens)), key=lambda place: scores[place])
    kept = sorted(order[drop:])
    groups = {place: [place] for place in kept}
    for place in order[:drop]:
        angles = [torch.cosine_similarity(tokens[place], tokens[other], dim=0).item() for other in kept]
        groups[kept[angles.index(max(angles))]].append(place)
    means = [sum(tokens[p] * sizes[p] for p in group) / sum(sizes[p] for p in group) for group in groups.values()]
    return torch.stack(means), torch.tensor([sum(int(sizes[p]) for p in group) for group in groups.values()]), groups


@torch.no_grad()
def written_out(model, images, drops):
    prefix, logits, places = model.num_prefix_tokens, [], []
    for image in images:
        x = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
        sizes, where = torch.ones(len(x), dtype=torch.int64), [[place] for place in range(len(x) - prefix)]
        for number, block in enumerate(model.blocks):
            x = x + attend(block.attn, block.norm1(x), sizes)
            change = block.mlp(block.norm2(x))
            scores = (change - x).square().sum(-1).sqrt()[prefix:].tolist()
            x = x + change
            if number in drops:
                means, left, groups = merge_by_hand(x[prefix:], sizes[prefix:], scores, drops[number])
                x, sizes = torch.cat([x[:prefix], means]), torch.cat([sizes[:prefix], left])
                where = [[token for place in group for token in where[place]] for group in groups.values()]
        x = model.norm(x)
        if model.global_pool == "avg":
            counted = slice(None) if model.pool_include_prefix else slice(prefix, None)
            pooled = torch.repeat_interleave(x[counted], sizes[counted], dim=0).mean(0)
        else:
            pooled = x[0]
        logits.append(model.head(model.fc_norm(pooled)))
        places.append(where)
    return torch.stack(logits), places


@pytest.mark.parametrize("options", POOLINGS.values(), ids=POOLINGS)
def test_logits_are_those_of_a_model_in_which_a_token_of_size_s_stands_s_times(build_vit, images, merge, options):
    model = build_vit(**options)
    expected, _ = written_out(model, images, DROPS)
    pruned = ShiftTracker(model).prune(DROPS, pruner=merge)
    torch.testing.assert_close(pruned(images), expected, atol=2e-5, rtol=1e-4)


def test_the_written_out_forward_without_drops_is_the_dense_model(build_vit, images):
    model = build_vit(**POOLINGS["average with the class token"])
    torch.testing.assert_close(written_out(model, images, {})[0], model(images), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", POOLINGS.values(), ids=POOLINGS)
def test_sizes_change_the_logits_by_far_more_than_the_tolerance(build_vit, images, merge, options, monkeypatch):
    model = build_vit(**options)
    pruned = ShiftTracker(model).prune(DROPS, pruner=merge)
    with torch.no_grad():
        right = pruned(images)
        monkeypatch.setattr("repshift.travelling._with_sizes", lambda given, sizes, prefix, dtype: given)
        without_bias = pruned(images)
        monkeypatch.setattr("repshift.arriving.Weigh.leave", lambda self, output: output)
        without_weights = pruned(images)
    assert (right - without_bias).abs().max() > 1e-3
    assert (model.global_pool != "avg") == torch.equal(without_bias, without_weights)


def test_what_each_token_joined_is_told_for_all_that_there_were(vit, images, merge):
    _, places = written_out(vit, images, DROPS)
    tracker = ShiftTracker(ShiftTracker(vit).prune(DROPS, pruner=merge)).run(images)
    for joined, where in zip(tracker.joined["blocks.2"].tolist(), places, strict=True):
        assert joined == [next(number for number, group in enumerate(where) if token in group) for token in range(64)]


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}], ids=str)
@pytest.mark.parametrize("pruner", ["merge", "mnn", "tome"])
def test_maps_paint_a_merged_token_over_all_its_places(build_vit, pruner, options):
    pruned = ShiftTracker(build_vit(img_size=(24, 40), **options)).prune(DROPS, pruner=pruner)
    tracker = ShiftTracker(pruned).run(torch.randn(2, 3, 24, 40))
    for name, cut in (("blocks.1", "blocks.0"), ("blocks.2", "blocks.0"), ("blocks.3", "blocks.2")):
        expected = tracker.shifts[name].gather(1, tracker.joined[cut])
        assert torch.equal(tracker.maps[name], expected.view(2, 6, 10))


def test_dropping_after_merging_takes_all_that_had_joined(vit, images, merge):
    class Changing:
        def choose(self, candidates, drop):
            pruner = merge if candidates.count == 64 else self
            return pruner.choose(candidates, drop) if pruner is merge else candidates.highest(candidates.left(drop))

    tracker = ShiftTracker(ShiftTracker(vit).prune(DROPS, pruner=Changing())).run(images)
    first, second = tracker.joined["blocks.0"], tracker.joined["blocks.2"]
    assert (second == -1).any()
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        assert len(set(other) - {-1}) == 39
        # tokens of one group share their fate
        assert all(len({other[token] for token in range(64) if one[token] == place}) == 1 for place in range(48))
    assert torch.equal(tracker.maps["blocks.3"].flatten(1).isnan(), second == -1)


def test_a_model_that_merges_is_of_the_models_class_and_name(vit, merge):
    pruned = ShiftTracker(vit).prune(DROPS, pruner=merge)
    assert isinstance(pruned, type(vit))
    assert type(pruned).__name__ == "VisionTransformer"
    assert list(pruned.state_dict()) == list(vit.state_dict())


def test_sizes_reach_attention_in_half_precision(build_vit, images, merge):
    model = build_vit().bfloat16()
    pruned = ShiftTracker(model).prune(DROPS, pruner=merge)
    assert pruned(images.bfloat16()).dtype == torch.bfloat16


def test_a_mask_of_the_users_own_is_kept_beside_the_sizes(vit, images, merge):
    hidden = torch.zeros(1, 1, 1, 65)
    hidden[..., 40:] = -torch.inf
    pruned = ShiftTracker(vit).prune(DROPS, pruner=merge)
    masked = pruned.forward_head(pruned.forward_features(images, attn_mask=hidden))
    boolean = pruned.forward_head(pruned.forward_features(images, attn_mask=hidden == 0))
    torch.testing.assert_close(masked, boolean)
    assert (masked - pruned(images)).abs().max() > 1e-3


def test_gradient_checkpointing_is_refused_where_blocks_are_told_of_the_tokens(vit, images, merge):
    pruned = ShiftTracker(vit).prune(DROPS, pruner=merge)
    pruned.set_grad_checkpointing()
    with pytest.raises(RepresentationError, match=r"Gradient checkpointing repeats the blocks.*Switch it off"):
        pruned(images).sum().backward()


def test_training_a_model_that_merges_lowers_its_loss(vit, images, merge):
    pruned = ShiftTracker(vit).prune(DROPS, pruner=merge).train()
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(pruned(images), torch.tensor([0, 1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_pruner_that_keeps_everything_and_merges_nothing_is_the_dense_model(vit, images):
    class Everything:
        def choose(self, candidates, drop):
            return KeepAll().choose(candidates, drop)

    assert torch.equal(ShiftTracker(vit).prune({0: 5, 1: 5}, pruner=Everything())(images), vit(images))


def test_a_head_that_averages_and_takes_the_largest_cannot_be_told_of_sizes(build_vit, images):
    vit = build_vit(class_token=False, global_pool="avgmax")
    with pytest.raises(UnsupportedModelError, match=r"cannot be told: .*average and the largest.*'avgmax'"):
        ShiftTracker(vit).prune({0: 9}, pruner="mnn")
    for pruner in (None, MutualNearestPruner(size_attention=False)):
        assert ShiftTracker(vit).prune({0: 9}, pruner=pruner)(images).shape == (3, 10)


def test_a_merging_pruner_is_refused_for_maps(merge):
    from repshift import load_model

    with pytest.raises(UnsupportedModelError, match="Merge cannot shorten the FeatureMap of ResNet"):
        ShiftTracker(load_model("tiny_resnet")).prune({0: 5}, pruner=merge)


def test_state_space_models_merge_hidden_values_and_stream_alike(merge):
    from repshift import load_model

    model = load_model("tiny_vim", pretrained=True)
    pruned = ShiftTracker(model).prune({0: 20, 2: 10}, pruner=merge)
    tracker = ShiftTracker(pruned).run(torch.randn(2, 3, 64, 64))
    assert tracker.output.isfinite().all()
    assert tracker.joined["layers.2"].shape == (2, 64)
    assert recipe_of(pruned) == Recipe({0: 20, 2: 10}, operation="mixer", pruner=merge)


def test_a_selection_of_nothing_leaves_the_value_alone(vit, images):
    class Nothing:
        def choose(self, candidates, drop):
            return None

    assert torch.equal(ShiftTracker(vit).prune({0: 5}, pruner=Nothing())(images), vit(images))
    assert Selection(torch.zeros(1, 1, dtype=torch.int64)).joins is None


@pytest.mark.parametrize(
    ("pruner", "words"),
    [(None, "drops 0.2 by l2 of mlp"), ("merge", "merges 0.2 by l2 of mlp"), ("mnn", "merges 0.2 by mnn")],
)
def test_a_block_says_what_becomes_of_its_tokens(vit, pruner, words):
    assert words in repr(ShiftTracker(vit).prune("0.2@0", pruner=pruner))
