import csv
import json
import os
import subprocess
import sys

import pytest

from repshift import Recipe
from repshift.analysis.output.results import read_results
from repshift.analysis.samples import passes

MODEL = ("-m", "tiny_vit", "--pretrained", "--device", "cpu")
DROP = ("--drop", "0.2@0,2,4")


@pytest.fixture
def fidelity(run_command, folder):
    def run(*options, model=MODEL, data=folder / "val"):
        return run_command("fidelity", data, *model, *options)

    return run


def rows_of(path):
    return {row["method"]: row for row in read_results(path).rows}


def test_each_method_is_compared_with_the_dense_model(fidelity, tmp_path):
    code, out, err = fidelity(*DROP, "--results-file", "r.json", "--per-image", "i.json")
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "r.json")
    assert list(rows)[:5] == ["shift", "norm", "random", "tome", "mnn"]
    assert all(name in out for name in rows)
    shift, random, mnn = rows["shift"], rows["random"], rows["mnn"]
    assert shift["samples"] == 23
    assert 0 < mnn["feature_distance"] < shift["feature_distance"] < random["feature_distance"]
    assert mnn["token_distance"] < shift["token_distance"]
    assert mnn["gmacs"] < mnn["dense_gmacs"]
    difference = mnn["feature_distance"] - shift["feature_distance"]
    assert mnn["feature_distance_against_shift"] == pytest.approx(difference)
    assert shift["feature_distance_against_shift"] is None
    assert Recipe.from_dict(shift["recipe"]).score == "shift"
    images = read_results(tmp_path / "i.json").rows
    assert len(images) == 23 * (len(rows) + 2)  # two further draws of the random score
    ours = [row["feature_distance"] for row in images if row["method"] == "mnn"]
    assert sum(ours) / 23 == pytest.approx(mnn["feature_distance"])
    assert images[0]["file"].endswith(".png")


