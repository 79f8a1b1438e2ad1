"""Models in folders: the weights, and what they are."""

import json

import pytest
import timm
import torch

from repshift import CheckpointError, RecipeError, ShiftTracker, load_model, recipe_of, save_model


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_vim"])
def test_a_pruned_model_comes_back_pruned(name, tmp_path):
    model, images = load_model(name, pretrained=True), torch.rand(2, 3, 64, 64)
    pruned = ShiftTracker(model).prune({0: 6}, score="norm")
    save_model(pruned, tmp_path / "model", name)
    back = load_model(tmp_path / "model")
    assert torch.equal(back(images), pruned(images))
    assert recipe_of(back) == recipe_of(pruned)
    assert not back.training


def test_a_dense_model_comes_back_dense(tmp_path):
    model = load_model("tiny_vit", pretrained=True)
    save_model(model, tmp_path, "tiny_vit")
    assert recipe_of(load_model(tmp_path)) is None
    assert torch.equal(load_model(str(tmp_path))(torch.ones(1, 3, 64, 64)), model(torch.ones(1, 3, 64, 64)))


def test_models_of_timm_know_their_names_and_options_are_kept(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3).eval()
    save_model(ShiftTracker(model).prune("0.5@0"), tmp_path, img_size=64, num_classes=3)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_model(tmp_path)(images), ShiftTracker(model).prune("0.5@0")(images))
    assert json.loads((tmp_path / "repshift.json").read_text())["options"] == {"img_size": 64, "num_classes": 3}


def test_the_weights_are_the_dense_models(tmp_path):
    model = load_model("tiny_vit", pretrained=True)
    save_model(ShiftTracker(model).prune("0.5@0"), tmp_path, "tiny_vit")
    again = load_model("tiny_vit", checkpoint=tmp_path / "model.safetensors")
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))


def test_a_model_that_does_not_know_its_name_is_refused(vit, tmp_path):
    with pytest.raises(CheckpointError, match="does not know its name"):
        save_model(vit, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_cannot_be_written_down_leaves_nothing_behind(tmp_path):
    pruned = ShiftTracker(load_model("tiny_vit"), distance=lambda before, after: after.sum(-1)).prune("0.5@0")
    with pytest.raises(RecipeError, match="cannot be written down"):
        save_model(pruned, tmp_path, "tiny_vit")
    assert not list(tmp_path.iterdir())


def test_options_that_are_no_plain_values_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"repshift\.json holds plain values only"):
        save_model(load_model("tiny_vit"), tmp_path, "tiny_vit", norm_layer=torch.nn.LayerNorm)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, CheckpointError, "holds no repshift.json"),
        ({"repshift.json": "{"}, RecipeError, "is no JSON"),
        ({"repshift.json": "[]"}, CheckpointError, "does not name a model"),
        ({"repshift.json": '{"recipe": {}}'}, CheckpointError, "does not name a model"),
        ({"repshift.json": '{"model": "tiny_vit"}'}, CheckpointError, "holds none of model.safetensors"),
        ({"repshift.json": '{"model": "tiny_vit", "options": [1]}'}, RecipeError, "options by name"),
        (
            {"repshift.json": '{"model": "tiny_vit", "recipe": {}}', "model.safetensors": ""},
            RecipeError,
            "at least a sch",
        ),
        (
            {"repshift.json": '{"model": "tiny_vit"}', "model.safetensors": "no"},
            CheckpointError,
            "not a readable check",
        ),
    ],
)
def test_folders_that_hold_no_model_are_refused_with_the_reason(tmp_path, files, error, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        load_model(tmp_path)


def test_a_folder_has_its_own_weights(tmp_path):
    save_model(load_model("tiny_vit"), tmp_path, "tiny_vit")
    with pytest.raises(CheckpointError, match="is a folder with its own weights"):
        load_model(tmp_path, pretrained=True)


def test_saving_again_replaces_the_model(tmp_path):
    model = load_model("tiny_vit", pretrained=True)
    for schedule in ("0.5@0", "0.2@0,2"):
        save_model(ShiftTracker(model).prune(schedule), tmp_path, "tiny_vit")
    assert str(recipe_of(load_model(tmp_path)).schedule) == "0.2@0,2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "repshift.json"]


@pytest.mark.parametrize(
    ("make", "name", "options", "message"),
    [
        (lambda: torch.nn.Sequential(torch.nn.Identity(), load_model("tiny_vit")), "tiny_vit", {}, "not what holds it"),
        (lambda: load_model("tiny_vit", num_classes=3), "tiny_vit", {}, r"2 weights differ, .*'head.weight'"),
        (
            lambda: load_model("tiny_vit"),
            "tiny_vit",
            {"num_classes": 3},
            r"tiny_vit with {'num_classes': 3}: 2 weights",
        ),
        (lambda: load_model("tiny_vit"), "tiny_resnet", {}, "could not be loaded again as tiny_resnet"),
        (lambda: timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64), None, {"depth": 1}, "'pos_embed'"),
        (lambda: load_model("tiny_vit"), "tiny_vit", {"checkpoint": "x"}, "checkpoint says where weights come from"),
    ],
)
@pytest.mark.parametrize("pruned", [False, True])
def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, make, name, options, message, pruned):
    model = ShiftTracker(make()).prune("0.5@0") if pruned else make()
    with pytest.raises(CheckpointError, match=message):
        save_model(model, tmp_path, name, **options)
    assert not list(tmp_path.iterdir())


def test_saving_leaves_what_is_random_alone(tmp_path):
    model = load_model("tiny_vit")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_model(model, tmp_path, "tiny_vit")
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_of_another_form_is_refused(tmp_path):
    save_model(load_model("tiny_vit"), tmp_path, "tiny_vit")
    said = json.loads((tmp_path / "repshift.json").read_text())
    (tmp_path / "repshift.json").write_text(json.dumps({**said, "repshift": 99}))
    with pytest.raises(RecipeError, match="written in the form 99"):
        load_model(tmp_path)
