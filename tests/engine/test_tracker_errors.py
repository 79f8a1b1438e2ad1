import pytest
import torch
from torch import nn

from repshift import RepresentationError, RepshiftError, ShiftTracker, UnknownNameError, UnsupportedModelError


class Wide(nn.Module):
    """No known backbone: a projection between two layers."""

    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(3, 3, 1)
        self.wider = nn.Conv2d(3, 5, 1)
        self.count = nn.Flatten()

    def forward(self, x):
        return self.count(self.wider(self.same(x)))


@pytest.fixture
def tracked(vit, images):
    with ShiftTracker(vit) as tracker:
        vit(images)
    return tracker


def test_an_unknown_shift_names_the_closest(tracked):
    with pytest.raises(UnknownNameError, match=r"recorded for 'blocks\.9'\. Did you mean 'blocks\.\d'"):
        tracked.shifts["blocks.9"]


def test_kept_positions_of_a_dense_model_are_refused_with_what_has_them(tracked):
    with pytest.raises(UnknownNameError, match=r"for 'blocks\.0'.*only pruned models have kept positions"):
        tracked.kept["blocks.0"]


def test_kept_positions_of_a_block_without_a_cut_name_the_cuts(vit, images):
    pruned = ShiftTracker(vit).prune({1: 0.2})
    with ShiftTracker(pruned) as tracker:
        pruned(images)
    with pytest.raises(UnknownNameError, match=r"recorded for 'blocks\.0'\. Did you mean 'blocks\.1'"):
        tracker.kept["blocks.0"]


@pytest.mark.parametrize("records", ["shifts", "maps", "kept"])
def test_running_nothing_says_to_run_the_model(vit, records):
    with ShiftTracker(vit) as tracker:
        pass
    with pytest.raises(
        UnknownNameError, match=r"Nothing is recorded for 'blocks\.0' yet\. Run the model itself inside"
    ):
        getattr(tracker, records)["blocks.0"]


def test_entering_twice_is_refused(vit, images):
    tracker = ShiftTracker(vit)
    with tracker:
        with pytest.raises(UnsupportedModelError, match=r"already attached\. Leave its with block first"):
            tracker.__enter__()
        vit(images)
    assert len(tracker.shifts) == 4
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_that_are_no_floats_are_refused(vit, dtype):
    with ShiftTracker(vit), pytest.raises(RepresentationError) as caught:
        vit(torch.zeros(1, 3, 32, 32, dtype=dtype))
    assert f"{dtype} images of shape (1, 3, 32, 32), expected floating-point" in str(caught.value)
    assert "Scale and normalise" in str(caught.value)


def test_a_model_that_scales_whole_numbers_itself_can_be_tracked():
    class Scaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, images):
            return self.layer(images / 255)

    with ShiftTracker(Scaling(), "layer") as tracker:
        tracker.model(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert tracker.maps["layer"].shape == (2, 8, 8)


def test_images_that_are_no_floats_are_refused_by_a_pruned_model(vit):
    pruned = ShiftTracker(vit).prune({0: 0.2})
    with pytest.raises(RepresentationError, match=r"torch\.uint8.*expected floating-point.*Scale and normalise"):
        pruned(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_module_that_changes_the_shape_is_named():
    model = Wide()
    expected = r"across 'wider': .*\(1, 16, 3\) before and \(1, 16, 5\) after.*Choose a module that keeps"
    with ShiftTracker(model, "wider"), pytest.raises(RepresentationError, match=expected):
        model(torch.randn(1, 3, 4, 4))


def test_a_module_that_returns_no_tokens_is_named():
    model = Wide()
    with ShiftTracker(model, "count"), pytest.raises(RepresentationError, match=r"across 'count': .*\(1, 80\)"):
        model(torch.randn(1, 3, 4, 4))


def test_a_module_that_gets_no_tensor_is_named():
    class Lengths(nn.Module):
        def forward(self, lengths):
            return torch.zeros(1, 2, 3)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.lengths = Lengths()

        def forward(self, images):
            return self.lengths([1, 2])

    model = Outer()
    with ShiftTracker(model, "lengths"), pytest.raises(RepresentationError, match=r"across 'lengths': .*got list"):
        model(torch.randn(1, 3, 4, 4))


def test_an_unknown_site_names_the_closest(vit):
    with pytest.raises(UnknownNameError, match=r"VisionTransformer matches 'block\.\*\.attn'\."):
        ShiftTracker(vit, "block.*.attn")


def test_an_unknown_operation_names_the_known(vit):
    with pytest.raises(UnknownNameError, match=r"Unknown operation 'attention'\. .*'attn'"):
        ShiftTracker(vit, operation="attention")


def test_an_unknown_distance_names_the_known(vit):
    with pytest.raises(UnknownNameError, match=r"Unknown distance 'l3'\. Did you mean 'l"):
        ShiftTracker(vit, distance="l3")


def test_a_model_of_no_known_backbone_needs_sites():
    expected = r"Wide belongs to no known backbone.*sites=\.\.\.\).*'same', 'wider', 'count'"
    with pytest.raises(UnsupportedModelError, match=expected):
        ShiftTracker(Wide())


def replace_with_a_compiled_block(model):
    model.blocks[1] = torch.compile(model.blocks[1])
    return model


def compile_in_place(model):
    model.compile()
    return model


def compile_a_block_in_place(model):
    model.blocks[2].compile()
    return model


def compile_the_forward(model):
    model.forward = torch.compile(model.forward)
    return model


COMPILED = {
    "wrapped": (torch.compile, r"OptimizedModule"),
    "in place": (compile_in_place, r"VisionTransformer"),
    "a wrapped block": (replace_with_a_compiled_block, r"'blocks\.1'"),
    "a block in place": (compile_a_block_in_place, r"'blocks\.2'"),
    "its forward": (compile_the_forward, r"VisionTransformer"),
}


@pytest.mark.parametrize("way", COMPILED)
def test_a_compiled_model_is_refused_with_what_to_do(vit, way):
    make, where = COMPILED[way]
    with pytest.raises(UnsupportedModelError, match=rf"already compiled .*{where}.*as it was before torch\.compile"):
        ShiftTracker(make(vit), "blocks.*" if way != "wrapped" else "_orig_mod.blocks.*")


@pytest.mark.parametrize("way", [way for way in COMPILED if way != "wrapped"])
def test_a_model_compiled_after_its_tracker_was_made_is_refused_too(vit, way):
    make, where = COMPILED[way]
    tracker = ShiftTracker(vit)
    make(vit)
    with pytest.raises(UnsupportedModelError, match=where), tracker:
        pytest.fail("the context must not begin")
    with pytest.raises(UnsupportedModelError, match=where):
        tracker.prune({0: 0.2})


def test_a_traced_model_is_refused():
    traced = torch.jit.trace(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2, 2))
    with pytest.raises(UnsupportedModelError, match=r"already compiled.*torch\.jit"):
        ShiftTracker(traced, "0")


def test_every_error_is_a_repshift_error(vit):
    with pytest.raises(RepshiftError):
        ShiftTracker(vit, "nothing")
    with pytest.raises(RepshiftError):
        ShiftTracker(Wide())
    with pytest.raises(RepshiftError):
        ShiftTracker(vit).prune({99: 0.2})
