"""Tokens that have their places back, against loops over the cuts."""

import pytest
import torch

from repshift import ShiftTracker, UnsupportedModelError, load_model

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
