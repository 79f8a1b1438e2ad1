"""The evaluation of a pruned model on 23 canvases, and the same by hand."""

import pytest
import torch
from PIL import Image
from timm.data import create_transform

from repshift import Recipe, load_model
from repshift.analysis.evaluation.evaluation import Evaluation
from repshift.analysis.evaluation.settings import EvaluationSettings
from repshift.analysis.samples.images import data_config
from repshift.analysis.samples.processes import Processes

MEASURED = ("samples_per_sec", "dense_samples_per_sec", "batch_size")  # not the same in every run


@pytest.fixture
def hurt(tmp_path):
    """The embedded model with a noisy classifier, so that it errs: a checkpoint."""
    model = load_model("tiny_resnet", pretrained=True)
    with torch.no_grad():
        model.fc.weight += 0.8 * torch.randn(model.fc.weight.shape, generator=torch.Generator().manual_seed(3))
    torch.save(model.state_dict(), tmp_path / "hurt.pt")
    return tmp_path / "hurt.pt"


@pytest.fixture
def settings(folder, hurt):
    """A pruned model compared with the dense one."""

    def make(drop="12@0", score="shift", **changes):
        options = {"checkpoint": str(hurt), "batch_size": 4, "workers": 0, "compare_dense": drop is not None}
        return EvaluationSettings(
            str(folder), None if drop is None else Recipe(drop, score=score), **(options | changes)
        )

    return make


def _evaluate(settings, results=None, models=("tiny_resnet",), resume=None, observe=lambda *done: None):
    return Evaluation(settings, Processes(), results, observe=observe).run(models, resume)


@pytest.fixture(scope="session")
def evaluate():
    """Evaluate models by settings in this process; returns their rows."""
    return _evaluate


def _same(row):
    return {name: value for name, value in row.items() if name not in MEASURED}


@pytest.fixture(scope="session")
def same():
    """Leave out what is measured anew in every run."""
    return _same


def _predictions(model, folder):
    transform = create_transform(**data_config(model), is_training=False)
    found = {}
    for path in sorted(folder.rglob("*.png")):
        image = transform(Image.open(path).convert("RGB"))
        with torch.no_grad():
            order = model(image.unsqueeze(0))[0].argsort(descending=True).tolist()
        found[path] = int(path.parent.name), order
    return found


@pytest.fixture(scope="session")
def predictions():
    """Classify every file by hand: the label and the classes in the order of their logits."""
    return _predictions


def _files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.fixture(scope="session")
def files():
    """Return the names of all files below a folder."""
    return _files
