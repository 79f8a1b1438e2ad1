"""Recipes in the words of the command line and of results files."""

import json
from dataclasses import dataclass

import pytest
import torch

from repshift import (
    DataError,
    Recipe,
    RecipeError,
    ScheduleError,
    ShiftTracker,
    UnknownNameError,
    attention,
    load_model,
    recipe_of,
    save_model,
)
from repshift.analysis.output.results import Results, write_results
from repshift.analysis.subjects.methods import method_name
from repshift.analysis.subjects.recipes import (
    DEFAULTS,
    apply,
    chosen_recipe,
    in_words,
    measured_columns,
    pruning_of,
    read_recipe,
    settings_of,
    whole_recipe,
    with_tokens,
)
from repshift.pruners import PRUNERS, SequencePruner, TokenPruner

OTHERS = {
    "score": "norm",
    "operation": "attn",
    "distance": "l1",
    "residual": True,
    "pruner": "tokens",
    "keep": "bottom",
}
OPTIONS = {name: DEFAULTS[name] for name in OTHERS}


@pytest.fixture
def file(tmp_path):
    """A recipe in a file."""
    Recipe("0.5@0", score="norm", restore=True).save(tmp_path / "mine.json")
    return tmp_path / "mine.json"


@pytest.fixture
def folder(tmp_path):
    """A pruned model in a folder."""
    save_model(ShiftTracker(load_model("tiny_vit")).prune("0.2@0,2", score="norm"), tmp_path / "saved", "tiny_vit")
    return str(tmp_path / "saved")


# --- the command line ---------------------------------------------------------------------------------------------


def test_without_anything_the_model_stays_dense():
    assert chosen_recipe(**OPTIONS) is None
    assert chosen_recipe(model="tiny_vit", **OPTIONS) is None
    model = load_model("tiny_vit")
    assert apply(None, model) is model


def test_the_options_say_what_a_recipe_says():
    expected = Recipe("0.5@1", "attn", "l1", True, "norm", "tokens", "bottom")
    assert chosen_recipe(None, "0.5@1", **OTHERS) == expected
    assert chosen_recipe(None, None, "[0,0.5,0]", **OPTIONS) == Recipe([0, 0.5, 0])


def test_two_forms_of_a_schedule_are_refused():
    with pytest.raises(UnknownNameError, match=r"--drop '0\.5@1' and --drop-r '\[0\.5\]'.*Give one of them"):
        chosen_recipe(None, "0.5@1", "[0.5]", **OPTIONS)


def test_a_schedule_that_is_none_is_refused():
    with pytest.raises(ScheduleError):
        chosen_recipe(None, "lots", **OPTIONS)


def test_a_file_says_everything(file):
    assert chosen_recipe(file, **OPTIONS) == Recipe("0.5@0", score="norm", restore=True)


@pytest.mark.parametrize("name", OTHERS)
def test_an_option_beside_a_file_is_named_and_refused(file, name):
    option = f"--{name}"
    with pytest.raises(RecipeError, match=rf"Got {option} beside --recipe .*mine\.json.*Leave out {option}, or"):
        chosen_recipe(file, **{**OPTIONS, name: OTHERS[name]})


@pytest.mark.parametrize(("schedule", "option"), [(("0.5@0", None), "--drop"), ((None, "[0.5]"), "--drop-r")])
def test_a_schedule_beside_a_file_is_named_and_refused(file, schedule, option):
    with pytest.raises(RecipeError, match=f"Got {option} and --score beside --recipe"):
        chosen_recipe(file, *schedule, **{**OPTIONS, "score": "random"})


@pytest.mark.parametrize("name", OTHERS)
def test_an_option_where_nothing_is_dropped_is_refused_unless_it_says_something_there(name):
    options = {**OPTIONS, name: OTHERS[name]}
    with pytest.raises(DataError, match=f"nothing to choose by .*--{name}.* Give --drop or --recipe"):
        chosen_recipe(**options)
    assert chosen_recipe(shown=[name], **options) is None


