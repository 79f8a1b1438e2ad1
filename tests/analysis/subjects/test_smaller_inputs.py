import pytest
import torch

from repshift import Recipe, ShiftTracker, UnsupportedModelError, load_model
from repshift.analysis.subjects import smaller_inputs
from repshift.analysis.subjects.macs import count_macs
from repshift.analysis.subjects.recipes import apply
from repshift.analysis.subjects.smaller_inputs import SmallerInputs

SIZE = (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "step", "drops"),
    [
        ("tiny_vit", 4, ["0.2@0,2", "0.5@0", "0.1@4"]),
        ("tiny_resnet", 16, ["4@0", "10@0", "1@3"]),
        ("tiny_vim", 8, ["0.3@0", "0.5@0"]),
    ],
)
def test_the_largest_input_that_does_no_more_work_is_found(name, step, drops):
    model = load_model(name)
    inputs = SmallerInputs(model, SIZE)
    smaller = [Recipe(None, input_size=side) for side in range(step, 64, step)]
    work = {recipe: count_macs(apply(recipe, model), SIZE) for recipe in smaller}
    assert sorted(work.values()) == list(work.values())
    for drop in drops:
        pruned = ShiftTracker(model).prune(drop)
        most = count_macs(pruned, SIZE)
        assert inputs.recipe_for(pruned) == [recipe for recipe in smaller if work[recipe] <= most][-1]


def test_an_input_of_the_same_work_is_no_larger_than_the_pruned_models():
    model = load_model("tiny_vit")
    same = apply(Recipe(None, input_size=48), model)
    assert SmallerInputs(model, SIZE).recipe_for(same) == Recipe(None, input_size=48)


def test_columns_are_in_proportion_to_rows(build_vit):
    model = build_vit(img_size=(32, 48), patch_size=4)
    pruned = ShiftTracker(model).prune("0.5@0")
    found = SmallerInputs(model, (3, 32, 48)).recipe_for(pruned)
    assert found == Recipe(None, input_size=(24, 36))
    assert apply(found, model)(torch.randn(1, 3, 32, 48)).shape == (1, 10)


def test_a_patch_that_does_not_divide_the_sides_is_rounded_to_what_convolutions_halve():
    assert SmallerInputs(load_model("tiny_resnet"), (3, 72, 72)).step == 16


def test_where_no_input_is_small_enough_it_is_said(build_vit):
    model = build_vit(img_size=(4, 32))
    pruned = ShiftTracker(model).prune("3@0")
    with pytest.raises(UnsupportedModelError, match=r"No input smaller than 4x32 comes to at most .* GMACs\. Give"):
        SmallerInputs(model, (3, 4, 32)).recipe_for(pruned)


@pytest.mark.parametrize(("least", "expected"), [(32, 48), (64, None)])
def test_sizes_that_the_model_refuses_are_none(monkeypatch, least, expected):
    def refusing(recipe, model):
        if recipe.input_size[0] < least:
            raise RuntimeError("too small for this")
        return apply(recipe, model)

    monkeypatch.setattr(smaller_inputs, "apply", refusing)
    model = load_model("tiny_resnet")
    pruned, inputs = ShiftTracker(model).prune("4@0"), SmallerInputs(model, SIZE)
    if expected:
        assert inputs.recipe_for(pruned) == Recipe(None, input_size=expected)
        return
    with pytest.raises(UnsupportedModelError, match=r"No input smaller than 64x64 .*\(too small for this\)"):
        inputs.recipe_for(pruned)
