"""Images that a model does not take: it says what it takes, whatever layer would have failed on them."""

import pytest
import torch

from repshift import RepresentationError, ShiftTracker, UnsupportedModelError, load_model

MODELS = {"tiny_vit": {"depth": 2}, "tiny_resnet": {}, "tiny_vim": {"depth": 2}, "vit_tiny_patch16_224": {"depth": 1}}
SIZES = {"vit_tiny_patch16_224": 224}
GOOD = torch.rand(2, 3, 64, 64)
UNFIT = {
    "one image": (GOOD[0], r"takes images \(batch, 3, .*got \(3, 64, 64\)"),
    "a plane": (GOOD[0, 0], r"got \(64, 64\)"),
    "a number": (torch.tensor(1.0), r"got \(\)"),
    "frames": (GOOD[:, None], r"got \(2, 1, 3, 64, 64\)"),
    "one channel": (GOOD[:, :1], r"got \(2, 1, 64, 64\)"),
    "channels last": (GOOD.permute(0, 2, 3, 1), r"permute\(0, 3, 1, 2\)"),
    "nothing": (GOOD[:, :, :0], r"got \(2, 3, 0, 64\)"),
    "doubles": (GOOD.double(), r"of torch.float32, as its weights are, got torch.float64"),
    "halves": (GOOD.half(), "got torch.float16"),
    "on no device": (GOOD.to("meta"), "got images on meta"),
    "sparse": (GOOD.to_sparse(), "in a plain tensor, got torch.sparse_coo"),
    "whole numbers": (GOOD.int(), "expected floating-point"),
    "no tensor": ([GOOD], "got 'list', expected a floating-point tensor"),
}


def _images(name, images):
    """Give square images the size that the model takes, so that only what is meant is wrong."""
    side = SIZES.get(name, 64)
    if side == 64 or not isinstance(images, torch.Tensor) or images.shape != GOOD.shape:
        return images
    if images.layout != torch.strided:
        return torch.ones(2, 3, side, side).to_sparse()
    return images.new_ones(2, 3, side, side)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", UNFIT)
def test_pruned_and_tracked_models_say_what_they_take(name, case):
    model, (images, message) = load_model(name, **MODELS[name]), UNFIT[case]
    images = _images(name, images)
    pruned, tracker = ShiftTracker(model).prune("1@0"), ShiftTracker(model)
    with pytest.raises(RepresentationError, match=message):
        pruned(images)
    with pytest.raises(RepresentationError, match=rf"{message}|takes images"):
        tracker.run(images)
    fitting = torch.rand(2, 3, *(2 * [SIZES.get(name, 64)]))
    assert pruned(fitting).shape == tracker.run(fitting).output.shape  # nothing is left of it


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_vim", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("shape", [(32, 32), (65, 63), (1, 1)])
def test_a_table_of_positions_settles_the_size(name, shape):
    model, images = load_model(name, **MODELS[name]), torch.rand(1, 3, *shape)
    side = SIZES.get(name, 64)
    for run in (ShiftTracker(model).prune("1@0"), ShiftTracker(model).run):
        with pytest.raises(RepresentationError, match=rf"{side}x{side} pixels|\(batch, 3, {side}, {side}\)"):
            run(images)


def test_images_that_no_patch_fits_are_refused():
    model = load_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True)
    with pytest.raises(RepresentationError, match=r"\(1, 3, 8, 8\).*divisible by patch size.*another size"):
        ShiftTracker(model).prune("1@0")(torch.rand(1, 3, 8, 8))


def test_what_is_resized_afterwards_still_runs():
    pruned = ShiftTracker(load_model("vit_tiny_patch16_224", depth=1)).prune("1@0")
    pruned.set_input_size(img_size=64)
    assert pruned(GOOD).shape == (2, 1000)


def test_mixed_precision_takes_images_of_another_dtype():
    pruned = ShiftTracker(load_model("tiny_vit", depth=2)).prune("1@0")
    with torch.autocast("cpu", torch.bfloat16):
        assert pruned(GOOD.bfloat16()).shape == (2, 10)


def test_errors_of_somebody_else_pass_through_a_tracker():
    tracker = ShiftTracker(load_model("tiny_vit", depth=2))
    with pytest.raises(ZeroDivisionError), tracker:
        tracker.model(GOOD).shape[0] / 0


def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([GOOD[0], GOOD[0]])
    with pytest.raises(RepresentationError, match="nested tensor"):
        ShiftTracker(load_model("tiny_vit", depth=2)).prune("1@0")(nested)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_vim"])
def test_symbolic_tracing_of_a_pruned_model_is_refused(name):
    pruned = ShiftTracker(load_model(name)).prune("1@0")
    with pytest.raises(UnsupportedModelError, match=r"torch.fx's symbolic tracing.*torch.export"):
        torch.fx.symbolic_trace(pruned)


MASKS = {
    "too few tokens": (torch.ones(64, 64), r"\(2, 3, 257, 257\), batch heads token token.*got \(64, 64\)"),
    "other images": (torch.ones(3, 1, 257, 257), r"got \(3, 1, 257, 257\)"),
    "other heads": (torch.ones(2, 7, 257, 257), r"got \(2, 7, 257, 257\)"),
    "too many dimensions": (torch.ones(1, 2, 1, 257, 257), r"got \(1, 2, 1, 257, 257\)"),
    "a row": (torch.ones(257), r"got \(257,\)"),
    "whole numbers": (torch.ones(257, 257).int(), "is boolean or torch.float32.*got torch.int32"),
    "on no device": (torch.ones(257, 257, device="meta"), "is on meta, the tokens are on cpu"),
    "no tensor": ([1], "got 'list'. Give a tensor"),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_do_not_fit_are_refused(case):
    mask, message = MASKS[case]
    pruned = ShiftTracker(load_model("tiny_vit", depth=2)).prune("0.5@0")
    with pytest.raises(RepresentationError, match=message):
        pruned(GOOD, attn_mask=mask)
    assert pruned(GOOD, attn_mask=torch.ones(2, 1, 257, 257, dtype=torch.bool)).shape == (2, 10)
