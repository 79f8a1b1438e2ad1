"""Tokens that have their places back, against loops over the cuts."""

import copy
import pickle

import pytest
import torch
from timm.models._features import FeatureGetterNet

from repshift import ShiftTracker, UnsupportedModelError, dense, load_model
from repshift.testing import KeepAll
from repshift.testing.subjects import leftovers, tensors_of

DROPS = {0: 16, 2: 9}


def nearest(tokens, kept):
    """For every token the place among the kept ones of the one at the smallest angle."""
    return [
        max(range(len(kept)), key=lambda k, t=t: torch.cosine_similarity(tokens[t], tokens[kept[k]], dim=0).item())
        for t in range(len(tokens))
    ]


@pytest.fixture
def seen(vit, images):
    """What the blocks of a plainly pruned model return, before they are cut, and what is kept."""

    def watch():
        pruned = ShiftTracker(vit).prune(DROPS)
        values = []
        for number in DROPS:
            original = type(pruned.blocks[number]).__mro__[2].forward

            def keeping(self, *args, original=original, **kwargs):
                values.append(original(self, *args, **kwargs))
                return values[-1]

            block = pruned.blocks[number]
            generated = type(block)
            block.__class__ = type(
                generated.__name__,
                (generated.__mro__[1], type("Base", (generated.__mro__[2],), {"forward": keeping})),
                {"repshift_names": generated.repshift_names},
            )
        tracker = ShiftTracker(pruned).run(images)
        return values, tracker, pruned.forward_features(images)[:, 1:]

    return watch


def test_dropped_tokens_become_what_the_most_similar_kept_one_became(vit, images, seen):
    values, tracker, final = seen()
    first, second = (tracker.kept[name] for name in ("blocks.0", "blocks.2"))
    whole = ShiftTracker(vit).prune(DROPS, restore=True).forward_features(images)
    assert whole.shape == vit.forward_features(images).shape
    for i in range(len(images)):
        among_first = [first[i].tolist().index(place) for place in second[i].tolist()]
        at_second = nearest(values[1][i, 1:], among_first)
        at_first = nearest(values[0][i, 1:], first[i].tolist())
        expected = torch.stack([final[i, at_second[at_first[token]]] for token in range(64)])
        torch.testing.assert_close(whole[i, 1:], expected)


def test_dropped_tokens_can_come_back_as_they_left(vit, images, seen):
    values, tracker, final = seen()
    first, second = (tracker.kept[name] for name in ("blocks.0", "blocks.2"))
    whole = ShiftTracker(vit).prune(DROPS, restore="left").forward_features(images)
    for i in range(len(images)):
        for token in range(64):
            if token in second[i].tolist():
                expected = final[i, second[i].tolist().index(token)]
            elif token in first[i].tolist():
                expected = vit.norm(values[1][i, 1 + first[i].tolist().index(token)])
            else:
                expected = vit.norm(values[0][i, 1 + token])
            torch.testing.assert_close(whole[i, 1 + token], expected)


def test_merged_tokens_become_what_their_group_became(vit, images, merge):
    pruned = ShiftTracker(vit).prune(DROPS, pruner=merge)
    tracker = ShiftTracker(pruned).run(images)
    final = pruned.forward_features(images)
    whole = ShiftTracker(vit).prune(DROPS, pruner=merge, restore=True).forward_features(images)
    joined = tracker.joined["blocks.2"]
    torch.testing.assert_close(whole[:, 1:], final[:, 1:].gather(1, joined.unsqueeze(2).expand(-1, -1, 32)))
    torch.testing.assert_close(whole[:, :1], final[:, :1])


def test_logits_of_the_class_token_do_not_depend_on_restoring(vit, images):
    tracker = ShiftTracker(vit)
    torch.testing.assert_close(tracker.prune(DROPS, restore=True)(images), tracker.prune(DROPS)(images))


def test_an_average_over_restored_tokens_is_that_over_merged_ones_by_their_sizes(build_vit, images, merge):
    model = build_vit(class_token=False, global_pool="avg")
    tracker = ShiftTracker(model)
    restored = tracker.prune(DROPS, pruner=merge, restore=True)
    torch.testing.assert_close(restored(images), tracker.prune(DROPS, pruner=merge)(images))


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_vim"])
def test_restoring_is_refused_where_nothing_behind_has_a_place_for_each(name):
    with pytest.raises(UnsupportedModelError, match="cannot have their places back: nothing behind"):
        ShiftTracker(load_model(name)).prune({0: 2}, restore=True)


