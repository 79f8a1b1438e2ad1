import math
from statistics import mean, stdev

import pytest
import torch

from repshift import DataError, Recipe, ScheduleError, ShiftTracker, UnknownNameError, UnsupportedModelError, load_model
from repshift.analysis.ablation.points import count_models, labelled_batches, run_ablation
from repshift.analysis.ablation.settings import STUDIES, choose_studies, plan, with_smaller_inputs
from repshift.analysis.samples.canvases import ClutteredDigits, draw_canvases
from repshift.analysis.samples.data import open_samples
from repshift.analysis.samples.images import normalised
from repshift.analysis.subjects.recipes import apply

SIZE = (3, 64, 64)


@pytest.fixture(scope="module")
def tiny_vit():
    return load_model("tiny_vit", pretrained=True)


@pytest.fixture(scope="module")
def canvases(few_digits, tiny_vit):
    drawn = draw_canvases(ClutteredDigits(few_digits, seed=7))
    return normalised(tiny_vit, drawn.images), drawn.labels


def in_batches(canvases, size=20):
    images, labels = canvases
    return zip(images.split(size), labels.split(size), strict=True)


def labels_at(settings, study, block=0):
    return [setting.label for setting in settings if (setting.study, setting.block) == (study, block)]


# --- what is compared -------------------------------------------------------------------------------------------


def test_studies_are_chosen_by_name_in_their_own_order():
    assert choose_studies(["half", "distance"]) == ("distance", "half")
    assert choose_studies(["score", "all"]) == STUDIES


def test_an_unknown_study_is_refused_with_the_closest_name():
    with pytest.raises(UnknownNameError, match=r"no study 'distances'.*Did you mean 'distance'"):
        choose_studies(["distances"])


def test_a_vision_transformer_with_a_class_token_has_all_studies(tiny_vit):
    settings = plan(tiny_vit, SIZE)
    assert {setting.block for setting in settings} == {0, 2, 4}
    assert labels_at(settings, "operation") == ["attn", "mlp", "block", "random", "norm"]
    assert labels_at(settings, "distance") == ["l2", "l1", "cosine", "random", "norm"]
    assert labels_at(settings, "residual") == ["residual=False", "residual=True", "random", "norm"]
    assert labels_at(settings, "score") == ["shift", "cls_attention", "mnn", "oracle_free", "random", "norm"]
    scores = ("shift", "cls_attention", "random", "norm")
    assert labels_at(settings, "half") == [f"{score}, {keep}" for score in scores for keep in ("top", "bottom")]


def test_without_a_class_token_attention_is_the_mean_of_all_rows(build_vit):
    settings = plan(build_vit(class_token=False, global_pool="avg"), (3, 32, 32), ["score"])
    assert labels_at(settings, "score")[1] == "mean_attention"


def test_a_convolutional_network_has_no_attention_and_no_study_of_the_residual():
    settings = plan(load_model("tiny_resnet"), SIZE)
    assert {setting.study for setting in settings} == set(STUDIES) - {"residual"}
    assert labels_at(settings, "operation", 3) == ["stage", "block", "random", "norm"]
    assert labels_at(settings, "score") == ["shift", "oracle_free", "random", "norm"]


def test_the_residual_alone_is_refused_where_there_is_nothing_to_vary():
    with pytest.raises(UnsupportedModelError, match=r"nothing to vary.*residual"):
        plan(load_model("tiny_resnet"), SIZE, ["residual"])


def test_a_state_space_model_varies_its_mixer():
    assert labels_at(plan(load_model("tiny_vim"), SIZE, ["operation"]), "operation") == [
        "mixer",
        "block",
        "random",
        "norm",
    ]


def test_a_fifth_goes_of_tokens_and_of_lines_at_least_one_and_half_in_the_last_study(tiny_vit):
    dropped = {(setting.study == "half", setting.block): setting.dropped for setting in plan(tiny_vit, SIZE)}
    assert dropped == {(False, block): 51 for block in (0, 2, 4)} | {(True, block): 128 for block in (0, 2, 4)}
    settings = plan(load_model("tiny_resnet"), SIZE, ["distance", "half"])
    dropped = {(setting.study == "half", setting.block): setting.dropped for setting in settings}
    lines = {0: (32, 6), 1: (16, 3), 2: (8, 1), 3: (4, 1)}
    assert dropped == {(False, stage): side**2 - (side - gone) ** 2 for stage, (side, gone) in lines.items()} | {
        (True, stage): side**2 - (side // 2) ** 2 for stage, (side, _) in lines.items()
    }


def test_the_reported_drop_is_what_the_pruned_model_loses(canvases):
    for name, size in (("tiny_vit", 51), ("tiny_resnet", 348), ("tiny_vim", 12)):
        setting = plan(load_model(name), SIZE, ["distance"], [0])[0]
        pruned = apply(setting.recipe, load_model(name))
        with ShiftTracker(pruned) as tracker, torch.inference_mode():
            pruned(canvases[0][:1])
        (cut,) = tracker.kept
        assert setting.dropped == size == tracker.shifts[cut].shape[1] - tracker.kept[cut].shape[1]


def test_a_count_replaces_the_fifth_but_not_the_half(tiny_vit):
    settings = plan(tiny_vit, SIZE, ["distance", "half"], [1], count=40)
    assert {(setting.study, str(setting.recipe.schedule)) for setting in settings} == {
        ("distance", "40@1"),
        ("half", "0.5@1"),
    }


def test_blocks_are_spread_over_a_deep_model(build_vit):
    for depth, blocks in ((4, [0, 1, 2, 3]), (5, [0, 2, 4]), (12, [0, 2, 4, 6, 8, 10]), (24, [0, 4, 8, 12, 16, 20])):
        settings = plan(build_vit(depth=depth), (3, 32, 32), ["half"])
        assert list(dict.fromkeys(setting.block for setting in settings)) == blocks


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blocks": [6]}, UnknownNameError, "no block 6 in VisionTransformer: it has 6, 0 to 5"),
        ({"blocks": [-1]}, UnknownNameError, "no block -1"),
        ({"count": 256}, ScheduleError, "leaves fewer than one of the 256 tokens.*Drop at most 255"),
        ({"count": 0}, ScheduleError, "Give a count of 1 or more"),
    ],
)
def test_blocks_and_counts_that_do_not_fit_are_refused(tiny_vit, options, error, message):
    with pytest.raises(error, match=message):
        plan(tiny_vit, SIZE, **options)


