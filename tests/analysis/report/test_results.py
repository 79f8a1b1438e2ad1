"""Tables and curves of a report."""

import math

import pytest

from repshift.analysis.curves.points import collect
from repshift.analysis.output.results import Results
from repshift.analysis.report.charts import make_charts
from repshift.analysis.report.tables import make_table

METHODS = ("shift", "norm")


def row(method, top1=None, gmacs=None, rate=None, schedule="", model="vit", **more):
    known = {"model": model, "method": method, "schedule": schedule, "top1": top1, "gmacs": gmacs}
    return known | {"samples_per_sec": rate} | more


def points(chart):
    return {series["name"]: [(point["x"], point["y"]) for point in series["points"]] for series in chart["series"]}


def charts(*results):
    return {chart.title: chart.content() for chart in make_charts(results)}


# --- curves -----------------------------------------------------------------------------------------------------


def test_accuracy_is_drawn_against_work_a_curve_a_method():
    rows = [row("shift", 80.0, 3.0, None, "0.1@0"), row("dense", 82.0, 4.0), row("shift", 78.0, 2.0, None, "0.2@0")]
    chart = charts(Results("eval", rows))["Accuracy and work"]
    assert points(chart) == {"shift": [(2.0, 78.0), (3.0, 80.0)], "dense": [(4.0, 82.0)]}


def test_models_are_told_apart():
    rows = [row("dense", 80.0, 3.0, model="a"), row("dense", 82.0, 4.0, model="b")]
    assert set(points(charts(Results("eval", rows))["Accuracy and work"])) == {"a, dense", "b, dense"}


def test_a_dense_model_that_was_compared_is_drawn_once():
    compared = {"dense_top1": 82.0, "dense_gmacs": 4.0, "dense_samples_per_sec": 10.0}
    rows = [row("shift", 80.0, 3.0, 20.0, "0.1@0", **compared), row("norm", 79.0, 3.0, 30.0, "0.1@0", **compared)]
    drawn = charts(Results("eval", rows))
    assert points(drawn["Accuracy and work"])["dense"] == [(4.0, 82.0)]
    assert points(drawn["Accuracy and throughput"])["dense"] == [(10.0, 82.0)]
    drawn = charts(Results("eval", [*rows, row("dense", 82.0, 4.0)]))
    assert points(drawn["Accuracy and work"])["dense"] == [(4.0, 82.0)]


def test_two_accuracies_of_one_dense_model_are_not_joined():
    compared = [{"dense_top1": top1, "dense_gmacs": 4.0} for top1 in (82.0, 81.0)]
    rows = [row(method, 80.0, 3.0, 20.0, "0.1@0", **dense) for method, dense in zip(METHODS, compared, strict=True)]
    drawn = charts(*(Results("eval", [one]) for one in rows))
    assert list(drawn) == ["Accuracy and work"]
    assert drawn["Accuracy and work"]["series"] == []
    assert "has two accuracies, 82.0 and 81.0" in drawn["Accuracy and work"]["problem"]


def test_settings_other_than_the_papers_are_curves_of_their_own():
    rows = [row("shift", 80.0, 3.0, 5.0, "0.1@0", distance=distance, batch_size=1) for distance in ("l2", "cosine")]
    drawn = charts(Results("eval", rows), Results("bench", rows))
    for title in ("Accuracy and work", "Accuracy and throughput", "Throughput and work"):
        assert set(points(drawn[title])) == {"shift", "shift cosine"}, title


def timed(device, rate, **more):
    rows = [row("shift", None, 3.0, rate, "0.1@0", batch_size=8, **more)]
    return Results("bench", rows, {"device": device})


