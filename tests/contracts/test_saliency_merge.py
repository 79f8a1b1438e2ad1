"""Merging between attention and MLP against a forward written out for one image at a time, and what is seen of it."""

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock

from repshift import RepresentationError, ScheduleError, ShiftTracker, UnsupportedModelError, load_model, recipe_of
from repshift.layouts import TokenSequence
from repshift.merging import SaliencyPruner
from repshift.pruners import Candidates

DROPS = {0: 20, 2: 9}
MODELS = {
    "class token": {},
    "registers and layer scale": {"reg_tokens": 2, "init_values": 0.5},
    "average pooling": {"class_token": False, "global_pool": "avg"},
    "post-norm": {"block_fn": ResPostBlock},
}


def attended(block, x, sizes):
    """What attention adds, where the key of a token of size s counts s times."""
    attention, count = block.attn, len(x)
    post = isinstance(block, ResPostBlock)
    normed = x if post else block.norm1(x)
    heads = attention.num_heads
    q, k, v = attention.qkv(normed).view(count, 3, heads, -1).permute(1, 2, 0, 3)
    logits = q @ k.mT * attention.scale + torch.tensor(sizes).log()
    yielded = attention.proj((logits.softmax(-1) @ v).transpose(0, 1).reshape(count, -1))
    return block.norm1(yielded) if post else block.ls1(yielded)


def salient(scores):
    """Entropy's place is taken by the score: first to 0..1, then sharpened, as published."""
    lowest, highest = min(scores), max(scores)
    scores = [(score - lowest) / (highest - lowest) for score in scores]
    mean = sum(scores) / len(scores)
    above = [score - mean if score >= mean else 0.0 for score in scores]
    return [score / max(above) for score in above]


def merged_by_hand(tokens, sizes, scores, going):
    count, saliency = len(tokens), salient(scores)
    best = {}
    for i in range(0, count, 2):
        cosines = {j: torch.cosine_similarity(tokens[i], tokens[j], dim=0).item() for j in range(1, count, 2)}
        best[i] = max((cosine, -j) for j, cosine in cosines.items())
    gone = sorted(best, key=lambda i: -best[i][0])[:going]
    totals = {j: (tokens[j] * sizes[j], sizes[j], [j]) for j in range(1, count, 2)}
    for i in gone:
        value, size, group = totals[-best[i][1]]
        weight = saliency[i] * sizes[i]
        totals[-best[i][1]] = value + tokens[i] * weight, size + weight, [*group, i]
    left = [(tokens[i], sizes[i], [i]) for i in range(0, count, 2) if i not in gone]
    left += [(value / size, size, group) for value, size, group in totals.values()]
    return torch.stack([each[0] for each in left]), [each[1] for each in left], [each[2] for each in left]


@torch.no_grad()
def written_out(model, images, drops):
    """Return the logits, and of each image who is in which token, the last tokens, each block's change by the MLP."""
    prefix, logits, seen = model.num_prefix_tokens, [], []
    for image in images:
        x = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
        sizes, where = [1.0] * (len(x) - prefix), [[place] for place in range(len(x) - prefix)]
        shifts = []
        for number, block in enumerate(model.blocks):
            change = attended(block, x, [1.0] * prefix + sizes)
            scores = (change - x).square().sum(-1).sqrt()[prefix:].tolist()
            x = x + change
            if number in drops:
                tokens, left, groups = merged_by_hand(x[prefix:], sizes, scores, drops[number])
                x, sizes = torch.cat([x[:prefix], tokens]), left
                where = [[token for place in group for token in where[place]] for group in groups]
            post = isinstance(block, ResPostBlock)
            change = block.norm2(block.mlp(x)) if post else block.ls2(block.mlp(block.norm2(x)))
            shifts.append((change - x).square().sum(-1).sqrt()[prefix:])
            x = x + change
        last, x = x[prefix:], model.norm(x)
        weights = torch.tensor(sizes)[:, None]
        pooled = (x[prefix:] * weights).sum(0) / weights.sum() if model.global_pool == "avg" else x[0]
        logits.append(model.head(model.fc_norm(pooled)))
        seen.append((where, last, shifts))
    return torch.stack(logits), seen


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_logits_are_those_of_the_written_out_forward(build_vit, images, options):
    model = build_vit(**options)
    expected, _ = written_out(model, images, DROPS)
    pruned = ShiftTracker(model).prune(DROPS, pruner="saliency_merge")
    torch.testing.assert_close(pruned(images), expected, atol=2e-5, rtol=1e-4)
    assert (ShiftTracker(model).prune(DROPS, pruner="tome")(images) - expected).abs().max() > 1e-3
    torch.testing.assert_close(written_out(model, images, {})[0], model(images), atol=2e-5, rtol=1e-4)


def test_trackers_see_who_joined_whom_and_both_sides_of_every_operation(vit, images):
    _, images_seen = written_out(vit, images, DROPS)
    pruned = ShiftTracker(vit).prune(DROPS, pruner="saliency_merge")
    seen = {name: ShiftTracker(pruned, operation=name).run(images) for name in ("attn", "mlp", "block")}
    for joined, (where, *_) in zip(seen["mlp"].joined["blocks.2"].tolist(), images_seen, strict=True):
        assert joined == [next(number for number, group in enumerate(where) if token in group) for token in range(64)]
    counts = {name: [shift.shape[1] for shift in tracker.shifts.values()] for name, tracker in seen.items()}
    assert counts == {"attn": [64, 44, 44, 35], "mlp": [44, 44, 35, 35], "block": [44, 44, 35, 35]}
    assert not any(tracker.maps[number].isnan().any() for tracker in seen.values() for number in range(4))
    for number, shift in enumerate(seen["mlp"].shifts.values()):
        expected = torch.stack([shifts[number] for _, _, shifts in images_seen])
        torch.testing.assert_close(shift, expected, atol=1e-4, rtol=1e-4)


