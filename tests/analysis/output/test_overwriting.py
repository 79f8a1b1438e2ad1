"""No command replaces what it reads, or what is no file."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from repshift import Recipe, load_model, save_model
from repshift.analysis.output.overwriting import check_outputs
from repshift.analysis.output.results import Results, write_results
from repshift.errors import DataError


@pytest.fixture
def inputs(tmp_path, make_image, monkeypatch):
    """An empty folder but for one input of each kind."""
    monkeypatch.chdir(tmp_path)
    make_image("a.png")
    make_image("b.png")
    (tmp_path / "data" / "cat").mkdir(parents=True)
    shutil.copy("a.png", "data/cat/a.png")
    Recipe("0.2@0").save(tmp_path / "recipe.json")
    save_model(load_model("tiny_vit"), tmp_path / "saved", "tiny_vit")
    (tmp_path / "weights.pt").write_bytes(b"weights")
    (tmp_path / "out" / "state-1").mkdir(parents=True)
    for name in ("labels.txt", "out/last.pth.tar", "out/state-1/optimizer.bin", "out/ablation.csv"):
        (tmp_path / name).write_text("0\n")
    write_results(tmp_path / "eval.json", Results("eval", []))
    return tmp_path


MODEL = ("-m", "tiny_vit")
DROP = ("--drop", "0.2@0")
READ = {
    "heatmap: image": (("heatmap", *MODEL, "--image", "a.png", "--output", "a.png"), "a.png"),
    "heatmap: second image": (("heatmap", *MODEL, "--image", "b.png", "a.png", "--output", "a.png"), "a.png"),
    "heatmap: weights": (
        ("heatmap", *MODEL, "--image", "a.png", "--checkpoint", "b.png", "--output", "b.png"),
        "b.png",
    ),
    "report: image": (("report", *MODEL, "--images", "a.png", "--output", "a.png"), "a.png"),
    "report: results": (("report", "eval.json", "--output", "eval.json"), "eval.json"),
    "report: classes": (("report", "eval.json", "--classes", "labels.txt", "--output", "labels.txt"), "labels.txt"),
    "curves: results": (("curves", "eval.json", "--output", "eval.json"), "eval.json"),
    "eval: weights": (
        ("eval", "data", *MODEL, "--checkpoint", "weights.pt", "--results-file", "weights.pt"),
        "weights.pt",
    ),
    "eval: labels": (
        ("eval", "data", *MODEL, "--valid-labels", "labels.txt", "--results-file", "labels.txt"),
        "labels.txt",
    ),
    "eval: map": (("eval", "data", *MODEL, "--class-map", "labels.txt", "--results-file", "labels.txt"), "labels.txt"),
    "eval: real": (("eval", "data", *MODEL, "--real-labels", "eval.json", "--results-file", "eval.json"), "eval.json"),
    "eval: recipe": (
        ("eval", "data", *MODEL, "--recipe", "recipe.json", "--results-file", "recipe.json"),
        "recipe.json",
    ),
    "eval: names": (("eval", "data", "-m", "labels.txt", "--results-file", "labels.txt"), "labels.txt"),
    "eval: image": (("eval", "data", *MODEL, "--results-file", "data/cat/a.png"), "data/cat/a.png"),
    "eval: a model's folder": (
        ("eval", "data", "-m", "./saved", "--results-file", "saved/repshift.json"),
        "saved/repshift.json",
    ),
    "bench: recipe": (("bench", *MODEL, "--recipe", "recipe.json", "--results-file", "recipe.json"), "recipe.json"),
    "ablate: weights": (("ablate", *MODEL, "--checkpoint", "out/ablation.csv", "--output", "out"), "out/ablation.csv"),
    "finetune: a state": (
        ("finetune", *MODEL, *DROP, "--data", "data", "--checkpoint", "out/state-1/optimizer.bin", "--output", "out"),
        "out/state-1/optimizer.bin",
    ),
    "finetune: weights": (
        ("finetune", *MODEL, *DROP, "--data", "data", "--checkpoint", "out/last.pth.tar", "--output", "out"),
        "out/last.pth.tar",
    ),
    "finetune: a model's folder": (
        ("finetune", "-m", "./saved", *DROP, "--data", "data", "--output", "saved"),
        "saved/repshift.json",
    ),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("through", ["itself", "link", "hard link"])
def test_a_command_does_not_replace_what_it_reads(run_command, inputs, case, through):
    arguments, read = READ[case]
    if through != "itself" and arguments[-1] == read and "model's" not in case and "eval: image" not in case:
        other = f"other{Path(read).suffix}"
        (os.symlink if through == "link" else os.link)(read, other)
        arguments = (*arguments[:-1], other)
    before = {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()}
    code, _, err = run_command(*arguments)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "would be replaced, and this command reads" in err
    assert {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()} == before


def test_results_of_before_are_replaced(inputs):
    options = {"model": "tiny_vit", "image": ["a.png"], "checkpoint": None, "output": inputs / "b.png", "split": ""}
    check_outputs("heatmap", options)
    check_outputs("finetune", {"model": "saved", "data": "data", "output": inputs / "saved"})  # a name, and no folder


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link to a device"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("heatmap", *MODEL, "--image", "a.png", "--output", "out.png"),
        ("report", *MODEL, "--images", "a.png", "--output", "out.html"),
        ("curves", "eval.json", "--output", "out.png"),
        ("eval", "data", *MODEL, "--results-file", "out.csv"),
        ("bench", *MODEL, "--results-file", "out.csv"),
        ("ablate", *MODEL, "--output", "new", "ablation.png"),
        ("statistics", *MODEL, "--output", "new", "agreement.png"),
        ("finetune", *MODEL, *DROP, "--data", "data", "--output", "new", "summary.json"),
        ("zoo", "train", "tiny_vit", "--output", "new", "tiny_vit.training.pt"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_no_regular_file_stays(run_command, inputs, arguments, kind):
    *arguments, output = arguments if arguments[-2] == "new" else (*arguments, arguments[-1])
    place = inputs / ("new" if "new" in arguments else "") / output
    place.parent.mkdir(exist_ok=True)
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "link to a device":
        place.symlink_to("/dev/null")
    else:
        try:
            os.mknod(place, 0o20666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    before = os.lstat(place)
    code, _, err = run_command(*arguments)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "Cannot write to" in err
    assert os.lstat(place)[:4] == before[:4]
    assert Path("/dev/null").stat().st_rdev == os.makedev(1, 3)


def test_a_link_stays_and_its_target_is_replaced(run_command, inputs):
    (inputs / "elsewhere").mkdir()
    (inputs / "elsewhere" / "old.png").write_text("old")
    (inputs / "maps.png").symlink_to("elsewhere/old.png")
    assert run_command("heatmap", *MODEL, "--image", "a.png", "--output", "maps.png")[0] == 0
    assert (inputs / "maps.png").is_symlink()
    Image.open(inputs / "elsewhere" / "old.png").verify()
    assert [path.name for path in (inputs / "elsewhere").iterdir()] == ["old.png"]


def test_a_pipe_among_what_is_read_is_no_reason_to_wait(inputs):
    os.mkfifo(inputs / "pipe")
    check_outputs("heatmap", {"image": ["pipe"], "output": inputs / "b.png"})
    with pytest.raises(DataError, match="would be replaced"):
        check_outputs("heatmap", {"image": ["pipe", "b.png"], "output": inputs / "b.png"})
