import pytest
from torch import nn

from repshift import load_model
from repshift.analysis.samples.batches import Share
from repshift.analysis.samples.data import loader


@pytest.fixture
def model():
    """An embedded model of ten classes."""
    return load_model("tiny_resnet", pretrained=True)


class Classifier(nn.Module):
    """Stands for a model of so many classes and this data configuration."""

    def __init__(self, classes=1, **config):
        super().__init__()
        self.num_classes, self.pretrained_cfg = classes, {"input_size": (3, 32, 32), **config}


@pytest.fixture
def classifier():
    """Build what stands for a model of so many classes and a data configuration."""
    return Classifier


def _read_all(samples, batch_size=4, workers=0, **share):
    images, failures = {}, []
    for batch in loader(samples, batch_size, workers, share=Share(**share)):
        for index, image, label in zip(batch.indices, batch.images, batch.labels, strict=True):
            assert index not in images
            images[index] = image, label
        failures += batch.failures
    return images, failures


@pytest.fixture
def read_all():
    """Return image and label by number, and the failures."""
    return _read_all


def _damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.fixture
def damage():
    """Cut a file to half of its length; returns its path."""
    return _damage
