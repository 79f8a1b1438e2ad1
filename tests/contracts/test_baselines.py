"""The baselines: attention scores against the maps of timm's own plain attention, the bottom, the free oracle."""

import copy
import pickle

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repshift import Selection, ShiftTracker, UnknownNameError, UnsupportedModelError, load_model
from repshift.positions import keep_highest
from repshift.pruners import SequencePruner

MODELS = {
    "class token": {},
    "registers": {"reg_tokens": 3},
    "norms of queries and keys": {"qk_norm": True},
    "post-norm": {"block_fn": ResPostBlock},
    "layer scale": {"init_values": 0.5},
}
NO_CLASS_TOKEN = {"class_token": False, "global_pool": "avg"}


def plain_maps(model, images):
    """The attention maps of every block, as timm's own unfused attention hands them to its dropout."""
    plain = copy.deepcopy(model)
    maps = []
    for block in plain.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(args[0]))
    with torch.no_grad():
        plain(images)
    return maps


def keep_by(block_output, scores, count, prefix):
    rows = []
    for tokens, ranks in zip(block_output, scores, strict=True):
        kept = ranks.sort(descending=True).indices[:count].sort().values
        rows.append(torch.cat([tokens[:prefix], tokens[prefix:][kept]]))
    return torch.stack(rows)


def finish(model, x, first):
    for block in model.blocks[first:]:
        x = block(x)
    return model.forward_head(model.norm(x))


def start(model, images, last):
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks[: last + 1]:
        x = block(x)
    return x


# --- attention as a score -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("score", ["cls_attention", "mean_attention"])
def test_recorded_scores_are_read_from_timms_plain_attention(build_vit, images, options, score):
    model = build_vit(**options)
    with ShiftTracker(model, score=score) as tracker, torch.no_grad():
        model(images)
    for index, plain in enumerate(plain_maps(model, images)):
        received = plain.mean(1)[:, 0] if score == "cls_attention" else plain.mean((1, 2))
        expected = received[:, model.num_prefix_tokens :]
        torch.testing.assert_close(tracker.shifts[f"blocks.{index}"], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("keep", ["top", "bottom"])
@pytest.mark.parametrize("score", ["cls_attention", "mean_attention"])
def test_pruned_logits_equal_a_written_out_forward(build_vit, images, score, keep):
    model = build_vit(reg_tokens=2)
    plain = plain_maps(model, images)[1]
    scores = (plain.mean(1)[:, 0] if score == "cls_attention" else plain.mean((1, 2)))[:, 3:]
    with torch.no_grad():
        shorter = keep_by(start(model, images, 1), scores if keep == "top" else -scores, 40, 3)
        expected = finish(model, shorter, 2)
        actual = ShiftTracker(model).prune({1: 24}, score=score, keep=keep)(images)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_models_without_a_class_token_are_scored_by_mean_attention(build_vit, images):
    model = build_vit(**NO_CLASS_TOKEN)
    plain = plain_maps(model, images)[0]
    with torch.no_grad():
        expected = finish(model, keep_by(start(model, images, 0), plain.mean((1, 2)), 40, 0), 1)
        actual = ShiftTracker(model).prune({0: 24}, score="mean_attention")(images)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_the_attention_of_a_class_token_that_is_not_there_is_refused(build_vit):
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0 has no class token .*score='mean_attention'"):
        ShiftTracker(build_vit(**NO_CLASS_TOKEN, reg_tokens=2)).prune({0: 0.5}, score="cls_attention")


@pytest.mark.parametrize("block", [ParallelScalingBlock, ParallelThingsBlock])
@pytest.mark.parametrize("score", ["cls_attention", "mean_attention"])
def test_blocks_without_an_attention_map_of_their_own_are_refused(build_vit, block, score):
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0 has no attention map to score by: it"):
        ShiftTracker(build_vit(block_fn=block), operation="block").prune({0: 0.5}, score=score)


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_vim"])
def test_networks_without_attention_are_refused(name):
    with pytest.raises(UnsupportedModelError, match="has no attention map to score by: it has no attention"):
        ShiftTracker(load_model(name)).prune({0: 0.5}, score="mean_attention")


def test_attention_is_recorded_of_whole_blocks_only(vit):
    with pytest.raises(UnsupportedModelError, match=r"Attention is read of whole blocks, 'blocks\.0\.mlp' is none"):
        ShiftTracker(vit, "blocks.*.mlp", score="cls_attention")


def test_attention_of_an_unknown_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="Where the queries and keys of Linear are is not known"):
        ShiftTracker(torch.nn.Linear(2, 2), "", score="cls_attention")