def test_benchmarks_of_two_devices_are_not_joined():
    evaluated = Results("eval", [row("shift", 80.0, 3.0, 1.0, "0.1@0")])
    drawn = charts(evaluated, timed("cpu", 10.0), timed("GPU", 500.0))
    assert points(drawn["Accuracy and work"]) == {"shift": [(3.0, 80.0)]}
    assert drawn["Accuracy and throughput"]["series"] == []
    assert "was timed with device cpu and GPU" in drawn["Accuracy and throughput"]["problem"]
    assert points(drawn["Throughput and work (cpu)"]) == {"shift": [(3.0, 10.0)]}
    assert points(drawn["Throughput and work (GPU)"]) == {"shift": [(3.0, 500.0)]}


@pytest.mark.parametrize(
    ("setting", "values", "told"),
    [
        ("precision", ("float32", "bfloat16"), ("float32", "bfloat16")),
        ("attention", ("eager", "flash"), ("eager attention", "flash attention")),
        ("img_size", (224, None), ("224 px", "img_size not told")),
    ],
)
def test_benchmarks_of_two_settings_have_charts_of_their_own(setting, values, told):
    drawn = charts(*(timed("cpu", 10.0, **{setting: value}) for value in values))
    assert list(drawn) == [f"Throughput and work ({words})" for words in told]


def test_evaluations_timed_on_two_devices_are_told_apart():
    rows = [row("shift", 80.0, 3.0, 1.0, "0.1@0"), row("shift", 70.0, 2.0, 9.0, "0.2@0")]
    found = [Results("eval", [one], {"device": device}) for one, device in zip(rows, ("cpu", "GPU"), strict=True)]
    drawn = charts(*found)
    assert points(drawn["Accuracy and throughput"]) == {"shift, cpu": [(1.0, 80.0)], "shift, GPU": [(9.0, 70.0)]}
    assert len(points(drawn["Accuracy and work"])["shift"]) == 2


def test_the_report_and_the_curves_command_agree():
    results = [
        Results("eval", [row("shift", 80.0, 3.0, 1.0, "0.1@0"), row("norm", 79.0, 3.0, 1.0, "0.1@0")]),
        Results("bench", [row("shift", rate=rate, schedule="0.1@0", batch_size=8) for rate in (90.0, 100.0, 500.0)]),
    ]
    chart = charts(*results)["Accuracy and throughput"]
    expected = {point.method: [(point.samples_per_sec, point.top1)] for point in collect(results)}
    expected.pop("norm")  # no benchmark has timed it
    assert points(chart) == expected == {"shift": [(100.0, 80.0)]}


def test_ablations_of_two_models_have_charts_of_their_own():
    rows = [{"study": "distance", "block": 0, "setting": "l2", "delta": -1.0}]
    drawn = charts(*(Results("ablate", rows, {"model": model}) for model in ("a", "b")))
    assert list(drawn) == ["Study: distance (a)", "Study: distance (b)"]


def test_the_throughput_is_that_of_the_benchmark_at_its_largest_batch():
    evaluated = [row("shift", 80.0, 3.0, 1.0, "[0.2,0,0.2,0]"), row("dense", 82.0, 4.0, 2.0)]
    timed = [
        row("shift", rate=500.0, schedule="0.2@0,2", batch_size=64),
        row("shift", rate=100.0, schedule="0.2@0,2", batch_size=1),
        row("shift", rate=900.0, schedule="0.4@0,2", batch_size=64),
    ]
    chart = charts(Results("eval", evaluated), Results("bench", timed))["Accuracy and throughput"]
    assert points(chart) == {"shift": [(500.0, 80.0)]}
    assert "bench, at its largest batch size" in chart["note"]


def test_the_throughput_of_the_evaluation_is_named_as_such():
    chart = charts(Results("eval", [row("dense", 82.0, 4.0, 2.0)]))["Accuracy and throughput"]
    assert points(chart) == {"dense": [(2.0, 82.0)]}
    assert "of the evaluation itself" in chart["note"]


def test_speed_up_is_drawn_against_the_batch_size_if_there_are_several():
    rows = [row("shift", rate=1.0, gmacs=2.0, batch_size=size, speedup=size / 10) for size in (16, 1)]
    assert points(charts(Results("bench", rows))["Speed-up over the dense model"]) == {"shift": [(1, 0.1), (16, 1.6)]}
    assert points(charts(Results("bench", rows[:1]))["Throughput and work"]) == {"shift": [(2.0, 1.0)]}