def test_a_folder_is_pruned_by_its_own_recipe_unless_another_schedule_is_given(folder, file):
    assert chosen_recipe(model=folder, **OPTIONS) == Recipe("0.2@0,2", "mlp", score="norm", pruner="tokens")
    assert chosen_recipe(None, "0.5@0", model=folder, **OPTIONS) == Recipe("0.5@0")
    assert chosen_recipe(file, model=folder, **OPTIONS) == Recipe.load(file)


def test_an_option_beside_the_recipe_of_a_folder_is_refused_even_where_it_says_something_of_a_dense_model(folder):
    with pytest.raises(RecipeError, match=r"Got --residual beside the recipe of .*saved.* give --drop 0\.2@0,2 with"):
        chosen_recipe(model=folder, shown=["residual"], **{**OPTIONS, "residual": True})


# --- files --------------------------------------------------------------------------------------------------------


def row(recipe):
    return {"model": "tiny_vit", "recipe": None if recipe is None else recipe.to_dict()}


def test_results_of_one_recipe_are_a_recipe_file(tmp_path):
    recipe = Recipe("0.5@0", score="norm")
    rows = [{"model": "an older file's"}, row(None), row(recipe), row(recipe)]
    write_results(tmp_path / "results.json", Results("eval", rows))
    assert read_recipe(tmp_path / "results.json") == recipe


