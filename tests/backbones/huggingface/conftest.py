"""Tiny models of transformers with well spread random weights: three blocks, 4x4 patches."""

import pytest
import torch

from repshift.testing import KeepAll

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 32, "patch_size": 8}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXT = {**SIZES, **SPECIAL, "num_hidden_layers": 1, "vocab_size": 20, "max_position_embeddings": 8}
# what a configuration needs beside sizes, by the beginning of its name
PARTS = {
    "Dinov2": {"mlp_ratio": 2, "out_features": ["stage1", "stage3"]},
    "Beit": {
        "use_relative_position_bias": True,
        "use_shared_relative_position_bias": True,
        "use_mean_pooling": True,
        "out_features": ["stage1", "stage3"],
    },
    "DINOv3": {"num_register_tokens": 2, "out_features": ["stage1", "stage3"]},
    "ViTMAE": {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
    "AST": {"patch_size": 8, "frequency_stride": 8, "time_stride": 4, "max_length": 32, "num_mel_bins": 16},
}


def _config(transformers, name, options):
    kind = getattr(transformers, name).config_class
    if "vision_config" in kind.sub_configs:
        vision = {**SIZES, **IMAGE, "num_patches": 16} if "2Config" in kind.__name__ else {**SIZES, **IMAGE}
        return kind(text_config=TEXT, vision_config=vision, projection_dim=16, **options)
    parts = next((part for start, part in PARTS.items() if name.startswith(start)), {})
    given = {**SIZES, **IMAGE, **parts}
    if name.startswith("Siglip2"):
        given |= {"num_patches": 16}
    return kind(
        **{
            key: value
            for key, value in {**given, **options}.items()
            if key != "image_size" or not name.startswith(("AST", "Siglip2"))
        }
    )


@pytest.fixture
def transformers():
    """The library; tests that need it are skipped without it."""
    return pytest.importorskip("transformers")


@pytest.fixture
def build(transformers):
    """Build a model by the name of its class."""

    def make(name, **options):
        model = getattr(transformers, name)(_config(transformers, name, options)).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1.2 * noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.5 + 0.3 * noise)
        return model

    return make


@pytest.fixture
def strong():
    """Give a model weights so large that every wrong mask and position shows."""

    def strengthened(model):
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return strengthened


@pytest.fixture
def images():
    """Two images that the models take."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def keep_all():
    """A pruner that keeps every token, with the whole machinery in place."""
    return KeepAll()
