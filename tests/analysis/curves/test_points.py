"""Points of curves: what several results say of one method, put together."""

import pytest

from repshift.analysis.curves.points import collect
from repshift.analysis.output.results import Results
from repshift.errors import DataError


def brief(points):
    return [(point.method, point.schedule, point.top1, point.gmacs, point.samples_per_sec) for point in points]


def test_without_a_benchmark_the_speed_is_that_of_eval(eval_results):
    points = collect([eval_results])
    assert brief(points) == [
        ("dense", "", 95.0, 1.0, 50.0),
        ("random", "0.2@0,2", 80.0, 0.8, 50.0),
        ("shift", "0.2@0,2", 90.0, 0.8, 50.0),
    ]
    assert {(point.measured_by, point.batch_size, point.device) for point in points} == {
        ("eval", 256, "cpu (some maker)")
    }


def test_files_with_and_without_whole_recipes_are_joined_and_restored_tokens_are_a_method_of_their_own(
    evaluated, timed, eval_results, cpu
):
    whole = {"schedule": "0.2@0,2", "pruner": "tokens"}
    timings = [
        timed("shift", "0.2@0,2", 150.0, recipe={**whole, "restore": False}),
        timed("shift", "0.2@0,2", 140.0, recipe={**whole, "restore": True}),
        timed("shift", "0.2@0,2", 130.0, recipe={**whole, "restore": "left"}),
        timed("dense", "", 100.0, recipe=None),
    ]
    restored = evaluated("shift", "0.2@0,2", 91.0, 0.9, recipe={**whole, "restore": True})
    left = evaluated("shift", "0.2@0,2", 90.5, 0.9, recipe={**whole, "restore": "left"})
    found = collect(
        [eval_results, Results("eval", [restored, left], cpu), Results("bench", timings, {"device": "a GPU"})]
    )
    assert {(point.method, point.top1): point.samples_per_sec for point in found if "shift" in point.method} == {
        ("shift", 90.0): 150.0,
        ("shift restored", 91.0): 140.0,
        ("shift restored left", 90.5): 130.0,
    }


@pytest.mark.parametrize("order", [1, -1])
def test_a_benchmark_gives_the_speed_of_what_it_has_timed_at_its_largest_batch(order, eval_results, bench_results):
    points = collect([eval_results, bench_results][::order])
    assert [point.samples_per_sec for point in points] == [100.0, None, 150.0]
    assert [point.measured_by for point in points] == ["bench", None, "bench"]
    assert (points[0].batch_size, points[0].precision, points[0].device) == (64, "bfloat16", "a GPU")


def test_another_batch_size_of_the_benchmark_can_be_asked_for(eval_results, bench_results):
    assert [point.samples_per_sec for point in collect([eval_results, bench_results], batch_size=1)] == [
        None,
        None,
        120.0,
    ]


def test_what_several_benchmarks_timed_in_the_same_way_has_their_median(timed, eval_results, bench_results):
    again = [Results("bench", [timed("dense", "", speed)], bench_results.environment) for speed in (90.0, 300.0)]
    assert collect([eval_results, bench_results, *again])[0].samples_per_sec == 100.0


def test_schedules_that_mean_the_same_are_the_same(evaluated, bench_results, cpu):
    rewritten = Results("eval", [evaluated("shift", "0.20@0;0.2@2", 90.0, 0.8)], cpu)
    assert [point.samples_per_sec for point in collect([rewritten, bench_results])] == [150.0]


def test_a_dense_model_that_was_compared_with_is_a_point_of_its_own(evaluated, cpu):
    row = evaluated("shift", "0.5@0", 90.0, 0.8, dense_top1=95.0, dense_gmacs=1.0, dense_samples_per_sec=40.0)
    assert brief(collect([Results("eval", [row], cpu)])) == [
        ("dense", "", 95.0, 1.0, 40.0),
        ("shift", "0.5@0", 90.0, 0.8, 50.0),
    ]


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"operation": "attn"}, "shift attn"),
        ({"residual": True}, "shift residual"),
        ({"distance": "cosine"}, "shift cosine"),
        ({}, "shift"),
    ],
)
def test_another_setting_than_the_papers_is_a_method_of_its_own(setting, name, evaluated, cpu):
    (point,) = collect([Results("eval", [evaluated("shift", "0.5@0", 90.0, 0.8, **setting)], cpu)])
    assert point.method == name


