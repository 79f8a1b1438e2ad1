import shutil

import pytest
import torch
from PIL import Image
from timm.data import create_transform

from repshift import ShiftTracker, load_model
from repshift.analysis.output.results import read_results
from repshift.analysis.probe import measuring
from repshift.analysis.probe.classifiers import fit_linear
from repshift.analysis.samples import passes
from repshift.analysis.samples.images import data_config

MODEL = ("-m", "tiny_vit", "--pretrained", "--device", "cpu")
PRUNED = ("--drop", "0.4@0,2,4", "--methods", "shift,mnn")


@pytest.fixture
def data(write_pictures, tmp_path):
    """Canvases of three digits or so, to train and to measure on."""
    write_pictures(tmp_path / "train", 5, range(40))
    write_pictures(tmp_path / "val", 6, range(12, 30))
    for digit in range(3, 10):
        for part in ("train", "val"):
            shutil.rmtree(tmp_path / part / str(digit), ignore_errors=True)
    return tmp_path / "train", tmp_path / "val"


@pytest.fixture
def probe(run_command, data):
    def run(*options, places=data, model=MODEL):
        return run_command("probe", *places, *model, *options)

    return run


def rows_of(path):
    return {row["method"]: row for row in read_results(path).rows}


def read(model, folder):
    transform = create_transform(**data_config(model), is_training=False)
    files = sorted(folder.rglob("*.png"))
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True), torch.tensor(
            [int(file.parent.name) for file in files]
        )


def test_every_method_is_read_by_the_probe_of_dense_features(probe, data, tmp_path):
    code, out, err = probe(*PRUNED, "--results-file", "r.json", "--per-image", "i.json")
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "r.json")
    assert list(rows) == ["dense", "shift", "mnn"]
    assert all(name in out for name in rows)
    model = load_model("tiny_vit", pretrained=True)
    pruned = ShiftTracker(model).prune("0.4@0,2,4").eval()
    (features, labels), (others, answers) = read(model, data[0]), read(model, data[1])
    linear = fit_linear(features, labels, ["0", "1", "2"])
    for name, each in (("dense", others), ("shift", read(pruned, data[1])[0])):
        found = linear(each)
        assert rows[name]["top1"] == pytest.approx(float(100 * (found.argmax(1) == answers).double().mean()))
        likelihood = found.gather(1, answers[:, None]).mean()
        assert rows[name]["log_likelihood"] == pytest.approx(float(likelihood), rel=1e-3)
    assert rows["dense"]["top1"] > 90
    difference = rows["mnn"]["log_likelihood"] - rows["shift"]["log_likelihood"]
    assert rows["mnn"]["log_likelihood_against_shift"] == pytest.approx(difference)
    assert rows["shift"]["train_samples"] == len(features)
    assert len(read_results(tmp_path / "i.json").rows) == 3 * len(others)


def test_results_are_accuracies_for_curves(probe, run_command, tmp_path):
    assert probe(*PRUNED, "--results-file", "r.json")[0] == 0
    code, _, err = run_command("curves", "r.json", "--output", "c.png")
    assert (code, err) == (0, "")
    assert (tmp_path / "c.points.csv").read_text().count("\n") == 4


def test_classes_are_found_by_the_names_of_their_folders(probe, data, tmp_path):
    whole = ("--results-file", "r.json", *PRUNED)
    shutil.rmtree(data[1] / "0")
    assert probe(*whole)[0] == 0
    row = rows_of(tmp_path / "r.json")["dense"]
    assert row["top1"] > 90  # digit 1 is the first class of VAL, and the second one of TRAIN
    (data[1] / "1").rename(data[1] / "7")
    code, _, err = probe(*whole)
    assert (code, len(err.splitlines())) == (1, 1)
    assert f"{data[0]} lacks the folders 7" in err


def test_what_cannot_be_learned_is_one_line(probe, data, tmp_path):
    code, _, err = probe(*PRUNED, places=(data[0], data[0]))
    assert (code, "TRAIN and VAL are one folder" in err) == (1, True)
    code, _, err = probe(*PRUNED, places=(tmp_path / "nowhere", data[1]))
    assert (code, "There is no data folder" in err) == (1, True)
    (tmp_path / "empty").mkdir()
    code, _, err = probe(*PRUNED, places=(tmp_path / "empty", data[1]))
    assert (code, "has 0 images" in err) == (1, True)
    code, _, err = probe(*PRUNED, "--train-samples", 2)
    assert (code, "--train-samples" in err) == (1, True)
    for digit in (1, 2):
        shutil.rmtree(data[0] / str(digit))
        shutil.rmtree(data[1] / str(digit))
    code, _, err = probe(*PRUNED)
    assert (code, "of 1 class (0)" in err) == (1, True)
    assert not (tmp_path / "r.json").exists()


def test_fewer_images_than_neighbours_is_said(probe):
    code, out, _ = probe(*PRUNED, "--neighbours", "1000")
    assert code == 0
    assert "1000 neighbours were asked for, and there are" in out


@pytest.mark.parametrize("when", ["training images", "validation images"])
def test_an_interrupted_run_goes_on_and_ends_with_the_same(probe, tmp_path, monkeypatch, when):
    given = (*PRUNED, "--batch-size", 4, "--results-file", "r.json")
    assert probe(*given)[0] == 0
    whole = (tmp_path / "r.json").read_bytes()
    (tmp_path / "r.json").unlink()
    run = passes.Passes._run

    def interrupted(self, what, *rest):
        observe = self.observe

        def stop(*told):
            observe(*told)
            if what == when:
                raise KeyboardInterrupt

        self.observe = stop
        run(self, what, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(passes.Passes, "_run", interrupted)
        assert probe(*given)[0] == 130
    kept = sorted(path.parent.name for path in (tmp_path / "r.json.partial").rglob("0.jsonl"))
    assert kept == ["0000", "0001"][: 1 + (when != "training images")]
    code, _, err = probe(*given, "--neighbours", 3, "--resume")
    assert (code == 1) == (when != "training images"), err
    if code == 0:
        return
    assert "neighbours was 20, is 3" in err
    assert probe(*given, "--resume")[0] == 0
    assert (tmp_path / "r.json").read_bytes() == whole


def test_a_model_that_does_not_pool_is_refused(probe):
    code, _, err = probe(*PRUNED, model=("-m", "tiny_vit", "--model-kwargs", "global_pool=", "--num-classes", "0"))
    assert code == 1
    assert "one feature vector an image is expected" in err


def test_the_smaller_input_is_compared_with_where_it_is_there(build_vit, images):
    from repshift.analysis.subjects.comparing import Subjects
    from repshift.analysis.subjects.models import ModelOptions

    model = build_vit()
    pruned = dict.fromkeys(("norm", "lowres", "shift"), model)
    assert Subjects("m", ModelOptions(), model, pruned, [], 0).others == ["shift", "lowres"]
    del pruned["shift"]
    assert Subjects("m", ModelOptions(), model, pruned, [], 0).others == ["norm", "lowres"]
    assert measuring.MEASURES == ("top1", "log_likelihood", "knn_top1")
