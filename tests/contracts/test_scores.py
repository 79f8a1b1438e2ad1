"""What scores may be and may do."""

import pytest
import torch

from repshift import RepresentationError, ShiftTracker, load_model
from repshift.distances import l2


def constant(make):
    return lambda before, after: make(before.shape[:2])


NO_SCORES = {
    "whole numbers": (constant(lambda shape: torch.randint(0, 9, shape, dtype=torch.uint8)), r"got torch\.uint8"),
    "words": (constant(lambda shape: torch.zeros(shape, dtype=torch.bool)), r"got torch\.bool"),
    "complex": (constant(lambda shape: torch.zeros(shape, dtype=torch.complex64)), r"got torch\.complex64"),
    "sparse": (constant(lambda shape: torch.zeros(shape).to_sparse()), r"torch\.sparse_coo"),
    "elsewhere": (constant(lambda shape: torch.zeros(shape, device="meta")), r"on meta"),
    "of another shape": (constant(lambda shape: torch.zeros(shape[0])), r"one number for each token"),
}


@pytest.mark.parametrize("keep", ["top", "bottom"])
@pytest.mark.parametrize("kind", NO_SCORES)
def test_what_cannot_be_ranked_is_refused(vit, images, kind, keep):
    score, message = NO_SCORES[kind]
    with pytest.raises(RepresentationError, match=message):
        ShiftTracker(vit).prune({0: 0.5}, score=score, keep=keep)(images)
    with pytest.raises(RepresentationError, match=message):
        ShiftTracker(vit, distance=score).run(images)


@pytest.mark.parametrize("keep", ["top", "bottom"])
def test_a_score_that_is_no_number_is_refused_with_its_place(vit, images, keep):
    def broken(before, after):
        scores = (after - before).norm(dim=-1)
        scores[1, 5:8] = torch.nan
        return scores

    with pytest.raises(RepresentationError, match=r"3 of the 64 scores of image 1 at 'blocks\.2' are not a number"):
        ShiftTracker(vit, distance=broken).prune({2: 9}, keep=keep)(images)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_vim"])
def test_images_with_nan_are_refused_instead_of_ranked(name):
    model = load_model(name, pretrained=True)
    images = torch.rand(2, 3, 64, 64)
    images[1, 0, 5, 5] = torch.nan
    with pytest.raises(RepresentationError, match=r"of image 1 at '.*0' are not a number|of image 1 at 'layer1'"):
        ShiftTracker(model).prune({0: 4})(images)


def overwriting(before, after):
    """The l2 distance of somebody who saves memory."""
    after.sub_(before)
    before.zero_()
    return after.square_().sum(-1).sqrt_()


@pytest.mark.parametrize("operation", ["attn", "mlp", "block"])
def test_a_distance_that_writes_into_its_arguments_does_not_change_the_model(vit, images, operation):
    pruned = ShiftTracker(vit, operation=operation, distance=overwriting).prune({0: 0.5, 2: 9})
    expected = ShiftTracker(vit, operation=operation, distance=l2).prune({0: 0.5, 2: 9})
    torch.testing.assert_close(pruned(images), expected(images))
    tracker = ShiftTracker(vit, operation=operation, distance=overwriting).run(images)
    torch.testing.assert_close(tracker.output, vit(images))
    torch.testing.assert_close(tracker.shifts[2], ShiftTracker(vit, operation=operation).run(images).shifts[2])


@pytest.mark.parametrize(("name", "drop"), [("tiny_resnet", 4), ("tiny_vim", 8)])
def test_nor_does_it_change_other_kinds_of_models(name, drop):
    model, images = load_model(name, pretrained=True), torch.rand(2, 3, 64, 64)
    pruned = ShiftTracker(model, distance=overwriting).prune({0: drop})
    torch.testing.assert_close(pruned(images), ShiftTracker(model).prune({0: drop})(images))
