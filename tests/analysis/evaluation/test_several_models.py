"""Several models, one of which may fail, and runs interrupted between them."""

import csv
import json

import pytest

from repshift.analysis.evaluation.evaluation import Evaluation
from repshift.analysis.evaluation.settings import EvaluationSettings, model_names
from repshift.analysis.output.results import read_results
from repshift.analysis.samples.processes import Processes


def test_a_model_that_fails_has_its_error_in_its_row_and_the_others_go_on(folder, tmp_path, evaluate):
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


def test_models_that_were_finished_are_not_evaluated_again(settings, tmp_path, evaluate, files, stop):
    def observe(model, done, total, accuracy):
        if model == "tiny_resnet" and done == 23:
            counted.append(model)
        if len(counted) == 2:
            raise stop

    counted = []
    options = settings(checkpoint=None, drop=None)
    names = ["tiny_resnet", "tiny_resnet"]
    with pytest.raises(stop):
        Evaluation(options, Processes(), tmp_path / "r.json", observe=observe).run(names)
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


@pytest.fixture
def half_done(settings, tmp_path, evaluate):
    """A run over two models of which the second does not exist: the first one's row is kept to resume from."""
    evaluate(settings(), tmp_path / "r.json", models=("tiny_resnet", "nosuch"))
    return tmp_path / "r.json"


def test_a_finished_model_is_taken_over_when_nothing_changed(settings, half_done, evaluate, same):
    rows = evaluate(settings(), half_done, models=("tiny_resnet", "tiny_vit"), resume=True)
    assert same(rows[0]) == same(evaluate(settings())[0])


def test_a_finished_model_of_other_data_is_an_error(settings, half_done, folder, evaluate):
    next(folder.rglob("*.png")).unlink()
    (row, _) = evaluate(settings(), half_done, models=("tiny_resnet", "nosuch"), resume=True)
    assert "belong to another run: files was" in row["error"]


def test_a_finished_model_with_other_labels_is_an_error(settings, half_done, tmp_path, evaluate):
    (tmp_path / "real.json").write_text(json.dumps([[1]]))
    changed = settings(real_labels=str(tmp_path / "real.json"))
    (row, _) = evaluate(changed, half_done, models=("tiny_resnet", "nosuch"), resume=True)
    assert "belong to another run: real_labels was" in row["error"]
