import json
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from repshift import CheckpointError, Recipe, load_model
from repshift.analysis.output.results import read_results
from repshift.analysis.subjects.methods import choose_methods
from repshift.analysis.throughput import suite_runs, suites
from repshift.analysis.throughput.comparison import Comparison
from repshift.analysis.throughput.roofline import Rates
from repshift.analysis.throughput.suite_runs import NEEDED, Found, PartialCases
from repshift.analysis.throughput.suites import LINES, SUITES, Case, Suite

SMALL = Suite(
    (
        Case("tiny_vit", "0.2@0", 1, ("shift", "oracle_free")),
        Case("tiny_resnet", "8@0", 1, LINES, attends=False, channels_last=True),
        Case("tiny_umt", "0.5@0", 1, ("shift", "fewer_frames"), frames=4),
    ),
    "cpu",
    "float32",
    "sdpa",
    rounds=2,
    warm_up=1,
)


@pytest.fixture
def bench(run_command, monkeypatch):
    """Run the suite of small models, on a device whose rates are said to be round."""
    monkeypatch.setitem(suites.SUITES, "cpu", SMALL)
    monkeypatch.setattr("repshift.analysis.throughput.suite_runs.measured_rates", lambda *_: Rates(1e9, 1e9))
    return partial(run_command, "bench", "--suite", "cpu", "--no-memory", "--threads", 1, "--results-file", "s.json")


def test_all_cases_are_measured_and_shown(bench, tmp_path):
    code, _, err = bench("--page", "s.md")
    assert (code, err.strip()) == (0, "")
    results = read_results(tmp_path / "s.json")
    methods = [(row["model"], row["method"]) for row in results.rows]
    assert methods == [
        *(("tiny_vit", method) for method in ("dense", "eager", "shift", "oracle_free")),
        *(("tiny_resnet", method) for method in ("dense", *LINES)),
        *(("tiny_umt", method) for method in ("dense", "eager", "shift", "fewer_frames")),
    ]
    *_, shift, fewer = results.rows
    assert (shift["frames"], fewer["frames"]) == (4, 2)
    assert fewer["gmacs"] <= shift["gmacs"]
    for row in results.rows:
        assert row["matmul_share"] == pytest.approx(row["macs_per_sec"], abs=1e-3)
        assert row["memory_share"] > 0
    assert results.environment["matmul_gmacs_per_sec"] == 1
    page = (tmp_path / "s.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## tiny_vit",
        "## tiny_resnet",
        "## tiny_umt",
    ]
    assert "`8@0`, batch 1, 64 pixels, float32, channels last." in page
    assert "`0.2@0`, batch 1, 64 pixels, float32, attention by sdpa." in page
    assert not (tmp_path / "s.json.partial").exists()


def test_what_does_not_run_is_said_and_the_rest_is_measured(bench, tmp_path, monkeypatch):
    cases = (Case("tiny_vit", "0.2@9", 1, ("shift",)), *SMALL.cases[:1])
    monkeypatch.setitem(suites.SUITES, "cpu", Suite(cases, "cpu", "float32", "sdpa", 2, 1))
    code, out, _ = bench("--page", "s.md")
    assert code == 0
    assert "not measured: tiny_vit, 0.2@9: " in out
    assert {row["schedule"] for row in read_results(tmp_path / "s.json").rows} == {"", "0.2@0"}
    assert "- tiny_vit, 0.2@9: " in (tmp_path / "s.md").read_text()


def test_a_method_that_does_not_run_is_said_and_the_others_are_measured(bench, tmp_path, monkeypatch):
    run = Comparison._warm_up

    def fail(self, name, call, *rest):
        if name == "shift":
            call = partial(torch.empty, 2**60)  # more than any machine has
        elif name == "eager":
            call = partial(torch.ones(2, 3).mm, torch.ones(2, 3))
        run(self, name, call, *rest)

    monkeypatch.setattr(Comparison, "_warm_up", fail)
    monkeypatch.setitem(suites.SUITES, "cpu", replace(SMALL, cases=SMALL.cases[:1]))
    code, out, _ = bench("--page", "s.md")
    assert code == 0
    assert "tiny_vit, 0.2@0, shift: it does not fit into memory" in out
    said = "tiny_vit, 0.2@0, eager: tiny_vit does not run as eager with these settings (RuntimeError: "
    assert said in (tmp_path / "s.md").read_text()
    assert "--methods" not in out
    assert [row["method"] for row in read_results(tmp_path / "s.json").rows] == ["dense", "oracle_free"]


