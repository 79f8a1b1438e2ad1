"""The figure of curves: lines, colours, markers."""

import pytest

from repshift.analysis.curves.figure import draw_curves
from repshift.analysis.curves.points import collect, method_of
from repshift.analysis.output.palette import colours_of
from repshift.analysis.output.results import Results


def drawn(axis):
    """What stands at which places, by label."""
    return {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axis.containers}


def test_all_methods_are_on_one_figure_against_work_and_speed(eval_results, bench_results):
    work, speed = draw_curves(collect([eval_results, bench_results])).axes
    assert drawn(work) == {"vit, dense": [[1.0, 95.0]], "vit, random": [[0.8, 80.0]], "vit, shift": [[0.8, 90.0]]}
    assert drawn(speed) == {"vit, dense": [[100.0, 95.0]], "vit, shift": [[150.0, 90.0]]}
    assert work.get_xlabel() == "GMACs an image"
    assert work.get_ylabel() == "top-1 accuracy, %"
    assert all(part in speed.get_xlabel() for part in ("images a second", "bench", "batch 64", "bfloat16", "a GPU"))


def test_a_speed_that_eval_measured_says_so(eval_results):
    *_, speed = draw_curves(collect([eval_results])).axes
    assert "measured by eval" in speed.get_xlabel()


def test_without_any_speed_there_is_only_the_work(eval_results):
    rows = [{**row, "samples_per_sec": None} for row in eval_results.rows]
    assert len(draw_curves(collect([Results("eval", rows)])).axes) == 1


def test_lines_lead_from_the_dense_model_through_the_schedules_of_a_method(evaluated, eval_results, cpu):
    rows = [*eval_results.rows, evaluated("shift", "0.5@0", 70.0, 0.5)]
    work, _ = draw_curves(collect([Results("eval", rows, cpu)])).axes
    lines = [line.get_xydata().tolist() for line in work.get_lines()]
    assert [[0.5, 70.0], [0.8, 90.0], [1.0, 95.0]] in lines


def test_smaller_inputs_are_points_of_one_method_by_their_size(evaluated, eval_results, cpu):
    rows = [
        evaluated("lowres", None, 85.0, 0.7, input_size=48),
        evaluated("lowres", None, 80.0, 0.5, input_size=[32, 48]),
    ]
    points = collect([eval_results, Results("eval", rows, cpu)])
    found = [(point.schedule, point.top1) for point in points if point.method == "lowres"]
    assert found == [("48 px", 85.0), ("32x48 px", 80.0)]


@pytest.mark.parametrize(("method", "named"), [("shift", "shift merge"), ("merge", "merge"), ("norm", "norm merge")])
def test_a_pruner_that_is_the_method_is_not_named_twice(method, named):
    assert method_of({"method": method, "pruner": "merge"}) == named


def test_methods_have_colours_and_models_markers_of_their_own(evaluated, eval_results, cpu):
    others = [evaluated(row["method"], row["schedule"], 50.0, 2.0, model="other") for row in eval_results.rows]
    work, _ = draw_curves(collect([eval_results, Results("eval", others, cpu)])).axes
    looks = {bars.get_label(): (bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in work.containers}
    assert looks["vit, shift"][0] == looks["other, shift"][0] != looks["vit, random"][0]
    assert looks["vit, shift"][1] == looks["vit, random"][1] != looks["other, shift"][1]


def test_known_methods_have_one_colour_everywhere_and_no_two_methods_the_same():
    known, more = colours_of(["shift", "norm"]), colours_of(["a", "norm", "b", "shift", "cls_attention", "c"])
    assert known["shift"] == more["shift"]
    assert known["norm"] == more["norm"]
    assert len(set(more.values())) == 6


KNOWN = ["dense", "shift", "shift residual", "norm", "random", "cls_attention", "mean_attention", "oracle_free"]


@pytest.mark.parametrize("known", range(len(KNOWN) + 1))
def test_fifteen_methods_have_fifteen_colours_however_many_of_them_are_known(known):
    methods = [*KNOWN[:known], *(f"other {place}" for place in range(15 - known))]
    assert len(set(colours_of(methods).values())) == len(methods) == 15


def test_all_known_methods_and_other_settings_of_the_shift_are_told_apart_in_the_figure(evaluated, cpu):
    more = {"operation": "attn"}, {"residual": True}, {"distance": "l1"}, {"distance": "cosine"}, {"pruner": "merge"}
    rows = [evaluated("shift", "0.5@0", 90.0, 0.8, **setting) for setting in more]
    rows += [evaluated(method, "0.5@0", 90.0, 0.8) for method in KNOWN if method != "shift residual"]
    (work, *_) = draw_curves(collect([Results("eval", rows, cpu)])).axes
    looks = {bars.get_label(): (bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in work.containers}
    assert len(set(looks.values())) == len(looks) == 12
