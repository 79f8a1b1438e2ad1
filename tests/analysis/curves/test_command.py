"""``repshift curves``: files in, a figure and its points out."""

import csv
import json
from functools import partial

import pytest
from PIL import Image

from repshift.analysis.output.results import Results, write_results


@pytest.fixture
def run(run_command):
    """Run ``repshift curves`` in an empty folder; returns exit code, standard output and standard error."""
    return partial(run_command, "curves")


def test_the_command_writes_the_figure_and_its_points(run, tmp_path, eval_results, bench_results):
    write_results(tmp_path / "eval.json", eval_results)
    write_results(tmp_path / "bench.json", bench_results)
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
        ({"results": lambda rows: [{**rows[0], "model": ["vit"]}]}, "model of result 1 is ['vit'] and no text"),
        ({"results": lambda rows: [rows[0], {**rows[1], "schedule": 3}]}, "schedule of result 2 is 3 and no text"),
        ({"results": lambda rows: [{**rows[0], "samples": -1}]}, "samples is -1"),
        ({"results": lambda rows: [{**rows[0], "gmacs": 10**400}]}, "neither a text nor a number"),
        ({"results": lambda rows: [{**rows[0], "precision": 5}]}, "precision of result 1 is 5 and no text"),
        ({"results": lambda rows: [{**rows[0], "batch_size": [4]}]}, "batch_size of result 1 is [4] and no number"),
        ({"results": lambda rows: [{**rows[0], "pruner": {"a": [[1]]}}]}, "neither a text nor a number"),
        ({"environment": {"device": ["cpu"]}}, "device is ['cpu'] and no text"),
        ({"results": lambda rows: [{**rows[0], "top1": float("nan")}]}, "top1 is nan"),
    ],
)
def test_a_damaged_file_is_one_clear_error_and_nothing_is_written(run, tmp_path, damage, message, eval_results, cpu):
    damage = {key: value(eval_results.rows) if callable(value) else value for key, value in damage.items()}
    content = {"repshift_results": 1, "kind": "eval", "environment": cpu, "results": eval_results.rows, **damage}
    (tmp_path / "results.json").write_text(json.dumps(content))
    code, out, err = run("results.json", "--output", "figures/curves.png")
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "figures").iterdir())


def test_results_as_a_table_beside_the_figure_stay(run, tmp_path, eval_results):
    write_results(tmp_path / "e3.json", eval_results)
    write_results(tmp_path / "e3.csv", eval_results)
    before = (tmp_path / "e3.csv").read_bytes()
    assert run("e3.json", "--output", "e3.png")[0] == 0
    assert (tmp_path / "e3.csv").read_bytes() == before


@pytest.mark.parametrize(("given", "output"), [("e3.png", "e3.png"), ("e3.points.csv", "sub/../e3.png")])
def test_an_output_that_is_an_input_is_refused(run, tmp_path, given, output, eval_results):
    (tmp_path / "sub").mkdir()
    write_results(tmp_path / given, eval_results, "json")
    before = (tmp_path / given).read_bytes()
    code, _, err = run(given, "--output", output)
    assert code == 1
    assert "would be replaced, and this command reads" in err
    assert (tmp_path / given).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"sub", given}


@pytest.mark.parametrize("output", ["results.json/curves.png", "curves.xyz"])
def test_an_output_that_cannot_be_written_is_one_clear_error(run, tmp_path, output, eval_results):
    write_results(tmp_path / "results.json", eval_results)
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
def test_names_of_any_letters_are_drawn_and_written(run, tmp_path, name, eval_results, cpu):
    row = {**eval_results.rows[0], "model": name, "precision": name}
    write_results(tmp_path / "results.json", Results("eval", [row], cpu))
    code, _, err = run("results.json", "--output", "c.png")
    assert (code, err) == (0, "")
    (tmp_path / "c.points.csv").read_text(encoding="utf-8")
