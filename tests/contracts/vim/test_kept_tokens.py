"""Where the tokens of a pruned state space model stand, and which of them are kept."""

import pytest
import torch

from repshift import RepresentationError, ScheduleError, ShiftTracker


def test_the_class_token_is_found_again_in_each_image_at_its_own_place(vim, images, written_out, states, drops, counts):
    seen = states(ShiftTracker(vim).prune(drops), images)
    with torch.no_grad():
        _, left = written_out(vim, images, counts)
    for layer in counts:
        before = [sum(number < 32 for number in row[layer]) for row in left]
        assert len(set(before)) > 1, "the images have to differ for this test"
        assert seen[layer].protected.tolist() == [[place] for place in before]


def test_change_and_stream_of_a_token_stay_together(vim, images, written_out, states):
    dense, cut = states(vim, images)[0], states(ShiftTracker(vim).prune({0: 0.25}), images)[0]
    with torch.no_grad():
        _, left = written_out(vim, images, {0: 16})
    for index, row in enumerate(left):
        places = sorted([32, *(number + (number >= 32) for number in row[0])])
        assert torch.equal(cut.hidden[index], dense.hidden[index, places])
        assert torch.equal(cut.residual[index], dense.residual[index, places])


def test_layers_behind_a_cut_really_run_on_the_shorter_sequence(vim, images, states, drops):
    lengths = [state.hidden.shape[1] for state in states(ShiftTracker(vim).prune(drops), images)]
    assert lengths == [49, 38, 20, 20]


def test_kept_positions_equal_the_definition_and_ascend(vim, images, written_out, drops, counts):
    pruned = ShiftTracker(vim).prune(drops)
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
        _, left = written_out(vim, images, counts)
    for layer, number in {0: 48, 1: 37, 2: 19}.items():
        kept = tracker.kept[f"layers.{layer}"]
        assert kept.shape == (3, number)
        assert (kept[:, 1:] > kept[:, :-1]).all()
        assert kept.tolist() == [row[layer] for row in left]


def test_maps_are_empty_exactly_where_patches_were_dropped_before(vim, images, drops):
    pruned = ShiftTracker(vim).prune(drops)
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
    assert not tracker.maps["layers.0"].isnan().any()  # measured before its own cut
    for layer in (1, 2, 3):
        there = ~tracker.maps[f"layers.{layer}"].flatten(1).isnan()
        kept = tracker.kept[f"layers.{layer - 1}"]
        assert [row.nonzero().flatten().tolist() for row in there] == kept.tolist()


def test_a_part_that_counts_the_class_token_too_has_no_map(vim, images, drops):
    pruned = ShiftTracker(vim).prune(drops)
    tracker = ShiftTracker(pruned, "layers.3.norm")
    with tracker, torch.no_grad():
        pruned(images)
    with pytest.raises(RepresentationError, match=r"gave 20 shifts where 19 tokens are left"):
        tracker.maps["layers.3.norm"]


def test_a_map_has_every_shift_at_the_place_of_its_patch(vim, images):
    pruned = ShiftTracker(vim).prune({0: 0.25})
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
    found = tracker.maps["layers.1"].flatten(1).gather(1, tracker.kept["layers.0"])
    assert torch.equal(found, tracker.shifts["layers.1"])


def test_logits_and_kept_positions_of_a_batch_equal_those_of_its_images_alone(vim, images, pruner, drops):
    pruned = ShiftTracker(vim).prune(drops, pruner=pruner)
    tracker = ShiftTracker(pruned)
    with tracker, torch.no_grad():
        logits = pruned(images)
    together = tracker.kept
    for index, image in enumerate(images):
        with tracker, torch.no_grad():
            torch.testing.assert_close(pruned(image[None])[0], logits[index], atol=1e-5, rtol=1e-5)
        for name, kept in tracker.kept.items():
            assert torch.equal(kept[0], together[name][index])


def test_the_class_token_is_never_dropped_and_never_scored(vim, images):
    seen = []

    def watching(before, after):
        seen.append(before.shape[1])
        return (after - before).norm(dim=-1)

    logits = ShiftTracker(vim, distance=watching).prune({0: 63, 1: 0.5})(images)
    assert seen == [64, 1]
    assert torch.equal(logits, ShiftTracker(vim).prune({0: 63})(images))


def test_no_patch_at_all_cannot_be_left(vim):
    with pytest.raises(ScheduleError, match="fewer than one of the 64 tokens"):
        ShiftTracker(vim).prune({0: 64})


@pytest.mark.parametrize("arguments", ["a tuple", "two arguments"])
def test_another_model_with_the_class_token_first_tells_what_it_kept(
    build_class_first, images, arguments, written_out, drops, counts
):
    model = build_class_first(arguments)
    pruned = ShiftTracker(model).prune(drops)
    with ShiftTracker(pruned) as tracker, torch.no_grad():
        pruned(images)
        _, left = written_out(model, images, counts)
    for layer in drops:
        assert tracker.kept[f"layers.{layer}"].tolist() == [row[layer] for row in left]
    assert tracker.maps["layers.3"].isnan().sum((1, 2)).tolist() == [64 - 19] * 3
