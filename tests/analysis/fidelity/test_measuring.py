"""What ``repshift fidelity`` measures of each image, against the same written out."""

import pytest
import torch

from repshift import Recipe, ShiftTracker, load_model
from repshift.analysis.fidelity.measuring import Fidelity, divergence
from repshift.analysis.output.paired import paired_summary
from repshift.analysis.samples.batches import Batch
from repshift.analysis.subjects.comparing import Subjects, reads_one_token
from repshift.analysis.subjects.features import Reader, cosine_distance
from repshift.analysis.subjects.models import ModelOptions


def subjects_of(model, **recipes):
    pruned = {name: ShiftTracker(model).prune(recipe).eval() for name, recipe in recipes.items()}
    return Subjects("a model", ModelOptions(), model, pruned, [], 0)


def measured(model, images, **recipes):
    measure = Fidelity(subjects_of(model, **recipes), images.shape[1:])
    with torch.inference_mode():
        values = measure(Batch(list(range(len(images))), images, [-1] * len(images)))
    return {column: values[:, place] for place, column in enumerate(measure.columns)}


def by_hand(model, pruned, restored, images):
    with torch.no_grad():
        dense, ours = (
            each.forward_head(each.forward_features(images), pre_logits=True).double() for each in (model, pruned)
        )
        tokens, theirs = (each.forward_features(images)[:, 1:].double() for each in (restored, model))
        logits, answers = model(images).double(), pruned(images).double()
    probability = logits.softmax(1)
    return {
        "feature_distance": 1 - torch.nn.functional.cosine_similarity(dense, ours),
        "token_distance": (1 - torch.nn.functional.cosine_similarity(tokens, theirs, dim=-1)).mean(1),
        "agreement": 100.0 * (logits.argmax(1) == answers.argmax(1)),
        "kl": (probability * (probability.log() - answers.softmax(1).log())).sum(1),
    }


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("recipe", [Recipe("0.25@0,2"), Recipe("0.25@0,2", pruner="mnn")])
def test_every_measure_is_what_it_says(build_vit, images, pool, recipe):
    model = build_vit(global_pool=pool)
    pruned, restored = (
        ShiftTracker(model).prune(Recipe("0.25@0,2", pruner=recipe.pruner, restore=restore)).eval()
        for restore in (False, True)
    )
    found = measured(model, images, ours=recipe)
    expected = by_hand(model, pruned, restored, images)
    assert set(found) == {("ours", measure) for measure in expected}
    for measure, values in expected.items():
        torch.testing.assert_close(found["ours", measure], values.double(), rtol=1e-3, atol=1e-6)
    assert found["ours", "feature_distance"].min() > 1e-4


def test_nothing_is_measured_that_a_model_lacks(build_vit, images):
    headless = measured(build_vit(num_classes=0), images, ours=Recipe("0.25@0"))
    assert [measure for _, measure in headless] == ["feature_distance", "token_distance"]
    maps = measured(load_model("tiny_resnet"), torch.rand(2, 3, 64, 64), ours=Recipe("8@0"))
    assert [measure for _, measure in maps] == ["feature_distance", "agreement", "kl"]


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"global_pool": "map"}, {"class_token": False}])
def test_features_lead_to_the_logits_of_the_whole_model(build_vit, images, options):
    if options == {"class_token": False}:
        options |= {"global_pool": "avg"}
    model = build_vit(**options)
    for each in (model, ShiftTracker(model).prune(Recipe("0.25@1", pruner="mnn"))):
        with torch.no_grad():
            found = Reader(each.eval())(images)
            torch.testing.assert_close(found.logits, each(images))
    assert reads_one_token(model) == (not options)


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_vim"])
def test_the_zoo_is_read(name):
    model, images = load_model(name), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = Reader(model)(images)
        torch.testing.assert_close(found.logits, model(images))
    assert found.pooled.shape[0] == 2


def test_a_model_without_methods_is_read_by_its_output(images):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5)).eval()
    with torch.no_grad():
        found = Reader(model)(images)
        assert torch.equal(found.pooled, model(images))
    assert (found.tokens, found.logits) == (None, None)


def test_random_tokens_are_the_same_with_and_without_their_places(build_vit, images):
    model = build_vit(global_pool="avg")
    recipe = Recipe("0.5@0", score="random")
    first, second = (measured(model, images, ours=recipe) for _ in range(2))
    assert all(torch.equal(first[column], second[column]) for column in first)
    # with the class token alone read, one forward tells both, and tells the same
    model.global_pool = "token"
    assert measured(model, images, ours=recipe)["ours", "token_distance"].equal(first["ours", "token_distance"])


def test_a_small_angle_is_not_lost_to_rounding():
    vector = torch.tensor([[1.0, 0.0]])
    turned = torch.tensor([[1.0, 1e-5]])
    torch.testing.assert_close(cosine_distance(turned, vector), torch.tensor([5e-11], dtype=torch.float64))


def test_divergence_is_of_the_dense_predictions_and_never_negative():
    dense, ours = torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    expected = (half * (half.log() - ours[0].double().log_softmax(0))).sum()
    torch.testing.assert_close(divergence(dense, ours), torch.stack([expected, expected * 0]))


def test_differences_are_taken_image_by_image():
    columns = [("shift", "a"), ("mnn", "a"), ("mnn", "b")]
    values = torch.tensor([[1.0, 2.0, 5.0], [3.0, 5.0, 5.0], [2.0, 3.0, 5.0]], dtype=torch.float64)
    found = paired_summary(columns, values, ["shift"])
    assert found["shift"]["a"] == 2.0
    assert found["mnn"]["a_against_shift"] == pytest.approx(4 / 3)
    assert found["mnn"]["a_against_shift_error"] == pytest.approx(1 / 3)
    assert (found["shift"]["a_against_shift"], found["shift"]["b"], found["mnn"]["b_against_shift"]) == (None,) * 3
    assert paired_summary(columns, values[:1], [])["mnn"]["a_error"] is None


def test_what_lies_between_two_methods_is_taken_at_the_work_of_each():
    columns = [("small", "a"), ("large", "a"), ("mnn", "a"), ("much", "a"), ("x..y", "a")]
    values = torch.tensor([[1.0, 2.0, 2.5, 9.0, 0.0], [3.0, 7.0, 5.0, 9.0, 0.0]], dtype=torch.float64)
    work = {"small": 1.0, "large": 5.0, "mnn": 2.0, "much": 5.1, "x..y": 2.0}
    facts = {name: {"gmacs": gmacs} for name, gmacs in work.items()}
    found = paired_summary(columns, values, ["small..large", "x..y"], facts=facts)
    # a quarter of the way: 1.25 and 4.0
    assert found["mnn"]["a_against_small..large"] == pytest.approx((1.25 + 1.0) / 2)
    assert found["mnn"]["a_against_small..large_error"] == pytest.approx(0.125)
    assert found["mnn"]["a_against_x..y"] == pytest.approx(3.75)  # a method of this very name
    assert [found[name]["a_against_small..large"] for name in ("small", "large", "much")] == [None] * 3
