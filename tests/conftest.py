"""Small vision transformers whose scores are far from degenerate, shared by all tests."""

import pytest
import torch
from timm.models import VisionTransformer

from repshift import BACKBONES

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=0, help="Examples of each test in tests/fuzz, drawn anew each time.")


def _build_vit(model_class=VisionTransformer, **options):
    model = model_class(**(TINY | options)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if any(part in name for part in ("pos_embed", "_token", "latent")):
                parameter.copy_(noise)
            elif parameter.ndim >= 2:  # keeps the scale of activations, so that branch and stream are comparable
                parameter.copy_(1.2 * noise / parameter[0].numel() ** 0.5)
            elif name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
                parameter.copy_(0.8 + 0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def build_vit():
    """Build a tiny vision transformer of timm, 64 patches, with well spread random weights."""
    return _build_vit


@pytest.fixture
def vit():
    """A tiny vision transformer with a class token: 4 blocks, 64 patches."""
    return _build_vit()


@pytest.fixture
def images():
    """Three images that the tiny models take."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def fresh_dynamo():
    """Forget what other tests compiled: it counts against the limit of graphs for one function."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _states(model, images):
    seen = []
    handles = [layer.register_forward_hook(lambda *call: seen.append(call[2])) for layer in model.layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture
def states():
    """Return what every layer of a model returned, behind its cut if there is one."""
    return _states


@pytest.fixture
def register(monkeypatch):
    """Register a backbone for one test."""

    def add(backbone):
        others = {name: BACKBONES.get(name) for name in BACKBONES.names() if name != "of a test"}
        monkeypatch.setattr(BACKBONES, "_targets", {"of a test": backbone, **others})

    return add
