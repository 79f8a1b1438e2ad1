"""``repshift eval``."""

from functools import partial
from pathlib import Path

import pytest
import torch

from repshift.analysis.evaluation import evaluation
from repshift.analysis.output.results import read_results

DROP = "12@0"  # as in the settings


@pytest.fixture
def run(run_command, monkeypatch, tmp_path):
    """Run ``repshift eval`` in an empty folder; returns exit code, standard output and standard error."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return partial(run_command, "eval")


def test_the_command_prints_what_timm_prints_and_writes_a_row(run, folder, settings, evaluate, same, files):
    code, out, _ = run(
        folder, "-m", "tiny_resnet", "--pretrained", "--drop", DROP, "--compare-dense", "-b", 5, "-j", 0,
        "--results-file", "r.json",
    )  # fmt: skip
    results = read_results(Path("r.json"))
    (row,) = results.rows
    assert code == 0
    assert f" * Acc@1 {row['top1']:.3f} ({row['top1_err']:.3f}) Acc@5 {row['top5']:.3f} ({row['top5_err']:.3f})" in out
    assert same(row) == same(evaluate(settings(checkpoint=None, pretrained=True))[0])
    assert results.kind == "eval"
    assert {"torch", "timm", "device"} <= results.environment.keys()
    assert files(Path()) == {"r.json"}


def test_the_command_takes_the_paper_s_list_and_names_several_models(run, folder):
    code, out, _ = run(folder, "-m", "tiny_vit", "-m", "tiny_vim", "--drop-r", "[0.5,0,0,0,0,0]", "-j", 0, "-b", 23)
    assert code == 0
    assert out.count(" * Acc@1") == 2
    assert "random" in out  # the note on the weights


def test_the_command_names_what_it_skipped(run, folder):
    broken = sorted((folder / "val").rglob("*.png"))[9]
    broken.write_text("no picture")
    code, _, err = run(folder, "-m", "tiny_resnet", "-j", 0, "--on-error", "skip")
    assert code == 0
    assert str(broken) in err


def test_a_failing_model_among_others_is_exit_code_1(run, folder, files):
    code, out, err = run(folder, "-m", "tiny_resnet,resnet18", "-j", 0, "--results-file", "r.csv")
    assert code == 1
    assert "tiny_resnet" in out
    assert "1000" in err
    assert "r.csv.partial" in files(Path())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no data folder"),
        ([], "No data"),
        (["{folder}", "--device", "cuda"], "CUDA"),
        (["{folder}", "--device", "toaster"], "device"),
        (["{folder}", "-m", "no_such_model"], "no_such_model"),
        (["{folder}", "-m", "nothing_*"], "nothing_"),
        (["{folder}", "--split", "test"], "no folder test"),
        (["{folder}", "--dataset", "tfds/x"], "--dataset"),
        (["{folder}", "--drop", "0.2@9"], "stage"),
        (["{folder}", "--drop", DROP, "--drop-r", "[0.2]"], "--drop-r"),
        (["{folder}", "--compare-dense"], "--compare-dense"),
        (["{folder}", "-b", "0"], "batch"),
        (["{folder}", "--on-error", "guess"], "--on-error"),
        (["{folder}", "--amp", "--amp-dtype", "int8"], "--amp-dtype"),
        (["{folder}", "--real-labels", "missing.json"], "missing.json"),
        (["{folder}", "--valid-labels", "missing.txt"], "missing.txt"),
        (["{folder}", "--class-map", "missing.txt"], "missing.txt"),
        (["{folder}", "--checkpoint", "missing.pt"], "missing.pt"),
        (["{folder}", "--results-format", "xml"], "xml"),
        (["{folder}", "--model-kwargs", "size"], "key=value"),
        (["{folder}", "--num-samples", "0"], "--num-samples"),
        (["{folder}", "--score", "norm"], "Give --drop"),
        (["{folder}", "--keep", "bottom"], "Give --drop"),
        (["{folder}", "--seed", "99999999999999999999"], "--seed"),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(run, folder, monkeypatch, arguments, message, files):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = [] if "-m" in arguments else ["-m", "tiny_resnet"]
    given = [argument.format(folder=folder) for argument in arguments]
    code, out, err = run(*given, *model, "-j", 0, "--results-file", "r.json")
    assert code == 1
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert not out
    assert files(Path()) == set()


def test_a_number_of_processes_that_is_none_is_an_error(run, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "many")
    code, _, err = run(folder, "-m", "tiny_resnet")
    assert code == 1
    assert "WORLD_SIZE is 'many'" in err


def test_an_unknown_flag_is_exit_code_2(run, folder):
    code, _, err = run(folder, "-m", "tiny_resnet", "--crop-percent", 0.9)
    assert code == 2
    assert "--crop-percent" in err


def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(run, folder, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "build_subject", interrupt)
    code, out, _ = run(folder, "-m", "tiny_resnet", "--results-file", "r.csv")
    assert code == 130
    assert "--resume" in out


def test_accuracy_at_chance_is_said_with_its_usual_causes(run, folder):
    code, out, _ = run(folder, "-m", "tiny_resnet", "-j", 0, "-b", 23)
    assert code == 0
    assert "guessing would be right as often. The usual causes" in " ".join(out.split())
    code, out, _ = run(folder, "-m", "tiny_resnet", "--pretrained", "-j", 0, "-b", 23)
    assert code == 0
    assert "guessing" not in out


def test_files_of_other_endings_stop_the_run_unless_they_may_be_left_out(run, folder):
    stray = folder / "val" / "3" / "notes.txt"
    stray.write_text("no picture")
    code, _, err = run(folder, "-m", "tiny_resnet", "-j", 0)
    assert code == 1
    assert "3/notes.txt" in err
    code, out, _ = run(folder, "-m", "tiny_resnet", "-j", 0, "--skip-other-files")
    assert code == 0
    assert "23 samples" in out
    assert "left out 1" in out


def test_a_flat_folder_is_evaluated_by_a_file_of_labels(run, folder, tmp_path):
    (tmp_path / "flat").mkdir()
    lines = []
    for number, file in enumerate(sorted((folder / "val").rglob("*.png"))):
        (tmp_path / "flat" / f"{number}.png").symlink_to(file)
        lines.append(f"{number}.png {file.parent.name}")
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    arguments = ("-m", "tiny_resnet", "--pretrained", "-j", 0)
    _, expected, _ = run(folder, *arguments)
    code, out, _ = run(tmp_path / "flat", *arguments, "--labels", tmp_path / "labels.txt")
    assert code == 0
    assert [line for line in out.splitlines() if "Acc@1" in line] == [
        line for line in expected.splitlines() if "Acc@1" in line
    ]
