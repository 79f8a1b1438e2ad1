import json
from pathlib import Path

import pytest
import torch
from torch import nn

from repshift import load_model

FRAMES, SIDE, PATCH = 4, 16, 8  # 4x2x2 tokens
SIZES = {"frames": FRAMES, "img_size": SIDE, "patch_size": PATCH, "width": 24, "heads": 2, "vocabulary": 40}


def strong(model):
    """Give a model weights so large that every wrong number shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or "LayerNorm.weight" in name or "norm1" in name or "norm2" in name:
                nn.init.normal_(parameter, mean=1.0 if "weight" in name else 0.0, std=0.2)
            elif parameter.ndim:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(params=["retrieval", "qa"])
def model(request):
    return strong(load_model("tiny_umt" if request.param == "retrieval" else "tiny_umt_qa", **SIZES))


@pytest.fixture
def make():
    """Build a small model with strong weights."""

    def build(name="tiny_umt", **options):
        return strong(load_model(name, **(SIZES | options)))

    return build


@pytest.fixture
def videos():
    torch.manual_seed(1)
    return torch.randn(2, FRAMES, 3, SIDE, SIDE)


@pytest.fixture
def texts():
    """Word pieces and mask of three texts, two of them padded."""
    torch.manual_seed(2)
    ids = torch.randint(3, 40, (3, 6))
    ids[:, 0] = 2
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    return ids * mask, mask


def read_manifest(name):
    """Return names and shapes of a published kind of file; those of layers are written once in it."""
    rows = json.loads((Path(__file__).parent / "manifests.json").read_text(encoding="utf-8"))[name]
    shapes = {}
    for key, shape, *layers in rows:
        numbers = range(layers[0], layers[1] + 1) if layers else [None]
        shapes |= {key.replace("{}", str(number)): tuple(shape) for number in numbers}
    return shapes


@pytest.fixture
def manifest():
    return read_manifest
