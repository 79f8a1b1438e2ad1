import csv
import json
from functools import partial

import pytest
from PIL import Image

from repshift.analysis.curves.figure import draw_curves
from repshift.analysis.curves.points import collect, method_of
from repshift.analysis.output.palette import colours_of
from repshift.analysis.output.results import Results, write_results
from repshift.errors import DataError

CPU = {"device": "cpu (some maker)"}


def evaluated(method, schedule, top1, gmacs, model="vit", **more):
    shift = {"operation": "mlp", "distance": "l2", "residual": False} if method == "shift" else {}
    row = {"model": model, "top1": top1, "method": method, "schedule": schedule, "gmacs": gmacs, "samples": 2000}
    return {**row, "samples_per_sec": 50.0, "batch_size": 256, "precision": "float32", **shift, **more}


def timed(method, schedule, speed, batch_size=64, model="vit", **more):
    row = {"model": model, "method": method, "schedule": schedule, "samples_per_sec": speed, "batch_size": batch_size}
    return {**row, "gmacs": 1.0, "precision": "bfloat16", **more}


EVAL = Results(
    "eval",
    [
        evaluated("shift", "0.2@0,2", 90.0, 0.8),
        evaluated("dense", None, 95.0, 1.0),
        evaluated("random", "0.2@0,2", 80.0, 0.8),
    ],
    CPU,
)
BENCH = Results(
    "bench",
    [
        timed("dense", "", 100.0),
        timed("shift", "0.2@0,2", 150.0),
        timed("shift", "0.2@0,2", 120.0, batch_size=1),
        timed("oracle_free", "0.2@0,2", 160.0),
    ],
    {"device": "a GPU"},
)


def brief(points):
    return [(point.method, point.schedule, point.top1, point.gmacs, point.samples_per_sec) for point in points]


# --- putting results together -----------------------------------------------------------------------------------


def test_without_a_benchmark_the_speed_is_that_of_eval():
    points = collect([EVAL])
    assert brief(points) == [
        ("dense", "", 95.0, 1.0, 50.0),
        ("random", "0.2@0,2", 80.0, 0.8, 50.0),
        ("shift", "0.2@0,2", 90.0, 0.8, 50.0),
    ]
    assert {(point.measured_by, point.batch_size, point.device) for point in points} == {
        ("eval", 256, "cpu (some maker)")
    }


def test_files_with_and_without_whole_recipes_are_joined_and_restored_tokens_are_a_method_of_their_own():
    whole = {"schedule": "0.2@0,2", "pruner": "tokens"}
    timings = [
        timed("shift", "0.2@0,2", 150.0, recipe={**whole, "restore": False}),
        timed("shift", "0.2@0,2", 140.0, recipe={**whole, "restore": True}),
        timed("shift", "0.2@0,2", 130.0, recipe={**whole, "restore": "left"}),
        timed("dense", "", 100.0, recipe=None),
    ]
    restored = evaluated("shift", "0.2@0,2", 91.0, 0.9, recipe={**whole, "restore": True})
    left = evaluated("shift", "0.2@0,2", 90.5, 0.9, recipe={**whole, "restore": "left"})
    found = collect([EVAL, Results("eval", [restored, left], CPU), Results("bench", timings, {"device": "a GPU"})])
    assert {(point.method, point.top1): point.samples_per_sec for point in found if "shift" in point.method} == {
        ("shift", 90.0): 150.0,
        ("shift restored", 91.0): 140.0,
        ("shift restored left", 90.5): 130.0,
    }


@pytest.mark.parametrize("order", [1, -1])
def test_a_benchmark_gives_the_speed_of_what_it_has_timed_at_its_largest_batch(order):
    points = collect([EVAL, BENCH][::order])
    assert [point.samples_per_sec for point in points] == [100.0, None, 150.0]
    assert [point.measured_by for point in points] == ["bench", None, "bench"]
    assert (points[0].batch_size, points[0].precision, points[0].device) == (64, "bfloat16", "a GPU")


def test_another_batch_size_of_the_benchmark_can_be_asked_for():
    assert [point.samples_per_sec for point in collect([EVAL, BENCH], batch_size=1)] == [None, None, 120.0]


