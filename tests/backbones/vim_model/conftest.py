import pytest
import torch

from repshift.backbones.vim_model import VisionMamba

# 24 channels: the rank of the step sizes, a sixteenth of them, has to be rounded up
SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 3, "d_state": 4, "num_classes": 5}


def _create(**options):
    return VisionMamba(**(SMALL | options))


def _build(**options):
    model = _create(**options).eval().double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name in ("cls_token", "pos_embed"):
                parameter.copy_(noise)
            elif "A_" in name:
                parameter.add_(0.3 * noise)
            elif name.endswith(("norm.weight", "norm_f.weight", "D", "D_b")):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim >= 2:
                parameter.copy_(1.2 * noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model


def _images_for(model, batch=2):
    rows, columns = model.patch_embed.img_size
    channels = model.patch_embed.proj.in_channels
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, channels, rows, columns, generator=generator, dtype=torch.float64)


@pytest.fixture
def create():
    """Create a Vision Mamba of 3 layers for images of 24x24 pixels, as it is before training."""
    return _create


@pytest.fixture
def build():
    """Build such a model in float64 whose parameters all matter."""
    return _build


@pytest.fixture
def images_for():
    """Return two images, or as many as asked for, that a model takes."""
    return _images_for
