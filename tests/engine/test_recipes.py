"""Recipes: what they say, what they refuse, JSON both ways."""

import json
import pickle
from dataclasses import dataclass, replace

import pytest
import torch

from repshift import (
    PRUNERS,
    SCORES,
    Recipe,
    RecipeError,
    Schedule,
    ScheduleError,
    ShiftTracker,
    UnknownNameError,
    UnsupportedModelError,
    dense,
    load_model,
    recipe_of,
)
from repshift.distances import DISTANCES, l1
from repshift.errors import RepshiftWarning
from repshift.pruners import SequencePruner, TokenPruner
from repshift.scores import norm, oracle_free

RECIPES = [
    Recipe("0.2@0,3,6"),
    Recipe({0: 16, 2: 0.5}, operation="attn", distance="cosine", residual=True, keep="bottom"),
    Recipe([0.2, 0, 0, 16], score="norm", pruner="tokens", restore=True),
    Recipe(Schedule.every(0.1, 2), score="random", restore="left"),
    Recipe("8@0;4@1", pruner=SequencePruner(align=True)),
    Recipe("2@0", input_size=(48, 64)),
    Recipe(input_size=48),
    Recipe(read="head"),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_json_goes_both_ways(recipe, tmp_path):
    assert Recipe.from_json(recipe.to_json()) == recipe
    recipe.save(tmp_path / "repshift.json")
    assert Recipe.load(tmp_path / "repshift.json") == recipe
    assert json.loads((tmp_path / "repshift.json").read_text())["repshift"] == 1


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_recipes_are_values(recipe):
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(replace(recipe)) == hash(recipe)
    again = eval(repr(recipe), {"Recipe": Recipe})
    assert again == recipe or (recipe.schedule.entries and again.drops == recipe.drops)


def test_only_what_is_not_as_by_default_is_printed():
    assert repr(RECIPES[0]) == "Recipe('0.2@0,3,6')"
    assert repr(RECIPES[1]) == (
        "Recipe('16@0;0.5@2', operation='attn', distance='cosine', residual=True, keep='bottom')"
    )


def test_what_has_a_name_is_kept_as_that_name():
    assert Recipe("1@0", distance=l1, score=norm, pruner=TokenPruner()) == Recipe(
        "1@0", distance="l1", score="norm", pruner="tokens"
    )
    assert Recipe("1@0", pruner=SequencePruner(align=True)).pruner == "sequence_aligned"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"read": "tokens"}, UnknownNameError, "read is 'all' or 'head'"),
        ({"distance": "l3"}, UnknownNameError, "Unknown distance 'l3'. Did you mean"),
        ({"score": "norms"}, UnknownNameError, "Unknown score 'norms'. Did you mean 'norm'"),
        ({"pruner": "token"}, UnknownNameError, "Unknown pruner 'token'. Did you mean 'tokens'"),
        ({"pruner": 5}, UnknownNameError, "Unknown pruner 5. Give one of"),
        ({"operation": 5}, UnknownNameError, "by its name, got 5"),
        ({"operation": ""}, UnknownNameError, "by its name, got ''"),
        ({"residual": "no"}, UnknownNameError, "residual is True .* or False .*, got 'no'"),
        ({"residual": 1}, UnknownNameError, "got 1"),
        ({"keep": "best"}, UnknownNameError, "keep is 'top' or 'bottom' of the scores, got 'best'"),
        ({"restore": "yes"}, UnknownNameError, "restore is False, True .* or 'left'"),
        ({"restore": 1}, UnknownNameError, "got 1"),
        ({"schedule": {0: 0}}, ScheduleError, "drops nothing"),
        ({"score": "oracle_free", "keep": "bottom"}, UnsupportedModelError, "oracle_free ranks nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Recipe(**({"schedule": "0.2@0"} | options))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is none"),
        ("[" * 100_000, "this is none"),
        ("null", "at least a schedule, got None"),
        ("[1]", r"at least a schedule, got \[1\]"),
        ("{}", "at least a schedule"),
        ('{"schedule": "0.2@0", "scores": "norm"}', "it does not say 'scores'"),
        ('{"schedule": "0.2@0", "score": ["norm"]}', "names its score"),
        ('{"schedule": "0.2@0", "score": "normal"}', "cannot be read: Unknown score 'normal'"),
        ('{"schedule": "2.5@0"}', "cannot be read: Block 0 should drop a share"),
        (
            '{"schedule": null}',
            "cannot be read: A recipe without a schedule, an input_size, read='head' and an attention changes",
        ),
        ('{"schedule": null, "input_size": 48, "score": "norm"}', "so score would say nothing"),
        ('{"schedule": "0.2@0", "input_size": "48"}', "cannot be read: input_size is a number of pixels"),
        ('{"schedule": {"0": 0.5}}', "cannot be read: A schedule names blocks by number"),
        ('{"schedule": "0.2@0", "pruner": {"name": "toke"}}', "A pruner with settings has a name"),
        ('{"schedule": "0.2@0", "pruner": {"name": "sequence", "aligned": 1}}', "cannot be made"),
        ('{"schedule": "0.2@0", "residual": "yes"}', "cannot be read: residual is True"),
        ('{"schedule": "0.2@0", "operation": ""}', "cannot be read: An operation is asked for by its name"),
        ('{"schedule": "0.2@0", "pruner": {"name": "sequence", "align": "no"}}', "align is such as False, got 'no'"),
        ('{"schedule": "0.2@0", "pruner": {"name": "sequence", "align": 0}}', "align is such as False, got 0"),
        (
            '{"schedule": "0.2@0", "distance": {"name": "l2", "p": 4}}',
            "distance .* cannot be made: it has no setting 'p'",
        ),
        ('{"repshift": 99, "recipe": {"schedule": "0.2@0"}}', "written in the form 99, and this version"),
        ('{"repshift": 1, "recipe": {"schedule": "0.2@0"}, "keep": "bottom"}', "it does not say 'keep'"),
        (None, "this is none"),
    ],
)
def test_damaged_recipes_are_refused_with_what_is_wrong(text, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(text)


@pytest.mark.parametrize("make", [lambda p: p / "missing.json", lambda p: p])
def test_files_that_hold_no_recipe_are_refused(tmp_path, make):
    with pytest.raises(RecipeError, match=r"does not exist|cannot be read"):
        Recipe.load(make(tmp_path))
    with pytest.raises(RecipeError, match="named by a string"):
        Recipe.load("a\0b")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "bytes.json")