def test_the_error_is_that_of_a_share_of_so_many_images(eval_results):
    (dense, *_) = collect([eval_results])
    assert dense.top1_error == pytest.approx(100 * (0.95 * 0.05 / 2000) ** 0.5)


def test_a_model_that_could_not_be_evaluated_is_left_out(eval_results, cpu):
    failed = Results("eval", [{"model": "broken", "error": "no"}, *eval_results.rows], cpu)
    assert brief(collect([failed])) == brief(collect([eval_results]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("bench",), "no accuracy in these results .of bench"),
        ((Results("ablate", [{"study": "half"}]),), "of ablate"),
        ((Results("eval", [{"model": "vit"}]),), "damaged"),
        (("eval", {"method": "dense", "schedule": None, "top1": 94.0, "gmacs": 1.0}), "two accuracies, 95.0 and 94.0"),
        (("eval", {"method": "dense", "schedule": "", "speed": 1.0, "model": "other"}), "No benchmark at batch 64"),
        (("eval", "bench", {"method": "dense", "schedule": "", "speed": 99.0}), "timed with device a GPU and cpu"),
        (
            [
                {"method": "dense", "schedule": None, "top1": 94.0, "gmacs": 1.0, "img_size": size}
                for size in (224, 288)
            ],
            "evaluated at 224 and at 288 pixels",
        ),
    ],
)
def test_results_that_give_no_figure_are_refused(files, message, evaluated, timed, eval_results, bench_results, cpu):
    def made(file):
        if isinstance(file, dict):
            kind, row = ("eval", evaluated) if "top1" in file else ("bench", timed)
            return Results(kind, [row(**file)], cpu)
        return {"eval": eval_results, "bench": bench_results}.get(file, file) if isinstance(file, str) else file

    with pytest.raises(DataError, match=message):
        collect([made(file) for file in files])


@pytest.fixture
def at_size(evaluated, timed):
    """Make results that were evaluated at one size and timed at another."""

    def make(accuracy, speed):
        return [
            Results("eval", [evaluated("dense", None, 95.0, 1.0, **({"img_size": accuracy} if accuracy else {}))]),
            Results("bench", [timed("dense", "", 100.0, **({"img_size": speed} if speed else {}))]),
        ]

    return make


def test_a_speed_at_another_size_than_the_accuracy_is_refused(at_size):
    with pytest.raises(DataError, match="evaluated at 288 pixels and timed at 224"):
        collect(at_size(288, 224))


@pytest.mark.parametrize("sizes", [(224, 224), (224, None), (None, 224)])
def test_a_speed_at_the_same_size_or_at_one_that_is_not_known_is_taken(sizes, at_size):
    (point,) = collect(at_size(*sizes))
    assert (point.samples_per_sec, point.img_size) == (100.0, 224)


@pytest.mark.parametrize(
    "damage",
    [
        {"top1": float("nan")},
        {"top1": 101.0},
        {"top1": "95"},
        {"samples": -1},
        {"samples": 2.5},
        {"gmacs": float("inf")},
        {"gmacs": None},
        {"samples_per_sec": -3.0},
        {"samples_per_sec": "fast"},
        {"schedule": "half"},
        {"img_size": [224]},
        {"dense_top1": float("nan"), "dense_gmacs": 1.0, "schedule": "0.5@0"},
    ],
)
def test_a_value_that_no_evaluation_gives_is_refused(damage, evaluated, cpu):
    row = {**evaluated("dense", None, 95.0, 1.0), **damage}
    with pytest.raises(DataError, match="eval results is damaged"):
        collect([Results("eval", [row], cpu)])


@pytest.mark.parametrize(
    "damage",
    [{"samples_per_sec": "fast"}, {"samples_per_sec": float("nan")}, {"batch_size": True}, {"schedule": "half"}],
)
def test_a_value_that_no_benchmark_gives_is_refused(damage, timed, eval_results):
    with pytest.raises(DataError, match="benchmark's results is damaged"):
        collect([eval_results, Results("bench", [{**timed("dense", "", 100.0), **damage}])])
