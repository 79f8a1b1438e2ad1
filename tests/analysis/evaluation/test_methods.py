"""Several methods in one pass over the data: each as if it had been evaluated alone, and compared image by image."""

import math
from dataclasses import replace
from statistics import mean, stdev

import pytest

from repshift import Recipe, ScheduleError, UnsupportedModelError
from repshift.analysis.output.results import read_results
from repshift.analysis.subjects.smaller_inputs import SmallerInputs

METHODS = ("shift", "random", "lowres")
COMPARED = ("over_random", "over_lowres", "seeds", "top1_spread")  # which are of several


@pytest.fixture
def compared(settings, evaluate):
    """The lines of three methods, and the settings."""
    options = settings(methods=METHODS, seeds=2, compare_dense=False)
    return evaluate(options), options


def test_each_method_has_the_line_that_it_has_alone_and_the_dense_model_the_first(compared, evaluate, same):
    rows, options = compared
    assert [row["method"] for row in rows] == ["dense", *METHODS]
    alone = replace(options, methods=None, seeds=None, compare_dense=True)
    lowres = Recipe(None, input_size=48)
    for row, recipe in ((rows[1], options.recipe), (rows[3], lowres)):
        (expected,) = evaluate(replace(alone, recipe=recipe))
        assert {key: value for key, value in same(row).items() if not key.startswith(COMPARED)} == same(expected)
    (expected,) = evaluate(replace(alone, recipe=None, compare_dense=False))
    assert same(rows[0]) == same(expected)
    assert rows[3]["input_size"] == 48
    assert rows[3]["gmacs"] <= rows[1]["gmacs"]


def test_random_is_the_mean_of_draws_of_seeds_that_follow_each_other(compared, evaluate):
    rows, options = compared
    alone = replace(options, methods=None, seeds=None, recipe=Recipe("12@0", score="random"), compare_dense=True)
    draws = [evaluate(replace(alone, seed=seed))[0] for seed in (42, 43)]
    random = rows[2]
    assert (random["seed"], random["seeds"], rows[1]["seed"]) == (42, 2, None)
    for key in ("top1", "top5", "delta_top1", "agreement"):
        assert random[key] == pytest.approx(mean(draw[key] for draw in draws), abs=1e-3)
    assert random["top1_spread"] == pytest.approx(stdev(draw["top1"] for draw in draws), abs=1e-3)


def test_gains_on_the_controls_are_differences_of_accuracies_and_no_control_gains_on_itself(compared):
    (_, shift, random, lowres), _ = compared
    assert shift["over_random"] == pytest.approx(shift["top1"] - random["top1"], abs=1e-3)
    assert shift["over_lowres"] == pytest.approx(shift["top1"] - lowres["top1"], abs=1e-3)
    assert random["over_lowres"] == pytest.approx(-lowres["over_random"], abs=1e-3)
    assert "over_random" not in random
    assert "over_lowres" not in lowres
    assert 0 < random["delta_top1_error"] < 100 / math.sqrt(23)


def test_a_run_of_several_methods_is_resumed_with_the_same_lines(settings, evaluate, same, stop, tmp_path):
    options = settings(methods=METHODS, compare_dense=False)

    def observe(model, done, *rest):
        if done >= 8:
            raise stop

    with pytest.raises(stop):
        evaluate(options, tmp_path / "r.json", observe=observe)
    seen = []
    rows = evaluate(options, tmp_path / "r.json", resume=True, observe=lambda *done: seen.append(done[1]))
    assert seen[0] == 12
    assert [same(row) for row in rows] == [same(row) for row in evaluate(options)]
    assert len(read_results(tmp_path / "r.json").rows) == 4


def test_methods_without_a_schedule_are_an_error(settings, evaluate):
    with pytest.raises(ScheduleError, match="No schedule was given"):
        evaluate(settings(drop=None, methods=("shift",)))


def test_the_dense_model_alone_is_no_comparison(settings, evaluate):
    (row,) = evaluate(settings(drop=None, methods=("dense",)))
    assert row["method"] == "dense"
    assert "dense_top1" not in row


def test_the_command_prints_a_table_and_says_what_it_left_out(run_command, folder, monkeypatch):
    def refuse(self, pruned):
        raise UnsupportedModelError("none")

    shown = ("eval", folder, "-m", "tiny_resnet", "--pretrained", "-j", 0, "-b", 23)
    code, out, err = run_command(*shown, "--drop", "12@0", "--methods", "shift,random,lowres", "--seeds", 2)
    assert (code, err) == (0, "")
    assert "lowres (48 px)" in out
    assert "mean and standard deviation of 2 draws" in out
    assert "- dense" in out
    monkeypatch.setattr(SmallerInputs, "recipe_for", refuse)
    code, out, _ = run_command(*shown, "--drop", "12@0", "--methods", "shift,lowres")
    assert code == 0
    assert "note: without lowres: none" in out
    code, _, err = run_command(*shown, "--drop", "12@0", "--methods", "shift", "--score", "norm")
    assert code == 1
    assert "Got --score norm beside --methods shift" in err