def test_images_need_no_labels_and_no_folders(fidelity, make_image, tmp_path):
    (tmp_path / "loose").mkdir()
    make_image("loose/a.png")
    code, _, err = fidelity(*DROP, "--methods", "shift", "--results-file", "r.csv", data=tmp_path / "loose")
    assert (code, err) == (0, "")
    with (tmp_path / "r.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["samples"], row["feature_distance_error"]) == ("1", "")


def test_further_recipes_are_methods_by_the_names_of_their_files(fidelity, tmp_path):
    Recipe("0.1@0", pruner="mnn").save(tmp_path / "little.json")
    Recipe("0.5@0", pruner="mnn").save(tmp_path / "much.json")
    both = ("--compare", "little.json", "--compare", "much.json", "--results-file", "r.json")
    assert fidelity(*both)[0] == 0
    rows = rows_of(tmp_path / "r.json")
    assert list(rows) == ["little", "much"]
    assert rows["much"]["feature_distance_against_little"] > 0
    assert fidelity(*both, "--against", "much")[0] == 0
    turned = rows_of(tmp_path / "r.json")["little"]
    assert turned["feature_distance_against_much"] == -rows["much"]["feature_distance_against_little"]
    assert "feature_distance_against_little" not in turned
    assert fidelity(*both, *DROP, "--methods", "shift", "--against", "little..much")[0] == 0
    between = rows_of(tmp_path / "r.json")["shift"]
    assert between["feature_distance_against_little..much_error"] is not None
    assert fidelity(*both, *DROP, "--methods", "shift")[0] == 0
    assert list(rows_of(tmp_path / "r.json")) == ["shift", "little", "much"]
    (tmp_path / "little.json").rename(tmp_path / "shift.json")
    code, _, err = fidelity("--compare", "shift.json")
    assert code == 1
    assert "these names are taken: shift" in err


def test_what_is_drawn_at_random_is_the_mean_of_several_draws(fidelity, tmp_path):
    options = (*DROP, "--methods", "shift,random", "--per-image", "i.csv", "--results-file", "r.json")
    code, out, _ = fidelity(*options, "--seeds", 2)
    assert code == 0
    assert "random: mean of 2 draws" in out
    with (tmp_path / "i.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    means = {}
    for name in ("random", "random, draw 2", "shift"):
        own = [float(row["feature_distance"]) for row in images if row["method"] == name]
        means[name] = sum(own) / len(own)
    first, second, shift = means.values()
    rows = rows_of(tmp_path / "r.json")
    assert rows["random"]["feature_distance"] == pytest.approx((first + second) / 2)
    assert rows["random"]["feature_distance_spread"] == pytest.approx(abs(first - second) / 2**0.5)
    assert rows["random"]["feature_distance_against_shift"] == pytest.approx((first + second) / 2 - shift)
    assert (rows["random"]["seeds"], first != second) == (2, True)
    assert fidelity(*options, "--seeds", 0)[0] == 1


def test_recipes_for_the_head_and_for_smaller_inputs_are_compared(fidelity, tmp_path):
    Recipe("0.3@0", pruner="mnn").save(tmp_path / "whole.json")
    Recipe(None, input_size=48).save(tmp_path / "small.json")
    code, _, err = fidelity("--recipe", "small.json", "--compare", "whole.json", "--results-file", "r.json")
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "r.json")
    assert list(rows) == ["lowres", "whole"]
    assert rows["lowres"]["token_distance"] is None
    assert rows["whole"]["token_distance"] > 0


def test_what_a_model_cannot_have_is_left_out_and_said(fidelity, tmp_path):
    model = ("-m", "tiny_resnet", "--pretrained")
    code, out, err = fidelity("--drop", "8@0", "--num-samples", 4, "--results-file", "r.json", model=model)
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "r.json")
    assert {"shift", "norm", "random"} <= set(rows)
    assert "mnn" not in rows
    assert "note: without mnn" in out
    assert "token_distance" not in rows["shift"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "No schedule was given"),
        ((*DROP, "--methods", "shfit"), "Unknown method 'shfit'"),
        (("--methods", "dense"), "Only the dense model"),
        ((*DROP, "--methods", "shift,norm", "--against", "nrom"), "got 'nrom'. Did you mean 'norm'?"),
        ((*DROP, "--methods", "shift,norm", "--against", "norm..shft"), "got 'shft'. Did you mean 'shift'?"),
        ((*DROP, "--on-error", "go"), "Unknown --on-error"),
        ((*DROP, "--resume"), "--resume goes on beside a results file"),
        ((*DROP, "--results-file", "r.json", "--per-image", "r.json"), "both name r.json"),
        ((*DROP, "--num-samples", "0"), "0 samples are none"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(fidelity, tmp_path, options, told):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = fidelity(*options)
    assert (code, out, len(err.splitlines())) == (1, "", 1), err
    assert told in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_images_is_one_line(fidelity, tmp_path):
    (tmp_path / "none").mkdir()
    code, _, err = fidelity(*DROP, data=tmp_path / "none")
    assert code == 1
    assert "has 0 images" in err


def test_an_image_that_cannot_be_read_stops_or_is_counted(fidelity, folder, tmp_path):
    (folder / "val" / "3" / "bad.png").write_text("no image")
    given = (*DROP, "--methods", "shift", "--results-file", "r.json")
    code, _, err = fidelity(*given)
    assert code == 1
    assert "bad.png" in err
    assert "--on-error skip" in err
    code, out, _ = fidelity(*given, "--on-error", "skip", "--no-resume")
    assert code == 0
    assert "note: skipped" in out
    row = rows_of(tmp_path / "r.json")["shift"]
    assert (row["samples"], row["skipped"]) == (23, 1)


def test_an_interrupted_run_goes_on_and_ends_with_the_same(fidelity, tmp_path, monkeypatch):
    few = ("--methods", "shift", "--batch-size", 4, "--num-samples", 14)
    given = (*DROP, *few, "--results-file", "r.json", "--per-image", "i.json")
    assert fidelity(*given)[0] == 0
    whole = [(tmp_path / name).read_bytes() for name in ("r.json", "i.json")]
    (tmp_path / "r.json").unlink()
    add, batches = passes.PartialNumbers.add, []

    def interrupted(self, records):
        batches.append(records)
        if len(batches) == 3:
            raise KeyboardInterrupt
        add(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(passes.PartialNumbers, "add", interrupted)
        code, out, _ = fidelity(*given)
    assert code == 130
    assert "--resume" in out
    code, _, err = fidelity(*given)
    assert code == 1
    assert "--no-resume" in err
    code, _, err = fidelity("--drop", "0.3@0,2,4", *given[2:], "--resume")
    assert code == 1
    assert "belong to another run: methods was" in err
    seen = []
    monkeypatch.setattr(passes.PartialNumbers, "add", lambda self, records: (seen.extend(records), add(self, records)))
    assert fidelity(*given, "--resume")[0] == 0
    assert sorted(seen) == list(range(8, 14))
    assert [(tmp_path / name).read_bytes() for name in ("r.json", "i.json")] == whole
    assert not (tmp_path / "r.json.partial").exists()


@pytest.mark.parametrize("line", ["[[0, 1]]", '[[0, 1, ["a"]]]', "[[0, 1, [1.0]]]", '{"0": 1}'])
def test_damaged_records_are_refused(fidelity, tmp_path, monkeypatch, line):
    given = (*DROP, "--methods", "shift", "--batch-size", 8, "--results-file", "r.json")
    with monkeypatch.context() as patch:
        patch.setattr(passes.Passes, "_measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert fidelity(*given)[0] == 130
    assert not (tmp_path / "r.json.partial").exists()  # nothing was recorded
    add = passes.PartialNumbers.add

    def once(self, records):
        add(self, records)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(passes.PartialNumbers, "add", once)
        assert fidelity(*given)[0] == 130
    (tmp_path / "r.json.partial" / "0000" / "0.jsonl").write_text(f"{line}\n")
    code, _, err = fidelity(*given, "--resume")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "--no-resume" in err
    assert fidelity(*given, "--no-resume")[0] == 0


@pytest.mark.slow
def test_two_processes_find_what_one_finds(folder, tmp_path):
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "repshift", "fidelity", folder / "val", *MODEL, *DROP, "--methods", "shift,mnn"]
    runs = [
        subprocess.Popen(
            [*map(str, command), "--results-file", str(tmp_path / f"{count}.json")],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                **({} if count == 1 else {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for count, rank in ((1, 0), (2, 0), (2, 1))
    ]
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    assert said[2] == ""
    one, two = (json.loads((tmp_path / f"{count}.json").read_text())["results"] for count in (1, 2))
    for ours, theirs in zip(one, two, strict=True):
        for name, value in ours.items():
            assert theirs[name] == (pytest.approx(value, rel=1e-3, abs=1e-7) if isinstance(value, float) else value)