@pytest.mark.parametrize("line", ['[[0, [{"model": "tiny_vit"}], {}]]', "[[0, 3, {}]]", '[[0, "no"]]', "[[0, [], 3]]"])
def test_records_that_are_none_are_refused(tmp_path, line):
    kept = PartialCases(tmp_path, {})
    kept.begin()
    found = {0: Found([], {"": "why"}), 1: Found([dict.fromkeys(NEEDED, "")], {"shift": "why"})}
    kept.add(found)
    kept.close()
    assert PartialCases(tmp_path, {}).resume() == found
    (tmp_path / "0.jsonl").write_text(line)
    with pytest.raises(CheckpointError, match="holds a line that is no record of such a run"):
        PartialCases(tmp_path, {}).resume()


def test_a_suite_that_was_stopped_goes_on(bench, tmp_path, monkeypatch):
    run, seen = Comparison.run, []

    def stop(self, batch_size, **rest):
        seen.append(self.setup.model)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return run(self, batch_size, **rest)

    monkeypatch.setattr(Comparison, "run", stop)
    code, out, _ = bench()
    assert code == 130
    assert "the same command with --resume goes on" in out
    assert not (tmp_path / "s.json").exists()
    code, _, err = bench()
    assert code == 1
    assert "--resume" in err
    code, _, err = bench("--resume", "--memory")  # which the first case was measured without
    assert code == 1
    assert "memory was False, is True" in err
    assert bench("--resume")[0] == 0
    assert seen == ["tiny_vit", "tiny_resnet", "tiny_resnet", "tiny_umt"]
    assert len(read_results(tmp_path / "s.json").rows) == 13


def test_no_case_is_begun_when_time_is_up(bench, tmp_path):
    code, out, _ = bench("--minutes", 0)
    assert code == 0
    assert "3 of 3 cases were not begun in 0 minutes; the same command with --resume goes on" in out
    assert json.loads((tmp_path / "s.json").read_text())["results"] == []
    assert bench("--resume")[0] == 0
    assert len(read_results(tmp_path / "s.json").rows) == 13


def test_no_compiled_case_is_begun_that_would_end_long_after(monkeypatch):
    seen = []

    def measure(suite, case, *rest):
        seen.append(case.model)
        time.sleep(0.2)
        return []

    monkeypatch.setattr(suite_runs, "_rows", measure)
    monkeypatch.setattr(suite_runs, "measured_rates", lambda *_: Rates(1e9, 1e9))
    cases = [Case(name, "", 1, torchcompile=name != "plain") for name in ("first", "second", "plain")]
    measured = suite_runs.run_suite(replace(SMALL, cases=tuple(cases)), minutes=0.35 / 60)
    assert seen == ["first", "plain"]
    assert measured.left == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--suite", "gpus"), "Unknown --suite 'gpus'"),
        (("--suite", "cpu", "-m", "tiny_vit", "--drop", "0.2@0"), "leave out --model, --drop"),
        (("--suite", "cpu", "--results-file", "a.json", "--page", "a.json"), "Give two names"),
        (("-m", "tiny_vit", "--minutes", 2), "Give --suite"),
        ((), "Give --model"),
    ],
)
def test_what_does_not_go_together_is_refused(run_command, arguments, said):
    code, _, err = run_command("bench", *arguments)
    assert code == 1
    assert said in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_suite_needs_its_device(run_command):
    code, _, err = run_command("bench", "--suite", "gpu")
    assert code == 1
    assert "no CUDA device" in err


# compiled or not, a case prunes in the same way
CASES = [case for suite in SUITES.values() for case in suite.cases if not case.torchcompile]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_model_can_have_the_methods_of_its_cases(case):
    with torch.device("meta"):
        model = load_model(case.model)
    # the size of a smaller input is counted, which takes a while
    methods = [method for method in case.methods if method not in ("lowres", "fewer_frames")]
    assert list(choose_methods(model, Recipe(case.schedule), methods, ())[0]) == ["dense", *methods]
