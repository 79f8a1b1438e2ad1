"""timm's NaFlexVit: images, and patches of images of several sizes that are padded to as many for each."""

import pytest
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

from repshift import RepresentationError, ShiftTracker, UnsupportedModelError
from repshift.testing import CHECKS, KeepAll, leftovers, make_subject

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "pos_embed_grid_size": (4, 4)}
KINDS = {
    "average": {"global_pool": "avg"},
    "average with the prefix": {"global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True, "fc_norm": False},
    "class token, rotary": {"global_pool": "token", "class_token": True, "rope_type": "axial"},
    "average, rotary for each head": {"global_pool": "avg", "rope_type": "mixed", "reg_tokens": 1},
    "pooled by attention": {"global_pool": "map", "reg_tokens": 1, "use_key_only_attn_mask": True},
    "maximum": {"global_pool": "max"},
}
if "use_key_only_attn_mask" not in NaFlexVitCfg.__dataclass_fields__:  # timm 1.0.23, which cannot turn patches so
    del KINDS["pooled by attention"]["use_key_only_attn_mask"], KINDS["average, rotary for each head"]
GRIDS = ((4, 4), (3, 4))
OWN = ("described", "bit for bit", "dense model", "places", "schedule", "count", "disturb each other", "pruned by")


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request):
    return build(**request.param)


def build(**options):
    torch.manual_seed(0)
    model = NaFlexVit(NaFlexVitCfg(**(SMALL | options)), num_classes=5).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "rope" not in name:
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[1] ** -0.5)
    return model


def patches(*grids, noise=0.0, to=None):
    """Make the dictionary of a batch, padded to the longest or to so many."""
    generator, longest = torch.Generator().manual_seed(5), to or max(rows * columns for rows, columns in grids)
    batch = {"patches": torch.full((len(grids), longest, 192), noise)}
    batch["patch_coord"] = torch.zeros(len(grids), longest, 2, dtype=torch.int64)
    batch["patch_valid"] = torch.zeros(len(grids), longest, dtype=torch.bool)
    for number, (rows, columns) in enumerate(grids):
        drawn = torch.randn(4, 4, 192, generator=generator)[:rows, :columns].flatten(0, 1)
        batch["patches"][number, : rows * columns] = drawn
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        batch["patch_coord"][number, : rows * columns] = places
        batch["patch_valid"][number, : rows * columns] = True
    return batch


def one(batch, number):
    """Take one image out of a batch, without padding."""
    there = batch["patch_valid"][number]
    return {key: value[number, there][None] for key, value in batch.items()}


def test_what_every_family_promises_is_kept_for_images(model):
    subject = make_subject(model, torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(1)))
    for name, check in CHECKS.items():
        if any(word in name for word in OWN) and "threads" not in name:
            check(subject)


@torch.no_grad()
def test_nothing_dropped_is_the_dense_model_with_padding(model):
    batch = patches(*GRIDS)
    kept = ShiftTracker(model).prune({0: 4, 1: 3}, pruner=KeepAll())
    torch.testing.assert_close(kept(batch), model(batch), atol=1e-6, rtol=1e-6)
    assert not leftovers(kept)


@pytest.mark.parametrize("pruner", ["tokens", "mnn", "merge"])
@torch.no_grad()
def test_an_image_that_is_padded_is_the_image_by_itself(model, pruner):
    batch = patches(*GRIDS)
    together = ShiftTracker(model).prune({0: 4, 1: 3}, pruner=pruner)(batch)
    # its padding goes at the first cut, which takes nothing else of it
    alone = ShiftTracker(model).prune({1: 3}, pruner=pruner)(one(batch, 1))
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)
    first = ShiftTracker(model).prune({0: 4, 1: 3}, pruner=pruner)(one(batch, 0))
    torch.testing.assert_close(together[:1], first, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("restore", [False, True])
@torch.no_grad()
def test_an_image_keeps_the_same_share_in_a_padded_batch_as_by_itself(model, restore):
    batch = patches(*GRIDS)
    pruned = ShiftTracker(model).prune({0: 0.25, 1: 0.25}, restore=restore)
    together = pruned(batch)
    for number in (0, 1):
        alone = pruned(one(batch, number))
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-5, rtol=1e-4)
    if not restore:  # 16 and 12 patches; places that stay beyond a share hold nothing
        assert pruned.forward_features(**batch)["patch_valid"].sum(1).tolist() == [9, 7]