def test_what_several_benchmarks_timed_in_the_same_way_has_their_median():
    again = [Results("bench", [timed("dense", "", speed)], BENCH.environment) for speed in (90.0, 300.0)]
    assert collect([EVAL, BENCH, *again])[0].samples_per_sec == 100.0


def test_schedules_that_mean_the_same_are_the_same():
    rewritten = Results("eval", [evaluated("shift", "0.20@0;0.2@2", 90.0, 0.8)], CPU)
    assert [point.samples_per_sec for point in collect([rewritten, BENCH])] == [150.0]


def test_a_dense_model_that_was_compared_with_is_a_point_of_its_own():
    row = evaluated("shift", "0.5@0", 90.0, 0.8, dense_top1=95.0, dense_gmacs=1.0, dense_samples_per_sec=40.0)
    assert brief(collect([Results("eval", [row], CPU)])) == [
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
def test_another_setting_than_the_papers_is_a_method_of_its_own(setting, name):
    (point,) = collect([Results("eval", [evaluated("shift", "0.5@0", 90.0, 0.8, **setting)], CPU)])
    assert point.method == name


def test_the_error_is_that_of_a_share_of_so_many_images():
    (dense, *_) = collect([EVAL])
    assert dense.top1_error == pytest.approx(100 * (0.95 * 0.05 / 2000) ** 0.5)


def test_a_model_that_could_not_be_evaluated_is_left_out():
    failed = Results("eval", [{"model": "broken", "error": "no"}, *EVAL.rows], CPU)
    assert brief(collect([failed])) == brief(collect([EVAL]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([BENCH], "no accuracy in these results .of bench"),
        ([Results("ablate", [{"study": "half"}])], "of ablate"),
        ([Results("eval", [{"model": "vit"}])], "damaged"),
        ([EVAL, Results("eval", [evaluated("dense", None, 94.0, 1.0)])], "two accuracies, 95.0 and 94.0"),
        ([EVAL, Results("bench", [timed("dense", "", 1.0, model="other")])], "No benchmark at batch 64"),
        ([EVAL, BENCH, Results("bench", [timed("dense", "", 99.0)], CPU)], "timed with device a GPU and cpu"),
        (
            [Results("eval", [evaluated("dense", None, 94.0, 1.0, img_size=size)]) for size in (224, 288)],
            "evaluated at 224 and at 288 pixels",
        ),
    ],
)
def test_results_that_give_no_figure_are_refused(files, message):
    with pytest.raises(DataError, match=message):
        collect(files)


def at_size(accuracy, speed):
    return [
        Results("eval", [evaluated("dense", None, 95.0, 1.0, **({"img_size": accuracy} if accuracy else {}))]),
        Results("bench", [timed("dense", "", 100.0, **({"img_size": speed} if speed else {}))]),
    ]


def test_a_speed_at_another_size_than_the_accuracy_is_refused():
    with pytest.raises(DataError, match="evaluated at 288 pixels and timed at 224"):
        collect(at_size(288, 224))


@pytest.mark.parametrize("sizes", [(224, 224), (224, None), (None, 224)])
def test_a_speed_at_the_same_size_or_at_one_that_is_not_known_is_taken(sizes):
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
def test_a_value_that_no_evaluation_gives_is_refused(damage):
    row = {**evaluated("dense", None, 95.0, 1.0), **damage}
    with pytest.raises(DataError, match="eval results is damaged"):
        collect([Results("eval", [row], CPU)])


@pytest.mark.parametrize(
    "damage",
    [{"samples_per_sec": "fast"}, {"samples_per_sec": float("nan")}, {"batch_size": True}, {"schedule": "half"}],
)
def test_a_value_that_no_benchmark_gives_is_refused(damage):
    with pytest.raises(DataError, match="benchmark's results is damaged"):
        collect([EVAL, Results("bench", [{**timed("dense", "", 100.0), **damage}])])


# --- the figure -------------------------------------------------------------------------------------------------


def drawn(axis):
    """What stands at which places, by label."""
    return {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axis.containers}


def test_all_methods_are_on_one_figure_against_work_and_speed():
    work, speed = draw_curves(collect([EVAL, BENCH])).axes
    assert drawn(work) == {"vit, dense": [[1.0, 95.0]], "vit, random": [[0.8, 80.0]], "vit, shift": [[0.8, 90.0]]}
    assert drawn(speed) == {"vit, dense": [[100.0, 95.0]], "vit, shift": [[150.0, 90.0]]}
    assert work.get_xlabel() == "GMACs an image"
    assert work.get_ylabel() == "top-1 accuracy, %"
    assert all(part in speed.get_xlabel() for part in ("images a second", "bench", "batch 64", "bfloat16", "a GPU"))


def test_a_speed_that_eval_measured_says_so():
    *_, speed = draw_curves(collect([EVAL])).axes
    assert "measured by eval" in speed.get_xlabel()


def test_without_any_speed_there_is_only_the_work():
    rows = [{**row, "samples_per_sec": None} for row in EVAL.rows]
    assert len(draw_curves(collect([Results("eval", rows)])).axes) == 1


def test_lines_lead_from_the_dense_model_through_the_schedules_of_a_method():
    rows = [*EVAL.rows, evaluated("shift", "0.5@0", 70.0, 0.5)]
    work, _ = draw_curves(collect([Results("eval", rows, CPU)])).axes
    lines = [line.get_xydata().tolist() for line in work.get_lines()]
    assert [[0.5, 70.0], [0.8, 90.0], [1.0, 95.0]] in lines


def test_smaller_inputs_are_points_of_one_method_by_their_size():
    rows = [
        evaluated("lowres", None, 85.0, 0.7, input_size=48),
        evaluated("lowres", None, 80.0, 0.5, input_size=[32, 48]),
    ]
    points = collect([EVAL, Results("eval", rows, CPU)])
    found = [(point.schedule, point.top1) for point in points if point.method == "lowres"]
    assert found == [("48 px", 85.0), ("32x48 px", 80.0)]


@pytest.mark.parametrize(("method", "named"), [("shift", "shift merge"), ("merge", "merge"), ("norm", "norm merge")])
def test_a_pruner_that_is_the_method_is_not_named_twice(method, named):
    assert method_of({"method": method, "pruner": "merge"}) == named


def test_methods_have_colours_and_models_markers_of_their_own():
    others = [evaluated(row["method"], row["schedule"], 50.0, 2.0, model="other") for row in EVAL.rows]
    work, _ = draw_curves(collect([EVAL, Results("eval", others, CPU)])).axes
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


def test_all_known_methods_and_other_settings_of_the_shift_are_told_apart_in_the_figure():
    more = {"operation": "attn"}, {"residual": True}, {"distance": "l1"}, {"distance": "cosine"}, {"pruner": "merge"}
    rows = [evaluated("shift", "0.5@0", 90.0, 0.8, **setting) for setting in more]
    rows += [evaluated(method, "0.5@0", 90.0, 0.8) for method in KNOWN if method != "shift residual"]
    (work, *_) = draw_curves(collect([Results("eval", rows, CPU)])).axes
    looks = {bars.get_label(): (bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in work.containers}
    assert len(set(looks.values())) == len(looks) == 12


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(run_command):
    """Run ``repshift curves`` in an empty folder; returns exit code, standard output and standard error."""
    return partial(run_command, "curves")


def test_the_command_writes_the_figure_and_its_points(run, tmp_path):
    write_results(tmp_path / "eval.json", EVAL)
    write_results(tmp_path / "bench.json", BENCH)
    code, out, err = run("eval.json", "bench.json", "--output", "new/all.png")
    assert (code, err) == (0, "")
    assert "has not timed vit random 0.2@0,2" in out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"all.png", "all.points.csv"}
    with Image.open(tmp_path / "new" / "all.png") as figure:
        assert figure.width > figure.height > 300
    rows = list(csv.DictReader((tmp_path / "new" / "all.points.csv").open()))
    assert [(row["method"], row["top1"], row["samples_per_sec"]) for row in rows] == [
        ("dense", "95", "100"),
        ("random", "80", ""),
        ("shift", "90", "150"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"repshift_results": 99, "kind": "eval", "results": []}', "version 99"),
        ("model,top1\nvit,95\n", "no results file in JSON"),
        ('{"repshift_results": 1, "kind": "bench", "results": []}', "no accuracy"),
    ],
)
def test_a_wrong_file_is_one_clear_error_and_nothing_is_written(run, tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    code, out, err = run("results.json", "--output", "figures/curves.png")
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "figures").iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"environment": ["cpu"]}, "environment is ['cpu'] and no mapping"),
        ({"environment": "cpu"}, "environment is 'cpu' and no mapping"),
        ({"results": [{**EVAL.rows[0], "model": ["vit"]}]}, "model of result 1 is ['vit'] and no text"),
        ({"results": [EVAL.rows[0], {**EVAL.rows[1], "schedule": 3}]}, "schedule of result 2 is 3 and no text"),
        ({"results": [{**EVAL.rows[0], "samples": -1}]}, "samples is -1"),
        ({"results": [{**EVAL.rows[0], "gmacs": 10**400}]}, "neither a text nor a number"),
        ({"results": [{**EVAL.rows[0], "precision": 5}]}, "precision of result 1 is 5 and no text"),
        ({"results": [{**EVAL.rows[0], "batch_size": [4]}]}, "batch_size of result 1 is [4] and no number"),
        ({"results": [{**EVAL.rows[0], "pruner": {"a": [[1]]}}]}, "neither a text nor a number"),
        ({"environment": {"device": ["cpu"]}}, "device is ['cpu'] and no text"),
        ({"results": [{**EVAL.rows[0], "top1": float("nan")}]}, "top1 is nan"),
    ],
)
def test_a_damaged_file_is_one_clear_error_and_nothing_is_written(run, tmp_path, damage, message):
    content = {"repshift_results": 1, "kind": "eval", "environment": CPU, "results": EVAL.rows, **damage}
    (tmp_path / "results.json").write_text(json.dumps(content))
    code, out, err = run("results.json", "--output", "figures/curves.png")
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "figures").iterdir())


