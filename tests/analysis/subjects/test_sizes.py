import pytest
import torch
from torch import nn

from repshift import UnsupportedModelError, load_model
from repshift.analysis.subjects.sizes import resized


@pytest.mark.parametrize("name", ["tiny_vit", "deit_tiny_patch16_224"])
def test_positions_are_fitted_as_timm_fits_them(name):
    model, expected = (load_model(name, pretrained=name == "tiny_vit") for _ in range(2))
    if name != "tiny_vit":
        expected.load_state_dict(model.state_dict())
    expected.set_input_size(img_size=(64, 96))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(resized(name, model, (3, 64, 96))(images), expected(images))


def test_a_network_that_takes_any_size_is_left_alone():
    model = load_model("tiny_resnet")
    assert resized("tiny_resnet", model, (3, 80, 48)) is model


def test_a_model_of_this_size_is_left_alone():
    model = load_model("tiny_vim")
    assert resized("tiny_vim", model, (3, 64, 64)) is model


def test_a_size_chosen_when_the_model_was_loaded_is_left_alone():
    model = load_model("deit_tiny_patch16_224", img_size=96)
    assert resized("deit_tiny_patch16_224", model, (3, 96, 96), img_size=96) is model


def test_a_model_that_cannot_be_fitted_is_built_anew():
    model = resized("vim_tiny", load_model("vim_tiny"), (3, 64, 96))
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 1000)


class Windowed(nn.Module):
    """Stands for a model whose windows divide only some sizes."""

    def __init__(self):
        super().__init__()
        self.pretrained_cfg = {"fixed_input_size": True, "input_size": (3, 64, 64)}

    def set_input_size(self, img_size):
        raise AssertionError(f"{img_size} is not divided by windows of 7")


def test_a_size_that_the_model_refuses_is_an_error():
    with pytest.raises(
        UnsupportedModelError, match=r"own cannot take images of 10x10 pixels \(AssertionError: .*by wi"
    ):
        resized("own", Windowed(), (3, 10, 10))
