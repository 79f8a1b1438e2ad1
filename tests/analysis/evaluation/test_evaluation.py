import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn

from repshift import CheckpointError, DataError, ShiftTracker, load_model
from repshift.analysis import cli
from repshift.analysis.evaluation import evaluation
from repshift.analysis.evaluation import loop as evaluation_loop
from repshift.analysis.evaluation import models as evaluation_models
from repshift.analysis.evaluation.evaluation import Evaluation
from repshift.analysis.evaluation.records import PartialResults, Record
from repshift.analysis.evaluation.settings import EvaluationSettings, model_names
from repshift.analysis.evaluation.summary import read_real_labels, real_answers, summarise
from repshift.analysis.output.results import read_results
from repshift.analysis.samples.images import data_config
from repshift.analysis.samples.processes import Processes
from repshift.analysis.subjects.memory import MemoryExhaustedError
from repshift.analysis.subjects.variants import Variant

DROP = "12@0"
MEASURED = ("samples_per_sec", "dense_samples_per_sec", "batch_size")  # not the same in every run


class Stop(BaseException):
    """A kill: nothing catches it."""


@pytest.fixture
def folder(digit_folder):
    return digit_folder


@pytest.fixture
def hurt(tmp_path):
    """The embedded model with a noisy classifier, so that it errs: a checkpoint."""
    model = load_model("tiny_resnet", pretrained=True)
    with torch.no_grad():
        model.fc.weight += 0.8 * torch.randn(model.fc.weight.shape, generator=torch.Generator().manual_seed(3))
    torch.save(model.state_dict(), tmp_path / "hurt.pt")
    return tmp_path / "hurt.pt"


@pytest.fixture
def settings(folder, hurt):
    """A pruned model compared with the dense one."""

    def make(drop=DROP, score="shift", **changes):
        options = {"checkpoint": str(hurt), "batch_size": 4, "workers": 0, "compare_dense": drop is not None}
        return EvaluationSettings(str(folder), Variant(drop, score=score), **(options | changes))

    return make


def evaluate(settings, results=None, models=("tiny_resnet",), resume=None, observe=lambda *done: None):
    return Evaluation(settings, Processes(), results, observe=observe).run(models, resume)


def same(row):
    """Leave out what is measured anew in every run."""
    return {name: value for name, value in row.items() if name not in MEASURED}


def predictions(model, folder):
    """Classify every file by hand: the label and the classes in the order of their logits."""
    transform = create_transform(**data_config(model), is_training=False)
    found = {}
    for path in sorted(folder.rglob("*.png")):
        image = transform(Image.open(path).convert("RGB"))
        with torch.no_grad():
            order = model(image.unsqueeze(0))[0].argsort(descending=True).tolist()
        found[path] = int(path.parent.name), order
    return found


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


# --- the numbers ------------------------------------------------------------------------------------------------


def test_accuracies_are_those_of_every_image_by_itself(settings, folder, hurt):
    dense = load_model("tiny_resnet", checkpoint=hurt)
    pruned = ShiftTracker(dense).prune(DROP)
    theirs, ours = predictions(dense, folder), predictions(pruned, folder)

    def share(found, first):
        return round(100 * sum(label in order[:first] for label, order in found.values()) / 23, 4)

    (row,) = evaluate(settings())
    assert (row["top1"], row["top5"]) == (share(ours, 1), share(ours, 5))
    assert (row["dense_top1"], row["dense_top5"]) == (share(theirs, 1), share(theirs, 5))
    assert row["delta_top1"] == pytest.approx(row["top1"] - row["dense_top1"], abs=1e-3)
    agreeing = sum(ours[path][1][0] == theirs[path][1][0] for path in ours)
    assert row["agreement"] == round(100 * agreeing / 23, 4)
    assert 0 < row["top1"] < 100
    assert 0 < row["agreement"] < 100
    assert (row["samples"], row["skipped"]) == (23, 0)


def test_rows_have_the_keys_of_timm_and_what_pruning_adds(settings):
    (row,) = evaluate(settings())
    assert list(row)[:5] == ["model", "top1", "top1_err", "top5", "top5_err"]
    assert row["top1_err"] == pytest.approx(100 - row["top1"])
    model = load_model("tiny_resnet")
    assert row["param_count"] == round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)
    assert (row["img_size"], row["crop_pct"], row["interpolation"]) == (64, 1.0, "bicubic")
    assert (row["schedule"], row["method"], row["operation"]) == (DROP, "shift", "stage")
    assert row["kept_tokens"][0] == 20 * 20
    assert 0 < row["gmacs"] < row["dense_gmacs"]
    assert row["samples_per_sec"] > 0


