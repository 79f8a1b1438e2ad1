import os
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image

import repshift
from repshift import load_model
from repshift.analysis.demo import comparison, video_comparison
from repshift.analysis.demo.comparison import Result
from repshift.analysis.demo.video_comparison import VideoResult
from repshift.analysis.heatmap import figure
from repshift.analysis.output import figures
from repshift.analysis.samples.canvases import ClutteredDigits, draw_canvases
from repshift.analysis.zoo import training

DEIT = "deit_tiny_patch16_224"


@pytest.fixture
def run(run_command, monkeypatch):
    """Run the command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "80")
    return run_command


def run_process(*arguments, folder):
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-m", "repshift", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# --- the whole command ------------------------------------------------------------------------------------------


def test_version(run):
    assert run("--version") == (0, f"repshift {repshift.__version__}\n", "")


def test_help_names_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("demo", "heatmap", "zoo"))


@pytest.mark.parametrize("arguments", [("heatmap",), ("heatmap", "--bogus"), ("nonsense",), ("zoo", "train")])
def test_wrong_usage_is_exit_code_2_and_says_where_help_is(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert "--help" in err
    assert "Traceback" not in err


def test_the_command_runs_without_a_display(make_image, tmp_path):
    photos = make_image("wide.jpg", 90, 50), make_image("high.png", 40, 100)
    done = run_process("heatmap", "--model", DEIT, "--image", *photos, "--output", "maps.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    with Image.open(tmp_path / "maps.png") as figure:
        figure.load()


def test_an_error_is_one_line_and_exit_code_1_of_the_process(tmp_path):
    done = run_process("heatmap", "--model", "deit_tinny_patch16_224", "--image", "a.png", folder=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: Unknown model 'deit_tinny_patch16_224'")


# --- heatmap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny_vit", "tiny_resnet", DEIT])
def test_heatmap_takes_images_that_are_not_square(run, make_image, tmp_path, monkeypatch, model):
    seen = []
    monkeypatch.setattr(figure, "heatmap_figure", lambda pruned, inputs, *_, **__: seen.append(inputs.shape))
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: None)
    code, *_ = run("heatmap", "-m", model, "--image", make_image("a.png"), "--input-size", 3, 64, 96)
    assert code == 0
    assert seen == [(1, 3, 64, 96)]


def test_heatmap_draws_one_row_an_image_and_one_column_a_block(run, make_image, tmp_path):
    photos = make_image("wide.jpg", 90, 50), make_image("high.png", 40, 100)
    sizes = {}
    for name, images, blocks in (("one", photos[:1], "0"), ("rows", photos, "0"), ("columns", photos[:1], "0,4,8")):
        code, out, err = run(
            "heatmap", "--model", DEIT, "--image", *images, "--blocks", blocks, "--output", f"{name}.png"
        )
        assert (code, err) == (0, "")
        assert f"{name}.png" in out
        with Image.open(tmp_path / f"{name}.png") as figure:
            assert len(figure.convert("RGB").getcolors(maxcolors=2**24)) > 100
            sizes[name] = figure.size
    width, height = sizes["one"]
    assert width > 300
    assert height > 200
    assert sizes["rows"][0] == width
    assert sizes["rows"][1] > 1.4 * height
    assert sizes["columns"][0] > 1.8 * width
    assert sizes["columns"][1] == height


def test_images_may_follow_one_option_or_have_one_each(run, make_image, tmp_path):
    photos = make_image("wide.jpg", 90, 50), make_image("high.png", 40, 100)
    torch.manual_seed(0)
    assert run("heatmap", "--model", DEIT, "--image", *photos, "--output", "one.png")[0] == 0
    torch.manual_seed(0)
    several = [argument for photo in photos for argument in ("--image", photo)]
    assert run("heatmap", "--model", DEIT, *several, "--output", "each.png")[0] == 0
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "each.png") as each:
        assert one.tobytes() == each.tobytes()


def test_heatmap_says_that_weights_are_random(run, make_image):
    _, out, _ = run("heatmap", "--model", "tiny_vit", "--image", make_image("a.png"))
    assert "weights are random" in out


def test_heatmap_uses_the_weights_of_a_checkpoint(run, make_image, tmp_path):
    torch.save(load_model("tiny_vit").state_dict(), tmp_path / "weights.pt")
    pictures = []
    for name in ("first.png", "second.png"):
        code, out, _ = run(
            "heatmap",
            "--model",
            "tiny_vit",
            "--checkpoint",
            "weights.pt",
            "--image",
            make_image("a.png"),
            "--output",
            name,
        )
        assert code == 0
        assert "random" not in out
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    "option", [("--operation", "attn"), ("--distance", "cosine"), ("--residual",), ("--blocks", "1")]
)
def test_every_setting_changes_the_figure(run, make_image, tmp_path, option):
    torch.save(load_model("tiny_vit").state_dict(), tmp_path / "weights.pt")
    base = ("heatmap", "--model", "tiny_vit", "--checkpoint", "weights.pt", "--image", make_image("a.png"))
    assert run(*base, "--output", "plain.png")[0] == 0
    assert run(*base, *option, "--output", "other.png")[0] == 0
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_heatmap_serves_a_model_without_a_backbone(run, make_image, tmp_path):
    code, _, err = run("heatmap", "--model", "resnet18", "--image", make_image("a.png"), "--output", "new/maps.pdf")
    assert (code, err) == (0, "")
    assert (tmp_path / "new" / "maps.pdf").read_bytes().startswith(b"%PDF")


class Custom:
    """Unpickling it writes a file."""

    def __reduce__(self):
        return open, ("unpickled.txt", "w")


@pytest.fixture
def bad_files(tmp_path, make_image):
    make_image("photo.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "corrupt.pt").write_bytes(b"\x80\x02garbage" * 20)
    (tmp_path / "corrupt.safetensors").write_bytes(b"garbage" * 20)
    weights = load_model(DEIT).state_dict()
    torch.save({"model": weights, "extra": Custom()}, tmp_path / "unsafe.pt")
    torch.save(load_model(DEIT, num_classes=7).state_dict(), tmp_path / "seven.pt")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


BAD = {
    "unknown model": (["--model", "deit_tinny_patch16_224"], ["'deit_tinny_patch16_224'", "'deit_tiny_patch16_224'"]),
    "unknown pretrained tag": (["--model", "deit_tiny_patch16_224.nonsense"], ["nonsense"]),
    "missing image": (["--image", "nothing.jpg"], ["nothing.jpg does not exist"]),
    "text as image": (["--image", "notes.txt"], ["notes.txt is not an image", "Give a JPEG or PNG"]),
    "folder as image": (["--image", "folder.png"], ["folder.png"]),
    "markup as image": (["--image", "[red]x[/red].png"], ["[red]x[/red].png does not exist"]),
    "block out of range": (["--blocks", "0,12"], ["no block 12", "0 to 11"]),
    "negative block": (["--blocks", "-1"], ["no block -1", "0 to 11"]),
    "words for blocks": (["--blocks", "first"], ["'first'", "0,4,8"]),
    "stray comma": (["--blocks", "0,,4"], ["'0,,4'", "0,4,8"]),
    "unknown operation": (["--operation", "atn"], ["'atn'", "'attn'"]),
    "unknown distance": (["--distance", "l3"], ["'l3'", "'l2'", "'l1'"]),
    "missing checkpoint": (["--checkpoint", "nothing.pt"], ["nothing.pt does not exist"]),
    "corrupt checkpoint": (["--checkpoint", "corrupt.pt"], ["corrupt.pt cannot be read safely", "damaged"]),
    "corrupt safetensors": (["--checkpoint", "corrupt.safetensors"], ["corrupt.safetensors is not a readable"]),
    "unsafe checkpoint": (["--checkpoint", "unsafe.pt"], ["unsafe.pt", "state_dict"]),
    "other classes": (["--checkpoint", "seven.pt"], ["seven.pt does not fit", "head.weight has shape (7, 192)"]),
    "two sources": (["--pretrained", "--checkpoint", "seven.pt"], ["pretrained=True", "'seven.pt'", "one of them"]),
    "unknown ending": (["--output", "maps.xyz"], ["'maps.xyz'", "png"]),
    "no ending": (["--output", "maps"], ["'maps'", "png"]),
    "folder as output": (["--output", "folder.png"], ["folder.png"]),
    "output below a file": (["--output", "notes.txt/maps.png"], ["notes.txt", "folder that can be written to"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(run, bad_files, case):
    options, expected = BAD[case]
    before = files(bad_files)
    code, _, err = run("heatmap", "--model", DEIT, "--image", "photo.png", "--output", "maps.png", *options)
    assert code == 1
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert all(part in err for part in expected), err
    assert files(bad_files) == before


def test_a_failed_download_is_one_line_too(run, make_image, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network\nand a long story")

    monkeypatch.setattr(timm, "create_model", fail)
    code, _, err = run("heatmap", "--model", DEIT, "--pretrained", "--image", make_image("a.png"))
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert "--checkpoint" in err


# --- zoo train --------------------------------------------------------------------------------------------------


def test_train_reports_where_the_weights_are_and_how_good(run, few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "training_digits", lambda folder: few_digits)
    monkeypatch.setattr(training, "evaluation_canvases", lambda: draw_canvases(ClutteredDigits(few_digits, seed=7)))
    code, out, _ = run("zoo", "train", "tiny_vit", "--digits", ".", "--epochs", 1, "--device", "cpu", "--output", "z")
    assert code == 0
    assert "z/tiny_vit.safetensors: accuracy" in out.replace("\\", "/")
    assert files(tmp_path / "z") == {"tiny_vit.safetensors", "tiny_vit.md"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tinyvit",), ["'tinyvit'", "'tiny_vit'"]),
        (("tiny_vit", "--digits", "nowhere"), ["nowhere", "does not exist"]),
        (("tiny_vit", "--digits", ".", "--epochs", "0"), ["at least 1"]),
        (("tiny_vit", "--digits", ".", "--device", "abacus"), ["'abacus'"]),
    ],
)
def test_bad_input_to_train_is_one_clear_line_and_writes_nothing(run, tmp_path, arguments, expected):
    code, _, err = run("zoo", "train", *arguments)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert err.rstrip().endswith(errors[0])
    assert all(part in errors[0] for part in expected), err
    assert not files(tmp_path)


# --- demo -------------------------------------------------------------------------------------------------------


def test_demo_prints_every_number_and_verdict_in_80_columns(run, monkeypatch, tmp_path):
    settings = [
        (name, "none" if method == "dense" else schedule, method)
        for name, schedule in comparison.SCHEDULES.items()
        for method in ("dense", *comparison.METHODS[name])
    ]
    results = [
        Result(
            name,
            drop,
            score,
            0.9 + index / 100,
            1000 + index,
            0.1 - index / 1000,
            0.3 + index / 100,
            0.08,
            (1.0, index / 50),
        )
        for index, (name, drop, score) in enumerate(settings)
    ]
    monkeypatch.setattr(comparison, "run_demo", lambda output, observe: results)
    code, out, _ = run("demo", "--output", "here")
    assert code == 0
    for result in results:
        assert any(all(cell in line for cell in comparison.cells(result)) for line in out.splitlines()), out
    for line in comparison.verdicts(results):
        assert line in out
    assert all(heading in out for heading in comparison.HEADINGS), out
    assert all(f"{name}.png" in out for name in comparison.SCHEDULES), out
    assert "results.json" in out


def test_demo_video_prints_every_number_and_verdict_in_80_columns(run, monkeypatch, tmp_path):
    settings = [(drop, method) for drop in video_comparison.SCHEDULES for method in video_comparison.METHODS]
    results = [VideoResult("none", "dense", 0.9, 0.95, 0.97, 100.0, 0.069, {})] + [
        VideoResult(
            drop,
            method,
            0.8 + index / 100,
            0.7 + index / 100,
            0.6 + index / 100,
            100.0 + index,
            0.04 + index / 1000,
            dict.fromkeys(video_comparison.MEASURES, (-11.25, index / 10)),
        )
        for index, (drop, method) in enumerate(settings)
    ]
    monkeypatch.setattr(video_comparison, "run_video_demo", lambda output, observe: results)
    code, out, _ = run("demo", "video", "--output", "here")
    assert code == 0
    for result in results:
        assert any(all(cell in line for cell in video_comparison.cells(result)) for line in out.splitlines()), out
    for line in video_comparison.verdicts(results):
        assert line in out
    assert all(heading in out for heading in video_comparison.HEADINGS), out
    assert all(name in out for name in ("video.png", "video.gif", "video.json")), out


def test_demo_refuses_what_it_does_not_show(run):
    code, _, err = run("demo", "sound")
    assert code == 2
    assert "sound" in err
    assert "images" in err
    assert "video" in err


@pytest.mark.parametrize("shown", [(), ("images",), ("video",)])
def test_demo_refuses_an_output_that_is_a_file(run, tmp_path, shown):
    (tmp_path / "taken").write_text("in the way")
    code, _, err = run("demo", *shown, "--output", "taken")
    assert code == 1
    assert "error: Cannot write to taken" in err
    assert "Traceback" not in err


def test_modules_can_be_named_instead_of_blocks(run, make_image):
    image = make_image("a.png", 40, 40)
    code, out, err = run("heatmap", "-m", "resnet18", "--image", image, "--sites", "layer1.*", "--sites", "layer2.1")
    assert (code, err) == (0, "")
    assert "heatmap.png" in out


@pytest.mark.parametrize("option", [("--operation", "attn"), ("--residual",)])
def test_a_model_without_a_backbone_has_no_operations_to_choose(run, make_image, option):
    code, _, err = run("heatmap", "-m", "mixer_s32_224", "--image", make_image("a.png", 40, 40), *option)
    assert code == 1
    assert "mixer_s32_224 has no known backbone" in err
    assert "Leave out --operation and --residual" in err


def test_a_model_without_blocks_says_that_modules_can_be_named(run, make_image, monkeypatch):
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    monkeypatch.setattr("repshift.analysis.subjects.models.load_model", lambda *args, **options: plain.eval())
    code, _, err = run("heatmap", "-m", "tiny_vit", "--image", make_image("a.png", 40, 40))
    assert code == 1
    assert "--sites" in err


def test_a_model_of_one_channel_gets_grey_images(run, make_image, monkeypatch):
    grey = load_model("tiny_vit", in_chans=1)
    monkeypatch.setattr("repshift.analysis.subjects.models.load_model", lambda *args, **options: grey)
    code, _, err = run("heatmap", "-m", "tiny_vit", "--image", make_image("a.png", 90, 50))
    assert (code, err) == (0, "")