def test_what_a_tracker_compares_across_the_block_is_merged_on_both_sides(vit, images):
    pruned = ShiftTracker(vit).prune({1: 20}, pruner="saliency_merge")
    values = {}
    with torch.no_grad():
        hooks = [
            vit.blocks[0].register_forward_hook(lambda module, args, output: values.update(before=output[:, 1:])),
            pruned.blocks[1].register_forward_hook(lambda module, args, output: values.update(after=output[:, 1:])),
        ]
        tracker = ShiftTracker(pruned, operation="block").run(images)
        vit(images)
    for hook in hooks:
        hook.remove()
    joined, saliency = tracker.joined["blocks.1"], ShiftTracker(vit, operation="attn").run(images).shifts["blocks.1"]
    for number in range(3):
        weights = salient(saliency[number].tolist())
        groups = [[t for t in range(64) if joined[number, t] == place] for place in range(44)]
        for place, group in enumerate(groups):
            own = [1.0 if len(group) == 1 or token % 2 else weights[token] for token in group]
            before = sum(values["before"][number, t] * w for t, w in zip(group, own, strict=True)) / sum(own)
            expected = (values["after"][number, place] - before).norm()
            torch.testing.assert_close(tracker.shifts["blocks.1"][number, place], expected, atol=1e-5, rtol=1e-4)


def test_restored_tokens_have_what_their_group_became(vit, images):
    _, places = written_out(vit, images, DROPS)
    pruned = ShiftTracker(vit).prune(DROPS, pruner="saliency_merge", restore=True)
    seen = {}
    pruned.blocks[-1].register_forward_hook(lambda module, args, output: seen.update(all=output[:, 1:]))
    with torch.no_grad():
        pruned(images)
    for restored, (where, last, _) in zip(seen["all"], places, strict=True):
        for place, group in enumerate(where):
            torch.testing.assert_close(restored[group], last[place].expand(len(group), -1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("score", ["norm", "random", "cls_attention", "oracle_free"])
def test_any_score_may_be_the_saliency(vit, images, score):
    pruned = ShiftTracker(vit).prune({1: 10}, pruner="saliency_merge", score=score)
    assert recipe_of(pruned).operation == "attn"
    assert ShiftTracker(pruned).run(images).joined["blocks.1"].shape == (3, 64)


def test_equal_scores_and_padding_have_no_saliency():
    pruner = SaliencyPruner()
    tokens = torch.randn(2, 6, 4)
    equal = pruner.choose(Candidates(tokens, TokenSequence(), torch.ones(2, 6)), 2)
    assert equal.mean(tokens).isfinite().all()
    assert equal.sizes().tolist() == [[1.0] * 4] * 2
    scores = torch.tensor([[1.0, 2.0, -torch.inf, 4.0, 5.0, -torch.inf]]).expand(2, -1)
    sizes = torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0, 0.0]]).expand(2, -1)
    padded = pruner.choose(Candidates(tokens, TokenSequence(), scores, sizes), 1)
    assert padded.kept.tolist() == [[0, 4, 1, 3, 5]] * 2  # the padding at an even place is the first to go
    assert padded.sizes(sizes).tolist() == [[1.0, 1.0, 1.0, 1.0, 0.0]] * 2
    assert padded.mean(tokens, sizes).isfinite().all()


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [33, 0.6])
def test_more_than_half_cannot_go_at_once(vit, images, drop):
    ShiftTracker(vit).prune({0: 32}, pruner="saliency_merge")(images)
    with pytest.raises(ScheduleError, match=r"of the 64 tokens in 'blocks.0'.*at most half of them \(32\)"):
        ShiftTracker(vit).prune({0: drop}, pruner="saliency_merge")(images)


@pytest.mark.parametrize("operation", ["mlp", "block"])
def test_an_operation_that_is_not_over_yet_is_refused(vit, operation):
    with pytest.raises(UnsupportedModelError, match=rf"change by '{operation}' is not known yet.*operation='attn'"):
        ShiftTracker(vit, operation=operation).prune({0: 5}, pruner="saliency_merge")


@pytest.mark.parametrize(
    ("block_fn", "operation", "why"),
    [(ParallelThingsBlock, None, "no MLP of one branch behind"), (ParallelScalingBlock, "block", "share one branch")],
)
def test_blocks_without_one_mlp_behind_their_attention_are_refused(build_vit, block_fn, operation, why):
    with pytest.raises(UnsupportedModelError, match=rf"SaliencyPruner works between.*blocks.0 does not allow: .*{why}"):
        ShiftTracker(build_vit(block_fn=block_fn), operation=operation).prune({0: 5}, pruner="saliency_merge")


def test_state_space_layers_and_stages_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"layers.0 does not allow: a state space layer has one branch"):
        ShiftTracker(load_model("tiny_vim")).prune({0: 5}, pruner="saliency_merge")
    with pytest.raises(UnsupportedModelError, match="SaliencyPruner cannot shorten the FeatureMap"):
        ShiftTracker(load_model("tiny_resnet")).prune({0: 5}, pruner="saliency_merge")


def test_a_block_that_does_not_run_its_mlp_is_found_out(vit, images):
    class Past(type(vit.blocks[0])):
        def forward(self, x, attn_mask=None):
            return x + self.attn(self.norm1(x))

    vit.blocks[0].__class__ = Past
    pruned = ShiftTracker(vit).prune({0: 5}, pruner="saliency_merge", score="oracle_free")
    with pytest.raises(RepresentationError, match=r"'blocks.0' ended without running its MLP"):
        pruned(images)