def test_without_a_schedule_the_dense_model_is_evaluated(settings, folder, hurt):
    found = predictions(load_model("tiny_resnet", checkpoint=hurt), folder)
    (row,) = evaluate(settings(drop=None))
    assert row["top1"] == round(100 * sum(label == order[0] for label, order in found.values()) / 23, 4)
    assert (row["method"], row["schedule"], row["kept_tokens"]) == ("dense", None, None)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_results_do_not_depend_on_the_batch(settings, batch_size):
    assert same(evaluate(settings(batch_size=batch_size))[0]) == same(evaluate(settings())[0])


def test_a_random_score_follows_from_the_seed(settings):
    first, again = (evaluate(settings(score="random"))[0] for _ in range(2))
    others = [evaluate(settings(score="random", seed=seed))[0] for seed in (1, 2, 3)]
    assert same(first) == same(again)
    assert any(other["top1"] != first["top1"] or other["agreement"] != first["agreement"] for other in others)


def test_weights_that_are_not_loaded_follow_from_the_seed(settings):
    torch.manual_seed(1)
    first = evaluate(settings(checkpoint=None))[0]
    torch.manual_seed(2)
    again, other = evaluate(settings(checkpoint=None))[0], evaluate(settings(checkpoint=None, seed=7))[0]
    assert same(first) == same(again)
    assert any(first[name] != other[name] for name in ("top5", "dense_top5", "agreement"))


def test_amp_and_other_formats_stay_close(settings):
    row = evaluate(settings(amp=True, amp_dtype="bfloat16", channels_last=True))[0]
    assert row["precision"] == "amp_bfloat16"
    assert row["top1"] == pytest.approx(evaluate(settings())[0]["top1"], abs=10)


def test_compiled_models_find_the_same(settings, monkeypatch):
    compiled = []

    def compile_without_a_compiler(model):
        compiled.append(model)
        return compiler(model, backend="eager")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", compile_without_a_compiler)
    assert same(evaluate(settings(torchcompile=True))[0]) == same(evaluate(settings())[0])
    assert len(compiled) == 2


@pytest.mark.parametrize(("model", "side"), [("tiny_vit", 24), ("tiny_vim", 12)])
def test_a_model_of_another_size_is_evaluated_at_it(folder, model, side):
    options = EvaluationSettings(str(folder), Variant("0.2@0"), preprocessing={"img_size": 96}, workers=0, batch_size=8)
    (row,) = evaluate(options, models=[model])
    assert row["img_size"] == 96
    assert row["kept_tokens"][0] == side * side - int(0.2 * side * side)


def test_valid_labels_choose_among_these_classes_only(settings, folder, hurt, tmp_path):
    for digit in (0, 1, 2, 3):
        for path in (folder / "val" / str(digit)).iterdir():
            path.unlink()
    (tmp_path / "valid.txt").write_text("\n".join("456789"))
    found = predictions(load_model("tiny_resnet", checkpoint=hurt), folder)
    right = [label == next(guess for guess in order if guess >= 4) for label, order in found.values()]
    unrestricted = [label == order[0] for label, order in found.values()]
    (row,) = evaluate(settings(drop=None, valid_labels=str(tmp_path / "valid.txt")))
    assert row["top1"] == round(100 * sum(right) / len(right), 4)
    assert sum(right) > sum(unrestricted)


def test_reassessed_labels_count_any_of_several_and_leave_out_images_without(tmp_path):
    (tmp_path / "real.json").write_text(json.dumps([[1, 2], [], [7]]))
    labels = read_real_labels(str(tmp_path / "real.json"))
    files = {index: f"val/n01/ILSVRC2012_val_0000000{index + 1}.JPEG" for index in range(3)}
    records = {0: Record(5, (2, 0, 3, 4, 6)), 1: Record(6, (6, 0, 1, 2, 3)), 2: Record(7, (0, 7, 1, 2, 3))}
    summary = summarise(records, real_answers(labels, files))
    assert (summary["top1"], summary["top5"]) == (50.0, 100.0)
    assert summarise(records)["top1"] == pytest.approx(100 / 3, abs=1e-3)