BAD = {
    "missing": (None, r"bad\.json does not exist"),
    "binary": (b"\xff\xfe\x00\x01", "cannot be read"),
    "no JSON": (b"0.5@0", "this is none"),
    "nested too deep": (b"[" * 100_000, "this is none"),
    "a list": (b"[1]", "at least a schedule"),
    "another object": (b'{"drop": "0.5@0"}', "at least a schedule"),
    "an unknown word": (b'{"schedule": "0.5@0", "scores": "norm"}', "'scores'"),
    "an unknown score": (b'{"schedule": "0.5@0", "score": "nrm"}', "'nrm'.*'norm'"),
    "a wrong schedule": (b'{"schedule": "much"}', "'much'"),
    "a dense model's": (b'{"repshift": 1, "recipe": null}', "at least a schedule"),
    "results of another version": (b'{"repshift_results": 2}', "version 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_holds_no_recipe_is_refused_in_one_line_that_names_it(tmp_path, case):
    content, message = BAD[case]
    if content is not None:
        (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises((RecipeError, DataError), match=message) as caught:
        read_recipe(tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("recipes", "count"), [([], "no"), ([None], "no"), ([Recipe("1@0"), Recipe("2@0")], "2")])
def test_results_of_no_recipe_or_several_are_refused(tmp_path, recipes, count):
    write_results(tmp_path / "results.json", Results("eval", [row(recipe) for recipe in recipes]))
    with pytest.raises(RecipeError, match=rf"results\.json.*holds {count} recipes, and one is expected"):
        read_recipe(tmp_path / "results.json")


# --- results files ------------------------------------------------------------------------------------------------


def test_a_recipe_in_a_title_says_all_that_it_does():
    assert in_words(Recipe("1@0")) == "1@0 dropped"
    assert in_words(Recipe("1@0", input_size=48, read="head")) == "1@0 dropped, images of 48x48, read=head"
    assert in_words(Recipe("1@0", attention="flash")) == "1@0 dropped, attention by flash"


def test_what_shows_tokens_computes_all_of_them():
    assert with_tokens(Recipe("1@0", read="head")) == Recipe("1@0")
    assert with_tokens(Recipe(input_size=48, read="head")) == Recipe(input_size=48)
    assert with_tokens(Recipe(read="head")) is None
    assert with_tokens(Recipe(read="head", attention="math")) == Recipe(attention="math")


def test_settings_have_the_names_of_the_options_and_say_more_only_where_no_option_could():
    dense = {"drop": None, "score": "shift", "operation": None, "distance": "l2", "residual": False, "pruner": None}
    assert settings_of(None) == {**dense, "keep": "top"}
    assert settings_of(Recipe("0.2@0,3")) == {**dense, "drop": "0.2@0,3", "keep": "top"}
    assert settings_of(Recipe("1@0", restore="left"))["restore"] == "left"
    lowres = settings_of(Recipe(input_size=48))
    assert (lowres["drop"], lowres["input_size"]) == (None, [48, 48])
    assert settings_of(Recipe("1@0", attention="math"))["attention"] == "math"


def test_what_computes_attention_makes_no_pruned_model_of_a_dense_one():
    model = attention(load_model("tiny_vit"), "math")
    assert pruning_of(model) is None
    assert whole_recipe(model) is None
    assert measured_columns(model)["attention"] == "math"
    assert method_name(recipe_of(model)) == "dense"


def test_what_was_chosen_for_all_models_goes_before_what_a_recipe_says():
    model, recipe = load_model("tiny_vit"), Recipe("4@0", attention="eager")
    assert recipe_of(apply(recipe, model)).attention == "eager"
    chosen = attention(model, "math")
    assert recipe_of(apply(recipe, chosen)).attention == "math"
    assert recipe_of(apply(Recipe("4@0"), chosen)).attention == "math"
    assert apply(Recipe(attention="eager"), chosen) is chosen
    assert recipe_of(apply(Recipe(attention="eager"), model)) == Recipe(attention="eager")


def test_columns_say_what_the_shift_measures_and_what_other_than_the_models_own_pruner_cuts():
    def columns(name, **settings):
        return tuple(measured_columns(apply(Recipe("4@0", **settings), load_model(name))).values())

    assert tuple(measured_columns(load_model("tiny_vit"))) == ("operation", "distance", "residual", "pruner")
    assert set(measured_columns(load_model("tiny_vit")).values()) == {None}
    assert columns("tiny_vit") == ("mlp", "l2", False, None)
    assert columns("tiny_vit", operation="attn", distance="l1", residual=True) == ("attn", "l1", True, None)
    assert columns("tiny_vit", score="norm", pruner="tokens") == (None, None, None, None)
    assert columns("tiny_resnet", pruner="positions") == ("stage", "l2", False, "positions")
    smaller = ShiftTracker(load_model("tiny_vit")).prune(input_size=48)
    assert measured_columns(smaller) == {**measured_columns(load_model("tiny_vit")), "input_size": 48}
    aligned = SequencePruner(align=True)
    assert columns("tiny_vim", pruner=aligned) == ("mixer", "l2", False, "sequence_aligned")


@dataclass(frozen=True)
class Sparing(TokenPruner):
    spared: int = 0


def test_a_pruner_with_settings_is_a_column_of_text_and_a_recipe_that_can_be_read(monkeypatch):
    monkeypatch.setitem(PRUNERS._targets, "sparing", Sparing())
    recipe = Recipe("4@0", pruner=Sparing(3))
    pruned = apply(recipe, load_model("tiny_vit"))
    assert measured_columns(pruned)["pruner"] == "sparing (spared=3)"
    json.dumps(settings_of(recipe))
    assert Recipe.from_dict(whole_recipe(pruned)).pruner == Sparing(3)


def test_the_whole_recipe_makes_the_same_model_again():
    torch.manual_seed(0)
    model, images = load_model("tiny_vit", pretrained=True), torch.rand(2, 3, 64, 64)
    pruned = apply(Recipe("0.5@0::3", "attn", "cosine", keep="bottom"), model)
    said = whole_recipe(pruned)
    assert (said["schedule"], whole_recipe(model)) == ("0.5@0,3", None)
    again = apply(Recipe.from_dict(said), model)
    assert recipe_of(again) == recipe_of(pruned)
    assert torch.equal(again(images), pruned(images))
