"""A short run of fine-tuning on a small folder of pictures, whole and interrupted."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from repshift import Recipe, load_model
from repshift.analysis.finetuning.settings import TrainingSettings
from repshift.analysis.finetuning.training import finetune
from repshift.analysis.samples.images import normalised


def forget_accelerate():
    """Accelerate keeps one state a process, for good."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Each test is a process of its own."""
    forget_accelerate()


@pytest.fixture(scope="session")
def pictures(write_pictures, tmp_path_factory):
    """A folder of canvases as PNG files: 40 to train, 23 to validate, ten classes."""
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "train", 1, range(40))
    write_pictures(root / "val", 2, range(23))
    assert len(list((root / "train").iterdir())) == 10
    return root


@pytest.fixture(scope="session")
def hurt(tmp_path_factory):
    """The embedded model with a noisy classifier, so that there is something to mend: a checkpoint."""
    path = tmp_path_factory.mktemp("hurt") / "hurt.pt"
    model = load_model("tiny_resnet", pretrained=True)
    with torch.no_grad():
        model.fc.weight += 0.6 * torch.randn(model.fc.weight.shape, generator=torch.Generator().manual_seed(0))
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def make_settings(pictures, hurt):
    """Make settings of a short run that uses everything random: augmentation, mixup, moving average."""

    def make(drop="10@0", score="shift", **changes):
        settings = {
            "model": "tiny_resnet",
            "checkpoint": str(hurt),
            "data": str(pictures),
            "epochs": 3,
            "cooldown_epochs": 1,
            "batch_size": 10,
            "lr": 1e-3,
            "mixup": 0.2,
            "reprob": 0.2,
            "hflip": 0.0,
            "model_ema": True,
            "model_ema_decay": 0.5,
        }
        return TrainingSettings(**({"recipe": Recipe(drop, score=score)} | settings | changes))

    return make


def _run(settings, output, **options):
    return finetune(settings, output, **({"workers": 0, "device": "cpu"} | options))


@pytest.fixture(scope="session")
def run():
    """Fine-tune by settings into a folder, on the CPU and without workers if nothing else is said."""
    return _run


def _new_process():
    forget_accelerate()
    torch.manual_seed(999)
    np.random.seed(999)


@pytest.fixture(scope="session")
def new_process():
    """Do what a new process does, and have other random states than a new process has."""
    return _new_process


@pytest.fixture(scope="session")
def interrupt(run, new_process, stop):
    """Run until a step of what the observer is told, and stop there as if killed; what follows is a new process."""

    def interrupt(settings, output, what, step, **options):
        def observe(seen, done, steps):
            if what in seen and done == step:
                raise stop

        with pytest.raises(stop):
            run(settings, output, observe=observe, **options)
        new_process()

    return interrupt


@pytest.fixture(scope="session")
def uninterrupted(make_settings, run, new_process, tmp_path_factory):
    """A whole run: its folder, its outcome, and what its observer saw."""
    output, seen = tmp_path_factory.mktemp("uninterrupted"), []
    new_process()
    outcome = run(make_settings(), output, observe=lambda *step: seen.append(step))
    return output, outcome, seen


def _read_checkpoint(path):
    content = torch.load(path, weights_only=True)
    content.pop("saver", None)
    return content


@pytest.fixture(scope="session")
def read_checkpoint():
    """Read a checkpoint of timm's, but for the list of files that its saver keeps for itself."""
    return _read_checkpoint


def tensors(value, name=""):
    """Flatten what a checkpoint holds into tensors and numbers by name."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, (list, tuple)):
        value = enumerate(value)
    else:
        return {name: value}
    return {key: leaf for part, inner in value for key, leaf in tensors(inner, f"{name}/{part}").items()}


def _assert_same_result(output, expected):
    assert {path.name for path in output.iterdir()} == {path.name for path in expected.iterdir()}
    for name in ("model_best.pth.tar", "last.pth.tar"):
        ours, theirs = (tensors(_read_checkpoint(folder / name)) for folder in (output, expected))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            same = torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value
            assert same, (name, key)
    assert (output / "model_best.safetensors").read_bytes() == (expected / "model_best.safetensors").read_bytes()
    assert json.loads((output / "summary.json").read_text()) == json.loads((expected / "summary.json").read_text())


@pytest.fixture(scope="session")
def assert_same_result():
    """All that a run leaves is equal, bit for bit: best and last weights, optimiser, moving average, numbers."""
    return _assert_same_result


def _share_right(model, pictures):
    files = sorted((pictures / "val").rglob("*.png"))
    right = 0
    for path in files:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        with torch.no_grad():
            right += int(model(normalised(model, pixels[None])).argmax()) == int(path.parent.name)
    assert len(files) == 23
    return right / len(files)


@pytest.fixture(scope="session")
def share_right():
    """Classify the validation pictures one by one, without timm's loader."""
    return _share_right
