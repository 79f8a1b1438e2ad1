import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from repshift import Recipe
from repshift.analysis.output.results import read_results
from repshift.analysis.subjects.memory import fitting
from repshift.analysis.throughput.command import _measure
from repshift.analysis.throughput.comparison import Comparison
from repshift.analysis.throughput.setup import Setup
from repshift.programs import FORMATS

QUICK = ("--num-bench-iter", 2, "--num-warm-iter", 1, "--threads", 1)


@pytest.fixture
def run(run_command, monkeypatch):
    """Run ``repshift bench`` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "120")
    return partial(run_command, "bench")


@pytest.fixture
def bench(run):
    """Time tiny_vit without its memory."""
    return lambda *arguments: run("-m", "tiny_vit", *QUICK, "--no-memory", *arguments)


def methods_in(out):
    return [line.split()[1] for line in out.splitlines() if line.startswith("│")]


def test_a_table_shows_all_methods_and_what_is_kept(bench):
    code, out, err = bench("--drop", "0.2@0,2", "-b", 2)
    assert (code, err.strip()) == (0, "")
    assert methods_in(out) == ["dense", "shift", "cls_attention", "norm", "random", "mnn", "lowres", "oracle_free"]
    assert "tiny_vit, batch 2, 64 pixels, float32, sdpa" in out
    assert "kept tokens behind each block, stage or layer: 205 205 164 164 164 164" in out
    assert f"torch {torch.__version__}" in out


def test_batch_sizes_before_one_that_does_not_fit_are_kept(bench, tmp_path, monkeypatch):
    measure = Comparison.run

    def run_out(self, batch_size, observe=lambda what: None):
        with fitting(batch_size, "cpu"):
            if batch_size > 1:
                raise MemoryError
            return measure(self, batch_size, observe)

    monkeypatch.setattr(Comparison, "run", run_out)
    code, _, err = bench("--drop", "0.2@0", "--methods", "shift", "-b", "1,8", "--results-file", "b.json")
    assert code == 1
    assert "A batch of 8 does not fit" in err
    assert [row["batch_size"] for row in read_results(tmp_path / "b.json").rows] == [1, 1, 1]


def test_no_cell_is_cut_where_there_is_no_terminal(bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = bench("--drop", "0.2@0", "-b", 1)
    assert methods_in(out) == ["dense", "shift", "cls_attention", "norm", "random", "mnn", "lowres", "oracle_free"]
    assert "\u2026" not in out


def test_a_power_is_no_batch_size(bench):
    code, _, err = bench("--drop", "0.2@0", "-b", "\u00b2")
    assert code == 1
    assert "expected positive numbers" in err


@pytest.mark.parametrize("sizes", [("-b", "1,3"), ("-b", "1", "--batch-size", "3")], ids=["commas", "repeated"])
def test_several_batch_sizes_have_a_table_each_and_one_results_file(bench, tmp_path, sizes):
    code, out, _ = bench("--drop", "0.2@0", "--methods", "shift", *sizes, "--results-file", "all.json")
    assert code == 0
    assert methods_in(out) == ["dense", "shift", "oracle_free"] * 2
    results = read_results(tmp_path / "all.json")
    assert results.kind == "bench"
    assert [row["batch_size"] for row in results.rows] == [1, 1, 1, 3, 3, 3]
    assert results.environment["threads"] == 1
    assert all(row["samples_per_sec"] > 0 for row in results.rows)


@pytest.mark.parametrize(
    ("name", "wanted", "begins"),
    [
        ("a.csv", (), "model,method,samples_per_sec,step_time,"),
        ("a.md", (), "| model | method | samples_per_sec |"),
        ("a.txt", ("--results-format", "json"), "{"),
    ],
)
def test_results_are_written_in_the_format_asked_for(bench, tmp_path, name, wanted, begins):
    assert bench("--methods", "dense", "-b", 1, "--results-file", name, *wanted)[0] == 0
    assert (tmp_path / name).read_text().startswith(begins)


def test_the_papers_list_of_shares_is_the_same_schedule(bench, tmp_path):
    assert bench("--drop-r", "[0.2,0,0.2,0,0,0]", "-b", 1, "--methods", "shift", "--results-file", "a.json")[0] == 0
    rows = json.loads((tmp_path / "a.json").read_text())["results"]
    assert {row["schedule"] for row in rows} == {"", "0.2@0,2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "No schedule was given"),
        (("--drop", "0.2@77"), "block 77"),
        (("--drop", "0.2@0", "--drop-r", "0.2,0"), "two forms of one schedule"),
        (("--drop", "0.2@0", "-b", "0"), "--batch-size got '0', expected positive numbers"),
        (("--drop", "0.2@0", "-b", "4,x"), "--batch-size got '4,x'"),
        (("--drop", "0.2@0", "--methods", "shift,magic"), "Unknown method 'magic'"),
        (("--drop", "0.2@0", "--precision", "fp8"), "Unknown --precision 'fp8'"),
        (("--drop", "0.2@0", "--attention", "cudnn"), "it needs a CUDA device"),
        (("--drop", "0.2@0", "--device", "toaster"), "There is no device 'toaster'"),
        (("--drop", "0.2@0", "--results-format", "xml"), "Results are not written as 'xml'"),
        (("--methods", "dense", "-b", "100000000000"), "A batch of 100000000000 images cannot be"),
    ],
)
def test_bad_input_is_one_line_exit_code_1_and_no_results(bench, tmp_path, arguments, message):
    code, _, err = bench("--results-file", "results.csv", *arguments)
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_one_line_and_exit_code_1(bench):
    code, _, err = bench("--drop", "0.2@0", "--device", "cuda")
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "There is no CUDA device" in err


def test_an_unknown_flag_is_exit_code_2(bench):
    code, _, err = bench("--bogus")
    assert code == 2
    assert "No such option: --bogus" in err


class Narrow(Comparison):
    """A machine that holds six images at a time."""

    def run(self, batch_size, observe=lambda what: None):
        with fitting(batch_size, "cpu"):
            torch.empty(2**60 if batch_size > 6 else 1)
        return [{"batch_size": batch_size}]


def test_a_batch_that_does_not_fit_is_tried_smaller_as_timm_does(capsys):
    narrow = Narrow(Setup("tiny_vit"), {})
    assert _measure(narrow, 16, retry=True) == [{"batch_size": 6}]
    out = capsys.readouterr().out
    assert [line.split()[-1] for line in out.splitlines()] == ["12", "8", "6"]


@pytest.mark.slow
def test_memory_is_part_of_the_table(run, tmp_path):
    code, _, _ = run("-m", "tiny_vit", *QUICK, "-b", 32, "--methods", "dense", "--results-file", "a.json")
    assert code == 0
    peaks = {row["method"]: row["peak_memory"] for row in read_results(tmp_path / "a.json").rows}
    assert all(peak > 1 for peak in peaks.values())


def test_videos_are_timed_with_plain_attention_beside_the_fused_one(run, tmp_path):
    small = ("-m", "tiny_umt", "--frames", 3, "--img-size", 16, "-b", 1, "--drop", "0.25@0", "--no-memory", *QUICK)
    code, out, _ = run(*small, "--results-file", tmp_path / "rows.json")
    assert code == 0
    assert "lowres" not in out
    controls = ["norm", "random", "mnn", "fewer_frames", "oracle_free"]
    assert methods_in(out) == ["dense", "eager", "shift", "mean_attention", *controls]
    assert "tiny_umt, batch 1, 3 frames of 16 pixels" in out
    assert "kept tokens behind each block, stage or layer: 9 9 9 9" in out
    rows = {row["method"]: row for row in read_results(tmp_path / "rows.json").rows}
    assert {name: row["attention"] for name, row in rows.items() if name in ("dense", "eager")} == {
        "dense": "sdpa",
        "eager": "eager",
    }
    assert (rows["dense"]["frames"], rows["fewer_frames"]["frames"]) == (3, 2)
    assert rows["fewer_frames"]["gmacs"] <= rows["shift"]["gmacs"]


@pytest.mark.slow
def test_fewer_frames_can_be_asked_for_by_name_and_need_less_memory(run, tmp_path):
    asked = ("-m", "tiny_umt", "-b", 4, "--drop", "0.5@0", "--methods", "fewer_frames", "--results-file", "a.json")
    code, out, _ = run(*asked, *QUICK)
    assert (code, methods_in(out)) == (0, ["dense", "fewer_frames", "oracle_free"])
    dense, fewer, _ = read_results(tmp_path / "a.json").rows
    assert fewer["peak_memory"] < dense["peak_memory"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-m", "tiny_vit", "--drop", "0.5@0"), 0, "without fewer_frames: VisionTransformer takes images"),
        (("-m", "tiny_umt"), 1, "No schedule was given"),
        (("-m", "tiny_umt", "--frames", 2, "--drop", "0.9@0"), 0, "One frame is more work"),
    ],
)
def test_fewer_frames_are_of_videos_and_for_the_work_of_a_pruned_model(run, arguments, code, said):
    found, out, err = run(*arguments, "-b", 1, "--methods", "fewer_frames", "--no-memory", *QUICK)
    assert found == code
    assert said in out + err


def test_bytes_are_counted_where_they_are_asked_for(bench, tmp_path):
    asked = ("--drop", "0.5@0", "--methods", "shift", "-b", 1)
    assert "MB moved" not in bench(*asked)[1]
    code, out, _ = bench(*asked, "--count-bytes", "--results-file", "a.json")
    assert (code, "MB moved" in out) == (0, True)
    dense, shift, _ = read_results(tmp_path / "a.json").rows
    assert 1e6 < shift["bytes_moved"] < dense["bytes_moved"]


def test_bytes_that_cannot_be_counted_are_left_out(bench, tmp_path):
    asked = ("--attention", "flex", "--methods", "dense", "-b", 1, "--count-bytes")
    code, _, err = bench(*asked, "--results-file", "a.json")
    assert (code, err.strip()) == (0, "")
    assert read_results(tmp_path / "a.json").rows[0]["bytes_moved"] is None


@pytest.mark.parametrize("name", ["fewer_frames", "eager", "shift"])
def test_a_further_recipe_cannot_take_the_name_of_a_method(bench, tmp_path, name):
    Recipe("0.5@0").save(tmp_path / f"{name}.json")
    code, _, err = bench("--drop", "0.5@0", "-b", 1, "--compare", tmp_path / f"{name}.json")
    assert code == 1
    assert f"these names are taken: {name}" in err


def test_plain_attention_can_be_asked_for_by_name(bench):
    code, out, _ = bench("--methods", "eager", "-b", 1)
    assert (code, methods_in(out)) == (0, ["dense", "eager"])


def test_a_model_of_images_has_no_frames(bench):
    code, _, err = bench("--frames", 4, "-b", 1)
    assert code == 1
    assert "does not take these options: {'frames': 4}" in err


def test_the_papers_columns_stand_beside_ours_each_with_its_attention(bench, tmp_path):
    code, _, err = bench("--drop", "0.2@0", "-b", 1, "--paper", "--results-file", "p.json")
    assert (code, err.strip()) == (0, "")
    rows = read_results(tmp_path / "p.json").rows
    assert [(row["method"], row["attention"]) for row in rows] == [
        ("dense", "sdpa"),
        ("eager", "eager"),
        ("cls_attention (eager)", "eager"),
        ("shift (flash)", "flash"),
        ("shift", "sdpa"),
        ("oracle_free", "sdpa"),
    ]
    assert [row["schedule"] for row in rows] == ["", "", *4 * ["0.2@0"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "tiny_vit", "--paper"), "Give --drop"),
        (("-m", "tiny_resnet", "--drop", "8@0", "--paper"), "attention"),
    ],
)
def test_the_papers_columns_need_a_schedule_and_attention(run, arguments, said):
    code, _, err = run(*arguments, *QUICK, "--no-memory")
    assert code == 1
    assert said in err


def test_an_unknown_runtime_is_one_line_and_so_are_two_words_for_one(bench):
    for given, message in (
        (("--runtime", "jit"), "Unknown runtime 'jit'"),
        (("--runtime", "eager", "--torchcompile"), "Got --torchcompile beside --runtime eager"),
        (("--runtime", "eager,aoti", "--precision", "amp"), "have the precision of their weights, and amp mixes two"),
        (("--runtime", "onnx", "--attention", "flash"), "so 'flash' would say nothing"),
        (("--runtime", "onnx", "--paper", "--drop", "0.2@0"), "so 'flash' would say nothing"),
    ):
        code, _, err = bench("--methods", "dense", "-b", 1, *given)
        assert (code, len(err.strip().splitlines())) == (1, 1)
        assert message in err


@pytest.fixture
def formats(monkeypatch):
    """Programs in files that are the eager model, half as fast."""
    written = {}

    def write(model, images, batches, path, said):
        assert batches.fixed
        path.touch()
        written[str(path)] = model
        return ()

    def load(path):
        model = written[str(path)]
        return lambda images: (model(images), model(images))

    for name in ("aoti", "onnx"):
        monkeypatch.setitem(FORMATS, name, replace(FORMATS[name], write=write, load=load))


def test_several_runtimes_stand_in_one_table_each_against_its_own_dense_model(bench, formats, tmp_path):
    asked = ("--drop", "0.3@0", "--methods", "shift", "--runtime", "eager,onnx")
    code, out, _ = bench(*asked, "-b", 1, "--results-file", "r.json")
    assert code == 0
    assert [line.split()[1:4:2] for line in out.splitlines() if line.startswith("│")] == [
        [method, runtime] for runtime in ("eager", "onnx") for method in ("dense", "shift", "oracle_free")
    ]
    rows = read_results(tmp_path / "r.json").rows
    assert [row["runtime"] for row in rows] == ["eager"] * 3 + ["onnx"] * 3
    assert [row["speedup"] for row in rows if row["method"] == "dense"] == [1.0, 1.0]
    assert [row["efficiency"] for row in rows if row["method"] == "oracle_free"] == [1.0, 1.0]
    assert [row["attention"] for row in rows[::3]] == ["sdpa", None]


def test_compiled_programs_have_the_attention_that_was_chosen(bench, formats, tmp_path):
    asked = ("--methods", "dense,eager", "--runtime", "aoti", "--attention", "math")
    code, _, _ = bench(*asked, "-b", 1, "--results-file", "r.json")
    assert code == 0
    assert [row["attention"] for row in read_results(tmp_path / "r.json").rows] == ["math", "eager"]


def test_memory_is_measured_where_it_means_something(run, formats, monkeypatch, tmp_path):
    measured = []
    monkeypatch.setattr(
        "repshift.analysis.throughput.comparison.peak_on_cpu",
        lambda setup, *rest: measured.append(setup.torchcompile) or 2**20,
    )
    asked = ("--methods", "dense", "--runtime", "eager,aoti", "--results-file", "r.json")
    code, _, _ = run("-m", "tiny_vit", *QUICK, "-b", 1, *asked)
    assert code == 0
    assert [row["peak_memory"] for row in read_results(tmp_path / "r.json").rows] == [1.0, None]
    assert measured == [False]


@pytest.mark.slow
def test_every_runtime_runs_in_earnest(bench, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    names = "eager,compile,aoti,onnx"
    code, _, _ = bench("--drop", "0.3@0", "--methods", "shift", "-b", 2, "--runtime", names, "--results-file", "r.json")
    assert code == 0
    rows = read_results(tmp_path / "r.json").rows
    assert [row["runtime"] for row in rows] == [name for name in names.split(",") for _ in range(3)]
    assert all(row["samples_per_sec"] > 0 for row in rows)
