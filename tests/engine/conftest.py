"""Small models shared by the tests of the engine."""

import pytest
import torch
from timm.models import VisionTransformer

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}


def _build_vit(**options):
    torch.manual_seed(0)
    model = VisionTransformer(**(TINY | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def build_vit():
    """Build a tiny vision transformer of timm: 4 blocks, 64 patches."""
    return _build_vit


@pytest.fixture
def vit():
    """A tiny vision transformer with a class token: 4 blocks, 64 patches."""
    return _build_vit()


@pytest.fixture
def images():
    """Two images that the tiny models take."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
