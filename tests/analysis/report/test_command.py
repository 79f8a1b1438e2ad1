"""``repshift report`` on files, without a browser."""

import base64
import json
import re
from functools import partial

import numpy as np
import pytest
import torch

from repshift import load_model
from repshift.analysis.output.results import Results, write_results
from repshift.analysis.report.classes import class_names
from repshift.analysis.report.pictures import find_images, spread_evenly
from repshift.analysis.samples.images import data_config
from repshift.analysis.samples.preprocessing import evaluation_config
from repshift.analysis.subjects.macs import count_work
from repshift.errors import DataError

SMALL = ("--model", "test_vit", "--drop", "0.2@0")


@pytest.fixture
def run(run_command):
    """Run ``repshift report`` in an empty folder; returns exit code, standard output and standard error."""
    return partial(run_command, "report")


@pytest.fixture
def results(tmp_path):
    """An evaluation of one model with one schedule."""
    rows = [{"model": "test_vit", "method": "shift", "schedule": "0.25@0", "top1": 80.0, "gmacs": 1.0}]
    write_results(tmp_path / "eval.json", Results("eval", rows))
    return tmp_path / "eval.json"


def content(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def names(path):
    return [image["name"] for image in content(path)["explorer"]["images"]]


def facts(path):
    return dict(content(path)["facts"])


# --- what is shown ----------------------------------------------------------------------------------------------


def test_images_are_files_after_one_option_folders_or_both(run, make_image, tmp_path):
    for name in ("a.png", "b.jpg"):
        make_image(name)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for name in ("photos/z.png", "photos/cats/c.webp"):
        make_image(name)
    for name in ("notes.txt", "notes.pdf", "clip.mpg", "figure.eps"):
        (tmp_path / "photos" / name).write_bytes(b"\x00\x00\x01\xb3 no image")
    code, out, err = run(*SMALL, "--images", "a.png", "b.jpg", "--images", "photos")
    assert (code, err) == (0, "")
    assert "report.html (" in out
    assert "weights are random" in out
    assert sorted(names(tmp_path / "report.html")) == ["a.png", "b.jpg", "c.webp", "z.png"]


def test_images_have_the_size_of_an_evaluation(run, make_image, tmp_path):
    assert run("--model", "test_mambaout", "--images", make_image("a.png", 300, 300))[0] == 0
    told = facts(tmp_path / "report.html")
    model = load_model("test_mambaout")
    config = evaluation_config(model)
    assert config["input_size"] == (3, 192, 192) != data_config(model)["input_size"]
    assert told["Image"] == "192 x 192 pixels"
    assert told["Work"] == f"{count_work(model, (3, 192, 192)).macs / 1e9:.3g} GMACs an image"


def test_tokens_are_counted_for_each_image(run, tmp_path):
    schedule = ("--drop", "0.3@0", "--pruner", "positions", "--num-images", 8)
    assert run("--model", "tiny_resnet", "--pretrained", *schedule)[0] == 0
    explorer = content(tmp_path / "report.html")["explorer"]
    masks = [np.frombuffer(base64.b64decode(image["kept"][1]), np.uint8) for image in explorer["images"]]
    counted = [np.unpackbits(mask).sum() for mask in masks]
    assert len(set(counted)) > 1  # some tokens fall into one place
    assert explorer["blocks"][1]["left"] == explorer["blocks"][1]["entered"] == counted


def test_of_a_folder_evenly_spread_images_are_shown(make_image, tmp_path):
    for index in range(10):
        make_image(f"{index}.png", 8, 8)
    assert [path.name for path in find_images(tmp_path, 4)] == ["0.png", "2.png", "5.png", "7.png"]
    assert spread_evenly("abc", 5) == ["a", "b", "c"]


def test_model_and_schedule_are_those_of_the_results_if_they_name_one(run, make_image, results, tmp_path):
    code, out, _ = run(results, "--images", make_image("a.png"))
    assert code == 0
    assert "--model test_vit, as in the results" in out
    assert "--drop 0.25@0, as in the results" in out
    found = content(tmp_path / "report.html")
    assert found["heading"] == "test_vit"
    assert facts(tmp_path / "report.html")["Dropped"] == "25 % after block 0 (0.25@0)"
    assert [table["title"] for table in found["tables"]] == ["Evaluation: eval.json"]
    assert found["missing"] == ["bench", "ablate", "fidelity", "probe"]


def test_the_settings_reach_the_page_and_the_pruned_model(run, make_image, tmp_path):
    image = make_image("a.png")
    settings = ("--operation", "attn", "--distance", "l1", "--residual", "--keep", "bottom", "--score", "norm")
    assert run("--model", "test_vit", "--drop_r", "[0,0.5,0,0,0,0]", *settings, "--images", image)[0] == 0
    told = facts(tmp_path / "report.html")
    assert told["Shift"] == "attn, l1, residual"
    assert told["Scored by"] == "norm, the lowest are kept"
    assert told["Weights"] == "random: nothing was learned"
    explorer = content(tmp_path / "report.html")["explorer"]
    assert explorer["unit"] == "shift (attn, l1, residual)"
    assert [block["left"][0] / block["entered"][0] for block in explorer["blocks"][:2]] == [1.0, 0.5]


def test_the_same_inputs_give_the_same_bytes(run, make_image, results, tmp_path):
    arguments = (results, *SMALL, "--score", "random", "--images", make_image("a.png"))
    pages = []
    for name in ("one.html", "two.html"):
        torch.manual_seed(len(pages))
        assert run(*arguments, "--output", name)[0] == 0
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_the_shipped_canvases_are_the_images_of_the_zoo(run, tmp_path):
    assert run("--model", "tiny_vim", "--pretrained", "--num-images", 2)[0] == 0
    assert names(tmp_path / "report.html") == ["canvas 0, digit 4", "canvas 1, digit 9"]
    assert facts(tmp_path / "report.html")["Weights"] == "published"


def test_classes_are_those_of_a_file_of_imagenet_of_the_zoo_or_numbers(tmp_path):
    three = load_model("test_vit", num_classes=3)
    (tmp_path / "names.txt").write_text("cat\ndog\n猫\n", encoding="utf-8")
    assert class_names(three, "test_vit", tmp_path / "names.txt") == ["cat", "dog", "猫"]
    assert class_names(three, "test_vit") == ["class 0", "class 1", "class 2"]
    assert class_names(load_model("test_vit"), "test_vit")[:2] == ["tench", "goldfish"]
    assert class_names(load_model("tiny_vit"), "tiny_vit")[7] == "digit 7"


# --- bad input: one line, exit code 1, and no page ----------------------------------------------------------------


def refused(run, tmp_path, *arguments, match):
    before = {path.name for path in tmp_path.iterdir()}
    code, _, err = run(*arguments)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert re.search(match, err), err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_image_that_is_no_image(run, tmp_path):
    (tmp_path / "fake.png").write_text("hello")
    refused(run, tmp_path, *SMALL, "--images", "fake.png", match=r"fake\.png is not an image")
    (tmp_path / "clip.mpg").write_bytes(b"\x00\x00\x01\xb3 no image")
    refused(run, tmp_path, *SMALL, "--images", "clip.mpg", match=r"clip\.mpg is not an image")
    refused(run, tmp_path, *SMALL, "--images", "none.png", match=r"none\.png does not exist")


def test_a_folder_without_images(run, tmp_path):
    (tmp_path / "photos").mkdir()
    refused(run, tmp_path, *SMALL, "--images", "photos", match="no image file in photos")


def test_a_results_file_of_another_version(run, results, tmp_path):
    results.write_text(results.read_text().replace('"repshift_results": 1', '"repshift_results": 2'))
    refused(run, tmp_path, results, match="version 2, this repshift reads version 1")


@pytest.mark.parametrize(("name", "text"), [("a.csv", "model,top1\n"), ("a.json", "{}"), ("a.json", "[1")])
def test_what_is_no_results_file(run, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    refused(run, tmp_path, name, match="results file")


@pytest.mark.parametrize("output", ["a.csv", "a.png", "report"])
def test_an_output_that_is_no_page(run, make_image, results, tmp_path, output):
    before = make_image("a.png").read_bytes(), results.read_bytes()
    refused(run, tmp_path, results, "--output", output, match=r"Give --output NAME\.html")
    assert (before[0], before[1]) == ((tmp_path / "a.png").read_bytes(), results.read_bytes())


def test_an_output_that_is_one_of_the_inputs(run, make_image, results, tmp_path):
    image = make_image("a.png").rename(tmp_path / "a.html")
    before = image.read_bytes()
    refused(run, tmp_path, results, "--images", image, "--output", "a.html", match=r"this command reads .*a\.html")
    assert image.read_bytes() == before


@pytest.mark.parametrize("choice", [("--score", "norm"), ("--pruner", "lines"), ("--keep", "middle")])
def test_choices_of_what_to_drop_where_nothing_is_dropped(run, tmp_path, choice):
    refused(run, tmp_path, "--model", "tiny_vit", *choice, match=f"nothing to choose by .*{choice[0]}.* Give --drop")


@pytest.mark.parametrize("output", ["page.html", "eval.json/report.html"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(run, results, tmp_path, output):
    (tmp_path / "page.html").mkdir()
    refused(run, tmp_path, results, "--model", "no_such_model", "--output", output, match="Cannot write to")


def test_nothing_to_show(run, tmp_path):
    refused(run, tmp_path, match="nothing to report")
    refused(run, tmp_path, "--drop", "0.2@0", match="Give --model")
    refused(run, tmp_path, "--model", "test_vit", match="no images for test_vit")


def test_images_without_one_model(run, make_image, results, tmp_path):
    image = make_image("a.png")
    refused(run, tmp_path, "--images", image, match="name none. Give --model")
    write_results(tmp_path / "more.json", Results("ablate", [{"study": "dense"}], {"model": "tiny_vit"}))
    refused(run, tmp_path, results, "more.json", "--images", image, match="name 2: test_vit, tiny_vit. Give --model")


def test_settings_that_do_not_exist(run, make_image, tmp_path):
    image = make_image("a.png")
    refused(run, tmp_path, *SMALL, "--images", image, "--keep", "middle", match="'top' or 'bottom'")
    refused(run, tmp_path, *SMALL, "--images", image, "--device", "abacus", match="no device 'abacus'")
    refused(run, tmp_path, *SMALL, "--images", image, "--drop-r", "[0.2]", match="Give one of them")


def test_class_names_that_do_not_fit(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(DataError, match="names 1 classes, the model tells 3 apart"):
        class_names(load_model("test_vit", num_classes=3), "test_vit", tmp_path / "names.txt")
    with pytest.raises(DataError, match="cannot be read"):
        class_names(load_model("test_vit"), "test_vit", tmp_path / "none.txt")