def test_the_reassessed_labels_of_timm_are_there():
    labels = read_real_labels("timm")
    assert len(labels) == 50_000
    assert labels["ILSVRC2012_val_00000003.JPEG"] == [230, 231]


def test_reassessed_labels_of_other_files_are_an_error(settings):
    with pytest.raises(DataError, match=r"\.png has no reassessed label"):
        evaluate(settings(real_labels="timm"))


# --- nothing is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_after", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [4, 3])
def test_a_stopped_run_resumes_to_the_same_result(settings, tmp_path, stopped_after, batch_size):
    results, evaluated = tmp_path / "out" / "results.json", []

    def stop(model, done, total, accuracy):
        if done >= 4 * stopped_after:
            raise Stop

    with pytest.raises(Stop):
        evaluate(settings(), results, observe=stop)
    assert not results.exists()
    rest = settings(batch_size=batch_size)
    (row,) = evaluate(rest, results, resume=True, observe=lambda *done: evaluated.append(done))
    assert 4 * stopped_after < evaluated[0][1] <= 4 * stopped_after + batch_size
    assert same(row) == same(evaluate(settings())[0])
    assert same(read_results(results).rows[0]) == same(row)
    assert files(results.parent) == {"results.json"}


def test_a_stopped_random_control_resumes_to_the_same_result(settings, tmp_path):
    def stop(model, done, total, accuracy):
        if done >= 8:
            raise Stop

    with pytest.raises(Stop):
        evaluate(settings(score="random"), tmp_path / "r.csv", observe=stop)
    with pytest.raises(CheckpointError, match="batches"):
        evaluate(settings(score="random", batch_size=3), tmp_path / "r.csv", resume=True)
    (row,) = evaluate(settings(score="random"), tmp_path / "r.csv", resume=True)
    assert same(row) == same(evaluate(settings(score="random"))[0])


def test_a_torn_line_is_evaluated_again(settings, tmp_path):
    results = tmp_path / "r.csv"
    with pytest.raises(Stop):
        evaluate(settings(), results, observe=lambda model, done, *rest: stop_at(done, 12))
    (kept,) = (tmp_path / "r.csv.partial").rglob("*.jsonl")
    content = kept.read_bytes()
    for cut in range(len(content) - 60, len(content) - 1):
        kept.write_bytes(content[:cut])
        assert len(PartialResults(kept.parent, json.loads((kept.parent / "settings.json").read_text())).resume()) == 8
    (row,) = evaluate(settings(), results, resume=True)
    assert same(row) == same(evaluate(settings())[0])


def stop_at(done, at):
    if done >= at:
        raise Stop


def test_records_added_behind_a_torn_line_are_read(tmp_path):
    before, after = {1: Record(3, (3, 1)), 2: Record(4, (0, 1), (4, 0))}, {7: Record(5, (5,), (5,))}
    partial = PartialResults(tmp_path / "p", {"a": 1})
    partial.begin()
    partial.add(before)
    partial.close()
    with (tmp_path / "p" / "0.jsonl").open("a") as file:
        file.write("[[9, 1, [1")
    partial.add(after)
    partial.close()
    assert PartialResults(tmp_path / "p", {"a": 1}).resume() == before | after


def test_an_unfinished_run_is_neither_lost_nor_taken_up_unasked(settings, tmp_path):
    with pytest.raises(Stop):
        evaluate(settings(), tmp_path / "r.csv", observe=lambda model, done, *rest: stop_at(done, 4))
    with pytest.raises(DataError, match=r"--resume.*--no-resume"):
        evaluate(settings(), tmp_path / "r.csv")
    seen = []
    evaluate(settings(), tmp_path / "r.csv", resume=False, observe=lambda *done: seen.append(done))
    assert seen[0][1] == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [({"drop": "6@0"}, "pruning_drop"), ({"num_samples": 20}, "num_samples"), ({"channels_last": True}, "channels")],
)
def test_partial_results_of_another_run_are_an_error(settings, tmp_path, change, named):
    with pytest.raises(Stop):
        evaluate(settings(), tmp_path / "r.csv", observe=lambda model, done, *rest: stop_at(done, 4))
    with pytest.raises(CheckpointError, match=named):
        evaluate(settings(**change), tmp_path / "r.csv", resume=True)