def test_stages_without_anything_to_watch_are_not_counted():
    settings = plan(load_model("mobilenetv3_small_050", num_classes=10), SIZE, ["half"])
    assert {setting.block for setting in settings} == {0, 1, 2, 3}


def test_a_model_that_cannot_be_pruned_is_refused():
    with pytest.raises(UnsupportedModelError, match="belongs to no known backbone"):
        plan(torch.nn.Linear(2, 2), SIZE)


# --- what it comes to -------------------------------------------------------------------------------------------


def right_of(model, canvases):
    with torch.inference_mode():
        return (model(canvases[0]).argmax(1) == canvases[1]).double()


@pytest.mark.parametrize("name", ["tiny_vit", "tiny_resnet", "tiny_vim"])
def test_accuracies_are_those_of_the_models_pruned_one_by_one(canvases, name):
    model = load_model(name, pretrained=True)
    canvases = canvases[0][:16], canvases[1][:16]
    settings = plan(model, SIZE, blocks=[2])
    dense, *points = run_ablation(model, settings, in_batches(canvases, 8))
    assert dense.top1 == pytest.approx(100 * float(right_of(model, canvases).mean()))
    assert [(point.study, point.block, point.setting) for point in points] == [
        (setting.study, setting.block, setting.label) for setting in settings
    ]
    for point in points:
        if point.score not in ("random", "oracle_free", None):
            tracker = ShiftTracker(
                model, operation=point.operation, distance=point.distance or "l2", residual=bool(point.residual)
            )
            pruned = tracker.prune(point.drop, score=point.score, keep=point.keep)
            assert point.top1 == pytest.approx(100 * float(right_of(pruned, canvases).mean())), point


def test_errors_and_gains_are_those_of_the_paired_answers(canvases, tiny_vit):
    settings = plan(tiny_vit, SIZE, ["half"], [0])
    dense, *points = run_ablation(tiny_vit, settings, in_batches(canvases))
    by_setting = {point.setting: point for point in points}
    bottom, norm = by_setting["shift, bottom"], by_setting["norm, top"]
    ours = right_of(ShiftTracker(tiny_vit).prune("0.5@0", keep="bottom"), canvases)
    theirs = right_of(ShiftTracker(tiny_vit).prune("0.5@0", score="norm"), canvases)
    difference = 100 * (ours - theirs)
    assert bottom.over_norm == pytest.approx(float(difference.mean()))
    assert bottom.over_norm_error == pytest.approx(
        float(difference.pow(2).mean() - difference.mean() ** 2) ** 0.5 / 40**0.5
    )
    share = float(ours.mean())
    assert bottom.top1_error == pytest.approx(100 * math.sqrt(share * (1 - share) / 40))
    assert (norm.over_norm, norm.over_norm_error) == (0, 0)
    for point in points:
        assert point.samples == 40
        assert point.delta == pytest.approx(point.top1 - dense.top1, abs=1e-4)
        assert point.over_random == pytest.approx(point.top1 - by_setting["random, top"].top1, abs=1e-4)


def test_what_is_no_part_of_a_score_is_left_blank(canvases, tiny_vit):
    dense, *points = run_ablation(tiny_vit, plan(tiny_vit, SIZE, ["score"], [4]), in_batches(canvases))
    assert (dense.study, dense.block, dense.score, dense.drop, dense.over_random) == ("dense", None, None, None, None)
    described = {point.score: (point.operation, point.distance, point.residual) for point in points}
    assert described == {
        "shift": ("mlp", "l2", False),
        None: (None, None, None),  # mnn, which chooses by itself
        "cls_attention": (None, None, None),
        "oracle_free": (None, None, None),
        "random": (None, None, None),
        "norm": ("mlp", None, None),
    }


