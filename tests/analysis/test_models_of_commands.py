import csv
import json

import pytest
import torch
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

from repshift import Recipe, load_model, recipe_of
from repshift.analysis.cli import app
from repshift.analysis.output import options

# Every command that runs a model, and how it is called besides
COMMANDS = ("heatmap", "report", "bench", "ablate", "statistics", "finetune", "eval", "fidelity", "probe", "export")
OPTIONS = {
    "pretrained": None,  # ablate: on without --model
    "checkpoint": options.Checkpoint,
    "use_ema": options.UseEma,
    "num_classes": options.NumClasses,
    "img_size": options.ImgSize,
    "input_size": options.InputSize,
    "model_kwargs": options.ModelKwargs,
}
# read results; embedded models; what is there; builds all there are; trains them
NO_MODEL = {"curves", "demo", "env", "models", "zoo"}
OF_VIDEO = {"retrieve", "answer"}  # models of whole tasks, whose sizes are those of their files


def test_every_command_is_told_of():
    assert set(get_command(app).commands) == {*COMMANDS, *NO_MODEL, *OF_VIDEO}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_runs_a_model_has_all_options_for_it(command):
    parameters = {parameter.name: parameter for parameter in get_command(app).commands[command].params}
    for name, alias in OPTIONS.items():
        assert name in parameters
        if alias is not None:
            assert parameters[name].help == alias.__metadata__[0].help


def test_every_command_but_heatmap_lets_the_kernel_of_attention_be_chosen():
    for command in {*COMMANDS, *OF_VIDEO} - {"heatmap"}:  # which asks by --attention whether it is shown
        given = {parameter.name: parameter for parameter in get_command(app).commands[command].params}
        assert given["attention"].help == options.Attention.__metadata__[0].help


class Ran:
    """Runs commands on a picture or a folder of pictures, and looks at the model that each built."""

    def __init__(self, folder, monkeypatch):
        from PIL import Image

        self.folder, self.built = folder, []
        for split in ("train", "validation"):
            for name in ("ant", "bee"):
                (folder / "data" / split / name).mkdir(parents=True)
                for number in range(2):
                    picture = Image.effect_noise((30, 40), 80).convert("RGB")
                    picture.save(folder / "data" / split / name / f"{number}.png")
        self.picture = folder / "data" / "validation" / "ant" / "0.png"
        from repshift.analysis.subjects import sizes

        build = sizes.build_model

        def watched(*args, **more):
            self.built.append(build(*args, **more))
            return self.built[-1]

        for module in (
            "subjects.sizes",
            "evaluation.models",
            "finetuning.settings",
            "throughput.setup",
            "subjects.comparing",
            "export.writing",
        ):
            monkeypatch.setattr(f"repshift.analysis.{module}.build_model", watched)

    def arguments(self, command):
        data, out = self.folder / "data", self.folder / "out"
        train = ["--data", data, "--epochs", "1", "--cooldown-epochs", "0", "--batch-size", "2", "--drop", "1@0"]
        once = ["--num-bench-iter", "1", "--num-warm-iter", "1", "--no-memory", "-b", "1", "--methods", "dense"]
        compared = ["--drop", "1@0", "--methods", "shift", "--device", "cpu"]
        return {
            "heatmap": ["--image", self.picture, "--output", self.folder / "out.png", "--blocks", "0"],
            "report": ["--images", self.picture, "--output", self.folder / "out.html"],
            "bench": once,
            "ablate": [data, "--study", "half", "--blocks", "0", "--output", out],
            "statistics": [data, "--curve-samples", "0", "--output", out],
            "finetune": [*train, "--workers", "0", "--device", "cpu", "--no-aug", "--output", out],
            "eval": [data, "--workers", "0", "--results-file", self.folder / "out.csv"],
            "fidelity": [data, *compared],
            "probe": [data / "train", data / "validation", *compared],
            "export": ["--batch", "1", "--output", self.folder / "out.pt2"],
        }[command]

    def __call__(self, command, *options):
        arguments = [command, *map(str, self.arguments(command)), *map(str, options)]
        return CliRunner().invoke(app, arguments)


