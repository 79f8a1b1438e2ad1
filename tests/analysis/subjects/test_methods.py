from dataclasses import replace

import pytest
import torch
from timm.models import VisionTransformer

import repshift
from repshift import Recipe, ScheduleError, UnknownNameError, UnsupportedModelError, load_model
from repshift.analysis.subjects.macs import count_work
from repshift.analysis.subjects.methods import choose_methods as chosen
from repshift.analysis.subjects.methods import known_methods, method_name, read_methods, recipe_for
from repshift.analysis.subjects.recipes import measured_columns

PRUNED = Recipe("0.2@0,2")


def choose_methods(model, pruned, asked, size=(3, 64, 64)):
    return chosen(model, pruned, asked, size)


@pytest.fixture
def without_class_token():
    options = {"class_token": False, "global_pool": "avg", "depth": 4, "embed_dim": 16, "num_heads": 2}
    return VisionTransformer(img_size=32, patch_size=8, num_classes=5, **options).eval()


def test_a_vit_is_compared_with_attention_of_its_class_token_and_the_controls(small_vit):
    models, notes = choose_methods(small_vit, PRUNED, None, (3, 24, 40))
    assert list(models) == ["dense", "shift", "cls_attention", "norm", "random", "mnn", "lowres", "oracle_free"]
    assert notes == []


def test_a_vit_without_a_class_token_is_compared_with_mean_attention(without_class_token):
    models, notes = choose_methods(without_class_token, PRUNED, None, (3, 32, 32))
    assert list(models) == ["dense", "shift", "mean_attention", "norm", "random", "mnn", "lowres", "oracle_free"]
    assert len(notes) == 1
    assert notes[0].startswith("without cls_attention: ")


@pytest.mark.parametrize(("name", "lacks"), [("tiny_resnet", ["mnn"]), ("tiny_vim", [])])
def test_a_model_without_attention_is_compared_with_the_controls_and_a_note_says_why(name, lacks):
    models, notes = choose_methods(load_model(name), Recipe("20@0" if name == "tiny_vim" else "4@0"), None)
    usual = ["dense", "shift", "norm", "random", "mnn", "lowres", "oracle_free"]
    assert list(models) == [method for method in usual if method not in lacks]
    assert [note.partition(":")[0] for note in notes] == [
        "without cls_attention, mean_attention",
        *(f"without {method}" for method in lacks),
    ]


def test_a_baseline_that_a_model_cannot_have_is_an_error_if_asked_for_by_name():
    with pytest.raises(UnsupportedModelError, match="no attention"):
        choose_methods(load_model("tiny_resnet"), Recipe("4@0"), ["shift", "cls_attention"])


def test_dense_is_always_among_them(small_vit):
    models, _ = choose_methods(small_vit, PRUNED, ["norm"], (3, 24, 40))
    assert list(models) == ["dense", "norm"]


def test_a_method_named_twice_is_compared_once(small_vit):
    models, _ = choose_methods(small_vit, PRUNED, ["shift", "dense", "shift"], (3, 24, 40))
    assert list(models) == ["dense", "shift"]


@pytest.mark.parametrize("pruned", [None, PRUNED], ids=["without a schedule", "with one"])
def test_the_dense_model_can_be_timed_alone(small_vit, pruned):
    models, _ = choose_methods(small_vit, pruned, ["dense"], (3, 24, 40))
    assert models == {"dense": small_vit}


def test_all_methods_share_the_weights_and_drop_the_same_numbers(small_vit):
    models, _ = choose_methods(small_vit, PRUNED, None, (3, 24, 40))
    weights = [parameter.data_ptr() for parameter in small_vit.parameters()]
    for name, model in models.items():
        assert name == "lowres" or [parameter.data_ptr() for parameter in model.parameters()] == weights
        expected = {"dense": (15,) * 4, "lowres": (6,) * 4}.get(name, (12, 12, 10, 10))
        assert count_work(model, (3, 24, 40)).tokens == expected


