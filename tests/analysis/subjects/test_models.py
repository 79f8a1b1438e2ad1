"""Models by name, and in folders."""

import pytest
import torch

from repshift import (
    CheckpointError,
    Recipe,
    ShiftTracker,
    UnknownNameError,
    attention,
    load_model,
    recipe_of,
    save_model,
)
from repshift.analysis.subjects.models import ModelOptions, folder_of, load_dense, loaded_name, own_recipe, saved_model
from repshift.analysis.subjects.sizes import build_model, resized


@pytest.fixture
def model():
    return load_model("tiny_vit", num_classes=7)


@pytest.fixture
def folder(tmp_path, model):
    """A pruned model in a folder."""
    save_model(ShiftTracker(model).prune("0.2@0"), tmp_path / "saved", "tiny_vit", num_classes=7)
    return str(tmp_path / "saved")


def test_a_folder_is_told_by_its_slash(folder, monkeypatch):
    assert str(folder_of(folder)) == folder
    monkeypatch.chdir(folder + "/..")
    assert folder_of("saved") is None
    assert str(folder_of("saved/")) == "saved"
    assert folder_of("./nothing") is folder_of("hf-hub:saved/") is None


def test_the_model_of_a_folder_is_loaded_dense(folder, model):
    dense = load_dense(folder)
    images = torch.rand(2, 3, 64, 64)
    assert recipe_of(dense) is None
    assert not dense.training
    assert torch.equal(dense(images), model(images))
    assert str(own_recipe(folder).schedule) == "0.2@0"
    assert (loaded_name(folder), saved_model(folder).options) == ("tiny_vit", {"num_classes": 7})


def test_a_dense_model_in_a_folder_has_no_recipe(tmp_path, model):
    save_model(model, tmp_path / "saved", "tiny_vit", num_classes=7)
    assert own_recipe(f"{tmp_path}/saved") is None
    assert load_dense(f"{tmp_path}/saved").num_classes == 7


@pytest.mark.parametrize("schedule", [None, "0.2@0"])
def test_the_attention_of_a_folder_is_that_of_its_dense_model(tmp_path, model, schedule):
    chosen = attention(model, "math")
    chosen = chosen if schedule is None else ShiftTracker(chosen).prune(schedule)
    save_model(chosen, tmp_path / "saved", "tiny_vit", num_classes=7)
    assert recipe_of(load_dense(f"{tmp_path}/saved")) == Recipe(attention="math")
    assert own_recipe(f"{tmp_path}/saved") == (None if schedule is None else recipe_of(chosen))
    built = build_model(f"{tmp_path}/saved", ModelOptions(attention="eager"))
    assert recipe_of(built) == Recipe(attention="eager")


def test_a_name_is_just_a_name():
    assert own_recipe("tiny_vit") is saved_model("tiny_vit") is None
    assert loaded_name("tiny_vit") == "tiny_vit"
    assert load_dense("tiny_vit", num_classes=3).num_classes == 3
    with pytest.raises(UnknownNameError, match="tiny_vitt"):
        load_dense("tiny_vitt")


def test_a_folder_without_a_model_is_refused(tmp_path):
    for ask in (own_recipe, loaded_name, load_dense):
        with pytest.raises(CheckpointError, match=r"holds no repshift\.json"):
            ask(f"{tmp_path}/")


def test_a_model_of_a_folder_is_fitted_to_another_size_and_stays_dense(tmp_path):
    model = load_model("deit_tiny_patch16_224", img_size=64, num_classes=3)
    save_model(
        ShiftTracker(model).prune("0.2@0"), tmp_path / "saved", "deit_tiny_patch16_224", num_classes=3, img_size=64
    )
    loaded = load_dense(f"{tmp_path}/saved")
    wider = resized(f"{tmp_path}/saved", loaded, (3, 96, 96))
    assert recipe_of(wider) is None
    with torch.no_grad():
        assert wider(torch.rand(1, 3, 96, 96)).shape == (1, 3)
