import pytest
import torch
from timm.models import VisionTransformer


@pytest.fixture
def make_vit():
    """Build ViTs of 2x3 patches and 2 blocks."""

    def make(**options):
        torch.manual_seed(0)
        settings = {
            "img_size": (16, 24),
            "patch_size": 8,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "num_classes": 3,
        }
        return VisionTransformer(**(settings | options)).eval()

    return make