def test_results_as_a_table_beside_the_figure_stay(run, tmp_path):
    write_results(tmp_path / "e3.json", EVAL)
    write_results(tmp_path / "e3.csv", EVAL)
    before = (tmp_path / "e3.csv").read_bytes()
    assert run("e3.json", "--output", "e3.png")[0] == 0
    assert (tmp_path / "e3.csv").read_bytes() == before


@pytest.mark.parametrize(("given", "output"), [("e3.png", "e3.png"), ("e3.points.csv", "sub/../e3.png")])
def test_an_output_that_is_an_input_is_refused(run, tmp_path, given, output):
    (tmp_path / "sub").mkdir()
    write_results(tmp_path / given, EVAL, "json")
    before = (tmp_path / given).read_bytes()
    code, _, err = run(given, "--output", output)
    assert code == 1
    assert "would be replaced, and this command reads" in err
    assert (tmp_path / given).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"sub", given}


@pytest.mark.parametrize("output", ["results.json/curves.png", "curves.xyz"])
def test_an_output_that_cannot_be_written_is_one_clear_error(run, tmp_path, output):
    write_results(tmp_path / "results.json", EVAL)
    code, _, err = run("results.json", "--output", output)
    assert code == 1
    assert "Cannot write" in err
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe{}", b"9" * 5000, b"null", b""])
def test_a_file_that_is_no_json_is_one_clear_error(run, tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    code, _, err = run("results.json")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "results.json is" in err


@pytest.mark.parametrize("name", ["\ud800", "$\\x_{$", "a\nb\x1b[31m", "x" * 5000])
def test_names_of_any_letters_are_drawn_and_written(run, tmp_path, name):
    row = {**EVAL.rows[0], "model": name, "precision": name}
    write_results(tmp_path / "results.json", Results("eval", [row], CPU))
    code, _, err = run("results.json", "--output", "c.png")
    assert (code, err) == (0, "")
    (tmp_path / "c.points.csv").read_text(encoding="utf-8")
