"""Nothing of a stopped evaluation is lost, and nothing of another one is taken over."""

import json
from dataclasses import replace

import pytest
import torch

from repshift import CheckpointError, DataError, Recipe, ShiftTracker, load_model, save_model
from repshift.analysis.evaluation.records import PartialResults, SampleRecord
from repshift.analysis.output.results import read_results


@pytest.fixture
def interrupt(evaluate, stop):
    """Evaluate until so many samples are done, and stop there as if killed."""

    def interrupt(settings, results, at, models=("tiny_resnet",)):
        def observe(model, done, *rest):
            if done >= at:
                raise stop

        with pytest.raises(stop):
            evaluate(settings, results, models, observe=observe)

    return interrupt


@pytest.mark.parametrize("stopped_after", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [4, 3])
def test_a_stopped_run_resumes_to_the_same_result(
    settings, tmp_path, stopped_after, batch_size, evaluate, same, files, interrupt
):
    results, evaluated = tmp_path / "out" / "results.json", []
    interrupt(settings(), results, 4 * stopped_after)
    assert not results.exists()
    rest = settings(batch_size=batch_size)
    (row,) = evaluate(rest, results, resume=True, observe=lambda *done: evaluated.append(done))
    assert 4 * stopped_after < evaluated[0][1] <= 4 * stopped_after + batch_size
    assert same(row) == same(evaluate(settings())[0])
    assert same(read_results(results).rows[0]) == same(row)
    assert files(results.parent) == {"results.json"}


def test_a_stopped_random_control_resumes_to_the_same_result(settings, tmp_path, evaluate, same, interrupt):
    interrupt(settings(score="random"), tmp_path / "r.csv", 8)
    with pytest.raises(CheckpointError, match="batches"):
        evaluate(settings(score="random", batch_size=3), tmp_path / "r.csv", resume=True)
    (row,) = evaluate(settings(score="random"), tmp_path / "r.csv", resume=True)
    assert same(row) == same(evaluate(settings(score="random"))[0])


def test_a_torn_line_is_evaluated_again(settings, tmp_path, evaluate, same, interrupt):
    results = tmp_path / "r.csv"
    interrupt(settings(), results, 12)
    (kept,) = (tmp_path / "r.csv.partial").rglob("*.jsonl")
    content = kept.read_bytes()
    for cut in range(len(content) - 60, len(content) - 1):
        kept.write_bytes(content[:cut])
        assert len(PartialResults(kept.parent, json.loads((kept.parent / "settings.json").read_text())).resume()) == 8
    (row,) = evaluate(settings(), results, resume=True)
    assert same(row) == same(evaluate(settings())[0])


def test_records_added_behind_a_torn_line_are_read(tmp_path):
    before, after = {1: SampleRecord(3, (3, 1)), 2: SampleRecord(4, (0, 1), (4, 0))}, {7: SampleRecord(5, (5,), (5,))}
    partial = PartialResults(tmp_path / "p", {"a": 1})
    partial.begin()
    partial.add(before)
    partial.close()
    with (tmp_path / "p" / "0.jsonl").open("a") as file:
        file.write("[[9, 1, [1")
    partial.add(after)
    partial.close()
    assert PartialResults(tmp_path / "p", {"a": 1}).resume() == before | after


def test_an_unfinished_run_is_neither_lost_nor_taken_up_unasked(settings, tmp_path, evaluate, interrupt):
    interrupt(settings(), tmp_path / "r.csv", 4)
    with pytest.raises(DataError, match=r"--resume.*--no-resume"):
        evaluate(settings(), tmp_path / "r.csv")
    seen = []
    evaluate(settings(), tmp_path / "r.csv", resume=False, observe=lambda *done: seen.append(done))
    assert seen[0][1] == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [({"drop": "6@0"}, "pruning_drop"), ({"num_samples": 20}, "num_samples"), ({"channels_last": True}, "channels")],
)
def test_partial_results_of_another_run_are_an_error(settings, tmp_path, change, named, evaluate, interrupt):
    interrupt(settings(), tmp_path / "r.csv", 4)
    with pytest.raises(CheckpointError, match=named):
        evaluate(settings(**change), tmp_path / "r.csv", resume=True)


def test_a_recipe_file_goes_on_with_what_the_options_began(settings, tmp_path, evaluate, same, interrupt):
    interrupt(settings(), tmp_path / "r.csv", 4)
    Recipe("12@0").save(tmp_path / "mine.json")
    by_file = replace(settings(), recipe=Recipe.load(tmp_path / "mine.json"))
    (row,) = evaluate(by_file, tmp_path / "r.csv", resume=True)
    assert same(row) == same(evaluate(settings())[0])


def test_a_run_begun_before_there_were_recipe_files_can_be_resumed(settings):
    found = settings(drop="0.2@0,3").fingerprint("tiny_resnet", torch.device("cpu"), 1)
    assert {name: value for name, value in found.items() if name.startswith("pruning")} == {
        "pruning_drop": "0.2@0,3",
        "pruning_score": "shift",
        "pruning_operation": None,
        "pruning_distance": "l2",
        "pruning_residual": False,
        "pruning_pruner": None,
        "pruning_keep": "top",
    }


def test_what_computes_attention_belongs_to_a_run(settings):
    device, model = torch.device("cpu"), "tiny_vit"
    as_it_is, chosen = (settings(attention=kernel).fingerprint(model, device, 1) for kernel in (None, "math"))
    assert chosen == {**as_it_is, "attention": "math"}
    assert "attention" not in as_it_is  # so that a run from before it could be chosen can be resumed


def test_partial_results_of_other_weights_in_a_folder_are_an_error(settings, tmp_path, evaluate, interrupt):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_model(ShiftTracker(load_model("tiny_resnet")).prune("12@0"), tmp_path / "saved", "tiny_resnet")
        options = settings(drop=None, checkpoint=None)
        if seed == 0:
            interrupt(options, tmp_path / "r.csv", 4, [f"{tmp_path}/saved"])
    with pytest.raises(CheckpointError, match="checkpoint was"):
        evaluate(options, tmp_path / "r.csv", [f"{tmp_path}/saved"], resume=True)


def test_partial_results_of_other_data_are_an_error(settings, folder, tmp_path, evaluate, interrupt):
    interrupt(settings(), tmp_path / "r.csv", 4)
    moved = next((folder / "val" / "0").iterdir())
    moved.rename(moved.with_name("other.png"))
    with pytest.raises(CheckpointError, match="files"):
        evaluate(settings(), tmp_path / "r.csv", resume=True)


def test_resuming_without_an_unfinished_run_begins_one(settings, tmp_path, evaluate):
    (row,) = evaluate(settings(), tmp_path / "r.csv", resume=True)
    assert row["samples"] == 23


def test_resuming_needs_a_results_file(settings, evaluate):
    with pytest.raises(DataError, match="--results-file"):
        evaluate(settings(), resume=True)


def test_a_resumed_run_with_nothing_left_to_time_has_no_speed(settings, tmp_path, monkeypatch, evaluate, same, stop):
    def kill(self, row):
        raise stop

    with monkeypatch.context() as patched:
        patched.setattr(PartialResults, "finish", kill)
        with pytest.raises(stop):
            evaluate(settings(), tmp_path / "r.json")
    (row,) = evaluate(settings(), tmp_path / "r.json", resume=True)
    assert row["samples_per_sec"] is row["dense_samples_per_sec"] is None
    assert same(row) == same(evaluate(settings())[0])
