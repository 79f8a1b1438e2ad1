"""Pruned state space models against a written-out forward that takes one image at a time and lists of tokens."""

import itertools

import pytest
import torch

from repshift import ShiftTracker

VIDEO = {"class_position": "head", "halve": False}  # as in VideoMamba
SCORES = [("l2", False), ("l2", True), ("l1", False), ("cosine", False), ("cosine", True)]
SCHEDULES = {
    "shares and a count": ({0: 0.25, 1: 11, 2: 0.5}, {0: 16, 1: 11, 2: 18}),
    "one share": ({0: 0.2}, {0: 12}),
    "counts": ({0: 5, 1: 1, 2: 30}, {0: 5, 1: 1, 2: 30}),
    "a list": ([0, 0.3, 0, 0.5], {1: 19, 3: 22}),
    "all but one patch": ({0: 63}, {0: 63}),
    "every layer": ("0.2@0,1,2,3", {0: 12, 1: 10, 2: 8, 3: 6}),
}


@pytest.fixture
def assert_equals_written_out(images, written_out):
    def check(model, pruned, counts, **score):
        with torch.no_grad():
            expected, _ = written_out(model, images, counts, **score)
            torch.testing.assert_close(pruned(images), expected, atol=2e-5, rtol=1e-5)
            assert (model(images) - expected).abs().max() > 1e-2, "pruning has to matter"

    return check


@pytest.mark.parametrize("options", [{}, VIDEO], ids=["middle", "head"])
@pytest.mark.parametrize(("schedule", "counts"), SCHEDULES.values(), ids=SCHEDULES)
def test_pruned_logits_equal_a_written_out_forward(schedule, counts, options, build_vim, assert_equals_written_out):
    model = build_vim(**options)
    assert_equals_written_out(model, ShiftTracker(model).prune(schedule), counts)


@pytest.mark.parametrize(("distance", "residual"), SCORES)
def test_every_score_equals_a_written_out_forward(vim, distance, residual, drops, counts, assert_equals_written_out):
    pruned = ShiftTracker(vim, distance=distance, residual=residual).prune(drops)
    assert_equals_written_out(vim, pruned, counts, distance=distance, residual=residual)


def test_every_score_keeps_different_patches_so_the_comparison_can_tell_them_apart(vim, images, written_out, counts):
    with torch.no_grad():
        choices = [[left[0] for left in written_out(vim, images, counts, *score)[1]] for score in SCORES]
    for one, other in itertools.combinations(choices, 2):
        assert one != other


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_the_whole_layer_is_scored_as_its_mixer_with_the_stream(
    vim, distance, drops, counts, assert_equals_written_out
):
    pruned = ShiftTracker(vim, operation="block", distance=distance).prune(drops)
    assert_equals_written_out(vim, pruned, counts, distance=distance, residual=True)


@pytest.mark.parametrize("arguments", ["a tuple", "two arguments"])
@pytest.mark.parametrize(("distance", "residual"), [("l2", False), ("l2", True)])
def test_another_model_with_the_class_token_first_is_pruned_by_the_same_layout(
    build_class_first, arguments, distance, residual, drops, counts, assert_equals_written_out
):
    model = build_class_first(arguments)
    pruned = ShiftTracker(model, distance=distance, residual=residual).prune(drops)
    assert_equals_written_out(model, pruned, counts, distance=distance, residual=residual)
