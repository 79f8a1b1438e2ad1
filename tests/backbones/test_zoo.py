import re
from functools import cache

import pytest
import timm
import torch
from safetensors import safe_open

from repshift import CheckpointError, ShiftTracker, UnknownNameError, load_model
from repshift.analysis.samples.canvases import evaluation_canvases
from repshift.backbones.checkpoints import shipped_weights
from repshift.finding import find_structure

ZOO = ("tiny_vit", "tiny_resnet", "tiny_vim")
every_model = pytest.mark.parametrize("name", ZOO)


@cache
def accuracy(name):
    """Share of the 2,000 evaluation canvases that the shipped model classifies rightly."""
    model, canvases = load_model(name, pretrained=True), evaluation_canvases()
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        answers = [model((images / 255 - mean) / std).argmax(1) for images in canvases.images.split(250)]
    return (torch.cat(answers) == canvases.labels).double().mean().item()


def test_tiny_resnet_has_four_stages_of_which_the_first_has_lines_to_lose():
    model = load_model("tiny_resnet")
    with ShiftTracker(model) as tracker:
        model(torch.rand(1, 3, 64, 64))
    assert [tuple(shift.shape) for shift in tracker.maps.values()] == [(1, side, side) for side in (32, 16, 8, 4)]


def test_tiny_vim_has_64_tokens_and_6_layers():
    structure = find_structure(load_model("tiny_vim"))
    assert (structure.tokens, len(structure.sites)) == (64, 6)


def test_tiny_vit_has_enough_tokens_to_prune():
    assert find_structure(load_model("tiny_vit")).tokens >= 196


@every_model
def test_a_model_answers_for_ten_digits_and_is_ready_to_evaluate(name):
    model = load_model(name)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 10)
    assert not model.training


@every_model
def test_timm_knows_how_to_prepare_images_for_a_model(name):
    config = timm.data.resolve_model_data_config(load_model(name))
    assert config["input_size"] == (3, 64, 64)
    assert config["crop_pct"] == 1


@every_model
def test_images_for_a_model_are_normalised_as_canvases_are(name):
    config = timm.data.resolve_model_data_config(load_model(name))
    values = evaluation_canvases().images[:, 0].float() / 255
    assert values.mean().item() == pytest.approx(config["mean"][0], abs=0.02)  # trained on other digits
    assert values.std().item() == pytest.approx(config["std"][0], abs=0.02)  # trained on other digits


def test_options_are_passed_on():
    model = load_model("tiny_vit", num_classes=3, depth=2)
    assert len(model.blocks) == 2
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_an_unknown_option_is_refused_as_for_other_models():
    with pytest.raises(UnknownNameError, match=r"tiny_vit does not take these options.*depht"):
        load_model("tiny_vit", depht=2)


def test_a_misspelt_zoo_name_is_suggested():
    with pytest.raises(UnknownNameError, match="'tiny_vit'"):
        load_model("tiny-vit")


# --- the shipped weights ----------------------------------------------------------------------------------------


@every_model
def test_the_shipped_weights_are_small(name):
    assert shipped_weights(name).stat().st_size <= 4_000_000


@every_model
def test_the_shipped_weights_have_the_keys_and_shapes_of_the_model(name):
    state = load_model(name).state_dict()
    with safe_open(shipped_weights(name), framework="pt") as file:
        assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == {  # noqa: SIM118
            key: tuple(value.shape) for key, value in state.items()
        }


def test_the_shipped_weights_do_not_fit_another_number_of_classes():
    with pytest.raises(CheckpointError, match=r"head\.weight has shape \(10, 48\), expected \(5, 48\)"):
        load_model("tiny_vit", pretrained=True, num_classes=5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("tiny_vit", 0.95), ("tiny_resnet", 0.97), ("tiny_vim", 0.95)])
def test_a_shipped_model_is_right_on_most_canvases(name, least):
    assert accuracy(name) >= least


@pytest.mark.slow
@every_model
def test_the_model_card_names_the_accuracy_that_is_measured(name):
    card = shipped_weights(name).with_suffix(".md").read_text(encoding="utf-8")
    named = float(re.search(r"\*\*Accuracy\*\*: ([\d.]+) %", card).group(1))
    assert named == pytest.approx(100 * accuracy(name), abs=0.11)  # two canvases, for machines that round differently


@every_model
def test_the_model_card_names_the_licence(name):
    assert "CC BY-SA 3.0" in shipped_weights(name).with_suffix(".md").read_text(encoding="utf-8")