def test_a_tracker_of_attention_prunes_by_it_unless_told_otherwise(vit, images):
    tracker = ShiftTracker(vit, score="cls_attention")
    plain = ShiftTracker(vit)
    assert torch.equal(tracker.prune({0: 0.5})(images), plain.prune({0: 0.5}, score="cls_attention")(images))
    assert torch.equal(tracker.prune({0: 0.5}, score="shift")(images), plain.prune({0: 0.5})(images))


def test_attention_on_a_pruned_model_is_laid_out_where_its_tokens_were(vit, images):
    pruned = ShiftTracker(vit).prune({0: 0.5})
    with ShiftTracker(pruned, score="cls_attention") as tracker:
        pruned(images)
    present = torch.zeros(3, 64, dtype=torch.bool).scatter(1, tracker.kept["blocks.0"], True)
    assert torch.equal(tracker.maps["blocks.1"].flatten(1).isfinite(), present)


def test_scores_of_half_precision_are_float32(vit, images):
    with ShiftTracker(vit.bfloat16(), score="mean_attention") as tracker:
        vit(images.bfloat16())
    assert tracker.shifts["blocks.0"].dtype == torch.float32


# --- what each score computes -------------------------------------------------------------------------------------


class Shapes(TorchDispatchMode):
    """Collects the shapes of all that any operator returns."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


def attention_maps(model, images):
    """Shapes of what was computed that hold a number for each pair of tokens."""
    lengths = {65, 65 - 16, 65 - 16 - 11}  # with the class token, before and after the cuts
    with Shapes() as shapes, torch.no_grad():
        model(images)
    return {shape for shape in shapes.seen if len(shape) >= 3 and shape[-1] == shape[-2] and shape[-1] in lengths}


@pytest.mark.parametrize("score", ["shift", "norm", "random", "oracle_free", "cls_attention"])
def test_no_attention_map_is_ever_materialised(vit, images, score):
    assert attention_maps(ShiftTracker(vit).prune({0: 16, 2: 11}, score=score), images) == set()


def test_mean_attention_materialises_the_map_of_the_blocks_that_drop(vit, images):
    maps = attention_maps(ShiftTracker(vit).prune({0: 16, 2: 11}, score="mean_attention"), images)
    assert {(3, 2, 65, 65), (3, 2, 49, 49)} <= maps
    assert {shape[-1] for shape in maps} == {65, 49}


def test_plain_attention_would_be_seen(vit, images):
    for block in vit.blocks:
        block.attn.fused_attn = False
    assert attention_maps(ShiftTracker(vit).prune({0: 16, 2: 11}), images)


# --- the bottom and the free oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["shift", "norm", "cls_attention"])
def test_top_and_bottom_halves_share_no_token(vit, images, score):
    kept = []
    for keep in ("top", "bottom"):
        pruned = ShiftTracker(vit).prune({0: 0.5}, score=score, keep=keep)
        with ShiftTracker(pruned) as tracker:
            pruned(images)
        kept.append(tracker.kept["blocks.0"])
    assert torch.equal(torch.cat(kept, 1).sort(1).values, torch.arange(64).expand(3, -1))


def test_the_bottom_of_maps_keeps_the_lines_that_score_lowest():
    model = timm.create_model("resnet18", num_classes=3, zero_init_last=False).eval()
    images = torch.randn(2, 3, 64, 64)
    with ShiftTracker(model) as tracker, torch.no_grad():
        model(images)
    lines = tracker.maps["layer1"].mean(2)
    pruned = ShiftTracker(model).prune({0: 6}, keep="bottom")
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
    rows = tracker.kept["layer1"].reshape(2, 10, 10)[:, :, 0] // 16
    assert torch.equal(rows, lines.sort(1).indices[:, :10].sort(1).values)


def test_the_free_oracle_keeps_the_first_tokens(vit, images):
    with torch.no_grad():
        expected = finish(vit, start(vit, images, 1)[:, : 1 + 40], 2)
        actual = ShiftTracker(vit).prune({1: 24}, score="oracle_free")(images)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("pruner", ["lines", "positions"])
def test_the_free_oracle_keeps_the_first_lines_of_a_map(pruner):
    model = timm.create_model("resnet18", num_classes=3, zero_init_last=False).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        stem = model.maxpool(model.act1(model.bn1(model.conv1(images))))
        rest = model.layer4(model.layer3(model.layer2(model.layer1(stem)[:, :, :10, :10])))
        expected = model.forward_head(rest)
        actual = ShiftTracker(model).prune({0: 6}, pruner=pruner, score="oracle_free")(images)
    torch.testing.assert_close(actual, expected)


def test_the_free_oracle_keeps_the_first_elements_and_the_class_token():
    model = load_model("tiny_vim", pretrained=True)
    pruned = ShiftTracker(model).prune({0: 40}, score="oracle_free")
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        logits = pruned(torch.randn(2, 3, 64, 64))
    assert torch.equal(tracker.kept["layers.0"], torch.arange(24).expand(2, -1))
    assert logits.isfinite().all()


@pytest.mark.parametrize("score", ["oracle_free", "cls_attention", "mean_attention"])
def test_baselines_survive_pickle(vit, images, score):
    pruned = ShiftTracker(vit).prune({0: 0.5, 2: 3}, score=score, keep="top")
    assert torch.equal(pickle.loads(pickle.dumps(pruned))(images), pruned(images))


@pytest.mark.slow
def test_compiled_baselines_equal_their_eager_forms(vit, images):
    torch._dynamo.reset()
    settings = [{"score": score} for score in ("cls_attention", "mean_attention", "oracle_free")]
    settings += [{"score": "cls_attention", "keep": "bottom"}, {"keep": "bottom"}]
    models = [ShiftTracker(vit).prune({0: 0.5, 2: 3}, **setting) for setting in settings]
    fast = [torch.compile(model, backend="aot_eager", fullgraph=True) for model in models]
    with torch.no_grad():
        outputs = [model(images) for model in models]
        for output, model in zip(outputs, fast, strict=True):
            torch.testing.assert_close(model(images), output)
    assert min((one - other).abs().max() for one in outputs for other in outputs if one is not other) > 1e-3


def test_another_word_for_the_top_is_refused(vit):
    with pytest.raises(UnknownNameError, match="keep is 'top' or 'bottom' of the scores, got 'best'"):
        ShiftTracker(vit).prune({0: 0.5}, keep="best")


def test_the_free_oracle_has_no_bottom(vit):
    with pytest.raises(UnsupportedModelError, match="oracle_free ranks nothing"):
        ShiftTracker(vit).prune({0: 0.5}, score="oracle_free", keep="bottom")


def test_a_pruner_that_ranks_by_itself_ranks_the_first_tokens_highest_without_scores(vit, images):
    class Own:
        drops_only = True

        def choose(self, candidates, drop):
            return Selection(keep_highest(candidates.scores, candidates.left(drop)))

    pruned = ShiftTracker(vit).prune({0: 0.5}, pruner=Own(), score="oracle_free")
    assert torch.equal(pruned(images), ShiftTracker(vit).prune({0: 0.5}, score="oracle_free")(images))


def test_the_free_oracle_of_a_sequence_that_aligns_is_free_of_alignment():
    model = load_model("tiny_vim", pretrained=True)
    images = torch.randn(2, 3, 64, 64)
    aligned = ShiftTracker(model).prune({0: 0.5}, pruner=SequencePruner(align=True), score="oracle_free")
    assert torch.equal(aligned(images), ShiftTracker(model).prune({0: 0.5}, score="oracle_free")(images))
