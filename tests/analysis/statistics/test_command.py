import json
import os
import socket
import subprocess
import sys
from functools import partial

import pytest
import torch
from PIL import Image


@pytest.fixture
def run(run_command):
    """Run ``repshift statistics`` in an empty folder; returns exit code, standard output and standard error."""
    return partial(run_command, "statistics")


def options(output, *more):
    return ["-m", "tiny_resnet", "--pretrained", "--num-samples", 12, "--blocks", 0, "--output", output, *more]


def read(folder):
    return json.loads((folder / "statistics.json").read_text())


def test_the_command_measures_the_shipped_canvases(run, tmp_path):
    code, out, err = run(*options("out", "--curve-samples", 0, "--device", "cpu"))
    assert code == 0, err
    written = {"statistics.json", "distributions.png", "agreement.png", "foreground.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    assert all(name in out for name in written)
    content = read(tmp_path / "out")
    assert (content["model"], content["data"], content["images"]) == ("tiny_resnet", "cluttered-mnist", 12)
    shares = content["foreground"]["shares"]
    assert shares["stage l2"]["layer1"]["pointing"] > 0.5 > shares["random"]["layer1"]["pointing"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "mixer_s32_224"], "no known backbone"),
        (["-m", "tiny_resnet", "--blocks", "first"], "--blocks got 'first'"),
        (["-m", "tiny_resnet", "nowhere"], "no data folder nowhere"),
        (["-m", "tiny_resnet", "--masks", "nowhere"], "no folder of masks nowhere"),
        (["-m", "tiny_resnet", "--output", "file/out"], "Cannot write to file/out"),
    ],
)
def test_bad_input_is_one_clear_error_and_nothing_is_written(run, tmp_path, arguments, message):
    (tmp_path / "file").write_text("in the way")
    code, out, err = run("--device", "cpu", *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "file"]


def save_pictures(folder, classes):
    """Two pictures a class, and their masks, whose object is the left half."""
    for number, name in enumerate(classes):
        for part in range(2):
            noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(2 * number + part))
            for kind, pixels in (("images", noise), ("masks", (torch.arange(64) < 32).repeat(64, 1) * 255)):
                file = folder / kind / name / f"{part}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.byte().numpy()).save(file)


def test_masks_are_found_by_relative_names_of_folders(run, tmp_path):
    save_pictures(tmp_path, map(str, range(10)))
    code, _, err = run("images", "--masks", "masks", *options("out", "--curve-samples", 0, "--device", "cpu"))
    assert code == 0, err
    assert read(tmp_path / "out")["foreground"]["shares"]["norm"]["layer1"]["chance"] == pytest.approx(0.5)


@pytest.mark.parametrize("classes", [["holiday", "garden"], [""]])
def test_pictures_of_other_classes_than_the_models_are_measured(run, tmp_path, classes):
    save_pictures(tmp_path, classes)
    code, _, err = run("images", *options("out", "--curve-samples", 0, "--device", "cpu"))
    assert code == 0, err
    assert read(tmp_path / "out")["images"] == 2 * len(classes)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    more = ["--batch-size", 5, "--curve-samples", 3, "--device", "cpu"]
    command = [sys.executable, "-m", "repshift", "statistics", *map(str, options(tmp_path / "two", *more))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    started = [
        subprocess.Popen(
            command, env={**environment, "MASTER_PORT": str(port), "RANK": rank, "LOCAL_RANK": rank}, text=True
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=180) for process in started] == [0, 0]
    alone = [sys.executable, "-m", "repshift", "statistics", *map(str, options(tmp_path / "one", *more))]
    subprocess.run(alone, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=180)
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert (two["images"], two["removal"]["images"]) == (12, 3)
    close = {"rel": 1e-4, "abs": 1e-4}  # batches of other images round otherwise in the model
    for setting, layers in one["distributions"].items():
        for layer, expected in layers.items():
            found = two["distributions"][setting][layer]
            assert found["count"] == expected["count"]
            assert found["mean"] == pytest.approx(expected["mean"], **close)
            assert found["quantiles"]["0.5"] == pytest.approx(expected["quantiles"]["0.5"], rel=0.023)
    for layer, expected in one["rank_agreement"]["matrices"].items():
        for row, found in zip(expected, two["rank_agreement"]["matrices"][layer], strict=True):
            assert found == pytest.approx(row, abs=1e-3)
    for setting in ("stage l2", "norm"):
        for layer, expected in one["foreground"]["shares"][setting].items():
            assert two["foreground"]["shares"][setting][layer] == pytest.approx(expected, abs=0.02)
        curve = one["removal"]["curves"]["deletion"][setting]["layer1"]["values"]
        assert two["removal"]["curves"]["deletion"][setting]["layer1"]["values"] == pytest.approx(curve, abs=1e-3)
