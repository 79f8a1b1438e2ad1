"""Names that are no text, too long, or hold what terminals and figures would take for something else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = ("-m", "tiny_vit", "--pretrained")
BYTES = [b"caf\xe9.png", "猫.png".encode(), b"a\nb.png", b"esc\x1b[31m.png", b"$\\x_{$.png", b"$a$ %s {0} [red].png"]


@pytest.fixture
def named(make_image, tmp_path, monkeypatch):
    """An image of a name in bytes, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def make(name):
        path = os.fsdecode(name)
        make_image("plain.png").rename(path)
        return path

    return make


def run_bytes(*arguments, encoding="utf-8"):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "repshift", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize("name", BYTES)
def test_images_of_any_name_are_read_drawn_and_written(run_command, named, name):
    image = named(name)
    code, _, err = run_command("heatmap", *MODEL, "--image", image, "--blocks", "0", "--output", f"maps of {image}")
    assert (code, err) == (0, "")
    assert Path(f"maps of {image}").is_file()
    code, _, err = run_command("report", *MODEL, "--images", image, "--output", f"{image}.html")
    assert (code, err) == (0, "")
    assert Path(f"{image}.html").is_file()


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("ending", ["csv", "json", "md"])
def test_an_image_of_any_name_is_counted_and_told(run_command, folder, tmp_path, name, ending):
    place = folder / "val" / "3" / os.fsdecode(name)
    place.write_text("no image")
    evaluation = ("eval", folder, "-m", "tiny_resnet", "--pretrained", "--workers", "0", "--device", "cpu")
    code, _, err = run_command(*evaluation, "--on-error", "skip", "--results-file", tmp_path / f"r.{ending}")
    assert code == 0, err
    (tmp_path / f"r.{ending}").read_text(encoding="utf-8")
    code, _, err = run_command(*evaluation)
    assert code == 1
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_of_any_encoding_is_told(named, encoding):
    image = named(BYTES[0])
    named(BYTES[1])
    done = run_bytes(
        "heatmap", *MODEL, "--image", image, "--image", "猫.png", "--output", "猫.png.png", encoding=encoding
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    done = run_bytes("heatmap", *MODEL, "--image", f"none{image}猫", encoding=encoding)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert b"does not exist" in done.stderr


LONG = "x" * 5000
LONG_NAMES = [
    ("heatmap", *MODEL, "--image", LONG),
    ("heatmap", *MODEL, "--image", "plain.png", "--output", f"{LONG}.png"),
    ("heatmap", "-m", "tiny_vit", "--checkpoint", LONG, "--image", "plain.png"),
    ("heatmap", *MODEL, "--drop", LONG, "--image", "plain.png"),
    ("heatmap", *MODEL, "--recipe", LONG, "--image", "plain.png"),
    ("heatmap", "-m", LONG, "--image", "plain.png"),
    ("heatmap", "-m", f"./{LONG}", "--image", "plain.png"),
    ("report", *MODEL, "--images", LONG),
    ("report", LONG),
    ("report", f"{LONG}.json"),
    ("report", *MODEL, "--classes", LONG),
    ("curves", LONG),
    ("eval", LONG, *MODEL),
    ("eval", "cluttered-mnist", "-m", LONG),
    ("eval", "cluttered-mnist", *MODEL, "--results-file", LONG),
    ("eval", "data", *MODEL, "--class-map", LONG),
    ("eval", "data", *MODEL, "--valid-labels", LONG),
    ("eval", "data", *MODEL, "--real-labels", LONG),
    ("bench", "-m", "tiny_vit", "--results-file", LONG),
    ("export", *MODEL, "--output", f"{LONG}.pt2"),
    ("export", "-m", LONG),
    ("fidelity", LONG, *MODEL, "--drop", "0.2@0"),
    ("fidelity", *MODEL, "--drop", "0.2@0", "--per-image", LONG),
    ("fidelity", *MODEL, "--compare", LONG),
    ("probe", LONG, "data", *MODEL, "--drop", "0.2@0"),
    ("ablate", "--output", LONG),
    ("ablate", LONG),
    ("statistics", *MODEL, "--masks", LONG, "--num-samples", "1"),
    ("statistics", *MODEL, "--output", LONG),
    ("finetune", *MODEL, "--drop", "0.2@0", "--data", LONG),
    ("zoo", "train", "tiny_vit", "--digits", LONG),
    ("zoo", "train", LONG),
]


@pytest.mark.parametrize("arguments", LONG_NAMES, ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"))
def test_a_name_that_is_too_long_is_one_line(run_command, make_image, arguments):
    make_image("plain.png")
    code, _, err = run_command(*arguments)
    assert code == 1
    assert len([line for line in err.splitlines() if line.strip()]) == 1, err[-2000:]
    assert "Traceback" not in err