def test_methods_differ_in_what_they_keep(small_vit):
    models, _ = choose_methods(
        small_vit, Recipe("0.5@0", residual=True), None, (3, 24, 40)
    )  # without, shift ranks as norm
    images = torch.randn(4, 3, 24, 40)
    with torch.no_grad():
        answers = [model(images) for model in models.values()]
    assert all(not torch.equal(one, other) for number, one in enumerate(answers) for other in answers[number + 1 :])


def test_a_method_prunes_as_asked_but_by_its_own_score():
    pruned = Recipe("0.2@0", operation="attn", distance="l1", residual=True)
    assert recipe_for("norm", pruned) == replace(pruned, score="norm")
    assert recipe_for("dense", pruned) is None


def test_a_method_that_is_a_pruner_prunes_as_asked_by_the_shift_or_by_itself():
    pruned = Recipe("0.2@0", operation="block", score="norm", keep="bottom")
    assert recipe_for("cells", pruned) == replace(pruned, pruner="cells", score="shift")
    assert recipe_for("saliency_merge", pruned) == replace(
        pruned, pruner="saliency_merge", score="shift", operation=None
    )
    assert recipe_for("even", pruned) == replace(pruned, pruner="even", score="shift", keep="top")


@pytest.mark.parametrize(
    ("name", "methods"), [("tiny_vit", ["cells", "saliency_merge"]), ("tiny_resnet", ["crop", "centre", "even"])]
)
def test_pruners_are_methods_of_the_models_that_they_serve(name, methods):
    models, notes = choose_methods(load_model(name), Recipe("4@0"), methods)
    assert list(models) == ["dense", *methods]
    assert notes == []
    assert [measured_columns(models[method])["pruner"] for method in methods] == methods


def test_methods_that_prune_need_a_schedule(small_vit):
    for asked in (None, ["shift"], ["dense", "norm"]):
        with pytest.raises(ScheduleError, match=r"No schedule was given .* Give --drop"):
            choose_methods(small_vit, None, asked, (3, 24, 40))


def test_an_unknown_method_is_refused_with_the_closest_names():
    with pytest.raises(UnknownNameError, match=r"Unknown method 'shfit'\. Did you mean 'shift'"):
        read_methods("dense, shfit")
    with pytest.raises(UnknownNameError, match=r"missing in --methods 'shift,'"):
        read_methods("shift,")


def test_names_are_read_each_once_and_none_are_no_choice():
    assert read_methods("shift, lowres,shift") == ["shift", "lowres"]
    assert read_methods(None) is None


@pytest.mark.parametrize("method", sorted({*known_methods()} - {"lowres"}))
def test_a_recipe_is_named_as_the_method_that_it_was_made_for(method):
    assert method_name(recipe_for(method, PRUNED)) == method
    assert method_name(recipe_for(method, Recipe("0.2@0", pruner="ward"))) == method


def test_other_recipes_are_named_by_what_they_look_at():
    assert method_name(Recipe(None, input_size=32)) == "lowres"
    assert method_name(Recipe(read="head")) == "dense (read=head)"
    assert method_name(Recipe("1@0", score="norm", keep="bottom")) == "norm (bottom)"
    assert method_name(Recipe("1@0", score="norm", pruner="merge")) == "norm"
    assert method_name(Recipe("1@0", pruner="lines")) == "shift"


def test_a_recipe_of_another_method_comes_before_the_usual_ones(small_vit):
    models, _ = choose_methods(small_vit, Recipe("0.2@0,2", pruner="ward"), None, (3, 24, 40))
    assert list(models)[:3] == ["dense", "ward", "shift"]
    assert repshift.recipe_of(models["shift"]).pruner == "tokens"


def test_a_smaller_input_that_does_not_exist_is_a_note_even_if_it_was_asked_for(build_vit):
    models, notes = choose_methods(build_vit(img_size=(4, 32)), Recipe("3@0"), ["shift", "lowres"], (3, 4, 32))
    assert list(models) == ["dense", "shift"]
    assert len(notes) == 1
    assert notes[0].startswith("without lowres: No input smaller than 4x32 comes to at most")


def test_a_schedule_that_does_not_fit_is_refused(small_vit):
    with pytest.raises(ScheduleError, match="block 9"):
        choose_methods(small_vit, Recipe("0.2@9"), None, (3, 24, 40))
