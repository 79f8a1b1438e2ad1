"""The numbers of an evaluation are those of every image by itself."""

import json

import pytest
import torch

from repshift import DataError, Recipe, ShiftTracker, load_model
from repshift.analysis.evaluation import loop as evaluation_loop
from repshift.analysis.evaluation.records import SampleRecord
from repshift.analysis.evaluation.settings import EvaluationSettings
from repshift.analysis.evaluation.summary import is_chance, read_real_labels, real_answers, summarise

DROP = "12@0"  # as in the settings


def test_accuracies_are_those_of_every_image_by_itself(settings, folder, hurt, evaluate, predictions):
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


def test_rows_have_the_keys_of_timm_and_what_pruning_adds(settings, evaluate):
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


def test_without_a_schedule_the_dense_model_is_evaluated(settings, folder, hurt, evaluate, predictions):
    found = predictions(load_model("tiny_resnet", checkpoint=hurt), folder)
    (row,) = evaluate(settings(drop=None))
    assert row["top1"] == round(100 * sum(label == order[0] for label, order in found.values()) / 23, 4)
    assert (row["method"], row["schedule"], row["kept_tokens"]) == ("dense", None, None)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_results_do_not_depend_on_the_batch(settings, batch_size, evaluate, same):
    assert same(evaluate(settings(batch_size=batch_size))[0]) == same(evaluate(settings())[0])


def test_a_random_score_follows_from_the_seed(settings, evaluate, same):
    first, again = (evaluate(settings(score="random"))[0] for _ in range(2))
    others = [evaluate(settings(score="random", seed=seed))[0] for seed in (1, 2, 3)]
    assert same(first) == same(again)
    assert any(other["top1"] != first["top1"] or other["agreement"] != first["agreement"] for other in others)


def test_weights_that_are_not_loaded_follow_from_the_seed(settings, evaluate, same):
    torch.manual_seed(1)
    first = evaluate(settings(checkpoint=None))[0]
    torch.manual_seed(2)
    again, other = evaluate(settings(checkpoint=None))[0], evaluate(settings(checkpoint=None, seed=7))[0]
    assert same(first) == same(again)
    assert any(first[name] != other[name] for name in ("top5", "dense_top5", "agreement"))


def test_amp_and_other_formats_stay_close(settings, evaluate):
    row = evaluate(settings(amp=True, amp_dtype="bfloat16", channels_last=True))[0]
    assert row["precision"] == "amp_bfloat16"
    assert row["top1"] == pytest.approx(evaluate(settings())[0]["top1"], abs=10)


def test_compiled_models_find_the_same(settings, monkeypatch, evaluate, same):
    compiled = []

    def compile_without_a_compiler(model):
        compiled.append(model)
        return compiler(model, backend="eager")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", compile_without_a_compiler)
    assert same(evaluate(settings(torchcompile=True))[0]) == same(evaluate(settings())[0])
    assert len(compiled) == 2


@pytest.mark.parametrize(("model", "side"), [("tiny_vit", 24), ("tiny_vim", 12)])
def test_a_model_of_another_size_is_evaluated_at_it(folder, model, side, evaluate):
    options = EvaluationSettings(str(folder), Recipe("0.2@0"), preprocessing={"img_size": 96}, workers=0, batch_size=8)
    (row,) = evaluate(options, models=[model])
    assert row["img_size"] == 96
    assert row["kept_tokens"][0] == side * side - int(0.2 * side * side)


def test_valid_labels_choose_among_these_classes_only(settings, folder, hurt, tmp_path, evaluate, predictions):
    for digit in (0, 1, 2, 3):
        for path in (folder / "val" / str(digit)).iterdir():
            path.unlink()
        (folder / "val" / str(digit)).rmdir()
    (tmp_path / "valid.txt").write_text("\n".join("456789"))
    found = predictions(load_model("tiny_resnet", checkpoint=hurt), folder)
    right = [label == next(guess for guess in order if guess >= 4) for label, order in found.values()]
    unrestricted = [label == order[0] for label, order in found.values()]
    (row,) = evaluate(settings(drop=None, valid_labels=str(tmp_path / "valid.txt")))
    assert row["top1"] == round(100 * sum(right) / len(right), 4)
    assert sum(right) > sum(unrestricted)


def test_reassessed_labels_count_any_of_several_and_leave_out_images_without(tmp_path, files):
    (tmp_path / "real.json").write_text(json.dumps([[1, 2], [], [7]]))
    labels = read_real_labels(str(tmp_path / "real.json"))
    files = {index: f"val/n01/ILSVRC2012_val_0000000{index + 1}.JPEG" for index in range(3)}
    records = {
        0: SampleRecord(5, (2, 0, 3, 4, 6)),
        1: SampleRecord(6, (6, 0, 1, 2, 3)),
        2: SampleRecord(7, (0, 7, 1, 2, 3)),
    }
    summary = summarise(records, real_answers(labels, files))
    assert (summary["top1"], summary["top5"]) == (50.0, 100.0)
    assert summarise(records)["top1"] == pytest.approx(100 / 3, abs=1e-3)


def test_the_reassessed_labels_of_timm_are_there():
    labels = read_real_labels("timm")
    assert len(labels) == 50_000
    assert labels["ILSVRC2012_val_00000003.JPEG"] == [230, 231]


def test_reassessed_labels_of_other_files_are_an_error(settings, evaluate):
    with pytest.raises(DataError, match=r"\.png has no reassessed label"):
        evaluate(settings(real_labels="timm"))


def test_outputs_that_are_no_numbers_are_an_error(settings, tmp_path, evaluate):
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


@pytest.mark.parametrize(
    ("accuracy", "samples", "classes", "expected"),
    [
        (10.0, 500, 10, True),
        (0.1, 50_000, 1000, True),
        (0.0, 1000, 10, True),  # worse than guessing
        (13.0, 500, 10, True),
        (14.0, 500, 10, False),
        (0.3, 1000, 1000, True),
        (0.5, 1000, 1000, False),
        (76.1, 50_000, 1000, False),
        (10.0, 10, 10, False),  # too few to say
        (100.0, 50, 1, False),
    ],
)
def test_chance_is_a_binomial_test(accuracy, samples, classes, expected):
    assert is_chance(accuracy, samples, classes) == expected


def test_chance_agrees_with_scipy():
    binom = pytest.importorskip("scipy.stats").binom
    for samples, classes in ((50, 2), (500, 10), (2000, 100)):
        for hits in range(samples):
            expected = binom.sf(hits - 1, samples, 1 / classes) > 0.01
            assert is_chance(100 * hits / samples, samples, classes) == expected


@pytest.mark.parametrize(
    "content", ['[[1], "ab"]', "[5]", '[["1"]]', "[[1e400]]", "[null]", "{}x", "3", "[" * 100_000, '[["\\ud800"]]']
)
def test_labels_that_are_none_are_one_clear_error(tmp_path, content):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(DataError, match=r"real\.json cannot be read.*Give the JSON file"):
        read_real_labels(str(tmp_path / "real.json"))