def test_what_several_studies_share_is_computed_once(canvases, tiny_vit):
    settings = plan(tiny_vit, SIZE, blocks=[4])
    # attn, mlp, block; l1, cosine; residual; attention, mnn, oracle_free; random, norm; eight halves; the dense model
    assert count_models(settings) == 3 + 2 + 1 + 3 + 2 + 8 + 1
    assert count_models(settings, draws=3) == count_models(settings) + 2 * 3  # random, its top and its bottom half
    seen = []
    run_ablation(tiny_vit, settings, in_batches(canvases, 30), observe=seen.append)
    assert seen == [30] * count_models(settings) + [10] * count_models(settings)


def test_the_seed_settles_the_random_control_and_leaves_the_generator_alone(canvases, tiny_vit):
    canvases = canvases[0][:20], canvases[1][:20]
    settings = plan(tiny_vit, SIZE, ["half"], [0])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (run_ablation(tiny_vit, settings, in_batches(canvases), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert one == same
    differing = {point.setting for point, others in zip(one, other, strict=True) if point.top1 != others.top1}
    assert differing
    assert all(setting.startswith("random") for setting in differing)


def test_several_draws_are_their_mean_and_spread(canvases, tiny_vit):
    canvases = canvases[0][:20], canvases[1][:20]
    settings = plan(tiny_vit, SIZE, ["half"], [0])
    points = run_ablation(tiny_vit, settings, in_batches(canvases), seed=4, draws=2)
    single = [run_ablation(tiny_vit, settings, in_batches(canvases), seed=seed) for seed in (4, 5)]
    for point, *draws in zip(points, *single, strict=True):
        accuracies = [draw.top1 for draw in draws]
        assert point.top1 == pytest.approx(mean(accuracies), abs=1e-4)
        assert point.samples == 20
        if point.setting.startswith("random"):
            assert point.top1_spread == pytest.approx(stdev(accuracies), abs=1e-4)
        else:
            assert point.top1_spread is None
            assert point.top1 == accuracies[0]


def test_a_smaller_input_is_a_control_of_every_study_and_block(canvases, tiny_vit):
    canvases = canvases[0][:20], canvases[1][:20]
    settings, remarks = with_smaller_inputs(tiny_vit, SIZE, plan(tiny_vit, SIZE, ["distance", "half"], [0, 4]))
    assert remarks == []
    points = run_ablation(tiny_vit, settings, in_batches(canvases))[1:]
    controls = {(point.study, point.block): point for point in points if point.setting == "lowres"}
    assert {key: point.input_size for key, point in controls.items()} == {
        ("distance", 0): 56,
        ("half", 0): 48,
        ("distance", 4): 60,
        ("half", 4): 60,
    }
    for point in points:
        control = controls[point.study, point.block]
        if point is control:
            smaller = apply(Recipe(None, input_size=point.input_size), tiny_vit)
            assert point.top1 == pytest.approx(100 * float(right_of(smaller, canvases).mean()))
            assert (point.drop, point.score, point.over_lowres) == (None, None, None)
        else:
            assert point.over_lowres == pytest.approx(point.top1 - control.top1, abs=1e-4)


def test_blocks_without_a_smaller_input_are_remarked_on(build_vit):
    model, size = build_vit(img_size=(4, 32)), (3, 4, 32)
    settings, remarks = with_smaller_inputs(model, size, plan(model, size, ["distance"], [0, 1]))
    assert "lowres" not in labels_at(settings, "distance")
    assert [remark[:32] for remark in remarks] == [
        "without lowres for 0.2@0: No inp",
        "without lowres for 0.2@1: No inp",
    ]


def test_the_study_of_the_score_compares_the_methods_that_are_asked_for(tiny_vit):
    settings = plan(tiny_vit, SIZE, ["score"], [0], methods=["tome", "dense", "shift", "lowres", "norm"])
    assert labels_at(settings, "score") == ["tome", "shift", "random", "norm"]
    with pytest.raises(UnsupportedModelError, match="has no merge"):
        plan(load_model("tiny_resnet"), SIZE, ["score"], [0], methods=["shift", "mnn"])


def test_labels_that_are_not_the_models_are_refused(canvases, tiny_vit):
    images, labels = canvases
    settings = plan(tiny_vit, SIZE, ["distance"], [0])
    for wrong in (labels + 1, labels - 1):
        assert not 0 <= wrong.min() <= wrong.max() < 10
        with pytest.raises(DataError, match="10 classes"):
            run_ablation(tiny_vit, settings, [(images, wrong)])


def test_no_images_at_all_are_refused(tiny_vit):
    with pytest.raises(DataError, match="no images"):
        run_ablation(tiny_vit, plan(tiny_vit, SIZE, ["distance"], [0]), [])


def test_an_image_that_cannot_be_read_is_named(make_image, tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / name).parent.mkdir()
        make_image(name)
    (tmp_path / "dog" / "broken.png").write_bytes(b"no image")
    model = load_model("tiny_vit", num_classes=2)
    samples = open_samples(model, tmp_path)
    with pytest.raises(DataError, match=r"Cannot read .*broken\.png"):
        list(labelled_batches(model, samples, 3))
