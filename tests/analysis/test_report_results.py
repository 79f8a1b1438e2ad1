"""Tables and curves of a report."""

import math

import pytest

from repshift.analysis.report.charts import make_charts
from repshift.analysis.report.tables import make_table
from repshift.analysis.result_files import Results


def row(method, top1=None, gmacs=None, rate=None, schedule="", model="vit", **more):
    known = {"model": model, "method": method, "schedule": schedule, "top1": top1, "gmacs": gmacs}
    return known | {"samples_per_sec": rate} | more


def points(chart):
    return {series["name"]: [(point["x"], point["y"]) for point in series["points"]] for series in chart["series"]}


def charts(*results):
    return {chart.title: chart.content() for chart in make_charts(results)}


# --- curves -----------------------------------------------------------------------------------------------------


def test_accuracy_is_drawn_against_work_a_curve_a_method():
    rows = [row("shift", 80.0, 3.0), row("dense", 82.0, 4.0), row("shift", 78.0, 2.0)]
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
    drawn = charts(Results("eval", [*rows, row("dense", 82.5, 4.0)]))
    assert points(drawn["Accuracy and work"])["dense"] == [(4.0, 82.5)]


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


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "", "fast", True, [1.0]])
def test_what_is_no_number_is_not_drawn(value):
    rows = [row("shift", value, 3.0), row("dense", 82.0, 4.0)]
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