def test_a_recipe_is_not_written_over_what_is_no_file(tmp_path):
    with pytest.raises(RecipeError, match=r"no regular file|Is a directory|is a folder"):
        RECIPES[0].save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda p: p / "file" / "recipe.json", lambda p: p / "a\0b"], ids=["file", "no name"])
def test_a_recipe_that_cannot_be_saved_there_says_so(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"Cannot write|named by a string"):
        RECIPES[0].save(make(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@dataclass(frozen=True)
class Power:
    power: float = 3.0

    def __call__(self, before, after):
        return (after - before).abs().pow(self.power).sum(-1)


@dataclass(frozen=True)
class Window:
    side: int = 3
    weights: tuple = (1.0, 2.0)


@dataclass(frozen=True)
class Many:
    """A pruner with settings of every form."""

    window: Window = Window()
    windows: tuple = (Window(), Window(5))
    sides: tuple = (3, 4)
    name_of_place: str = "corner"
    most: int | None = 9
    share: float = 0.5
    hard: bool = False
    other: object = None

    def choose(self, candidates, drop):
        return None


@pytest.fixture
def registered(monkeypatch):
    """Register some of a test's own for one test."""
    for registry, thing in ((DISTANCES, Power()), (SCORES, Power()), (PRUNERS, Many())):
        monkeypatch.setattr(registry, "_targets", {**registry._targets, "own": thing})


@pytest.mark.parametrize(
    "options",
    [
        {"distance": Power(4)},
        {"score": Power(4.5)},
        {"distance": Power()},
        {"pruner": Many()},
        {"pruner": Many(Window(4), sides=(1, 2, 3), hard=True, most=None, share=1)},
        {"pruner": Many(Window(weights=()), windows=(Window(), Window(2, (3.0,)), Window(5)), name_of_place="")},
    ],
    ids=str,
)
def test_settings_of_every_form_are_read_as_they_were_written(registered, options):
    recipe = Recipe("0.2@0", **options)
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    "other",
    [torch.ones(2), {1: 2}, Window(), float("nan"), l1],
    ids=["tensor", "dictionary", "dataclass", "nan", "function"],
)
def test_settings_that_would_not_be_read_as_they_are_are_not_written(registered, other):
    with pytest.raises(RecipeError, match="it would not be read back as it is"):
        Recipe("0.2@0", pruner=Many(other=other)).to_json()


@dataclass(frozen=True)
class Own:
    size: int = 4

    def choose(self, candidates, drop):
        return candidates.highest(candidates.count - self.size)


def test_what_has_no_name_cannot_be_written_down_until_it_has_one(monkeypatch):
    recipe = Recipe("0.2@0", pruner=Own(7))
    with pytest.raises(RecipeError, match=r"PRUNERS\.register\('name', \.\.\.\)"):
        recipe.to_json()
    monkeypatch.setattr(PRUNERS, "_targets", {**PRUNERS._targets, "own": Own()})
    assert json.loads(recipe.to_json())["pruner"] == {"name": "own", "size": 7}
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(RecipeError, match="SCORES"):
        Recipe("0.2@0", score=lambda before, after: after.sum(-1)).to_json()


# --- recipes and models -------------------------------------------------------------------------------------------


def test_a_model_is_pruned_by_a_recipe_as_by_its_parts(vit, images):
    recipe = Recipe("0.5@0;4@2", operation="attn", distance="l1", residual=True, keep="bottom")
    parts = ShiftTracker(vit, operation="attn", distance="l1", residual=True).prune("0.5@0;4@2", keep="bottom")
    assert torch.equal(ShiftTracker(vit).prune(recipe)(images), parts(images))
    assert recipe_of(parts) == replace(recipe, pruner="tokens")


def test_a_recipe_says_everything(vit):
    with pytest.raises(RecipeError, match="says everything"):
        ShiftTracker(vit).prune(Recipe("0.5@0"), score="norm")


@pytest.mark.parametrize("told", [{"operation": "attn"}, {"distance": "l1"}, {"residual": True}, {"score": "norm"}])
def test_a_tracker_that_was_told_something_takes_no_recipe(vit, told):
    with pytest.raises(RecipeError, match="nor to the tracker"):
        ShiftTracker(vit, **told).prune(Recipe("0.5@0"))


def test_what_a_recipe_leaves_to_the_model_is_settled(vit):
    pruned = ShiftTracker(vit).prune(Recipe(Schedule.every(0.25, 2)))
    assert recipe_of(pruned) == Recipe("0.25@0,2", operation="mlp", pruner="tokens")


def test_a_dense_model_has_no_recipe(vit):
    assert recipe_of(vit) is None
    assert recipe_of(dense(ShiftTracker(vit).prune("0.5@0"))) is None


def test_a_recipe_survives_copies(vit):
    pruned = ShiftTracker(vit).prune("0.5@0", score="norm")
    assert recipe_of(pickle.loads(pickle.dumps(pruned))) == recipe_of(pruned)


def test_the_way_back_is_the_model_that_was_pruned(vit, images):
    pruned = ShiftTracker(vit).prune("0.5@0,2", restore=True)
    back = dense(pruned)
    assert type(back) is type(vit)
    assert {name: type(module) for name, module in back.named_modules()} == {
        name: type(module) for name, module in vit.named_modules()
    }
    assert {name: set(vars(module)) for name, module in back.named_modules()} == {
        name: set(vars(module)) for name, module in vit.named_modules()
    }
    assert torch.equal(back(images), vit(images))
    assert back.get_intermediate_layers(images)[0].shape == (3, 64, 32)
    assert back.head.weight is vit.head.weight


def test_the_way_back_can_be_pruned_again(vit, images):
    pruned = ShiftTracker(vit).prune("0.5@0")
    assert torch.equal(ShiftTracker(dense(pruned)).prune("0.5@0")(images), pruned(images))


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_vim"])
def test_the_way_back_of_every_kind(name):
    model, images = load_model(name, pretrained=True), torch.rand(1, 3, 64, 64)
    assert torch.equal(dense(ShiftTracker(model).prune({0: 4}))(images), model(images))


def test_the_residual_that_changes_nothing_is_said(vit):
    with pytest.warns(RepshiftWarning, match="this one yields the whole stream, x included"):
        ShiftTracker(vit, operation="block", residual=True)
    with pytest.warns(RepshiftWarning, match="nothing is added"):
        ShiftTracker(load_model("tiny_resnet")).prune(Recipe("4@0", residual=True))


def test_the_residual_is_not_taken_for_true(vit):
    with pytest.raises(UnknownNameError, match="got 'no'"):
        ShiftTracker(vit, residual="no")


def test_oracles_are_told_by_what_they_are_and_not_by_one_object(vit, images):
    other = type(oracle_free)()
    assert torch.equal(
        ShiftTracker(vit).prune("0.5@0", score=other)(images),
        ShiftTracker(vit).prune("0.5@0", score="oracle_free")(images),
    )
    assert SCORES.name_of(other) == "oracle_free"