@pytest.fixture
def run(tmp_path, monkeypatch):
    return Ran(tmp_path, monkeypatch)


# A ViT of 8-pixel patches, trained at 16 pixels; its name says 224 pixels and patches of 16
VIT = ["patch_size=8", "depth=2", "embed_dim=16", "num_heads=2"]
SETTINGS = {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 2}


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    save_file(load_model("vit_tiny_patch16_224", **SETTINGS, img_size=16).state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("size", [["--img-size", 16], ["--img-size", 24], ["--input-size", 3, 16, 32]])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_of_another_size_is_built_the_same_by_every_command(run, weights, command, size):
    given = ["--model", "vit_tiny_patch16_224", "--checkpoint", weights, "--num-classes", 2]
    result = run(command, *given, "--model-kwargs", " ".join(VIT), *size)
    assert result.exit_code == 0, (result.output, result.exception)
    rows, columns = size[-2:] if len(size) > 2 else (size[-1], size[-1])
    expected = load_model("vit_tiny_patch16_224", **SETTINGS, img_size=(rows, columns), checkpoint=weights)
    model = run.built[0]
    assert model.patch_embed.grid_size == (rows // 8, columns // 8)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, rows, columns)
    if command != "finetune":  # which has trained it
        state = expected.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_convolutional_network_gets_images_of_the_size(run, command):
    result = run(command, "--model", "tiny_resnet", "--num-classes", 2, "--img-size", 48)
    assert result.exit_code == 0, (result.output, result.exception)
    assert tuple(run.built[0].pretrained_cfg["input_size"]) == (3, 48, 48)
    if command == "eval":
        with (run.folder / "out.csv").open(newline="") as file:
            assert next(csv.DictReader(file))["img_size"] == "48"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "heatmap"])
def test_every_command_builds_the_model_with_the_attention_that_was_chosen(run, command):
    result = run(command, "--model", "tiny_vit", "--num-classes", 2, "--attention", "math")
    assert result.exit_code == 0, (result.output, result.exception)
    assert recipe_of(run.built[0]) == Recipe(attention="math")
    if command == "eval":
        with (run.folder / "out.csv").open(newline="") as file:
            row = next(csv.DictReader(file))
        assert (row["method"], row["attention"]) == ("dense", "math")
    if command == "finetune":  # whose weights go elsewhere
        assert json.loads((run.folder / "out" / "repshift.json").read_text())["recipe"]["attention"] is None


WRONG = {
    "no kernel": (["--attention", "flesh"], "ttention 'flesh'. Did you mean 'flash'"),
    "no value": (["--model-kwargs", "depth"], "--model-kwargs got 'depth', expected key=value"),
    "said twice": (["--num-classes", "2", "--model-kwargs", "num_classes=3"], "num_classes was given twice"),
    "an option": (["--model-kwargs", "pretrained=True"], "has options of its own"),
    "unknown": (["--model-kwargs", "depht=3"], "does not take these options"),
    "no size": (["--img-size", "0"], "Images of 0 pixels a side cannot be"),
    "two weights": (["--pretrained", "--checkpoint", "w.pt", "--img-size", "32"], "Both pretrained=True and"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_the_same(run, command, case):
    given, message = WRONG[case]
    if (command, case) == ("heatmap", "no kernel"):
        pytest.skip("it has no such option")
    result = run(command, "--model", "tiny_vit", *given)
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_a_fine_tuned_model_of_another_size_is_loaded_at_it(run, weights):
    given = ["--model", "vit_tiny_patch16_224", "--checkpoint", weights, "--num-classes", 2, "--img-size", 24]
    assert run("finetune", *given, "--model-kwargs", " ".join(VIT)).exit_code == 0
    said = json.loads((run.folder / "out" / "repshift.json").read_text())
    assert said["options"] == SETTINGS | {"img_size": [24, 24]}
    assert load_model(run.folder / "out")(torch.randn(1, 3, 24, 24)).shape == (1, 2)
