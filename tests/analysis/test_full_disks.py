"""A disk that is full: one line, exit code 1, the old file intact, nothing half-written; and there is a way on."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from repshift import CheckpointError, load_model, save_model
from repshift.analysis.evaluation.records import PartialResults
from repshift.analysis.output.files import all_or_none, write_text, write_whole
from repshift.analysis.output.results import Results, read_results, write_results
from repshift.errors import DataError, RecipeError
from repshift.files import write_json

MODEL = ("-m", "tiny_vit", "--pretrained")


@pytest.fixture
def disk(tmp_path):
    """Mount a disk of so many kilobytes, which ends with the test."""
    mounted = []

    def mount(kilobytes, name="disk"):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"]
        try:
            done = subprocess.run(["mount", *options, place], capture_output=True, check=False)
        except OSError:
            pytest.skip("no mount here")
        if done.returncode:
            pytest.skip("nothing can be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


def grow(disk, kilobytes):
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def told(code, err):
    assert code == 1
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert "No space left on device" in err or "full disk" in err
    assert "Make room" in err


@pytest.mark.parametrize(
    ("size", "name", "arguments"),
    [
        (8, "maps.png", ("heatmap", *MODEL, "--image", "a.png", "--blocks", "0")),
        (8, "maps.pdf", ("heatmap", *MODEL, "--image", "a.png", "--blocks", "0")),
        (8, "page.html", ("report", *MODEL, "--num-images", "1")),
        (8, "curves.png", ("curves", "eval.json")),
    ],
)
def test_an_old_file_is_intact(run_command, make_image, disk, tmp_path, size, name, arguments):
    make_image("a.png")
    row = {"model": "m", "method": "dense", "schedule": "", "top1": 90.0, "samples": 5, "gmacs": 1.0}
    write_results(tmp_path / "eval.json", Results("eval", [row]))
    place = disk(size)
    (place / name).write_text("old")
    code, _, err = run_command(*arguments, "--output", place / name)
    told(code, err)
    assert files(place) == {name}
    assert (place / name).read_text() == "old"


def test_files_of_one_result_are_all_there_or_none(run_command, disk):
    place = disk(48)
    (place / "ablation.csv").write_text("old")
    few = ("--study", "score", "--blocks", "0", "--num-samples", "4")
    code, _, err = run_command("ablate", *few, "--output", place)
    told(code, err)
    assert files(place) == {"ablation.csv"}
    assert (place / "ablation.csv").read_text() == "old"


@pytest.mark.parametrize("size", [4, 12])
def test_eval_keeps_its_records_and_goes_on(run_command, disk, tmp_path, size):
    evaluation = ("eval", "cluttered-mnist", "-m", "tiny_resnet", "--pretrained", "--num-samples", "400", "-j", "0")
    evaluation = (*evaluation, "--batch-size", "20", "--device", "cpu")
    assert run_command(*evaluation, "--results-file", tmp_path / "whole.json")[0] == 0
    place = disk(size)
    code, _, err = run_command(*evaluation, "--results-file", place / "r.json")
    told(code, err)
    assert "--resume" in err
    assert not (place / "r.json").exists()
    grow(place, 1000)
    assert run_command(*evaluation, "--results-file", place / "r.json", "--resume")[0] == 0
    rows = [read_results(path).rows[0] for path in (place / "r.json", tmp_path / "whole.json")]
    assert rows[0]["top1"] == rows[1]["top1"]
    assert files(place) == {"r.json"}


# until the first state is whole, in torch's archive, in safetensors, in timm's saver, and while the second state comes
@pytest.mark.slow
@pytest.mark.parametrize("size", [60, 3000, 8000, 11000, 14000, 17000, 24000])
def test_finetune_goes_on_from_the_last_whole_epoch(run_command, write_pictures, disk, tmp_path, size):
    for part in ("train", "validation"):
        write_pictures(tmp_path / "data" / part, 3, range(17, 40))
    training = ("finetune", "-m", "tiny_resnet", "--pretrained", "--device", "cpu", "--data", "data", "--workers", "0")
    training = (*training, "--drop", "10@0", "--epochs", "2", "--cooldown-epochs", "0", "--ema", "-b", "20")
    place = disk(size)
    code, _, err = run_command(*training, "--output", place)
    told(code, err)
    assert not [path for path in place.rglob("*") if "unfinished" in path.name or path.name.startswith("tmp")]
    grow(place, 100_000)
    assert run_command(*training, "--output", place)[0] == 0
    assert {"model_best.safetensors", "summary.json", "repshift.json"} <= files(place)


def test_a_saved_model_stays_as_it_was(disk):
    place = disk(900)
    save_model(load_model("tiny_vit", pretrained=True), place / "model", "tiny_vit")
    before = {path: path.read_bytes() for path in (place / "model").iterdir()}
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(load_model("tiny_vim", pretrained=True), place / "model", "tiny_vim")
    assert {path: path.read_bytes() for path in (place / "model").iterdir()} == before


# --- without a disk of our own ------------------------------------------------------------------------------------

NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]


@pytest.mark.parametrize("number", NUMBERS)
def test_what_the_system_refuses_is_said_and_leaves_nothing(tmp_path, number):
    def refuse(unfinished):
        unfinished.write_text("half")
        raise OSError(number, os.strerror(number), str(unfinished))

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(DataError, match=rf"Cannot write to .*a\.txt \({os.strerror(number)}\)\."):
        write_whole(tmp_path / "a.txt", refuse)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_together_means_all_or_none(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "b.txt").mkdir()

    def write():
        with all_or_none():
            write_text(tmp_path / "a.txt", "new")
            assert (tmp_path / "a.txt").read_text() == "old"
            write_text(tmp_path / "b.txt", "new")

    with pytest.raises(DataError, match="it is a folder"):
        write()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b.txt"}


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "file/a.json", "folder", "loop"])
def test_a_place_that_cannot_be(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = files(tmp_path)
    if name == "x" * 250:  # only with what goes before the name of an unfinished file is it too long
        write_json(tmp_path / name, 1)
        assert (tmp_path / name).read_text() == "1\n"
        assert files(tmp_path) == before | {name}
        return
    with pytest.raises(RecipeError, match="Cannot write to"):
        write_json(tmp_path / name, 1)
    assert files(tmp_path) == before


def test_a_records_file_that_failed_can_be_closed(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    partial = PartialResults(tmp_path / "p", {})
    partial.begin()
    (tmp_path / "p" / "0.jsonl").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"No space left on device.*--resume"):
        partial.add({})
    partial.close()


def test_a_full_disk_behind_what_is_printed_is_one_line(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    command = [sys.executable, "-m", "repshift", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr


def test_the_rights_of_a_file_stay(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o600)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600


def test_an_error_of_the_writer_itself_is_its_own(tmp_path):
    def err(unfinished):
        raise RuntimeError("not of the disk")

    with pytest.raises(RuntimeError, match="not of the disk"):
        write_whole(tmp_path / "a.pt", err)
    assert not files(tmp_path)
