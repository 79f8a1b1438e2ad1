import argparse

import pytest
import torch
from safetensors.torch import save_file

from repshift import CheckpointError, load_model
from repshift.backbones.checkpoints import load_weights, shipped_weights


@pytest.fixture
def model(make_vit):
    return make_vit()


@pytest.fixture
def weights(model):
    """Other weights for the model."""
    return {key: torch.rand_like(value) for key, value in model.state_dict().items()}


def equal(model, weights):
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in state)


FORMS = {
    "bare": lambda weights: weights,
    "under model": lambda weights: {"model": weights, "epoch": 3},
    "under state_dict": lambda weights: {"state_dict": weights},
    "under state_dict_ema": lambda weights: {"state_dict_ema": weights},
    "under model_ema": lambda weights: {"model_ema": weights},
    "averaged before raw": lambda weights: {"state_dict": {}, "state_dict_ema": weights},
    "of a distributed model": lambda weights: {f"module.{key}": value for key, value in weights.items()},
    "of a compiled model": lambda weights: {f"_orig_mod.{key}": value for key, value in weights.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_every_usual_form(model, weights, tmp_path, form):
    torch.save(FORMS[form](weights), tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert equal(model, weights)


def test_safetensors_are_loaded(model, weights, tmp_path):
    save_file(weights, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert equal(model, weights)


def test_weights_are_cast_to_the_dtype_of_the_model(model, weights, tmp_path):
    save_file({key: value.bfloat16() for key, value in weights.items()}, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert equal(model, {key: value.bfloat16().float() for key, value in weights.items()})


DAMAGES = {
    "missing": (lambda weights: weights.pop("norm.bias"), r"1 of its \d+ keys missing \(first: norm\.bias\)"),
    "unexpected": (lambda weights: weights.update(extra=torch.ones(1)), r"1 unexpected keys \(first: extra\)"),
    "shape": (
        lambda weights: weights.update({"head.weight": torch.ones(5, 16)}),
        r"head\.weight has shape \(5, 16\), expected \(3, 16\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_is_loaded_if_anything_does_not_fit(model, weights, tmp_path, damage):
    change, message = DAMAGES[damage]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    change(weights)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(model, tmp_path / "weights.safetensors")
    assert str(tmp_path / "weights.safetensors") in str(caught.value)
    assert "Load it into the model it was trained as" in str(caught.value)
    assert equal(model, before)


def test_many_misfits_are_told_in_few_words(model, weights, tmp_path):
    save_file({key: torch.ones(2, 2, 2) for key in weights}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=rf"and {len(weights) - 3} more") as caught:
        load_weights(model, tmp_path / "weights.safetensors")
    assert str(caught.value).count("has shape") == 3


CONTENTS = {
    "empty.pt": b"",
    "garbage.pt": b"garbage" * 50,
    "text.pt": b"weights\n",
    "empty.safetensors": b"",
    "garbage.safetensors": b"garbage" * 50,
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_that_is_no_checkpoint_is_refused(model, tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS[name])
    with pytest.raises(CheckpointError, match=name):
        load_weights(model, tmp_path / name)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_half_a_checkpoint_is_refused(model, weights, tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    torch.save(weights, path) if ending == "pt" else save_file(weights, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_weights(model, path)


@pytest.mark.parametrize("content", [[1, 2], 3, None, {}, {"model": "vit"}, {"a": 1}, argparse.Namespace(lr=1)])
def test_a_file_without_a_state_dict_is_refused(model, tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        load_weights(model, tmp_path / "weights.pt")


class Custom:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_that_runs_code_is_refused_and_its_code_not_run(model, weights, tmp_path):
    torch.save({"model": weights, "extra": Custom(str(tmp_path / "ran"))}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError):
        load_weights(model, tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_runs_code_gets_advice_that_keeps_the_user_safe(model, weights, tmp_path):
    torch.save({"model": weights, "extra": Custom(str(tmp_path / "ran"))}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"cannot be read safely.*Save its state_dict alone") as caught:
        load_weights(model, tmp_path / "weights.pt")
    assert "weights_only=False" not in str(caught.value)


def test_a_missing_checkpoint_is_named(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt does not exist"):
        load_weights(model, tmp_path / "nothing.pt")


def test_load_model_takes_a_checkpoint_of_a_timm_model(tmp_path):
    torch.manual_seed(1)
    weights = load_model("deit_tiny_patch16_224", num_classes=7).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    loaded = load_model("deit_tiny_patch16_224", num_classes=7, checkpoint=tmp_path / "weights.pt")
    assert equal(loaded, weights)
    assert not loaded.training


def test_a_model_has_one_source_of_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"Both pretrained=True and checkpoint='a\.pt'.*Give one"):
        load_model("tiny_vit", pretrained=True, checkpoint="a.pt")


def test_weights_that_are_not_shipped_are_named_with_how_to_make_them():
    with pytest.raises(CheckpointError, match=r"no weights for 'another_vit'.*repshift zoo train another_vit"):
        shipped_weights("another_vit")