@pytest.mark.parametrize(("pruner", "keep"), [("tokens", "top"), ("tokens", "bottom"), ("mnn", "top")])
@torch.no_grad()
def test_padding_that_stays_counts_for_nothing(model, pruner, keep):
    batch, other = patches(*GRIDS), patches(*GRIDS, noise=50.0)
    pruned = ShiftTracker(model).prune({0: 2}, pruner=pruner, keep=keep)
    found = pruned(batch)
    torch.testing.assert_close(found[1:], model(one(batch, 1)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, pruned(other), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_features_say_which_of_the_tokens_that_are_left_are_there(model):
    batch = patches(*GRIDS)
    pruned = ShiftTracker(model).prune({0: 2}, pruner="mnn")
    features = pruned.forward_features(**batch)
    prefix = model.num_prefix_tokens
    assert features["patches"].shape[1] == prefix + 14
    assert features["patch_valid"].sum(1).tolist() == [14, 12]
    if model.attn_pool is None:
        assert not leftovers(pruned)
    restored = ShiftTracker(model).prune({0: 2}, pruner="mnn", restore=True)
    assert torch.equal(restored.forward_features(**batch)["patch_valid"], batch["patch_valid"])


@torch.no_grad()
def test_a_mask_of_the_callers_own_takes_the_place_of_the_models(model):
    batch = patches(*GRIDS)
    mask = torch.zeros(2, 1, *[model.num_prefix_tokens + 16] * 2)
    mask[1, ..., -4:] = torch.finfo().min
    pruned = ShiftTracker(model).prune({0: 4})
    torch.testing.assert_close(pruned({**batch, "attn_mask": mask}), pruned(batch), atol=1e-5, rtol=1e-4)


def test_patches_have_no_maps_and_no_pruner_that_asks_for_places():
    model, batch = build(global_pool="avg"), patches(*GRIDS)
    tracker = ShiftTracker(model).run(batch)
    assert tracker.shifts["blocks.0"].shape == (2, 16)
    with pytest.raises(RepresentationError, match="no known rows and columns"):
        tracker.maps["blocks.0"]  # sixteen tokens, but no square of the second image
    with pytest.raises(RepresentationError, match=r"asks where the tokens stood takes images .* got \(2, 16, 192\)"):
        ShiftTracker(model).prune({0: 4}, pruner="cells")(batch)
    with pytest.raises(RepresentationError, match=r"input_size takes images .* got \(2, 16, 192\)"):
        ShiftTracker(model).prune({0: 4}, input_size=24)(batch)


def test_images_of_another_size_are_resized():
    model, images = build(global_pool="avg"), torch.randn(2, 3, 32, 48)
    pruned = ShiftTracker(model).prune({0: 2}, input_size=(24, 32))
    assert ShiftTracker(pruned).run(images).maps["blocks.1"].shape == (2, 3, 4)
    smaller = torch.nn.functional.interpolate(images, size=(24, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(ShiftTracker(model).prune(input_size=(24, 32))(images), model(smaller))


def test_attention_is_no_score_where_padding_is_hidden_from_it():
    with pytest.raises(UnsupportedModelError, match="its attention may be told of padding"):
        ShiftTracker(build(global_pool="avg")).prune({0: 2}, score="mean_attention")


def test_patch_dropout_and_pruning_of_patches_go_together():
    model = build(global_pool="avg", rope_type="axial", patch_drop_rate=0.5).train()
    pruned = ShiftTracker(model).prune({0: 2}, pruner="mnn")
    pruned(patches(*GRIDS)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())


@torch.no_grad()
def test_a_compiled_model_prunes_alike():
    model, images = build(global_pool="avg", depth=2), torch.randn(2, 3, 16, 24)
    pruned = ShiftTracker(model).prune({0: 2}, pruner="merge")
    torch.testing.assert_close(torch.compile(pruned, backend="eager")(images), pruned(images))
    assert not leftovers(pruned)


def test_a_head_that_averages_and_takes_the_largest_cannot_be_told_of_sizes():
    model = build(global_pool="avgmax")
    with pytest.raises(UnsupportedModelError, match=r"cannot be told: .*average and the largest"):
        ShiftTracker(model).prune({0: 4}, pruner="mnn")
    assert ShiftTracker(model).prune({0: 4})(patches(*GRIDS)).shape == (2, 5)