def test_the_speed_ups_of_two_schedules_are_curves_of_their_own():
    rows = [
        row("shift", rate=1.0, schedule=schedule, batch_size=size, speedup=size * factor)
        for schedule, factor in (("0.1@0", 1.0), ("[0.2]", 2.0))
        for size in (1, 2)
    ]
    chart = charts(Results("bench", rows))["Speed-up over the dense model"]
    assert points(chart) == {"shift, 0.1@0": [(1, 1.0), (2, 2.0)], "shift, 0.2@0": [(1, 2.0), (2, 4.0)]}


def test_each_study_has_a_curve_a_setting():
    rows = [{"study": "dense", "block": None, "setting": "dense", "delta": 0.0}]
    rows += [
        {"study": study, "block": block, "setting": setting, "delta": -float(block)}
        for study, setting in (("distance", "l2"), ("distance", "l1"), ("half", "bottom"))
        for block in (3, 0)
    ]
    drawn = charts(Results("ablate", rows))
    assert list(drawn) == ["Study: distance", "Study: half"]
    assert points(drawn["Study: distance"]) == {"l2": [(0, 0.0), (3, -3.0)], "l1": [(0, 0.0), (3, -3.0)]}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["gmacs", "samples_per_sec"])
def test_what_is_no_number_is_told_in_place_of_the_chart(name, value):
    rows = [{**row("shift", 80.0, 3.0, None, "0.1@0"), name: value}, row("dense", 82.0, 4.0)]
    chart = charts(Results("eval", rows))["Accuracy and work"]
    assert points(chart) == {}
    assert f"{name} is {value}" in chart["problem"]


@pytest.mark.parametrize("value", [None, "", "fast", [1.0]])
def test_a_damaged_accuracy_is_told_in_place_of_the_chart(value):
    chart = charts(Results("eval", [row("shift", value, 3.0), row("dense", 82.0, 4.0)]))["Accuracy and work"]
    assert "A line of the eval results is damaged" in chart["problem"]


def test_a_model_that_could_not_be_evaluated_is_left_out():
    rows = [{"model": "big", "error": "out of memory"}, row("dense", 82.0, 4.0)]
    assert points(charts(Results("eval", rows))["Accuracy and work"]) == {"dense": [(4.0, 82.0)]}
    assert charts(Results("eval", rows[:1])) == {}


# --- tables -----------------------------------------------------------------------------------------------------


def test_a_table_has_the_columns_that_say_something():
    rows = [
        {"model": "vit", "empty": None, "img_size": 224, "top1": 80.0, "kept_tokens": [157, 126], "amp": True},
        {"model": "vit", "empty": "", "img_size": 224, "top1": 80.0, "kept_tokens": None, "late": "x"},
    ]
    found = make_table(Results("eval", rows, {"torch": "2.8"}), "a.json")
    assert found.title == "Evaluation: a.json"
    assert [(column.key, column.label, column.numeric) for column in found.columns] == [
        ("top1", "top-1 %", True),
        ("kept_tokens", "kept tokens", False),
        ("amp", "amp", False),
        ("late", "late", False),
    ]
    assert found.rows == [[80.0, "157 126", "yes", None], [80.0, None, None, "x"]]
    assert found.same == [("model", "vit"), ("image size, px", "224")]
    assert found.environment == [("torch", "2.8")]


def test_a_table_of_one_row_keeps_all_its_columns():
    found = make_table(Results("bench", [{"model": "vit", "batch_size": 8}]), "a.json")
    assert [column.key for column in found.columns] == ["model", "batch_size"]
    assert found.same == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_lacks_become_empty_cells(value):
    found = make_table(Results("other", [{"speed": value, "method": "a"}, {"speed": 2.0, "method": "b"}]), "a.json")
    assert found.rows == [[None, "a"], [2.0, "b"]]
    assert found.columns[0].numeric