def test_prefix_tokens_are_not_restored_twice(build_vit, images):
    model = build_vit(reg_tokens=3)
    whole = ShiftTracker(model).prune(DROPS, restore=True).forward_features(images)
    assert whole.shape == (3, 4 + 64, 32)


RESTORING = [{"score": "norm"}, {"score": "norm", "restore": "left"}, {"pruner": "mnn"}, {"pruner": "tome"}]
CLASSLESS = {"class_token": False, "global_pool": "avg"}


@pytest.fixture(params=[{}, CLASSLESS, {"reg_tokens": 2}], ids=repr)
def model(request, build_vit):
    return build_vit(**request.param)


def up_to(model, number, options):
    """The same model, as if it ended behind a block: what it restores there is the intermediate one."""
    short = copy.copy(model)
    short._modules = {**model._modules, "blocks": model.blocks[: number + 1]}
    drops = {block: drop for block, drop in DROPS.items() if block <= number}
    return ShiftTracker(short).prune(drops, **{"restore": True, **options})


@pytest.mark.parametrize("options", RESTORING, ids=repr)
@torch.no_grad()
def test_intermediate_tokens_are_at_their_places(model, images, options):
    pruned = ShiftTracker(model).prune(DROPS, **{"restore": True, **options})
    final, maps = pruned.forward_intermediates(images, norm=True)
    assert [each.shape for each in maps] == [(3, 32, 8, 8)] * 4
    torch.testing.assert_close(final, pruned.forward_features(images), rtol=0, atol=0)
    for number, found in enumerate(maps):
        expected = up_to(model, number, options).forward_features(images)[:, model.num_prefix_tokens :]
        torch.testing.assert_close(found.flatten(2).mT, expected)
    assert not leftovers(pruned)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"indices": 2, "return_prefix_tokens": True},
        {"indices": [1], "norm": True, "intermediates_only": True, "stop_early": True},
        {"indices": [0, 3], "output_fmt": "NLC", "output_dict": True, "return_prefix_tokens": True},
    ],
    ids=repr,
)
@torch.no_grad()
def test_intermediates_have_the_forms_of_the_dense_model(model, images, asked):
    pruned = ShiftTracker(model).prune(DROPS, pruner="mnn", restore=True)
    kept = ShiftTracker(model).prune(DROPS, pruner=KeepAll(), restore=True)
    expected = model.forward_intermediates(images, **asked)
    for other in (pruned, kept):
        found = other.forward_intermediates(images, **asked)
        if "output_dict" in asked:
            assert list(found) == list(expected)
        one, two = tensors_of(found), tensors_of(expected)
        assert [each.shape for each in one] == [each.shape for each in two]
        assert not leftovers(other)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))


@torch.no_grad()
def test_the_interface_of_dino_and_features_only_work_on_restoring_models(images, build_vit):
    vit = build_vit()
    pruned = ShiftTracker(vit).prune(DROPS, restore=True)
    (found,) = pruned.get_intermediate_layers(images, n=[1], reshape=True, norm=True)
    (expected,) = pruned.forward_intermediates(images, [1], norm=True, intermediates_only=True)
    assert torch.equal(found, expected)
    (features,) = FeatureGetterNet(copy.deepcopy(pruned), out_indices=[1], norm=True)(images)
    assert torch.equal(features, expected)
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(other.get_intermediate_layers(images, n=[1], reshape=True, norm=True)[0], expected)
    assert torch.equal(dense(pruned).get_intermediate_layers(images)[0], vit.get_intermediate_layers(images)[0])
    smaller = ShiftTracker(vit).prune({0: 9}, restore=True, input_size=24)
    assert smaller.get_intermediate_layers(images, reshape=True)[0].shape == (3, 32, 6, 6)


@torch.no_grad()
def test_intermediates_can_be_tracked_and_compiled(vit, images, fresh_dynamo):
    pruned = ShiftTracker(vit).prune(DROPS, restore=True)
    with ShiftTracker(pruned) as tracker:
        expected = pruned.forward_intermediates(images, intermediates_only=True)
    assert tracker.kept["blocks.2"].shape == (3, 39)
    assert not leftovers(pruned)
    compiled = torch.compile(pruned.forward_intermediates, backend="eager", fullgraph=True)
    for one, other in zip(compiled(images, intermediates_only=True), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_without_restoring_intermediates_are_refused(vit, images):
    with pytest.raises(UnsupportedModelError, match="Prune with restore=True"):
        ShiftTracker(vit).prune(DROPS).forward_intermediates(images)