def test_partial_results_of_other_data_are_an_error(settings, folder, tmp_path):
    with pytest.raises(Stop):
        evaluate(settings(), tmp_path / "r.csv", observe=lambda model, done, *rest: stop_at(done, 4))
    moved = next((folder / "val" / "0").iterdir())
    moved.rename(moved.with_name("other.png"))
    with pytest.raises(CheckpointError, match="files"):
        evaluate(settings(), tmp_path / "r.csv", resume=True)


def test_resuming_without_an_unfinished_run_begins_one(settings, tmp_path):
    (row,) = evaluate(settings(), tmp_path / "r.csv", resume=True)
    assert row["samples"] == 23


def test_resuming_needs_a_results_file(settings):
    with pytest.raises(DataError, match="--results-file"):
        evaluate(settings(), resume=True)


def test_a_damaged_image_stops_with_its_path_and_what_was_evaluated_is_kept(settings, folder, tmp_path):
    broken = sorted((folder / "val").rglob("*.png"))[9]
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(DataError, match=str(broken)):
        evaluate(settings(), tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()
    (row,) = evaluate(settings(on_error="skip"), tmp_path / "r.json", resume=True)
    assert (row["samples"], row["skipped"]) == (22, 1)
    assert str(broken) in row["skipped_files"]
    assert same(row) == same(evaluate(settings(on_error="skip"))[0])


def test_skipping_counts_no_other_image_instead(settings, folder, hurt):
    broken = sorted((folder / "val").rglob("*.png"))[9]
    found = predictions(ShiftTracker(load_model("tiny_resnet", checkpoint=hurt)).prune(DROP), folder)
    broken.write_bytes(broken.read_bytes()[:300])
    del found[broken]
    (row,) = evaluate(settings(on_error="skip"))
    assert row["top1"] == round(100 * sum(label == order[0] for label, order in found.values()) / 22, 4)


def test_data_of_which_nothing_can_be_read_are_an_error(settings, folder):
    for path in (folder / "val").rglob("*.png"):
        path.write_text("no picture")
    with pytest.raises(DataError, match="No sample"):
        evaluate(settings(on_error="skip"))


# --- several models ---------------------------------------------------------------------------------------------


def test_a_model_that_fails_has_its_error_in_its_row_and_the_others_go_on(folder, tmp_path):
    options = EvaluationSettings(str(folder), workers=0, pretrained=True)
    names = ["tiny_resnet", "resnet18.nonsense", "tiny_vim"]
    rows = evaluate(options, tmp_path / "r.csv", names)
    assert [("error" in row, row["model"]) for row in rows] == [
        (number == 1, name) for number, name in enumerate(names)
    ]
    with (tmp_path / "r.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["model"] for row in written] == names
    assert "nonsense" in written[1]["error"]


def test_models_that_were_finished_are_not_evaluated_again(settings, tmp_path):
    def stop(model, done, total, accuracy):
        if model == "tiny_resnet" and done == 23:
            counted.append(model)
        if len(counted) == 2:
            raise Stop

    counted = []
    options = settings(checkpoint=None, drop=None)
    names = ["tiny_resnet", "tiny_resnet"]
    with pytest.raises(Stop):
        Evaluation(options, Processes(), tmp_path / "r.json", observe=stop).run(names)
    assert len(read_results(tmp_path / "r.json").rows) == 1
    seen = []
    rows = evaluate(options, tmp_path / "r.json", names, resume=True, observe=lambda *done: seen.append(done))
    assert [row["samples"] for row in rows] == [23, 23]
    assert not seen
    assert files(tmp_path) >= {"r.json"}
    assert not (tmp_path / "r.json.partial").exists()


def test_models_are_named_by_lists_patterns_and_files(tmp_path):
    (tmp_path / "names.txt").write_text("# small\ntiny_vim\n\nresnet18\n")
    assert model_names(["tiny_vit,tiny_vim", "tiny_vit"]) == ["tiny_vit", "tiny_vim"]
    assert model_names([str(tmp_path / "names.txt")]) == ["tiny_vim", "resnet18"]
    assert {"deit_tiny_patch16_224", "deit_small_patch16_224"} <= set(model_names(["deit_*"]))
    assert model_names(["tiny_*net"]) == ["tiny_resnet"]


# --- memory -----------------------------------------------------------------------------------------------------


class Hungry(nn.Module):
    """A model that has memory for a few images only."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most = model, most

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(images)


@pytest.fixture
def hungry(monkeypatch):
    """Let pruned models have memory for so many images."""

    def make(most):
        compiled = evaluation_models._compiled

        def wrap(subject):
            return evaluation_models.replace(subject, model=Hungry(subject.model, most))

        monkeypatch.setattr(evaluation_models, "_compiled", wrap)
        return compiled

    return make


def test_too_large_a_batch_is_an_error_that_suggests_another(settings, hungry, tmp_path):
    hungry(3)
    with pytest.raises(MemoryExhaustedError, match=r"batch of 16 .*--batch-size 8, or --retry"):
        evaluate(settings(batch_size=16, torchcompile=True), tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


def test_with_retry_smaller_batches_end_with_the_same_result(settings, hungry):
    expected = evaluate(settings())[0]
    hungry(5)
    row = evaluate(settings(batch_size=16, retry=True, torchcompile=True))[0]
    assert row["batch_size"] == 4
    assert same(row) == same(expected)


def test_retry_ends_when_not_even_one_image_fits(settings, hungry):
    hungry(0)
    with pytest.raises(MemoryExhaustedError, match="batch of 1 "):
        evaluate(settings(batch_size=16, retry=True, torchcompile=True))


# --- outputs that cannot be trusted -----------------------------------------------------------------------------


def test_outputs_that_are_no_numbers_are_an_error(settings, tmp_path):
    model = load_model("tiny_resnet", pretrained=True)
    with torch.no_grad():
        model.fc.bias[3] = float("nan")
    torch.save(model.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(DataError, match="NaN"):
        evaluate(settings(checkpoint=str(tmp_path / "nan.pt")))


def test_timing_leaves_out_the_first_batch():
    timing = evaluation_loop.Timing()
    timing.add(8, 100.0)
    assert timing.rate == 0.08
    timing.add(8, 1.0)
    timing.add(4, 1.0)
    assert timing.rate == 6.0


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run ``repshift eval`` in an empty folder; returns exit code, standard output and standard error."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["repshift", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    return run


def test_the_command_prints_what_timm_prints_and_writes_a_row(run, folder, settings):
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


def test_a_failing_model_among_others_is_exit_code_1(run, folder):
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
def test_bad_input_is_one_clear_error_and_writes_nothing(run, folder, monkeypatch, arguments, message):
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


# --- several models, interrupted between them ---------------------------------------------------------------------


@pytest.fixture
def half_done(settings, folder, tmp_path):
    """A run over two models of which the second does not exist: the first one's row is kept to resume from."""
    evaluate(settings(), tmp_path / "r.json", models=("tiny_resnet", "nosuch"))
    return tmp_path / "r.json"


def test_a_finished_model_is_taken_over_when_nothing_changed(settings, half_done):
    rows = evaluate(settings(), half_done, models=("tiny_resnet", "tiny_vit"), resume=True)
    assert rows[0] == evaluate(settings())[0] | {name: rows[0][name] for name in MEASURED}


def test_a_finished_model_of_other_data_is_an_error(settings, half_done, folder):
    next(folder.rglob("*.png")).unlink()
    (row, _) = evaluate(settings(), half_done, models=("tiny_resnet", "nosuch"), resume=True)
    assert "belong to another evaluation: files was" in row["error"]


def test_a_finished_model_with_other_labels_is_an_error(settings, half_done, tmp_path):
    (tmp_path / "real.json").write_text(json.dumps([[1]]))
    changed = settings(real_labels=str(tmp_path / "real.json"))
    (row, _) = evaluate(changed, half_done, models=("tiny_resnet", "nosuch"), resume=True)
    assert "belong to another evaluation: real_labels was" in row["error"]


def test_a_resumed_run_with_nothing_left_to_time_has_no_speed(settings, tmp_path, monkeypatch):
    def stop(self, row):
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(PartialResults, "finish", stop)
        with pytest.raises(Stop):
            evaluate(settings(), tmp_path / "r.json")
    (row,) = evaluate(settings(), tmp_path / "r.json", resume=True)
    assert row["samples_per_sec"] is row["dense_samples_per_sec"] is None
    assert same(row) == same(evaluate(settings())[0])
